"""What is there is found; what is not there is not claimed; no seed serves two purposes."""

import numpy as np
import pytest

from envs.evaluation.result import measure
from envs.evaluation.statistics import Ratio
from envs.tuning.search import Blocks, Outcome, Search, TuningError, tune
from envs.tuning.space import Space
from tests.envs.evaluation import synthetic

ENGINE = synthetic.an_engine()


class InProcess:
    """The pool without processes; remembers the tasks."""

    def __init__(self, run=synthetic.run):
        self.run = run
        self.batches = []

    def results(self, tasks):
        self.batches.append(list(tasks))
        yield from enumerate(measure(self.run, task) for task in tasks)


def a_search(policy="base", **changes):
    facts = {
        "policy": policy,
        "space": Space(ENGINE.tunable["base"]),
        "defaults": {"weight": 2.0, "slope": 0.5},
        "scenarios": ("calm", "rush"),
        "blocks": Blocks(base=1000, generations=10, seeds=3, validation=12),
        "population": 8,
    }
    return Search(**(facts | changes))


def tuned(search, pool):
    done = []
    return tune(search, pool, lambda runs, state: done.append(runs)), sum(done)


def test_a_better_setting_is_found_and_confirmed():
    outcome, _ = tuned(a_search(), InProcess())

    assert outcome.verdict == "better"
    assert outcome.cost.ratio < 0.72
    assert outcome.options["weight"] == pytest.approx(8.0, rel=0.3)
    assert outcome.options["slope"] == pytest.approx(0.25, abs=0.08)


def test_where_weights_do_nothing_the_defaults_are_kept():
    """The best of each generation looks better than 1 by luck; the confirmation does not believe it."""
    outcome, _ = tuned(a_search(), InProcess(synthetic.run_without_effect))

    assert min(outcome.history) < 0.99
    assert outcome.verdict == "tie"


def test_one_weight_alone_can_be_tuned():
    search = a_search(space=Space({"weight": ENGINE.tunable["base"]["weight"]}))
    run = lambda scenario, policy, seed, options: synthetic.run(  # noqa: E731
        scenario, policy, seed, {"slope": 0.5, **options} if options else {}
    )

    outcome, _ = tuned(search, InProcess(run))

    assert outcome.options["weight"] == pytest.approx(8.0, rel=0.3)


def test_no_seed_serves_two_purposes():
    pool = InProcess()

    tuned(a_search(), pool)

    blocks = [{task.seed for task in batch} for batch in pool.batches]
    assert len(blocks) == 10 + 2
    assert sum(map(len, blocks)) == len(set().union(*blocks))
    assert min(set().union(*blocks)) == 1000


def test_every_candidate_meets_the_defaults_on_the_same_arrivals():
    pool = InProcess()

    tuned(a_search(), pool)

    for batch in pool.batches:
        runs = {task.contender.label: set() for task in batch}
        for task in batch:
            runs[task.contender.label].add((task.scenario, task.seed))
        assert "defaults" in runs
        assert all(each == runs["defaults"] for each in runs.values())


def test_the_number_of_runs_is_known_before():
    search = a_search()

    _, runs = tuned(search, InProcess())

    assert runs == search.runs


def test_the_same_draw_gives_the_same_weights():
    assert tuned(a_search(), InProcess())[0] == tuned(a_search(), InProcess())[0]
    assert tuned(a_search(rng_seed=1), InProcess())[0] != tuned(a_search(), InProcess())[0]


def test_a_run_without_a_tail_ends_the_search_in_words():
    def run(scenario, policy, seed, options):
        return synthetic.run(scenario, "hopeless", seed, {})

    with pytest.raises(TuningError, match=r"p99_s is nan on scenario 'calm' with seed 1042"):
        tuned(a_search(), InProcess(run))


@pytest.mark.parametrize(
    ("cost", "p99", "verdict"),
    [
        pytest.param((0.90, 0.85, 0.95), 0.9, "better", id="better"),
        pytest.param((0.98, 0.95, 1.01), 0.9, "tie", id="the interval covers 1"),
        pytest.param((1.10, 1.05, 1.15), 0.9, "worse", id="worse"),
        pytest.param((0.90, 0.85, 0.95), 1.2, "tail", id="cheaper on average, a heavier tail"),
    ],
)
def test_the_verdict(cost, p99, verdict):
    ratio, low, high = cost
    p = 0.5 if low < 1.0 < high else 0.001
    outcome = Outcome(
        {}, Ratio(ratio, low, high, p, int(np.sign(ratio - 1)), 9), Ratio(p99, None, None, None, 0, 9), ()
    )

    assert outcome.verdict == verdict
