"""The LLM inference traces of Azure: 2023 (times without a zone), 2024 (with one) and 2025 (with images)."""

from collections.abc import Callable, Sequence

from envs.traces.reader import CsvFormat, RowOf
from envs.traces.rows import BadRow, Row, lengths, short
from envs.traces.stamps import Since, nanoseconds

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_LICENCE = "CC-BY-4.0"
_ONE_MODEL = "the source does not tell models apart: one model id for all"


def _starting(has_zone: bool | None) -> Callable[[str], RowOf]:
    def start(model: str) -> RowOf:
        since = Since()

        def row_of(fields: Sequence[str]) -> Row:
            stamp, prompt, output = fields[:3]
            at, zoned = nanoseconds(stamp, _COLUMNS[0])
            if has_zone is not None and zoned != has_zone:
                raise BadRow("TIMESTAMP of another year", _other_year(stamp, has_zone=has_zone))
            t = since.seconds(at)
            prompt_tokens, output_tokens = lengths(prompt, output, _COLUMNS[1:])
            return Row(t=t, model=model, prompt_tokens=prompt_tokens, output_tokens=output_tokens)

        return row_of

    return start


def _other_year(stamp: str, *, has_zone: bool) -> str:
    found, wanted = ("without a zone", "azure2024") if has_zone else ("with a zone", "azure2023")
    other = "azure2023" if has_zone else "azure2024"
    return f"TIMESTAMP is {short(stamp)}, {found}: this is {other}, not {wanted}"


def _is_zoned(fields: Sequence[str]) -> bool:
    try:
        return nanoseconds(fields[0], _COLUMNS[0])[1]
    except BadRow:
        return False


AZURE_2023 = CsvFormat(
    name="azure2023",
    columns=_COLUMNS,
    start=_starting(has_zone=False),
    is_it=lambda fields: not _is_zoned(fields),
    licence=_LICENCE,
    notes=(_ONE_MODEL, "times without a zone, taken as UTC"),
)
AZURE_2024 = CsvFormat(
    name="azure2024",
    columns=_COLUMNS,
    start=_starting(has_zone=True),
    is_it=_is_zoned,
    licence=_LICENCE,
    notes=(_ONE_MODEL,),
)
AZURE_2025_LMM = CsvFormat(
    name="azure2025-lmm",
    columns=(*_COLUMNS, "NumImages"),
    start=_starting(has_zone=None),
    licence=_LICENCE,
    notes=(_ONE_MODEL, "NumImages is left out: requests carry images that this format has no column for"),
)
