"""``ccr policy gate`` from the command line to the verdict in the registry."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ccr.errors import CCRError
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import blank
from ccr.weights import save
from rl import gate_cli
from rl.gate_cli import gate
from tests.rl.gym import REGIMES, an_engine
from tests.weights import some_weights

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def judge(uri):
    """The command with one process."""

    def invoke(*arguments, engine=None):
        return CliRunner().invoke(
            gate, [*arguments, "--workers", "1", "--tracking-uri", uri], obj=engine or an_engine()
        )

    return invoke


@pytest.fixture
def half(registry, weights_file):
    """A version that takes half of the time."""
    return registry.get(registry.register(weights_file(1, version="half")))


def test_a_better_version_passes_and_keeps_its_verdict(judge, registry, half, tmp_path):
    done = judge("challenger", "--json", str(tmp_path / "verdict.json"))

    assert done.exit_code == 0, done.output
    assert "version 1 against the shipped weights (champion): ratios [95 % interval]" in done.stdout
    assert "version 1 against least_cost" in done.stdout
    assert "NOT MET" not in done.stdout
    assert done.stdout.endswith("version 1: pass\nkept with version 1; next: ccr policy promote 1\n")
    assert "9 regimes, 12 episodes each from seed" in done.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert registry.verdict(registry.get(1)) == verdict
    assert (verdict["passed"], verdict["suite"], verdict["sha256"]) == (True, "full", half.sha256)
    assert verdict["incumbent"] == {"kind": "champion", "version": ""}
    assert verdict["manifest"]["seeds"]["count"] == 12
    registry.promote(registry.get(1))


def test_a_version_that_is_worse_somewhere_fails_and_the_next_champion_is_still_the_old(
    judge, registry, weights_file
):
    registry.register(weights_file(1, version="mixed"))

    done = judge("1")

    assert done.exit_code == 1
    assert f"in no regime; it is in {REGIMES[4]}" in done.stdout
    assert "version 1: fail\nkept with version 1\n" in done.stdout
    with pytest.raises(CCRError, match="it did not pass"):
        registry.promote(registry.get(1))


def test_the_next_version_meets_the_champion(judge, registry, half, weights_file):
    registry.promote(half, "to begin with", force=True)
    registry.register(weights_file(2, version="three_per_cent"))

    done = judge("2")

    assert done.exit_code == 1
    assert "version 2 against version 1 (champion)" in done.stdout
    assert registry.get(2).gate["incumbent"] == {"kind": "champion", "version": "1"}


@pytest.mark.parametrize("incumbent", ["1", "champion"])
def test_the_champion_is_the_champion_by_whatever_name(judge, registry, half, weights_file, incumbent):
    registry.promote(half, "to begin with", force=True)
    registry.register(weights_file(2))

    judge("2", "--incumbent", incumbent)

    assert registry.get(2).gate["incumbent"] == {"kind": "champion", "version": "1"}


@pytest.mark.parametrize(
    ("incumbent", "who"),
    [
        pytest.param("slow", {"kind": "policy", "version": "slow"}, id="a policy"),
        pytest.param("FILE", {"kind": "weights", "version": "FILE"}, id="a file"),
        pytest.param("least_cost", {"kind": "policy", "version": "least_cost"}, id="the heuristic"),
    ],
)
def test_another_incumbent_is_possible_and_promotes_nothing(
    judge, registry, half, weights_file, incumbent, who
):
    file = str(weights_file(3, version="slow"))
    incumbent, who = (json.loads(json.dumps(one).replace("FILE", file)) for one in (incumbent, who))

    done = judge("1", "--incumbent", incumbent)

    assert done.exit_code == 0, done.output
    assert registry.get(1).gate["incumbent"] == who
    assert done.stdout.endswith("a promotion needs a verdict on 'full' against the champion\n")
    with pytest.raises(CCRError, match="not against the present champion"):
        registry.promote(registry.get(1))


def test_the_heuristic_as_incumbent_plays_once(judge, half):
    done = judge("1", "--incumbent", "least_cost")

    assert "2 policies" in done.stderr
    assert done.stdout.count("version 1 against least_cost") == 1


def test_on_fewer_regimes_there_are_more_episodes_of_each_and_no_promotion(judge, registry, half):
    done = judge("1", "--suite", "smoke")

    assert "2 regimes, 50 episodes each" in done.stderr
    assert "a promotion needs a verdict on 'full'" in done.stdout
    assert registry.get(1).gate["suite"] == "smoke"


def test_a_file_is_judged_and_nothing_is_kept(judge, registry, weights_file):
    done = judge(str(weights_file(1, version="half")))

    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("not kept: these weights are not registered\n")
    assert registry.versions() == []


@pytest.mark.parametrize(("wanted", "is_said"), [(700, True), (None, False)])
def test_where_more_episodes_may_settle_it_their_number_is_said(
    judge, weights_file, monkeypatch, wanted, is_said
):
    monkeypatch.setattr(gate_cli, "episodes_wanted", lambda judged, episodes: wanted)

    done = judge(str(weights_file(1, version="mixed")))

    assert done.exit_code == 1
    assert ("undecided rather than lost: --episodes 700 may settle it" in done.stdout) is is_said


@pytest.mark.prove
@pytest.mark.timeout(900)  # the simulator may have to be compiled
def test_in_the_real_simulator_tuned_weights_beat_the_articles_score(registry, uri, tmp_path):
    save(some_weights(blank(np.array(LeastCost().theta))), tmp_path / "tuned.npz")
    number = registry.register(tmp_path / "tuned.npz")
    arguments = (str(number), "--incumbent", "article", "--heuristic", "least_request", "--suite", "smoke")

    done = CliRunner().invoke(gate, [*arguments, "--tracking-uri", uri])

    assert done.exit_code == 0, done.output
    assert registry.get(number).gate["against_heuristic"]["high"] < 0.9


def test_the_same_question_has_the_same_answer(judge, weights_file, tmp_path):
    path = str(weights_file(1, version="half"))
    answers = []
    for name in ("a.json", "b.json"):
        judge(path, "--json", str(tmp_path / name))
        answers.append(json.loads((tmp_path / name).read_text())["regimes"])

    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("7",), "no version '7'", id="version"),
        pytest.param(("/nowhere.npz",), "cannot read weights /nowhere.npz", id="file"),
        pytest.param(("1", "--incumbent", "nobody"), "no version 'nobody'", id="incumbent"),
        pytest.param(("1", "--heuristic", "least_cots"), "no policy is called 'least_cots' (did you mean 'least_cost'?)", id="heuristic"),
        pytest.param(("1", "--suite", "ful"), "no suite is called 'ful'", id="suite"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_before_anything_runs(judge, half, arguments, says):
    done = judge(*arguments)

    assert isinstance(done.exception, CCRError)
    assert says in str(done.exception)
    assert "runs" not in done.stderr


def test_fewer_episodes_than_a_verdict_needs_are_not_offered(judge, half):
    done = judge("1", "--episodes", "99")

    assert done.exit_code == 2
    assert "99 is not in the range x>=100" in done.output


def test_an_interrupted_gate_has_no_verdict(judge, registry, half, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gate_cli, "played", interrupted)

    done = judge("1")

    assert (done.exit_code, done.stdout) == (130, "interrupted: there is no verdict\n")
    assert registry.get(1).gate == {}
