"""Records in columns: what each says of its node and its model, worked out for hundreds at a time.

Times of requests that failed, were cut short, or were told by a caller instead of the router's own clock say nothing of
how fast a node is, and are NaN here.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ccr.book import IN_BATCH, LOAD, PENDING
from ccr.lesson import OUTCOMES, Flag, Lesson
from ccr.look import (
    BACKLOG_S,
    BUSY,
    COVERAGE,
    IN_HOST,
    IS_LOADING,
    KV_WAIT_S,
    LOAD_S,
    LOAD_WAIT_S,
    PAIRS,
    PREFILL_S,
    RESIDENT,
    STEP_AFTER_S,
    STEP_BEFORE_S,
)
from ccr.types import COLUMNS, Outcome

Floats = NDArray[np.float64]
Ids = NDArray[np.uint64]

_OK: Final = OUTCOMES.index(Outcome.OK)
_FAILURES: Final = np.array([outcome.is_node_failure for outcome in OUTCOMES])
_ROW: Final = {name: row for row, name in enumerate(COLUMNS)}
_NUMBER: Final = np.dtype("<f4")
#: Observed over expected: beyond this it was not measured. An answer that came whole has next to no time between tokens.
_PLAUSIBLE: Final = (0.2, 50.0)
_PENDING: Final = 0.25  # of a node's requests: above that, too many wait for weights or prefill
#: What telemetry tells of a node counts while it is this fresh.
_FRESH_S: Final = 2.0
_SMALLEST_S: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns of shape ``(k,)``; NaN where a record does not tell.

    Args:
        at_s: arrival, seconds since 1970.
        model: hash of it; 0 if none was settled.
        node: hash of the one that had it; 0 if none.
        session: hash of it; 0 if there is none.
        is_end: whether it is the end of a request.
        has_failed: whether the node failed it.
        prompt_tokens: counted, or estimated.
        output_tokens: counted.
        step: observed over expected seconds per token, of answers that were streamed.
        whole: observed over expected seconds from dispatch to end, of a warm node with room.
        first_s: dispatch to first byte, of a warm node with room.
        work_s: what of it was expected for prefill, that of those before it included.
        load_s: of a load from the source that it waited for.
        stated_load_s: the same as the router expected it.
        coverage: share of the traffic that its router sees.
        told_node: nodes whose telemetry was fresh, shape ``(r,)``.
        told: of each: requests that its telemetry told of, those that its router had there, and readings; sums, shape ``(3, r)``.
    """

    at_s: Floats
    model: Ids
    node: Ids
    session: Ids
    is_end: NDArray[np.bool_]
    has_failed: NDArray[np.bool_]
    prompt_tokens: Floats
    output_tokens: Floats
    step: Floats
    whole: Floats
    first_s: Floats
    work_s: Floats
    load_s: Floats
    stated_load_s: Floats
    coverage: Floats
    told_node: Ids
    told: Floats

    def __len__(self) -> int:
        return len(self.at_s)


def batch_of(lessons: Sequence[Lesson]) -> Batch:
    """The columns of these records, in another order: fleets of one size stand together."""
    by_size: dict[tuple[int, bool], list[Lesson]] = defaultdict(list)
    for lesson in lessons:
        by_size[len(lesson.mask), bool(lesson.flags & Flag.LOOKED)].append(lesson)
    parts = [_part(size, looked, some) for (size, looked), some in by_size.items()] or [_part(0, False, [])]
    return Batch(
        *[np.concatenate([getattr(part, one.name) for part in parts], axis=-1) for one in fields(Batch)]
    )


