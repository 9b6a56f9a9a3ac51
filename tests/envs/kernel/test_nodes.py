"""The compiled nodes do what the readable ones do: the same events, in the same order, at the same times."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr.errors import ConfigError
from ccr.timing import LOAD_SOURCES
from envs.catalogue import catalogue
from envs.kernel import nodes as kernel
from envs.kernel.state import (
    ABSENT,
    EVICTED,
    FINISHED,
    FIRST_TOKEN,
    HOST,
    LOADED,
    LOADING,
    LOST,
    MAX_PRIORITY,
    PREEMPTED,
    RESIDENT,
    make_events,
    make_jobs,
    make_nodes,
)
from envs.node import EmulatedNode, NodeSettings
from envs.words import (
    Evicted,
    Finished,
    FirstToken,
    Job,
    Loaded,
    Lost,
    ModelBusyError,
    NeverFitsError,
    Place,
    Preempted,
)

# The first test to run compiles the kernels, unless they lie in the cache.
pytestmark = pytest.mark.timeout(600)

CHAT, CODE, SUPPORT, SUMMARY = "chat-7b@1", "code-7b@1", "support-8b@1", "summary-7b@1"
BASES = catalogue([CHAT, CODE, SUPPORT, SUMMARY])
MODELS = {
    **BASES,
    **{
        f"chat-7b@1+{name}": replace(BASES[CHAT], base=CHAT, adapter_bytes=size)
        for name, size in (("poet", 80 << 20), ("clerk", 160 << 20), ("judge", 40 << 20))
    },
    "code-7b@1+rust": replace(BASES[CODE], base=CODE, adapter_bytes=160 << 20),
}
NAMES = list(MODELS)
PLACES = {ABSENT: Place.ABSENT, LOADING: Place.LOADING, RESIDENT: Place.RESIDENT, HOST: Place.ASLEEP}
NOISE = np.array([[1.0, 1.3, 0.8], [0.9, 1.1, 1.2]])
FOREVER = 1e5


class Pair:
    """Two readable nodes and their compiled twins, driven by the same words."""

    def __init__(self, chosen, jobs):
        self.jobs = jobs
        self.twins = make_nodes([chosen, chosen], MODELS, len(jobs), 3, NOISE)
        self.columns = make_jobs(
            [NAMES.index(job.model) for job in jobs],
            [job.prompt_tokens for job in jobs],
            [job.output_tokens for job in jobs],
            [int(job.session or -1) for job in jobs],
            [job.prefix_tokens for job in jobs],
            [job.priority for job in jobs],
        )
        self.told = make_events(10_000)
        draws = [iter(np.tile(row, 200)) for row in NOISE]
        self.nodes = [EmulatedNode(MODELS, chosen, draw.__next__) for draw in draws]
        self.now_s = 0.0
        self.sent = 0
        self.finished = {}

    def do(self, action, *arguments):
        getattr(self, action)(*arguments)

    def wait(self, seconds):
        self.now_s += seconds

    def send(self, n):
        if self.sent == len(self.jobs):
            return
        j, self.sent = self.sent, self.sent + 1
        taken = kernel.submit(self.twins, self.columns, n, j, self.now_s, self.told) == 0
        assert taken == self.allowed(NeverFitsError, self.nodes[n].submit, self.jobs[j], self.now_s)

    def place(self, n, model):
        fits = kernel.place(self.twins, n, NAMES.index(model))
        assert fits == self.allowed(NeverFitsError, self.nodes[n].place, model)

    def load(self, n, model):
        kernel.load(self.twins, n, NAMES.index(model), self.now_s, self.told)
        self.nodes[n].load(model, self.now_s)

    def unload(self, n, model):
        left = kernel.unload(self.twins, n, NAMES.index(model), self.now_s, self.told)
        assert left == self.allowed(ModelBusyError, self.nodes[n].unload, model, self.now_s)

    def prefer(self, n, model, weight):
        kernel.prefer(self.twins, n, NAMES.index(model), weight)
        self.nodes[n].prefer({model: weight})

    def slow(self, n, factor):
        kernel.advance(self.twins, n, self.now_s, self.told)
        kernel.slow(self.twins, n, factor)
        self.nodes[n].slow(factor, self.now_s)

    def crash(self, n):
        kernel.crash(self.twins, n, self.now_s, self.told)
        self.nodes[n].crash(self.now_s)

    def look(self, n):
        kernel.advance(self.twins, n, self.now_s, self.told)
        self.expected(n)
        assert kernel.next_event_s(self.twins, n) == pytest.approx(self.nodes[n].next_event_s(), rel=1e-9)

    @staticmethod
    def allowed(refusal, verb, *arguments):
        with suppress(refusal):
            verb(*arguments)
            return True
        return False

    def expected(self, n):
        """What the readable node says happened, in the compiled one's words, and remembers of finished jobs."""
        for event in self.nodes[n].advance(self.now_s):
            match event:
                case FirstToken():
                    yielded = [(FIRST_TOKEN, int(job)) for job in event.job_ids]
                case Finished():
                    self.finished[int(event.job.id)] = event
                    yielded = [(FINISHED, int(event.job.id))]
                case Loaded():
                    yielded = [(LOADED, NAMES.index(event.model))]
                case Evicted():
                    yielded = [(EVICTED, NAMES.index(event.model))]
                case Preempted():
                    yielded = [(PREEMPTED, int(event.job_id))]
                case Lost():
                    yielded = [(LOST, int(event.job_id))]
            self.histories[n] += [(event.at_s, *words) for words in yielded]

    def play(self, actions):
        """Do everything, then wait until all is quiet; what each node and its twin said happened."""
        self.histories = [[], []]
        for action in actions:
            self.do(*action)
        self.wait(FOREVER)
        for n in (0, 1):
            self.look(n)
        return self.histories, [self.history(n) for n in (0, 1)]

    def history(self, n):
        rows = range(self.told.count[0])
        told = self.told
        return [
            (float(told.at_s[i]), int(told.kind[i]), int(told.what[i])) for i in rows if told.node[i] == n
        ]


