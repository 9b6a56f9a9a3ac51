"""What the network sees: one line per feature, of a look, scaled to about one; no running normaliser.

:data:`FEATURES` and :data:`REQUEST_FEATURES` are the schema: weights carry its digest, and a router refuses weights that
were trained on another. The first columns are the cost terms themselves, so that a policy is a function of features
alone. The functions work on arrays and are compiled by the simulator as they stand.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from ccr import book as b
from ccr import cost
from ccr import look as k
from ccr.book import Floats
from ccr.look import Look
from ccr.reward import slo_s

# Rows of the fleet's columns that are read here (`ccr.types.COLUMNS`; a test holds them equal).
_QPS: Final = 1
_LATENCY_S: Final = 2
_GPU_FREE_GIB: Final = 3
_GPU_TOTAL_GIB: Final = 4
_RUNNING: Final = 6
_WAITING: Final = 7
_KV_USED: Final = 8
_AGE_S: Final = 9

# Where rows lie when everything that features read is put one below the other. --------------------------------------
_PAIRS: Final = len(cost.TERMS)
_LOAD: Final = _PAIRS + len(k.PAIRS)
_COLUMNS: Final = _LOAD + len(b.LOAD)
_DERIVED: Final = _COLUMNS + 11
_EVICTED_SHARE, _CACHED_SHARE, _FREE_SHARE, _LEFT_SHARE, _OVERFLOW, _REMAINING, _SPEED, _BANDWIDTH, _AGE = (
    range(9)
)


class Feature(NamedTuple):
    """A row and how it is scaled: ``log1p(gain * row) / divisor``, or ``gain * row / divisor``.

    Args:
        row: among the rows that are read.
        meaning: what it tells.
        gain: before the logarithm.
        divisor: after it.
        is_log: whether the logarithm is taken.
    """

    row: int
    meaning: str
    gain: float = 1.0
    divisor: float = 1.0
    is_log: bool = True


#: Name of a node's feature -> what it is, in the order of the columns of :func:`node_features`: cost terms, other
#: logarithms, the rest.
FEATURES: Mapping[str, Feature] = MappingProxyType(
    {
        "load_term": Feature(cost.LOAD, "seconds until the weights are there", 1.0, 3.0),
        "backlog_term": Feature(cost.BACKLOG, "expected seconds of prefill before it", 1.0, 3.0),
        "prefill_term": Feature(cost.PREFILL, "expected seconds of its own prefill", 1.0, 3.0),
        "decode_term": Feature(cost.DECODE, "expected seconds of its own tokens", 1.0, 3.0),
        "kv_term": Feature(cost.KV, "expected seconds until there is room in the KV cache", 1.0, 3.0),
        "inflicted_term": Feature(cost.INFLICTED, "seconds of delay it is expected to inflict", 1.0, 3.0),
        "evicted_term": Feature(cost.EVICTED, "popularity-weighted reload of what it evicts", 4.0, 1.0),
        "cold_term": Feature(cost.COLD, "1 where the weights are not resident", 1.0, 1.0),
        "load_time": Feature(_PAIRS + k.LOAD_S, "seconds of a load from where the weights are", 1.0, 3.0),
        "running": Feature(_COLUMNS + _RUNNING, "sequences in the engine's batch by telemetry", 1.0, 4.0),
        "waiting": Feature(_COLUMNS + _WAITING, "the engine's queue by telemetry", 1.0, 4.0),
        "in_flight": Feature(_PAIRS + k.BUSY, "requests there, by ledger and telemetry", 1.0, 4.0),
        "in_flight_same": Feature(_PAIRS + k.SAME_MODEL, "requests of this model there", 1.0, 4.0),
        "unseen": Feature(_PAIRS + k.UNSEEN, "requests there that this router did not send", 1.0, 4.0),
        "pending": Feature(_LOAD + b.PENDING, "requests there without a first token", 1.0, 4.0),
        "mean_remaining": Feature(_DERIVED + _REMAINING, "tokens each request there still generates", 1.0, 6.0),
        "speed": Feature(_DERIVED + _SPEED, "observed over expected time per token"),
        "bandwidth": Feature(_DERIVED + _BANDWIDTH, "memory bandwidth over an A10's"),
        "since_progress": Feature(_PAIRS + k.SINCE_PROGRESS_S, "seconds since anything was heard of a request"),
        "rate": Feature(_COLUMNS + _QPS, "requests sent there per second", 1.0, 3.0),
        "latency": Feature(_COLUMNS + _LATENCY_S, "mean latency seen there", 1.0, 3.0),
        "finished": Feature(_LOAD + b.DONE_PER_S, "requests finished there per second", 1.0, 3.0),
        "answers": Feature(_LOAD + b.ANSWERS, "streamed answers that the observed speed rests on", 1.0, 3.0),
        "resident": Feature(_PAIRS + k.RESIDENT, "1 where the weights are on the GPU", is_log=False),
        "loading": Feature(_PAIRS + k.IS_LOADING, "1 where the weights are on their way", is_log=False),
        "in_host": Feature(_PAIRS + k.IN_HOST, "1 where the weights are in host memory", is_log=False),
        "session_here": Feature(_PAIRS + k.SESSION_HERE, "1 where the conversation was last", is_log=False),
        "active_models": Feature(_LOAD + b.ACTIVE_MODELS, "models with a request in flight", 1.0, 4.0, False),
        "step": Feature(_PAIRS + k.STEP_BEFORE_S, "seconds of a decode round now", 10.0, is_log=False),
        "overhead": Feature(_LOAD + b.OVERHEAD_S, "seconds a request takes besides its steps", 10.0, is_log=False),
        "kv_used": Feature(_COLUMNS + _KV_USED, "used fraction of the KV cache by telemetry", is_log=False),
        "evicted_memory": Feature(_DERIVED + _EVICTED_SHARE, "share of memory that idle models give up", is_log=False),
        "cached_prefix": Feature(_DERIVED + _CACHED_SHARE, "share of the prompt in the prefix cache", is_log=False),
        "memory_free": Feature(_DERIVED + _FREE_SHARE, "free share of the card by telemetry", is_log=False),
        "memory_left": Feature(_DERIVED + _LEFT_SHARE, "free share of the engine's memory by the ledger", is_log=False),
        "kv_overflow": Feature(_DERIVED + _OVERFLOW, "keys and values above what fits, at most 4", 0.25, is_log=False),
        "telemetry_age": Feature(_DERIVED + _AGE, "age of the last reading, at most 10 s", 0.1, is_log=False),
    }
)  # fmt: skip
#: Name of a request's feature -> what it is, in the order of :func:`request_features`.
REQUEST_FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "logarithm of the prompt tokens, in eighths",
        "output": "logarithm of the predicted output tokens, in sevenths",
        "model_memory": "GiB of the model's weights, in twenties",
        "popularity": "the model's share of the recent requests",
        "copies": "share of the nodes with the weights resident",
        "fleet_load": "logarithm of the mean requests per node, in quarters",
        "coverage": "share of the traffic this router sees",
        "promise": "logarithm of the seconds within which an answer is promised, in thirds",
    }
)
PROMISE: Final = 7
"""Entry of the promised seconds among the request's features."""
PROMISE_DIVISOR: Final = 3.0

