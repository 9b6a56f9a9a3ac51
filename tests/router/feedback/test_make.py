"""A record says what the router saw, drew and measured, and nothing a person wrote."""

import numpy as np
import pytest
from hypothesis import given

from ccr.engine import decide
from ccr.guard import BoundedLoad
from ccr.hashing import hash64
from ccr.lesson import OUTCOMES, Flag, decode, encode
from ccr.look import Look
from ccr.types import COLUMNS, Outcome, Reading
from router.dispatch import Times
from router.feedback.make import Ended, Maker, Refused
from tests.factories import FLEETS, Fixed, a_fleet, a_node, a_request

MEASURED = Times(0.001, 2.0, 0.25, 11, 22)
READING = Reading(running=2.0, waiting=1.0, kv_used=0.5, gpu_free_gib=3.0)
CANARY = "xyzzy-canary-of-the-tests"


class Attempt:
    """What the router remembers of a request at a node."""

    def __init__(self, fleet=None, scores=(1.0, 2.0), parent_id="", is_reported=False, **request):
        fleet = fleet or a_fleet(a_node("warm", models="llama@2"), a_node("cold"))
        self.request = a_request("llama@2", **request)
        self.decision = decide(self.request, fleet, Fixed(scores), BoundedLoad(), 0.5)
        self.specs = fleet.specs
        self.seen = fleet.columns.tobytes()
        self.arrived_s = 3.5
        self.is_cold = self.decision.node_id == "cold"
        self.parent_id = parent_id
        self.is_reported = is_reported
        self.epoch = 7


def a_maker(**fields):
    return Maker(lambda moment_s: 1000.0 + moment_s, penalty_s=30.0, **fields)


def lesson_of(attempt, outcome=Outcome.OK, times=MEASURED, *, maker=None, went_on=False):
    return (maker or a_maker()).lesson(Ended(attempt, outcome, times, READING, 0.5, went_on))


def test_a_request_is_told_in_full():
    lesson = lesson_of(Attempt(session="s", priority=-1, prompt_tokens=9, output_tokens=64))

    assert (lesson.at_s, lesson.queue_s, lesson.total_s, lesson.ttft_s) == (1003.5, 0.001, 2.0, 0.25)
    assert (lesson.prompt_tokens, lesson.output_tokens) == (11, 22)
    assert (lesson.prompt_estimate, lesson.output_limit, lesson.priority) == (9, 64, -1)
    assert (lesson.model, lesson.policy, lesson.policy_epoch) == (hash64("llama@2"), hash64("fixed"), 7)
    assert (lesson.chosen, lesson.drawn, lesson.u, lesson.propensity) == (1, 1, 0.5, 1.0)
    assert lesson.node_ids().tolist() == [hash64("warm"), hash64("cold")]
    assert lesson.distribution().tolist() == [0.0, 1.0]
    assert lesson.eligible().tolist() == [True, True]
    assert (lesson.after, lesson.after_age_s) == ((2.0, 1.0, 0.5, 3.0, -1.0), 0.5)
    assert Flag(lesson.flags) == Flag.COLD


def test_a_node_that_was_never_read_makes_a_record_too():
    never = Ended(Attempt(), Outcome.OK, MEASURED, Reading(), float("inf"))

    lesson = a_maker().lesson(never)

    assert decode(encode(lesson)).after == (-1.0,) * 5


def test_what_was_seen_is_in_it():
    attempt = Attempt()
    shapes = {"load": (3, 2), "pairs": (4, 2), "asked": (5,)}
    look = Look(np.ones((len(COLUMNS), 2)), *(np.full(shape, 2.0) for shape in shapes.values()))
    attempt.decision = attempt.decision._replace(look=look)

    lesson = lesson_of(attempt)

    assert lesson.flags & Flag.LOOKED
    for name in ("load", "pairs"):
        np.testing.assert_array_equal(lesson.rows(name), getattr(look, name))


@given(FLEETS)
def test_every_record_of_a_decision_makes_sense_to_who_reads_it(fleet):
    lesson = lesson_of(Attempt(fleet, scores=np.zeros(len(fleet))))

    assert decode(encode(lesson)) == lesson


@pytest.mark.parametrize("outcome", Outcome)
def test_a_failure_is_charged_with_the_penalty_and_nothing_else_is(outcome):
    lesson = lesson_of(Attempt(), outcome)

    assert OUTCOMES[lesson.outcome] is outcome
    assert lesson.charged_s == (30.0 if outcome.is_node_failure else 2.0)


def test_a_failure_that_took_longer_than_the_penalty_is_charged_in_full():
    assert lesson_of(Attempt(), Outcome.TIMEOUT, Times(0.0, 45.0)).charged_s == 45.0


def test_a_client_that_hangs_up_at_once_says_nothing_good_of_the_node():
    lesson = lesson_of(Attempt(), Outcome.CLIENT_CLOSED, Times(0.0, 0.001))

    assert lesson.is_censored
    assert not lesson.is_measured


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        pytest.param({"parent_id": "r0"}, Flag.RETRY, id="a second try"),
        pytest.param({"is_reported": True}, Flag.REPORTED, id="told by the caller"),
        pytest.param({"scores": (2.0, 1.0)}, Flag(0), id="warm, and nothing special"),
    ],
)
def test_what_is_special_is_a_flag(fields, flag):
    lesson = lesson_of(Attempt(**fields))

    assert Flag(lesson.flags) & ~Flag.COLD == flag


def test_a_try_before_another_is_not_the_end():
    assert not lesson_of(Attempt(), Outcome.UPSTREAM_5XX, went_on=True).is_end
    assert lesson_of(Attempt()).is_end


def test_a_node_the_guard_moved_it_from_stays_known():
    attempt = Attempt()
    attempt.decision = attempt.decision._replace(
        drawn_id="warm", guard_reason="bounded_load", drawn_propensity=0.75
    )

    lesson = lesson_of(attempt)

    assert (lesson.chosen, lesson.drawn, lesson.drawn_propensity) == (1, 0, 0.75)
    assert lesson.flags & Flag.GUARDED


def test_published_weights_are_named_by_the_policy_epoch():
    lesson = lesson_of(Attempt(), maker=a_maker(published=lambda epoch: (epoch, 12)))

    assert (lesson.weights_epoch, lesson.weights_version) == (7, 12)


def test_a_refusal_tells_what_was_understood():
    unknown = a_maker().lesson(Refused(Outcome.REJECTED, 3.5, 3.6, None))
    known = a_maker().lesson(Refused(Outcome.NO_CAPACITY, 3.5, 3.6, a_request("llama@2", session="s")))

    assert (unknown.model, unknown.chosen, unknown.mask) == (0, -1, b"")
    assert (known.model, known.session != 0) == (hash64("llama@2"), True)
    assert decode(encode(known)) == known


def test_a_conversation_is_a_number_that_another_process_does_not_know():
    one, other = a_maker(), a_maker()
    attempt = Attempt(session="s")

    assert lesson_of(attempt, maker=one).session == lesson_of(attempt, maker=one).session != 0
    assert lesson_of(attempt, maker=one).session != lesson_of(attempt, maker=other).session
    assert lesson_of(Attempt()).session == 0


def test_nothing_a_client_wrote_is_in_it():
    attempt = Attempt(session=CANARY, id=CANARY, tenant=CANARY, headers={"x-a": CANARY})

    assert CANARY.encode() not in encode(lesson_of(attempt))
