"""The node in virtual time: batches, KV cache, residency, and a ledger that balances whatever happens."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr.errors import ConfigError, UnknownModelError
from ccr.timing import GIB, GPUS, LOAD_SOURCES, PRESETS, adapter_s, decode_s, load_s, prefill_s, step_costs
from envs.catalogue import catalogue
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
    Tokens,
)

CHAT, CODE, SUPPORT, SUMMARY = "chat-7b@1", "code-7b@1", "support-8b@1", "summary-7b@1"
MODELS = catalogue([CHAT, CODE, SUPPORT, SUMMARY])
FOREVER = 1e6


def a_node(*resident, **settings_):
    node = EmulatedNode(MODELS, NodeSettings(**settings_))
    for model in resident:
        node.place(model)
    return node


def a_job(name="a", model=CHAT, prompt=128, output=4, **fields):
    return Job(name, model, prompt, output, **fields)


def costs_of(model):
    return step_costs(MODELS[model], GPUS["A10"], PRESETS["graph"])


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def ends(events):
    return {event.job.id: event.at_s for event in of(Finished, events)}


def test_a_request_alone_takes_its_prefill_and_a_decode_step_for_each_further_token():
    node = a_node(CHAT)
    node.submit(a_job(prompt=128, output=4), 10.0)

    (done,) = of(Finished, node.advance(FOREVER))

    costs = costs_of(CHAT)
    first = 10.0 + prefill_s(costs, [128])
    assert done.first_token_s == pytest.approx(first)
    assert done.at_s == pytest.approx(first + sum(decode_s(costs, 1, 128 + i) for i in (1, 2, 3)))


def test_overhead_comes_before_the_queue():
    bare, real = a_node(CHAT), a_node(CHAT, overhead_s=0.05)
    for node in (bare, real):
        node.submit(a_job(), 1.0)

    assert ends(real.advance(FOREVER))["a"] == pytest.approx(ends(bare.advance(FOREVER))["a"] + 0.05)


def test_an_embedding_is_a_prefill():
    node = a_node(CHAT)
    node.submit(a_job(output=0), 0.0)

    events = node.advance(FOREVER)

    assert ends(events)["a"] == pytest.approx(prefill_s(costs_of(CHAT), [128]))
    assert node.state().generation_tokens == 0


def test_a_batch_is_faster_than_a_queue():
    alone, together = a_node(CHAT), a_node(CHAT)
    alone.submit(a_job("a", output=64), 0.0)
    for name in "abcdefgh":
        together.submit(a_job(name, output=64), 0.0)

    assert max(ends(together.advance(FOREVER)).values()) < 2 * ends(alone.advance(FOREVER))["a"]


def test_prefill_goes_first_and_interrupts_decoding_between_two_steps():
    node = a_node(CHAT)
    node.submit(a_job("long", output=200), 0.0)
    node.advance(1.0)
    step_ends = node.next_event_s()
    node.submit(a_job("late", output=1), 1.0)

    done = ends(node.advance(FOREVER))

    assert done["late"] == pytest.approx(step_ends + prefill_s(costs_of(CHAT), [128]))


def test_a_prefill_batch_holds_4096_prompt_tokens_at_most():
    node = a_node(CHAT)
    node.submit(a_job("running"), 0.0)
    for i in range(5):
        node.submit(a_job(f"w{i}", prompt=1000), 0.0)

    batches = [event.job_ids for event in of(FirstToken, node.advance(FOREVER))]

    assert batches == [("running",), ("w0", "w1", "w2", "w3"), ("w4",)]


def test_a_batch_holds_256_sequences_at_most():
    node = a_node(CHAT)
    for i in range(300):
        node.submit(a_job(str(i), prompt=1, output=100), 0.0)

    node.advance(0.2)

    assert (node.state().running, node.state().waiting) == (256, 44)


def test_the_lower_priority_number_goes_first():
    node = a_node(CHAT)
    node.submit(a_job("running", output=1), 0.0)
    node.submit(a_job("normal", prompt=4000, output=1), 0.0)
    node.submit(a_job("urgent", prompt=4000, output=1, priority=-1), 0.0)

    done = ends(node.advance(FOREVER))

    assert done["running"] < done["urgent"] < done["normal"]


def test_co_resident_models_each_pay_their_own_pass_over_the_weights():
    one, two = a_node(CHAT, CODE), a_node(CHAT, CODE)
    for node, other in ((one, CHAT), (two, CODE)):
        node.submit(a_job("a", CHAT, output=100), 0.0)
        node.submit(a_job("b", other, output=100), 0.0)

    same, mixed = ends(one.advance(FOREVER))["a"], ends(two.advance(FOREVER))["a"]

    assert 1.7 * same < mixed < 2.5 * same


def test_streaming_jobs_are_told_of_every_token_and_others_only_of_their_end():
    node = a_node(CHAT)
    node.submit(a_job("stream", output=5, stream=True), 0.0)
    node.submit(a_job("quiet", output=5), 0.0)

    events = node.advance(FOREVER)

    told = [name for event in of(Tokens, events) for name in event.job_ids]
    assert told == ["stream"] * 4
    assert ends(events).keys() == {"stream", "quiet"}


def test_a_cold_model_is_loaded_for_its_request():
    node = a_node()
    node.submit(a_job(model=CODE), 0.0)
    before = node.state()

    events = node.advance(FOREVER)

    wait_s = load_s(MODELS[CODE], LOAD_SOURCES["engine_swap"])
    assert before.at(Place.LOADING) == (CODE,)
    assert of(Loaded, events) == [Loaded(pytest.approx(wait_s), CODE, pytest.approx(wait_s), cold=True)]
    assert of(Finished, events)[0].started_s == pytest.approx(wait_s)
    assert of(Finished, events)[0].cold
    assert node.state().cold_starts == 1
    assert node.state().models[CODE].load_s == pytest.approx(wait_s)


def test_noise_stretches_a_load():
    node = EmulatedNode(MODELS, load_noise=lambda: 1.5)
    node.load(CODE, 0.0)

    (loaded,) = of(Loaded, node.advance(FOREVER))

    assert loaded.seconds == pytest.approx(1.5 * load_s(MODELS[CODE], LOAD_SOURCES["engine_swap"]))


def test_a_load_takes_no_compute_from_a_resident_model():
    undisturbed, loading = a_node(CHAT), a_node(CHAT)
    for node in (undisturbed, loading):
        node.submit(a_job(output=100), 0.0)
    loading.submit(a_job("cold", CODE), 0.0)

    assert ends(loading.advance(FOREVER))["a"] == ends(undisturbed.advance(FOREVER))["a"]


def test_the_least_recently_used_idle_model_makes_room():
    node = a_node(CHAT, CODE)
    node.submit(a_job("older", CODE), 0.0)
    node.advance(5.0)
    node.submit(a_job("newer", CHAT), 5.0)
    node.advance(10.0)

    node.submit(a_job("c", SUPPORT), 10.0)

    assert of(Evicted, node.advance(FOREVER)) == [Evicted(10.0, CODE)]
    assert node.state().at(Place.RESIDENT) == (CHAT, SUPPORT)


def test_a_busy_model_drains_before_it_makes_room_and_younger_requests_wait_for_its_return():
    node = a_node(CHAT, CODE)
    node.submit(a_job("chat", CHAT, output=200), 0.0)
    node.submit(a_job("code", CODE, output=300), 0.0)
    node.submit(a_job("third", SUPPORT), 0.1)
    node.submit(a_job("young", CHAT, output=1), 0.2)

    events = node.advance(FOREVER)

    done, (evicted, *_) = ends(events), of(Evicted, events)
    assert evicted == Evicted(done["chat"], CHAT)
    assert done["chat"] < done["third"] < done["young"]
    assert node.state().cold_starts == 2


def test_an_explicit_load_disturbs_no_busy_model():
    node = a_node(CHAT, CODE)
    node.submit(a_job("chat", CHAT, output=200), 0.0)
    node.submit(a_job("code", CODE, output=400), 0.0)
    node.load(SUPPORT, 0.0)
    node.submit(a_job("young", CHAT, output=1), 0.1)
    events = node.advance(1.0)
    while_busy = node.where(SUPPORT)

    node.advance(FOREVER)

    assert "young" in ends(events)
    assert while_busy is Place.ABSENT
    assert node.where(SUPPORT) is Place.RESIDENT
    assert node.state().cold_starts == 0


def test_a_request_that_left_needs_no_load():
    node = a_node()
    node.submit(a_job("a", CHAT), 0.0)
    node.submit(a_job("b", CODE), 0.0)

    node.cancel("b", 0.1)

    assert [event.model for event in of(Loaded, node.advance(FOREVER))] == [CHAT]


def test_sleep_frees_the_gpu_and_wake_is_faster_than_a_load():
    node = a_node(CHAT)
    node.sleep(CHAT, 0.0)
    asleep = node.state()
    node.wake(CHAT, 1.0)

    (loaded,) = of(Loaded, node.advance(FOREVER))

    assert (asleep.at(Place.ASLEEP), asleep.gpu_used_gib) == ((CHAT,), 0.0)
    assert loaded.seconds == pytest.approx(load_s(MODELS[CHAT], LOAD_SOURCES["host_pinned"]))
    assert node.state().cold_starts == 0


def test_a_request_wakes_a_sleeping_model():
    node = a_node(CHAT)
    node.sleep(CHAT, 0.0)
    node.submit(a_job(), 0.0)

    assert ends(node.advance(2.0)).keys() == {"a"}


def test_deep_sleep_and_unload_drop_the_weights():
    node = a_node(CHAT, CODE)

    node.sleep(CHAT, 0.0, level=2)
    node.unload(CODE, 0.0)

    assert node.state().at(Place.ABSENT) == (CHAT, CODE, SUPPORT, SUMMARY)


def test_host_memory_keeps_the_most_recent_sleepers():
    node = a_node(CHAT, CODE, host_gib=10.0)

    node.sleep(CHAT, 0.0)
    node.submit(a_job("code", CODE, output=1), 1.0)
    node.advance(2.0)
    node.sleep(CODE, 2.0)

    assert node.state().at(Place.ASLEEP) == (CODE,)


@pytest.mark.parametrize("leave", ["unload", "sleep"])
def test_a_busy_model_may_not_leave(leave):
    node = a_node(CHAT)
    node.submit(a_job(), 0.0)

    with pytest.raises(ModelBusyError, match="1 running"):
        getattr(node, leave)(CHAT, 0.0)


def test_when_kv_cache_is_full_the_newest_sequence_is_recomputed():
    """Llama-2-7B int8 on an A10 has 26,061 tokens of KV cache: three times 8,000 + 1,000 do not fit."""
    node = a_node(SUMMARY)
    for name in ("old", "middle", "new"):
        node.submit(a_job(name, SUMMARY, prompt=8000, output=1000, stream=True), 0.0)

    events = node.advance(FOREVER)

    assert {event.job_id for event in of(Preempted, events)} == {"new"}
    assert [done.job.id for done in of(Finished, events)] == ["old", "middle", "new"]
    told = [name for event in of(Tokens, events) + of(FirstToken, events) for name in event.job_ids]
    assert {name: told.count(name) for name in told} == {"old": 1000, "middle": 1000, "new": 1000}
    assert node.state().generation_tokens == 3000


def test_an_idle_neighbour_makes_room_for_kv_cache():
    """Two int8 Llama-class models leave 2.5-6 GiB: a 20,000-token prompt of 512 KiB each needs both to be alone."""
    node = a_node(SUMMARY, CHAT)

    node.submit(a_job(model=SUMMARY, prompt=20_000), 0.0)
    events = node.advance(FOREVER)

    assert [event.model for event in of(Evicted, events)] == [CHAT]
    assert ends(events).keys() == {"a"}


def test_a_cancelled_request_gives_its_kv_cache_back_at_once():
    node = a_node(CHAT)
    node.submit(a_job("stays", prompt=1000, output=500), 0.0)
    node.submit(a_job("leaves", prompt=3000, output=500), 0.0)
    node.advance(2.0)
    before = node.state()

    node.cancel("leaves", 2.0)

    after = node.state()
    freed = (before.kv_used - after.kv_used) * before.kv_bytes / MODELS[CHAT].kv_bytes_per_token
    assert 3000 < freed < 3500
    assert (after.running, after.cancelled) == (1, 1)


def test_cancelling_what_is_not_there_does_nothing():
    node = a_node(CHAT)

    assert not node.cancel("nobody", 0.0)


def test_what_can_never_fit_is_refused_with_its_size():
    node = a_node()

    with pytest.raises(NeverFitsError, match=r"needs 30\.\d GiB"):
        node.submit(a_job(model=SUMMARY, prompt=47_000), 0.0)


def test_a_node_is_not_born_with_more_models_than_it_holds():
    with pytest.raises(NeverFitsError, match=f"beside {CHAT}, {CODE}"):
        a_node(CHAT, CODE, SUPPORT)


def test_a_model_the_node_does_not_serve_is_refused():
    with pytest.raises(UnknownModelError, match=CHAT):
        a_node().submit(a_job(model="chat-70b"), 0.0)


def test_time_runs_forward():
    node = a_node()
    node.advance(5.0)

    with pytest.raises(ValueError, match="forward"):
        node.advance(4.0)


def test_memory_in_use_is_weights_activations_and_kv_cache():
    node = a_node(CHAT)
    node.submit(a_job(prompt=1000, output=2), 0.0)
    busy = node.state()
    node.advance(FOREVER)

    weights = MODELS[CHAT].stored_bytes / GIB + 0.6
    assert busy.gpu_used_gib == pytest.approx(weights + 1001 * 128 / 2**20)
    assert node.state().gpu_used_gib == pytest.approx(weights)
    assert node.state().gpu_peak_gib == pytest.approx(weights + 1002 * 128 / 2**20)


MODEL = st.sampled_from(list(MODELS))
ACTIONS = st.one_of(
    st.tuples(
        st.just("submit"),
        MODEL,
        st.integers(1, 20_000),
        st.integers(0, 300),
        st.integers(-1, 1),
        st.booleans(),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.sampled_from(["load", "unload", "sleep"]), MODEL),
    st.tuples(st.just("wait"), st.floats(0.0, 8.0)),
)


def act(node, action, now_s, number):
    """One action; what a node may refuse is allowed to be refused."""
    match action:
        case ("submit", model, prompt, output, priority, stream):
            node.submit(Job(str(number), model, prompt, output, priority, stream), now_s)
        case ("cancel", which):
            node.cancel(str(which), now_s)
        case ("unload" | "sleep" | "load" as what, model):
            with suppress(ModelBusyError):
                getattr(node, what)(model, now_s)


def play(node, actions):
    """Everything that happens, with the actions spread over time, until the node is idle."""
    events, now_s = [], 0.0
    for number, action in enumerate(actions):
        if action[0] == "wait":
            now_s += action[1]
            events += node.advance(now_s)
        act(node, action, now_s, number)
    return events + node.advance(FOREVER)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=30))
def test_whatever_happens_the_books_balance(actions):
    node = a_node(CHAT)

    events = play(node, actions)

    state = node.state()
    assert state.submitted == state.finished + state.cancelled
    assert (state.running, state.waiting, state.kv_used) == (0, 0, 0.0)
    assert node.next_event_s() == float("inf")
    assert state.gpu_peak_gib <= 0.9 * 22.05 + 1e-9
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    for done in of(Finished, events):
        told = sum(done.job.id in event.job_ids for event in events if isinstance(event, FirstToken | Tokens))
        assert done.submitted_s <= done.started_s < done.first_token_s <= done.at_s
        assert told == (max(1, done.job.output_tokens) if done.job.stream else 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(ACTIONS, max_size=20), st.lists(st.floats(0.0, 60.0), max_size=10))
def test_looking_more_often_changes_nothing(actions, looks):
    once, often = a_node(CHAT, CODE), a_node(CHAT, CODE)
    for number, action in enumerate(actions):
        act(once, action, 0.0, number)
        act(often, action, 0.0, number)

    seen = [event for now_s in sorted(looks) for event in often.advance(now_s)]

    assert seen + often.advance(FOREVER) == once.advance(FOREVER)


def a_turn(name, prompt, prefix, model=CHAT, output=50):
    return Job(name, model, prompt, output, session="s", prefix_tokens=prefix)


def first_tokens_after(node, *jobs):
    """Seconds from each job's submission to its first token, one after the other has finished."""
    seconds = []
    for job in jobs:
        now_s = node.state().now_s
        node.submit(job, now_s)
        (done,) = of(Finished, node.advance(now_s + 100.0))
        seconds.append(done.first_token_s - now_s)
    return seconds


