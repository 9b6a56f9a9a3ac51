"""From a running router to the readers: what clients saw, what is written down, what a trace of it says."""

import json
import math

import numpy as np
import pytest

from ccr.timing import LOAD_SOURCES
from envs.calibration.nodes import replay
from envs.calibration.recorded import read_served
from envs.calibration.shapes import known_shapes
from envs.catalogue import catalogue, model_facts
from envs.emulator import EmulatedFleet
from envs.node import NodeSettings
from envs.traces import bundled
from envs.traces.convert import import_trace
from envs.traces.files import rows_of
from envs.traces.reader import Wishes
from envs.traces.source import Source
from envs.traces.trace import Outcomes, read, write
from router.demo.workload import EmulatedNode, ServedModel, router_config
from router.load import ChatClient, open_loop, open_session
from router.load_mix import Shot
from router.load_tally import Tally, Window
from tests.router.harness import running_router, until

SPEED = 20.0
MODELS = ("chat-7b@1", "code-7b@1", "support-8b@1", "chat-7b@2")
# Wall seconds between what router and client see of the same thing, in one event loop.
APART_S = 0.1


def some_shots():
    """Thirty requests within a second and a half; the length of its answer tells one from the other."""
    for i in range(30):
        yield (
            0.05 * i,
            Shot(
                model=MODELS[i % 7 % 4], prompt_tokens=50 + 31 * i, output_tokens=5 + 3 * i, priority=i % 2,
                session=f"conversation {i % 5}" if i % 5 else "", stream=True, number=i,
            ),
        )  # fmt: skip


def a_config(fleet):
    """As `ccr demo` would write it, with exploration and a quick look at the nodes."""
    facts = model_facts(LOAD_SOURCES[fleet.settings.load])
    nodes = [EmulatedNode(f"a10-{i}", url) for i, url in enumerate(fleet.urls, 1)]
    models = [ServedModel(model, facts[model].gib, facts[model].load_s) for model in MODELS]
    config = router_config(nodes, models, speed=SPEED, port=0, admin_port=0)
    settings = {
        "models": config["models"],
        "policy": {"name": "least_cost", "exploration": 0.3, "exploration_budget": 1.0},
        "telemetry": {"interval": 0.05},
    }
    return settings, config["nodes"]


@pytest.fixture
async def recorded(tmp_path):
    """A directory that a router recorded into, and by the tokens of its answer what the client of each request saw."""
    samples = []
    async with EmulatedFleet(count=3, speed=SPEED, seed=1) as fleet:
        settings, nodes = a_config(fleet)
        async with running_router(settings, *nodes) as router, open_session() as http:
            await until(lambda: all(state.reading_s > -math.inf for state in router.router.fleet.states))
            await router.admin("POST", "/admin/record", {"directory": str(tmp_path / "recorded")})
            send = ChatClient(http, router.url, timeout_s=20.0)
            await open_loop(send, some_shots(), Tally(Window(), on_sample=samples.append))
            await router.quiet()
            await router.admin("POST", "/admin/record/stop")
    assert not [sample.answer for sample in samples if sample.answer.error]
    return tmp_path / "recorded", {sample.answer.output_tokens: sample for sample in samples}


async def test_the_rows_of_a_recording_are_what_the_clients_saw(recorded, tmp_path):
    directory, seen = recorded
    asked = {shot.output_tokens: shot for _, shot in some_shots()}

    header = import_trace("auto", directory, tmp_path / "recorded.csv.gz", Wishes())

    rows = list(rows_of(Source(tmp_path / "recorded.csv.gz")))
    assert (header.rows, dict(header.rows_dropped)) == (len(seen), {}) == (30, {})
    assert {row.output_tokens for row in rows} == set(asked)
    for row in rows:
        shot, answer = asked[row.output_tokens], seen[row.output_tokens].answer
        assert (f"{row.model}@{row.version}", row.priority) == (shot.model, shot.priority)
        assert (row.node, row.prompt_tokens, row.status) == (answer.node, answer.prompt_tokens, "ok")
        assert 0.0 <= row.queue_ms <= row.ttft_ms <= row.total_ms
    hashes = {asked[row.output_tokens].session: row.session for row in rows}
    assert len({*hashes.values()}) == len(hashes) == 5
    assert hashes[""] == ""
    assert all(row.session == hashes[asked[row.output_tokens].session] for row in rows)


