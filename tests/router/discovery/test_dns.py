"""Nodes behind a name."""

import asyncio
import socket

import pytest

from ccr.errors import ConfigError
from ccr.settings import parse
from ccr.types import NodeSpec
from router.discovery.configured import discovery_of
from router.discovery.dns import DnsDiscovery, system_resolver
from tests.router.discovery.hearing import Turns, watched


class Answers:
    """A resolver that gives one answer after the other, then the last again."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def __call__(self, host, port):
        self.asked.append((host, port))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


NO_ANSWER = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def a_name(answers, turns, errors=(), **more):
    on_error = errors.append if isinstance(errors, list) else pytest.fail
    return DnsDiscovery(
        "a10", "gpus.local", 8000, on_error=on_error, resolve=answers, sleep=turns.sleep, **more
    )


async def test_a_configured_name_gives_its_nodes_engine_tags_and_labels():
    settings = parse(
        b"discovery: {dns: [{name: gpu, host: 127.0.0.1, port: 8000, engine: vllm, tags: [x], labels: {gpu: L4}}]}",
        "config",
    )
    told = asyncio.get_running_loop().create_future()

    task = asyncio.create_task(discovery_of(settings).watch(told.set_result))
    (spec,) = await asyncio.wait_for(told, 5.0)
    task.cancel()

    assert (spec.engine, spec.tags, dict(spec.labels)) == ("vllm", {"x"}, {"gpu": "L4"})


async def test_every_address_is_a_node_with_a_stable_id():
    turns = Turns()
    answers = Answers(["10.0.0.8", "10.0.0.7", "2001:db8::7", "10.0.0.7"])

    async with watched(a_name(answers, turns, entry={"engine": "vllm", "tags": ["pool"]})) as told:
        await turns.until_asleep()

    pool = {"engine": "vllm", "tags": frozenset({"pool"})}
    assert told == [
        (
            NodeSpec("a10-10-0-0-7", "http://10.0.0.7:8000", **pool),
            NodeSpec("a10-10-0-0-8", "http://10.0.0.8:8000", **pool),
            NodeSpec("a10-2001-db8--7", "http://[2001:db8::7]:8000", **pool),
        )
    ]
    assert answers.asked == [("gpus.local", 8000)]


async def test_the_name_is_asked_again_and_changes_are_told():
    turns = Turns()
    answers = Answers(["10.0.0.7"], ["10.0.0.7"], ["10.0.0.7", "10.0.0.8"])

    async with watched(a_name(answers, turns, interval_s=3.0)) as told:
        await turns.next()
        await turns.next()

    assert [[spec.id for spec in specs] for specs in told] == [
        ["a10-10-0-0-7"],
        ["a10-10-0-0-7", "a10-10-0-0-8"],
    ]
    assert set(turns.slept) == {3.0}


async def test_the_order_of_an_answer_means_nothing():
    turns = Turns()
    answers = Answers(["10.0.0.7", "10.0.0.8"], ["10.0.0.8", "10.0.0.7"])

    async with watched(a_name(answers, turns)) as told:
        await turns.next()

    assert len(told) == 1


@pytest.mark.parametrize("trouble", [NO_ANSWER, TimeoutError(), OSError("no sockets left"), []])
async def test_without_an_answer_the_last_one_stays_and_the_failure_is_counted(trouble):
    turns, errors = Turns(), []
    discovery = a_name(Answers(["10.0.0.7"], trouble, trouble, ["10.0.0.7"], trouble), turns, errors)

    async with watched(discovery) as told:
        for _ in range(4):
            await turns.next()

    assert len(told) == 1
    assert discovery.failures == 3
    assert len(errors) == 2, "once per streak"
    assert "gpus.local" in str(errors[0])


async def test_a_name_that_does_not_resolve_yet_tells_nothing_until_it_does():
    turns, errors = Turns(), []

    async with watched(a_name(Answers(NO_ANSWER, ["10.0.0.7"]), turns, errors)) as told:
        await turns.until_asleep()
        assert told == []
        await turns.next()

    assert [spec.id for spec in told[0]] == ["a10-10-0-0-7"]


async def test_addresses_no_node_may_have_are_left_out_and_reported_once():
    turns, errors = Turns(), []
    answers = Answers(["169.254.169.254", "10.0.0.7", "fe80::1%eth0", "::ffff:169.254.169.254"])

    async with watched(a_name(answers, turns, errors)) as told:
        for _ in range(3):
            await turns.next()

    assert [[spec.id for spec in specs] for specs in told] == [["a10-10-0-0-7"]]
    assert len(errors) == 3
    assert "169.254.169.254" in str(errors[0])


async def test_a_rebound_name_keeps_its_old_nodes():
    turns, errors = Turns(), []
    discovery = a_name(Answers(["10.0.0.7"], ["169.254.169.254"]), turns, errors)

    async with watched(discovery) as told:
        await turns.next()

    assert [[spec.id for spec in specs] for specs in told] == [["a10-10-0-0-7"]]
    assert discovery.failures == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "two words"},
        {"host": "metadata.google.internal"},
        {"host": "a/b"},
        {"port": 0},
        {"port": 70000},
        {"entry": {"engine": "vlmm"}},
        {"entry": {"gpus": 1}},
    ],
)
def test_what_can_never_make_a_node_is_refused_at_the_start(wrong):
    with pytest.raises(ConfigError):
        DnsDiscovery(**{"name": "a10", "host": "gpus.local", "port": 8000, **wrong})


async def test_the_system_resolver_knows_localhost():
    turns = Turns()
    discovery = DnsDiscovery("here", "localhost", 8000, on_error=pytest.fail, sleep=turns.sleep)

    async with watched(discovery) as told:
        await turns.until_asleep()

    assert {spec.id for spec in told[0]} & {"here-127-0-0-1", "here---1"}


async def test_the_system_resolver_says_when_a_name_does_not_exist():
    """The zone `invalid` is reserved to have no names (RFC 6761)."""
    with pytest.raises(OSError):
        await system_resolver("no-such-node.invalid", 80)
