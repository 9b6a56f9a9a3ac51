"""What the router expects of each node, from its own ledger: work under way, models, loads to come.

Arrays and pure functions on them, nothing else: no dictionary, no clock, no object. The live fleet calls the functions
as they stand; the simulator compiles the very same ones. Shapes: ``n`` nodes, ``M`` models.

The unit of work is the second of the node it is on; weights and keys and values are in GiB.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

# Rows of `Book.load`: what one node is expected to have before it. -----------------------------------------------
PENDING: Final = 0
PENDING_PREFILL_S: Final = 1
KV_GIB: Final = 2
REMAINING_TOKENS: Final = 3
ACTIVE_MODELS: Final = 4
PASS_S: Final = 5
CONTEXT_S: Final = 6
WEIGHTS_GIB: Final = 7
BUDGET_GIB: Final = 8
SPEED: Final = 9
OVERHEAD_S: Final = 10
DONE_PER_S: Final = 11
BANDWIDTH: Final = 12
IN_BATCH: Final = 13
OTHERS: Final = 14
ANSWERS: Final = 15

#: Row -> what it holds.
LOAD: Final = (
    "requests dispatched that have no first token yet",
    "seconds of prefill they bring",
    "GiB of keys and values the requests in flight hold on average",
    "tokens the requests in flight still have to generate",
    "models with a request in flight",
    "seconds of one pass over the weights of those models",
    "seconds the context in flight adds to a decode round",
    "GiB of weights resident or on their way",
    "GiB an engine may fill with weights and KV cache",
    "observed time per token as a multiple of the expected one",
    "seconds a request takes besides its steps",
    "requests finished per second, exponentially decayed",
    "memory bandwidth as a multiple of an A10's",
    "requests in flight by this ledger",
    "requests there that this ledger had not sent, at the last reading",
    "streamed answers that the observed speed rests on",
)

# Rows of `Book.costs`: the step costs of one model on one node, see `ccr.timing.StepCosts`. ------------------------
PREFILL_FIXED_S: Final = 0
PREFILL_FLOOR_S: Final = 1
PREFILL_TOKEN_S: Final = 2
PREFILL_SQUARE_S: Final = 3
DECODE_FIXED_S: Final = 4
DECODE_SEQUENCE_S: Final = 5
DECODE_CONTEXT_S: Final = 6

VICTIMS: Final = 4
"""Idle models a node is expected to give up for one that comes, at most."""
CURVE: Final = 24
"""Steps of the curve of time to first token over requests in flight; the last one is open."""
PREDICTOR: Final = 7
"""Inputs of the latency predictor, see :func:`predictor_inputs`."""

_SHARE_MEMORY: Final = 300.0  # requests
_LENGTH_MEMORY: Final = 50.0  # requests of a model
_SPEED_WEIGHT: Final = 0.05
_SPEED_PRIOR: Final = 5.0  # answers that the expected speed counts for
_LOAD_WEIGHT: Final = 0.25  # of a load that was seen, for its model everywhere and for its node
_LOAD_LIMITS_S: Final = (0.02, 1800.0)
DONE_WINDOW_S: Final = 10.0
"""Time constant of the decayed rate of finished requests."""
_FORGETTING: Final = 0.999


class Book(NamedTuple):
    """The arrays.

    Args:
        load: rows of :data:`LOAD`, shape ``(len(LOAD), n)``.
        resident: weights are on the GPU: reported, or a request was answered from them, shape ``(M, n)``.
        in_host: weights are in the node's host memory, shape ``(M, n)``.
        inflight: requests in flight by model, shape ``(M, n)``.
        loading_until_s: when a load under way is expected to end; ``-inf`` where there is none, shape ``(M, n)``.
        used_s: when a request for the model was last sent there, shape ``(M, n)``.
        loads_until_s: when all loads of a node are expected to have ended, shape ``(n,)``.
        progress_s: when something was last heard of a request on the node, shape ``(n,)``.
        done_s: when a request last finished there, and the rate of these was true, shape ``(n,)``.
        victim_gib: GiB free after giving up the k least recently used idle models, shape ``(VICTIMS + 1, n)``.
        victim_cost_s: popularity-weighted seconds to load those again, shape ``(VICTIMS + 1, n)``.
        stale: the node's row of weights and victims has to be made again, shape ``(n,)``.
        weights_gib: of each model, shape ``(M,)``.
        kv_gib: keys and values of one token, shape ``(M,)``.
        share: of the recent requests, shape ``(M,)``.
        output_tokens: decayed mean generated, shape ``(M,)``.
        costs: step costs, shape ``(7, M, n)``.
        load_s: seconds of a load from the source, shape ``(M, n)``.
        host_load_s: seconds of a load from host memory, shape ``(M, n)``.
        ttft_curve: decayed mean time to first token by requests in flight at dispatch, shape ``(CURVE, n)``.
        ttft_seen: observations behind each point, capped by the decay, shape ``(CURVE, n)``.
        weights: of the latency predictor, shape ``(2, PREDICTOR)``: time to first token, seconds per token.
        precision: its inverse information matrices, shape ``(2, PREDICTOR, PREDICTOR)``.
    """

    load: Floats
    resident: Flags
    in_host: Flags
    inflight: Counts
    loading_until_s: Floats
    used_s: Floats
    loads_until_s: Floats
    progress_s: Floats
    done_s: Floats
    victim_gib: Floats
    victim_cost_s: Floats
    stale: Flags
    weights_gib: Floats
    kv_gib: Floats
    share: Floats
    output_tokens: Floats
    costs: Floats
    load_s: Floats
    host_load_s: Floats
    ttft_curve: Floats
    ttft_seen: Floats
    weights: Floats
    precision: Floats


class Placed(NamedTuple):
    """What a dispatch added to the book, for its first token and its end to take off again.

    Args:
        model: row of the model.
        node: column of the node.
        prompt_tokens: as estimated.
        output_tokens: as predicted.
        prefill_s: its own prefill.
        step_s: expected decode round with it on board.
        inflight: requests in flight there before it.
        unseen: requests there that this ledger did not send, by telemetry.
        was_cold: its weights were not there.
        at_s: when.
        load_s: of the load from the source that it began, as expected; 0 where it began none.
        wait_s: before that load began, as expected.
    """

    model: int
    node: int
    prompt_tokens: float
    output_tokens: float
    prefill_s: float
    step_s: float
    inflight: float
    unseen: float
    was_cold: bool
    at_s: float
    load_s: float
    wait_s: float


def blank(models: int, nodes: int, default_output_tokens: float = 128.0) -> Book:
    """A book of idle, empty nodes; prices have to be filled in.

    Args:
        models: M.
        nodes: n.
        default_output_tokens: predicted before anything was seen.
    """
    load = np.zeros((len(LOAD), nodes))
    load[SPEED] = load[BANDWIDTH] = 1.0
    precision = np.zeros((2, PREDICTOR, PREDICTOR))
    precision[:] = 10.0 * np.eye(PREDICTOR)
    weights = np.zeros((2, PREDICTOR))
    return Book(
        load=load,
        resident=np.zeros((models, nodes), dtype=np.bool_),
        in_host=np.zeros((models, nodes), dtype=np.bool_),
        inflight=np.zeros((models, nodes), dtype=np.int64),
        loading_until_s=np.full((models, nodes), -np.inf),
        used_s=np.full((models, nodes), -np.inf),
        loads_until_s=np.full(nodes, -np.inf),
        progress_s=np.zeros(nodes),
        done_s=np.zeros(nodes),
        victim_gib=np.zeros((VICTIMS + 1, nodes)),
        victim_cost_s=np.zeros((VICTIMS + 1, nodes)),
        stale=np.ones(nodes, dtype=np.bool_),
        weights_gib=np.zeros(models),
        kv_gib=np.zeros(models),
        share=np.full(models, 1.0 / max(models, 1)),
        output_tokens=np.full(models, default_output_tokens),
        costs=np.zeros((7, models, nodes)),
        load_s=np.zeros((models, nodes)),
        host_load_s=np.zeros((models, nodes)),
        ttft_curve=np.zeros((CURVE, nodes)),
        ttft_seen=np.zeros((CURVE, nodes)),
        weights=weights,
        precision=precision,
    )


def prefill_alone_s(book: Book, model: int, node: int, tokens: float, cached: float) -> float:
    """Seconds of the prefill of one prompt, ``cached`` tokens of which are there already; the form of ``ccr.timing.prefill_s``."""
    c = book.costs
    arithmetic = c[PREFILL_TOKEN_S, model, node] * (tokens - cached) + c[PREFILL_SQUARE_S, model, node] * (
        tokens * tokens - cached * cached
    )
    seconds: float = c[PREFILL_FIXED_S, model, node] + max(arithmetic, c[PREFILL_FLOOR_S, model, node])
    return seconds


def round_s(book: Book, node: int) -> float:
    """Expected decode round of a node: one token for each request in flight."""
    load = book.load
    sequence_s = book.costs[DECODE_SEQUENCE_S, 0, node]
    seconds: float = load[PASS_S, node] + sequence_s * load[IN_BATCH, node] + load[CONTEXT_S, node]
    return seconds


def _round_with(book: Book, placed: Placed) -> float:
    """The round of a node as it was while a request that just left was on board."""
    model, node = placed.model, placed.node
    held = placed.prompt_tokens + 0.5 * placed.output_tokens
    seconds: float = round_s(book, node) + book.costs[DECODE_SEQUENCE_S, model, node]
    seconds += book.costs[DECODE_CONTEXT_S, model, node] * held
    if book.inflight[model, node] == 0:
        seconds += book.costs[DECODE_FIXED_S, model, node]
    return seconds


def asked_for(book: Book, model: int) -> None:
    """Count an arrival for the model's share of the traffic."""
    count_arrival(book.share, model)


