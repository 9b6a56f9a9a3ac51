import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ccr.settings import Settings
from ccr.types import NodeSpec, Outcome, Reading
from router.app import Router
from router.exposition import CONTENT_TYPE, METRICS, View
from router.stats import MAX_LABELS

LABELS = {
    "model", "version", "outcome", "error_code", "tenant", "kind", "policy", "result", "node", "reason", "le",
    "fallback", "sha256", "figure",
}  # fmt: skip


@pytest.fixture
def router():
    """A router that was never started: two nodes, one of which has been read."""
    router = Router(Settings(), "token", clock=lambda: 10.0, seed=0)
    router.fleet.replace((NodeSpec("a", "http://a:1"), NodeSpec('b"\\\n', "http://b:1")), 0.0)
    reading = Reading(waiting=3.0, kv_used=0.5, gpu_free_gib=6.0, gpu_total_gib=24.0, load_s={"llama": 4.0})
    router.fleet.observe("a", reading, 9.5)
    return router


def samples(router):
    page = router.control.exposition.page().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def view_of(router):
    return View(router.dispatch, router.fleet.at(10.0), 10.0, is_ready=True)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
def test_every_metric_has_a_name_help_and_known_labels(metric, router):
    family = metric(view_of(router))

    assert re.fullmatch(r"(ccr|router|gpu)_[a-z_]+", family.name)
    assert family.documentation.endswith((".", ")."))
    for sample in family.samples:
        assert set(sample.labels) <= LABELS


def test_no_two_metrics_share_a_name(router):
    names = [metric(view_of(router)).name for metric in METRICS]

    assert len(set(names)) == len(names)


def test_the_page_can_be_read_by_prometheus_and_holds_every_metric(router):
    page = router.control.exposition.page().decode()
    families = {family.name.removesuffix("_info") for family in text_string_to_metric_families(page)}

    assert families >= {metric(view_of(router)).name for metric in METRICS}
    assert "version=0.0.4" in CONTENT_TYPE


def test_the_page_of_an_empty_router_can_be_read():
    assert samples(Router(Settings(), "token", clock=lambda: 0.0))["ccr_ready",] == 0.0


def test_nodes_are_told_apart_whatever_their_name(router):
    found = samples(router)

    assert found["ccr_node_engine_waiting", ("node", "a")] == 3.0
    assert ("ccr_node_engine_waiting", ("node", 'b"\\\n')) in found


def test_the_names_of_the_founding_article_are_there(router):
    found = samples(router)

    assert found["gpu_memory_used", ("node", "a")] == 75.0
    assert found["ccr_model_load_time", ("model", "llama"), ("node", "a")] == 4.0
    assert found["ccr_node_qps", ("node", "a")] == 0.0
    assert found["router_score_duration",] == 0.0


def test_memory_is_in_bytes_and_a_card_nobody_knows_has_no_percentage(router):
    found = samples(router)

    assert found["ccr_node_gpu_memory_total_bytes", ("node", "a")] == 24 * 2**30
    assert found["ccr_node_gpu_memory_used_bytes", ("node", "a")] == 18 * 2**30
    assert ("gpu_memory_used", ("node", 'b"\\\n')) not in found


def test_counters_say_what_was_counted(router):
    router.stats.ended("llama", "2", Outcome.OK)
    router.stats.ended("llama", "2", Outcome.OK)
    router.stats.refusals["no_capacity"] += 1
    router.stats.tokens["llama", "output"] += 7

    found = samples(router)

    labels = (("model", "llama"), ("outcome", "ok"), ("version", "2"))
    assert found["ccr_requests_total", *labels] == 2.0
    assert found["ccr_request_errors_total", ("error_code", "no_capacity")] == 1.0
    assert found["ccr_tokens_total", ("kind", "output"), ("model", "llama")] == 7.0


def test_histograms_are_cumulative_and_end_in_infinity(router):
    for took_s in (0.004, 0.005, 0.3, 1000.0):
        router.stats.duration_s.observe("llama", took_s)

    found = samples(router)

    def bucket(le):
        return found["ccr_request_duration_seconds_bucket", ("le", le), ("model", "llama")]

    assert [bucket(le) for le in ("0.005", "0.25", "0.5", "120.0", "+Inf")] == [2.0, 2.0, 3.0, 3.0, 4.0]
    assert found["ccr_request_duration_seconds_count", ("model", "llama")] == 4.0
    assert found["ccr_request_duration_seconds_sum", ("model", "llama")] == pytest.approx(1000.309)


def test_names_that_clients_make_up_cannot_fill_the_memory(router):
    for i in range(20 * MAX_LABELS):
        router.stats.ended(f"m{i}", f"v{i}", Outcome.OK)
        router.stats.duration_s.observe(f"m{i}", 0.1)

    found = samples(router)

    assert sum(name == "ccr_requests_total" for name, *_ in found) <= 10 * MAX_LABELS + 1
    assert sum(name == "ccr_request_duration_seconds_count" for name, *_ in found) <= MAX_LABELS + 1


def test_the_policy_in_force_is_named(router):
    labels = (("fallback", "hot_cold"), ("policy", "learned"), ("sha256", ""))

    assert samples(router)["ccr_policy_info", *labels] == 1.0
