"""Traces of a running router: a row for every request however it ended, no word of a prompt, and never in the way."""

import asyncio
import io
import json
import resource
import signal
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import pytest
import structlog.testing
from click.testing import CliRunner

from ccr import log
from ccr.segments import PART, TORN, rows, segments
from router.recording import cli
from router.replay_reader import read
from tests.router.fake_node import DEAD, MODEL, STREAM, FakeNode, Reply
from tests.router.harness import TOKEN, running_router, until
from tests.router.test_journey_process import a_process

CANARY = "xyzzy-canary-of-the-tests"
RECORD = "/admin/record"
ROUND = {"policy": {"name": "random", "exploration": 0.5}, "upstream": {"retries": 0}}
BUSY = {"admission": {"max_qps": 1.0}}


@pytest.fixture(autouse=True)
def logs():
    log.configure("json", "info", io.StringIO())
    yield
    structlog.reset_defaults()


@asynccontextmanager
async def recording(router, directory, **more):
    """What happens inside is recorded; afterwards the files are complete."""
    answer = await router.admin("POST", RECORD, {"directory": str(directory), **more})
    assert answer.status == 200, answer.body
    yield
    await router.admin("POST", RECORD + "/stop")
    assert (await router.admin("GET", RECORD)).json["state"] in {"done", "failed"}


def recorded(directory, kind="requests"):
    skipped = Counter()
    found = list(rows(directory, skipped, kind))
    assert not skipped
    return found


def everything(directory):
    return b"".join(path.read_bytes() for path in directory.iterdir())


def a_body(**fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], "user": CANARY, **fields}


async def metric(router, name):
    page = (await router.get("/metrics")).body.decode()
    return {line.split(" ")[0].removeprefix(name): float(line.split(" ")[1]) for line in page.splitlines()
            if line.startswith((name + "{", name + " "))}  # fmt: skip


# -- what is in it


async def test_every_request_is_one_row_however_it_ended(tmp_path):
    node = FakeNode("a", models=(MODEL,))
    async with running_router(ROUND, node) as router, recording(router, tmp_path):
        for reply in (Reply(), STREAM, Reply(status=500), Reply(status=404), DEAD):
            node.script.append(reply)
            await router.post(body=a_body())
        await router.post(body=a_body(model=CANARY))
        await router.post(body=b'{"model": "' + CANARY.encode())
        await router.post("/route", {"model": "nobody-has-it"})
        routed = (await router.post("/route", {"model": MODEL})).json
        await router.post(
            "/feedback", {"decision_token": routed["decision_token"], "latency_ms": 0.5, "output_tokens": 7}
        )
        await router.quiet()
        outcomes = router.outcomes()

    found = recorded(tmp_path)
    assert Counter(row["outcome"] for row in found) == outcomes
    assert Counter(row["status"] for row in found) == {"ok": 3, "error": 3, "rejected": 3}
    assert [row["output_tokens"] for row in found if row["status"] == "ok"] == [5, None, 7]


async def test_a_refusal_keeps_the_model_that_was_settled(tmp_path):
    """Else an overloaded model would look like one that nobody asked for."""
    async with running_router(BUSY, FakeNode()) as router, recording(router, tmp_path):
        refused = [(await router.post(body=a_body())).status for _ in range(3)][1:]

    found = recorded(tmp_path)
    assert refused == [429, 429]
    assert [(row["model"], row["status"], row["node"], row["propensity"]) for row in found[1:]] == [
        (MODEL, "rejected", "", None)
    ] * 2


