import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.outlier import Health, OutlierRules, Phase
from ccr.types import Outcome

ERROR, RESET, TIMEOUT = Outcome.UPSTREAM_5XX, Outcome.UPSTREAM_RESET, Outcome.TIMEOUT
HARMLESS = [outcome for outcome in Outcome if not outcome.is_node_failure]
LATEST = 1.0 - 2**-53  # the largest jitter draw: the ejection lasts its full length


def a_health(*outcomes, now_s=0.0, u=LATEST, **rules):
    health = Health(OutlierRules(**rules))
    for outcome in outcomes:
        health.record(outcome, now_s, u)
    return health


def an_ejected(now_s=0.0, **rules):
    return a_health(*[ERROR] * 5, now_s=now_s, **rules)


def a_probing(now_s=0.0, **rules):
    health = an_ejected(now_s, **rules)
    health.advance(health.until_s)
    return health


@pytest.mark.parametrize(
    ("outcomes", "phase", "why"),
    [
        pytest.param([ERROR] * 4, Phase.HEALTHY, "", id="4 errors are not enough"),
        pytest.param([ERROR] * 5, Phase.EJECTED, "5 errors in a row", id="5 errors"),
        pytest.param([ERROR, RESET] * 3, Phase.EJECTED, "5 errors in a row", id="of both kinds"),
        pytest.param([TIMEOUT], Phase.HEALTHY, "", id="1 timeout is not enough"),
        pytest.param([TIMEOUT] * 2, Phase.EJECTED, "2 timeouts in a row", id="2 timeouts"),
        pytest.param([TIMEOUT, ERROR, TIMEOUT], Phase.HEALTHY, "", id="timeouts not in a row"),
        pytest.param([*[ERROR] * 4, Outcome.OK, ERROR], Phase.HEALTHY, "", id="a success between"),
        pytest.param([*[ERROR] * 4, Outcome.UPSTREAM_4XX, ERROR], Phase.HEALTHY, "", id="a refusal is a sign of life"),
        pytest.param([*[ERROR] * 4, Outcome.CLIENT_CLOSED, ERROR], Phase.EJECTED, "5 errors in a row", id="a client that left proves nothing"),
    ],
)  # fmt: skip
def test_failures_in_a_row_eject(outcomes, phase, why):
    health = a_health(*outcomes)

    assert (health.phase, health.why, health.hard) == (phase, why, False)


def test_what_was_under_way_before_a_node_began_to_fail_does_not_excuse_it():
    """A node can fail all that is new at once while what it had goes on to its end."""
    health = a_health()

    for k in range(5):
        health.record(ERROR, 10.0 + k, 0.5)
        health.record(Outcome.OK, 10.5 + k, 0.5, sent_s=9.0)

    assert health.phase is Phase.EJECTED


def test_a_success_of_what_was_sent_since_ends_the_row_of_failures():
    health = a_health(*[ERROR] * 4, now_s=10.0)

    health.record(Outcome.OK, 12.0, 0.5, sent_s=11.0)
    health.record(ERROR, 13.0, 0.5)

    assert (health.phase, health.failures) == (Phase.HEALTHY, 1)


def test_a_refused_connection_ejects_at_once_even_in_a_panic():
    health = a_health()

    health.record(RESET, 0.0, 0.5, refused=True, may_eject_softly=False)

    assert (health.phase, health.why, health.hard) == (Phase.EJECTED, "connection refused", True)


def test_in_a_panic_soft_evidence_does_not_eject():
    health = a_health()

    for outcome in [ERROR] * 9 + [TIMEOUT] * 9:
        health.record(outcome, 0.0, 0.5, may_eject_softly=False)

    assert health.phase is Phase.HEALTHY


@given(st.lists(st.tuples(st.sampled_from(HARMLESS), st.floats(0.0, 100.0))))
def test_a_node_that_never_failed_is_never_ejected(history):
    health, now_s = a_health(), 0.0

    for outcome, passing_s in history:
        now_s += passing_s
        health.record(outcome, now_s, 0.5)
        health.advance(now_s)

    assert health.phase is Phase.HEALTHY
    assert health.ramp(now_s) == 1.0


