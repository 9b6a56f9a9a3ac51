"""A file of nodes, watched."""

import asyncio
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccr.errors import ConfigError
from ccr.types import NodeSpec
from router.discovery.file import MAX_BYTES, FileDiscovery
from tests.router.discovery.hearing import Turns, watched

A, B = NodeSpec("a", "http://h:1"), NodeSpec("b", "http://h:2")
A_TEXT = "- {id: a, url: 'http://h:1'}\n"
B_TEXT = "- {id: b, url: 'http://h:2'}\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nodes.yaml"


def replace(path, text):
    """As a careful writer does it: complete file, then rename."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def refusal(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as refused:
        FileDiscovery(path).read()
    return str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("- id: a\n  url: http://h:1\n- id: b\n  url: http://h:2\n", id="a list"),
        pytest.param(
            "nodes:\n  - id: a\n    url: http://h:1\n  - id: b\n    url: http://h:2\n", id="under nodes"
        ),
        pytest.param(
            '[{"id": "a", "url": "http://h:1"}, {"id": "b", "url": "http://h:2"}]', id="JSON in YAML"
        ),
        pytest.param("\ufeff" + A_TEXT + B_TEXT, id="a byte order mark"),
        pytest.param("- &a {id: a, url: 'http://h:1'}\n- {<<: *a, id: b, url: 'http://h:2'}\n", id="anchors"),
    ],
)
def test_yaml_is_read(path, text):
    path.write_text(text)

    assert FileDiscovery(path).read() == (A, B)


@pytest.mark.parametrize("wrap", [lambda nodes: nodes, lambda nodes: {"nodes": nodes}])
def test_json_is_read_with_tabs_too(tmp_path, wrap):
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps(wrap([{"id": "a", "url": "http://h:1"}]), indent="\t"))

    assert FileDiscovery(path).read() == (A,)


def test_an_empty_list_is_no_nodes(path):
    path.write_text("[]")

    assert FileDiscovery(path).read() == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", ["expected a list of nodes", "found nothing"], id="empty: a write half done"),
        pytest.param("a: 1", ["expected a list of nodes"], id="a mapping"),
        pytest.param("nodes: 7", ["expected a list of nodes", "7"], id="nodes that are none"),
        pytest.param("[1]", ["line 1", "expected a node like"], id="an entry that is none"),
        pytest.param(
            A_TEXT + "\n- id: b\n  urll: x\n", ["line 3", "node 'b'", "urll", "url,"], id="unknown key"
        ),
        pytest.param(A_TEXT + "- {url: 'http://h:0'}", ["line 2", "`url`", "1 to 65535"], id="wrong value"),
        pytest.param(A_TEXT + A_TEXT, ["nodes 1 and 2", "same id a"], id="the same twice"),
        pytest.param("- {id: a, id: b}", ["line 1", "'id' is given twice"], id="a key twice"),
        pytest.param("- [", ["not valid YAML", "line 1"], id="no YAML"),
        pytest.param("- {id: !!python/object:os.system x}", ["not valid YAML"], id="a Python object"),
        pytest.param("[" * 100_000, ["cannot be read"], id="deep"),
        pytest.param("- 2026-99-99", ["cannot be read"], id="a date that cannot be"),
        pytest.param(b"- \xff", ["not UTF-8", "byte 2"], id="not UTF-8"),
        pytest.param("\x00", ["not valid YAML"], id="a control character"),
        pytest.param("#" * (MAX_BYTES + 1), ["more than"], id="too large"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name_and_the_place(path, text, words):
    message = refusal(path, text)

    assert message.startswith(str(path))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[\n{", ["line 2", "not valid JSON"]),
        ('[{"id": "a", "id": "b"}]', ["id is given twice"]),
        ('[{"url": "http://h:1", "gpu_gib": NaN}]', ["NaN"]),
        ('[{"url": "http://h:1"}, {"url": 1}]', ["node 2", "`url`"]),
        ("[" * 100_000, ["cannot be read"]),
        ("[" + "9" * 5000 + "]", ["cannot be read"]),
        ("", ["line 1", "not valid JSON"]),
    ],
)
def test_a_json_file_that_is_wrong_is_refused_with_its_name_and_the_place(tmp_path, text, words):
    message = refusal(tmp_path / "nodes.json", text)

    assert message.startswith(str(tmp_path))
    for word in words:
        assert word in message


@pytest.mark.parametrize("what", ["missing", "directory", "pipe"])
def test_what_is_no_file_is_refused(path, what):
    if what == "directory":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)

    with pytest.raises(ConfigError, match=r"cannot be read|is not a file"):
        FileDiscovery(path).read()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60) | st.text(alphabet="-[]{}:,&*! \n'\"aurl1", max_size=60).map(str.encode))
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_no_content_raises_anything_but_a_config_error(tmp_path, suffix, raw):
    path = tmp_path / f"nodes{suffix}"
    path.write_bytes(raw)
    try:
        specs = FileDiscovery(path).read()
    except ConfigError:
        return

    assert all(isinstance(spec, NodeSpec) for spec in specs)


async def test_a_renamed_file_is_told_at_the_next_look(path):
    replace(path, A_TEXT)
    turns = Turns()

    async with watched(FileDiscovery(path, sleep=turns.sleep)) as told:
        await turns.until_asleep()
        replace(path, A_TEXT + B_TEXT)
        await turns.next()
        replace(path, "[]")
        await turns.next()

    assert told == [(A,), (A, B), ()]
    assert set(turns.slept) == {1.0}


async def test_a_file_that_did_not_change_is_not_read_again(path, monkeypatch):
    replace(path, A_TEXT)
    turns = Turns()
    discovery = FileDiscovery(path, sleep=turns.sleep)
    reads = []
    read = discovery.read
    monkeypatch.setattr(discovery, "read", lambda: reads.append(1) or read())

    async with watched(discovery) as told:
        for _ in range(3):
            await turns.next()

    assert (told, reads) == ([(A,)], [1])


async def test_a_new_file_with_the_old_nodes_is_not_told(path):
    replace(path, A_TEXT)
    turns = Turns()

    async with watched(FileDiscovery(path, sleep=turns.sleep)) as told:
        await turns.until_asleep()
        replace(path, "# a comment\n" + A_TEXT)
        await turns.next()

    assert told == [(A,)]


async def test_a_file_of_the_same_size_and_time_is_seen_by_its_inode(path):
    replace(path, A_TEXT)
    os.utime(path, ns=(0, 0))
    turns = Turns()

    async with watched(FileDiscovery(path, sleep=turns.sleep)) as told:
        await turns.until_asleep()
        new = path.with_suffix(".new")
        new.write_text(B_TEXT)
        os.utime(new, ns=(0, 0))
        new.replace(path)
        await turns.next()

    assert told == [(A,), (B,)]


async def test_a_change_behind_a_symbolic_link_is_seen(tmp_path, path):
    """Kubernetes replaces a ConfigMap this way."""
    (tmp_path / "one").write_text(A_TEXT)
    (tmp_path / "two").write_text(B_TEXT)
    path.symlink_to("one")
    turns = Turns()

    async with watched(FileDiscovery(path, sleep=turns.sleep)) as told:
        await turns.until_asleep()
        link = tmp_path / "link"
        link.symlink_to("two")
        link.replace(path)
        await turns.next()

    assert told == [(A,), (B,)]


async def test_wrong_content_is_reported_once_and_the_old_nodes_stay(path):
    replace(path, A_TEXT)
    turns, errors = Turns(), []

    async with watched(FileDiscovery(path, on_error=errors.append, sleep=turns.sleep)) as told:
        await turns.until_asleep()
        replace(path, "- {url: 'http://169.254.169.254'}")
        for _ in range(3):
            await turns.next()
        assert (told, len(errors)) == ([(A,)], 1)
        replace(path, B_TEXT)
        await turns.next()

    assert told == [(A,), (B,)]
    assert "no node may live there" in str(errors[0])


async def test_a_file_that_vanishes_changes_nothing_and_one_that_appears_is_read(path):
    turns, errors = Turns(), []

    async with watched(FileDiscovery(path, on_error=errors.append, sleep=turns.sleep)) as told:
        await turns.until_asleep()
        assert (told, len(errors)) == ([], 1)
        replace(path, A_TEXT)
        await turns.next()
        path.unlink()
        await turns.next()
        await turns.next()

    assert told == [(A,)]
    assert len(errors) == 2


async def test_watching_ends_when_it_is_cancelled(path):
    replace(path, A_TEXT)
    turns = Turns()
    task = asyncio.create_task(FileDiscovery(path, sleep=turns.sleep).watch(lambda _specs: None))
    await turns.until_asleep()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