async def test_a_row_has_what_learning_from_it_needs(tmp_path):
    async with running_router(ROUND, FakeNode("a"), FakeNode("b")) as router, recording(router, tmp_path):
        for _ in range(20):
            await router.post(body=a_body(), headers={"x-session-id": "s-" + CANARY, "x-ccr-priority": "1"})

    found = recorded(tmp_path)
    assert len(found) == 20
    for row in found:
        assert 0.0 < row["propensity"] <= 1.0
        assert row["node"] in {one["node"] for one in row["candidates"]} == {"a", "b"}
        assert row["policy"] == "random@1"
        assert (row["prompt_tokens"], row["output_tokens"], row["cold_start"]) == (3, 5, 0)
        assert 0.0 <= row["queue_ms"] <= row["ttft_ms"] <= row["total_ms"]
    assert {row["node"] for row in found} == {"a", "b"}
    assert len({row["session"] for row in found}) == 1
    assert found[0]["session"]


async def test_no_word_of_a_client_is_in_it(tmp_path):
    """Prompt, model names nobody knows, headers, ids, paths: none of what clients write freely."""
    headers = dict.fromkeys(
        ("x-session-id", "x-request-id", "authorization", "user-agent", "x-anything"), CANARY
    )
    async with running_router({}, FakeNode()) as router, recording(router, tmp_path):
        await router.post(body=a_body(), headers=headers)
        await router.post(body=a_body(), headers={"x-model-name": CANARY})
        await router.post(body=a_body(), headers={"x-model-version": CANARY})
        await router.post(body=CANARY.encode(), headers=headers)
        await router.post(body=a_body(model=CANARY), headers=headers)
        await router.post(f"/v1/completions?{CANARY}", a_body(prompt=CANARY), headers=headers)

    assert len(recorded(tmp_path)) == 6
    assert CANARY.encode() not in everything(tmp_path)


async def test_what_the_nodes_tell_is_recorded_too(tmp_path):
    node = FakeNode("a")
    async with (
        running_router({"telemetry": {"interval": 0.02}}, node) as router,
        recording(router, tmp_path),
    ):
        await until(lambda: router.router.recordings.status()["rows"]["telemetry"] >= 2)
        node.models = (MODEL, "lora-1")
        await until(lambda: router.router.recordings.status()["rows"]["loads"] >= 1)

    telemetry, loads = recorded(tmp_path, "telemetry"), recorded(tmp_path, "loads")
    assert {(row["node"], row["kv_used_frac"], row["gpu_util"]) for row in telemetry} == {("a", 0.25, None)}
    assert [row["loaded"] for row in telemetry][-1] == f"lora-1 {MODEL}"
    assert [(row["node"], row["kind"], row["model"]) for row in loads] == [("a", "", "lora-1")]


async def test_rows_are_in_order_of_arrival_not_of_ending_and_can_be_replayed(tmp_path):
    slow = Reply(chunks=(b"{}",), paced=True)
    node = FakeNode("a")
    async with running_router({}, node) as router, recording(router, tmp_path):
        node.script.append(slow)
        first = asyncio.create_task(router.post())
        await until(lambda: node.concurrent == 1)
        await router.post(headers={"x-ccr-priority": "2"})
        node.release()
        await first

    (segment,) = [one for one in segments(tmp_path) if one.kind == "requests"]
    assert [arrival.priority for arrival in read(segment.path)] == [0, 2]


async def test_only_requests_that_arrived_meanwhile_are_in_it(tmp_path):
    held = Reply(chunks=(b"{}",), paced=True)
    node = FakeNode("a", held)
    async with running_router({}, node) as router:
        before = asyncio.create_task(router.post())
        await until(lambda: node.concurrent == 1)
        async with recording(router, tmp_path):
            node.release()
            await before
            after = asyncio.create_task(router.post())
            await until(lambda: node.concurrent == 1)
        status = (await router.admin("GET", RECORD)).json
        node.release()
        await after

    assert (status["rows"]["requests"], status["dropped"]["before_start"], status["unfinished"]) == (0, 1, 1)


# -- starting and ending


async def test_nothing_is_recorded_unless_asked_for(tmp_path):
    async with running_router({}, FakeNode()) as router:
        await router.post()
        status = (await router.admin("GET", RECORD)).json
        stopped = (await router.admin("POST", RECORD + "/stop")).json

    assert status == stopped == {"state": "off"}


