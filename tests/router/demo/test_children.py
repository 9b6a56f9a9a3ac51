import os
import signal
import tempfile

import pytest

from router.demo.children import ChildError, Children
from router.demo.stage import free_ports

NODE = ["node", "--port", "0", "--json"]


@pytest.fixture(autouse=True)
def _logs_of_failed_children_go_with_the_test(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


async def output_of(child):
    return child.out.read_text() or None


async def comes_up(children, *arguments):
    child = children.start("node", arguments)
    await children.until(child, "speak", lambda: output_of(child))
    return child


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_children_and_their_logs_go_when_all_is_done():
    with Children() as children:
        child = await comes_up(children, *NODE)
        assert is_alive(child.process.pid)

    assert child.process.returncode == 0
    assert not is_alive(child.process.pid)
    assert not children.directory.exists()


async def test_children_go_when_something_fails_and_their_logs_stay():
    children = Children()

    child = children.start("node", NODE)
    children.__exit__(ZeroDivisionError, ZeroDivisionError(), None)

    assert not is_alive(child.process.pid)
    assert child.log.exists()


async def test_a_child_that_does_not_listen_to_sigterm_is_killed():
    with Children(grace_s=0.2) as children:
        child = await comes_up(children, *NODE)
        os.kill(child.process.pid, signal.SIGSTOP)

    assert child.process.returncode == -signal.SIGKILL


async def test_a_child_that_dies_is_named_with_its_last_words():
    with Children() as children, pytest.raises(ChildError) as error:
        await comes_up(children, "node", "--speed", "0")

    assert "the node ended with status 1" in str(error.value)
    assert "speed is 0" in str(error.value)
    assert str(children.directory) in str(error.value)


async def test_a_port_in_use_is_said_clearly():
    (port,) = free_ports(1)
    with Children() as children:
        await comes_up(children, "node", "--port", str(port))

        with pytest.raises(ChildError, match=str(port)):
            await comes_up(children, "node", "--port", str(port))


async def test_a_child_that_says_nothing_is_not_waited_for_for_ever():
    async def nothing():
        return None

    with Children() as children:
        child = children.start("node", NODE)
        with pytest.raises(ChildError, match="the node did not wake up within 0 s"):
            await children.until(child, "wake up", nothing, timeout_s=0.1)


async def test_the_environment_does_not_configure_children(monkeypatch):
    """A demo on a machine whose operator has ``CCR_*`` set is still the demo."""
    monkeypatch.setenv("CCR_SERVER__PORT", "nonsense")
    monkeypatch.setenv("OTHER", "kept")

    with Children() as children:
        child = children.start("config", ["config", "show"], {"CCR_SERVER__PORT": "1234"})
        shown = await children.until(child, "speak", lambda: output_of(child))

    assert "port: 1234" in shown
