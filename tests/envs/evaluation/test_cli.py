"""``ccr evaluate`` from the command line to the files it writes."""

import json
from collections import Counter

import pytest
from click.testing import CliRunner

from ccr.errors import CCRError
from envs.evaluation import cli
from envs.evaluation.cli import evaluate
from envs.evaluation.metrics import METRICS
from tests.envs.evaluation.synthetic import an_engine

QUICK = ("--policies", "base,half,same", "--scenarios", "calm,rush", "--seeds", "4", "--workers", "1")


def invoke(*arguments, engine=None):
    return CliRunner().invoke(evaluate, arguments, obj=engine or an_engine(), catch_exceptions=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One comparison: what was printed, and the document."""
    out = tmp_path_factory.mktemp("out")
    result = invoke(
        *QUICK, "--metric", "cost,p99_s", "--json", str(out / "a.json"), "--html", str(out / "a.html")
    )
    assert result.exit_code == 0, result.output
    return result.output, json.loads((out / "a.json").read_text()), (out / "a.html").read_text()


def test_the_table_has_a_part_per_scenario_and_the_average(done):
    printed, _, _ = done

    assert "calm  (4 seeds)" in printed
    assert "rush  (4 seeds)" in printed
    assert "all scenarios, each with the same weight" in printed
    assert "p99 ratio" in printed
    assert "4 comparisons: expect 0.2 better or worse by chance alone" in printed
    for line in printed.splitlines():
        if line.startswith(" half"):
            assert line.rstrip().endswith("better")


def test_the_rows_of_the_document(done):
    _, document, _ = done
    rows = document["rows"]

    assert len(rows) == 2 * 3 * len(METRICS)
    assert {"scenario", "policy", "metric", "value", "ratio", "ratio_low", "ratio_high", "n"} <= set(rows[0])
    assert Counter(row["policy"] for row in rows) == dict.fromkeys(["base", "half", "same"], 2 * len(METRICS))
    half = next(row for row in rows if (row["scenario"], row["policy"], row["metric"]) == ("calm", "half", "cost"))  # fmt: skip
    assert half["ratio_low"] < half["ratio"] < half["ratio_high"] < 1.0
    assert (half["n"], half["verdict"]) == (4, "better")


def test_the_manifest_says_how_to_do_it_again(done):
    _, document, _ = done
    manifest = document["manifest"]

    assert manifest["baseline"] == "base"
    assert manifest["scenarios"] == ["calm", "rush"]
    assert manifest["seeds"] == {"base": 0, "count": 4}
    assert manifest["policies"]["half"] == {"policy": "half", "options": {}}
    assert set(manifest) >= {"command", "commit", "versions", "machine", "when"}
    assert manifest["machine"]["cpu_count"] >= 1
    assert {"ccr-autopilot", "python", "numpy"} <= set(manifest["versions"])


def test_the_report_is_written(done):
    _, _, page = done

    assert page.startswith("<!doctype html>")


def test_the_document_has_no_nan(tmp_path):
    out = tmp_path / "a.json"

    result = invoke("--policies", "base,hopeless", "--scenarios", "calm", "--seeds", "2", "--workers", "1", "--json", str(out))  # fmt: skip

    assert result.exit_code == 0
    assert "NaN" not in out.read_text()
    assert any(row["value"] is None for row in json.loads(out.read_text())["rows"])


def test_ctrl_c_before_anything_is_finished_still_ends_well(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "_run", lambda run, plan, workers: [])
    out = tmp_path / "a.json"

    result = invoke(*QUICK, "--json", str(out), "--html", str(tmp_path / "a.html"))

    assert result.exit_code == 130
    assert "interrupted after 0 of 24 runs" in result.output
    assert json.loads(out.read_text())["rows"] == []


def test_one_seed_says_that_it_is_not_enough():
    result = invoke("--policies", "base,half", "--scenarios", "calm", "--seeds", "1", "--workers", "1")

    assert "One seed has no interval and no verdict" in result.output


@pytest.mark.parametrize(
    ("arguments", "scenarios", "seeds"),
    [
        pytest.param((), ("calm", "rush"), range(6), id="the smoke suite"),
        pytest.param(("--scenarios", "rush"), ("rush",), range(20), id="named scenarios"),
        pytest.param(("--suite", "train", "--seeds", "3"), ("calm", "rush"), range(3), id="another suite"),
        pytest.param(("--seed-base", "100"), ("calm", "rush"), range(100, 106), id="other seeds"),
    ],
)
def test_what_runs(monkeypatch, arguments, scenarios, seeds):
    plans = []
    monkeypatch.setattr(cli, "_run", lambda run, plan, workers: plans.append(plan) or [])

    invoke(*arguments)

    assert (plans[0].scenarios, plans[0].seeds) == (scenarios, seeds)


def test_seeds_of_training_are_pointed_out(monkeypatch):
    monkeypatch.setattr(cli, "_run", lambda run, plan, workers: [])

    assert "are for training" in invoke("--seed-base", "10000000").output
    assert "are for training" not in invoke("--seed-base", "9999000").output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("--policies", "nobody"), "no policy is called 'nobody'; there are base", id="policy"),
        pytest.param(("--scenarios", "nowhere"), "no scenario is called 'nowhere'; there are calm", id="scenario"),
        pytest.param(("--metric", "speed"), "no metric is called 'speed'; there are cost", id="metric"),
        pytest.param(("--json", "/no/such/place.json"), "there is no directory /no/such", id="no place"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(monkeypatch, arguments, says):
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("it ran"))

    error = invoke(*arguments).exception

    assert isinstance(error, CCRError)
    assert says in str(error)