async def test_with_a_directory_in_the_config_recording_begins_with_the_router_and_ends_with_it(tmp_path):
    async with running_router({"record": {"directory": str(tmp_path / "traces")}}, FakeNode()) as router:
        await router.post()

    assert [row["status"] for row in recorded(tmp_path / "traces")] == ["ok"]
    assert all(segment.is_sealed for segment in segments(tmp_path / "traces"))


async def test_a_recording_ends_by_itself_when_its_time_has_come(tmp_path):
    """Whoever asked for it may be gone."""
    async with running_router({}, FakeNode()) as router:
        await router.admin("POST", RECORD, {"directory": str(tmp_path), "length_s": 600.0})
        await router.post()
        router.clock.skip(601.0)
        await until(lambda: router.router.recordings.state == "done")
        await router.post()

    assert len(recorded(tmp_path)) == 1


async def test_one_recording_at_a_time_and_another_afterwards(tmp_path):
    async with running_router({}, FakeNode()) as router:
        async with recording(router, tmp_path / "one"):
            second = await router.admin("POST", RECORD, {"directory": str(tmp_path / "two")})
            await router.post()
        async with recording(router, tmp_path / "two", kinds=["requests"]):
            await router.post()
        total = await metric(router, "ccr_record_rows_total")

    assert (second.status, second.code) == (409, "busy")
    assert "ccr traces record --stop" in second.json["error"]["message"]
    assert (len(recorded(tmp_path / "one")), len(recorded(tmp_path / "two"))) == (1, 1)
    assert total['{kind="requests"}'] == 2.0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"directory": "relative"},
        {"directory": "/tmp/x", "kinds": ["prompts"]},
        {"directory": "/tmp/x", "length_s": 0},
    ],
)
async def test_what_is_no_recording_is_refused(body):
    async with running_router({}, FakeNode()) as router:
        answer = await router.admin("POST", RECORD, body)

    assert answer.status == 422


# -- faults


