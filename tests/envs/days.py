"""Small scenarios with traffic that the test wrote itself."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ccr.timing import ModelSpec
from envs.catalogue import catalogue
from envs.scenario import Arrivals, NodePlan, Scenario

CHAT, CODE, SUPPORT = "chat-7b@1", "code-7b@1", "support-8b@1"
MODELS: dict[str, ModelSpec] = catalogue([CHAT, CODE, SUPPORT])


def arrivals(
    t: Any, *, model: Any = 0, prompt: Any = 200, output: Any = 50, session: Any = -1, prefix: Any = 0,
    after: Any = -1,
) -> Arrivals:  # fmt: skip
    """Requests at these times; everything else the same for all, or one for each."""
    r = len(t)

    def whole(values: Any) -> Any:
        return np.broadcast_to(np.asarray(values, dtype=np.int64), r).copy()

    return Arrivals(
        np.asarray(t, dtype=np.float64), whole(model), whole(prompt), whole(output), whole(session), whole(prefix),
        whole(0), whole(after),
    )  # fmt: skip


def poisson(
    rate: float, count: int, *, models: int = 1, prompt: int = 200, output: int = 60
) -> Callable[[int], Arrivals]:
    """Poisson arrivals, lengths that vary, ``models`` equally popular models."""

    def drawn(seed: int) -> Arrivals:
        rng = np.random.default_rng(seed)
        return arrivals(
            np.cumsum(rng.exponential(1.0 / rate, count)),
            model=rng.integers(0, models, count),
            prompt=rng.integers(prompt // 2, 2 * prompt, count),
            output=rng.integers(output // 2, 2 * output, count),
        )

    return drawn


def a_day(traffic: Any, *, nodes: int = 2, warm: Sequence[str] = (CHAT,), **fields: Any) -> Scenario:
    """A scenario without warm-up or noise: ``traffic`` is arrivals or draws them from a seed."""
    drawn = traffic if not isinstance(traffic, Arrivals) else lambda seed: traffic
    plans = fields.pop("plans", None) or tuple(NodePlan(f"a10-{i}", warm=tuple(warm)) for i in range(nodes))
    settings: dict[str, Any] = {"warmup_s": 0.0, "load_noise": 0.0, "models": MODELS} | fields
    return Scenario(name="a day", about="A day.", nodes=plans, arrivals=drawn, **settings)
