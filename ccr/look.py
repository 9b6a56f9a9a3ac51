"""One request looked at on every node: what the analytic policies and the network see.

A :class:`Look` is four arrays, and everything a policy computes from it can be computed again from the four: they are
what a decision's record keeps. Pure functions on arrays, compiled by the simulator as they stand.
"""

from typing import Final, NamedTuple

import numpy as np

from ccr.book import (
    BUDGET_GIB,
    CONTEXT_S,
    CURVE,
    DECODE_CONTEXT_S,
    DECODE_FIXED_S,
    DECODE_SEQUENCE_S,
    DONE_PER_S,
    DONE_WINDOW_S,
    IN_BATCH,
    KV_GIB,
    OTHERS,
    PASS_S,
    PENDING,
    PENDING_PREFILL_S,
    PREFILL_FIXED_S,
    PREFILL_FLOOR_S,
    PREFILL_SQUARE_S,
    PREFILL_TOKEN_S,
    REMAINING_TOKENS,
    VICTIMS,
    WEIGHTS_GIB,
    Book,
    Floats,
    refresh,
)

# Rows of `Look.pairs`: the request on each node. -----------------------------------------------------------------
RESIDENT: Final = 0
SAME_MODEL: Final = 1
IS_LOADING: Final = 2
IN_HOST: Final = 3
LOAD_WAIT_S: Final = 4
EVICT_GIB: Final = 5
EVICT_COST_S: Final = 6
CACHED_TOKENS: Final = 7
SESSION_HERE: Final = 8
PREFILL_S: Final = 9
BACKLOG_S: Final = 10
STEP_BEFORE_S: Final = 11
STEP_AFTER_S: Final = 12
KV_OVERFLOW: Final = 13
KV_WAIT_S: Final = 14
BUSY: Final = 15
UNSEEN: Final = 16
SINCE_PROGRESS_S: Final = 17
CURVE_TTFT_S: Final = 18
PREDICTED_TTFT_S: Final = 19
PREDICTED_TOKEN_S: Final = 20
LOAD_S: Final = 21
TOKENS_LEFT: Final = 22

#: Row -> what it holds.
PAIRS: Final = (
    "1 where the weights are on the GPU",
    "requests of the model in flight there",
    "1 where they are on their way",
    "1 where they are in host memory",
    "seconds until the weights are there",
    "GiB that idle models have to give up first",
    "popularity-weighted seconds to load again what they gave up",
    "tokens of the prompt expected in the node's prefix cache",
    "1 where the session was last",
    "seconds of its own prefill",
    "seconds of prefill before it",
    "seconds of a decode round now",
    "seconds of a decode round with it on board",
    "GiB of keys and values above what fits, as a fraction of what fits",
    "seconds until there is room for its keys and values",
    "requests there: this ledger's, and those of others by the last reading",
    "requests there that this ledger did not send",
    "seconds since anything was heard of a request there; 0 when idle",
    "time to first token seen at this many requests in flight; 0 where nothing was seen",
    "time to first token as regressed",
    "seconds per token as regressed",
    "seconds of a load from where the weights are now",
    "tokens that the requests there still have to generate, whoever sent them",
)

# Entries of `Look.asked`: the request itself. ----------------------------------------------------------------------
PROMPT_TOKENS: Final = 0
OUTPUT_TOKENS: Final = 1
MODEL_GIB: Final = 2
SHARE: Final = 3
COPIES: Final = 4
FLEET_BUSY: Final = 5
COVERAGE: Final = 6
IDEAL_S: Final = 7

#: Entry -> what it holds.
ASKED: Final = (
    "prompt tokens",
    "output tokens predicted",
    "GiB of the model's weights",
    "the model's share of recent requests",
    "share of nodes with the weights",
    "mean requests per node",
    "share of the traffic that this ledger sees: 1 over the number of routers",
    "seconds it would take alone on the fastest of the nodes, with the weights there",
)

# The rows of the fleet's columns that are read here (`ccr.types.COLUMNS`; a test holds them equal).
RUNNING: Final = 6
WAITING: Final = 7

_OVERDUE: Final = 0.1  # of a load that should have ended: what is expected to be left of it