def _part(size: int, looked: bool, lessons: list[Lesson]) -> Batch:
    k = len(lessons)
    facts = np.array(
        [
            (one.at_s, one.outcome, one.flags, one.queue_s, one.total_s,
             np.nan if one.ttft_s is None else one.ttft_s,
             one.prompt_estimate if one.prompt_tokens is None else one.prompt_tokens,
             np.nan if one.output_tokens is None else one.output_tokens, one.chosen)
            for one in lessons
        ],
        dtype=np.float64,
    ).reshape(k, 9).T  # fmt: skip
    at_s, outcome, flags, queue_s, total_s, ttft_s, prompt, output, chosen = facts
    marks, ended = flags.astype(np.int64), outcome.astype(np.int64)
    ids = np.array([(one.model, one.session) for one in lessons], dtype=np.uint64).reshape(k, 2)
    unknown = np.full(k, np.nan)
    node = np.zeros(k, dtype=np.uint64)
    told_node, told = np.zeros(0, dtype=np.uint64), np.zeros((3, 0))
    step = whole = first_s = work_s = load_s = stated_load_s = coverage = unknown
    if size and k:
        nodes = np.frombuffer(b"".join(one.nodes for one in lessons), dtype="<u8").reshape(k, size)
        here = np.arange(k), chosen.astype(np.int64)
        node = nodes[here]
        told_node, told = _told(nodes, _rows("columns", lessons, len(COLUMNS), size))
    if looked and size and k:
        measured = (ended == _OK) & ((marks & int(Flag.REPORTED)) == 0)
        pairs = _rows("pairs", lessons, len(PAIRS), size)
        mine = pairs[here[0], :, here[1]].T.astype(np.float64)
        since_s, taken_s = ttft_s - queue_s, total_s - queue_s
        expected_s = mine[BACKLOG_S] + mine[PREFILL_S] + mine[LOAD_WAIT_S] + mine[STEP_AFTER_S] * output
        ratio = taken_s / np.maximum(expected_s, _SMALLEST_S)
        step = _step(mine, measured, output, (total_s - ttft_s) / np.maximum(output - 1.0, 1.0), ratio)
        load_s, stated_load_s = _load(mine, measured, since_s)
        # Of a round that many wait for and few decode in, the length is not known: those are left out.
        load = _rows("load", lessons, len(LOAD), size)[here[0], :, here[1]].T
        measured = measured & (load[PENDING] <= _PENDING * load[IN_BATCH])
        step = np.where(measured, step, np.nan)
        is_plain = measured & (mine[RESIDENT] > 0.0) & (mine[LOAD_WAIT_S] == 0.0) & (mine[KV_WAIT_S] == 0.0)
        low, high = _PLAUSIBLE
        whole = np.where(is_plain & (output > 0.0) & (ratio > low) & (ratio < high), ratio, np.nan)
        first_s, work_s = _first(mine, is_plain & np.isfinite(step), since_s)
        asked = np.frombuffer(b"".join(one.asked for one in lessons), dtype=_NUMBER).reshape(k, -1)
        coverage = asked[:, COVERAGE].astype(np.float64)
    return Batch(
        at_s=at_s, model=ids[:, 0], node=node, session=ids[:, 1], is_end=(marks & int(Flag.WENT_ON)) == 0,
        has_failed=_FAILURES[ended], prompt_tokens=prompt, output_tokens=np.where(ended == _OK, output, np.nan),
        step=step, whole=whole, first_s=first_s, work_s=work_s, load_s=load_s, stated_load_s=stated_load_s,
        coverage=coverage, told_node=told_node, told=told,
    )  # fmt: skip


def _rows(name: str, lessons: list[Lesson], rows: int, size: int) -> NDArray[np.float32]:
    raw = b"".join([getattr(one, name) for one in lessons])
    return np.frombuffer(raw, dtype=_NUMBER).reshape(len(lessons), rows, size)


def _step(
    mine: Floats, measured: NDArray[np.bool_], output: Floats, token_s: Floats, whole: Floats
) -> Floats:
    """Observed over expected time per token.

    Who hands out an answer late and all at once would seem to decode fast: a node is only as fast as its whole
    answers are.
    """
    ratio = token_s / np.maximum(mine[STEP_AFTER_S], _SMALLEST_S)
    low, high = _PLAUSIBLE
    is_good = measured & (output > 1.0) & (ratio > low) & (ratio < high)
    return np.where(is_good, np.where(ratio < 1.0, np.maximum(ratio, np.minimum(whole, 1.0)), ratio), np.nan)


def _first(mine: Floats, is_plain: NDArray[np.bool_], since_s: Floats) -> tuple[Floats, Floats]:
    """Dispatch to first byte where nothing but prefill and the round under way was to be waited for, and those."""
    work_s = mine[BACKLOG_S] + mine[PREFILL_S] + np.where(mine[BUSY] > 0.0, 0.5 * mine[STEP_BEFORE_S], 0.0)
    is_good = is_plain & (since_s > 0.0)
    return np.where(is_good, since_s, np.nan), np.where(is_good, work_s, np.nan)


def _load(mine: Floats, measured: NDArray[np.bool_], since_s: Floats) -> tuple[Floats, Floats]:
    """A load from the source that this request began, as long as it took and as expected."""
    before_s = np.maximum(mine[LOAD_WAIT_S] - mine[LOAD_S], 0.0)
    seen_s = since_s - before_s - mine[PREFILL_S]
    began = (
        (mine[RESIDENT] == 0.0) & (mine[IS_LOADING] == 0.0) & (mine[IN_HOST] == 0.0) & (mine[LOAD_S] > 0.0)
    )
    is_good = measured & began & (seen_s > 0.0)
    return np.where(is_good, seen_s, np.nan), np.where(is_good, mine[LOAD_S], np.nan)


def _told(nodes: Ids, columns: NDArray[np.float32]) -> tuple[Ids, Floats]:
    """What fresh telemetry tells of each node's work, and what the routers themselves had there.

    Sums of all readings: where only busy moments were compared, a reading of a moment before would seem too low.
    """
    age_s = columns[:, _ROW["telemetry_age_s"]]
    is_fresh = (age_s >= 0.0) & (age_s < _FRESH_S)
    told = columns[:, _ROW["running"]] + columns[:, _ROW["waiting"]]
    distinct, place = np.unique(nodes[is_fresh], return_inverse=True)
    parts = (told, columns[:, _ROW["inflight"]], np.ones_like(told))
    sums = [np.bincount(place, weights=part[is_fresh], minlength=len(distinct)) for part in parts]
    return distinct, np.array(sums, dtype=np.float64).reshape(3, len(distinct))
