"""How fast weights come in, by source: from recorded loads, or from published load times."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ccr.errors import TraceError, UnknownModelError
from ccr.timing import GB, LOAD_SOURCES, LoadSource
from envs.calibration.rows import Row, read_rows
from envs.calibration.shapes import Shapes, shape_of
from envs.calibration.solve import Constant, Floats, Range, fit_constants

_OURS = ("node", "kind", "model", "bytes", "ms")
_PUBLISHED = ("gpu", "model", "loader", "loading_s")
# What the two layouts call the sources that ship.
_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "process": "process",
        "weights_disk": "disk_safetensors",
        "weights_host": "host_pinned",
        "safetensors": "disk_safetensors",
        "sllm": "disk_fast",
    }
)
_NOT_WEIGHTS = ("lora", "evict")
# Sizes closer than this cannot tell a fixed part from a slow rate.
_SPREAD = 1.3
#: Loads of a place and kind that it takes to say how they vary.
LEAST_LOADS = 3


@dataclass(frozen=True, slots=True)
class Load:
    """One load of a model's weights.

    Args:
        source: key in :data:`ccr.timing.LOAD_SOURCES`.
        where: the node, or the card and its disk.
        bytes: of the weights.
        seconds: it took.
    """

    source: str
    where: str
    bytes: float
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadFit:
    """One source as measured in one place.

    Args:
        where: the node, or the card.
        source: to load from, named after the source that ships.
        fixed_s: seconds on top of the bytes.
        bytes_per_s: rate.
        mape: mean absolute error, as a fraction.
        n: loads.
    """

    where: str
    source: LoadSource
    fixed_s: Constant
    bytes_per_s: Constant
    mape: float
    n: int


def read_loads(path: Path, shapes: Shapes, unnamed: str = "engine_swap") -> tuple[list[Load], Counter[str]]:
    """Loads of weights, and why other rows were left out.

    Args:
        path: ``loads`` rows of the trace format, the directory of a recording, or ``gpu,model,loader,loading_s``.
        shapes: of the models; their size where the row does not give one.
        unnamed: key in :data:`ccr.timing.LOAD_SOURCES` for rows without a kind: a router sees that a model came, not
            where from.

    Raises:
        TraceError: naming the line and the reason.
    """
    rows = read_rows(path, ("model",), "loads")
    if "loading_s" in rows[0].values:
        return [_published(row, shapes) for row in read_rows(path, _PUBLISHED)], Counter()
    rows = read_rows(path, _OURS, "loads")
    skipped = Counter(reason for row in rows if (reason := _no_load(row)))
    loads = [_ours(row, shapes, unnamed) for row in rows if not _no_load(row)]
    if not loads:
        raise TraceError(f"{path.name} has no load of weights, only rows {', '.join(skipped)}")
    return loads, skipped


def fit_loads(loads: Sequence[Load]) -> list[LoadFit]:
    """A source for each place and kind of load that has enough of them, in the order of the file.

    Raises:
        TraceError: too few loads of any kind to say anything.
    """
    groups = _grouped(loads)
    enough = {group: of for group, of in groups.items() if len(of) >= LEAST_LOADS}
    if not enough:
        few = "; ".join(f"{where}: {len(of)} loads from {source}" for (where, source), of in groups.items())
        raise TraceError(f"{few}; at least {LEAST_LOADS} are needed to say how they vary")
    return [_fit(where, source, of) for (where, source), of in enough.items()]


def too_few(loads: Sequence[Load]) -> dict[str, int]:
    """Loads of each place and kind that :func:`fit_loads` leaves out, by ``WHERE from SOURCE``."""
    return {
        f"{where} from {source}": len(of)
        for (where, source), of in _grouped(loads).items()
        if len(of) < LEAST_LOADS
    }


def _grouped(loads: Sequence[Load]) -> dict[tuple[str, str], list[Load]]:
    groups: dict[tuple[str, str], list[Load]] = {}
    for load in loads:
        groups.setdefault((load.where, load.source), []).append(load)
    return groups


def _no_load(row: Row) -> str:
    """Why a row says nothing about loading; empty when it does. A restart has a kind, and no model."""
    if row.text("kind") in _NOT_WEIGHTS:
        return f"of kind {row.text('kind')}"
    return next((f"without {name}" for name in ("model", "ms") if not row.has(name)), "")


def _published(row: Row, shapes: Shapes) -> Load:
    return Load(
        _source(row, "loader"), row.required_text("gpu"), _size(row, shapes), row.above_zero("loading_s")
    )


def _ours(row: Row, shapes: Shapes, unnamed: str) -> Load:
    size = row.above_zero("bytes") if row.has("bytes") else _size(row, shapes)
    source = _source(row, "kind") if row.has("kind") else unnamed
    return Load(source, row.required_text("node"), size, row.above_zero("ms") / 1000)


def _source(row: Row, column: str) -> str:
    word = row.required_text(column)
    if word not in _SOURCES:
        raise row.wrong(f"{column} is {word!r}; known: {', '.join((*_SOURCES, *_NOT_WEIGHTS))}")
    return _SOURCES[word]


def _size(row: Row, shapes: Shapes) -> float:
    name, version = row.required_text("model"), row.text("version")
    try:
        return shape_of(shapes, f"{name}@{version}" if version else name, name)[1].stored_bytes
    except UnknownModelError as error:
        raise row.wrong(str(error)) from error


def _fit(where: str, source: str, loads: Sequence[Load]) -> LoadFit:
    shipped = LOAD_SOURCES[source]
    sizes = np.array([load.bytes for load in loads])
    seconds = np.array([load.seconds for load in loads])

    def predicted(values: Mapping[str, float]) -> Floats:
        time: Floats = values["fixed_s"] + sizes / values["bytes_per_s"]
        return time

    ranges = {
        "fixed_s": Range(shipped.fixed_s, 0.0, 600.0, weak=5.0, linear=True),
        "bytes_per_s": Range(shipped.bytes_per_s, 0.01 * GB, 200 * GB),
    }
    known = _unidentified(shipped, float(sizes.max() / sizes.min()))
    free = {name: span for name, span in ranges.items() if name not in known}
    held = {name: constant.value for name, constant in known.items()}
    found = {**known, **fit_constants(lambda values: predicted({**held, **values}) / seconds - 1.0, free)}
    values = {name: constant.value for name, constant in found.items()}
    mean_s = predicted(values)
    fitted = LoadSource(
        source, values["fixed_s"], values["bytes_per_s"], float(np.std(seconds / mean_s)), f"fitted to {len(loads)} loads on {where}"
    )  # fmt: skip
    mape = float(np.abs(mean_s / seconds - 1.0).mean())
    return LoadFit(where, fitted, found["fixed_s"], found["bytes_per_s"], mape, len(loads))


def _unidentified(shipped: LoadSource, spread: float) -> dict[str, Constant]:
    """Loads of one size tell one constant: the fixed part where that is most of it, the rate elsewhere."""
    if spread >= _SPREAD:
        return {}
    name = "bytes_per_s" if shipped.fixed_s > 10 else "fixed_s"
    return {name: Constant(name, getattr(shipped, name), np.inf, "loads of one size: kept as it was")}
