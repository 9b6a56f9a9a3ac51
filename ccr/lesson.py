"""What is learned from: one record for each request, of fixed numbers in msgpack; no field can hold text.

Models, nodes and policies are :func:`ccr.hashing.hash64` of their names, conversations are hashed under a key. What the
policy saw travels in 32 bits a number, what was drawn and with which probability in 64.
"""

import math
from enum import IntFlag
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from ccr.book import LOAD
from ccr.errors import CCRError
from ccr.look import ASKED, PAIRS
from ccr.types import COLUMNS, Outcome

FORM: Final = 1
OUTCOMES: Final = tuple(Outcome)
"""By number in :attr:`Lesson.outcome`; new ones are added at the end."""
LONGEST_S: Final = 86_400.0
MOST_NODES: Final = 4096
_NUMBER: Final = np.dtype("<f4")
_ID: Final = np.dtype("<u8")
_PROBABILITY: Final = np.dtype("<f8")


class LessonError(CCRError):
    """A record that is not learned from; ``reason`` is a short label for a counter."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"record refused ({reason})" + (f": {detail}" if detail else ""))


class Flag(IntFlag):
    """What else is to be known of a request."""

    COLD = 1
    """The node did not have the weights."""
    RETRY = 2
    """Another node failed it before; times count from the first arrival."""
    WENT_ON = 4
    """The node failed it and another one got it: not the request's end, and it has a record of its own."""
    FALLBACK = 8
    """The policy failed, and the fallback decided."""
    GUARDED = 16
    """The guard moved it from the node that was drawn."""
    REPORTED = 32
    """Times are those a caller of ``/route`` reported, not the router's own."""
    LOOKED = 64
    """The policy saw the router's expectations, and they are in the record."""


