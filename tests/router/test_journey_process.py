"""The router as a process: signals, exit codes, what it imports, and what it never writes down."""

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest
import yaml

from router.auth import new_key
from tests.router.fake_node import DEAD, FakeNode, Reply, sse
from tests.router.harness import CHAT, TOKEN, a_config, rest_of, until

STREAM = Reply(headers=((b"content-type", b"text/event-stream"),), chunks=sse("a", "b", "c"), paced=True)
STREAMED = {"model": "m", "stream": True}


class Process:
    """`ccr serve` as a child, its logs read line by line."""

    def __init__(self, child):
        self.child = child
        self.lines: list[bytes] = []
        self.seen: list[dict] = []
        self._ready = asyncio.Event()
        self.url = self.admin_url = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        async for line in self.child.stderr:
            self.lines.append(line)
            event = json.loads(line) if line.startswith(b"{") else {"event": "not JSON", "line": line}
            self.seen.append(event)
            if event.get("event") == "server.started":
                self.url, self.admin_url = event["url"], event["admin"]
            if self.url and self.events("fleet.changed"):
                self._ready.set()

    async def started(self):
        async with asyncio.timeout(20):
            await self._ready.wait()

    def events(self, name):
        return [event for event in self.seen if event["event"] == name]

    async def exit_code(self, within_s=10.0):
        async with asyncio.timeout(within_s):
            code = await self.child.wait()
            await self._reading
        return code


@asynccontextmanager
async def a_process(tmp_path, settings, *nodes, program=("-m", "ccr", "serve")):
    for node in nodes:
        await node.start()
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(a_config({"log": {"requests": True}, **settings}, [node.entry for node in nodes]))
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, *program, "--config", str(config),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    process = Process(child)
    try:
        await process.started()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:
            yield process, http
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        await process._reading
        child._transport.close()
        for node in nodes:
            await node.kill()


@asynccontextmanager
async def a_stream(process, http, node):
    """A streamed answer that has begun."""
    node.release()
    async with http.post(process.url + CHAT, json=STREAMED) as reply:
        await reply.content.readany()
        yield reply


async def is_refused(http, url):
    try:
        async with http.get(url):
            return False
    except aiohttp.ClientConnectorError:
        return True


async def test_sigterm_lets_a_stream_finish_takes_nothing_new_and_exits_0(tmp_path):
    node = FakeNode(reply=STREAM)
    async with a_process(tmp_path, {}, node) as (process, http), a_stream(process, http, node) as reply:
        process.child.send_signal(signal.SIGTERM)
        await until(lambda: process.events("server.draining"))
        async with aiohttp.ClientSession() as newcomer:
            while not await is_refused(newcomer, process.url + "/readyz"):
                pass
        node.release(10)
        rest, is_whole = await rest_of(reply)
        code = await process.exit_code()

    assert (is_whole, rest.endswith(b"data: [DONE]\n\n"), code) == (True, True, 0)
    assert [(event["status"], event["outcome"]) for event in process.events("request.ended")] == [(200, "ok")]
    assert process.events("server.stopped")[0]["aborted"] == 0


