"""The systems: the router's config is one the router accepts."""

import json

from benchmarks.systems import chat_body, reference, router_config
from ccr.settings import parse


def test_the_routers_config_has_no_unknown_setting_and_every_node(tmp_path):
    config = json.dumps(router_config(tmp_path, 9000, (9001, 9002))).encode()

    settings = parse(config, "the benchmark's config")

    assert [node.url for node in settings.nodes] == ["http://127.0.0.1:9001", "http://127.0.0.1:9002"]
    assert settings.server.host == settings.admin.host == "127.0.0.1"


def test_the_policy_measured_is_a_heuristic_that_expects_nothing_of_what_it_sent(tmp_path):
    """Decisions that nobody reports on would make any other refuse."""
    measured = parse(json.dumps(router_config(tmp_path, 9000, (9001,))).encode(), "measured")

    assert measured.policy.name == "hot_cold"


def test_a_prompt_has_the_length_it_says():
    body = json.loads(chat_body(16 * 2**10, stream=True))

    assert len(body["messages"][0]["content"]) == 16 * 2**10
    assert body["stream"] is True


def test_nginx_is_the_reference_where_it_runs():
    assert reference(["direct", "nginx", "floor"]) == "nginx"
    assert reference(["floor", "router"]) == "floor"
    assert reference(["router"]) == ""