def test_a_session_s_next_prompt_reads_only_what_is_new():
    node = a_node(CHAT)

    _, again_s = first_tokens_after(node, a_turn("1", 1000, 0), a_turn("2", 1300, 1050))

    assert again_s == pytest.approx(prefill_s(costs_of(CHAT), [1300], [1050]))
    assert again_s < 0.5 * prefill_s(costs_of(CHAT), [1300])


@pytest.mark.parametrize(
    ("second", "reused"),
    [
        pytest.param(a_turn("2", 1300, 0), 0, id="nothing repeats"),
        pytest.param(a_turn("2", 1300, 1200), 1050, id="no more than is there"),
        pytest.param(a_turn("2", 500, 800), 499, id="the last token is always read"),
        pytest.param(replace(a_turn("2", 1300, 1050), session="t"), 0, id="another session"),
        pytest.param(replace(a_turn("2", 1300, 1050), model=CODE), 0, id="another model"),
    ],
)
def test_what_a_prompt_reuses(second, reused):
    node = a_node(CHAT, CODE)

    _, again_s = first_tokens_after(node, a_turn("1", 1000, 0), second)

    assert again_s == pytest.approx(prefill_s(costs_of(second.model), [second.prompt_tokens], [reused]))


def test_without_a_prefix_cache_everything_is_read_again():
    node = a_node(CHAT, prefix_cache=False)

    _, again_s = first_tokens_after(node, a_turn("1", 1000, 0), a_turn("2", 1300, 1050))

    assert again_s == pytest.approx(prefill_s(costs_of(CHAT), [1300]))


