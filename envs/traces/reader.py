"""What a foreign trace format has to tell to be read: how to know it, and a row of it as one of ours."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ccr.errors import TraceError
from envs.traces.rows import BadRow, Row
from envs.traces.source import Head, Source, csv_fields, csv_records, json_records

#: Makes a row of the fields of a line: a list in the order of the columns, or a JSON object.
RowOf = Callable[[Any], Row]


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to import.

    Args:
        model: of rows that name none; empty: what the format calls itself.
        seed: of formats that hold parameters and have to be drawn.
        from_s: seconds of the source to leave out at its start.
        until_s: seconds from the start of the source at which to stop.
        rate_scale: how much denser than in the source the requests shall be, > 0.
        block_tokens: tokens of a prefix block where the source does not say; 0 for none.
        recording: which one, where a directory holds several; empty: the only one.
        notes: what the header shall say beside what it says anyway.
    """

    model: str = ""
    seed: int = 0
    from_s: float = 0.0
    until_s: float = float("inf")
    rate_scale: float = 1.0
    block_tokens: int = 0
    recording: str = ""
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """A trace format.

    ``licence``, ``block_tokens``, ``is_generated`` and ``notes`` go into the header of what is imported.
    ``scales_rate`` is true where ``rows`` itself sees to :attr:`Wishes.rate_scale`.
    """

    @property
    def licence(self) -> str: ...  # noqa: D102 - see above
    @property
    def block_tokens(self) -> int: ...  # noqa: D102
    @property
    def is_generated(self) -> bool: ...  # noqa: D102
    @property
    def scales_rate(self) -> bool: ...  # noqa: D102
    @property
    def notes(self) -> tuple[str, ...]: ...  # noqa: D102

    def recognises(self, head: Head) -> bool:
        """Whether a file that begins so is of this format."""

    def rows(self, source: Source, wishes: Wishes) -> Iterator[Row]:
        """Its requests, times from the start of the source.

        Raises:
            TraceError: if it is not of this format, or a row cannot be read.
        """


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """A format with a header line and a line per request.

    Args:
        name: of the format; the model's where a row names none.
        columns: that there must be.
        start: gives a fresh :data:`RowOf`, which sees the columns in that order, the optional ones last.
        optional: columns that there may be; any other is refused, it would be another format.
        is_it: looks at the first row of a file whose columns fit.
        licence: of the source.
        notes: for the header.
    """

    name: str
    columns: tuple[str, ...]
    start: Callable[[str], RowOf]
    optional: tuple[str, ...] = ()
    is_it: Callable[[Sequence[str]], bool] = lambda _: True
    licence: str = ""
    notes: tuple[str, ...] = ()
    block_tokens: int = 0
    is_generated: bool = False
    scales_rate: bool = False

    def recognises(self, head: Head) -> bool:
        """By its columns, and the first row where that is not enough."""
        if not head.lines or self._mismatch(head.columns):
            return False
        records = csv_records(
            [(number, line.encode()) for number, line in enumerate(head.lines[1:])],
            head.columns,
            self.columns,
        )
        first = next(records, None)
        return first is None or (isinstance(first[1], list) and self.is_it(first[1]))

    def rows(self, source: Source, wishes: Wishes) -> Iterator[Row]:
        """One per line."""
        lines = source.lines()
        fields = csv_fields(next(lines)[1])
        columns = [field.strip() for field in fields] if isinstance(fields, list) else []
        if mismatch := self._mismatch(columns):
            raise TraceError(
                f"{source.path}, line 1: this is not {self.name}: {mismatch}. "
                "`ccr traces import auto` tells the format by itself."
            )
        records = csv_records(lines, columns, (*self.columns, *self.optional))
        return source.rows(records, self.start(wishes.model or self.name))

    def _mismatch(self, columns: Sequence[str]) -> str:
        missing = [column for column in self.columns if column not in columns]
        extra = [column for column in columns if column not in {*self.columns, *self.optional}]
        double = sorted({column for column in columns if columns.count(column) > 1})
        problems = (("it lacks", missing), ("it also has", extra), ("it names twice", double))
        return ", ".join(f"{what} {', '.join(which)[:200]}" for what, which in problems if which)


@dataclass(frozen=True, slots=True)
class JsonlFormat:
    """A format with a JSON object per line.

    Args:
        name: of the format, and its model's.
        keys: that every object has.
        start: gives a fresh :data:`RowOf`, which sees the object; the keys are there.
        foreign: keys that the objects of another format have.
        licence: of the source.
        notes: for the header.
        block_tokens: of the chains in it.
    """

    name: str
    keys: frozenset[str]
    start: Callable[[str], RowOf]
    foreign: frozenset[str] = frozenset()
    licence: str = ""
    notes: tuple[str, ...] = ()
    block_tokens: int = 0
    is_generated: bool = False
    scales_rate: bool = False

    def recognises(self, head: Head) -> bool:
        """By the keys of the first object."""
        return self.keys <= head.keys and not self.foreign & head.keys

    def rows(self, source: Source, wishes: Wishes) -> Iterator[Row]:
        """One per line."""
        row_of = self.start(wishes.model or self.name)

        def complete(record: Mapping[str, Any]) -> Row:
            self._check(record)
            return row_of(record)

        return source.rows(json_records(source.lines()), complete)

    def _check(self, record: Mapping[str, Any]) -> None:
        missing, extra = sorted(self.keys - record.keys()), sorted(self.foreign & record.keys())
        problems = (("it lacks", missing), ("it has", extra))
        if story := " and ".join(f"{what} {', '.join(which)}" for what, which in problems if which):
            raise BadRow(f"not {self.name}", f"this is not {self.name}: {story}")
