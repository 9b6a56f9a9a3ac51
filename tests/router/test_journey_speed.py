"""Times predicted for emulated nodes that run faster than the clock are those that are seen."""

import numpy as np
import pytest

from ccr import cost
from ccr.look import Look
from ccr.timing import LOAD_SOURCES
from ccr.types import COLUMNS
from envs.catalogue import model_facts
from envs.emulator import EmulatedFleet
from router.demo.workload import EmulatedNode, ServedModel, router_config
from tests.router.harness import running_router, until

SPEED = 10.0
MODEL = "chat-7b@1"
FACTS = model_facts(LOAD_SOURCES["engine_swap"])[MODEL]
SERVED = ServedModel(MODEL, FACTS.gib, FACTS.load_s, {"like": FACTS.like, "weight_bytes": FACTS.weight_bytes})


@pytest.mark.parametrize(
    ("prompt_bytes", "output_tokens"),
    [pytest.param(12_000, 16, id="mostly prefill"), pytest.param(400, 128, id="mostly decode")],
)
async def test_a_request_takes_as_long_as_the_demo_s_router_predicts(prompt_bytes, output_tokens):
    async with EmulatedFleet(count=1, speed=SPEED, warm=(MODEL,)) as fleet:
        nodes = [EmulatedNode("a", fleet.urls[0])]
        config = router_config(nodes, [SERVED], speed=SPEED, port=0, admin_port=0)
        settings = {"models": config["models"], "policy": {"name": "least_cost"}}
        async with running_router(settings, *config["nodes"]) as router:
            await until(lambda: router.router.fleet.states[0].reported)
            # The router takes four bytes of the body for a token, the node four bytes of the text.
            messages = [{"role": "user", "content": "x" * prompt_bytes}]
            for _ in range(3):
                await router.post(body={"model": MODEL, "max_tokens": output_tokens, "messages": messages})
            decisions = (await router.admin("GET", "/admin/decisions")).json

    assert not any(decision["cold_start"] for decision in decisions)
    # A busy machine makes some of them slower, none faster.
    assert min(map(observed_over_predicted, decisions)) == pytest.approx(1.0, abs=0.2)


def observed_over_predicted(decision):
    load, pairs, (asked,) = (np.array(decision["look"][name]) for name in ("load", "pairs", "asked"))
    parts = cost.terms(Look(np.zeros((len(COLUMNS), 1)), load, pairs, asked))
    predicted_s = parts[cost.PREFILL, 0] + parts[cost.DECODE, 0]
    return (decision["total_ms"] - decision["queue_ms"]) / 1e3 / predicted_s
