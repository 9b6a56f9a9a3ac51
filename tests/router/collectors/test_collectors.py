"""What holds for every line of the table, and for the next one."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import TelemetryError
from ccr.types import Reading
from router.collectors import COLLECTORS
from router.collectors.collector import REASONS
from tests.router.collectors.pages import PAGES

every_collector = pytest.mark.parametrize("engine", sorted(COLLECTORS))


def assert_is_sound(reading: Reading) -> None:
    for count in (reading.running, reading.waiting):
        assert count is None or 0.0 <= count <= 1e6
    for share in (reading.kv_used, reading.gpu_util):
        assert share is None or 0.0 <= share <= 1.0
    if reading.gpu_free_gib is not None:
        assert 0.0 <= reading.gpu_free_gib <= reading.gpu_total_gib < math.inf
    assert all(0.0 <= seconds < math.inf for seconds in reading.load_s.values())


def with_metrics(engine, page):
    return {**PAGES[engine], COLLECTORS[engine].metrics: page}


@every_collector
def test_its_page_is_read(engine):
    reading = COLLECTORS[engine].read(PAGES[engine])

    assert_is_sound(reading)
    assert reading.waiting is not None
    assert reading.loaded


@every_collector
def test_the_metrics_page_is_fetched_at_every_poll_and_must_come(engine):
    metrics = COLLECTORS[engine].metrics

    assert (metrics.every, metrics.optional) == (1, False)


@every_collector
def test_a_metrics_page_alone_is_enough(engine):
    metrics = COLLECTORS[engine].metrics

    assert_is_sound(COLLECTORS[engine].read({metrics: PAGES[engine][metrics]}))


WAITING = {
    "vllm": b"vllm:num_requests_waiting",
    "sglang": b"sglang:num_queue_reqs",
    "tgi": b"tgi_queue_size",
    "triton": b"nv_inference_pending_request_count",
    "trtllm": b"trtllm_num_requests_waiting",
    "emulator": b"vllm:num_requests_waiting",
    "auto": b"vllm:num_requests_waiting",
}


@every_collector
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"NaN", "not_finite"),
        (b"+Inf", "not_finite"),
        (b"1e999", "not_finite"),
        (b"-1", "negative"),
        (b"1e308", "out_of_range"),
        (b"1000001", "out_of_range"),
        (b"many", "malformed"),
    ],
)
def test_one_bad_sample_refuses_the_whole_reading(engine, value, reason):
    page = PAGES[engine][COLLECTORS[engine].metrics] + WAITING[engine] + b'{extra="1"} ' + value + b"\n"

    with pytest.raises(TelemetryError) as refused:
        COLLECTORS[engine].read(with_metrics(engine, page))
    assert refused.value.reason == reason


@every_collector
@pytest.mark.parametrize(
    "page", [b"garbage", b"<html></html>", b"\x00\xff\xfe", b'{"error": "not found"}', b"up 1\n"]
)
def test_a_page_of_nothing_we_know_is_refused(engine, page):
    with pytest.raises(TelemetryError) as refused:
        COLLECTORS[engine].read(with_metrics(engine, page))
    assert refused.value.reason == "no_metrics"


@every_collector
def test_a_page_that_is_too_long_is_refused(engine):
    page = PAGES[engine][COLLECTORS[engine].metrics] + b"#" * (10 << 20)

    with pytest.raises(TelemetryError) as refused:
        COLLECTORS[engine].read(with_metrics(engine, page))
    assert refused.value.reason == "too_large"


@every_collector
@given(data=st.data())
def test_no_bytes_raise_anything_but_a_telemetry_error(engine, data):
    """A page of ours with a piece cut out and something put in, or just bytes."""
    collector = COLLECTORS[engine]
    bodies = {}
    for page in collector.pages:
        good = PAGES[engine].get(page, b"")
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(good))] * 2)))
        bodies[page] = good[:start] + data.draw(st.binary(max_size=30)) + good[end:]

    with contextlib.suppress(TelemetryError):
        assert_is_sound(collector.read(bodies))


@pytest.mark.parametrize(
    ("engine", "page"),
    [(engine, page) for engine, c in COLLECTORS.items() for page in c.pages if page != c.metrics],
)
@given(body=st.binary(max_size=200))
def test_a_reading_with_a_bad_page_beside_the_metrics_is_refused_by_a_known_reason(engine, page, body):
    with pytest.raises(TelemetryError) as refused:
        COLLECTORS[engine].read({**PAGES[engine], page: b"\x00" + body})
    assert refused.value.reason in REASONS


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"data": [{"id": 7}]}', id="an id that is no text"),
        pytest.param(b'{"data": [{"id": ""}]}', id="an empty id"),
        pytest.param(b'{"data": [{"id": "%s"}]}' % (b"x" * 257), id="an id without end"),
        pytest.param(b'{"data": null}', id="no list"),
        pytest.param(b'{"data": [{"id": "\xff"}]}', id="not UTF-8"),
        pytest.param(b"<html>", id="no JSON"),
    ],
)
def test_a_list_of_models_that_is_none_is_malformed(body):
    page = COLLECTORS["vllm"].pages[1]

    with pytest.raises(TelemetryError) as refused:
        COLLECTORS["vllm"].read({**PAGES["vllm"], page: body})
    assert refused.value.reason == "malformed"


def test_a_list_of_too_many_models_is_refused():
    ids = b",".join(b'{"id": "m%d"}' % n for n in range(1_001))

    with pytest.raises(TelemetryError) as refused:
        COLLECTORS["vllm"].read({**PAGES["vllm"], COLLECTORS["vllm"].pages[1]: b'{"data": [%s]}' % ids})
    assert refused.value.reason == "too_large"
