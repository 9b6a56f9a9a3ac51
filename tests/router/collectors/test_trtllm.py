"""trtllm-serve."""

from ccr.types import Reading
from router.collectors import trtllm
from tests.router.collectors.pages import PAGES


def test_a_page_and_its_models_make_a_reading():
    assert trtllm.read(PAGES["trtllm"]) == Reading(
        running=6.0, waiting=1.0, kv_used=0.125, loaded=frozenset({"llama"})
    )


def test_the_text_format_is_asked_for_where_the_server_has_it():
    assert trtllm.TRTLLM.metrics.path == "/prometheus/metrics"
