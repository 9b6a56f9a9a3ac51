"""Reads SGLang, started with ``--enable-metrics``."""

from collections.abc import Sequence

from ccr.types import Reading
from router.collectors.collector import METRICS, MODELS, Bodies, Collector, expect_prefix
from router.collectors.model_list import openai_models
from router.collectors.values import count, first, fraction, started
from router.prometheus_text import Sample, parse

RUNNING = "sglang:num_running_reqs"
WAITING = "sglang:num_queue_reqs"
KV_USED = "sglang:token_usage"
STARTED = "process_start_time_seconds"
WANTED = frozenset({RUNNING, WAITING, KV_USED, STARTED})


def read(bodies: Bodies) -> Reading:
    """The load of one server: sums over its data-parallel ranks, the fullest KV cache of them."""
    text = bodies[METRICS]
    expect_prefix(text, (b"sglang:",))
    series = parse(text, WANTED)
    return Reading(
        running=count(_leaders(first(series, RUNNING))),
        waiting=count(_leaders(first(series, WAITING))),
        kv_used=fraction(first(series, KV_USED)),
        loaded=openai_models(bodies),
        boot_id=started(series.get(STARTED, ())),
    )


def _leaders(samples: Sequence[Sample]) -> list[Sample]:
    """Tensor- and pipeline-parallel ranks repeat the same requests when each of them reports: keep rank 0."""
    return [
        sample
        for sample in samples
        if all(sample[0].get(rank, "0") == "0" for rank in ("tp_rank", "pp_rank"))
    ]


SGLANG = Collector(pages=(METRICS, MODELS), read=read)
