"""Finds out which engine a node runs, by the names on its ``/metrics``, and reads it as that."""

from ccr.errors import TelemetryError
from ccr.types import Reading
from router.collectors import emulator, sglang, tgi, triton, vllm
from router.collectors.collector import METRICS, MODELS, Bodies, Collector
from router.collectors.model_list import openai_models


def _triton_here(bodies: Bodies) -> Reading:
    return triton.read({triton.METRICS if page == METRICS else page: body for page, body in bodies.items()})


def _silent(bodies: Bodies) -> Reading:
    return Reading(loaded=openai_models(bodies))


# A Triton whose metrics answered where `auto` looks: on the node's own port, or on its label `metrics_port`.
_TRITON_HERE = Collector(pages=(METRICS, triton.INDEX), read=_triton_here)
# An engine that has nothing to say until its first request (SGLang, TGI); it must get one to be recognised.
_SILENT = Collector(pages=(METRICS, MODELS), read=_silent)

#: How the names on a page begin -> what the node then runs. The emulator comes first: it speaks vLLM's names too.
_MARKS: tuple[tuple[bytes, Collector], ...] = (
    (b"ccr_node_", emulator.EMULATOR),
    (b"vllm:", vllm.VLLM),
    (b"sglang:", sglang.SGLANG),
    (b"tgi_", tgi.TGI),
    (b"nv_", _TRITON_HERE),
    (b"trtllm_", _TRITON_HERE),
)


def recognise(bodies: Bodies) -> Collector:
    """The collector that understands the page.

    Raises:
        TelemetryError: ``no_metrics`` if none does.
    """
    page = b"\n" + bodies[METRICS]
    if not page.strip():
        return _SILENT
    for mark, collector in _MARKS:
        if b"\n" + mark in page or b"\n# TYPE " + mark in page:
            return collector
    raise TelemetryError("no_metrics", "no engine recognised on /metrics; set `engine` of the node")


def read(bodies: Bodies) -> Reading:
    """A reading by whichever collector understands the page."""
    return recognise(bodies).read(bodies)


AUTO = Collector(pages=(METRICS,), read=read, recognise=recognise)