def test_cached_contexts_give_way_to_running_sequences():
    """Llama-2-7B int8 has 26,061 tokens of KV cache: a prompt of 25,000 leaves the context of 5,050 about 1,000."""
    node = a_node(SUMMARY)
    first_tokens_after(node, a_turn("1", 5000, 0, SUMMARY))
    before = node.state()

    node.submit(a_job("large", SUMMARY, prompt=25_000, output=2), 200.0)

    assert (before.cached_tokens, before.kv_used) == (5050, 0.0)
    assert 1000 <= node.state().cached_tokens <= 1061


def test_an_evicted_model_takes_its_cached_contexts_along():
    node = a_node(CHAT)
    first_tokens_after(node, a_turn("1", 1000, 0))

    node.unload(CHAT, 100.0)

    assert node.state().cached_tokens == 0


POET, CLERK = "chat-7b@1+poet", "chat-7b@1+clerk"
SIBLINGS = {
    **MODELS,
    POET: replace(MODELS[CHAT], base=CHAT, adapter_bytes=160 << 20),
    CLERK: replace(MODELS[CHAT], base=CHAT, adapter_bytes=80 << 20),
}


def a_node_with_siblings(*resident, **settings_):
    node = EmulatedNode(SIBLINGS, NodeSettings(source=LOAD_SOURCES["remote"], **settings_))
    for model in resident:
        node.place(model)
    return node