def count_arrival(share: Floats, model: int) -> None:
    """Let the shares of the recent requests, shape ``(M,)``, take in one for the model."""
    share[:] = share * (1.0 - 1.0 / _SHARE_MEMORY)
    share[model] += 1.0 / _SHARE_MEMORY


def place(
    book: Book,
    model: int,
    node: int,
    prompt_tokens: float,
    output_tokens: float,
    cached_tokens: float,
    unseen: float,
    now_s: float,
) -> Placed:
    """A request goes to a node.

    Args:
        book: changed.
        model: row.
        node: column.
        prompt_tokens: as estimated.
        output_tokens: as predicted.
        cached_tokens: of the prompt, expected to be in the node's prefix cache if the weights are still there.
        unseen: requests there that this ledger did not send, by telemetry.
        now_s: the moment.
    """
    load = book.load
    was_cold = not book.resident[model, node]
    begun_s = wait_s = 0.0
    prefill_s = prefill_alone_s(book, model, node, prompt_tokens, 0.0 if was_cold else cached_tokens)
    before = load[IN_BATCH, node]
    if book.inflight[model, node] == 0:
        load[ACTIVE_MODELS, node] += 1.0
        load[PASS_S, node] += book.costs[DECODE_FIXED_S, model, node]
        book.stale[node] = True
        if was_cold and not book.loading_until_s[model, node] > now_s:
            seconds = book.host_load_s[model, node] if book.in_host[model, node] else book.load_s[model, node]
            wait_s = max(book.loads_until_s[node] - now_s, 0.0)
            until_s = now_s + wait_s + seconds
            if not book.in_host[model, node]:
                begun_s = seconds
            book.loading_until_s[model, node] = until_s
            book.loads_until_s[node] = until_s
    if before == 0.0:
        book.progress_s[node] = now_s
    held = prompt_tokens + 0.5 * output_tokens
    book.inflight[model, node] += 1
    book.used_s[model, node] = now_s
    load[IN_BATCH, node] += 1.0
    load[PENDING, node] += 1.0
    load[PENDING_PREFILL_S, node] += prefill_s
    load[KV_GIB, node] += book.kv_gib[model] * held
    load[REMAINING_TOKENS, node] += output_tokens
    load[CONTEXT_S, node] += book.costs[DECODE_CONTEXT_S, model, node] * held
    return Placed(
        model, node, prompt_tokens, output_tokens, prefill_s, round_s(book, node), before, unseen, was_cold, now_s,
        begun_s, wait_s,
    )  # fmt: skip