@contextmanager
def a_full_disk(free=4096):
    """The kernel refuses every byte of a file beyond so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_when_the_disk_is_full_recording_stops_and_serving_goes_on(tmp_path):
    with structlog.testing.capture_logs() as logged:
        async with (
            running_router({}, FakeNode()) as router,
            recording(router, tmp_path, kinds=["requests"]),
        ):
            statuses = [(await router.post()).status]
            await until(lambda: router.router.recordings.counts().rows["requests"])
            with a_full_disk():
                while router.router.recordings.state != "failed":
                    statuses.append((await router.post()).status)
            statuses += [(await router.post()).status for _ in range(3)]
            status = (await router.admin("GET", RECORD)).json
            failures = await metric(router, "ccr_record_failures_total")
            dropped = await metric(router, "ccr_record_dropped_total")

    found = recorded(tmp_path)
    assert set(statuses) == {200}
    assert [event["event"] for event in logged].count("record.failed") == 1
    assert "File too large" in status["error"]
    assert failures == {"": 1.0}
    assert dropped['{reason="failed"}'] >= 3.0
    assert 0 < len(found) == len(statuses) - dropped['{reason="failed"}']


async def test_a_directory_that_cannot_be_written_is_refused_and_serving_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "below")
    async with running_router({}, FakeNode()) as router:
        refused = await router.admin("POST", RECORD, {"directory": nowhere})
        served = await router.post()

    assert (refused.status, served.status) == (422, 200)
    assert "cannot record into" in refused.json["error"]["message"]


async def test_a_router_whose_directory_cannot_be_written_serves_and_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with structlog.testing.capture_logs() as logged:
        async with running_router({"record": {"directory": str(tmp_path / "file")}}, FakeNode()) as router:
            served = await router.post()
            failures = await metric(router, "ccr_record_failures_total")

    assert served.status == 200
    assert failures == {"": 1.0}
    assert [event["event"] for event in logged].count("record.failed") == 1


async def test_after_kill_9_every_whole_line_is_a_row_and_the_next_router_seals_it(tmp_path):
    directory = tmp_path / "traces"
    settings = {"record": {"directory": str(directory)}, "telemetry": {"interval": 0.02}}
    async with a_process(tmp_path, settings, FakeNode()) as (process, _):
        await until(
            lambda: any(path.stat().st_size > 2000 for path in directory.glob(f"*.telemetry.*{PART}")), 20.0
        )
        process.child.send_signal(signal.SIGKILL)
        await process.exit_code()
    (part,) = directory.glob(f"*.telemetry.*{PART}")
    whole = len(recorded(directory, "telemetry"))
    with part.open("ab") as stream:
        stream.write(b'{"t":99.5,"node":"a","gpu_')
    skipped = Counter()

    torn = list(rows(directory, skipped, "telemetry"))
    async with running_router({}, FakeNode()) as router, recording(router, directory):
        pass

    (sealed,) = [
        one for one in segments(directory) if one.kind == "telemetry" and part.name.startswith(one.recording)
    ]
    assert len(torn) == whole >= 5
    assert skipped == {TORN: 1}
    assert len(list(rows(sealed.path, Counter()))) == whole
    assert not list(directory.glob(f"*{PART}"))


# -- the command


@asynccontextmanager
async def command(router, monkeypatch, *arguments):
    """``ccr traces record`` against this router, in a thread of its own; the value is its future result."""
    monkeypatch.setenv("CCR_ADMIN__TOKEN", TOKEN)
    monkeypatch.setattr(cli, "LOOK_S", 0.01)
    call = [*map(str, arguments), "--admin", router.admin_url]
    task = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, cli.record, call))
    yield task
    await task


async def test_the_command_records_for_the_time_given_and_sums_up(tmp_path, monkeypatch):
    async with (
        running_router({}, FakeNode()) as router,
        command(router, monkeypatch, "--out", tmp_path, "--minutes", 10) as running,
    ):
        await until(lambda: router.router.recordings.state == "recording")
        await router.post()
        router.clock.skip(599.0)
        assert router.router.recordings.state == "recording"
        router.clock.skip(2.0)
        done = await running

    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/{segments(tmp_path)[0].recording}.*" in done.stdout
    assert "recording: " in done.stderr
    assert len(recorded(tmp_path)) == 1


async def test_ctrl_c_ends_the_recording_in_good_order(tmp_path, monkeypatch):
    async with running_router({}, FakeNode()) as router:

        def interrupted(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=interrupted))
        async with command(router, monkeypatch, "--out", tmp_path, "--json", "--kind", "requests") as running:
            done = await running

    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["state"], told["directory"], told["kinds"]) == ("done", str(tmp_path), ["requests"])


async def test_the_command_ends_a_recording_that_somebody_else_began(tmp_path, monkeypatch):
    async with running_router({"record": {"directory": str(tmp_path)}}, FakeNode()) as router:
        async with command(router, monkeypatch, "--stop", "--json") as running:
            done = await running
        async with command(router, monkeypatch, "--out", tmp_path, "--minutes", 1) as running:
            await until(lambda: router.router.recordings.state == "recording")
            router.clock.skip(61.0)
            again = await running

    assert (done.exit_code, json.loads(done.stdout)["state"]) == (0, "done")
    assert again.exit_code == 0, again.output


async def test_a_recording_that_failed_is_exit_code_1_with_the_reason(tmp_path, monkeypatch):
    async with (
        running_router({}, FakeNode()) as router,
        command(router, monkeypatch, "--out", tmp_path) as running,
    ):
        await until(lambda: router.router.recordings.state == "recording")
        with a_full_disk(10):
            await router.post()
            await until(lambda: router.router.recordings.state == "failed")
        done = await running

    assert done.exit_code == 1
    assert "the recording ended early: cannot write to" in str(done.exception)


def test_the_command_wants_to_know_where_to():
    done = CliRunner().invoke(cli.record, [])

    assert done.exit_code == 2
    assert "--out" in done.output
