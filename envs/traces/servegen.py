"""ServeGen: per client, the rate, burstiness and lengths of each window; the requests have to be drawn.

A directory holds ``chunk-I-trace.csv`` (no header: window_s, rate, cv, family, shape, scale; a row per 600 s) and
``chunk-I-dataset.json`` (``{"seconds": {"input_tokens": "{length: probability, ...}", "output_tokens": ...}}``, the
inner mappings as text). Arrivals of a window are a renewal process of its family and shape with its rate as mean.
"""

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ccr.errors import TraceError
from envs.traces.reader import Wishes
from envs.traces.rows import MAX_TOKENS, BadRow, Row, number, short
from envs.traces.source import Head, Source, csv_fields

WINDOW_S = 600.0
_TRACE = re.compile(r"chunk-(\d+)-trace\.csv")
_FAMILIES = ("Gamma", "Weibull", "")
_MOST_PER_WINDOW = 10**7
# Below, hardly any gap is near the mean, and a draw does not end. The least ones published are 0.0067 and 0.15.
_LEAST_SHAPE = {"Gamma": 0.001, "Weibull": 0.1}

Lengths = tuple[NDArray[np.int64], NDArray[np.float64]]
_NOTHING: Lengths = (np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True, slots=True)
class _Window:
    start_s: float
    rate: float
    family: str
    shape: float


@dataclass(frozen=True, slots=True)
class _Client:
    """One of the clients; ``prompt`` and ``output`` by the second from which they hold, falling."""

    number: int
    windows: Mapping[float, _Window]
    lengths: tuple[tuple[float, Lengths, Lengths], ...]

    def lengths_at(self, at_s: float) -> tuple[Lengths, Lengths]:
        """Length distributions in force."""
        return next(((p, o) for since_s, p, o in self.lengths if since_s <= at_s), (_NOTHING, _NOTHING))


@dataclass(frozen=True, slots=True)
class ServeGen:
    """The reader; every client stands for a model of its own, ``NAME-cI``."""

    licence: str = "Apache-2.0"
    block_tokens: int = 0
    is_generated: bool = True
    scales_rate: bool = True
    notes: tuple[str, ...] = (
        "drawn from published parameters, not recorded",
        "every client stands for a model of its own",
    )

    def recognises(self, head: Head) -> bool:
        """By the names of the files in the directory."""
        return head.path.is_dir() and any(_TRACE.fullmatch(one.name) for one in head.path.iterdir())

    def rows(self, source: Source, wishes: Wishes) -> Iterator[Row]:
        """Drawn window by window; a window's requests depend on the seed and the window alone."""
        clients = _clients(source)
        name = wishes.model or source.path.resolve().name
        starts = sorted({start for client in clients for start in client.windows})
        for i, start_s in enumerate(starts):
            if start_s + WINDOW_S <= wishes.from_s or start_s >= wishes.until_s:
                continue
            yield from _window_rows(clients, start_s, name, wishes, source)
            if source.progress:
                source.progress((i + 1) / len(starts))


def _window_rows(
    clients: list[_Client], start_s: float, name: str, wishes: Wishes, source: Source
) -> Iterator[Row]:
    drawn = [_draw(client, start_s, wishes, source) for client in clients]
    t = np.concatenate([times for times, _, _ in drawn])
    client = np.repeat([client.number for client in clients], [times.size for times, _, _ in drawn])
    prompt = np.concatenate([prompts for _, prompts, _ in drawn])
    output = np.concatenate([outputs for _, _, outputs in drawn])
    order = np.argsort(t, kind="stable")
    for at_s, number_, prompt_tokens, output_tokens in zip(
        t[order].tolist(), client[order].tolist(), prompt[order].tolist(), output[order].tolist(), strict=True
    ):
        yield Row(
            t=at_s, model=f"{name}-c{number_}", prompt_tokens=prompt_tokens, output_tokens=output_tokens
        )


def _draw(
    client: _Client, start_s: float, wishes: Wishes, source: Source
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Times, prompts and outputs of a client's window, each of shape ``(requests,)``."""
    window = client.windows.get(start_s)
    nothing = np.empty(0), _NOTHING[0], _NOTHING[0]
    if window is None or window.rate == 0.0:
        return nothing
    prompts, outputs = client.lengths_at(start_s)
    if not prompts[0].size or not outputs[0].size:
        source.dropped["window without lengths"] += 1
        return nothing
    rng = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([wishes.seed, client.number, int(start_s)]))
    )
    t = start_s + _arrivals(rng, window, window.rate * wishes.rate_scale)
    return t, rng.choice(prompts[0], t.size, p=prompts[1]), rng.choice(outputs[0], t.size, p=outputs[1])


