"""A claim is met by its stated rule only, what was not measured says so, and traces give days that share no request."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.claims import comparisons, facts
from benchmarks.claims.__main__ import main
from benchmarks.claims.claims import Claim, Field, judged, measured
from benchmarks.claims.days import Drawn, Named
from benchmarks.claims.page import page
from benchmarks.claims.play import KEPT, Contender, tuned
from benchmarks.claims.table import BEST, COST_ALONE, RETUNED, TABLE, Bar, Line, of_trace
from benchmarks.claims.traces import imported
from ccr.policies.learned import SHIPPED
from ccr.weights import load
from envs.evaluation.statistics import Ratio, geometric
from envs.traces.synth import CLASSES, Workload, draw
from envs.traces.trace import read, write
from rl.days import EXAM_SEEDS

BELOW_ONE = Bar(0.9, is_certain=True)


def a_ratio(value, low=None, high=None, n=20):
    return Ratio(value, low, high, None, 0, n)


@pytest.mark.parametrize(
    ("bar", "found", "met"),
    [
        pytest.param(Bar(0.9), a_ratio(0.9, 0.5, 1.4), True, id="the value counts, not the interval"),
        pytest.param(Bar(0.9), a_ratio(0.91, 0.9, 0.92), False, id="not enough"),
        pytest.param(BELOW_ONE, a_ratio(0.89, 0.8, 0.99), True, id="value and interval"),
        pytest.param(BELOW_ONE, a_ratio(0.89, 0.8, 1.01), False, id="the interval is not below 1"),
        pytest.param(BELOW_ONE, a_ratio(0.92, 0.9, 0.95), False, id="the interval alone does not do"),
        pytest.param(BELOW_ONE, a_ratio(0.5), False, id="no interval, nothing certain"),
        pytest.param(Bar(1.2, at_least=True), a_ratio(1.3, 0.9, 2.0), True, id="more is better"),
        pytest.param(Bar(1.2, at_least=True, is_certain=True), a_ratio(1.3, 0.9, 2.0), False, id="and certain"),
        pytest.param(Bar(0.9), a_ratio(None), None, id="not measured"),
    ],
)  # fmt: skip
def test_a_claim_is_met_by_its_rule_alone(bar, found, met):
    assert judged("a", "b", bar, found).met is met


def test_every_claim_has_a_name_of_its_own():
    names = [line.id for line in TABLE]

    assert len(names) == len(set(names))


# The learned policy and those it meets


class Known:
    """A bench whose figures are known: name of a contender -> its cost on three days."""

    def __init__(self, costs):
        self.costs = costs
        self.played = []

    def play(self, label, wanted):
        self.played += [who.name for _, who in wanted]

    def figures(self, days, contender, metric):
        return np.array(self.costs[contender.name])

    def ratio(self, days, new, old, metric):
        return geometric(self.figures(days, new, metric), self.figures(days, old, metric))

    def level(self, days, contender, metric):
        return geometric(self.figures(days, contender, metric), np.ones(3))


def a_field(**costs):
    bench = Known({name.replace("_at_", "@"): cost for name, cost in costs.items()})
    return bench, Field(bench, load(SHIPPED).network, None)


def test_the_best_heuristic_is_that_of_the_days_at_hand_and_is_named():
    bench, field = a_field(
        learned=[1.0, 2.0, 1.0], least_cost=[2.0, 4.0, 2.0], latency_predictor_at_tuned=[1.0, 3.0, 1.0],
        least_request_at_tuned=[9.0, 9.0, 9.0], least_work_at_tuned=[9.0, 9.0, 9.0],
    )  # fmt: skip

    (claim,) = measured(bench, field, [Line("x", "cost on x", Named("steady"), BEST, "cost", Bar(1.0))])

    assert claim.claim == "cost on x, latency_predictor@tuned"
    assert claim.value == pytest.approx((2 / 3) ** (1 / 3))


def test_a_level_is_the_learned_policy_alone():
    bench, field = a_field(learned=[0.98, 0.98, 0.98])

    (claim,) = measured(bench, field, [Line("x", "slo", Named("high"), "", "slo", Bar(0.97, at_least=True))])

    assert claim.met
    assert claim.value == pytest.approx(0.98)


def test_the_cost_alone_is_the_same_policy_without_its_network():
    _, field = a_field()
    line = next(line for line in TABLE if line.against == COST_ALONE)

    network = field.who(line).network

    np.testing.assert_array_equal(network.theta, field.learned.network.theta)
    np.testing.assert_array_equal(network.scalars, field.learned.network.scalars)
    assert not network.out.any()


def test_only_drawn_deployments_are_tuned_for():
    assert all(isinstance(line.days, Drawn) for line in TABLE if line.against == RETUNED)


def test_a_tuned_heuristic_has_the_weights_that_were_found_for_it():
    assert tuned("least_cost") == Contender("least_cost", "least_cost")
    assert tuned("latency_predictor").name == "latency_predictor@tuned"
    assert tuned("latency_predictor").make() != Contender("latency_predictor").make()


def test_figures_that_are_kept_can_be_asked_for():
    assert {line.metric for line in TABLE} <= set(KEPT)


# Days


def test_hidden_speeds_and_routers_are_as_asked_for():
    days = [Drawn(4, hidden=True).day(EXAM_SEEDS + k) for k in range(5)]

    assert all(day.replicas == 4 for day in days)
    assert all(node.is_hidden for day in days for node in day.nodes)


def test_a_level_of_load_can_be_asked_for():
    assert Drawn(regime="saturated").day(EXAM_SEEDS).name.startswith("random-saturated-")


def a_directory_of_traces(tmp_path, **workload):
    source, into = tmp_path / "source", tmp_path / "into"
    source.mkdir()
    into.mkdir()
    write(draw(Workload(duration_s=400.0, rate=3.0, **workload), 1), source / "day.csv.gz")
    return source, into


def test_stretches_of_a_trace_share_no_request_and_run_on_one_fleet(tmp_path):
    source, into = a_directory_of_traces(tmp_path)
    whole = read(source / "day.csv.gz")

    (windows,) = imported(source, into).windows

    parts = [read(path) for path in windows.files]
    assert len(parts) == 6
    assert sum(map(len, parts)) <= len(whole)
    assert all(part.span_s <= 66.7 for part in parts)
    assert {len(windows.day(EXAM_SEEDS + k).nodes) for k in range(6)} == {windows.nodes}
    assert windows.pairs(100) == 6
    assert [line.id for line in of_trace(windows)] == ["trace-day-cost", "trace-day-p99_s"]


def test_requests_that_no_node_can_hold_are_left_out_of_the_days(tmp_path):
    long = {name: lengths.__class__(30_000, 0.8, 200_000, 50, 0.5, 500) for name, lengths in CLASSES.items()}
    source, into = a_directory_of_traces(tmp_path, models=("chat-7b@1",), classes=long)

    (windows,) = imported(source, into).windows

    longest = max(int((part.prompt_tokens + part.output_tokens).max()) for part in map(read, windows.files))
    assert int(read(source / "day.csv.gz").prompt_tokens.max()) > longest > 50_000


def test_a_file_that_is_no_trace_is_named_with_the_reason(tmp_path):
    source, into = a_directory_of_traces(tmp_path)
    (source / "notes.csv").write_text("a,b\n1,2\n")

    assert "is none of the formats" in imported(source, into).left_out["notes.csv"]


# What is not played


def test_what_nobody_measured_is_not_measured():
    claims = [*facts.decisions(None), *facts.real_time(None), *comparisons.of_seeds([])]

    assert {claim.id for claim in claims} >= {
        "decide-8",
        "decide-64",
        "real-time-4-p99-article",
        "seeds-heuristic",
    }
    assert all(claim.met is None and claim.value is None for claim in claims)


def test_decision_times_are_those_of_the_learned_policy(tmp_path):
    path = tmp_path / "decide.json"
    rows = [{"nodes": 8, "policy": "least_cost", "p50_us": 1, "p99_us": 2}, {"nodes": 8, "policy": "learned", "p50_us": 12, "p99_us": 21}]  # fmt: skip
    path.write_text(json.dumps({"rows": rows}))

    eight, sixty_four = facts.decisions(path)

    assert (eight.value, eight.met) == (21, True)
    assert sixty_four.met is None


def test_real_time_compares_with_each_rival(tmp_path):
    path = tmp_path / "contest.json"
    rows = [
        {"nodes": 4, "policy": policy, "p99_ms": p99, "mean_ms": p99 / 4, "slo": slo}
        for policy, p99, slo in (("article", 4000, 0.8), ("least_cost", 2000, 0.95), ("learned", 2200, 0.96))
    ]
    path.write_text(json.dumps({"rows": rows}))

    met = {claim.id: claim.met for claim in facts.real_time(path)}

    assert met == {
        "real-time-4-p99-round_robin": None, "real-time-4-slo-round_robin": None,
        "real-time-4-p99-least_request": None, "real-time-4-slo-least_request": None,
        "real-time-4-p99-article": True, "real-time-4-slo-article": True,
        "real-time-4-p99-least_cost": False, "real-time-4-slo-least_cost": True,
    }  # fmt: skip


def test_the_least_lucky_seed_decides():
    good, bad = ({"value": v, "low": v - 0.1, "high": v + 0.1, "n": 9} for v in (0.8, 0.95))
    rows = [{"least_cost": good, "learned": good}, {"least_cost": bad, "learned": bad}]

    heuristic, spread = comparisons.of_seeds(rows)

    assert (heuristic.value, heuristic.met) == (0.95, False)
    assert spread.met


def test_the_weights_say_how_long_they_took():
    claim = facts.training(load(SHIPPED))

    assert claim.value == pytest.approx(load(SHIPPED).manifest["training"]["wall_s"] / 60)
    assert claim.met


# The page


def test_the_page_says_what_is_met_what_is_missed_and_what_nobody_measured():
    claims = [
        Claim("a", "one", "<= 0.9", 0.8, 0.7, 0.9, 20, True),
        Claim("b", "two", "<= 0.9", 0.95, 0.9, 1.0, 20, False),
        Claim("c", "three", "<= 0.9"),
        Claim("unshared-4", "four", "<= 0.93", 0.95, 0.9, 1.0, 20, False),
    ]
    cell = {"value": 0.9, "low": 0.8, "high": 1.1, "n": 20, "verdict": "tie"}
    document = {
        "facts": {"command": "x", "weights": "w", "commit": "c", "machine": "m", "days": 20, "left_out": {}},
        "regimes": [{"days": "steady", "least_cost": cell, COST_ALONE: cell}],
        "headroom": [{"days": "four", "one_ledger": cell}],
        "traces": [], "seeds": [], "sizes": {"numbers": 4_000},
    }  # fmt: skip

    text = page(document, claims)

    assert "1 of 4 bars are met, 1 were not measured." in text
    assert "| a | one | <= 0.9 | 0.800 | [0.700, 0.900] | 20 | yes |" in text
    assert "- `b`: 0.950 where <= 0.9 was wanted." in text
    assert "| c | three | <= 0.9 | - | - | - | not measured |" in text
    assert "| four | 20 | 0.900 [0.800, 1.100] | 0.855 |" in text
    assert "| steady | 20 | 0.900 [0.800, 1.100] | tie |" in text


def test_what_was_played_is_kept_and_what_files_tell_is_put_in(tmp_path):
    claims = [Claim("a", "one", "<= 0.9", 0.8, 0.7, 0.9, 20, True), *facts.decisions(None)]
    cell = {"value": 0.9, "low": 0.8, "high": 1.1, "n": 20, "verdict": "tie"}
    played = tmp_path / "played.json"
    played.write_text(json.dumps({
        "facts": {"command": "x", "weights": "w", "commit": "c", "machine": "m", "days": 20, "left_out": {}},
        "claims": [asdict(one) for one in claims], "regimes": [{"days": "steady", "least_cost": cell, COST_ALONE: cell}],
        "headroom": [], "traces": [], "seeds": [], "sizes": {},
    }))  # fmt: skip
    decide = tmp_path / "decide.json"
    decide.write_text(json.dumps({"rows": [{"nodes": 8, "policy": "learned", "p50_us": 12, "p99_us": 21}]}))

    done = CliRunner().invoke(
        main, ["--played", str(played), "--decide", str(decide), "--out", str(tmp_path)]
    )

    assert done.exception is None
    found = {one["id"]: one["value"] for one in json.loads((tmp_path / "results.json").read_text())["claims"]}
    assert found == {"a": 0.8, "decide-8": 21, "decide-64": None}