async def test_the_times_of_a_recording_are_those_of_the_clients(recorded, tmp_path):
    """A first token passes the router before the client has it; apart from that they differ by a few turns of the loop."""
    directory, seen = recorded
    import_trace("auto", directory, tmp_path / "recorded.csv.gz", Wishes())

    rows = list(rows_of(Source(tmp_path / "recorded.csv.gz")))

    samples = [seen[row.output_tokens] for row in rows]
    router_s = 1e-3 * np.array([(1e3 * row.t, row.ttft_ms, row.total_ms) for row in rows])
    client_s = np.array([(one.sent_s, one.answer.ttft_s, one.ended_s - one.sent_s) for one in samples])
    router_s[:, 0] -= np.median(router_s[:, 0] - client_s[:, 0])
    assert (router_s[:, 1] <= client_s[:, 1]).all()
    # Not each of them: on an overloaded machine the loop may stand still between the two.
    assert (np.median(np.abs(router_s - client_s), axis=0) < APART_S).all()
    assert (np.ptp(client_s, axis=0) > 5 * APART_S).all()


async def test_a_recording_keeps_what_learning_and_calibrating_need(recorded, tmp_path):
    directory, seen = recorded
    import_trace("recording", directory, tmp_path / "recorded.jsonl", Wishes())

    outcomes = read(tmp_path / "recorded.jsonl").outcomes
    served, skipped = read_served(tmp_path / "recorded.jsonl", known_shapes())

    assert set(outcomes.policy) == {"least_cost@1"}
    assert ((outcomes.propensity > 0.0) & (outcomes.propensity <= 1.0)).all()
    assert (outcomes.propensity < 1.0).any()
    for node, candidates in zip(outcomes.node, outcomes.candidates, strict=True):
        assert node in {one["node"] for one in json.loads(candidates)} == {"a10-1", "a10-2", "a10-3"}
    assert 0 < outcomes.cold_start.sum() < len(seen)
    assert sum(map(len, served.values())) == len(seen)
    assert not skipped


# -- the one that comes with the package


def test_the_recorded_trace_of_the_package_reads_whole_and_says_what_made_it():
    trace = read(bundled("recorded"))

    assert (trace.header.rows, dict(trace.header.rows_dropped)) == (len(trace), {})
    assert 700 < len(trace) < 2500
    assert trace.header.source == "recording: emulated-a10"
    said = "\n".join(trace.header.notes)
    for what in (
        "ccr traces synth --rate",
        "4 emulated A10",
        "least_cost with exploration 0.1",
        "benchmarks.recorded",
    ):
        assert what in said
    assert not trace.header.generated
    assert bundled("recorded").stat().st_size < 250_000


def test_the_recorded_trace_of_the_package_is_a_busy_day_with_decisions_to_learn_from():
    trace = read(bundled("recorded"))

    outcomes = trace.outcomes
    assert set(trace.models) <= catalogue().keys()
    assert {"chat-7b@1", "chat-7b@2"} < set(trace.models)
    assert (trace.session >= 0).mean() > 0.5
    assert set(outcomes.status) == {"ok"}
    assert set(outcomes.node) == {"a10-1", "a10-2", "a10-3", "a10-4"}
    assert outcomes.cold_start.sum() > 20
    assert 0.025 <= outcomes.propensity.min() < 0.1
    assert (np.diff(np.stack([outcomes.queue_ms, outcomes.ttft_ms, outcomes.total_ms]), axis=0) >= 0.0).all()
    # Nothing was faster than a decode step of the card takes, and some had to wait for weights.
    assert outcomes.ttft_ms.min() > 20.0
    assert np.percentile(outcomes.ttft_ms, 95) > 5_000.0


def test_the_recorded_trace_of_the_package_is_what_its_nodes_do():
    """Batches, evictions and caches of the emulated node explain every time in it; 2 ms are the router's and the sockets'."""
    served, skipped = read_served(bundled("recorded"), known_shapes())
    settings = NodeSettings(overhead_s=0.022)

    off = {
        node: [
            abs(time.total_s / request.total_s - 1.0)
            for time, request in zip(replay(requests, settings), requests, strict=True)
        ]
        for node, requests in served.items()
    }

    assert not skipped
    for errors in off.values():
        assert np.median(errors) < 0.005
        assert np.quantile(errors, 0.9) < 0.05


@pytest.mark.parametrize("name", ["again.csv.gz", "again.jsonl"])
def test_the_recorded_trace_of_the_package_survives_a_file(name, tmp_path):
    trace = read(bundled("recorded"))

    write(trace, tmp_path / name)

    again = read(tmp_path / name)
    assert (again.models, again.header) == (trace.models, trace.header)
    for column in ("t", "model", "prompt_tokens", "output_tokens", "session", "prefix_tokens", "priority"):
        np.testing.assert_array_equal(getattr(again, column), getattr(trace, column))
    for column in Outcomes.__slots__:
        np.testing.assert_array_equal(getattr(again.outcomes, column), getattr(trace.outcomes, column))
