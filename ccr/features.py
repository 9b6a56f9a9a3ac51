"""What the network sees: one function per feature, of a look, scaled to about one; no running normaliser.

:data:`FEATURES` and :data:`REQUEST_FEATURES` are the schema: weights carry it, and a router refuses weights that were
trained on another. The functions work on arrays alone and are compiled by the simulator as they stand.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from ccr import book as b
from ccr import look as k
from ccr.book import Floats
from ccr.cost import BACKLOG, DECODE, INFLICTED, KV, LOAD, PREFILL, terms
from ccr.look import Look

# Rows of the fleet's columns that are read here (`ccr.types.COLUMNS`; a test holds them equal).
_QPS: Final = 1
_LATENCY_S: Final = 2
_GPU_FREE_GIB: Final = 3
_GPU_TOTAL_GIB: Final = 4
_KV_USED: Final = 8
_AGE_S: Final = 9


def resident(look: Look) -> Floats:
    """1 where the model's weights are on the GPU, shape ``(n,)``."""
    return look.pairs[k.RESIDENT]


def loading(look: Look) -> Floats:
    """1 where the weights are on their way."""
    return look.pairs[k.IS_LOADING]


def in_host(look: Look) -> Floats:
    """1 where the weights are in host memory."""
    return look.pairs[k.IN_HOST]


def load_wait(look: Look) -> Floats:
    """Logarithm of the seconds until the weights are there, in thirds."""
    return np.log1p(look.pairs[k.LOAD_WAIT_S]) / 3.0


def load_time(look: Look) -> Floats:
    """Logarithm of the seconds of a load from where the weights are, in thirds."""
    return np.log1p(look.pairs[k.LOAD_S]) / 3.0


def evicted_memory(look: Look) -> Floats:
    """Memory that idle models would have to give up, as a fraction of what an engine may fill."""
    return look.pairs[k.EVICT_GIB] / np.maximum(look.load[b.BUDGET_GIB], 1.0)


def evicted_cost(look: Look) -> Floats:
    """Logarithm of the popularity-weighted seconds to load again what would be evicted."""
    return np.log1p(4.0 * look.pairs[k.EVICT_COST_S])


def cached_prefix(look: Look) -> Floats:
    """Share of the prompt expected in the node's prefix cache, in [0, 1]."""
    return look.pairs[k.CACHED_TOKENS] / max(look.asked[k.PROMPT_TOKENS], 1.0)


def session_here(look: Look) -> Floats:
    """1 where the conversation was last."""
    return look.pairs[k.SESSION_HERE]


def own_prefill(look: Look) -> Floats:
    """Logarithm of ten times the seconds of the request's own prefill, in thirds."""
    return np.log1p(10.0 * look.pairs[k.PREFILL_S]) / 3.0


def backlog(look: Look) -> Floats:
    """Logarithm of twice the seconds of prefill before it, in halves."""
    return np.log1p(2.0 * look.pairs[k.BACKLOG_S]) / 2.0


def running(look: Look) -> Floats:
    """Logarithm of the sequences in the engine's batch by telemetry, in quarters."""
    return np.log1p(look.columns[k.RUNNING]) / 4.0


def waiting(look: Look) -> Floats:
    """Logarithm of the engine's queue by telemetry, in quarters."""
    return np.log1p(look.columns[k.WAITING]) / 4.0


def in_flight(look: Look) -> Floats:
    """Logarithm of the requests there, by ledger or telemetry, whichever says more; in quarters."""
    return np.log1p(look.pairs[k.BUSY]) / 4.0


def in_flight_same(look: Look) -> Floats:
    """Logarithm of the requests of this model there, in quarters."""
    return np.log1p(look.pairs[k.SAME_MODEL]) / 4.0


def unseen(look: Look) -> Floats:
    """Logarithm of the requests there that this router did not send, in quarters."""
    return np.log1p(look.pairs[k.UNSEEN]) / 4.0