def first_token(book: Book, placed: Placed, now_s: float) -> None:
    """The first token of a request: its prefill is over, and its weights are there for certain."""
    model, node = placed.model, placed.node
    load = book.load
    load[PENDING, node] -= 1.0
    load[PENDING_PREFILL_S, node] -= placed.prefill_s
    load[REMAINING_TOKENS, node] -= 0.5 * placed.output_tokens  # from here on half of it is left, on average
    book.progress_s[node] = now_s
    if not book.resident[model, node]:
        book.resident[model, node] = True
        book.stale[node] = True
    book.loading_until_s[model, node] = -np.inf
    if load[PENDING, node] < 0.5:
        load[PENDING_PREFILL_S, node] = 0.0
    if placed.load_s > 0.0:
        _learn_load(book, placed, now_s)


def _learn_load(book: Book, placed: Placed, now_s: float) -> None:
    """A load was seen from its beginning to the first token after it.

    The model's loads on every node, and the node's of every model, are expected a little more like it.
    """
    seen_s = now_s - placed.at_s - placed.wait_s - book.load[SPEED, placed.node] * placed.prefill_s
    ratio = min(max(seen_s / placed.load_s, 0.2), 5.0)
    factor = ratio**_LOAD_WEIGHT
    loads_s, model, node = book.load_s, placed.model, placed.node
    for other in range(loads_s.shape[1]):
        loads_s[model, other] = min(max(loads_s[model, other] * factor, _LOAD_LIMITS_S[0]), _LOAD_LIMITS_S[1])
    for other in range(loads_s.shape[0]):
        loads_s[other, node] = min(max(loads_s[other, node] * factor, _LOAD_LIMITS_S[0]), _LOAD_LIMITS_S[1])


