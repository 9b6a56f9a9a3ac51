"""Which engine is it?"""

import pytest

from ccr.errors import TelemetryError
from ccr.types import Reading
from router.collectors import auto
from router.collectors.collector import METRICS, MODELS
from router.collectors.emulator import EMULATOR
from router.collectors.sglang import SGLANG
from router.collectors.tgi import TGI
from router.collectors.vllm import VLLM
from tests.router.collectors.pages import (
    EMULATOR_PAGE,
    SGLANG_PAGE,
    TGI_PAGE,
    TRITON_PAGE,
    TRTLLM_SERVE_PAGE,
    VLLM_PAGE,
    models,
)


@pytest.mark.parametrize(
    ("page", "collector"),
    [
        pytest.param(VLLM_PAGE, VLLM, id="vllm"),
        pytest.param(SGLANG_PAGE, SGLANG, id="sglang"),
        pytest.param(TGI_PAGE, TGI, id="tgi"),
        pytest.param(EMULATOR_PAGE, EMULATOR, id="emulator, which has vLLM's names too"),
        pytest.param(b"# TYPE sglang:token_usage gauge\n", SGLANG, id="declared, no sample yet"),
    ],
)
def test_an_engine_is_known_by_its_names(page, collector):
    assert auto.recognise({METRICS: page}) is collector


@pytest.mark.parametrize(("page", "waiting"), [(TRITON_PAGE, 6.0), (TRTLLM_SERVE_PAGE, 1.0)])
def test_triton_names_are_read_on_the_page_that_answered(page, waiting):
    assert auto.read({METRICS: page}).waiting == waiting


def test_an_engine_with_nothing_to_say_yet_is_in_rotation_by_its_models():
    assert auto.read({METRICS: b"", MODELS: models("qwen")}) == Reading(loaded=frozenset({"qwen"}))


@pytest.mark.parametrize(
    "page", [b"up 1\n", b"<html>vllm: not found</html>", b"see vllm:num_requests_running\n"]
)
def test_an_unknown_page_is_refused(page):
    with pytest.raises(TelemetryError, match="set `engine`") as refused:
        auto.recognise({METRICS: page})
    assert refused.value.reason == "no_metrics"