def test_lora_siblings_run_in_one_batch():
    """One pass over the weights serves both: two siblings are no slower than two jobs of one model."""
    node = a_node_with_siblings(POET, CLERK)
    node.submit(a_job("first", CHAT, output=1), 0.0)
    node.submit(a_job("a", POET, output=100), 0.0)
    node.submit(a_job("b", CLERK, output=100), 0.0)

    done = ends(node.advance(FOREVER))

    costs = costs_of(CHAT)
    rounds_s = sum(decode_s(costs, 2, 2 * (128 + i)) for i in range(1, 100))
    assert done["a"] == done["b"] == pytest.approx(done["first"] + prefill_s(costs, [128, 128]) + rounds_s)


def test_an_adapter_is_loaded_without_stopping_its_lane():
    node = a_node_with_siblings(CHAT)
    node.submit(a_job("base", CHAT, output=400), 0.0)
    node.submit(a_job("sibling", POET, output=1), 0.0)

    events = node.advance(FOREVER)

    (loaded,) = of(Loaded, events)
    done = {event.job.id: event for event in of(Finished, events)}
    assert (loaded.model, loaded.cold) == (POET, True)
    assert loaded.seconds == pytest.approx(adapter_s(SIBLINGS[POET], LOAD_SOURCES["remote"]))
    assert done["base"].started_s == 0.0
    assert done["sibling"].cold
    assert loaded.at_s <= done["sibling"].started_s < done["base"].at_s


