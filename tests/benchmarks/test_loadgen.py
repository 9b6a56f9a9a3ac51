"""The load generator: counts what happened, and keeps its appointments."""

import asyncio
import itertools
import threading
import time
from contextlib import contextmanager
from itertools import takewhile

import httptools
import pytest

from benchmarks.loadgen import MAX_REQUEST_BYTES, Plan, due_s, run

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Served:
    """A loopback server in a thread: what it answered so far."""

    def __init__(self, answer):
        self.answer = answer
        self.count = 0
        self.bodies = set()


@contextmanager
def a_server(answer=lambda _: OK):
    """Serve until the end of the block; ``answer`` is called with the number of the request."""
    served, ready, stop = Served(answer), threading.Event(), []
    thread = threading.Thread(target=lambda: asyncio.run(_serve(served, ready, stop)))
    thread.start()
    ready.wait(10)
    try:
        yield served
    finally:
        stop[0]()
        thread.join(10)


async def _serve(served, ready, stop):
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    stop.append(lambda: loop.call_soon_threadsafe(over.set))
    server = await loop.create_server(lambda: Answering(served), "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    ready.set()
    await over.wait()
    server.close()


class Answering(asyncio.Protocol):
    def __init__(self, served):
        self.served = served
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.served.bodies.add(self.body)
        self.body = b""
        answer = self.served.answer(self.served.count)
        self.served.count += 1
        self.transport.write(answer) if answer else self.transport.close()


def a_plan(served, mode="closed", **changes):
    defaults = {"path": "/", "body": '{"a":1}', "connections": 4, "warm_s": 0.0, "duration_s": 0.3}
    return Plan(mode=mode, ports=(served.port,), **{**defaults, **changes})


def test_an_open_loop_sends_every_request_that_is_due_and_counts_each_once():
    with a_server() as served:
        plan = a_plan(served, "open", rate=300.0)

        result = run(plan)

    due = len(list(takewhile(lambda moment_s: moment_s < 0.3, due_s(plan))))
    assert served.bodies == {b'{"a":1}'}
    assert result["answered"] == served.count == due
    assert (result["failed"], result["unfinished"]) == (0, 0)
    assert result["latency_ms"]["n"] == due


def test_a_closed_loop_counts_what_the_server_answered():
    with a_server() as served:
        result = run(a_plan(served))

    assert 0 < result["answered"] <= served.count <= result["answered"] + 4
    assert result["rate_per_s"] == pytest.approx(result["latency_ms"]["n"] / 0.3)
    assert result["answered"] - 4 <= result["latency_ms"]["n"] <= result["answered"]


def test_the_warm_up_is_answered_but_not_measured():
    with a_server() as served:
        result = run(a_plan(served, "open", rate=300.0, warm_s=0.2, duration_s=0.1))

    assert result["latency_ms"]["n"] < result["answered"] == served.count


def test_an_open_loop_shows_a_stall_to_every_request_that_was_due_meanwhile():
    """A generator that waited for the answer before it sent the next would see one slow request."""
    stall_s, rate = 0.2, 400.0

    def stall_once(number):
        if number == 20:
            time.sleep(stall_s)  # the planted fault: the whole server stands still
        return OK

    with a_server(stall_once) as served:
        result = run(a_plan(served, "open", rate=rate, duration_s=0.5))

    # 40 of the 200 requests are due in the first half of the stall and wait for more than the other half.
    assert result["failed"] == 0
    assert result["latency_ms"]["max"] >= 1e3 * stall_s * 0.9
    assert result["latency_ms"]["p90"] >= 1e3 * stall_s / 2


def test_answers_that_are_not_2xx_are_failures_without_a_latency():
    refusal = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
    with a_server(lambda number: refusal if number % 2 else OK) as served:
        result = run(a_plan(served, "open", rate=200.0))

    assert result["answered"] + result["failed"] == served.count
    assert abs(result["answered"] - result["failed"]) <= 1
    assert result["latency_ms"]["n"] == result["answered"]


def test_a_dropped_connection_is_one_failure_and_the_next_request_goes_on():
    with a_server(lambda number: b"" if number == 5 else OK) as served:
        result = run(a_plan(served, "open", rate=200.0))

    assert result["failed"] == 1
    assert result["answered"] == served.count - 1


def test_a_server_that_is_not_there_is_an_error():
    with a_server() as served:
        pass

    with pytest.raises(ConnectionError):
        run(a_plan(served))


def test_chunk_delays_are_measured_from_the_stamps():
    """The node says it had the request 50 ms and sent the first chunk 50 ms later: none of that is delay."""

    def stamped(_):
        now_ns = time.monotonic_ns()
        body = f"data: @{now_ns - 50_000_000}:{now_ns}@\n\ndata: @0:{now_ns - 80_000_000}@\n\n".encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    with a_server(stamped) as served:
        result = run(a_plan(served, "stream"))

    assert result["chunk_ms"]["p50"] >= 80.0
    assert result["chunks"] == 2 * result["answered"]
    assert result["first_ms"]["p50"] == pytest.approx(result["latency_ms"]["p50"] - 50.0, abs=5.0)


def test_a_stamp_cut_by_the_network_is_read_whole():
    pieces = [b"data: @12", b"34:56", b"78@\n\n"]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    with a_server(
        lambda _: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n"
    ) as served:
        result = run(a_plan(served, "stream"))

    assert result["chunks"] == result["answered"] > 0


def test_the_same_seed_means_the_same_arrivals():
    plans = [Plan(mode="open", ports=(1,), path="/", body="", rate=500.0, seed=seed) for seed in (1, 1, 2)]

    first, again, other = (list(itertools.islice(due_s(plan), 5000)) for plan in plans)

    assert first == again != other
    assert first[-1] == pytest.approx(10.0, rel=0.1)


def test_a_request_that_may_not_fit_the_send_buffer_is_refused():
    plan = Plan(mode="closed", ports=(1,), path="/", body="x" * MAX_REQUEST_BYTES)

    with pytest.raises(ValueError, match="too large"):
        run(plan)
