"""wrk as a generator: its script and its words."""

from pathlib import Path

import pytest

from benchmarks import wrk

OUTPUT = """Running 1s test @ http://127.0.0.1:9000/route
RESULT {"requests":1000,"duration_us":2000000,"status":100,"socket":3,"p50_us":500,"p99_us":1500,"max_us":9000}
"""


def test_only_good_answers_count():
    result = wrk.parse(OUTPUT)

    assert result["answered"] == 900
    assert result["rate_per_s"] == 450.0
    assert result["failed"] == 103


def test_latencies_are_in_milliseconds():
    assert wrk.parse(OUTPUT)["latency_ms"] == {"p50": 0.5, "p99": 1.5, "max": 9.0}


def test_no_result_is_an_error_with_what_was_printed():
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:9000")


def test_the_script_sends_the_body_as_it_is(tmp_path):
    command = wrk.command("wrk", tmp_path, 9000, "/route", '{"a":"]]\\n"}', 1)

    assert '[==[{"a":"]]\\n"}]==]' in Path(command[command.index("-s") + 1]).read_text()


def test_a_body_that_would_end_the_script_string_is_refused(tmp_path):
    with pytest.raises(ValueError, match="would end the script"):
        wrk.command("wrk", tmp_path, 9000, "/route", "]==]", 1)
