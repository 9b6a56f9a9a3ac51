"""Reads vLLM, current and legacy metric names."""

from ccr.types import Reading
from router.collectors.collector import METRICS, MODELS, Bodies, Collector, expect_prefix
from router.collectors.model_list import openai_models
from router.collectors.values import Series, count, first, fraction, ids, started
from router.prometheus_text import parse

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
STARTED = "process_start_time_seconds"
WANTED = frozenset({RUNNING, WAITING, *KV_USED, STARTED})


def read(bodies: Bodies) -> Reading:
    """The load of one process: sums over its engines and models, the fullest KV cache of them.

    Without a list of models (a server with an API key guards it, but not its metrics) the ``model_name``
    labels tell; they leave out LoRA adapters.
    """
    text = bodies[METRICS]
    expect_prefix(text, (b"vllm:",))
    series = parse(text, WANTED)
    load = gauges(series)
    loaded = openai_models(bodies)
    if loaded is None:
        names = {labels["model_name"] for labels, _ in series.get(RUNNING, ()) if "model_name" in labels}
        loaded = ids(names) if names else None
    return Reading(
        running=load.running,
        waiting=load.waiting,
        kv_used=load.kv_used,
        loaded=loaded,
        boot_id=started(series.get(STARTED, ())),
    )


def gauges(series: Series) -> Reading:
    """The numbers alone."""
    return Reading(
        running=count(first(series, RUNNING)),
        waiting=count(first(series, WAITING)),
        kv_used=fraction(first(series, *KV_USED)),
    )


VLLM = Collector(pages=(METRICS, MODELS), read=read)
