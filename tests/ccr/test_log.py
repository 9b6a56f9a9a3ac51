import io
import json

import pytest
import structlog

from ccr import log


@pytest.fixture(autouse=True)
def _no_context_stays():
    yield
    structlog.contextvars.clear_contextvars()


def events(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_with_its_fields():
    stream = io.StringIO()
    log.configure("json", stream=stream)

    log.get("router").info("weights.swapped", version=12, age_s=3.2)

    (event,) = events(stream)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "weights.swapped",
        "level": "info",
        "source": "router",
        "version": 12,
        "age_s": 3.2,
    }


@pytest.mark.parametrize(
    ("level", "written"),
    [("debug", "debug info warning error"), ("info", "info warning error"), ("error", "error")],
)
def test_less_severe_events_are_not_written(level, written):
    stream = io.StringIO()
    log.configure("json", level=level, stream=stream)

    for name in ("debug", "info", "warning", "error"):
        getattr(log.get("router"), name)("node.seen")

    assert [event["level"] for event in events(stream)] == written.split()


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_is_written_whole(form):
    """Other threads write to the same stream: between two writes there would be room for theirs."""

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)

    written = []
    log.configure(form, stream=Stream())

    log.get("router").info("node.seen", node="a")

    assert len(written) == 1
    assert written[0].endswith("\n")


def test_an_exception_stays_on_its_line():
    stream = io.StringIO()
    log.configure("json", stream=stream)

    try:
        raise ConnectionError("refused")
    except ConnectionError:
        log.get("router").exception("node.failed")

    (event,) = events(stream)
    assert event["exception"].splitlines()[-1] == "ConnectionError: refused"


def test_a_line_break_in_a_field_does_not_make_a_second_event():
    stream = io.StringIO()
    log.configure("json", stream=stream)

    log.get("router").info("request.ended", model='x"}\n{"event": "forged')

    (event,) = events(stream)
    assert event["event"] == "request.ended"


def test_people_get_text_without_colours_in_a_file():
    stream = io.StringIO()
    log.configure("console", stream=stream)

    log.get("router").info("weights.swapped", version=12)

    assert "weights.swapped" in stream.getvalue()
    assert "version=12" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_people_get_tracebacks_too():
    stream = io.StringIO()
    log.configure("console", stream=stream)

    try:
        raise ConnectionError("refused")
    except ConnectionError:
        log.get("router").exception("node.failed")

    assert "ConnectionError" in stream.getvalue()


def test_the_last_configuration_counts_even_for_loggers_made_before():
    first, second = io.StringIO(), io.StringIO()
    log.configure("json", stream=first)
    logger = log.get("router")
    log.configure("json", stream=second)

    logger.info("node.seen")

    assert (first.getvalue(), len(events(second))) == ("", 1)


def test_bound_context_shows_in_every_event():
    stream = io.StringIO()
    log.configure("json", stream=stream)
    structlog.contextvars.bind_contextvars(request_id="r1")

    log.get("router").info("request.ended")

    assert events(stream)[0]["request_id"] == "r1"


def test_logs_go_to_standard_error_by_default(capsys):
    log.configure("json")

    log.get("router").info("node.seen")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "node.seen" in captured.err
