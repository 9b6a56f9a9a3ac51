"""What a reader sees: verdicts, doubts, tables."""

from dataclasses import asdict

import pytest

from benchmarks.measures import Measured, in_turn
from benchmarks.report import TARGETS, document, judged, notes, render
from benchmarks.stats import Spread
from benchmarks.systems import System

ABOUT = {
    "machine": {"cpu": "a core", "cores": 2, "load_average_at_start": 0.1},
    "commit": "abc",
    "python": "3.11",
    "command": "python -m benchmarks.bench",
}


def a_measure(name="route", reference="nginx", system="router", **metrics):
    rows = {metric: asdict(Spread.of([value])) for metric, value in metrics.items()}
    return {name: {"what": "", "reference": reference, "systems": {system: rows}}}


def verdict(measures, measure, metric):
    return next(v["met"] for v in judged(measures) if (v["measure"], v["metric"]) == (measure, metric))


@pytest.mark.parametrize(
    ("measures", "measure", "metric", "met"),
    [
        pytest.param(a_measure(rate_per_s=20_000), "route", "rate_per_s", True, id="just enough"),
        pytest.param(a_measure(rate_per_s=19_999), "route", "rate_per_s", False, id="not enough"),
        pytest.param(
            a_measure("latency", added_p50_ms=0.41), "latency", "added_p50_ms", False, id="too slow"
        ),
        pytest.param(a_measure(ratio=0.9, reference="floor"), "route", "ratio", None, id="another reference"),
        pytest.param({}, "route", "ratio", None, id="not measured"),
    ],
)
def test_targets_are_judged_by_the_median_and_only_beside_their_reference(measures, measure, metric, met):
    assert verdict(measures, measure, metric) is met


def test_every_target_is_in_the_report():
    assert len(judged({})) == len(TARGETS)


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        pytest.param({"rate_per_s": 9, "server_busy": 0.5, "core_idle": 0.5}, "set the pace", id="load side"),
        pytest.param({"rate_per_s": 9, "server_busy": 0.5, "core_idle": 0.0}, "not quiet", id="neighbours"),
        pytest.param(
            {"rate_per_s": 9, "server_busy": 1.0, "generator_busy": 0.95}, "it is the limit", id="gen"
        ),
        pytest.param({"server_busy": 0.2, "core_idle": 0.0}, "took 80% of its core", id="neighbours, open"),
        pytest.param({"failed": 3}, "3 requests of a run failed", id="failures"),
        pytest.param({"rate_per_s": 9}, "the ceiling of nodes", id="direct"),
    ],
)
def test_numbers_that_describe_something_else_carry_a_note(metrics, note):
    assert any(note in line for line in notes(a_measure(**metrics)))


def test_a_saturated_server_on_a_quiet_machine_needs_no_note():
    assert notes(a_measure(rate_per_s=9, server_busy=0.99, core_idle=0.0, failed=0)) == []


def test_a_server_with_time_to_spare_in_an_open_loop_needs_no_note():
    assert notes(a_measure(p50_ms=0.5, server_busy=0.2, core_idle=0.78, failed=0)) == []


def test_the_table_shows_medians_with_their_spread_and_the_ratio_by_name():
    repeats = tuple(
        {"router": {"rate_per_s": rate, "ratio": rate / 100_000, "server_busy": 1.0}}
        for rate in (20_000, 25_000, 22_000)
    )

    text = render(document(ABOUT, [Measured("route", "decisions", "nginx", "rate_per_s", repeats)]))

    assert "per s x nginx" in text
    assert "22,000 (20,000 - 25,000)" in text
    assert "0.22 (0.2 - 0.25)" in text
    assert "pass" in text


def test_every_other_round_goes_backwards():
    asked = []
    systems = [System("a", (1,)), System("b", (2,))]

    rounds = list(in_turn(systems, 3, lambda system: asked.append(system.name) or {"n": 1.0}))

    assert asked == ["a", "b", "b", "a", "a", "b"]
    assert [set(each) for each in rounds] == [{"a", "b"}] * 3
