"""A node's overhead and bandwidth come back from what it was seen to do."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from ccr.errors import TraceError
from ccr.timing import GPUS, PRESETS
from envs.calibration.nodes import fit_node, node_errors, replay
from envs.calibration.recorded import Sample, Served
from envs.catalogue import catalogue
from envs.node import EmulatedNode, NodeSettings
from envs.words import Finished, Job, Place

CHAT, CODE, SUPPORT = "chat-7b@1", "code-7b@1", "support-8b@1"
MODELS = catalogue([CHAT, CODE, SUPPORT])
SETTINGS = NodeSettings(GPUS["A10"], PRESETS["graph"])


def arrivals(count=60, rate=2.0, seed=3, outputs=(2, 80), models=(CHAT,)):
    """``(t, job)`` in order."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate, count))
    return [
        (
            float(t),
            Job(str(i), str(rng.choice(models)), int(rng.integers(20, 1500)), int(rng.integers(*outputs))),
        )
        for i, t in enumerate(at_s)
    ]


def emulated(jobs, settings, sampled_s=(), noise=0.0, streamed=True):
    """What a node with these settings does, in virtual time: its requests, and its telemetry."""
    rng = np.random.default_rng(9)
    node = EmulatedNode(MODELS, settings)
    for model in dict.fromkeys(job.model for _, job in jobs):
        node.place(model)
    moments = sorted(
        [(t, job) for t, job in jobs] + [(t, None) for t in sampled_s], key=lambda moment: moment[0]
    )
    events, samples = [], []
    for t, job in moments:
        if job is not None:
            node.submit(job, t)
        else:
            events += node.advance(t)
            samples.append(Sample(t, node.state().running, node.state().kv_used))
    while (t := node.next_event_s()) < inf:
        events += node.advance(t)
    served = []
    for end in (event for event in events if isinstance(event, Finished)):
        factor = rng.normal(1.0, noise)
        first, total = end.first_token_s - end.submitted_s, end.at_s - end.submitted_s
        served.append(
            Served(
                int(end.job.id), end.submitted_s, "a10-1", end.job.model, MODELS[end.job.model], end.job.prompt_tokens,
                end.job.output_tokens, factor * first if streamed else None, factor * total, cold=False,
            )
        )  # fmt: skip
    return sorted(served, key=lambda request: request.at_s), samples


def on_a_crowded_node(jobs, settings):
    """What a node does that starts empty and has room for two models, with loads that vary as measured ones do."""
    rng = np.random.default_rng(5)
    node = EmulatedNode(MODELS, settings, lambda: float(rng.normal(1.0, settings.source.sd)))
    events, cold = [], set()
    for t, job in jobs:
        events += node.advance(t)
        state = node.state().models[job.model]
        if state.place is Place.ABSENT and not state.waiting:
            cold.add(job.id)
        node.submit(job, t)
    while (t := node.next_event_s()) < inf:
        events += node.advance(t)
    served = [
        Served(
            int(end.job.id), end.submitted_s, "a10-1", end.job.model, MODELS[end.job.model], end.job.prompt_tokens,
            end.job.output_tokens, end.first_token_s - end.submitted_s, end.at_s - end.submitted_s,
            cold=end.job.id in cold, session=end.job.session, prefix_tokens=end.job.prefix_tokens,
        )
        for end in events if isinstance(end, Finished)
    ]  # fmt: skip
    return sorted(served, key=lambda request: request.at_s)


@pytest.mark.parametrize(
    ("overhead_s", "bw_scale"),
    [
        pytest.param(0.045, 0.85, id="slow node, slow front"),
        pytest.param(0.0, 1.15, id="fast node, no front"),
        pytest.param(0.200, 1.0, id="a heavy front"),
    ],
)
def test_overhead_and_bandwidth_of_a_node_come_back(overhead_s, bw_scale):
    truth = replace(SETTINGS, overhead_s=overhead_s, bw_scale=bw_scale)
    served, _ = emulated(arrivals(), truth, noise=0.02)

    fit = fit_node(served, SETTINGS)

    assert fit.overhead_s.value == pytest.approx(overhead_s, abs=0.004)
    assert fit.bw_scale.value == pytest.approx(bw_scale, rel=0.02)
    assert not fit.overhead_s.note
    assert not fit.bw_scale.note
    (error,) = fit.errors
    assert (error.node, error.model, error.n) == ("a10-1", CHAT, 60)
    assert error.first_mape < 0.05
    assert error.decode_mape < 0.03


def test_two_models_that_share_a_node_are_told_apart_in_the_report():
    truth = replace(SETTINGS, overhead_s=0.03, bw_scale=0.9)
    served, _ = emulated(arrivals(rate=1.0, models=(CHAT, CODE)), truth)

    fit = fit_node(served, SETTINGS)

    assert fit.bw_scale.value == pytest.approx(0.9, rel=0.02)
    assert {error.model for error in fit.errors} == {CHAT, CODE}
    assert sum(error.n for error in fit.errors) == 60


