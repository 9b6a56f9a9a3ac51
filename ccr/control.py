"""What a person or a replica has decided about published weights: a pause, refused weights, the heuristic until further notice.

One signed text that does not expire, so that whoever can only write to the store steers nobody. Everything in it is
changed by pure functions: two writers at once lose nothing, the later one changes what the earlier one wrote.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from ccr.errors import CCRError
from ccr.signed import sealed, unsealed

#: Refused weights that are remembered; the oldest give way.
MOST_VETOES: Final = 16
#: Rollbacks within :data:`WITHIN_S` from which on the heuristic serves until a person acts.
MOST_ROLLBACKS: Final = 2
WITHIN_S: Final = 3600.0
_DOMAIN: Final = b"ccr control 1\n"
_LONGEST: Final = 200
_LARGEST: Final = 2**62


class ControlError(CCRError):
    """What is stored is not to be heeded: unsigned, or of another release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Veto:
    """Weights that are not taken again until a person clears them.

    Args:
        sha256: of the file, or of the arrays where there is none.
        name: of the weights.
        why: in words.
        by: which replica.
        at_s: seconds since 1970.
    """

    sha256: str
    name: str
    why: str
    by: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The state of things.

    Args:
        serial: grows with each change; what is older than what was seen is not heeded.
        is_paused: the learner publishes nothing, routers keep what they have.
        is_stopped: the fallback policy serves until a person acts.
        why: it is paused or stopped.
        resumed_at_s: when a person last said to go on, seconds since 1970.
        vetoes: refused weights, newest last.
    """

    serial: int = 0
    is_paused: bool = False
    is_stopped: bool = False
    why: str = ""
    resumed_at_s: float = 0.0
    vetoes: tuple[Veto, ...] = ()

    def veto_of(self, sha256: str) -> Veto | None:
        """Why these weights are refused; ``None`` if they are not."""
        return next((veto for veto in self.vetoes if veto.sha256 == sha256), None)


Change = Callable[[Control], Control]


def refusing(veto: Veto) -> Change:
    """These weights are refused; with the second ones within an hour the heuristic serves until a person acts."""

    def change(before: Control) -> Control:
        if before.veto_of(veto.sha256) is not None or veto.at_s <= before.resumed_at_s:
            return before  # known, or told too late: a person has let everything go on since
        vetoes = (*before.vetoes, veto)[-MOST_VETOES:]
        since_s = max(veto.at_s - WITHIN_S, before.resumed_at_s)
        is_stopped = sum(one.at_s > since_s for one in vetoes) >= MOST_ROLLBACKS
        if before.is_stopped or not is_stopped:
            return replace(before, vetoes=vetoes)
        return replace(before, vetoes=vetoes, is_stopped=True, why="rolled back twice within an hour")

    return change


def paused(why: str) -> Change:
    """The learner shall publish nothing."""
    return lambda before: replace(before, is_paused=True, why=_short(why))


def resumed(at_s: float, *, keep_vetoes: bool = False) -> Change:
    """Everything may go on; refused weights may be taken again, unless they are to stay refused."""
    return lambda before: replace(
        before, is_paused=False, is_stopped=False, why="", resumed_at_s=at_s, vetoes=before.vetoes if keep_vetoes else ()
    )  # fmt: skip


def signed(control: Control, key: bytes) -> bytes:
    """As it is stored."""
    text = json.dumps(asdict(control), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return sealed(text, key, _DOMAIN)


def opened(data: bytes, key: bytes) -> Control:
    """The state of things, as it is stored.

    Raises:
        ControlError: if it is not signed with the key, or not understood.
    """
    text = unsealed(data, key, _DOMAIN)
    if text is None:
        raise ControlError(
            "the state of the learner in the store is not signed with our key; it is not heeded"
        )
    try:
        return _checked(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ControlError(f"the state of the learner in the store is of another release: {error}") from None


def _checked(found: Any) -> Control:
    _check_keys(found, Control)
    vetoes = []
    for one in found["vetoes"]:
        _check_keys(one, Veto)
        vetoes.append(
            Veto(
                **{name: str(one[name])[:_LONGEST] for name in ("sha256", "name", "why", "by")},
                at_s=float(one["at_s"]),
            )
        )
    serial = found["serial"]
    if not isinstance(serial, int) or not 0 <= serial < _LARGEST:
        raise ValueError("its serial is no number")
    return Control(
        serial=serial, is_paused=bool(found["is_paused"]), is_stopped=bool(found["is_stopped"]), why=str(found["why"])[:_LONGEST],
        resumed_at_s=float(found["resumed_at_s"]), vetoes=tuple(vetoes[-MOST_VETOES:]),
    )  # fmt: skip


def _check_keys(found: Any, kind: Any) -> None:
    expected = {field.name for field in fields(kind)}
    if not isinstance(found, Mapping) or set(found) != expected:
        raise ValueError(f"it does not hold {', '.join(sorted(expected))} and nothing else")


def _short(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:_LONGEST]
