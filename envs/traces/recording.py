"""A recording of the router: a directory of segments, as one trace."""

from collections.abc import Iterator
from dataclasses import dataclass

from ccr.segments import rows as recorded_rows
from ccr.segments import segments
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
        """The requests of all segments in order of time; a line that a crash tore is counted."""
        found = recorded_rows(source.path, source.dropped, "requests", wishes.recording)
        for row in source.rows(enumerate(found, 1), checked):
            row.model = row.model or wishes.model
            yield row