def differences(pair, actions):
    """What the readable and the compiled nodes do not agree on, in words; empty when they are equal."""
    readable, compiled = pair.play(actions)
    found = []
    for n in (0, 1):
        if [row[1:] for row in readable[n]] != [row[1:] for row in compiled[n]]:
            found.append(f"events of node {n}:\n{readable[n]}\n{compiled[n]}")
        elif not np.allclose(
            [row[0] for row in readable[n]], [row[0] for row in compiled[n]], rtol=1e-9, atol=0
        ):
            found.append(f"times of node {n}:\n{readable[n]}\n{compiled[n]}")
        found += gauges(pair, n)
    for j, event in pair.finished.items():
        job = pair.twins.work[j]
        ours = (job["submitted_s"], job["started_s"], job["first_token_s"], job["finished_s"])
        theirs = (event.submitted_s, event.started_s, event.first_token_s, event.at_s)
        if ours != pytest.approx(theirs, rel=1e-9) or (job["cold"], job["reused"]) != (
            event.cold,
            event.reused_tokens,
        ):
            found.append(f"job {j}: {event} {job}")
    return found


def gauges(pair, n):
    """Where the state that both show differs."""
    twins, state, card = pair.twins, pair.nodes[n].state(), pair.twins.card[n]
    both = {
        name: (card[name], getattr(state, name))
        for name in (
            "running", "waiting", "submitted", "finished", "preempted", "evicted", "cold_starts", "loads",
            "lost", "busy_s",
        )
    }  # fmt: skip
    both["kv_used"] = kernel.kv_used(twins, n), state.kv_used
    both["peak"] = kernel.peak_gib(twins, n), state.gpu_peak_gib
    both["used"] = kernel.used_gib(twins, n), state.gpu_used_gib
    both["free"] = kernel.free_gib(twins, n), state.gpu_total_gib - state.gpu_used_gib
    both["cached"] = twins.work["cached"][twins.work["home"] == n].sum(), state.cached_tokens
    found = [
        f"{name}: {ours} {theirs}" for name, (ours, theirs) in both.items() if ours != pytest.approx(theirs)
    ]
    for m, model in enumerate(NAMES):
        place = PLACES[kernel.place_of(twins, n, m)]
        if place is not state.models[model].place:
            found.append(f"{model}: {place} {state.models[model].place}")
    return found