def _arrivals(rng: np.random.Generator, window: _Window, rate: float) -> NDArray[np.float64]:
    """Seconds from the start of the window, rising."""
    parts: list[NDArray[np.float64]] = []
    reached_s = 0.0
    count = int(rate * WINDOW_S * 1.2) + 16
    while reached_s < WINDOW_S:
        gaps = _gaps(rng, window, count) / rate
        parts.append(reached_s + np.cumsum(gaps))
        reached_s = float(parts[-1][-1])
    t = np.concatenate(parts)
    return t[t < WINDOW_S]


def _gaps(rng: np.random.Generator, window: _Window, count: int) -> NDArray[np.float64]:
    """Gaps of mean one."""
    if window.family == "Gamma":
        return rng.gamma(window.shape, 1.0 / window.shape, count)
    if window.family == "Weibull":
        return rng.weibull(window.shape, count) / math.gamma(1.0 + 1.0 / window.shape)
    return rng.exponential(1.0, count)


def _clients(source: Source) -> list[_Client]:
    try:
        names = sorted(
            (int(found[1]), one) for one in source.path.iterdir() if (found := _TRACE.fullmatch(one.name))
        )
    except OSError as error:
        raise TraceError(
            f"cannot list {source.path}: {error.strerror}; servegen is a directory of chunk-I-trace.csv files"
        ) from error
    if not names:
        raise TraceError(
            f"{source.path} holds no chunk-I-trace.csv; give a directory such as data/language/m-small"
        )
    clients = []
    for number_, path in names:
        dataset = path.with_name(f"chunk-{number_}-dataset.json")
        if dataset.exists():
            clients.append(_Client(number_, _windows(path, source), _lengths(dataset)))
        else:
            source.dropped["client without a dataset file"] += 1
    if not clients:
        raise TraceError(
            f"{source.path} holds no chunk-I-dataset.json, so lengths are unknown; fetch these files too"
        )
    return clients


def _windows(path: Path, source: Source) -> dict[float, _Window]:
    part = Source(path, skip_bad=source.skip_bad, remedy=source.remedy)
    windows: dict[float, _Window] = {}
    for line, raw in part.lines():
        source.rows_read += 1
        try:
            window = _window(csv_fields(raw))
        except BadRow as bad:
            if not source.skip_bad:
                raise TraceError(f"{path}, line {line}: {bad.story}. {source.remedy}") from None
            source.dropped[bad.reason] += 1
            continue
        windows[window.start_s] = window
    return windows


def _window(fields: list[str] | BadRow) -> _Window:
    if isinstance(fields, BadRow):
        raise fields
    if len(fields) != 6:
        raise BadRow(
            "wrong number of fields",
            f"{len(fields)} fields; expected window, rate, cv, family and two parameters",
        )
    family = fields[3].strip()
    if family not in _FAMILIES:
        raise BadRow("unknown family", f"the family is {short(family)}; expected Gamma, Weibull or nothing")
    window = _Window(
        number(fields[0], "window"), number(fields[1], "rate"), family, number(fields[4], "shape")
    )
    if window.rate > 0.0 and family and window.shape < _LEAST_SHAPE[family]:
        raise BadRow(
            "shape out of range",
            f"a {family} window has the shape {window.shape:g}; expected at least {_LEAST_SHAPE[family]}",
        )
    if window.rate * WINDOW_S > _MOST_PER_WINDOW:
        raise BadRow(
            "rate too high", f"a rate of {window.rate:g} is more than {_MOST_PER_WINDOW} requests a window"
        )
    return window


def _lengths(path: Path) -> tuple[tuple[float, Lengths, Lengths], ...]:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
        found = [
            (number(since, "time"), _pdf(each["input_tokens"]), _pdf(each["output_tokens"]))
            for since, each in record.items()
        ]
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise TraceError(f"{path} has an entry without {error}; fetch the file again") from None
    except (msgspec.DecodeError, BadRow) as error:
        raise TraceError(f"{path} is no dataset of servegen ({error}); fetch the file again") from None
    return tuple(sorted(found, key=lambda entry: -entry[0]))


def _pdf(text: Any) -> Lengths:
    """Lengths and their probabilities from the text of a mapping: literals only, nothing is evaluated."""
    try:
        mapping = ast.literal_eval(text) if isinstance(text, str) else text
        lengths = np.array(list(mapping.keys()), np.int64)
        weights = np.array(list(mapping.values()), np.float64)
    except (ValueError, TypeError, SyntaxError, AttributeError, OverflowError, MemoryError, RecursionError):
        raise BadRow("no distribution", f"{short(text)} is no mapping of length to probability") from None
    is_good = np.isfinite(weights).all() and (weights >= 0.0).all() and (lengths <= MAX_TOKENS).all()
    # An output of nothing is a request that failed, and a prompt has a token: both stay out, as in other formats.
    kept = lengths >= 1
    total = weights[kept].sum() if is_good else 0.0
    if not is_good or (mapping and (lengths < 0).any()):
        raise BadRow("no distribution", f"{short(text)} has a length or probability out of range")
    return (lengths[kept], weights[kept] / total) if total > 0.0 else _NOTHING
