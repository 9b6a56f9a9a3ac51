"""Reads the Prometheus text format: the wanted series only, within fixed bounds, from bytes nobody vouches for."""

import re
from collections.abc import Mapping
from functools import lru_cache

from ccr.errors import TelemetryError

#: Labels and value of one series.
Sample = tuple[Mapping[str, str], float]

TOO_LARGE = "too_large"
MALFORMED = "malformed"

MAX_BYTES = 2 << 20
# A vLLM page has 300 lines of which we want 5; a Triton server with a hundred models has a few thousand. With these
# bounds the worst page found costs 20-60 ms, an honest vLLM page 0.1 ms (tests/router/test_prometheus_text.py has them).
MAX_LINES = 50_000
MAX_SAMPLES = 2_000
MAX_WANTED_BYTES = 256 << 10

_LABEL = re.compile(rb'[ \t]*([a-zA-Z_]\w*)[ \t]*=[ \t]*"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t]*(?:,|(?=\}))')
_CLOSE = re.compile(rb"[ \t]*\}")
# Value, then perhaps a timestamp, then perhaps an exemplar.
_TAIL = re.compile(rb"[ \t]*+([^\s{}]++)(?:[ \t]++[-+.0-9eE]++)?[ \t\r]*+(?:#.*+)?")


def parse(text: bytes, wanted: frozenset[str]) -> dict[str, list[Sample]]:
    """The samples of the wanted names; lines of other names are not looked at.

    Args:
        text: a page in the text format, or anything else.
        wanted: exact sample names.

    Returns:
        Name -> its series in page order; names that are not on the page are left out. Values may be
        NaN or infinite: those are words of the format, to be judged by whoever knows the unit.

    Raises:
        TelemetryError: ``too_large`` or ``malformed``; nothing else, whatever the bytes.
    """
    if len(text) > MAX_BYTES:
        raise TelemetryError(TOO_LARGE, f"{len(text)} bytes; at most {MAX_BYTES} are read")
    if text.count(b"\n") >= MAX_LINES:
        raise TelemetryError(TOO_LARGE, f"more than {MAX_LINES} lines")
    names = _by_bytes(wanted)
    found: dict[str, list[Sample]] = {}
    samples = wanted_bytes = 0
    for line in text.split(b"\n"):
        words = line.partition(b"{")[0].split(None, 1)
        if not words or (name := names.get(words[0])) is None:
            continue
        samples += 1
        wanted_bytes += len(line)
        if samples > MAX_SAMPLES or wanted_bytes > MAX_WANTED_BYTES:
            raise TelemetryError(TOO_LARGE, f"{samples} series of the wanted names, {wanted_bytes} bytes")
        found.setdefault(name, []).append(_sample(line, line.index(words[0]) + len(words[0])))
    return found


@lru_cache(maxsize=64)
def _by_bytes(wanted: frozenset[str]) -> Mapping[bytes, str]:
    return {name.encode(): name for name in wanted}


def _sample(line: bytes, after_name: int) -> Sample:
    labels, after_labels = _labels(line, after_name)
    match = _TAIL.fullmatch(line, after_labels)
    if match is None:
        raise _malformed(line)
    return labels, _value(match[1], line)


def _labels(line: bytes, position: int) -> tuple[Mapping[str, str], int]:
    labels: dict[str, str] = {}
    if not line[position:].lstrip(b" \t").startswith(b"{"):
        return labels, position
    position = line.index(b"{", position) + 1
    while (close := _CLOSE.match(line, position)) is None:
        match = _LABEL.match(line, position)
        if match is None:
            raise _malformed(line)
        labels[match[1].decode()] = _text(match[2], line)
        position = match.end()
    return labels, close.end()


def _text(raw: bytes, line: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _malformed(line) from None
    if "\\" not in text:
        return text
    return "\\".join(part.replace(r"\n", "\n").replace(r"\"", '"') for part in text.split(r"\\"))


def _value(token: bytes, line: bytes) -> float:
    if b"_" in token:  # Python's grouping, not part of the format.
        raise _malformed(line)
    try:
        return float(token)
    except ValueError:
        raise _malformed(line) from None


def _malformed(line: bytes) -> TelemetryError:
    return TelemetryError(MALFORMED, f"line {line[:120]!r}")