def leave(book: Book, placed: Placed, has_first_token: bool, now_s: float) -> None:
    """A request is no longer in flight, however it ended."""
    model, node = placed.model, placed.node
    load = book.load
    if not has_first_token:
        load[PENDING, node] -= 1.0
        load[PENDING_PREFILL_S, node] -= placed.prefill_s
        load[REMAINING_TOKENS, node] -= 0.5 * placed.output_tokens
    held = placed.prompt_tokens + 0.5 * placed.output_tokens
    load[IN_BATCH, node] -= 1.0
    load[KV_GIB, node] -= book.kv_gib[model] * held
    load[REMAINING_TOKENS, node] -= 0.5 * placed.output_tokens
    load[CONTEXT_S, node] -= book.costs[DECODE_CONTEXT_S, model, node] * held
    book.inflight[model, node] -= 1
    if book.inflight[model, node] == 0:
        load[ACTIVE_MODELS, node] -= 1.0
        load[PASS_S, node] -= book.costs[DECODE_FIXED_S, model, node]
        book.loading_until_s[model, node] = -np.inf
        book.stale[node] = True
    if load[IN_BATCH, node] < 0.5:  # what rounding left over
        for row in (PENDING, PENDING_PREFILL_S, KV_GIB, REMAINING_TOKENS, ACTIVE_MODELS, PASS_S, CONTEXT_S):
            load[row, node] = 0.0
    book.progress_s[node] = max(book.progress_s[node], now_s)


def learn(
    book: Book,
    placed: Placed,
    ttft_s: float,
    total_s: float,
    output_tokens: float,
    now_s: float,
    observed: bool,
) -> None:
    """A request was answered in full: lengths, speed and throughput take it in; call after :func:`leave`.

    Args:
        book: changed.
        placed: its dispatch.
        ttft_s: dispatch to first token.
        total_s: dispatch to last token.
        output_tokens: generated.
        now_s: the moment.
        observed: whether the curve and the regressions, which few policies read, take it in too.
    """
    model, node = placed.model, placed.node
    load = book.load
    book.output_tokens[model] += (output_tokens - book.output_tokens[model]) / _LENGTH_MEMORY
    kept = math.exp(-max(now_s - book.done_s[node], 0.0) / DONE_WINDOW_S)
    load[DONE_PER_S, node] = load[DONE_PER_S, node] * kept + 1.0 / DONE_WINDOW_S
    book.done_s[node] = now_s
    has_rounds = output_tokens > 1.0 and total_s > ttft_s
    token_s = 0.0
    if has_rounds:
        token_s = (total_s - ttft_s) / (output_tokens - 1.0)
        expected_s = max(0.5 * (placed.step_s + _round_with(book, placed)), 1e-6)
        speed = load[SPEED, node]
        # One answer is believed to be off by a factor of two from what the others said, and no more.
        ratio = min(max(token_s / expected_s, 0.5 * speed, 0.2), 2.0 * speed, 5.0)
        # The first answers of a node tell most: its mean, until the weight of a new one would fall below the least.
        weight = max(1.0 / (load[ANSWERS, node] + _SPEED_PRIOR), _SPEED_WEIGHT)
        load[SPEED, node] = speed + weight * (ratio - speed)
        load[ANSWERS, node] = min(load[ANSWERS, node] + 1.0, 1.0 / _SPEED_WEIGHT)
    if not observed or placed.was_cold:
        return
    step = min(int(placed.inflight + placed.unseen), CURVE - 1)
    book.ttft_seen[step, node] = min(book.ttft_seen[step, node] + 1.0, 20.0)
    book.ttft_curve[step, node] += (ttft_s - book.ttft_curve[step, node]) / book.ttft_seen[step, node]
    inputs = predictor_inputs(placed)
    _regress(book, 0, inputs, ttft_s)
    if has_rounds:
        _regress(book, 1, inputs, token_s)


def predictor_inputs(placed: Placed) -> Floats:
    """What latency is regressed on: one, requests there, prompt, own prefill, expected round, those two together; O(1) each."""
    inputs = np.empty(PREDICTOR)
    there = placed.inflight + placed.unseen
    inputs[0] = 1.0
    inputs[1] = there / 10.0
    inputs[2] = placed.prompt_tokens / 1000.0
    inputs[3] = placed.prefill_s
    inputs[4] = placed.step_s * 10.0
    inputs[5] = there / 10.0 * placed.prefill_s
    inputs[6] = there / 10.0 * placed.step_s * 10.0
    return inputs


