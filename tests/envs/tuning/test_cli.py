"""``ccr tune`` from the command line to a config the router accepts."""

import json

import pytest
import yaml
from click.testing import CliRunner

from ccr.errors import CCRError
from ccr.settings import parse
from envs.evaluation.choice import contender
from envs.tuning import cli
from envs.tuning.cli import tune
from tests.envs.evaluation import synthetic

QUICK = ("--scenarios", "calm", "--generations", "8", "--population", "6", "--seeds", "2", "--validation-seeds", "8", "--workers", "1")  # fmt: skip


def invoke(*arguments, engine=None):
    return CliRunner().invoke(tune, arguments, obj=engine or synthetic.an_engine(), catch_exceptions=True)


def test_better_weights_are_written_and_can_be_compared(tmp_path):
    out, json_to = tmp_path / "w.yaml", tmp_path / "w.json"

    result = invoke("base", *QUICK, "--out", str(out), "--json", str(json_to))

    assert result.exit_code == 0, result.output
    document = json.loads(json_to.read_text())
    assert document["verdict"] == "better"
    assert yaml.safe_load(out.read_text()) == {"policy": {"name": "base", "options": document["options"]}}
    assert contender(synthetic.an_engine(), f"base@{out}").options == document["options"]
    assert "# seeds.confirmation: 10000024 to 10000031" in out.read_text()
    assert f"ccr evaluate --policies base,base@{out}" in result.output
    assert document["manifest"]["generations"] == 8
    assert len(document["history"]) == 8


def test_weights_that_are_not_better_are_not_written(tmp_path):
    out = tmp_path / "w.yaml"

    result = invoke(
        "base", *QUICK, "--out", str(out), engine=synthetic.an_engine(synthetic.run_without_effect)
    )

    assert result.exit_code == 0
    assert "tie: keep the defaults" in result.output
    assert "was not written" in result.output
    assert not out.exists()


def test_a_router_takes_the_file_as_it_is(tmp_path):
    """Written for a policy that a router knows."""
    out = tmp_path / "w.yaml"
    engine = synthetic.an_engine(
        synthetic.run, policies=("base", "least_request"),
        tunable={"least_request": {"cold_start_penalty": synthetic.Between(0.5, 50.0, log=True)}},
        defaults=lambda _: {"cold_start_penalty": 4.0},
    )  # fmt: skip
    search = cli._search(engine, "least_request", ("calm",), cli.Blocks(0, 1, 1, 4), 4, 0)
    outcome = cli.Outcome({"cold_start_penalty": 8.1}, *(cli.Ratio(0.9, 0.8, 0.95, 0.001, -1, 8),) * 2, ())
    out.write_text(cli.as_config(search, outcome, {"command": "ccr tune: least_request", "x": "a\nb"}))

    settings = parse(out.read_bytes(), origin=str(out))

    assert (settings.policy.name, settings.policy.options) == ("least_request", {"cold_start_penalty": 8.1})


def test_ctrl_c_writes_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    out = tmp_path / "w.yaml"

    result = invoke("base", *QUICK, "--out", str(out))

    assert (result.exit_code, result.output) == (130, "interrupted: nothing was written\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("nobody",), "no policy is called 'nobody'", id="policy"),
        pytest.param(("half",), "policy 'half' has nothing to tune; these have: base", id="nothing to tune"),
        pytest.param(("base", "--suite", "tarin"), "no suite is called 'tarin' (did you mean 'train'?)", id="suite"),
        pytest.param(("base", "--out", "/no/such/place.yaml"), "there is no such directory; give --out", id="no place"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(monkeypatch, arguments, says):
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("it ran"))

    error = invoke(*arguments).exception

    assert isinstance(error, CCRError)
    assert says in str(error)


def test_ranges_that_name_no_option_of_the_policy_are_refused():
    error = invoke("base", *QUICK, engine=synthetic.an_engine(defaults=lambda _: {"weight": 2.0})).exception

    assert "policy 'base' has no option slope" in str(error)
