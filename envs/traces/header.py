"""Where a trace comes from: the header of a file, and the file beside it where the format has no room for one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from ccr.errors import TraceError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Header:
    """The provenance of a trace.

    Args:
        source: format and file name, or what drew it.
        licence: of the source; empty when unknown.
        sha256_source: of the file it was imported from; empty when there was none.
        rows_read: rows of the source that were read.
        rows_dropped: rows left out, by reason.
        block_tokens: tokens of one prefix block; 0 when there are none, or when that is unknown.
        generated: whether the requests were drawn rather than recorded.
        seed: of the draw; ``None`` when nothing was drawn.
        notes: what else a reader should know.
        rows: in the file; ``None`` when the header does not say.
    """

    source: str = ""
    licence: str = ""
    sha256_source: str = ""
    rows_read: int = 0
    rows_dropped: Mapping[str, int] = field(default_factory=dict)
    block_tokens: int = 0
    generated: bool = False
    seed: int | None = None
    notes: tuple[str, ...] = ()
    rows: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows_dropped", MappingProxyType(dict(self.rows_dropped)))

    def as_json(self) -> dict[str, Any]:
        """The first line of a JSONL trace."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "rows_dropped"}
        return {
            "ccr_trace": VERSION, "kind": "requests", **fields,
            "rows_dropped": dict(self.rows_dropped), "notes": list(self.notes),
        }  # fmt: skip


def header_from(record: Mapping[str, Any], path: Path) -> Header:
    """The header that a JSON object holds; other keys are not looked at.

    Raises:
        TraceError: if it is of another format or kind, or a value has the wrong type.
    """
    if record.get("ccr_trace") != VERSION:
        raise TraceError(
            f"{path} is a trace of format {record.get('ccr_trace')!r}; this version reads format {VERSION}"
        )
    if record.get("kind", "requests") != "requests":
        raise TraceError(f"{path} holds {record['kind']!r} records; what is needed are `requests`")
    try:
        # What is null is as good as not there: a segment that was never closed has no number of rows.
        return msgspec.convert({key: value for key, value in record.items() if value is not None}, Header)
    except msgspec.ValidationError as error:
        raise TraceError(f"the header of {path} is wrong: {error}; write the trace again") from error


def beside(path: Path) -> Path:
    """Where the header of a CSV trace is kept: the trace format gives the file itself no place for it."""
    return path.with_name(path.name + ".header.json")


def header_beside(path: Path) -> Header:
    """The header kept beside a CSV trace, or an empty one."""
    place = beside(path)
    try:
        text = place.read_bytes()
    except FileNotFoundError:
        return Header()
    except OSError as error:
        raise TraceError(f"cannot read {place}: {error.strerror or error}") from error
    try:
        record = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise TraceError(f"{place} is no header ({error}); delete it, or write the trace again") from error
    return header_from(record, place)
