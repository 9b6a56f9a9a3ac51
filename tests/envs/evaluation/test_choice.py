"""What does not exist is refused with what does."""

import pytest

from ccr.errors import ConfigError, WeightsError
from ccr.weights import save
from envs.evaluation.choice import contender, scenario_names, the_plan
from tests.envs.evaluation.synthetic import an_engine
from tests.weights import some_weights

ENGINE = an_engine()


def a_plan(policies=("base", "half"), baseline=""):
    return the_plan(ENGINE, policies, ("calm",), baseline, range(2))


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        pytest.param(lambda: a_plan(["bass"]), "no policy is called 'bass' (did you mean 'base'?); there are base, same", id="policy"),
        pytest.param(lambda: a_plan(baseline="x"), "no policy is called 'x'; there are", id="baseline"),
        pytest.param(lambda: scenario_names(ENGINE, None, ["calm", "clam"], None), "no scenario is called 'clam' (did you mean 'calm'?)", id="scenario"),
        pytest.param(lambda: scenario_names(ENGINE, "smok", [], None), "no suite is called 'smok' (did you mean 'smoke'?)", id="suite"),
        pytest.param(lambda: a_plan(["base", "half", "base"]), "name each policy once: base came twice", id="twice"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_refused_in_words(ask, says):
    with pytest.raises(ConfigError) as refused:
        ask()

    assert says in str(refused.value)


def test_all_policies_when_none_is_named():
    assert a_plan(()).labels == ENGINE.policies


@pytest.mark.parametrize(
    ("policies", "baseline", "is_"),
    [
        pytest.param(("half", "base"), "", "half", id="the first"),
        pytest.param(("half", "hot_cold"), "", "hot_cold", id="the usual one"),
        pytest.param(("half", "base"), "base", "base", id="the one that was named"),
    ],
)
def test_the_baseline(policies, baseline, is_):
    engine = an_engine(policies=("base", "half", "hot_cold"))

    assert the_plan(engine, policies, ("calm",), baseline, range(2)).baseline == is_


def test_a_baseline_that_was_not_listed_joins():
    assert a_plan(("half",), "base").labels == ("base", "half")


def test_a_suite_named_scenarios_and_a_trace_add_up(tmp_path):
    trace = tmp_path / "day.csv"

    assert scenario_names(ENGINE, None, ["rush"], trace) == ("rush", f"trace:{trace}")
    assert scenario_names(ENGINE, "smoke", [], None) == ("calm", "rush")


def test_options_come_from_a_config(tmp_path):
    path = tmp_path / "tuned.yaml"
    path.write_text("policy: {name: base, options: {weight: 3, slope: 0.5}}")

    one = contender(ENGINE, f"base@{path}")

    assert (one.label, one.policy, one.options) == ("base@tuned", "base", {"weight": 3.0, "slope": 0.5})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(None, "cannot read the options of 'base'", id="no file"),
        pytest.param("{", "cannot read the options of 'base'", id="no YAML"),
        pytest.param("weight: 3", "has no `policy.options`", id="something else"),
        pytest.param("policy: {name: half, options: {a: 1}}", "has options of 'half', not of 'base'", id="another's"),
        pytest.param("policy: {name: base, options: {weight: heavy}}", "option 'weight' is 'heavy'", id="no number"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_read_are_refused(tmp_path, text, says):
    path = tmp_path / "tuned.yaml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ConfigError, match=says):
        contender(ENGINE, f"base@{path}")


# -- weights


LEARNING = an_engine(policies=("base", "learned"))


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "mine.npz"
    save(some_weights(), path)
    return path


def test_weights_are_those_of_the_file_wherever_the_run_is(weights_file, monkeypatch):
    monkeypatch.chdir(weights_file.parent)

    one = contender(LEARNING, "learned@mine.npz")

    assert (one.label, one.policy, one.options) == ("learned@mine", "learned", {"weights": str(weights_file)})


def test_weights_may_come_from_a_config(weights_file, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"policy: {{name: learned, options: {{weights: {weights_file}}}}}")

    one = contender(LEARNING, f"learned@{path}")

    assert (one.label, one.options) == ("learned@config", {"weights": str(weights_file)})


def test_weights_and_the_shipped_ones_are_two(weights_file):
    plan = the_plan(LEARNING, ("learned", f"learned@{weights_file}"), ("calm",), "", range(2))

    assert plan.labels == ("learned", "learned@mine")


def test_weights_are_tried_before_anything_runs(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"")

    for text in (f"learned@{tmp_path / 'bad.npz'}", "learned@/nowhere.npz"):
        with pytest.raises(WeightsError):
            contender(LEARNING, text)


def test_only_the_learned_policy_has_weights(weights_file):
    with pytest.raises(ConfigError, match=r"'base' takes no weights; write learned@.*mine\.npz"):
        contender(LEARNING, f"base@{weights_file}")
