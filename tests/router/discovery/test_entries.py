"""One node as people write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import ConfigError
from ccr.settings import NodeSettings
from ccr.types import NodeSpec
from router.collectors import COLLECTORS
from router.discovery.entries import node_spec, refuse_repeats

URL = "http://10.0.0.7:8000"
#: What the config may say of a node, but for the secret: that is for the router's own requests, not for a NodeSpec.
KEYS = set(NodeSettings.model_fields) - {"api_key"}


def refusal(**entry):
    with pytest.raises(ConfigError) as refused:
        node_spec(entry)
    return str(refused.value)


def test_a_url_is_enough():
    assert node_spec({"url": URL}) == NodeSpec("10.0.0.7-8000", URL)


def test_every_key_has_its_place():
    entry = {
        "id": "a10-1",
        "url": URL,
        "engine": "vllm",
        "tags": ["canary", "fast"],
        "labels": {"gpu": "A10"},
        "gpu_gib": 24,
        "models": ["chat@1"],
        "loads_on_demand": True,
        "max_inflight": 8,
        "schedules_by_priority": True,
    }

    assert node_spec(entry) == NodeSpec(
        id="a10-1",
        url=URL,
        engine="vllm",
        tags=frozenset({"canary", "fast"}),
        labels={"gpu": "A10"},
        gpu_total_gib=24.0,
        models=frozenset({"chat@1"}),
        loads_on_demand=True,
        max_inflight=8,
        schedules_by_priority=True,
    )


def test_a_node_of_the_config_file_is_an_entry():
    settings = NodeSettings(url=URL, tags=("canary",), labels={"gpu": "A10"}, gpu_gib=24.0)

    assert node_spec(settings.model_dump(include=KEYS)) == NodeSpec(
        "10.0.0.7-8000", URL, tags=frozenset({"canary"}), labels={"gpu": "A10"}, gpu_total_gib=24.0
    )


@pytest.mark.parametrize(
    ("written", "url", "id_"),
    [
        ("http://gpu-7:8000/", "http://gpu-7:8000", "gpu-7-8000"),
        ("HTTP://GPU-7.Example.COM.:8000", "http://gpu-7.example.com:8000", "gpu-7.example.com-8000"),
        ("http://gpu-7", "http://gpu-7:80", "gpu-7-80"),
        ("https://gpu-7", "https://gpu-7:443", "gpu-7-443"),
        ("http://my_node:1", "http://my_node:1", "my_node-1"),
        ("http://[::1]:8000", "http://[::1]:8000", "1-8000"),
        ("http://[2001:0DB8::7]:8000", "http://[2001:db8::7]:8000", "2001-db8--7-8000"),
    ],
)
def test_one_url_has_one_spelling(written, url, id_):
    spec = node_spec({"url": written})

    assert (spec.url, spec.id) == (url, id_)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://h:1", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("gopher://h:1", "http:// or https://"),
        ("10.0.0.7:8000", "http:// or https://"),
        ("//h:1", "http:// or https://"),
        ("", "http:// or https://"),
        ("http://", "host"),
        ("http://:80", "host"),
        ("http://user:secret@h:1", "no credentials"),
        ("http://h:1/v1", "after the port"),
        ("http://h:1?x=1", "after the port"),
        ("http://h:1#x", "after the port"),
        ("http://h:0", "1 to 65535"),
        ("http://h:65536", "must be like"),
        ("http://h:port", "must be like"),
        ("http://[::1", "must be like"),
        ("http://h\n:1", "control characters"),
        ("http://h :1", "blanks"),
        ("http://h\\x:1", "its host"),
        ("http://a,b:1", "its host"),
        ("http://模型:1", "its host"),
        ("http://169。254。169。254:80", "its host|must be like|no node"),
        ("http://169.254.169.254", "no node may live there"),
        ("http://[::ffff:169.254.169.254]:80", "no node may live there"),
        ("http://[fe80::1]:80", "no node may live there"),
        ("http://[fe80::1%25eth0]:80", "no node may live there"),
        ("http://[fd12::1%25eth0]:80", "no zone"),
        ("http://metadata.google.internal", "metadata service"),
        ("http://METADATA.google.internal./", "metadata service"),
        ("http://2852039166", "169.254.169.254"),
        ("http://0xa9fea9fe", "169.254.169.254"),
        ("http://0251.0376.0251.0376", "169.254.169.254"),
        ("http://169.254.43518", "169.254.169.254"),
        ("http://127.1:8000", "127.0.0.1"),
        (7, "must be text"),
        (None, "must be text"),
    ],
)
def test_a_url_that_cannot_be_a_node_is_refused(url, why):
    with pytest.raises(ConfigError, match=why):
        node_spec({"url": url})


@pytest.mark.parametrize("url", ["http://root:hunter2@h:1", "http://root:hun/ter2@h:1", "ftp://hunter2@h"])
def test_a_password_in_a_url_is_not_repeated(url):
    assert "hunter2" not in refusal(url=url)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("id", 7, "in quotes"),
        ("id", "two words", "letters"),
        ("id", "-a", "letters"),
        ("id", "x" * 129, "128"),
        ("id", 'a"\n', "letters"),
        ("engine", "vlmm", "one of auto, emulator"),
        ("engine", [], "one of"),
        ("tags", "canary", "a list"),
        ("tags", [1], "in quotes"),
        ("tags", [""], "words"),
        ("labels", ["a"], "names with texts"),
        ("labels", {"gpu": 10}, "in quotes"),
        ("labels", {1: "x"}, "in quotes"),
        ("labels", {"metrics_port": "0"}, "1 to 65535"),
        ("labels", {"metrics_port": "65536"}, "1 to 65535"),
        ("labels", {"metrics_port": "٣"}, "1 to 65535"),
        ("gpu_gib", "24", "number of GiB"),
        ("gpu_gib", -1, "number of GiB"),
        ("gpu_gib", float("nan"), "number of GiB"),
        ("gpu_gib", 10**400, "number of GiB"),
        ("gpu_gib", True, "number of GiB"),
        ("models", {"a": 1}, "a list"),
        ("loads_on_demand", "yes", "true or false"),
        ("max_inflight", 1.5, "whole number"),
        ("max_inflight", -1, "whole number"),
        ("max_inflight", True, "whole number"),
        ("schedules_by_priority", 1, "true or false"),
    ],
)
def test_a_wrong_value_names_node_key_value_and_remedy(key, value, why):
    message = refusal(**{"url": URL, key: value})

    assert message.startswith("node ")
    assert f"`{key}`" in message
    assert why in message


def test_an_unknown_key_is_refused_with_the_known_ones():
    message = refusal(url=URL, id="a10-1", gpus=1)

    assert message == (
        "node 'a10-1': unknown key gpus; known keys: id, url, engine, tags, labels, gpu_gib, models, "
        "loads_on_demand, max_inflight, schedules_by_priority"
    )


def test_the_keys_are_those_of_the_config_file():
    """`nodes` in the config and a node file take the same entries."""
    message = refusal(url=URL, nonsense=1)

    assert set(message.split("known keys: ")[1].split(", ")) == KEYS


def test_a_missing_url_is_refused_with_an_example():
    assert refusal(id="a10-1") == "node 'a10-1': `url` is missing; write e.g. url: http://10.0.0.7:8000"


@pytest.mark.parametrize("engine", COLLECTORS)
def test_every_collector_is_an_engine(engine):
    assert node_spec({"url": URL, "engine": engine}).engine == engine


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(sorted(KEYS)), JUNK), st.text(max_size=30))
def test_whatever_is_written_is_a_node_or_a_config_error(entry, host):
    entry.setdefault("url", f"http://{host}")
    try:
        spec = node_spec(entry)
    except ConfigError:
        return

    assert node_spec({"url": spec.url}).url == spec.url


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        ([NodeSpec("a", "http://h:1"), NodeSpec("b", "http://h:2"), NodeSpec("a", "http://h:3")], "id a"),
        (
            [NodeSpec("a", "http://h:1"), NodeSpec("b", "http://h:2"), NodeSpec("c", "http://h:1")],
            "url http://h:1",
        ),
    ],
)
def test_a_repeated_id_or_url_is_refused_with_both_positions(specs, what):
    with pytest.raises(ConfigError, match=f"nodes 1 and 3 have the same {what}"):
        refuse_repeats(specs)
