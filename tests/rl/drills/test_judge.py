"""Drills are judged by paired figures: what was recovered, what is a tie, and when there is nothing to recover."""

import numpy as np
import pytest

from envs.evaluation.statistics import geometric
from rl.drills.judge import KEPT, drift_bars, drift_document, poison_document, recovered
from rl.drills.play import FROZEN, ONLINE, TRUTH
from rl.drills.poison import HONEST, POISONED, Limit, Poison

PAIRS = 40


def costs(level, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    return level * np.exp(rng.normal(0.0, noise, PAIRS))


def rows(level, seed=0):
    return np.tile(costs(level, seed=seed)[:, None], len(KEPT))


def judged(frozen, online, truth, **more):
    arms = {FROZEN: frozen, ONLINE: online, TRUTH: truth}
    return drift_document("a-drill", range(PAIRS), arms, **({"recovers": True} | more))


def met(document):
    return {bar["id"]: bar["met"] for bar in document["bars"]}


def test_what_was_recovered_is_a_share_of_what_the_truth_gains():
    day = costs(1.0)

    found = recovered(2.0 * day, 1.1 * day, 1.0 * day)

    assert found.value == pytest.approx(0.9)
    assert found.low <= 0.9 <= found.high


def test_more_than_the_truth_is_more_than_all():
    day = costs(1.0)

    assert recovered(2.0 * day, 0.9 * day, day).value == pytest.approx(1.1)


def test_where_the_truth_gains_nothing_no_ratio_is_told():
    """A ratio of two differences that are noise would be any number at all."""
    found = recovered(costs(1.0, seed=1), costs(1.0, seed=2), costs(1.0, seed=3))

    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.words.startswith("nothing to recover")


@pytest.mark.parametrize(
    ("online", "better", "enough"),
    [
        pytest.param(1.1, True, True, id="nearly the truth"),
        pytest.param(1.5, True, False, id="half of it"),
        pytest.param(2.0, False, False, id="as if frozen"),
        pytest.param(2.4, False, False, id="worse than frozen"),
    ],
)
def test_the_bars_of_a_drift(online, better, enough):
    document = judged(rows(2.0, 1), rows(online, 2), rows(1.0, 3))

    assert met(document) == {"better": better, "recovered": enough}


@pytest.mark.parametrize(("online", "is_met"), [(0.9, True), (1.0, True), (1.05, False)], ids=str)
def test_where_nothing_drifts_the_whole_interval_has_to_be_below_the_bar(online, is_met):
    day, other = costs(1.0), costs(1.0, 0.01, 7)

    (bar,) = drift_bars(geometric(online * day * other, day), None)

    assert bar.met is is_met


def test_a_document_has_everything_that_was_asked_for():
    document = judged(rows(2.0, 1), rows(1.1, 2), rows(1.0, 3))

    assert list(document["arms"]) == [FROZEN, ONLINE, TRUTH]
    assert set(document["ratios"]) == {"online/frozen", "truth/frozen", "online/truth"}
    assert document["seeds"] == {"first": 0, "count": PAIRS}
    arm = document["arms"][ONLINE]["cost"]
    assert arm["low"] < arm["mean"] < arm["high"]
    assert np.mean(arm["each"]) == pytest.approx(arm["mean"])
    assert document["recovered"]["value"] == document["bars"][1]["value"]


def test_one_pair_has_no_interval_and_is_not_better():
    document = drift_document(
        "a-drill", range(1), {arm: np.full((1, len(KEPT)), level) for arm, level in ((FROZEN, 2.0), (ONLINE, 1.0), (TRUTH, 1.0))}, recovers=True,
    )  # fmt: skip

    assert met(document) == {"better": False, "recovered": False}


# Poison

POISON = Poison(
    "a-poison", "", lambda *_: {},
    (
        Limit("share", 0.1, "share"), Limit("failures", 5.0, "failures", of_each=True),
        Limit("cost", 1.05, "cost", relative=True),
    ),
)  # fmt: skip


def poisoned(share=0.05, failures=3.0, worst=5.0, cost=1.0):
    honest = [{"share": 0.2, "failures": 0.0, "cost": 2.0} for _ in range(4)]
    found = [{"share": share, "failures": failures, "cost": 2.0 * cost} for _ in range(4)]
    found[0]["failures"] = worst
    return met(poison_document(POISON, range(4), {HONEST: honest, POISONED: found}))


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        pytest.param({}, set(), id="all is well"),
        pytest.param({"share": 0.2}, {"share"}, id="the mean is too large"),
        pytest.param({"worst": 6.0}, {"failures"}, id="one day is too bad"),
        pytest.param({"cost": 1.1}, {"cost"}, id="worse than on an honest day"),
    ],
)
def test_the_bars_of_poison(figures, missed):
    assert {name for name, is_met in poisoned(**figures).items() if not is_met} == missed
