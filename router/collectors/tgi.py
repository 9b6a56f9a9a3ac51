"""Reads Hugging Face Text Generation Inference."""

from ccr.types import Reading
from router.collectors.collector import METRICS, MODELS, Bodies, Collector, Page, expect_prefix
from router.collectors.model_list import openai_models, tgi_info
from router.collectors.values import count, first
from router.prometheus_text import parse

RUNNING = "tgi_batch_current_size"
WAITING = "tgi_queue_size"
WANTED = frozenset({RUNNING, WAITING})
INFO = Page("/info", every=5, optional=True)


def read(bodies: Bodies) -> Reading:
    """Batch and queue; the model from ``/info``, or from ``/v1/models`` where the server has it, or both."""
    text = bodies[METRICS]
    expect_prefix(text, (b"tgi_",))
    series = parse(text, WANTED)
    return Reading(
        running=count(first(series, RUNNING)), waiting=count(first(series, WAITING)), loaded=_loaded(bodies)
    )


def _loaded(bodies: Bodies) -> frozenset[str] | None:
    listed = openai_models(bodies)
    if INFO not in bodies:
        return listed
    return tgi_info(bodies[INFO]) | (listed or frozenset())


TGI = Collector(pages=(METRICS, INFO, MODELS), read=read)