async def test_sigterm_says_not_ready_at_once_and_serves_on_in_its_grace_time(tmp_path):
    async with a_process(tmp_path, {"server": {"drain_grace": "20s"}}, FakeNode()) as (process, http):
        process.child.send_signal(signal.SIGTERM)
        await until(lambda: process.events("server.draining"))
        async with (
            http.get(process.url + "/readyz") as ready,
            http.post(process.url + CHAT, json={"model": "m"}) as one,
        ):
            statuses = (ready.status, one.status)
        process.child.send_signal(signal.SIGTERM)
        code = await process.exit_code()

    assert (statuses, code) == ((503, 200), 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once_and_says_so(tmp_path, number):
    node = FakeNode(reply=STREAM)
    async with a_process(tmp_path, {}, node) as (process, http), a_stream(process, http, node) as reply:
        process.child.send_signal(number)
        await until(lambda: process.events("server.draining"))

        process.child.send_signal(number)
        rest, is_whole = await rest_of(reply)
        code = await process.exit_code(within_s=5)

    assert (is_whole, b'"code":"draining"' in rest, code) == (False, True, 0)
    assert [event["outcome"] for event in process.events("request.ended")] == ["aborted_drain"]


async def test_what_is_left_after_the_drain_time_is_aborted_and_recorded(tmp_path):
    node = FakeNode(reply=STREAM)
    settings = {"server": {"drain": "200ms"}}
    async with a_process(tmp_path, settings, node) as (process, http), a_stream(process, http, node) as reply:
        process.child.send_signal(signal.SIGTERM)
        _, is_whole = await rest_of(reply)
        code = await process.exit_code()

    assert (is_whole, code) == (False, 0)
    assert [event["outcome"] for event in process.events("request.ended")] == ["aborted_drain"]
    assert (
        process.events("server.stopped")[0] | {"aborted": 1, "in_flight": 0}
        == process.events("server.stopped")[0]
    )


async def test_an_admin_client_that_never_finishes_its_request_does_not_keep_the_process(tmp_path):
    async with a_process(tmp_path, {}, FakeNode()) as (process, _):
        host, port = process.admin_url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /admin/policy HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()

        process.child.send_signal(signal.SIGTERM)
        code = await process.exit_code(within_s=10)
        writer.close()

    assert code == 0


async def test_sighup_reads_the_script_again_and_keeps_the_old_one_if_it_is_bad(tmp_path):
    script = tmp_path / "policy.py"

    def write(text):
        script.write_text(text)
        script.chmod(0o600)

    write("def score(node, req):\n    return node.id == 'a'\n")
    settings = {"policy": {"script": str(script)}}
    async with a_process(tmp_path, settings, FakeNode("a"), FakeNode("b")) as (process, http):

        async def chosen():
            async with http.post(process.url + CHAT, json={"model": "m"}) as reply:
                return reply.headers["x-ccr-node"]

        before = await chosen()
        write("def score(node, req):\n    return node.id == 'b'\n")
        process.child.send_signal(signal.SIGHUP)
        await until(lambda: process.events("policy.swapped"))
        after = await chosen()
        write("def score(node, req:\n")
        process.child.send_signal(signal.SIGHUP)
        await until(lambda: process.events("policy.reload_refused"))
        still = await chosen()

    assert (before, after, still) == ("a", "b", "b")


WATCHED = """
import atexit, sys, json
atexit.register(lambda: print(json.dumps(sorted({name.split(".")[0] for name in sys.modules}))))
sys.argv[0] = "ccr"
from ccr.cli import main
main()
"""
HEAVY = {
    "torch",
    "stable_baselines3",
    "sb3_contrib",
    "gymnasium",
    "mlflow",
    "numba",
    "pandas",
    "scipy",
    "rl",
    "envs",
}


async def test_the_router_s_process_never_imports_what_only_the_learner_needs(tmp_path):
    async with a_process(tmp_path, {}, FakeNode(), program=("-c", WATCHED, "serve")) as (process, http):
        async with http.post(process.url + CHAT, json={"model": "m"}) as reply:
            assert reply.status == 200
        for path in ("/route", "/v1/models", "/metrics", "/openapi.json"):
            async with http.request(
                "POST" if path == "/route" else "GET", process.url + path, json={"model": "m"}
            ) as one:
                assert one.status == 200, path
        process.child.send_signal(signal.SIGTERM)
        code = await process.exit_code()
        imported = json.loads(await process.child.stdout.read())

    assert code == 0
    assert {"numpy", "uvloop", "httptools"} <= set(imported)
    assert not HEAVY & set(imported)


# -- what is never written down --------------------------------------------------------------------------------------

CANARY = "canary-7f3a9"


async def test_prompts_and_keys_are_in_no_log_metric_decision_or_error(tmp_path):
    """The canary goes in everywhere a client or node can put text; then everything that came out is searched."""
    key, digest = new_key()
    broken = Reply(headers=STREAM.headers, chunks=(CANARY.encode(),) * 3, kill_after=2)
    nodes = [FakeNode("good"), FakeNode("bad", DEAD, api_key=f"node-{CANARY}"), FakeNode("cut", broken)]
    settings = {
        "keys": [{"name": "t", "hash": digest, "models": ["*"]}],
        "policy": {"name": "round_robin"},
        "log": {"level": "debug", "requests": True},
        "sidecar": {"secret": f"sidecar-{CANARY}"},
    }
    text = {"messages": [{"role": "user", "content": f"prompt {CANARY}"}], "user": CANARY}
    bodies = [
        json.dumps({"model": "m", **text}), json.dumps({"model": "m", "stream": True, **text}),
        json.dumps({"model": "m", "max_tokens": CANARY, **text}), json.dumps({"model": 5, **text}),
        json.dumps(text), json.dumps({"model": "m", **text})[:-1], json.dumps([text]), f'"{CANARY}"',
        json.dumps({"model": "m", **text}) * 2, "\udcff".join((CANARY, CANARY)),
    ]  # fmt: skip
    errors = []
    async with a_process(tmp_path, settings, *nodes) as (process, http):
        for given in (key, f"wrong-{CANARY}"):
            for path in (CHAT, "/v1/messages", "/route", "/feedback", "/v1/nonesuch"):
                for body in bodies:
                    sent = {"authorization": f"Bearer {given}", "x-custom": CANARY, "x-ccr-priority": "low"}
                    data = body.encode("utf-8", "surrogateescape")
                    async with http.post(f"{process.url}{path}?q={CANARY}", data=data, headers=sent) as reply:
                        content, _ = await rest_of(reply)
                        if reply.status >= 400:
                            errors.append(content)
        admin = {"authorization": f"Bearer {TOKEN}"}
        for path in (
            "/admin/status",
            "/admin/config",
            "/admin/decisions?limit=1000",
            "/admin/ledger",
            "/metrics",
        ):
            async with http.get(process.admin_url + path, headers=admin) as reply:
                assert reply.status == 200
                errors.append(await reply.read())
        process.child.send_signal(signal.SIGTERM)
        await process.exit_code()
        written = b"".join(process.lines) + await process.child.stdout.read()

    assert process.events("request.ended")
    assert process.events("request.refused")
    for where, content in {"logs": written, "answers": b"".join(errors)}.items():
        assert CANARY.encode() not in content, where
        assert key.encode() not in content, where
    assert not process.events("request.crashed")
