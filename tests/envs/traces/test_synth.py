import numpy as np
import pytest
from click.testing import CliRunner

from ccr.errors import ConfigError, TraceError
from envs.catalogue import catalogue
from envs.traces import bundled
from envs.traces.cli import synth
from envs.traces.describe import describe
from envs.traces.synth import CLASSES, Lengths, Switch, Workload, draw
from envs.traces.trace import read, write

ALONE = {"chat": Lengths(100, 0.5, 1000, 50, 0.5, 500)}


def shares(trace, from_s=0.0, until_s=np.inf):
    inside = (trace.t >= from_s) & (trace.t < until_s)
    counts = np.bincount(trace.model[inside], minlength=len(trace.models))
    return dict(zip(trace.models, counts / counts.sum(), strict=True))


def columns(trace):
    return [
        trace.t,
        trace.model,
        trace.prompt_tokens,
        trace.output_tokens,
        trace.session,
        trace.prefix_tokens,
        trace.priority,
    ]


def test_the_same_seed_draws_the_same_and_another_another():
    workload = Workload(swaps=1, burst_factor=4, release_every_s=100, priorities={0: 0.8, 1: 0.2})

    one, same, other = draw(workload, 5), draw(workload, 5), draw(workload, 6)

    assert one.models == same.models
    assert all((a == b).all() for a, b in zip(columns(one), columns(same), strict=True))
    assert len(other) != len(one) or (other.t != one.t).any()


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(Workload(rate=20, duration_s=3000), id="as given"),
        pytest.param(Workload(rate=20, duration_s=3000, cv=6), id="very bursty"),
        pytest.param(Workload(rate=20, duration_s=3000, burst_factor=10, burst_share=0.2), id="modulated"),
        pytest.param(Workload(rate=20, duration_s=3000, diurnal=1.0, day_s=1000), id="with days"),
        pytest.param(Workload(rate=20, duration_s=3000, diurnal=0.9, day_s=1400), id="with a part of a day"),
        pytest.param(Workload(rate=20, duration_s=3000, think_s=120), id="slow conversations"),
        pytest.param(Workload(rate=20, duration_s=3000, classes={"chat": Lengths(900, 0.5, 1500, 100, 0.5, 500, turns=8)}), id="conversations cut short"),
    ],
)  # fmt: skip
def test_the_rate_is_what_was_asked_for_from_the_start(workload):
    traces = [draw(workload, seed) for seed in range(5)]

    assert sum(map(len, traces)) / 5 / workload.duration_s == pytest.approx(20, rel=0.06)
    if not workload.diurnal:
        assert sum((trace.t < 1000).sum() for trace in traces) / 5 / 1000 == pytest.approx(20, rel=0.15)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_vary_as_asked(cv):
    trace = draw(Workload(models=("a",), rate=20, duration_s=3000, cv=cv, classes=ALONE), 1)

    assert describe(trace)["interarrival_cv"] == pytest.approx(cv, rel=0.1)


def test_bursts_make_counts_uneven():
    calm = Workload(models=("a",), rate=20, duration_s=3000, cv=1, classes=ALONE)
    wild = Workload(models=("a",), rate=20, duration_s=3000, cv=1, burst_factor=10, classes=ALONE)

    assert describe(draw(calm, 1))["dispersion"]["10"] == pytest.approx(1.0, abs=0.3)
    assert describe(draw(wild, 1))["dispersion"]["10"] > 20


def test_popularity_falls_as_a_power_of_rank():
    trace = draw(
        Workload(models=("a", "b", "c", "d"), rate=50, duration_s=2000, zipf=1.0, drift=0, classes=ALONE), 1
    )

    expected = 1 / np.arange(1, 5) / (1 / np.arange(1, 5)).sum()
    assert [shares(trace)[model] for model in "abcd"] == pytest.approx(expected, abs=0.03)


def test_popularity_drifts_and_swaps_and_does_not_run_away():
    steady = Workload(models=("a", "b", "c", "d"), rate=20, duration_s=1200, drift=0, classes=ALONE)
    drifting = Workload(models=("a", "b", "c", "d"), rate=20, duration_s=1200, drift=0.5, classes=ALONE)
    swapping = Workload(
        models=("a", "b", "c", "d"), rate=20, duration_s=1200, drift=0, swaps=2, classes=ALONE
    )
    ever = Workload(models=("a", "b", "c", "d"), rate=1, duration_s=100_000, drift=0.3, classes=ALONE)

    def moved(workload):
        trace = draw(workload, 2)
        early, late = shares(trace, until_s=60), shares(trace, from_s=1140)
        return sum(abs(early[model] - late[model]) for model in early) / 2

    assert moved(steady) < 0.08 < moved(drifting)
    assert moved(swapping) > 0.08
    assert max(shares(draw(ever, 1)).values()) < 0.9