NODE = st.integers(0, 1)
MODEL = st.sampled_from(NAMES)
JOB = st.builds(
    Job,
    id=st.just(""),
    model=MODEL,
    prompt_tokens=st.one_of(st.integers(1, 600), st.integers(1, 20_000)),
    output_tokens=st.one_of(st.integers(0, 40), st.integers(0, 400)),
    priority=st.sampled_from([0, 0, 0, -1, 1]),
    session=st.sampled_from(["", "0", "1", "2"]),
    prefix_tokens=st.one_of(st.just(0), st.integers(0, 4000)),
)
SEND = st.tuples(st.just("send"), NODE)
ACTION = st.one_of(
    SEND,
    SEND,
    SEND,
    st.tuples(st.just("wait"), st.one_of(st.floats(0.0, 0.3), st.floats(0.0, 20.0))),
    st.tuples(st.just("look"), NODE),
    st.tuples(st.sampled_from(["load", "unload"]), NODE, MODEL),
    st.tuples(st.just("prefer"), NODE, MODEL, st.floats(-1.0, 1.0)),
    st.tuples(st.just("slow"), NODE, st.sampled_from([0.5, 1.0, 3.0])),
)
CRASH = st.tuples(st.just("crash"), NODE)
SETTINGS = st.builds(
    NodeSettings,
    source=st.sampled_from([LOAD_SOURCES["disk_fast"], LOAD_SOURCES["remote"]]),
    overhead_s=st.sampled_from([0.0, 0.05]),
    bw_scale=st.sampled_from([1.0, 0.9]),
    host_gib=st.sampled_from([0.0, 10.0, 48.0]),
    keep_evicted=st.booleans(),
    prefix_cache=st.sampled_from([True, True, False]),
    max_adapters=st.integers(1, 3),
)


def a_pair(chosen, jobs):
    return Pair(chosen, [replace(job, id=str(j)) for j, job in enumerate(jobs)])


@settings(max_examples=120, deadline=None)
@given(
    SETTINGS,
    st.lists(st.tuples(NODE, MODEL), max_size=3),
    st.lists(JOB, min_size=1, max_size=40),
    st.lists(st.one_of(ACTION, ACTION, ACTION, ACTION, ACTION, ACTION, CRASH), max_size=60),
)
def test_compiled_and_readable_nodes_tell_the_same_story(chosen, places, jobs, actions):
    story = [("place", *where) for where in places] + actions

    assert differences(a_pair(chosen, jobs), story) == []


def crowded(seed):
    """A pair and a story with everything in it: full KV cache, cold models and adapters, sessions, a crash."""
    dice = np.random.default_rng(seed)
    jobs = [
        Job(
            "",
            NAMES[dice.integers(len(NAMES))],
            int(dice.integers(1, 9000)),
            int(dice.integers(0, 300)),
            session=str(dice.choice(["", "0", "1"])),
            prefix_tokens=int(dice.integers(0, 5000)),
        )
        for _ in range(150)
    ]
    sends = [(("send", int(dice.integers(2))), ("wait", float(dice.exponential(0.4)))) for _ in jobs]
    story = [("place", 0, SUMMARY), *(step for pair in sends for step in pair), ("crash", 0)]
    chosen = NodeSettings(
        source=LOAD_SOURCES["disk_fast"], host_gib=10.0, keep_evicted=True, max_adapters=2, overhead_s=0.02
    )
    return a_pair(chosen, jobs), story


@pytest.mark.parametrize("seed", range(4))
def test_they_agree_under_everything_at_once(seed):
    pair, story = crowded(seed)

    assert differences(pair, story) == []
    card = pair.twins.card
    assert (card["submitted"] == card["finished"] + card["lost"]).all()
    assert all(card[name].sum() > 0 for name in ("preempted", "evicted", "cold_starts", "lost"))
    assert pair.twins.work["reused"].sum() > 0


