"""The judge: what does harm is found within half a minute, what merely meets bad times is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import cost
from ccr.engine import Engine
from ccr.look import BACKLOG_S, BUSY, LOAD_WAIT_S, RESIDENT
from ccr.policies.least_request import LeastRequest
from ccr.types import Decision
from ccr.watch import ALARM, ENOUGH, FIGURES, STRAINS, Facts, Judge, Tally, Usual, facts
from tests.factories import Fixed, a_fleet, a_node, a_request
from tests.looks import LOOKS, NODES, a_book, look

CALM, TENSE, HOPELESS = 0, 2, len(STRAINS)


def a_look(backlogs_s=(0.0,) * NODES, busy=(0.0,) * NODES, cold=()):
    """Nodes with so much prefill before the request and so many requests; all have the weights but those in ``cold``."""
    book = a_book()
    book.resident[:] = True
    seen = look(book)
    seen.pairs[BACKLOG_S] = backlogs_s
    seen.pairs[BUSY] = busy
    for n in cold:
        seen.pairs[RESIDENT, n], seen.pairs[LOAD_WAIT_S, n] = 0.0, 5.0
    return seen


def a_decision(seen, chosen=0, mask=(True,) * NODES, **fields):
    n = np.eye(NODES)[chosen]
    given = {
        "guard_reason": "",
        "scores": n,
        "probabilities": n,
        "mask": np.array(mask),
        "look": seen,
    } | fields
    return Decision("r", "n", chosen, "learned", 1.0, 0.5, "n", 1.0, **given)


LATE_S = 1e3


def test_a_node_that_will_be_late_although_another_would_not_is_avoidable():
    seen = a_look((LATE_S, 0.0, 0.0, 0.0))

    assert facts(a_decision(seen, 0)).avoidable
    assert not facts(a_decision(seen, 1)).avoidable


def test_where_every_node_will_be_late_nothing_is_avoidable():
    found = facts(a_decision(a_look((LATE_S,) * NODES), 0))

    assert not found.avoidable
    assert found.strain == HOPELESS


def test_a_node_that_would_be_in_time_but_may_not_be_chosen_is_no_alternative():
    seen = a_look((LATE_S, 0.0, LATE_S, LATE_S))

    assert not facts(a_decision(seen, 0, mask=(True, False, True, True))).avoidable


def test_a_load_is_held_against_the_policy_only_where_a_node_with_the_weights_would_be_in_time():
    assert facts(a_decision(a_look(cold=(0,)), 0)).cold
    assert not facts(a_decision(a_look(cold=(0,)), 1)).cold
    assert not facts(a_decision(a_look(cold=range(NODES)), 0)).cold
    assert not facts(a_decision(a_look((0.0, *(LATE_S,) * 3), cold=(0,)), 0)).cold


def test_company_is_a_crowd_only_while_another_node_with_the_weights_stands_idle():
    busy = (3.0, 0.0, 3.0, 3.0)

    assert facts(a_decision(a_look(busy=busy), 0)).crowd == 0
    assert facts(a_decision(a_look(busy=busy), 1)).crowd == -1
    assert facts(a_decision(a_look(busy=busy, cold=(1,)), 0)).crowd == -1
    assert facts(a_decision(a_look(busy=(1.0, 0.0, 0.0, 0.0)), 0)).crowd == -1


def test_a_fallback_that_did_not_look_tells_that_the_policy_was_of_no_use():
    fleet = a_fleet(a_node("a"), a_node("b"))
    decision = Engine(Fixed([np.nan, np.nan]), LeastRequest()).decide(a_request(), fleet, 0.5)

    found = facts(decision)

    assert found.unusable
    assert (found.avoidable, found.cold, found.guarded) == (False, False, False)


@given(LOOKS, st.integers(0, NODES - 1))
def test_facts_of_any_look_make_sense(seen, chosen):
    found = facts(a_decision(seen, chosen))

    seconds = cost.latency_s(cost.terms(seen))
    assert 0 <= found.strain <= HOPELESS
    assert found.promised_s >= 2.0
    assert not found.avoidable or seconds[chosen] > max(found.promised_s, seconds.min())


# -- the judge


def a_tally(n=100, strain=CALM, **counted):
    """An interval of ``n`` requests, of which so many count for each figure."""
    tally = Tally()
    for k in range(n):
        here = {name: k < number for name, number in counted.items()}
        tally.decided(
            Facts(
                strain, 5.0, here.get("avoidable", False), here.get("cold", False), here.get("guarded", False),
                here.get("unusable", False), 3 if here.get("herded") else -1,
            )
        )  # fmt: skip
        tally.ended(strain, missed=here.get("missed", False), failed=here.get("failed", False))
    return tally


def a_judge(on_trial=True, **usual):
    """Who has seen a lot of weights under which so many of a hundred counted."""
    judge = Judge()
    for _ in range(10):
        judge.tick(a_tally(**usual))
        judge.sums[:] = 0.0
    judge.begin(on_trial=on_trial)
    return judge


def intervals_until_breach(judge, make, most=36):
    for k in range(1, most + 1):
        breaches = judge.tick(make(k))
        if breaches:
            return k, [breach.figure for breach in breaches]
    return None


@pytest.mark.parametrize("figure", FIGURES)
def test_a_planted_fault_of_every_kind_is_found_within_half_a_minute(figure):
    found = intervals_until_breach(a_judge(), lambda _: a_tally(**{figure: 90}))

    assert found is not None
    intervals, figures = found
    assert intervals * 5 <= 30
    assert figures == [figure]


@pytest.mark.parametrize("figure", FIGURES)
def test_what_is_as_usual_is_never_a_breach(figure):
    judge = a_judge(**{figure: 10})

    assert intervals_until_breach(judge, lambda _: a_tally(**{figure: 12}), most=200) is None


@pytest.mark.parametrize("figure", FIGURES)
def test_one_bad_moment_is_no_breach(figure):
    judge = a_judge()

    assert intervals_until_breach(judge, lambda k: a_tally(**{figure: 100 * (k == 5)}), most=50) is None


def test_a_batch_of_failures_when_a_node_dies_is_no_breach():
    judge = a_judge()

    assert (
        intervals_until_breach(
            judge, lambda k: a_tally(failed=60 * (k in {3, 20}), missed=60 * (k in {3, 20})), 40
        )
        is None
    )


@pytest.mark.parametrize("figure", [name for name, figure in FIGURES.items() if figure.is_outcome])
def test_how_requests_end_is_not_held_against_weights_that_have_passed(figure):
    """It became worse while nothing changed: no policy is to blame."""
    judge = a_judge(on_trial=False)

    assert intervals_until_breach(judge, lambda _: a_tally(**{figure: 90}), most=100) is None


def test_how_requests_end_is_not_judged_before_it_is_known_what_is_usual():
    judge = Judge()
    judge.begin(on_trial=True)

    assert intervals_until_breach(judge, lambda _: a_tally(missed=90), most=100) is None


@pytest.mark.parametrize("figure", [name for name, figure in FIGURES.items() if not figure.is_outcome])
def test_what_decisions_show_is_judged_all_the_time(figure):
    judge = a_judge(on_trial=False)

    assert intervals_until_breach(judge, lambda _: a_tally(**{figure: 95})) is not None


def test_in_a_burst_misses_are_compared_with_those_of_earlier_bursts():
    """Requests move to where misses are usual; the share over all of them rises, and nothing is held against the policy."""
    judge = Judge()
    for k in range(20):
        judge.tick(a_tally(strain=TENSE if k % 4 == 0 else CALM, missed=60 if k % 4 == 0 else 2))
    judge.begin(on_trial=True)

    assert intervals_until_breach(judge, lambda _: a_tally(strain=TENSE, missed=65)) is None
    assert intervals_until_breach(judge, lambda _: a_tally(strain=CALM, missed=65)) is not None


def test_few_requests_weigh_little():
    assert intervals_until_breach(a_judge(), lambda _: a_tally(n=2, missed=1, avoidable=1), most=6) is None
    assert intervals_until_breach(a_judge(), lambda _: Tally(), most=100) is None


def test_the_guard_may_move_a_fifth_of_the_requests_whatever_is_usual():
    assert intervals_until_breach(a_judge(), lambda _: a_tally(guarded=19), most=100) is None
    assert intervals_until_breach(a_judge(), lambda _: a_tally(guarded=45)) is not None


def test_herding_is_about_one_node():
    def spread(_):
        tally = Tally()
        for k in range(100):
            tally.decided(Facts(CALM, 5.0, False, False, False, False, k % 8))
        return tally

    assert intervals_until_breach(a_judge(), spread, most=100) is None


def test_other_weights_begin_with_a_clean_sheet():
    judge = a_judge()
    judge.tick(a_tally(missed=90))
    assert not judge.is_calm

    judge.begin(on_trial=True)

    assert judge.is_calm
    assert (judge.requests, set(judge.closeness().values())) == (0.0, {0.0})


def test_what_is_usual_is_not_learned_from_weights_that_did_not_pass():
    judge = a_judge()
    for _ in range(100):
        judge.tick(a_tally(cold=30))

    judge.begin(on_trial=True)

    assert judge.usual.shares()[list(FIGURES).index("cold"), CALM] < 0.02


def test_what_a_passed_trial_showed_is_usual_from_then_on():
    judge = a_judge()
    for _ in range(100):
        judge.tick(a_tally(cold=20))

    judge.passed()

    assert judge.usual.shares()[list(FIGURES).index("cold"), CALM] == pytest.approx(0.19, abs=0.02)
    assert not judge.on_trial


def test_what_was_usual_is_forgotten_in_time():
    usual = Usual()
    usual.add(*a_tally(n=2 * ENOUGH, missed=2 * ENOUGH).closed())
    assert usual.is_known

    for _ in range(2000):
        usual.add(*Tally().closed())

    assert not usual.is_known


def test_a_breach_tells_how_much_and_how_much_may_be():
    judge = a_judge()
    judge.tick(a_tally(guarded=90))

    (breach,) = judge.tick(a_tally(guarded=90))

    assert str(breach) == "guarded 90%, above 20%"
    assert judge.closeness()["guarded"] > 1.0
    assert judge.sums[list(FIGURES).index("guarded")] > ALARM