def test_an_ejection_ends_in_a_probe():
    health = an_ejected(now_s=100.0)

    health.advance(104.99)
    before = health.phase
    health.advance(105.0)

    assert (before, health.phase) == (Phase.EJECTED, Phase.PROBING)


@pytest.mark.parametrize(("u", "length_s"), [(0.0, 2.5), (0.5, 3.75), (LATEST, 5.0)])
def test_jitter_shortens_an_ejection_by_up_to_half(u, length_s):
    health = a_health(*[ERROR] * 5, now_s=10.0, u=u)

    assert health.until_s == pytest.approx(10.0 + length_s)


def test_each_further_ejection_is_twice_as_long_up_to_the_cap():
    health, lengths_s = an_ejected(), []

    for _ in range(9):
        ends_s = health.until_s
        health.advance(ends_s)
        health.record(ERROR, ends_s, LATEST)
        lengths_s.append(health.until_s - ends_s)

    assert lengths_s == pytest.approx([10, 20, 40, 80, 160, 300, 300, 300, 300])


def test_a_failed_probe_ejects_again_at_once():
    health = a_probing()

    health.record(ERROR, health.until_s, LATEST)

    assert (health.phase, health.why) == (Phase.EJECTED, "failed its probe")


def test_a_probe_whose_client_left_decides_nothing():
    health = a_probing()

    health.record(Outcome.CLIENT_CLOSED, health.until_s, 0.5)

    assert health.phase is Phase.PROBING


def test_a_successful_probe_starts_the_ramp():
    health = a_probing()

    health.record(Outcome.OK, 50.0, 0.5)

    assert (health.phase, health.hard, health.why, health.failures) == (Phase.HEALTHY, False, "", 0)
    ramp = [health.ramp(50.0 + s) for s in (0.0, 1.5, 3.0, 15.0, 29.0, 30.0, 99.0)]
    assert ramp == pytest.approx([0.1, 0.1, 0.1, 0.5, 29 / 30, 1.0, 1.0])


def test_without_slow_start_a_node_is_back_at_once():
    health = a_probing(slow_start_s=0.0)

    health.record(Outcome.OK, 50.0, 0.5)

    assert health.ramp(50.0) == 1.0


@pytest.mark.parametrize("hard", [True, False])
def test_a_failed_probe_is_evidence_of_the_kind_that_ejected(hard):
    """A dead node that starts answering with errors does not use up the share of soft ejections."""
    health = a_health()
    for _ in range(5):
        health.record(ERROR, 0.0, LATEST, refused=hard)
    health.advance(health.until_s)

    health.record(ERROR, health.until_s, LATEST)

    assert (health.phase, health.hard) == (Phase.EJECTED, hard)


@pytest.mark.parametrize(
    ("late", "refused"),
    [(ERROR, False), (TIMEOUT, False), (Outcome.OK, False), pytest.param(RESET, True, id="refused")],
)
def test_late_outcomes_of_an_ejected_node_prove_nothing(late, refused):
    health = an_ejected()
    before = (health.phase, health.until_s, health.ejections, health.why)

    for _ in range(20):
        health.record(late, 1.0, 0.9, refused=refused)

    assert (health.phase, health.until_s, health.ejections, health.why) == before


@pytest.mark.parametrize(
    ("healthy_s", "next_s"),
    [
        pytest.param(300.0, 10.0, id="ejections are remembered for 300 s of good health"),
        pytest.param(300.1, 5.0, id="and forgotten after"),
    ],
)
def test_good_health_is_forgiven(healthy_s, next_s):
    health = a_probing()
    health.record(Outcome.OK, 100.0, 0.5)
    now_s = 100.0 + healthy_s
    health.record(Outcome.OK, now_s, 0.5)

    for _ in range(5):
        health.record(ERROR, now_s, LATEST)

    assert health.until_s - now_s == pytest.approx(next_s)
