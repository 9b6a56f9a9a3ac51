import io
import json

import structlog

from ccr.types import Outcome
from router.request_log import RequestLog

LINE = {"event": "request.ended", "request_id": "r1", "outcome": Outcome.OK, "ttft_ms": None, "total_ms": 1.5}


def a_log(form="json", *, enabled=True):
    stream = io.StringIO()
    return RequestLog(enabled=enabled, form=form, stream=stream), stream


def test_each_request_is_one_line_of_json_in_order():
    log, stream = a_log()
    log.add(LINE)
    log.add({**LINE, "request_id": "line\nbreak"})

    log.flush()

    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first == {**LINE, "outcome": "ok"}
    assert second["request_id"] == "line\nbreak"


def test_nothing_is_written_before_the_flush_and_nothing_twice():
    log, stream = a_log()
    log.add(LINE)
    assert stream.getvalue() == ""

    log.flush()
    log.flush()

    assert len(stream.getvalue().splitlines()) == 1


def test_switched_off_it_keeps_and_writes_nothing():
    log, stream = a_log(enabled=False)
    log.add(LINE)

    log.flush()

    assert stream.getvalue() == ""


def test_for_people_the_lines_go_through_the_log_as_everything_else_does():
    log, stream = a_log("console")
    log.add(dict(LINE))

    with structlog.testing.capture_logs() as captured:
        log.flush()

    assert captured == [{**LINE, "source": "request", "log_level": "info"}]
    assert stream.getvalue() == ""
