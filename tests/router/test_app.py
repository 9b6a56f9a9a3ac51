"""The router knows of models, cards and its fellow routers what its config says."""

import pytest
import structlog.testing

from ccr.look import COVERAGE, LOAD_WAIT_S
from ccr.policies import POLICIES
from ccr.settings import Settings
from ccr.timing import GIB, GPUS, PRESETS, step_costs
from envs.catalogue import catalogue
from router.app import Router
from tests.factories import a_request, a_spec
from tests.router.harness import running_router

CHAT = catalogue(["chat-7b@1"])["chat-7b@1"]
LIKE_CHAT = {"architecture": {"like": "mistral-7b", "weight_bytes": 1}, "versions": {"1": {"load": "4s"}}}


def a_router(*specs, **settings):
    router = Router(Settings(**settings), "token", clock=lambda: 0.0, seed=1)
    router.fleet.replace(specs, 0.0)
    return router


def look(router, request):
    """What a policy sees that looks, after it looked."""
    fleet = router.fleet.at(0.0)
    POLICIES["least_cost"]().scores(request, fleet)
    return fleet.looked


def entry(node, gpu=None):
    """A node that nobody answers for."""
    labels = {"gpu": gpu} if gpu else {}
    return {"id": node, "url": f"http://127.0.0.1:{9 + len(node)}", "labels": labels}


# -- models


@pytest.mark.parametrize(
    ("label", "gpu"), [("A10", "A10"), ("NVIDIA-A100-SXM4-80GB", "A100-80G"), ("nvidia-l4", "L4")]
)
def test_a_described_model_costs_what_the_simulator_takes_for_it(label, gpu):
    router = a_router(a_spec("a", labels={"gpu": label}), models={"chat-7b": LIKE_CHAT})

    look(router, a_request("chat-7b@1", prompt_tokens=100))

    book = router.fleet.expected.book
    costs = step_costs(CHAT, GPUS[gpu], PRESETS["graph"])
    assert book.costs[:, 0, 0].tolist() == list(costs)
    assert (book.weights_gib[0], book.kv_gib[0]) == pytest.approx(
        (CHAT.stored_bytes / GIB, CHAT.kv_bytes_per_token / GIB)
    )
    assert book.load_s[0, 0] == 4.0


def test_a_model_that_only_telemetry_named_costs_what_the_config_says():
    router = a_router(a_spec("a"), models={"chat-7b": LIKE_CHAT})
    expected = router.fleet.expect(0.0)

    expected.report(0, {"chat-7b@1"})

    assert expected.book.load_s[0, 0] == 4.0


def test_an_adapter_is_cheap_where_its_base_is():
    models = {"chat-7b": LIKE_CHAT, "poet": {"lora_of": "chat-7b", "gib": 0.2}}
    router = a_router(a_spec("a"), a_spec("b"), models=models)
    router.fleet.expect(0.0).report(0, {"chat-7b@1"})
    poet = router.settings.catalogue().models["poet"].versions[""]

    wait_s = look(router, a_request("poet", model_gib=poet.gib, load_s=poet.load_s)).pairs[LOAD_WAIT_S]

    assert 0.0 < wait_s[0] < 0.5
    assert wait_s[1] == pytest.approx(4.0 + wait_s[0])


# -- other routers


@pytest.mark.parametrize(("settings", "coverage"), [({}, 1.0), ({"server": {"replicas": 4}}, 0.25)])
def test_a_router_sees_its_share_of_the_traffic(settings, coverage):
    router = a_router(a_spec("a"), **settings)

    assert look(router, a_request()).asked[COVERAGE] == coverage


# -- cards


async def test_a_card_that_is_not_known_is_said_once_with_what_to_set():
    with structlog.testing.capture_logs() as logged:
        async with running_router({}, entry("a", "H100"), entry("bb", "H100"), entry("ccc", "A10")) as router:
            router.router.set_nodes(tuple(state.spec for state in router.router.fleet.states))

    (said,) = [line for line in logged if line["event"] == "gpu.unknown"]
    assert (said["log_level"], said["label"], said["taken_for"]) == ("warning", "H100", "A10")
    assert (said["nodes"], said["count"]) == (["a", "bb"], 2)
    assert "A100-80G" in said["remedy"]


async def test_a_node_that_names_no_card_is_told_without_alarm():
    with structlog.testing.capture_logs() as logged:
        async with running_router({}, entry("a")):
            pass

    (said,) = [line for line in logged if line["event"] == "gpu.unknown"]
    assert (said["log_level"], said["nodes"]) == ("info", ["a"])


async def test_known_cards_are_nothing_to_speak_of():
    with structlog.testing.capture_logs() as logged:
        async with running_router({}, entry("a", "A10"), entry("bb", "NVIDIA L4")):
            pass

    assert not [line for line in logged if line["event"] == "gpu.unknown"]
