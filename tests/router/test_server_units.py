"""The parts of the server that can be looked at without serving; the rest are journeys."""

import logging
import socket
import stat
import sys

import pytest
import structlog

from ccr.errors import ConfigError
from ccr.settings import AdminSettings, KeySettings, PolicySettings, ServerSettings, Settings
from router.server import Serving, _Forward


@pytest.fixture
def serving(tmp_path):
    """Builds one, with listeners on free ports, and closes them."""
    built = []

    def build(**sections):
        admin = AdminSettings(port=0, token_file=tmp_path / "token")
        built.append(Serving(Settings(**{"server": ServerSettings(port=0), "admin": admin} | sections)))
        return built[-1]

    yield build
    for one in built:
        one._data_socket.close()
        one._admin_socket.close()


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_two_free_ports_are_taken_before_anything_is_served(serving):
    built = serving()

    assert built.port > 0
    assert built.admin_port not in {0, built.port}


@pytest.mark.parametrize("section", ["server", "admin"])
async def test_a_port_in_use_is_refused_with_the_setting_to_change(section, serving, taken):
    kinds = {"server": ServerSettings, "admin": AdminSettings}

    with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{taken} .*`{section}\.port`"):
        serving(**{section: kinds[section](port=taken)})


async def test_an_address_of_another_machine_is_refused(serving):
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0"):
        serving(server=ServerSettings(host="192.0.2.1", port=0))


@pytest.mark.parametrize(
    "broken",
    [
        {"admin": AdminSettings(port=0, token_file="/proc/nowhere/token")},
        {"policy": PolicySettings(name="random", options={"nope": 1.0})},
    ],
    ids=["token file", "policy"],
)
async def test_a_start_that_fails_leaves_no_port_taken(broken, serving):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(ConfigError):
        serving(server=ServerSettings(port=port), **broken)

    socket.create_server(("127.0.0.1", port)).close()


async def test_a_made_token_is_kept_where_only_this_user_reads_it(serving, tmp_path):
    path = tmp_path / "new" / "token"

    built = serving(admin=AdminSettings(port=0, token_file=path))

    assert path.read_text().strip() == built.token
    assert len(built.token) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == ["token"]


async def test_a_token_file_of_before_is_replaced_and_not_added_to(serving, tmp_path):
    path = tmp_path / "token"
    path.write_text("an old token\n" * 100)
    path.chmod(0o644)

    built = serving()

    assert path.read_text() == built.token + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_configured_token_is_written_nowhere(serving, tmp_path):
    path = tmp_path / "token"

    built = serving(admin=AdminSettings(port=0, token="given", token_file=path))

    assert built.token == "given"
    assert not path.exists()


async def test_a_token_that_cannot_be_kept_is_refused_with_what_to_do(serving):
    with pytest.raises(ConfigError, match=r"cannot keep the admin token in .*CCR_ADMIN__TOKEN"):
        serving(admin=AdminSettings(port=0, token_file="/proc/nowhere/token"))


async def test_told_to_stop_it_is_no_longer_ready(serving):
    built = serving(keys=(KeySettings(name="a", hash="sha256:" + "0" * 64),))
    built.router.readiness.discovered = True
    assert built.router.is_ready() == (True, "")

    built.stop()

    assert built.router.is_ready() == (False, "draining")


async def test_only_the_second_stop_hurries(serving):
    built = serving()

    built.stop()
    assert not built._hurry.is_set()
    built.stop()

    assert built._hurry.is_set()


def forwarded(message, error=None):
    info = (type(error), error, None) if error else None
    with structlog.testing.capture_logs() as captured:
        _Forward().emit(logging.LogRecord("uvicorn.error", logging.ERROR, "f", 1, message, (), info))
    return captured


def test_what_libraries_log_comes_in_our_form():
    (line,) = forwarded("bad request\n", ValueError("x"))

    assert line["event"] == "library.said"
    assert (line["library"], line["message"], line["log_level"]) == ("uvicorn.error", "bad request", "error")
    assert line["error"] == "ValueError('x')"


def test_a_stream_cut_on_purpose_is_not_reported():
    assert forwarded("ASGI callable returned without completing response.") == []


def test_the_router_does_not_carry_the_learner():
    """None of these is needed to route, and each costs seconds or hundreds of megabytes."""
    import subprocess

    program = "import sys, router.server; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    heavy = {
        "torch",
        "stable_baselines3",
        "sb3_contrib",
        "gymnasium",
        "mlflow",
        "pandas",
        "numba",
        "httpx",
        "envs",
        "rl",
    }
    assert not heavy & set(done.stdout.split())
