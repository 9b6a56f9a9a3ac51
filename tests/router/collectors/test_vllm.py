"""vLLM, current and legacy."""

from ccr.types import Reading
from router.collectors import vllm
from router.collectors.collector import METRICS, MODELS
from tests.router.collectors.pages import PAGES, VLLM_PAGE, models


def read(text, **more):
    return vllm.read({METRICS: text, **more})


def test_a_page_and_its_models_make_a_reading():
    assert vllm.read(PAGES["vllm"]) == Reading(
        running=7.0,
        waiting=3.0,
        kv_used=0.25,
        loaded=frozenset({"llama", "llama-lora"}),
        boot_id="1763770000.25",
    )


def test_the_legacy_name_of_kv_use_is_read():
    reading = read(b'vllm:gpu_cache_usage_perc{model_name="llama"} 0.5\n')

    assert reading.kv_used == 0.5


def test_the_current_name_of_kv_use_wins_over_the_legacy_one():
    reading = read(b"vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n")

    assert reading.kv_used == 0.25


def test_engines_and_models_of_one_process_are_summed_and_the_fullest_cache_counts():
    page = b"".join(
        b'vllm:num_requests_running{engine="%d",model_name="%s"} %d\nvllm:kv_cache_usage_perc{engine="%d"} 0.%d\n'
        % (engine, model, running, engine, running)
        for engine, model, running in [(0, b"a", 1), (1, b"a", 2), (0, b"b", 4)]
    )

    reading = read(page)

    assert (reading.running, reading.kv_used) == (7.0, 0.4)


def test_without_a_list_of_models_the_labels_tell():
    assert read(VLLM_PAGE).loaded == {"llama"}


def test_without_list_and_labels_the_models_are_unknown():
    assert read(b"vllm:num_requests_running 1\n").loaded is None


def test_an_empty_list_of_models_is_no_models():
    assert vllm.read({METRICS: VLLM_PAGE, MODELS: models()}).loaded == frozenset()


def test_memory_of_the_gpu_is_not_told():
    reading = read(VLLM_PAGE)

    assert (reading.gpu_free_gib, reading.gpu_total_gib, reading.gpu_util) == (None, None, None)


def test_a_restart_changes_the_boot_id():
    later = VLLM_PAGE.replace(b"1.76377000025e+09", b"1.76377100025e+09")

    assert read(VLLM_PAGE).boot_id != read(later).boot_id


def test_several_processes_in_one_page_have_no_boot_id():
    page = VLLM_PAGE + b'process_start_time_seconds{pid="2"} 5\n'

    assert read(page).boot_id == ""