def _regress(book: Book, target: int, inputs: Floats, value: float) -> None:
    """Recursive least squares with forgetting (Haykin, Adaptive Filter Theory)."""
    precision, weights = book.precision[target], book.weights[target]
    gain = precision @ inputs
    gain = gain / (_FORGETTING + inputs @ gain)
    weights[:] = weights + gain * (value - weights @ inputs)
    precision[:] = (precision - np.outer(gain, inputs @ precision)) / _FORGETTING
    trace = 0.0
    for i in range(PREDICTOR):
        trace += precision[i, i]
    if trace > 1e4:  # forgetting without news: start the uncertainty again, keep the weights
        precision[:] = 10.0 * np.eye(PREDICTOR)


def report(book: Book, node: int, resident: Flags, in_host: Flags) -> None:
    """Telemetry told which weights are where.

    Args:
        book: changed.
        node: column.
        resident: on the GPU, shape ``(M,)``.
        in_host: in host memory, shape ``(M,)``.
    """
    for model in range(len(resident)):
        if book.resident[model, node] != resident[model]:
            book.resident[model, node] = resident[model]
            book.stale[node] = True
        if resident[model]:
            book.loading_until_s[model, node] = -np.inf
        book.in_host[model, node] = in_host[model]


def read(book: Book, node: int, in_engine: float) -> None:
    """Telemetry told how many requests are there: those that this ledger did not send are somebody else's until it tells again.

    Args:
        book: changed.
        node: column.
        in_engine: running and waiting.
    """
    book.load[OTHERS, node] = max(in_engine - book.load[IN_BATCH, node], 0.0)


def loading(book: Book, model: int, node: int, now_s: float) -> None:
    """Telemetry told that weights are on their way.

    When they began is not known, so the whole load is still to come; unless it was expected already, and is a little late.
    """
    late_s = now_s - book.loading_until_s[model, node]
    if not book.resident[model, node] and late_s > book.load_s[model, node]:
        until_s = now_s + book.load_s[model, node]
        book.loading_until_s[model, node] = until_s
        book.loads_until_s[node] = max(book.loads_until_s[node], until_s)


def forget(book: Book, node: int) -> None:
    """The node is a new incarnation: nothing is known of it."""
    book.load[:BUDGET_GIB, node] = 0.0
    book.load[IN_BATCH, node] = 0.0
    book.load[DONE_PER_S, node] = 0.0
    book.load[OTHERS, node] = 0.0
    book.load[ANSWERS, node] = 0.0
    book.load[SPEED, node] = 1.0
    book.resident[:, node] = False
    book.in_host[:, node] = False
    book.inflight[:, node] = 0
    book.loading_until_s[:, node] = -np.inf
    book.used_s[:, node] = -np.inf
    book.loads_until_s[node] = -np.inf
    book.ttft_curve[:, node] = 0.0
    book.ttft_seen[:, node] = 0.0
    book.stale[node] = True


def refresh(book: Book, node: int) -> None:
    """Make the node's weights and victims again: idle models, least recently used first."""
    load = book.load
    copies = 0
    order = np.empty(VICTIMS, dtype=np.int64)
    weights = 0.0
    for model in range(len(book.weights_gib)):
        busy = book.inflight[model, node] > 0
        if book.resident[model, node] or busy:
            weights += book.weights_gib[model]
        if book.resident[model, node] and not busy:
            # Insertion into the few that would go first.
            at = copies
            while at > 0 and book.used_s[order[at - 1], node] > book.used_s[model, node]:
                if at < VICTIMS:
                    order[at] = order[at - 1]
                at -= 1
            if at < VICTIMS:
                order[at] = model
                copies = min(copies + 1, VICTIMS)
    gone = 0  # what is on its way pushed them out, whatever the last reading says
    while gone < copies and weights > load[BUDGET_GIB, node]:
        weights -= book.weights_gib[order[gone]]
        gone += 1
    load[WEIGHTS_GIB, node] = weights
    gib = cost_s = 0.0
    for k in range(VICTIMS):
        book.victim_gib[k, node] = gib
        book.victim_cost_s[k, node] = cost_s
        if gone + k < copies:
            model = order[gone + k]
            gib += book.weights_gib[model]
            cost_s += book.share[model] * book.load_s[model, node]
    book.victim_gib[VICTIMS, node] = gib
    book.victim_cost_s[VICTIMS, node] = cost_s
    book.stale[node] = False
