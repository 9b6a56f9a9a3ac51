"""Our own format as a source: to sort, to complete, or to change between CSV and JSON lines."""

from collections.abc import Iterator
from dataclasses import dataclass

from envs.traces.files import is_trace, rows_of
from envs.traces.reader import Wishes
from envs.traces.rows import Row
from envs.traces.source import Head, Source


@dataclass(frozen=True, slots=True)
class CcrFormat:
    """The reader; what its header says is kept (see :mod:`envs.traces.convert`)."""

    licence: str = ""
    block_tokens: int = 0
    is_generated: bool = False
    scales_rate: bool = False
    notes: tuple[str, ...] = ()

    def recognises(self, head: Head) -> bool:
        """By its header, or its two columns that must be there."""
        return is_trace(head)

    def rows(self, source: Source, wishes: Wishes) -> Iterator[Row]:
        """As they are; a model is given to those that have none."""
        for row in rows_of(source):
            row.model = row.model or wishes.model
            yield row