class Look(NamedTuple):
    """The four arrays.

    Args:
        columns: rows of :data:`ccr.types.COLUMNS`, shape ``(C, n)``.
        load: rows of :data:`ccr.book.LOAD`, shape ``(L, n)``.
        pairs: rows of :data:`PAIRS`, shape ``(P, n)``.
        asked: entries of :data:`ASKED`, shape ``(Q,)``.
    """

    columns: Floats
    load: Floats
    pairs: Floats
    asked: Floats


def look_at(
    book: Book,
    columns: Floats,
    model: int,
    prompt_tokens: float,
    output_tokens: float,
    session_node: int,
    session_tokens: float,
    coverage: float,
    now_s: float,
    observed: bool,
) -> Look:
    """A request on every node, now.

    Args:
        book: its stale rows are made again; what is expected of the requests stays as it is.
        columns: of the fleet, shape ``(C, n)``.
        model: row of the model.
        prompt_tokens: as estimated.
        output_tokens: as predicted.
        session_node: column of the node the session was last on; -1 if there is none.
        session_tokens: context it left there.
        coverage: share of the traffic this ledger sees, in (0, 1].
        now_s: the moment.
        observed: whether the rows that only policies on observed latencies read are wanted; else they are 0.
    """
    costs, stale = book.costs, book.stale
    n = len(stale)
    for node in range(n):
        if stale[node]:
            refresh(book, node)
    load = book.load.copy()
    load[DONE_PER_S] = load[DONE_PER_S] * np.exp(-np.maximum(now_s - book.done_s, 0.0) / DONE_WINDOW_S)
    pairs = np.zeros((len(PAIRS), n))

    # Where the weights are, and how long until they are on the GPU.
    resident = book.resident[model]
    under_way_s = book.loading_until_s[model] - now_s
    here = book.inflight[model]
    loading = ~resident & ((under_way_s > 0.0) | (here > 0))
    load_s = np.where(book.in_host[model], book.host_load_s[model], book.load_s[model])
    queue_s = np.maximum(book.loads_until_s - now_s, 0.0)
    wait_s = np.where(loading, np.maximum(under_way_s, _OVERDUE * load_s), queue_s + load_s)
    wait_s = np.where(resident, 0.0, wait_s)
    pairs[RESIDENT] = resident
    pairs[SAME_MODEL] = here
    pairs[IS_LOADING] = loading
    pairs[IN_HOST] = book.in_host[model]
    pairs[LOAD_WAIT_S] = wait_s
    pairs[LOAD_S] = np.where(resident, 0.0, load_s)

    # Who would have to go.
    absent = ~(resident | loading)
    free_gib = load[BUDGET_GIB] - load[WEIGHTS_GIB] - load[KV_GIB]
    need_gib = book.weights_gib[model] + book.kv_gib[model] * (prompt_tokens + output_tokens)
    short_gib = np.where(absent, np.maximum(need_gib - free_gib, 0.0), 0.0)
    evicted_s = np.zeros(n)
    for k in range(VICTIMS):
        evicted_s = np.where(short_gib > book.victim_gib[k] + 1e-9, book.victim_cost_s[k + 1], evicted_s)
    pairs[EVICT_GIB] = short_gib
    pairs[EVICT_COST_S] = evicted_s

    # Work before it, and its own.
    in_batch = load[IN_BATCH]
    unseen = np.minimum(
        load[OTHERS], columns[RUNNING] + columns[WAITING]
    )  # those are 0 where the reading is stale
    busy = in_batch + unseen
    pairs[BUSY] = busy
    pairs[UNSEEN] = unseen
    if session_node >= 0:
        pairs[SESSION_HERE, session_node] = 1.0
        if resident[session_node]:  # the cache goes with the weights
            pairs[CACHED_TOKENS, session_node] = min(session_tokens, max(prompt_tokens - 1.0, 0.0))
    cached = pairs[CACHED_TOKENS]
    arithmetic = costs[PREFILL_TOKEN_S, model] * (prompt_tokens - cached) + costs[PREFILL_SQUARE_S, model] * (
        prompt_tokens * prompt_tokens - cached * cached
    )
    prefill_s = costs[PREFILL_FIXED_S, model] + np.maximum(arithmetic, costs[PREFILL_FLOOR_S, model])
    pairs[PREFILL_S] = prefill_s
    others_waiting = np.minimum(unseen, np.maximum(columns[WAITING] - load[PENDING], 0.0))
    pairs[BACKLOG_S] = load[PENDING_PREFILL_S] + others_waiting * prefill_s
    # What others sent is assumed to look like what this router sent there, or like this request.
    held = prompt_tokens + 0.5 * output_tokens
    mean_context_s = np.where(
        in_batch > 0.0,
        load[CONTEXT_S] / np.maximum(in_batch, 1.0),
        costs[DECODE_CONTEXT_S, model] * held,
    )
    sequence_s = costs[DECODE_SEQUENCE_S, model]
    pass_s = np.where((in_batch < 0.5) & (unseen > 0.5), costs[DECODE_FIXED_S, model], load[PASS_S])
    before_s = pass_s + sequence_s * busy + load[CONTEXT_S] + mean_context_s * unseen
    more_s = np.where(here > 0, 0.0, costs[DECODE_FIXED_S, model])
    more_s = np.where((in_batch < 0.5) & (unseen > 0.5), 0.0, more_s)
    after_s = before_s + more_s + sequence_s + costs[DECODE_CONTEXT_S, model] * held
    pairs[STEP_BEFORE_S] = before_s
    pairs[STEP_AFTER_S] = after_s

    # Room for keys and values: what is over waits for what is running to end.
    joining_gib = np.where(absent, book.weights_gib[model], 0.0)
    room_gib = np.maximum(load[BUDGET_GIB] - load[WEIGHTS_GIB] - joining_gib + short_gib, 0.25)
    scale = np.where(in_batch > 0.5, busy / np.maximum(in_batch, 1.0), 1.0)
    like_this = np.where(in_batch > 0.5, 0.0, unseen)
    wanted_gib = (
        load[KV_GIB] * scale
        + book.kv_gib[model] * held * like_this
        + book.kv_gib[model] * (prompt_tokens + output_tokens)
    )
    overflow = np.maximum(wanted_gib / room_gib - 1.0, 0.0)
    tokens_left = load[REMAINING_TOKENS] * scale + 0.5 * output_tokens * like_this
    mean_left = tokens_left / np.maximum(busy, 1.0)
    pairs[TOKENS_LEFT] = tokens_left
    pairs[KV_OVERFLOW] = overflow
    pairs[KV_WAIT_S] = np.minimum(overflow, 4.0) * np.maximum(mean_left, 1.0) * after_s

    pairs[SINCE_PROGRESS_S] = np.where(in_batch > 0.0, np.maximum(now_s - book.progress_s, 0.0), 0.0)
    if observed:
        for node in range(n):
            step = min(int(busy[node]), CURVE - 1)
            pairs[CURVE_TTFT_S, node] = _on_curve(book, step, node)
        _predict(book, pairs, prompt_tokens)

    asked = np.zeros(len(ASKED))
    asked[PROMPT_TOKENS] = prompt_tokens
    asked[OUTPUT_TOKENS] = output_tokens
    asked[MODEL_GIB] = book.weights_gib[model]
    asked[SHARE] = book.share[model]
    asked[COPIES] = resident.sum() / n
    asked[FLEET_BUSY] = busy.sum() / n
    asked[COVERAGE] = coverage
    alone_s = prefill_s + output_tokens * (
        costs[DECODE_FIXED_S, model] + sequence_s + costs[DECODE_CONTEXT_S, model] * held
    )
    asked[IDEAL_S] = alone_s.min()
    return Look(columns, load, pairs, asked)


def _on_curve(book: Book, step: int, node: int) -> float:
    """The curve at a point, or at the nearest lower point that was seen, stretched in proportion."""
    for k in range(step, -1, -1):
        if book.ttft_seen[k, node] > 0.0:
            seconds: float = book.ttft_curve[k, node] * (step + 1.0) / (k + 1.0)
            return seconds
    return 0.0


def _predict(book: Book, pairs: Floats, prompt_tokens: float) -> None:
    """The two regressions at every node; the inputs are those of :func:`ccr.book.predictor_inputs`."""
    there = pairs[BUSY] / 10.0
    step = pairs[STEP_AFTER_S] * 10.0
    for target in range(2):
        w = book.weights[target]
        pairs[PREDICTED_TTFT_S + target] = (
            w[0]
            + w[1] * there
            + w[2] * prompt_tokens / 1000.0
            + w[3] * pairs[PREFILL_S]
            + w[4] * step
            + w[5] * there * pairs[PREFILL_S]
            + w[6] * there * step
        )
