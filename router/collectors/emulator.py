"""Reads the emulated node of ``envs``: vLLM's names, and series of its own for GPU memory and residency."""

from collections.abc import Sequence
from dataclasses import replace

from ccr.errors import TelemetryError
from ccr.types import Reading
from router.collectors import vllm
from router.collectors.collector import METRICS, Bodies, Collector
from router.collectors.values import first, fraction, free_gib, gib, ids, ids_by, seconds_by
from router.prometheus_text import Sample, parse

GPU_USED = "ccr_node_gpu_memory_used_bytes"
GPU_TOTAL = "ccr_node_gpu_memory_total_bytes"
GPU_UTIL = "ccr_node_gpu_utilization"
LOADED = "ccr_node_model_loaded"
LOADING = "ccr_node_model_loading"
LOAD_SECONDS = "ccr_node_model_load_seconds"
BOOT = "ccr_node_boot_info"
WANTED = vllm.WANTED | {GPU_USED, GPU_TOTAL, GPU_UTIL, LOADED, LOADING, LOAD_SECONDS, BOOT}


def read(bodies: Bodies) -> Reading:
    """Everything a reading can hold. No series of a loaded model means that none is loaded."""
    series = parse(bodies[METRICS], WANTED)
    if GPU_TOTAL not in series:
        raise TelemetryError("no_metrics", f"no {GPU_TOTAL}; is `engine` of the node right?")
    total_gib, used_gib = gib(series[GPU_TOTAL]), gib(first(series, GPU_USED))
    return replace(
        vllm.gauges(series),
        gpu_free_gib=free_gib(total_gib, used_gib),
        gpu_total_gib=total_gib,
        gpu_util=fraction(first(series, GPU_UTIL)),
        loaded=ids_by(first(series, LOADED), "model"),
        loading=ids_by(first(series, LOADING), "model"),
        boot_id=_boot_id(first(series, BOOT)),
        load_s=seconds_by(first(series, LOAD_SECONDS), "model"),
    )


def _boot_id(samples: Sequence[Sample]) -> str:
    """The one boot id; empty when several processes answer under one address."""
    found = ids(labels.get("boot_id", "") for labels, _ in samples)
    return next(iter(found)) if len(found) == 1 else ""


EMULATOR = Collector(pages=(METRICS,), read=read)
