"""What a learner found out about nodes and models: a small signed value, taken where a router's own evidence is thin.

A router learns the speed of its nodes, loads and lengths from its own traffic within seconds. One that has just started,
or serves little, begins with what all of them saw instead. What a request takes besides its steps no router learns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from ccr.book import ANSWERS, OVERHEAD_S, SPEED, Book, Floats
from ccr.errors import CCRError
from ccr.signed import sealed, unsealed

LARGEST_BYTES: Final = 512 * 1024
"""Of the signed value; some 70 bytes a node or model."""
FEW_ANSWERS: Final = 5.0
"""Until a router has seen so many answers of a node, it takes the speed that it is told."""
SPEEDS: Final = (0.2, 5.0)
OVERHEADS_S: Final = (0.0, 5.0)
LOADS_S: Final = (0.02, 1800.0)
LENGTHS: Final = (1.0, 100_000.0)
_DOMAIN: Final = b"ccr calibration 1\n"
_FORM: Final = 1


class CalibrationError(CCRError):
    """A calibration is refused; ``reason`` is a short label for a counter."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"calibration refused ({reason}): {detail}")


class NodeConstants(NamedTuple):
    """Of a node; NaN where nothing is known.

    Args:
        speed: observed time per token as a multiple of the expected one.
        overhead_s: what a request takes besides its steps.
        is_doubted: its telemetry tells of less work than the routers know it to have: it is never taken for fast.
    """

    speed: float = math.nan
    overhead_s: float = math.nan
    is_doubted: bool = False


class ModelConstants(NamedTuple):
    """Of a model; NaN where nothing is known.

    Args:
        load_s: of a load from its source.
        output_tokens: generated on average.
    """

    load_s: float = math.nan
    output_tokens: float = math.nan


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of the fleet.

    Args:
        at_s: when they were true, seconds since 1970.
        nodes: by :func:`ccr.hashing.hash64` of the id.
        models: by the same of theirs.
    """

    at_s: float = 0.0
    nodes: Mapping[int, NodeConstants] = field(default_factory=dict)
    models: Mapping[int, ModelConstants] = field(default_factory=dict)

    def apply(
        self,
        book: Book,
        nodes: Sequence[int],
        models: Sequence[int],
        prior_load_s: Floats,
        prior_output_tokens: Floats,
    ) -> None:
        """Write into the book what its owner has too little evidence of.

        Args:
            book: changed.
            nodes: hashes of its columns.
            models: hashes of its rows.
            prior_load_s: loads before any was seen; where the book differs, its owner saw one. Changed, shape ``(M, n)``.
            prior_output_tokens: the same of lengths, shape ``(M,)``.
        """
        load = book.load
        for n, node in enumerate(nodes):
            constants = self.nodes.get(node, _UNKNOWN)
            if not math.isnan(constants.overhead_s):
                load[OVERHEAD_S, n] = constants.overhead_s
            if not math.isnan(constants.speed) and load[ANSWERS, n] < FEW_ANSWERS:
                load[SPEED, n] = constants.speed
        for m, model in enumerate(models):
            told = self.models.get(model)
            if told is None:
                continue
            if not math.isnan(told.load_s):
                unseen = book.load_s[m] == prior_load_s[m]
                book.load_s[m, unseen] = prior_load_s[m, unseen] = told.load_s
                book.host_load_s[m] = np.minimum(book.host_load_s[m], book.load_s[m])
            if not math.isnan(told.output_tokens) and book.output_tokens[m] == prior_output_tokens[m]:
                book.output_tokens[m] = prior_output_tokens[m] = told.output_tokens


NOTHING: Final = Calibration()
_UNKNOWN: Final = NodeConstants()


def signed(calibration: Calibration, key: bytes) -> bytes:
    """As it is stored: a signature, and what it covers."""
    document = {
        "form": _FORM,
        "at_s": calibration.at_s,
        "nodes": {
            f"{one:016x}": [_told(found.speed), _told(found.overhead_s), found.is_doubted]
            for one, found in calibration.nodes.items()
        },
        "models": {
            f"{one:016x}": [_told(found.load_s), _told(found.output_tokens)]
            for one, found in calibration.models.items()
        },
    }
    return sealed(json.dumps(document, separators=(",", ":"), allow_nan=False).encode(), key, _DOMAIN)


def opened(data: bytes, key: bytes) -> Calibration:
    """The calibration; nothing in it is looked at before its signature.

    Raises:
        CalibrationError: with reason ``unsigned``, ``malformed`` or ``out_of_range``.
    """
    text = unsealed(data, key, _DOMAIN, LARGEST_BYTES)
    if text is None:
        raise CalibrationError("unsigned", "its signature is not of our key")
    try:
        return _read(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CalibrationError(
            "malformed", f"{error}; learner and router are of different releases"
        ) from None


def _read(document: Any) -> Calibration:
    if document["form"] != _FORM:
        raise ValueError(f"form {document['form']!r}, and this release reads {_FORM}")
    nodes, models = {}, {}
    for name, (told_speed, overhead_s, is_doubted) in document["nodes"].items():
        if not isinstance(is_doubted, bool):
            raise TypeError("a doubt is neither true nor false")
        speed = _within("speed", told_speed, SPEEDS)
        believed = max(speed, 1.0) if is_doubted else speed  # NaN stays NaN: it comes first
        nodes[int(name, 16)] = NodeConstants(
            believed, _within("overhead", overhead_s, OVERHEADS_S), is_doubted
        )
    for name, (load_s, output_tokens) in document["models"].items():
        models[int(name, 16)] = ModelConstants(
            _within("load", load_s, LOADS_S), _within("length", output_tokens, LENGTHS)
        )
    at_s = document["at_s"]
    if not isinstance(at_s, float) or not 0.0 < at_s < math.inf:
        raise ValueError("its moment is none")
    return Calibration(at_s, nodes, models)


def _within(name: str, value: Any, limits: tuple[float, float]) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a {name} is no number")
    if not limits[0] <= value <= limits[1]:
        raise CalibrationError("out_of_range", f"a {name} of {value!r}; {limits[0]:g} to {limits[1]:g}")
    return float(value)


def _told(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