class Lesson(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """One request: what was seen, what was drawn, how it ended.

    Arrays are bytes, little-endian: ``nodes`` u8 hashes, ``mask`` one byte each, ``probabilities`` f8, all of shape ``(n,)``;
    ``columns`` (:data:`ccr.types.COLUMNS`), ``load`` (:data:`ccr.book.LOAD`), ``pairs`` (:data:`ccr.look.PAIRS`), each
    ``(rows, n)``, and ``asked`` (:data:`ccr.look.ASKED`), f4. A request that no node had has none of them.

    Args:
        form: of the record.
        at_s: arrival, seconds since 1970, by a clock that does not jump.
        outcome: position in :data:`OUTCOMES`.
        flags: of :class:`Flag`.
        queue_s: arrival to dispatch.
        total_s: arrival to end.
        ttft_s: arrival to first byte, if there was one.
        charged_s: arrival to end as it counts: at least the penalty where the node failed.
        prompt_tokens: as the engine counted, if it told.
        output_tokens: as the engine counted, if it told.
        prompt_estimate: prompt tokens as the policy knew them.
        output_limit: the client's; 0 if it gave none.
        priority: of the request.
        model: hash of the id; 0 if none was settled.
        session: hash of the conversation's id under a key of the process; 0 if there is none.
        policy: hash of the name.
        policy_epoch: how often the router had changed its policy.
        weights_epoch: of the published weights that decided; 0 if they were not published.
        weights_version: of them.
        chosen: position of the node that was executed; -1 if none was.
        drawn: position of the node that was drawn.
        u: the draw, in [0, 1).
        propensity: of ``chosen``, after the guard.
        drawn_propensity: of ``drawn``, before it.
        nodes: ids.
        mask: who was eligible.
        probabilities: executed distribution.
        columns: of the fleet.
        load: of what the policy saw.
        pairs: of what the policy saw.
        asked: of what the policy saw.
        after: telemetry of the chosen node when the request ended: running, waiting, KV used, free GiB, GPU busy; -1 if unknown.
        after_age_s: of that telemetry; a day where the node was never read.
    """

    form: int = FORM
    at_s: float
    outcome: int
    flags: int = 0
    queue_s: float = 0.0
    total_s: float
    ttft_s: float | None = None
    charged_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prompt_estimate: int = 0
    output_limit: int = 0
    priority: int = 0
    model: int = 0
    session: int = 0
    policy: int = 0
    policy_epoch: int = 0
    weights_epoch: int = 0
    weights_version: int = 0
    chosen: int = -1
    drawn: int = -1
    u: float = 0.0
    propensity: float = 0.0
    drawn_propensity: float = 0.0
    nodes: bytes = b""
    mask: bytes = b""
    probabilities: bytes = b""
    columns: bytes = b""
    load: bytes = b""
    pairs: bytes = b""
    asked: bytes = b""
    after: tuple[float, ...] = ()
    after_age_s: float = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether its times say how fast the node is: those of failures and of what was cut short do not."""
        return OUTCOMES[self.outcome] is Outcome.OK

    @property
    def is_censored(self) -> bool:
        """Whether it would have taken longer: its times are lower bounds."""
        return OUTCOMES[self.outcome].is_censored

    @property
    def is_end(self) -> bool:
        """Whether it is the end of a request, of which each has one."""
        return not self.flags & Flag.WENT_ON

    def node_ids(self) -> NDArray[np.uint64]:
        """Hashes of the nodes, shape ``(n,)``."""
        return np.frombuffer(self.nodes, _ID)

    def eligible(self) -> NDArray[np.bool_]:
        """Who was, shape ``(n,)``."""
        return np.frombuffer(self.mask, np.bool_)

    def distribution(self) -> NDArray[np.float64]:
        """The executed one, shape ``(n,)``."""
        return np.frombuffer(self.probabilities, _PROBABILITY)

    def rows(self, name: str) -> NDArray[np.float32]:
        """An array of what was seen, shape ``(rows, n)``: ``columns``, ``load`` or ``pairs``."""
        raw: bytes = getattr(self, name)
        return np.frombuffer(raw, _NUMBER).reshape(-1, len(self.mask))


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Lesson).decode
_ROWS: Final = {"columns": len(COLUMNS), "load": len(LOAD), "pairs": len(PAIRS)}
_SECONDS: Final = ("queue_s", "total_s", "charged_s", "after_age_s")
_DECIDED: Final = ("u", "propensity", "drawn_propensity")


def encode(lesson: Lesson) -> bytes:
    """The record as bytes."""
    return _ENCODE(lesson)


def decode(data: bytes) -> Lesson:
    """The record, if it makes sense: whoever can write to the stream must not be able to confuse who learns from it.

    Raises:
        LessonError: with reason ``unreadable``, ``not_finite`` or ``inconsistent``.
    """
    try:
        lesson = _DECODE(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LessonError("unreadable", str(error)) from None
    if lesson.form != FORM:
        raise LessonError("unreadable", f"form {lesson.form}, and this release reads {FORM}")
    if not _is_finite(lesson):
        raise LessonError("not_finite")
    if not (_times_fit(lesson) and _shapes_fit(lesson) and _decision_fits(lesson)):
        raise LessonError("inconsistent")
    return lesson


def as_numbers(values: NDArray[np.float64]) -> bytes:
    """An array as the record keeps it."""
    return values.astype(_NUMBER).tobytes()


def _is_finite(lesson: Lesson) -> bool:
    numbers = [lesson.at_s, lesson.ttft_s or 0.0, *lesson.after]
    numbers += [getattr(lesson, name) for name in (*_SECONDS, *_DECIDED)]
    seen = (np.frombuffer(raw[: len(raw) // 4 * 4], _NUMBER) for raw in _seen(lesson))
    return all(map(math.isfinite, numbers)) and all(np.isfinite(one).all() for one in seen)


def _seen(lesson: Lesson) -> tuple[bytes, ...]:
    return lesson.columns, lesson.load, lesson.pairs, lesson.asked


def _times_fit(lesson: Lesson) -> bool:
    within = all(0.0 <= getattr(lesson, name) <= LONGEST_S for name in _SECONDS)
    ttft_s = lesson.ttft_s or 0.0
    is_known = 0 <= lesson.outcome < len(OUTCOMES)
    return within and is_known and 0.0 <= ttft_s <= LONGEST_S and lesson.charged_s >= lesson.total_s


def _shapes_fit(lesson: Lesson) -> bool:
    n = len(lesson.mask)
    looked = bool(lesson.flags & Flag.LOOKED)
    rows = {name: number if looked or name == "columns" else 0 for name, number in _ROWS.items()}
    return (
        n <= MOST_NODES
        and len(lesson.nodes) == len(lesson.probabilities) == 8 * n
        and all(len(getattr(lesson, name)) == 4 * n * number for name, number in rows.items())
        and len(lesson.asked) == (4 * len(ASKED) if looked else 0)
    )


def _decision_fits(lesson: Lesson) -> bool:
    n = len(lesson.mask)
    if n == 0:
        return lesson.chosen == lesson.drawn == -1
    shares = lesson.distribution()
    return (
        0 <= lesson.chosen < n
        and 0 <= lesson.drawn < n
        and 0.0 <= lesson.u < 1.0
        and lesson.mask[lesson.chosen] == 1
        and bool(np.isfinite(shares).all())
        and bool((shares >= 0.0).all())
        and abs(float(shares.sum()) - 1.0) < 1e-6
        and 0.0 < lesson.propensity <= 1.0 + 1e-9
        and abs(float(shares[lesson.chosen]) - lesson.propensity) < 1e-9
        and 0.0 < lesson.drawn_propensity <= 1.0 + 1e-9
    )
