"""How much work traffic is: what a fleet is sized by, for a request may be ten tokens or ten thousand."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ccr.timing import GPUS, PRESETS, ModelSpec, StepCosts, step_costs
from envs.scenario import Arrivals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BATCH: Final = 8
"""Requests that share a pass over the weights: what a busy A10 has in its batch on the default mix."""
_STRETCH_S: Final = 10.0
_BUSY_SHARE: Final = 0.7
_MODELS_PER_NODE: Final = 2


def nodes_for(arrivals: Arrivals, models: Mapping[str, ModelSpec]) -> int:
    """A10 nodes that keep up with some traffic: at least two, with room for each model once.

    In the busiest tenth of its ten-second stretches each has 0.7 s of work per second; in the scenarios ``medium``,
    ``bursty`` and ``high`` each has 0.58, 0.65 and 0.81.
    """
    busy = busiest(arrivals.t, work_s(arrivals, list(models.values()))) / _BUSY_SHARE
    return max(2, math.ceil(busy), math.ceil(len(models) / _MODELS_PER_NODE))


def work_s(arrivals: Arrivals, specs: Sequence[ModelSpec]) -> Floats:
    """Seconds that each request keeps an A10 busy whose weights are loaded, shape ``(r,)``.

    Args:
        arrivals: traffic; what a session said before is taken to be in the cache.
        specs: models in the order of their rows.
    """
    out = np.zeros(len(arrivals.t))
    for row, spec in enumerate(specs):
        costs = step_costs(spec, GPUS["A10"], PRESETS["graph"])
        asked = arrivals.model == row
        prompt, output = arrivals.prompt_tokens[asked], arrivals.output_tokens[asked]
        cached = np.minimum(arrivals.prefix_tokens[asked], prompt - 1) * (arrivals.session[asked] >= 0)
        out[asked] = _prefill_s(costs, prompt, cached) + output * _token_s(costs, prompt + output / 2)
    return out


def busiest(t: Floats, work_s: Floats) -> float:
    """Work per second in the busiest tenth of the ten-second stretches.

    Args:
        t: arrivals in seconds from 0, shape ``(r,)``.
        work_s: of each, shape ``(r,)``.
    """
    stretches = np.bincount((t / _STRETCH_S).astype(np.int64), weights=work_s) / _STRETCH_S
    return float(np.quantile(stretches, 0.9)) if len(t) else 0.0


def _prefill_s(costs: StepCosts, prompt: Ints, cached: Ints) -> Floats:
    tokens, squares = prompt - cached, prompt * prompt - cached * cached
    arithmetic = costs.prefill_token_s * tokens + costs.prefill_square_s * squares
    return costs.prefill_fixed_s + np.maximum(arithmetic, costs.prefill_floor_s)


def _token_s(costs: StepCosts, context: Floats) -> Floats:
    return costs.decode_fixed_s / BATCH + costs.decode_sequence_s + costs.decode_context_s * context
