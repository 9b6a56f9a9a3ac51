"""One row of a request trace, and what each of its columns may hold."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from ccr.types import Outcome

#: The columns of a request, in the order of the trace format (``docs/traces.md``).
COLUMNS = (
    "t", "model", "version", "prompt_tokens", "output_tokens", "session", "prefix_blocks", "priority",
    "node", "queue_ms", "ttft_ms", "total_ms", "cold_start", "status",
)  # fmt: skip
#: Columns that stand behind those where the file has them.
EXTRA_COLUMNS = ("prefix_tokens", "policy", "propensity", "candidates")
#: Those of them that a recording has.
RECORDED_COLUMNS = EXTRA_COLUMNS[1:]
#: What became of a request: filled in what was recorded, empty in what was imported or drawn.
OUTCOME_COLUMNS = (
    "node", "queue_ms", "ttft_ms", "total_ms", "cold_start", "status", "policy", "propensity", "candidates",
)  # fmt: skip

MAX_TOKENS = 10**8
MAX_NAME = 256
_STATUSES = frozenset(Outcome) | {"error"}


class BadRow(Exception):
    """Why a row cannot be read: a short reason to count by, and the whole story."""

    def __init__(self, reason: str, story: str) -> None:
        self.reason, self.story = reason, story
        super().__init__(story)


class Dropped(Exception):
    """Why a row that can be read is of no use, such as a request that failed at its source."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Row(msgspec.Struct, kw_only=True, gc=False):
    """A request of a trace; ``None`` and an empty text mean unknown.

    Args:
        t: arrival, seconds from the start of the trace.
        model: what the client asked for.
        version: of the model.
        prompt_tokens: length of the prompt, >= 1.
        output_tokens: length of the answer; 0 where it failed.
        session: conversation id.
        prefix_blocks: ids of the blocks of the prompt from its start, in decimal with a space between; equal ids
            stand for equal content.
        priority: 0 is normal.
        node: that served it.
        queue_ms: from arrival until it was first scheduled.
        ttft_ms: from arrival to the first token.
        total_ms: from arrival to the end.
        cold_start: 1 if the model was not resident when the request was dispatched, else 0.
        status: how it ended.
        prefix_tokens: leading tokens of the prompt that repeat what the session has said before.
        policy: that chose the node, with its version.
        propensity: probability of that choice, in (0, 1].
        candidates: JSON list of ``{"node", "score"}``, as text.
        line: of the file it came from; not written.
    """

    t: float
    model: str = ""
    version: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    session: str = ""
    prefix_blocks: str = ""
    priority: int | None = None
    node: str = ""
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    cold_start: int | None = None
    status: str = ""
    prefix_tokens: int | None = None
    policy: str = ""
    propensity: float | None = None
    candidates: str = ""
    line: int = 0


def number(value: Any, column: str, expected: str = "a number >= 0") -> float:
    """A finite number, not negative; what is called a time, a rate or a latency."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (math.isfinite(found) and found >= 0.0):
        raise BadRow(f"{column} is no number", f"{column} is {short(value)}; expected {expected}")
    return found


def whole(value: Any, column: str, least: int = 0) -> int:
    """A whole number from ``least`` on; ``7.0`` is one, since tables that passed through floats write it so."""
    try:
        found = None if isinstance(value, bool) else int(value)
        if isinstance(value, float) and found != value:
            found = None
    except (TypeError, ValueError, OverflowError):
        found = _from_float_text(value)
    if found is None or not least <= found <= MAX_TOKENS:
        expected = f"a whole number >= {least}" if least >= 0 else "a whole number"
        raise BadRow(f"{column} is no count", f"{column} is {short(value)}; expected {expected}")
    return found


def name(value: Any, column: str) -> str:
    """Printable text without spaces around it."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else None
    if text is None or len(text) > MAX_NAME or not text.isprintable():
        raise BadRow(
            f"{column} is no name",
            f"{column} is {short(value)}; expected printable text of at most {MAX_NAME} characters",
        )
    return text


