"""Triton, plain and with TensorRT-LLM."""

import pytest

from ccr.errors import TelemetryError
from ccr.types import Reading
from router.collectors import triton
from tests.router.collectors.pages import PAGES, TRITON_PAGE, TRITON_TRTLLM_PAGE, TRTLLM_SERVE_PAGE


def test_plain_triton_sums_models_and_gpus_and_does_not_know_what_runs():
    assert triton.read(PAGES["triton"]) == Reading(
        running=None,
        waiting=6.0,
        gpu_free_gib=38.0,
        gpu_total_gib=48.0,
        gpu_util=0.75,
        loaded=frozenset({"resnet", "resnet@1"}),
    )


@pytest.mark.parametrize(
    ("page", "running", "waiting", "kv_used"),
    [
        pytest.param(TRITON_TRTLLM_PAGE, 8.0, 3.0, 0.75, id="TensorRT-LLM backend"),
        pytest.param(TRTLLM_SERVE_PAGE, 6.0, 1.0, 0.125, id="trtllm-serve"),
    ],
)
def test_the_names_of_tensorrt_llm_are_read(page, running, waiting, kv_used):
    assert triton.gauges(page, loaded=None) == Reading(running=running, waiting=waiting, kv_used=kv_used)


def test_without_the_index_the_models_are_unknown():
    assert triton.read({triton.METRICS: TRITON_PAGE}).loaded is None


def test_more_memory_used_than_there_is_is_refused():
    page = TRITON_PAGE.replace(b"10737418240", b"99999999999")

    with pytest.raises(TelemetryError, match="GiB used of") as refused:
        triton.read({triton.METRICS: page})
    assert refused.value.reason == "out_of_range"