def test_answers_that_were_not_streamed_still_tell():
    truth = replace(SETTINGS, overhead_s=0.05, bw_scale=0.9)
    served, _ = emulated(arrivals(rate=1.0), truth, streamed=False)

    fit = fit_node(served, SETTINGS)

    assert fit.overhead_s.value == pytest.approx(0.05, abs=0.005)
    assert fit.bw_scale.value == pytest.approx(0.9, rel=0.02)
    assert fit.errors[0].first_mape is None


def test_long_prompts_with_one_token_of_answer_cannot_tell_the_bandwidth():
    jobs = [
        (t, replace(job, prompt_tokens=job.prompt_tokens + 500))
        for t, job in arrivals(rate=1.0, outputs=(1, 2))
    ]
    served, _ = emulated(jobs, replace(SETTINGS, overhead_s=0.05, bw_scale=0.8))

    fit = fit_node(served, SETTINGS)

    assert (fit.bw_scale.value, fit.bw_scale.error) == (1.0, inf)
    assert "cannot tell" in fit.bw_scale.note
    assert fit.overhead_s.value == pytest.approx(0.05, abs=0.003)


def test_cold_requests_are_replayed_and_not_fitted_on():
    truth = replace(SETTINGS, overhead_s=0.03, bw_scale=0.9)
    served, _ = emulated(arrivals(), truth)
    served[-1] = replace(served[-1], cold=True, first_s=60.0, total_s=70.0)

    fit = fit_node(served, SETTINGS)

    assert fit.bw_scale.value == pytest.approx(0.9, rel=0.02)
    assert fit.errors[0].n == 59
    assert fit.requests == 60


def test_a_node_that_often_loads_is_no_riddle():
    """Loads take a tenth longer or shorter than expected, and every one of them moves all that comes after it."""
    truth = replace(SETTINGS, overhead_s=0.03, bw_scale=0.9)
    served = on_a_crowded_node(arrivals(count=120, rate=0.8, models=(CHAT, CODE, SUPPORT)), truth)

    fit = fit_node(served, SETTINGS)

    assert sum(request.cold for request in served) > 10
    assert fit.bw_scale.value == pytest.approx(0.9, rel=0.005)
    assert fit.overhead_s.value == pytest.approx(0.03, abs=0.002)
    assert max(error.decode_mape for error in fit.errors) < 0.05


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_turns_of_a_conversation_find_their_context_where_the_node_keeps_it(prefix_cache):
    truth = replace(SETTINGS, overhead_s=0.03, prefix_cache=prefix_cache)
    jobs = [
        (3.0 * i, Job(str(i), CHAT, 300 + 200 * (i // 3), 30, session=f"s{i % 3}", prefix_tokens=300 + 200 * (i // 3)))
        for i in range(45)
    ]  # fmt: skip
    served = on_a_crowded_node(jobs, truth)

    good, wrong = (
        fit_node(served, replace(SETTINGS, prefix_cache=cached))
        for cached in (prefix_cache, not prefix_cache)
    )

    assert good.errors[0].first_mape < 0.05
    assert wrong.errors[0].first_mape > 0.2


def test_who_joins_a_load_under_way_is_not_fitted_on():
    """To the router the model was there: somebody waited for it."""
    jobs = [(t, Job(str(i), CHAT, 100, 20)) for i, t in enumerate((0.0, 1.0, 2.0, 30.0, 40.0))]
    served = on_a_crowded_node(jobs, SETTINGS)

    assert [request.cold for request in served] == [True, False, False, False, False]
    assert fit_node(served, SETTINGS).errors[0].n == 2


def test_a_replay_under_the_true_constants_is_what_happened():
    truth = replace(SETTINGS, overhead_s=0.03, bw_scale=0.9)
    served, _ = emulated(arrivals(count=40), truth)

    times = replay(served, truth)

    assert [time.total_s for time in times] == pytest.approx([request.total_s for request in served])
    assert node_errors(served, truth)[0].decode_mape == pytest.approx(0.0, abs=1e-9)


def test_telemetry_of_the_same_load_agrees_with_the_replay():
    served, samples = emulated(arrivals(), SETTINGS, sampled_s=np.arange(1.0, 28.0, 0.25).tolist())

    occupancy = fit_node(served, SETTINGS, samples).occupancy

    assert occupancy.note == ""
    assert occupancy.replayed_running == pytest.approx(occupancy.running, rel=0.05)
    assert occupancy.replayed_kv_used == pytest.approx(occupancy.kv_used, rel=0.05)


def test_telemetry_gives_away_that_half_of_the_load_is_missing():
    served, samples = emulated(arrivals(rate=4.0), SETTINGS, sampled_s=np.arange(1.0, 14.0, 0.25).tolist())

    occupancy = fit_node(served[::2], SETTINGS, samples).occupancy

    assert "does not hold all of this node's load" in occupancy.note


def test_a_node_with_nothing_but_cold_starts_is_refused():
    served, _ = emulated(arrivals(count=3), SETTINGS)

    with pytest.raises(TraceError, match="a10-1: every request was a cold start"):
        fit_node([replace(request, cold=True) for request in served], SETTINGS)


def test_a_request_larger_than_the_card_is_refused_with_its_line():
    served, _ = emulated(arrivals(count=3), SETTINGS)
    served[1] = replace(served[1], line=17, prompt_tokens=10_000_000)

    with pytest.raises(TraceError, match="line 17: "):
        fit_node(served, SETTINGS)