def pending(look: Look) -> Floats:
    """Logarithm of the requests without a first token, in quarters."""
    return np.log1p(look.load[b.PENDING]) / 4.0


def active_models(look: Look) -> Floats:
    """Models with a request in flight, in quarters."""
    return look.load[b.ACTIVE_MODELS] / 4.0


def step(look: Look) -> Floats:
    """Tenths of a second of a decode round now."""
    return 10.0 * look.pairs[k.STEP_BEFORE_S]


def step_added(look: Look) -> Floats:
    """Tenths of a second that the request adds to a decode round."""
    return 10.0 * (look.pairs[k.STEP_AFTER_S] - look.pairs[k.STEP_BEFORE_S])


def memory_free(look: Look) -> Floats:
    """Free GPU memory by telemetry, as a fraction of the card, in [0, 1]."""
    return look.columns[_GPU_FREE_GIB] / np.maximum(look.columns[_GPU_TOTAL_GIB], 1.0)


def memory_left(look: Look) -> Floats:
    """What weights and keys and values in flight leave of the engine's memory by the ledger, as a fraction."""
    load = look.load
    left_gib = load[b.BUDGET_GIB] - load[b.WEIGHTS_GIB] - load[b.KV_GIB]
    return left_gib / np.maximum(load[b.BUDGET_GIB], 1.0)


def kv_used(look: Look) -> Floats:
    """Used fraction of the KV cache by telemetry, in [0, 1]."""
    return look.columns[_KV_USED]


def kv_overflow(look: Look) -> Floats:
    """Keys and values above what fits, as a fraction of what fits, at most 4; in quarters."""
    return np.minimum(look.pairs[k.KV_OVERFLOW], 4.0) / 4.0


def mean_remaining(look: Look) -> Floats:
    """Logarithm of the tokens each request there still has to generate, in sixths."""
    return np.log1p(look.pairs[k.TOKENS_LEFT] / np.maximum(look.pairs[k.BUSY], 1.0)) / 6.0


def speed(look: Look) -> Floats:
    """Logarithm of the observed over the expected time per token."""
    return np.log(look.load[b.SPEED])


def bandwidth(look: Look) -> Floats:
    """Logarithm of the memory bandwidth over an A10's."""
    return np.log(np.maximum(look.load[b.BANDWIDTH], 0.01))


def overhead(look: Look) -> Floats:
    """Tenths of a second a request takes besides its steps."""
    return 10.0 * look.load[b.OVERHEAD_S]


def since_progress(look: Look) -> Floats:
    """Logarithm of the seconds since anything was heard of a request there."""
    return np.log1p(look.pairs[k.SINCE_PROGRESS_S])


def telemetry_age(look: Look) -> Floats:
    """Age of the last reading, at most 10 s; in tens of seconds."""
    return np.minimum(look.columns[_AGE_S], 10.0) / 10.0


def rate(look: Look) -> Floats:
    """Logarithm of the requests sent there per second, in thirds."""
    return np.log1p(look.columns[_QPS]) / 3.0


def latency(look: Look) -> Floats:
    """Logarithm of the mean latency seen there, in thirds."""
    return np.log1p(look.columns[_LATENCY_S]) / 3.0


def finished(look: Look) -> Floats:
    """Logarithm of the requests finished there per second, in thirds."""
    return np.log1p(look.load[b.DONE_PER_S]) / 3.0


def expected_load(parts: Floats) -> Floats:
    """Logarithm of the expected wait for weights, prefill and room in the KV cache, in thirds."""
    return np.log1p(parts[LOAD] + parts[BACKLOG] + parts[PREFILL] + parts[KV]) / 3.0


def expected_decode(parts: Floats) -> Floats:
    """Logarithm of the expected seconds of its own tokens, in thirds."""
    return np.log1p(parts[DECODE]) / 3.0


def expected_inflicted(parts: Floats) -> Floats:
    """Logarithm of the delay it is expected to inflict on others, in thirds."""
    return np.log1p(parts[INFLICTED]) / 3.0


Feature = Callable[[Look], Floats]

