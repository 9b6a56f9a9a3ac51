"""Reads Triton: any backend, with more to tell from the TensorRT-LLM one; and the names of ``trtllm-serve``."""

from ccr.types import Reading
from router.collectors.collector import Bodies, Collector, Page, expect_prefix
from router.collectors.model_list import triton_index
from router.collectors.values import Series, count, first, fraction, free_gib, gib, mean_fraction, where
from router.prometheus_text import parse

#: Requests inside the TensorRT-LLM backend, by ``request_type``.
REQUESTS = "nv_trt_llm_request_metrics"
#: Its KV cache, by ``kv_cache_block_type``.
KV_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
PENDING = "nv_inference_pending_request_count"
SERVE_RUNNING = "trtllm_num_requests_running"
SERVE_WAITING = "trtllm_num_requests_waiting"
SERVE_KV_USED = "trtllm_kv_cache_utilization"
GPU_USED = "nv_gpu_memory_used_bytes"
GPU_TOTAL = "nv_gpu_memory_total_bytes"
GPU_UTIL = "nv_gpu_utilization"
WANTED = frozenset(
    {REQUESTS, KV_BLOCKS, PENDING, SERVE_RUNNING, SERVE_WAITING, SERVE_KV_USED, GPU_USED, GPU_TOTAL, GPU_UTIL}
)
PREFIXES = (b"nv_", b"trtllm_")

# Triton serves its metrics on a port of their own, 8002 unless started with --metrics-port.
METRICS = Page("/metrics", port=8002)
INDEX = Page("/v2/repository/index", method="POST", every=5, optional=True)


def read(bodies: Bodies) -> Reading:
    """Load and GPUs of one server; sums over models and devices, the fullest KV cache of them.

    Plain Triton has no gauge of running requests, so ``running`` is then unknown.
    """
    index = bodies.get(INDEX)
    return gauges(bodies[METRICS], loaded=None if index is None else triton_index(index))


def gauges(text: bytes, loaded: frozenset[str] | None) -> Reading:
    """A reading of a metrics page, with the models from elsewhere."""
    expect_prefix(text, PREFIXES)
    series = parse(text, WANTED)
    total_gib, used_gib = gib(first(series, GPU_TOTAL)), gib(first(series, GPU_USED))
    return Reading(
        running=_requests(series, "scheduled", SERVE_RUNNING),
        waiting=_requests(series, "waiting", SERVE_WAITING, PENDING),
        kv_used=_kv_used(series),
        gpu_free_gib=free_gib(total_gib, used_gib),
        gpu_total_gib=total_gib,
        gpu_util=mean_fraction(first(series, GPU_UTIL)),
        loaded=loaded,
    )


def _requests(series: Series, request_type: str, *others: str) -> float | None:
    backend = where(series.get(REQUESTS, ()), "request_type", request_type)
    return count(backend or first(series, *others))


def _kv_used(series: Series) -> float | None:
    backend = where(series.get(KV_BLOCKS, ()), "kv_cache_block_type", "fraction")
    return fraction(backend or first(series, SERVE_KV_USED))


TRITON = Collector(pages=(METRICS, INDEX), read=read)