@pytest.mark.parametrize(
    ("table", "field", "factor"),
    [
        pytest.param("card", "budget", 0.95, id="less memory"),
        pytest.param("card", "host_bytes", 0.5, id="less host memory"),
        pytest.param("card", "max_adapters", 2, id="more adapter slots"),
        pytest.param("card", "prefix_cache", 0, id="no prefix cache"),
        pytest.param("line", "kv", 2, id="larger KV cache"),
        pytest.param("line", "decode_context_s", 1 + 1e-6, id="slower by a millionth"),
        pytest.param("line", "source_s", 1.01, id="slower loads"),
    ],
)
def test_a_planted_difference_is_found(table, field, factor):
    pair, story = crowded(0)
    rows = getattr(pair.twins, table)
    rows[field] = rows[field] * factor

    assert differences(pair, story) != []


def test_nodes_of_a_fleet_keep_to_themselves():
    """The same jobs on two nodes, one of them a straggler: it takes three times as long, the other does not notice."""
    jobs = [Job("", CHAT, 200, 20)] * 2
    pair = a_pair(NodeSettings(), jobs)
    story = [("place", 0, CHAT), ("place", 1, CHAT), ("slow", 1, 3.0), ("send", 0), ("send", 1)]

    assert differences(pair, story) == []
    assert pair.twins.work["finished_s"][1] == pytest.approx(3 * pair.twins.work["finished_s"][0])


def test_a_job_that_never_fits_is_refused():
    twins = make_nodes([NodeSettings()], MODELS, 1, 0, NOISE[:1])
    jobs = make_jobs(NAMES.index(SUMMARY), 47_000, 1)

    assert kernel.submit(twins, jobs, 0, 0, 0.0, make_events(10)) == 1
    assert twins.card["submitted"].sum() == 0


def test_a_lost_job_may_be_sent_to_another_node():
    twins = make_nodes([NodeSettings()] * 2, MODELS, 1, 0, NOISE)
    jobs, told = make_jobs(0, 100, 10), make_events(10)
    kernel.place(twins, 1, 0)
    kernel.submit(twins, jobs, 0, 0, 0.0, told)
    kernel.crash(twins, 0, 1.0, told)

    kernel.submit(twins, jobs, 1, 0, 1.0, told)
    kernel.advance(twins, 1, 10.0, told)

    count = told.count[0]
    assert told.kind[:count].tolist() == [LOST, FIRST_TOKEN, FINISHED]
    assert told.node[:count].tolist() == [0, 1, 1]
    assert twins.work["submitted_s"][0] == 1.0
    assert not twins.work["cold"][0]


def test_events_that_do_not_fit_are_not_dropped_silently():
    twins = make_nodes([NodeSettings()], MODELS, 2, 0, NOISE[:1])
    jobs, told = make_jobs([0, 0], 100, 10), make_events(3)
    kernel.submit(twins, jobs, 0, 0, 0.0, told)
    kernel.submit(twins, jobs, 0, 1, 0.0, told)

    with pytest.raises(IndexError, match="make_events"):
        kernel.advance(twins, 0, 100.0, told)


def test_the_router_can_ask_who_has_a_session_s_prefix():
    twins = make_nodes([NodeSettings()] * 2, MODELS, 1, 1, NOISE)
    jobs, told = make_jobs(0, 100, 10, 0), make_events(10)
    kernel.submit(twins, jobs, 1, 0, 0.0, told)
    kernel.advance(twins, 1, 100.0, told)

    assert [kernel.reusable_tokens(twins, n, 0, 0) for n in (0, 1)] == [0, 110]


@pytest.mark.parametrize("shape", [(1, 3), (2, 0), (2,)])
def test_noise_of_another_shape_is_refused(shape):
    with pytest.raises(ConfigError, match=r"give \(2, k\)"):
        make_nodes([NodeSettings()] * 2, MODELS, 1, 0, np.ones(shape))


def test_a_priority_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="priorities"):
        make_jobs(0, 1, 1, priority=MAX_PRIORITY + 1)