_OF_LOOK: Final[tuple[Feature, ...]] = (
    resident, loading, in_host, load_wait, load_time, evicted_memory, evicted_cost, cached_prefix, session_here,
    own_prefill, backlog, running, waiting, in_flight, in_flight_same, unseen, pending, active_models, step, step_added,
    memory_free, memory_left, kv_used, kv_overflow, mean_remaining, speed, bandwidth, overhead, since_progress,
    telemetry_age, rate, latency, finished,
)  # fmt: skip
_OF_COST: Final = (expected_load, expected_decode, expected_inflicted)

#: Name of a node's feature -> what it is, in the order of the columns of :func:`node_features`.
FEATURES: Mapping[str, str] = MappingProxyType(
    {f.__name__: (f.__doc__ or "").split("\n")[0] for f in (*_OF_LOOK, *_OF_COST)}
)
#: Name of a request's feature -> what it is, in the order of :func:`request_features`.
REQUEST_FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "Logarithm of the prompt tokens, in eighths.",
        "output": "Logarithm of the predicted output tokens, in sevenths.",
        "model_memory": "GiB of the model's weights, in twenties.",
        "popularity": "The model's share of the recent requests.",
        "copies": "Share of the nodes with the weights resident.",
        "fleet_load": "Logarithm of the mean requests per node, in quarters.",
        "coverage": "Share of the traffic this router sees.",
    }
)


def schema() -> str:
    """A digest of names and meanings, in order: equal exactly where the features are."""
    text = "\n".join(f"{name}: {meaning}" for name, meaning in [*FEATURES.items(), *REQUEST_FEATURES.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def node_features(look: Look) -> Floats:
    """Every node's features, shape ``(n, len(FEATURES))``."""
    parts = terms(look)
    out = np.empty((look.load.shape[1], 36))
    out[:, 0] = resident(look)
    out[:, 1] = loading(look)
    out[:, 2] = in_host(look)
    out[:, 3] = load_wait(look)
    out[:, 4] = load_time(look)
    out[:, 5] = evicted_memory(look)
    out[:, 6] = evicted_cost(look)
    out[:, 7] = cached_prefix(look)
    out[:, 8] = session_here(look)
    out[:, 9] = own_prefill(look)
    out[:, 10] = backlog(look)
    out[:, 11] = running(look)
    out[:, 12] = waiting(look)
    out[:, 13] = in_flight(look)
    out[:, 14] = in_flight_same(look)
    out[:, 15] = unseen(look)
    out[:, 16] = pending(look)
    out[:, 17] = active_models(look)
    out[:, 18] = step(look)
    out[:, 19] = step_added(look)
    out[:, 20] = memory_free(look)
    out[:, 21] = memory_left(look)
    out[:, 22] = kv_used(look)
    out[:, 23] = kv_overflow(look)
    out[:, 24] = mean_remaining(look)
    out[:, 25] = speed(look)
    out[:, 26] = bandwidth(look)
    out[:, 27] = overhead(look)
    out[:, 28] = since_progress(look)
    out[:, 29] = telemetry_age(look)
    out[:, 30] = rate(look)
    out[:, 31] = latency(look)
    out[:, 32] = finished(look)
    out[:, 33] = expected_load(parts)
    out[:, 34] = expected_decode(parts)
    out[:, 35] = expected_inflicted(parts)
    return out


def request_features(look: Look) -> Floats:
    """The request's features, shape ``(len(REQUEST_FEATURES),)``."""
    asked = look.asked
    out = np.empty(7)
    out[0] = np.log1p(asked[k.PROMPT_TOKENS]) / 8.0
    out[1] = np.log1p(asked[k.OUTPUT_TOKENS]) / 7.0
    out[2] = asked[k.MODEL_GIB] / 20.0
    out[3] = asked[k.SHARE]
    out[4] = asked[k.COPIES]
    out[5] = np.log1p(asked[k.FLEET_BUSY]) / 4.0
    out[6] = asked[k.COVERAGE]
    return out