_SOURCE: Final = np.array([feature.row for feature in FEATURES.values()])
_GAIN: Final = np.array([[feature.gain] for feature in FEATURES.values()])
_SCALE: Final = 1.0 / np.array([[feature.divisor] for feature in FEATURES.values()])
_LOGS: Final = sum(feature.is_log for feature in FEATURES.values())
#: Gain and divisor of the cost terms, to get them back: shape ``(len(TERMS), 1)`` each.
TERM_GAIN: Final = _GAIN[: len(cost.TERMS)].copy()
TERM_DIVISOR: Final = 1.0 / _SCALE[: len(cost.TERMS)]


def schema() -> str:
    """A digest of names, sources, scales and meanings, in order: equal exactly where the features are."""
    lines = [f"{name}: {feature}" for name, feature in FEATURES.items()]
    lines += [f"{name}: {meaning}" for name, meaning in REQUEST_FEATURES.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def derived(look: Look) -> Floats:
    """Rows that are ratios or limits of others, shape ``(9, n)``."""
    load, pairs, columns = look.load, look.pairs, look.columns
    budget_gib = np.maximum(load[b.BUDGET_GIB], 1.0)
    out = np.empty((9, load.shape[1]))
    out[_EVICTED_SHARE] = pairs[k.EVICT_GIB] / budget_gib
    out[_CACHED_SHARE] = pairs[k.CACHED_TOKENS] / max(look.asked[k.PROMPT_TOKENS], 1.0)
    out[_FREE_SHARE] = columns[_GPU_FREE_GIB] / np.maximum(columns[_GPU_TOTAL_GIB], 1.0)
    out[_LEFT_SHARE] = (load[b.BUDGET_GIB] - load[b.WEIGHTS_GIB] - load[b.KV_GIB]) / budget_gib
    out[_OVERFLOW] = np.minimum(pairs[k.KV_OVERFLOW], 4.0)
    out[_REMAINING] = pairs[k.TOKENS_LEFT] / np.maximum(pairs[k.BUSY], 1.0)
    out[_SPEED] = load[b.SPEED] - 1.0  # its log1p is the logarithm of the speed
    out[_BANDWIDTH] = np.maximum(load[b.BANDWIDTH], 0.01) - 1.0
    out[_AGE] = np.minimum(columns[_AGE_S], 10.0)
    return out


def node_features(look: Look) -> Floats:
    """Every node's features, shape ``(n, len(FEATURES))``."""
    rows = np.concatenate((cost.terms(look), look.pairs, look.load, look.columns, derived(look)))
    out = rows[_SOURCE] * _GAIN
    out[:_LOGS] = np.log1p(out[:_LOGS])
    return (out * _SCALE).T.copy()


def request_features(look: Look) -> Floats:
    """The request's features, shape ``(len(REQUEST_FEATURES),)``."""
    asked = look.asked
    out = np.empty(8)
    out[0] = np.log1p(asked[k.PROMPT_TOKENS]) / 8.0
    out[1] = np.log1p(asked[k.OUTPUT_TOKENS]) / 7.0
    out[2] = asked[k.MODEL_GIB] / 20.0
    out[3] = asked[k.SHARE]
    out[4] = asked[k.COPIES]
    out[5] = np.log1p(asked[k.FLEET_BUSY]) / 4.0
    out[6] = asked[k.COVERAGE]
    out[7] = np.log1p(slo_s(asked[k.IDEAL_S])) / PROMISE_DIVISOR
    return out
