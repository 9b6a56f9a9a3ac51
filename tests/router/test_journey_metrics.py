"""The metrics page: it parses, it has the names dashboards rely on, and clients cannot make it grow."""

from prometheus_client.parser import text_string_to_metric_families

from router.auth import new_key
from tests.router.fake_node import FakeNode, Reply, sse
from tests.router.harness import running_router, until

#: Of `CONVENTIONS`: request_total, request_error_total{error_code}, durations, in flight; all with our prefix.
CANONICAL = {
    "ccr_requests_total",
    "ccr_request_errors_total",
    "ccr_request_duration_seconds_bucket",
    "ccr_request_ttft_seconds_bucket",
    "ccr_request_tpot_seconds_bucket",
    "ccr_tokens_total",
    "ccr_decision_duration_seconds_bucket",
    "ccr_decisions_total",
    "ccr_policy_info",
    "ccr_policy_epoch",
    "ccr_inflight_requests",
    "ccr_node_available",
    "ccr_upstream_attempts_total",
    "ccr_retries_total",
    "ccr_panic",
    "ccr_ready",
    "ccr_build_info",
    "ccr_telemetry_age_seconds",
    "process_resident_memory_bytes",
}
ARTICLE = {"ccr_node_qps", "ccr_model_load_time", "gpu_memory_used", "router_score_duration"}

EMULATOR_PAGE = (
    b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.5\n"
    b"ccr_node_gpu_memory_used_bytes 12884901888\nccr_node_gpu_memory_total_bytes 25769803776\n"
    b'ccr_node_model_loaded{model="m"} 1\nccr_node_model_load_seconds{model="m"} 6.5\n'
)


async def samples(router, where="/metrics"):
    page = (await router.get(where)).body.decode()
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def value(found, name, **labels):
    return next(
        sample.value for sample in found if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_the_page_parses_and_has_the_canonical_and_the_article_s_names():
    node = FakeNode(
        reply=Reply(
            headers=((b"content-type", b"text/event-stream"),),
            chunks=(*sse("a"), b'data: {"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'),
        )
    )
    node.metrics = EMULATOR_PAGE
    node.settings = {"engine": "emulator"}
    async with running_router({"telemetry": {"interval": "10ms"}}, node) as router:
        await router.post(body={"model": "m", "stream": True})
        await router.post(body={"model": "nobody"})
        await until(lambda: router.router.fleet.states[0].load_s)
        found = await samples(router)
        admin = (await router.admin("GET", "/metrics", token=None)).status

    assert {sample.name for sample in found} >= CANONICAL | ARTICLE
    assert admin == 200
    assert value(found, "ccr_requests_total", model="m", outcome="ok") == 1
    assert value(found, "ccr_request_errors_total", error_code="model_not_found") == 1
    assert value(found, "gpu_memory_used", node="a") == 50.0
    assert value(found, "ccr_model_load_time", node="a", model="m") == 6.5
    assert value(found, "ccr_tokens_total", model="m", kind="output") == 5


async def test_the_sum_of_outcomes_is_the_number_of_requests():
    async with running_router(
        {"policy": {"name": "round_robin"}}, FakeNode("a", Reply(status=500)), FakeNode("b")
    ) as router:
        for i in range(12):
            await router.post(body={"model": "m" if i % 3 else "nobody"})
        found = await samples(router)

    assert sum(sample.value for sample in found if sample.name == "ccr_requests_total") == 12


async def test_names_that_clients_make_up_never_become_labels():
    key, digest = new_key()
    settings = {"keys": [{"name": "t", "hash": digest, "models": ["*"]}]}
    async with running_router(settings, FakeNode()) as router:
        before = len(await samples(router))
        for i in range(300):
            headers = {
                "authorization": f"Bearer {key}" if i % 2 else "Bearer made-up",
                "x-session-id": f"made-up-{i}",
                "x-model-version": f"made-up-{i}",
                "x-ccr-node-tags": f"made-up-{i}",
            }
            await router.post(body={"model": f"made-up-{i}"}, headers=headers)
            await router.post(f"/v1/made-up-{i}", headers=headers)
        after = await samples(router)

    assert len(after) - before <= 4  # two outcomes, two reasons
    assert not [sample for sample in after if "made-up" in str(sample.labels)]


async def test_metrics_stay_off_the_data_listener_when_told_to():
    async with running_router({"server": {"metrics": False}}, FakeNode()) as router:
        data = await router.get("/metrics")
        admin = await router.admin("GET", "/metrics", token=None)

    assert (data.status, admin.status) == (404, 200)
