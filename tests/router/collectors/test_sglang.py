"""SGLang."""

from ccr.types import Reading
from router.collectors import sglang
from router.collectors.collector import METRICS
from tests.router.collectors.pages import PAGES, SGLANG_PAGE


def test_a_page_and_its_models_make_a_reading():
    assert sglang.read(PAGES["sglang"]) == Reading(
        running=4.0, waiting=2.0, kv_used=0.5, loaded=frozenset({"qwen"})
    )


def test_tensor_parallel_ranks_are_not_counted_twice():
    other_rank = SGLANG_PAGE.replace(b'tp_rank="0"', b'tp_rank="1"')

    reading = sglang.read({METRICS: SGLANG_PAGE + other_rank})

    assert (reading.running, reading.waiting) == (4.0, 2.0)


def test_data_parallel_ranks_are_summed():
    page = b'sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 4\nsglang:num_running_reqs{dp_rank="1",tp_rank="0"} 5\n'

    assert sglang.read({METRICS: page}).running == 9.0


def test_a_server_that_has_not_served_yet_is_read_without_numbers():
    """It has no series before its first request, which it would never get if this were an error."""
    assert sglang.read({**PAGES["sglang"], METRICS: b""}) == Reading(loaded=frozenset({"qwen"}))
