import json

import pytest

from ccr.settings import parse
from ccr.shapes import MISTRAL_7B
from router.demo.workload import (
    PATIENCE_S,
    EmulatedNode,
    ServedModel,
    mix,
    popularity,
    router_config,
)  # fmt: skip

IDS = ("chat@1", "chat@2", "chat@3", "code@1", "code@2", "one@1")
LIKE = {"like": "mistral-7b", "weight_bytes": 1}
MODELS = [ServedModel(model, 7.0, 6.0, LIKE) for model in IDS]
NODES = [EmulatedNode("a10-1", "http://127.0.0.1:9001"), EmulatedNode("a10-2", "http://127.0.0.1:9002")]


def config(**options):
    document = router_config(NODES, MODELS, **({"speed": 10.0, "port": 1, "admin_port": 2} | options))
    return parse(json.dumps(document).encode(), "the demo")


def test_popularity_is_a_share_of_all_requests_and_canaries_are_rare():
    shares = dict(popularity(MODELS))

    assert sum(shares.values()) == pytest.approx(1.0)
    assert max(shares, key=shares.get) == "chat@1"
    assert shares["chat@2"] + shares["chat@3"] == pytest.approx(0.06 * (shares["chat@1"] / 0.94))


def test_the_mix_asks_for_everything_that_is_served():
    shots = mix(MODELS).shots(seed=1)

    assert {next(shots).model for _ in range(5_000)} == {model.id for model in MODELS}


def test_the_router_accepts_its_config_and_knows_every_model():
    settings = config()

    catalogue = settings.catalogue()
    assert {version.id for entry in catalogue.models.values() for version in entry.versions.values()} == {
        model.id for model in MODELS
    }
    assert all(node.loads_on_demand and node.engine == "emulator" for node in settings.nodes)


def test_the_nodes_are_sent_the_policy_s_priorities():
    assert all(node.schedules_by_priority for node in config().nodes)


def test_the_router_knows_the_architecture_of_every_model():
    models = config().prices().models

    assert models.keys() == {model.id for model in MODELS}
    assert {spec.kv_bytes_per_token for spec in models.values()} == {MISTRAL_7B.kv_bytes_per_token}


def test_canary_weights_are_the_shares_of_the_load():
    versions = config().catalogue().models["chat"].versions

    assert [version.weight for version in versions.values()] == [0.94, 0.05, 0.01]


def test_only_the_clock_knows_how_fast_the_nodes_are():
    fast, slow = config(speed=10.0), config(speed=1.0)

    assert (fast.server.clock_speed, slow.server.clock_speed) == (10.0, 1.0)
    assert fast.model_dump(exclude={"server"}) == slow.model_dump(exclude={"server"})
    assert fast.catalogue().models["one"].versions["1"].load_s == 6.0


def test_no_timeout_ends_what_a_bad_policy_makes_wait():
    upstream = config().upstream

    assert {upstream.ttft_timeout_s, upstream.answer_timeout_s, upstream.stream_idle_timeout_s} == {
        PATIENCE_S
    }