def test_a_switch_moves_conversations_over_its_ramp_one_by_one():
    workload = Workload(
        models=("chat-a@1",), rate=30, duration_s=600, switches=(Switch("chat-a@1", "chat-a@2", 200, 200),)
    )

    trace = draw(workload, 1)

    after = trace.model == trace.models.index("chat-a@2")
    assert not after[trace.t < 200].any()
    assert after[trace.t > 400].all()
    assert after[(trace.t > 280) & (trace.t < 320)].mean() == pytest.approx(0.5, abs=0.1)
    for session in np.unique(trace.session)[:200]:
        assert (np.diff(after[trace.session == session].astype(int)) >= 0).all()


def test_releases_bring_one_version_after_another():
    trace = draw(
        Workload(models=("a@1", "b"), rate=5, duration_s=2000, release_every_s=150, release_ramp_s=20), 3
    )

    assert {"a@1", "a@2", "b", "b@2"} <= set(trace.models)
    first = {model: trace.t[trace.model == i][0] for i, model in enumerate(trace.models)}
    assert first["a@1"] < first["a@2"] < first["a@3"]


def test_a_turn_repeats_all_that_was_said_before_it():
    trace = draw(Workload(models=("chat-a",), rate=10, duration_s=900, classes=CLASSES), 1)

    repeated = 0
    for session in np.unique(trace.session)[:300]:
        turns = np.flatnonzero(trace.session == session)
        said = (trace.prompt_tokens + trace.output_tokens)[turns]
        assert trace.prefix_tokens[turns[0]] == 0
        np.testing.assert_array_equal(trace.prefix_tokens[turns[1:]], said[:-1])
        repeated += turns.size > 1
    assert repeated > 50
    assert (trace.prefix_tokens < trace.prompt_tokens).all()


def test_lengths_keep_to_their_caps_and_medians():
    trace = draw(
        Workload(
            models=("a",), rate=50, duration_s=1000, classes={"chat": Lengths(100, 1.0, 400, 50, 1.0, 90)}
        ),
        1,
    )

    assert (trace.prompt_tokens.max(), trace.output_tokens.max()) == (400, 90)
    assert min(trace.prompt_tokens.min(), trace.output_tokens.min()) >= 1
    assert np.median(trace.prompt_tokens) == pytest.approx(100, rel=0.05)
    assert np.median(trace.output_tokens) == pytest.approx(50, rel=0.05)
    assert (trace.session == -1).all()


def test_priorities_have_their_shares():
    trace = draw(Workload(rate=20, duration_s=2000, priorities={0: 0.7, 5: 0.2, -1: 0.1}), 1)

    found = {int(value): (trace.priority == value).mean() for value in np.unique(trace.priority)}
    assert found == pytest.approx({-1: 0.1, 0: 0.7, 5: 0.2}, abs=0.04)


def test_the_models_of_the_default_are_in_the_catalogue():
    assert set(Workload().models) <= catalogue().keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ()}, {"models": ("a", "a")}, {"rate": 0.0}, {"rate": float("nan")}, {"duration_s": float("inf")},
        {"cv": 0.0}, {"burst_factor": 0.5}, {"burst_share": 1.0}, {"diurnal": 1.5}, {"priorities": {}},
        {"priorities": {0: -1.0, 1: 2.0}}, {"drift_s": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=rf"workload: {next(iter(wrong))} is .*; expected"):
        Workload(**wrong)


def test_a_switch_from_nowhere_is_refused():
    with pytest.raises(ConfigError, match="nothing asks for 'x'"):
        draw(Workload(models=("a",), switches=(Switch("x", "y", 1.0),)), 1)


def test_the_trace_that_comes_with_the_package(tmp_path):
    """It is what its header says drew it; to a percent, since processors differ in the last digit of a logarithm."""
    trace = read(bundled("synthetic"))
    command = trace.header.notes[0].removeprefix("drawn by: ccr traces synth ")

    done = CliRunner().invoke(synth, [*command.split(), "-o", str(tmp_path / "again.csv")])

    again = read(tmp_path / "again.csv")
    assert done.exit_code == 0
    assert 1900 < len(trace) < 2300
    assert len(again) == pytest.approx(len(trace), rel=0.01)
    assert again.prompt_tokens.mean() == pytest.approx(trace.prompt_tokens.mean(), rel=0.02)
    assert set(again.models) == set(trace.models)
    assert {"chat-7b@1", "chat-7b@2"} <= set(trace.models) <= catalogue().keys()
    assert bundled("synthetic").stat().st_size < 60_000


def test_a_trace_that_does_not_come_with_the_package_is_refused():
    with pytest.raises(TraceError, match=r"no trace 'x' comes with the package; there is .*synthetic"):
        bundled("x")
    with pytest.raises(TraceError):
        bundled("../data/synthetic")


def test_a_drawn_trace_survives_a_file(tmp_path):
    trace = draw(Workload(release_every_s=100, priorities={0: 0.5, 3: 0.5}), 1)

    write(trace, tmp_path / "t.csv.gz")
    again = read(tmp_path / "t.csv.gz")

    assert (again.models, again.header) == (trace.models, trace.header)
    assert all((a == b).all() for a, b in zip(columns(again), columns(trace), strict=True))
