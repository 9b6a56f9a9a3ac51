import asyncio
import csv
import json
import threading
from contextlib import contextmanager

import pytest
from aiohttp import web
from click.testing import CliRunner

from ccr.errors import CCRError, TraceError
from router.replay import NO_MODEL, Plan, Reading, replay, schedule

TRACE = """t,model,version,prompt_tokens,output_tokens,session,priority
0.00,llama,,100,10,s1,0
0.02,qwen,2,,0,,5
0.04,llama,,50,5,,0
0.06,llama,,50,5,,0
"""


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


@contextmanager
def a_server(status=200):
    """An OpenAI server in its own loop and thread: the command brings a loop of its own."""
    seen = []

    async def handler(request):
        body = await request.json()
        seen.append(
            (body["model"], body["max_tokens"], request.headers.get("x-session-id"), body.get("stream"))
        )
        if status != 200:
            return web.Response(status=status)
        return web.json_response({"choices": [{}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async def start():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, site._server.sockets[0].getsockname()[1]

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run(*arguments):
    return CliRunner().invoke(replay, [str(argument) for argument in arguments], standalone_mode=False)


def test_requests_go_out_at_the_traces_own_times(trace):
    reading = Reading()

    found = list(schedule(Plan(trace, rate_scale=2.0), reading))

    assert [due_s for due_s, _ in found] == pytest.approx([0.0, 0.01, 0.02, 0.03])
    assert reading.sent == 4


def test_a_part_of_the_trace_begins_at_once(trace):
    found = list(schedule(Plan(trace, start_s=0.02, duration_s=0.04), Reading()))

    assert [due_s for due_s, _ in found] == pytest.approx([0.0, 0.02])


def test_a_limit_stops_early(trace):
    assert len(list(schedule(Plan(trace, limit=2), Reading()))) == 2


def test_a_row_becomes_a_shot_and_what_was_filled_in_is_counted(trace):
    reading = Reading()

    shots = [shot for _, shot in schedule(Plan(trace, default_prompt=77, default_output=33), reading)]

    assert (shots[0].model, shots[0].prompt_tokens, shots[0].output_tokens, shots[0].session) == (
        "llama",
        100,
        10,
        "s1",
    )
    assert (shots[1].version, shots[1].prompt_tokens, shots[1].output_tokens, shots[1].priority) == (
        "2",
        77,
        33,
        5,
    )
    assert reading.filled == {"prompt_tokens": 1, "output_tokens": 1}


def test_models_can_be_mapped_or_forced(trace):
    mapped = [shot.model for _, shot in schedule(Plan(trace, model_map={"llama": "chat"}), Reading())]
    forced = {shot.model for _, shot in schedule(Plan(trace, model="one"), Reading())}

    assert mapped == ["chat", "qwen", "chat", "chat"]
    assert forced == {"one"}


def test_a_row_without_a_model_needs_one_from_the_plan(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("t,model\n0,\n")

    with pytest.raises(TraceError, match="line 2: model is empty; say which to ask for with --model"):
        list(schedule(Plan(path), Reading()))


def test_a_recorded_request_that_ended_without_a_model_is_left_out_and_counted(tmp_path):
    """It asked for what does not exist, or was never read to its end: there is nothing to send again."""
    path = tmp_path / "trace.csv"
    path.write_text("t,model,status\n0,llama,ok\n1,,rejected\n2,,error\n3,llama,rejected\n")
    reading, forced = Reading(), Reading()

    found = [due_s for due_s, _ in schedule(Plan(path), reading)]
    every = [shot.model for _, shot in schedule(Plan(path, model="one"), forced)]

    assert found == [0.0, 3.0]
    assert (reading.sent, reading.skipped) == (2, {NO_MODEL: 2})
    assert (every, forced.skipped) == (["one"] * 4, {})


def test_a_trace_of_nothing_but_such_requests_says_why_nothing_was_sent(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("t,model,status\n1,,rejected\n")

    result = run(path, "--target", "http://127.0.0.1:1")

    assert "no request in the part that was asked for" in str(result.exception)
    assert f"rows left out: {NO_MODEL} 1" in result.stdout


def test_a_replay_ends_with_its_figures(trace, tmp_path):
    out = tmp_path / "out.json"
    with a_server() as (url, seen):
        result = run(trace, "--target", url, "--no-stream", "--json", out)

    assert result.exception is None
    figures = json.loads(out.read_text())
    assert (figures["requests"], figures["errors"]) == (4, 0)
    assert figures["p50_ms"] > 0
    assert figures["lengths_filled"] == {"prompt_tokens": 1, "output_tokens": 1}
    assert seen == [
        ("llama", 10, "s1", None),
        ("qwen", 64, None, None),
        ("llama", 5, None, None),
        ("llama", 5, None, None),
    ]
    assert "filled from the defaults: prompt_tokens 1, output_tokens 1" in result.stdout


def test_clients_in_a_closed_loop_share_the_trace(trace):
    with a_server() as (url, seen):
        result = run(
            trace, "--target", f"{url}/v1/", "--no-stream", "--clients", 3, "--think-time", "1ms", "--json"
        )

    assert result.exception is None
    assert json.loads(result.stdout)["requests"] == 4
    assert sorted(model for model, *_ in seen) == ["llama", "llama", "llama", "qwen"]


def test_samples_are_a_row_for_each_request(trace, tmp_path):
    out = tmp_path / "samples.csv"

    with a_server() as (url, _):
        run(trace, "--target", url, "--no-stream", "--samples", out)

    with out.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["line"]))
    assert [(row["line"], row["model"], row["error"], row["status"]) for row in rows] == [
        ("2", "llama", "", "200"), ("3", "qwen", "", "200"), ("4", "llama", "", "200"), ("5", "llama", "", "200"),
    ]  # fmt: skip
    assert [float(row["due_s"]) for row in rows] == [0.0, 0.02, 0.04, 0.06]
    assert all(float(row["sent_s"]) < float(row["ended_s"]) for row in rows)


def test_samples_that_cannot_be_written_are_an_error(trace, tmp_path):
    with a_server() as (url, _):
        result = run(trace, "--target", url, "--samples", tmp_path / "nowhere" / "samples.csv")

    assert isinstance(result.exception, CCRError)
    assert "cannot write" in str(result.exception)


def test_bad_rows_stop_or_are_counted(trace):
    trace.write_text(TRACE + "oops,llama,,,,,\n")
    with a_server() as (url, _):
        stopped = run(trace, "--target", url, "--no-stream")
        skipping = run(trace, "--target", url, "--no-stream", "--skip-bad", "--json")

    assert isinstance(stopped.exception, TraceError)
    assert "line 6" in str(stopped.exception)
    assert json.loads(skipping.stdout)["rows_skipped"] == {"t is no time": 1}


def test_a_target_that_answers_nothing_is_an_error_after_the_table(trace):
    with a_server(status=503) as (url, _):
        result = run(trace, "--target", url)

    assert isinstance(result.exception, CCRError)
    assert "http_503 4" in str(result.exception)
    assert "Replay" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--think-time", "1s"], ["--clients", "2", "--rate-scale", "2"], ["--model-map", "a"], ["--model-map", "=b"],
     ["--duration", "soon"], ["--target", "ftp://x"], ["--rate-scale", "0"]],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(trace, arguments):
    result = CliRunner().invoke(replay, [str(trace), "--target", "http://127.0.0.1:1", *arguments])

    assert result.exit_code == 2
