"""A router before nodes that are emulated faster than life: its clock runs as fast as they do."""

import numpy as np
import pytest

from ccr import cost
from ccr.admission import HOLD_S, MAX_HOLD_S
from ccr.look import Look
from ccr.policies.network import HOLD_SHARE
from ccr.timing import LOAD_SOURCES
from ccr.types import COLUMNS
from envs.catalogue import model_facts
from envs.emulator import EmulatedFleet
from router.demo.workload import EmulatedNode, ServedModel, router_config
from tests.router.fake_node import FakeNode, Reply
from tests.router.harness import running_router, until
from tests.weights import weights_that_prefer

SPEED = 10.0
MODEL = "chat-7b@1"
FACTS = model_facts(LOAD_SOURCES["engine_swap"])[MODEL]
SERVED = ServedModel(MODEL, FACTS.gib, FACTS.load_s, {"like": FACTS.like, "weight_bytes": FACTS.weight_bytes})


def settings_before(fleet, policy, **options):
    """What the demo's router would be given, but for its ports."""
    nodes = [EmulatedNode(f"a{i}", url) for i, url in enumerate(fleet.urls)]
    config = router_config(nodes, [SERVED], speed=SPEED, port=0, admin_port=0)
    return {
        "server": {"clock_speed": config["server"]["clock_speed"]},
        "models": config["models"],
        "telemetry": config["telemetry"],
        "policy": {"name": policy, "options": options},
        "nodes": config["nodes"],
    }


def a_question(prompt_bytes, output_tokens):
    # The router takes four bytes of the body for a token, the node four bytes of the text.
    messages = [{"role": "user", "content": "x" * prompt_bytes}]
    return {"model": MODEL, "max_tokens": output_tokens, "messages": messages}


async def asked(policy, question, times=1, warm=(), **options):
    """The decisions about a question put again and again, oldest first, and how often it was held."""
    async with EmulatedFleet(count=1, speed=SPEED, warm=warm) as fleet:
        settings = settings_before(fleet, policy, **options)
        async with running_router(settings) as router:
            await until(lambda: router.router.fleet.states[0].boot_id)  # it was read
            for _ in range(times):
                assert (await router.post(body=question)).status == 200
            decisions = (await router.admin("GET", "/admin/decisions")).json
            return decisions[::-1], router.router.stats.holds


def terms_of(decision):
    """The cost terms of the one node, as the policy saw them."""
    load, pairs, (of_request,) = (np.array(decision["look"][name]) for name in ("load", "pairs", "asked"))
    return cost.terms(Look(np.zeros((len(COLUMNS), 1)), load, pairs, of_request))[:, 0]


def at_the_node_s(decision):
    return (decision["total_ms"] - decision["queue_ms"]) / 1e3


@pytest.mark.parametrize(
    "question",
    [pytest.param(a_question(12_000, 16), id="mostly prefill"), pytest.param(a_question(400, 128), id="mostly decode")],
)  # fmt: skip
async def test_a_request_takes_as_many_emulated_seconds_as_are_predicted(question):
    decisions, _ = await asked("least_cost", question, times=3, warm=(MODEL,))

    assert not any(decision["cold_start"] for decision in decisions)
    predicted_s = [terms_of(decision)[[cost.PREFILL, cost.DECODE]].sum() for decision in decisions]
    # A busy machine makes some of them slower, none faster.
    found = [at_the_node_s(decision) / s for decision, s in zip(decisions, predicted_s, strict=True)]
    assert min(found) == pytest.approx(1.0, abs=0.2)


async def test_a_load_is_predicted_in_emulated_seconds_and_takes_as_many():
    (decision,), _ = await asked("least_cost", a_question(400, 8))

    assert terms_of(decision)[cost.LOAD] == pytest.approx(FACTS.load_s)
    # Loads vary by a few percent; a busy machine only makes it longer.
    assert 0.8 * FACTS.load_s < at_the_node_s(decision) < 3.0 * FACTS.load_s


async def test_a_hold_lasts_a_tenth_of_an_emulated_second(tmp_path):
    weights = weights_that_prefer(HOLD_SHARE, tmp_path)

    (decision,), holds = await asked("learned", a_question(400, 8), weights=weights)

    assert 2 <= holds <= round(MAX_HOLD_S / HOLD_S)
    assert decision["queue_ms"] >= 1e3 * HOLD_S * holds


async def test_a_node_is_left_alone_as_long_as_it_asked_for_on_the_wall():
    busy = FakeNode("a", Reply(status=429, headers=((b"retry-after", b"2"),)))
    async with running_router({"server": {"clock_speed": SPEED}}, busy) as router:
        await router.post()
        state = router.router.fleet.state("a")

    assert state.backoff_until_s - state.last_dispatch_s == pytest.approx(2.0 * SPEED, abs=5.0)


async def test_a_caller_that_goes_to_the_node_itself_lives_on_the_wall():
    settings = {"server": {"clock_speed": SPEED}, "sidecar": {"lease": 60.0}}
    async with running_router(settings, FakeNode("a")) as router:
        told = (await router.post("/route", {"model": "m"})).json
        router.clock.skip(10.0)
        await router.post("/feedback", {"decision_token": told["decision_token"], "latency_ms": 500})
        (decision,) = (await router.admin("GET", "/admin/decisions")).json

    assert told["expires_in_s"] == 6.0
    assert decision["total_ms"] == 5000.0
