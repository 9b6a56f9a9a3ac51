"""A recording of the router: a directory of segments, as one trace."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ccr.segments import headers, segments
from ccr.segments import rows as recorded_rows
from envs.traces.reader import Wishes
from envs.traces.rows import Row, checked
from envs.traces.source import Head, Source


@dataclass(frozen=True, slots=True)
class Recording:
    """The reader; outcomes and propensities come along."""

    licence: str = ""
    block_tokens: int = 0
    is_generated: bool = False
    scales_rate: bool = False
    notes: tuple[str, ...] = ("recorded by the router, with outcomes",)

    def recognises(self, head: Head) -> bool:
        """By the names of the files in the directory."""
        return head.path.is_dir() and any(one.kind == "requests" for one in segments(head.path))

    def rows(self, source: Source, wishes: Wishes) -> Iterator[Row]:
        """The requests of all segments in order of time; what a crash tore, or the router did not write, is counted."""
        _read_headers(source, wishes)
        found = recorded_rows(source.path, source.dropped, "requests", wishes.recording)
        for row in source.rows(enumerate(found, 1), _row):
            row.model = row.model or wishes.model
            yield row


def _read_headers(source: Source, wishes: Wishes) -> None:
    """Which recording it is, who made it, and the rows that he could not write."""
    for head in headers(source.path, "requests", wishes.recording):
        source.dropped.update(head.get("rows_dropped") or {})
        note = f"recording {head.get('recording')} of {head.get('source')}"
        if "recording" in head and note not in source.notes:
            source.notes.append(note)


def _row(fields: Mapping[str, Any]) -> Row:
    """A row whose status is the outcome in full: that a client left is no error of a node."""
    return checked({**fields, "status": fields.get("outcome") or fields.get("status")})
