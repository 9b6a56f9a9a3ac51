"""Versions, aliases and verdicts are kept by MLflow; the champion moves only where it may, and every move is on record."""

import json
from pathlib import Path

import numpy as np
import pytest

from ccr import weights
from ccr.errors import WeightsError
from rl.registry import MODEL, Registry
from rl.versions import CHALLENGER, CHAMPION, RegistryError, RunFacts
from tests.rl.verdicts import MANIFEST, a_verdict
from tests.weights import a_network

pytestmark = pytest.mark.timeout(120)  # MLflow is large, and machines are shared


@pytest.fixture
def version(registry, weights_file):
    """The first one."""
    return registry.get(registry.register(weights_file(1)))


def client_of(registry):
    return registry._tracking._client


def passed(registry, number):
    """The version after a verdict against whoever is champion now."""
    version, champion = registry.get(number), registry.champion()
    registry.store_verdict(version, a_verdict(version, champion=str(champion.number) if champion else ""))
    return registry.get(number)


# -- versions


def test_what_was_registered_is_the_challenger(registry, weights_file):
    path = weights_file(1, version="first")

    number = registry.register(path)

    (version,) = registry.versions()
    assert (
        (version.number, version.label, version.aliases)
        == (number, "first", (CHALLENGER,))
        == (1, "first", (CHALLENGER,))
    )
    assert version.sha256 == weights.load(path).sha256
    assert version.gate == {}
    assert registry.champion() is None


def test_the_weights_come_back(registry, weights_file, version):
    weights_file(1).unlink()

    found = weights.load(registry.fetch(version))

    np.testing.assert_array_equal(found.network.out, a_network(1).out)
    assert found.manifest["training"]["seeds"] == [1, 2]


def test_they_are_fetched_once(registry, version):
    """Also where the artefacts are far away."""
    first = registry.fetch(version)
    for artefact in Path(registry.uri.removeprefix("sqlite:///")).parent.rglob("weights.npz"):
        artefact.unlink()

    assert registry.fetch(version) == first


def test_what_the_run_told_is_kept(registry, weights_file, tmp_path):
    (tmp_path / "report.html").write_text("<p>")
    curve = list(np.linspace(2.0, 1.0, 1200))
    params = {f"p{i}": i for i in range(150)} | {"long": "x" * 10_000}
    facts = RunFacts(params, {"cost": 0.9}, {"loss": curve}, [tmp_path / "report.html"], "a night")

    version = registry.get(registry.register(weights_file(), facts))

    run = registry.run_of(version)
    assert run["params"]["p149"] == "149"
    assert run["params"]["training.seeds"] == "[1, 2]"
    assert len(run["params"]["long"]) == 5_000
    assert run["metrics"] == {"cost": 0.9, "loss": 1.0}
    history = client_of(registry).get_metric_history(version.run_id, "loss")
    assert [point.value for point in history] == curve
    assert [point.path for point in client_of(registry).list_artifacts(version.run_id, "report")] == [
        "report/report.html"
    ]
    assert client_of(registry).get_run(version.run_id).info.run_name == "a night"


def test_a_version_is_found_by_number_and_alias(registry, weights_file, version):
    registry.register(weights_file(2))

    assert registry.get(1).number == registry.get("1").number == registry.get("v1").number == 1
    assert registry.get(CHALLENGER).number == 2
    assert [one.number for one in registry.versions()] == [1, 2]


def test_a_version_that_is_not_there_is_refused_with_those_that_are(registry, version):
    with pytest.raises(
        RegistryError, match=r"no version '7' of ccr-policy at .*; versions: 1; aliases: challenger"
    ):
        registry.get(7)


def test_looking_at_an_empty_registry_makes_nothing(tmp_path):
    registry = Registry(f"sqlite:///{tmp_path}/nowhere/mlflow.db")

    assert (registry.versions(), registry.champion(), registry.history()) == ([], None, [])
    with pytest.raises(RegistryError, match="versions: none yet: `ccr train` registers"):
        registry.get(CHAMPION)
    assert list(tmp_path.iterdir()) == []


