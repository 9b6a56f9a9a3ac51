"""The metrics page is what a Prometheus parser takes."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from envs.catalogue import catalogue
from envs.exposition import Finishes, Histogram, Page, render
from envs.node import EmulatedNode

CHAT = "chat-7b@1"


@given(st.lists(st.floats(0.0, 100.0)))
def test_histogram_buckets_are_cumulative_and_end_in_the_count(values):
    histogram = Histogram((0.1, 1.0, 10.0))
    for value in values:
        histogram.observe(value)

    lines = list(histogram.samples("latency", 'model="m"'))

    counts = [int(line.rsplit(" ", 1)[1]) for line in lines if "_bucket" in line]
    assert counts == [sum(value <= bound for value in values) for bound in (0.1, 1.0, 10.0, float("inf"))]
    assert lines[-1] == f'latency_count{{model="m"}} {len(values)}'


def test_every_family_parses_and_is_typed():
    node = EmulatedNode(catalogue([CHAT]))
    node.place(CHAT)
    page = Page(
        node.state(),
        {CHAT: 131_072},
        {CHAT: Finishes(queried_tokens=90, reused_tokens=60)},
        10.0,
        0.5,
        "boot",
        3,
    )

    families = {family.name: family for family in text_string_to_metric_families(render(page))}

    assert all(family.type != "unknown" for family in families.values())
    assert {"vllm:num_requests_running", "vllm:time_to_first_token_seconds", "ccr_node_boot_info"} <= set(
        families
    )
    assert families["vllm:generation_tokens"].type == "counter"
    assert [sample.value for sample in families["vllm:prefix_cache_queries"].samples] == [90]
    assert [sample.value for sample in families["vllm:prefix_cache_hits"].samples] == [60]