def test_other_requests_pass_one_that_waits_for_its_adapter():
    node = a_node_with_siblings(CHAT)
    node.submit(a_job("sibling", POET, output=1), 0.0)
    node.submit(a_job("base", CHAT, output=1), 0.0)

    done = ends(node.advance(FOREVER))

    assert done["base"] < 1.0 < done["sibling"]


def test_the_least_recently_used_adapter_leaves_its_slot():
    node = a_node_with_siblings(POET, max_adapters=1)

    node.submit(a_job("a", CLERK, output=1), 1.0)
    events = node.advance(FOREVER)

    assert of(Evicted, events) == [Evicted(1.0, POET)]
    assert (node.where(POET), node.where(CLERK)) == (Place.ABSENT, Place.RESIDENT)


def test_an_adapter_always_in_use_makes_way_for_an_older_request():
    """Its younger requests wait until it comes back: a stream of them keeps nobody out."""
    node = a_node_with_siblings(POET, max_adapters=1)
    node.submit(a_job("running", POET, output=50), 0.0)
    node.submit(a_job("older", CLERK, output=1), 0.1)
    for i in range(20):
        node.submit(a_job(f"young{i}", POET, output=50), 0.2 + 0.5 * i)

    done = ends(node.advance(FOREVER))

    assert done["running"] < done["older"] < done["young0"]