def test_artefacts_lie_beside_the_database(registry, version, tmp_path, monkeypatch):
    """And not where the command happened to run."""
    folder = Path(registry.uri.removeprefix("sqlite:///")).parent

    assert [one.name for one in sorted(folder.rglob("*.npz"))] == ["weights.npz"]
    assert sorted(one.name for one in folder.iterdir()) == ["mlartifacts", "mlflow.db"]


def test_no_model_is_ever_a_pickle(registry, version):
    """Whoever loads a version must not run what somebody put there."""
    folder = Path(registry.uri.removeprefix("sqlite:///")).parent / "mlartifacts"

    assert {one.suffix for one in folder.rglob("*") if one.is_file()} == {".npz", ".json"}
    assert client_of(registry).get_model_version(MODEL, "1").source.endswith("/artifacts/policy")


def test_weights_that_are_refused_are_not_registered(registry, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"")

    with pytest.raises(WeightsError):
        registry.register(tmp_path / "bad.npz")

    assert registry.versions() == []


def test_a_run_that_cannot_be_logged_is_marked_as_failed(registry, weights_file, tmp_path):
    with pytest.raises(RegistryError, match="the registry at sqlite"):
        registry.register(weights_file(), RunFacts(artefacts=[tmp_path / "nothing.html"]))

    client = client_of(registry)
    (run,) = client.search_runs([client.get_experiment_by_name(MODEL).experiment_id])
    assert run.info.status == "FAILED"
    assert registry.versions() == []


# -- what somebody else did to it


def test_weights_that_were_exchanged_are_not_handed_out(registry, version, weights_file):
    (stored,) = Path(registry.uri.removeprefix("sqlite:///")).parent.rglob("weights.npz")
    stored.write_bytes(weights_file(2).read_bytes())

    with pytest.raises(RegistryError, match="the weights of version 1 are not those that were registered"):
        registry.fetch(version)
    with pytest.raises(RegistryError, match="do not use it"):
        registry.fetch(version)


def test_a_copy_that_went_bad_is_fetched_again(registry, version):
    path = registry.fetch(version)
    path.write_bytes(b"")

    assert weights.load(registry.fetch(version)).sha256 == version.sha256


@pytest.mark.parametrize("sha256", ["", "../../../etc/passwd"])
def test_a_version_that_others_made_is_refused(registry, version, sha256):
    client_of(registry).set_model_version_tag(MODEL, "1", "ccr.sha256", sha256)

    with pytest.raises(RegistryError, match="`ccr` did not register it"):
        registry.fetch(registry.get(1))


@pytest.mark.parametrize("tag", ["", "{", "[]", '{"passed": true}'])
def test_a_verdict_that_is_none_is_none(registry, version, tag):
    client_of(registry).set_model_version_tag(MODEL, "1", "ccr.gate", tag)

    with pytest.raises(RegistryError, match="it has no verdict"):
        registry.promote(registry.get(1))


# -- verdicts


def test_a_verdict_is_kept_whole_and_in_short(registry, version):
    verdict = a_verdict(version)

    registry.store_verdict(version, verdict)

    judged = registry.get(1)
    assert registry.verdict(judged) == verdict
    assert judged.gate["passed"] is True
    assert judged.gate["against_heuristic"] == verdict["against_heuristic"]
    assert judged.gate["when"] == MANIFEST["when"]
    assert registry.verdict(version) is None


def test_the_latest_verdict_counts_and_the_others_are_kept(registry, version):
    registry.store_verdict(version, a_verdict(version))
    later = a_verdict(version, passed=False, manifest=MANIFEST | {"when": "2026-11-24T10:00:00+00:00"})
    registry.store_verdict(version, later)

    assert registry.verdict(registry.get(1)) == later
    assert len(client_of(registry).list_artifacts(version.run_id, "gate")) == 2


# -- the champion


def test_a_version_that_passed_becomes_champion(registry, version):
    move = registry.promote(passed(registry, 1), "better everywhere")

    assert registry.champion().number == 1
    assert registry.get(1).aliases == (CHAMPION,)
    assert registry.history() == [move]
    assert (move.action, move.version, move.before, move.why, move.forced) == (
        "promote",
        1,
        None,
        "better everywhere",
        False,
    )
    assert "@" in move.who