def blocks(value: Any, column: str) -> str:
    """Block ids from a list or a text, as text."""
    ids = value.split() if isinstance(value, str) else value
    if not isinstance(ids, list):
        raise BadRow(f"{column} is no chain", f"{column} is {short(value)}; expected ids of blocks")
    return " ".join([str(_block(one, column)) for one in ids])


def lengths(prompt: Any, output: Any, columns: tuple[str, str]) -> tuple[int, int]:
    """Prompt and output tokens of a request that did something.

    Raises:
        Dropped: where one of them is 0: there was nothing to serve, or it failed.
        BadRow: where one of them is no count.
    """
    prompt_tokens, output_tokens = whole(prompt, columns[0]), whole(output, columns[1])
    if output_tokens == 0:
        raise Dropped("no output tokens (failed)")
    if prompt_tokens == 0:
        raise Dropped("no prompt tokens")
    return prompt_tokens, output_tokens


def short(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_float_text(value: Any) -> int | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return int(found) if found.is_integer() else None


def _block(value: Any, column: str) -> int:
    try:
        found = int(value)
    except (TypeError, ValueError):
        found = -1
    if found < 0 or isinstance(value, bool | float):
        raise BadRow(f"{column} is no chain", f"{column} holds {short(value)}; expected ids of blocks, >= 0")
    return found


def _seconds(value: Any, column: str) -> float:
    return number(value, column, "seconds from the start of the trace, >= 0")


def _at_least_one(value: Any, column: str) -> int:
    return whole(value, column, 1)


def _signed(value: Any, column: str) -> int:
    return whole(value, column, -MAX_TOKENS)


def _flag(value: Any, column: str) -> int:
    text = str(value).lower()
    if text not in {"0", "1", "true", "false"}:
        raise BadRow(f"{column} is neither 0 nor 1", f"{column} is {short(value)}; expected 0 or 1")
    return int(text in {"1", "true"})


def _status(value: Any, column: str) -> str:
    if value not in _STATUSES:
        known = ", ".join(sorted(_STATUSES))
        raise BadRow(f"{column} is unknown", f"{column} is {short(value)}; expected one of {known}")
    return str(value)


def _chance(value: Any, column: str) -> float:
    found = number(value, column, "a probability in (0, 1]")
    if not 0.0 < found <= 1.0:
        raise BadRow(
            f"{column} is no probability", f"{column} is {short(value)}; expected a probability in (0, 1]"
        )
    return found


def _candidates(value: Any, column: str) -> str:
    try:
        found = msgspec.json.decode(value) if isinstance(value, str) else value
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) and "node" in one for one in found):
        raise BadRow(
            f"{column} is no list", f"{column} is {short(value)}; expected a JSON list of {{node, score}}"
        )
    return msgspec.json.encode(found).decode()


#: Column -> what makes its value out of a CSV field or a JSON value, or raises :class:`BadRow`.
CHECKS: Mapping[str, Callable[[Any, str], Any]] = MappingProxyType(
    {
        "t": _seconds,
        "model": name,
        "version": name,
        "prompt_tokens": _at_least_one,
        "output_tokens": whole,
        "session": name,
        "prefix_blocks": blocks,
        "priority": _signed,
        "node": name,
        "queue_ms": number,
        "ttft_ms": number,
        "total_ms": number,
        "cold_start": _flag,
        "status": _status,
        "prefix_tokens": whole,
        "policy": name,
        "propensity": _chance,
        "candidates": _candidates,
    }
)


def checked(fields: Mapping[str, Any]) -> Row:
    """The row that a mapping of column to field holds; other columns are not looked at.

    Raises:
        BadRow: naming the column, what it holds and what was expected.
    """
    values = {
        column: CHECKS[column](value, column)
        for column, value in fields.items()
        if value is not None and value != "" and column in CHECKS
    }
    if "t" not in values:
        raise BadRow("t is missing", "t is missing; it is the arrival in seconds")
    return Row(**values)