def test_adapter_slots_are_reserved_beside_the_weights():
    alone, siblings = a_node(CHAT), a_node_with_siblings(CHAT, max_adapters=8)

    reserved_gib = siblings.state().gpu_used_gib - alone.state().gpu_used_gib

    assert reserved_gib == pytest.approx(2 * 160 / 1024)


def test_adapters_leave_with_their_weights():
    node = a_node_with_siblings(POET)

    node.unload(CHAT, 0.0)
    gone = node.where(POET)
    node.place(CHAT)

    assert (gone, node.where(POET)) == (Place.ABSENT, Place.ABSENT)


def test_an_adapter_can_be_loaded_and_unloaded():
    node = a_node_with_siblings()

    node.load(POET, 0.0)
    arrived = [event.model for event in of(Loaded, node.advance(100.0))]
    node.unload(POET, 100.0)

    assert arrived == [CHAT, POET]
    assert (node.where(CHAT), node.where(POET)) == (Place.RESIDENT, Place.ABSENT)


def test_an_adapter_without_its_base_is_refused():
    with pytest.raises(ConfigError, match="add the base"):
        EmulatedNode({POET: SIBLINGS[POET]})


def test_a_node_without_adapter_slots_serves_no_siblings():
    with pytest.raises(ConfigError, match="max_adapters is 0"):
        EmulatedNode(SIBLINGS, NodeSettings(max_adapters=0))


