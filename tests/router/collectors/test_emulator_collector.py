"""The emulated node."""

import pytest

from ccr.errors import TelemetryError
from ccr.types import Reading
from router.collectors import emulator
from router.collectors.collector import METRICS
from tests.router.collectors.pages import EMULATOR_PAGE, VLLM_PAGE


def test_a_page_makes_a_full_reading():
    assert emulator.read({METRICS: EMULATOR_PAGE}) == Reading(
        running=7.0,
        waiting=3.0,
        kv_used=0.25,
        gpu_free_gib=14.0,
        gpu_total_gib=24.0,
        gpu_util=0.875,
        loaded=frozenset({"chat@1"}),
        loading=frozenset({"chat@3"}),
        boot_id="b-7",
        load_s={"chat@1": 5.5},
    )


def test_no_series_of_a_model_means_an_empty_gpu():
    page = b"ccr_node_gpu_memory_total_bytes 25769803776\nccr_node_gpu_memory_used_bytes 0\n"

    reading = emulator.read({METRICS: page})

    assert (reading.loaded, reading.gpu_free_gib) == (frozenset(), 24.0)


def test_two_boot_ids_under_one_address_are_none():
    page = EMULATOR_PAGE + b'ccr_node_boot_info{boot_id="b-8"} 1\n'

    assert emulator.read({METRICS: page}).boot_id == ""


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        pytest.param(VLLM_PAGE, "no_metrics", id="a plain vLLM"),
        pytest.param(
            EMULATOR_PAGE + b"ccr_node_model_loaded 1\n", "malformed", id="a model without its label"
        ),
        pytest.param(
            EMULATOR_PAGE.replace(b"5.5", b"-5.5"), "negative", id="a load that took less than nothing"
        ),
    ],
)
def test_what_does_not_fit_is_refused(page, reason):
    with pytest.raises(TelemetryError) as refused:
        emulator.read({METRICS: page})
    assert refused.value.reason == reason