def test_the_next_one_has_to_beat_the_champion(registry, version, weights_file):
    judged = passed(registry, 1)
    registry.register(weights_file(2))
    second = passed(registry, 2)
    registry.promote(judged)

    with pytest.raises(RegistryError, match="its verdict is not against the present champion, version 1"):
        registry.promote(second)

    registry.promote(passed(registry, 2))
    assert registry.champion().number == 2
    assert registry.get(1).aliases == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"passed": False}, "it did not pass the gate on 2026-11-23", id="failed"),
        pytest.param({"passed": "yes"}, "it did not pass", id="not a yes"),
        pytest.param({"sha256": "0" * 64}, "its verdict is about other weights", id="others"),
        pytest.param({"suite": "smoke"}, "its verdict is on the suite 'smoke', not 'full'", id="suite"),
        pytest.param({"incumbent": {"kind": "policy", "version": "random"}}, "not against the present champion, the shipped weights", id="easy opponent"),
    ],
)  # fmt: skip
def test_a_version_without_the_right_verdict_is_refused(registry, version, changes, says):
    registry.store_verdict(version, a_verdict(version, **changes))

    with pytest.raises(RegistryError) as refused:
        registry.promote(registry.get(1))

    assert says in str(refused.value)
    assert "Run `ccr policy gate 1`" in str(refused.value)
    assert registry.champion() is None
    assert registry.history() == []


def test_force_needs_a_reason_and_is_on_record(registry, version):
    with pytest.raises(RegistryError, match="say why with --reason"):
        registry.promote(version, " ", force=True)
    assert registry.history() == []

    registry.promote(version, "the fleet is on fire", force=True)

    assert registry.champion().number == 1
    (move,) = registry.history()
    assert (move.forced, move.why) == (True, "the fleet is on fire")


def test_force_where_none_was_needed_is_not_held_against_it(registry, version):
    assert registry.promote(passed(registry, 1), "sure", force=True).forced is False


def test_the_champion_is_not_promoted_twice(registry, version):
    registry.promote(passed(registry, 1))

    with pytest.raises(RegistryError, match="version 1 is the champion already"):
        registry.promote(passed(registry, 1))


def test_rolling_back_goes_back_step_by_step(registry, weights_file):
    for number in (1, 2, 3):
        registry.register(weights_file(number))
        registry.promote(passed(registry, number))

    assert registry.rollback("slow").version == 2
    assert registry.champion().number == 2
    assert registry.rollback().version == 1
    assert registry.rollback().version is None

    assert registry.champion() is None
    assert [(move.action, move.before, move.version) for move in registry.history()] == [
        ("promote", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2), ("rollback", 2, 1), ("rollback", 1, None),
    ]  # fmt: skip
    assert registry.history()[3].why == "slow"
    with pytest.raises(RegistryError, match="there is no champion"):
        registry.rollback()


def test_after_a_rollback_the_next_promotion_starts_from_there(registry, weights_file):
    for number in (1, 2, 3):
        registry.register(weights_file(number))
    registry.promote(passed(registry, 1))
    registry.promote(passed(registry, 2))
    registry.rollback()
    registry.promote(passed(registry, 3))

    assert registry.rollback().version == 1


def test_a_champion_that_others_made_cannot_be_rolled_back(registry, version, weights_file):
    registry.promote(passed(registry, 1))
    registry.register(weights_file(2))
    client_of(registry).set_registered_model_alias(MODEL, CHAMPION, "2")

    with pytest.raises(RegistryError, match="version 2 became champion by other means"):
        registry.rollback()


# -- the place itself


def test_a_registry_is_found_again(registry, version):
    registry.promote(passed(registry, 1), "good")

    again = Registry(registry.uri)

    assert again.champion().number == 1
    assert again.history() == registry.history()


def test_a_database_that_is_none_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text(json.dumps({"not": "a database"}) * 1000)

    with pytest.raises(RegistryError, match=r"the registry at sqlite:///.*mlflow.db: "):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").versions()