def test_an_evicted_model_comes_back_from_host_memory():
    node = a_node(CHAT, CODE, keep_evicted=True)
    node.submit(a_job("third", SUPPORT, output=1), 0.0)
    (first,) = of(Loaded, node.advance(50.0))
    kept = node.state().at(Place.ASLEEP)

    node.submit(a_job("back", kept[0], output=1), 50.0)
    (again,) = of(Loaded, node.advance(100.0))

    assert first.seconds == pytest.approx(load_s(MODELS[SUPPORT], LOAD_SOURCES["engine_swap"]))
    assert kept == (CHAT,)
    assert again.seconds == pytest.approx(load_s(MODELS[CHAT], LOAD_SOURCES["host_pinned"]))
    assert node.state().cold_starts == 1


def test_the_least_preferred_model_makes_room_first():
    node = a_node(CHAT, CODE)
    node.submit(a_job("recent", CODE, output=1), 1.0)
    node.advance(2.0)
    node.prefer({CHAT: 1.0, CODE: 0.5})

    node.submit(a_job("c", SUPPORT), 3.0)

    assert of(Evicted, node.advance(FOREVER)) == [Evicted(3.0, CODE)]


def test_a_straggler_takes_longer_from_now_on():
    node = a_node(CHAT)
    node.submit(a_job("before", output=1), 0.0)
    step_ends = node.next_event_s()

    node.slow(3.0, 0.5 * step_ends)
    before = ends(node.advance(1.0))["before"]
    node.submit(a_job("after", output=1), 1.0)
    node.load(CODE, 1.0)
    events = node.advance(FOREVER)

    assert before == step_ends == pytest.approx(prefill_s(costs_of(CHAT), [128]))
    assert ends(events)["after"] == pytest.approx(1.0 + 3 * step_ends)
    assert of(Loaded, events)[0].seconds == pytest.approx(
        3 * load_s(MODELS[CODE], LOAD_SOURCES["engine_swap"])
    )


def test_a_node_cannot_be_sped_up_to_infinity():
    with pytest.raises(ValueError, match="above 0"):
        a_node().slow(0.0, 0.0)


def test_a_crash_loses_everything():
    node = a_node(CHAT, overhead_s=0.1)
    for i, model in enumerate((CHAT, CODE, CHAT)):
        node.submit(a_job(str(i), model, output=500), 0.1 * i)
    node.advance(0.25)

    node.crash(0.25)

    state = node.state()
    assert node.advance(FOREVER) == [Lost(0.25, "0"), Lost(0.25, "1"), Lost(0.25, "2")]
    assert (state.lost, state.running, state.waiting, state.gpu_used_gib) == (3, 0, 0, 0.0)
    assert state.at(Place.ABSENT) == tuple(MODELS)


def test_life_goes_on_after_a_crash():
    node = a_node(CHAT)
    node.submit(a_job("lost"), 0.0)
    node.crash(0.01)

    node.submit(a_job("again"), 1.0)

    assert ends(node.advance(FOREVER)).keys() == {"again"}
