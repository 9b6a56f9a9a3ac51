"""Reads ``trtllm-serve``, the OpenAI-compatible server of TensorRT-LLM."""

from ccr.types import Reading
from router.collectors import triton
from router.collectors.collector import MODELS, Bodies, Collector, Page
from router.collectors.model_list import openai_models

# Its /metrics answers JSON statistics of the last iterations; the text format is here (NVIDIA's
# examples/serve/prometheus_metrics.py).
METRICS = Page("/prometheus/metrics")


def read(bodies: Bodies) -> Reading:
    """The load of one server."""
    return triton.gauges(bodies[METRICS], loaded=openai_models(bodies))


TRTLLM = Collector(pages=(METRICS, MODELS), read=read)
