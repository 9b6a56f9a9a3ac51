"""The commands as an operator calls them: against files, and against a running router."""

import asyncio
import gc
import io
import json
import os
import stat
import sys
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout

import pytest
import structlog
import yaml

from ccr import log
from ccr.cli import main
from ccr.settings import parse
from ccr.weights import save
from router.auth import Keys
from router.server import Serving
from tests.weights import VERSION, some_weights

SCRIPT = "def score(node, req):\n    return -node.inflight\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Neither variables nor files of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("CCR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    log.configure("json", "error", io.StringIO())
    yield
    structlog.reset_defaults()


def ccr(*arguments):
    """Exit code, standard output, standard error of ``ccr arguments``."""
    before, sys.argv = sys.argv, ["ccr", *map(str, arguments)]
    try:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                main()
                code = 0
            except SystemExit as exit_:
                code = exit_.code
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def config(tmp_path):
    """Writes a config and gives its path."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


# -- config


def test_a_good_config_is_summed_up(config):
    path = config("policy: {name: random}\nnodes: [{url: 'http://10.0.0.1:8000'}]\nmodels: {llama: {}}")

    assert ccr("config", "check", path) == (
        0,
        f"{path} is good: policy random, nodes 1, models 1, keys 0\n",
        "",
    )
    code, out, _ = ccr("config", "check", path, "--json")
    assert (code, json.loads(out)) == (
        0,
        {"ok": True, "policy": "random", "nodes": 1, "models": 1, "keys": 0},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: {port: x}", "server.port"),
        ("policy: {name: random, options: {nope: 1}}", "it takes none"),
        ("policy: {script: /nowhere/policy.py}", "/nowhere/policy.py"),
        ("nodes: [{url: 'ftp://a'}]", "http://"),
        ("nodes: [{url: 'http://169.254.169.254:80'}]", "no node may live there"),
        ("nodes: [{url: 'http://a:1', id: x}, {url: 'http://a:1', id: y}]", "same url"),
    ],
)
def test_a_wrong_config_is_refused_with_exit_code_1(text, message, config):
    path = config(text)

    code, out, err = ccr("config", "check", path)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err

    code, out, err = ccr("config", "check", path, "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["ok"] is False
    assert message in json.loads(out)["error"]


def test_a_missing_config_is_refused(tmp_path):
    assert ccr("config", "check", tmp_path / "nope.yaml")[0] == 1


def test_a_config_is_checked_with_its_script(config, tmp_path):
    script = tmp_path / "policy.py"
    script.write_text(SCRIPT)
    script.chmod(0o644)
    path = config(f"policy: {{script: '{script}'}}")
    assert ccr("config", "check", path)[0] == 0

    script.write_text("import os\n")

    code, _, err = ccr("config", "check", path)
    assert code == 1
    assert "policy.py:1" in err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_what_is_in_force_is_shown_with_secrets_masked(form, config, monkeypatch):
    monkeypatch.setenv("CCR_SERVER__PORT", "1234")
    path = config(
        "admin: {token: hunter2}\nnodes: [{url: 'http://a:1', api_key: hunter2}]\nserver: {drain: 2m}"
    )

    code, out, _ = ccr("config", "show", "--config", path, *form)
    shown = yaml.safe_load(out)

    assert code == 0
    assert "hunter2" not in out
    assert shown["server"]["port"] == 1234
    assert shown["server"]["drain"] == 120.0
    assert shown["admin"]["token"] == "**********"


# -- keys


def test_a_new_key_opens_what_its_entry_says():
    code, out, _ = ccr("key", "new", "team-a", "--model", "llama", "--model", "qwen", "--json")
    made = json.loads(out)

    settings = parse(json.dumps({"keys": [made["entry"]]}).encode(), "config.yaml")
    tenant = Keys(settings.keys).tenant({b"authorization": b"Bearer " + made["key"].encode()})

    assert code == 0
    assert (tenant.name, tenant.models) == ("team-a", {"llama", "qwen"})
    assert made["key"] not in json.dumps(made["entry"])


def test_for_people_the_entry_can_be_pasted_into_the_config():
    code, out, _ = ccr("key", "new", "team-a")
    shown, _, entry = out.partition("for the config:\n")

    settings = parse(entry.encode(), "config.yaml")

    assert code == 0
    assert Keys(settings.keys).tenant({b"x-api-key": shown.split()[-1].encode()}).may_use("anything")


# -- a running router


@asynccontextmanager
async def running(text=""):
    """A router that serves, and a function that calls ``ccr`` about it."""
    settings = parse(
        f"server: {{port: 0}}\nadmin: {{port: 0}}\nnodes: [{{url: 'http://127.0.0.1:9', id: a, models: [m]}}]\n{text}".encode(),
        "config.yaml",
    )
    serving = Serving(settings)
    thresholds = gc.get_threshold()
    task = asyncio.create_task(serving.run())
    while not serving.router.is_ready()[0]:  # noqa: ASYNC110 - readiness has no event
        await asyncio.sleep(0)

    async def call(*arguments):
        return await asyncio.to_thread(ccr, *arguments, "--admin", call.url)

    call.url = f"http://127.0.0.1:{serving.admin_port}"

    try:
        yield call
    finally:
        serving.stop()
        serving.stop()
        await task
        gc.unfreeze()  # a serving process settles its memory for good; this one goes on
        gc.set_threshold(*thresholds)


async def test_a_running_router_is_looked_at_and_steered():
    """With the token the router made and kept for this user."""
    async with running() as call:
        code, out, _ = await call("status")
        assert code == 0
        assert "policy learned, 0 in flight, ready" in out
        assert "127.0.0.1:9" in out
        assert json.loads((await call("status", "--json"))[1])["nodes"][0]["id"] == "a"

        assert await call("drain", "a") == (0, "a is draining\n", "")
        node = json.loads((await call("status", "--json"))[1])["nodes"][0]
        assert (node["available"], node["why"]) == (False, "draining")
        assert await call("drain", "a", "--undo") == (0, "a is back in rotation\n", "")

        code, out, _ = await call("policy", "use", "random")
        assert out.startswith("random serves now (before: learned)")
        assert (await call("policy", "show"))[1].startswith("random; falls back to hot_cold")
        assert json.loads((await call("policy", "show", "--json"))[1])["epoch"] == 2

        assert json.loads((await call("decisions", "--json"))[1]) == []
        assert (await call("decisions", "-n", "5"))[0] == 0


async def test_weights_are_put_in_force_and_told(tmp_path, monkeypatch):
    """A relative path is that of the one who types it."""
    save(some_weights(), tmp_path / "some.npz")
    monkeypatch.chdir(tmp_path)
    async with running() as call:
        assert (await call("policy", "use", "learned", "--weights", "some.npz"))[1].startswith(
            "learned serves now"
        )
        assert (await call("policy", "show"))[1].startswith(
            f"learned (weights {VERSION}); falls back to hot_cold"
        )

        code, _, err = await call("policy", "use", "learned", "--weights", "other.npz")
        assert (code, f"cannot read weights {tmp_path}/other.npz" in err) == (1, True)
        assert json.loads((await call("policy", "show", "--json"))[1])["version"] == VERSION


async def test_what_a_router_refuses_is_its_own_words_and_exit_code_1():
    async with running() as call:
        for arguments, message in [
            (("drain", "nope"), "there is no node 'nope'"),
            (("drain", "../policy"), "Not Found"),
            (("policy", "use", "nope"), "no policy is called 'nope'"),
            (("policy", "reload"), "no script is configured"),
            (("decisions", "-n", "0"), ""),
        ]:
            code, out, err = await call(*arguments)

            assert (code, out) == (1, ""), arguments
            assert err.startswith("error: ")
            assert message in err


async def test_a_script_is_reloaded(tmp_path):
    script = tmp_path / "policy.py"
    script.write_text(SCRIPT)
    script.chmod(0o644)

    async with running(f"policy: {{script: '{script}'}}") as call:
        code, out, _ = await call("policy", "reload", "--json")
        assert (code, json.loads(out)["policy"]) == (0, "script")
        assert (await call("policy", "reload"))[1].startswith("script serves now")

        script.write_text("import os\n")
        code, _, err = await call("policy", "reload")
        assert code == 1
        assert "policy.py:1" in err
        assert (await call("policy", "show"))[1].startswith(f"script ({script}")


async def test_a_wrong_token_is_refused(monkeypatch):
    async with running() as call:
        monkeypatch.setenv("CCR_ADMIN__TOKEN", "wrong")

        code, _, err = await call("status")

    assert (code, "admin token" in err) == (1, True)


async def test_no_proxy_of_the_environment_sees_the_token():
    """Nothing listens there: a call that went to the proxy would fail."""
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")

    async with running() as call:
        command = [sys.executable, "-m", "ccr", "status", "--admin", call.url]
        done = await asyncio.create_subprocess_exec(*command, env=os.environ | proxies, stdout=-1)
        out, _ = await done.communicate()

    assert (done.returncode, b"policy learned" in out) == (0, True)


def test_where_no_router_answers_the_error_says_so(monkeypatch):
    monkeypatch.setenv("CCR_ADMIN__TOKEN", "t")

    code, out, err = ccr("status", "--admin", "http://127.0.0.1:9")

    assert (code, out) == (1, "")
    assert err.startswith("error: no router answers at http://127.0.0.1:9 (")
    assert err.count("\n") == 1


def test_without_a_token_the_error_says_where_one_was_looked_for(tmp_path):
    code, _, err = ccr("status", "--admin", "http://127.0.0.1:4711")

    assert code == 1
    assert f"{tmp_path}/.ccr/admin-4711.token" in err
    assert "CCR_ADMIN__TOKEN" in err


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"SSH-2.0-x\r\n", b""])
async def test_what_is_no_router_is_told_from_one(answer, monkeypatch):
    monkeypatch.setenv("CCR_ADMIN__TOKEN", "t")

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, out, err = await asyncio.to_thread(ccr, "status", "--admin", url)

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert url in err


@pytest.mark.parametrize("url", ["127.0.0.1:8091", "file:///etc/passwd", "localhost", "http://"])
def test_what_is_no_admin_url_is_a_wrong_call(url):
    code, _, err = ccr("status", "--admin", url)

    assert code == 2
    assert "is no base URL" in err


def test_the_token_file_of_a_router_is_private(tmp_path):
    async def start_and_stop():
        async with running():
            return list((tmp_path / ".ccr").iterdir())

    (path,) = asyncio.run(start_and_stop())

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
