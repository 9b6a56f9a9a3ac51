import asyncio
import gc
import re
import signal
import socket
import threading
import time

import pytest
import uvloop

from ccr.policies.time_guard import TIMED_OUT, ScriptTimeoutError, TimeGuard

LIMIT_S = 0.005


@pytest.fixture
def guard():
    guard = TimeGuard()
    yield guard
    guard.uninstall()


def loop_forever():
    while True:
        pass


def sleep_long():
    time.sleep(10.0)


def match_catastrophically():
    re.match(r"(a+)+$", "a" * 40 + "b")


def wait_for_a_silent_peer():
    here, there = socket.socketpair()
    with here, there:
        here.recv(1)


def swallow_exceptions():
    while True:
        try:
            loop_forever()
        except Exception:
            continue


def swallow_the_interruption_once():
    try:
        loop_forever()
    except:  # noqa: E722
        return "as if nothing had happened"


def turn_the_interruption_into_an_error():
    try:
        loop_forever()
    except BaseException:
        raise ValueError("mine") from None


HANGS = [
    loop_forever,
    sleep_long,
    match_catastrophically,
    wait_for_a_silent_peer,
    swallow_exceptions,
    swallow_the_interruption_once,
    turn_the_interruption_into_an_error,
]


@pytest.mark.parametrize("hang", HANGS)
def test_what_does_not_return_is_stopped_not_before_its_time(guard, hang):
    started = time.perf_counter()

    with pytest.raises(ScriptTimeoutError, match=f"^{TIMED_OUT} after 5 ms"):
        guard.call(LIMIT_S, hang)

    assert time.perf_counter() - started >= LIMIT_S * 0.9


@pytest.mark.prove
@pytest.mark.parametrize("hang", HANGS)
def test_what_does_not_return_is_stopped_within_ten_milliseconds(guard, hang):
    """The shortest of five, since another process may hold this one up."""
    took_s = []
    for _ in range(5):
        started = time.perf_counter()
        with pytest.raises(ScriptTimeoutError, match=f"^{TIMED_OUT} after 5 ms"):
            guard.call(LIMIT_S, hang)
        took_s.append(time.perf_counter() - started)

    assert LIMIT_S * 0.9 <= min(took_s) <= 0.010


def test_what_cannot_be_interrupted_is_reported_once_it_is_over(guard):
    """One call into C that looks at no signals; it takes far more than ten limits."""

    def add_up():
        return sum(range(10**6))

    with pytest.raises(ScriptTimeoutError):
        guard.call(0.0005, add_up)


def test_a_pause_of_the_process_is_not_held_against_the_call(guard):
    """A garbage collection or another process took the time: one alarm came, and the call is soon done."""

    def paused():
        signal.raise_signal(signal.SIGALRM)
        return "done"

    assert guard.call(1.0, paused) == "done"


def test_swallowing_every_interruption_is_reported_all_the_same(guard):
    """The timer comes again and again, so a swallowed interruption costs one more limit, not for ever."""

    def swallow_three():
        for _ in range(3):
            swallow_the_interruption_once()
        return "done"

    with pytest.raises(ScriptTimeoutError):
        guard.call(LIMIT_S, swallow_three)


def test_what_returns_in_time_is_returned(guard):
    assert guard.call(1.0, divmod, 7, 2) == (3, 1)


def test_what_is_raised_in_time_is_raised(guard):
    with pytest.raises(ZeroDivisionError):
        guard.call(1.0, divmod, 7, 0)


def test_no_timer_is_left_running(guard):
    guard.call(1.0, divmod, 7, 2)
    after_return = signal.getitimer(signal.ITIMER_REAL)[1]
    with pytest.raises(ScriptTimeoutError):
        guard.call(LIMIT_S, loop_forever)
    after_timeout = signal.getitimer(signal.ITIMER_REAL)[1]

    assert (after_return, after_timeout) == (0.0, 0.0)


@pytest.fixture
def no_collections():
    """Callbacks of the collector run inside the guarded call too, and Python drops what is raised in them."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("error", [None, ValueError])
@pytest.mark.usefixtures("no_collections")
def test_the_timer_never_fires_outside_the_call(guard, error):
    """Limits around the length of the call: the alarms fall before, into and after every line of the guard."""

    def work():
        total = sum(i for i in range(40))
        if error:
            raise error
        return total

    outcomes = {"in time": 0, "late": 0}
    for i in range(6000):
        try:
            assert guard.call(1e-6 + (i % 60) * 4e-7, work) == 780
            outcomes["in time"] += 1
        except ValueError:
            outcomes["in time"] += 1
        except ScriptTimeoutError:
            outcomes["late"] += 1

    assert outcomes["in time"] > 0
    assert outcomes["late"] > 0


def test_in_another_thread_a_late_call_is_reported_after_it_returned(guard):
    caught = []

    def run():
        try:
            guard.call(0.0, divmod, 7, 2)
        except ScriptTimeoutError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert len(caught) == 1


def test_within_a_guarded_call_the_outer_limit_holds(guard):
    def outer():
        guard.call(60.0, loop_forever)

    with pytest.raises(ScriptTimeoutError, match="after 5 ms"):
        guard.call(LIMIT_S, outer)


def test_somebody_elses_alarm_keeps_its_handler_and_its_time(guard):
    seen = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: seen.append(signum))
    running = signal.setitimer(signal.ITIMER_REAL, 0.0)
    try:
        signal.setitimer(signal.ITIMER_REAL, 30.0)

        guard.call(LIMIT_S, divmod, 7, 2)
        remaining_s = signal.getitimer(signal.ITIMER_REAL)[0]
        signal.raise_signal(signal.SIGALRM)

        assert 25.0 < remaining_s <= 30.0
        assert seen == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *running)


def test_uninstalling_gives_the_signal_back():
    before = signal.getsignal(signal.SIGALRM)
    guard = TimeGuard()
    guard.call(1.0, divmod, 7, 2)
    during = signal.getsignal(signal.SIGALRM)

    guard.uninstall()

    assert during is not before
    assert signal.getsignal(signal.SIGALRM) is before


def test_it_takes_the_signal_again_from_whoever_took_it(guard):
    guard.call(1.0, divmod, 7, 2)
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)

    with pytest.raises(ScriptTimeoutError):
        guard.call(LIMIT_S, loop_forever)

    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_event_loop_goes_on_after_a_timeout(guard, new_loop):
    async def decide_twice():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        with pytest.raises(ScriptTimeoutError):
            guard.call(LIMIT_S, loop_forever)
        await asyncio.sleep(0)
        return guard.call(1.0, divmod, 7, 2)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(decide_twice()) == (3, 1)
