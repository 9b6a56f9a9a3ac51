"""Load rates by source, from our own rows and from published ones."""

from math import inf

import numpy as np
import pytest

from ccr.errors import TraceError
from envs.calibration.loads import Load, fit_loads, read_loads, too_few
from envs.calibration.shapes import OPT_6_7B, known_shapes

SHAPES = known_shapes()
RECORDING = "20260102T030405Z-0a1b"


def loads(fixed_s, rate, sizes, source="disk_safetensors", noise=0.05, n=60):
    rng = np.random.default_rng(2)
    return [
        Load(source, "a10-1", size, (fixed_s + size / rate) * rng.normal(1.0, noise))
        for size in rng.choice(sizes, n)
    ]


def test_loads_of_several_sizes_tell_the_fixed_part_from_the_rate():
    (fit,) = fit_loads(loads(5.0, 2e9, [6e9, 13e9, 26e9]))

    assert fit.source.fixed_s == pytest.approx(5.0, abs=0.5)
    assert fit.source.bytes_per_s == pytest.approx(2e9, rel=0.05)
    assert fit.source.sd == pytest.approx(0.05, rel=0.3)
    assert (fit.source.name, fit.where, fit.n) == ("disk_safetensors", "a10-1", 60)


def test_loads_of_one_size_tell_only_the_rate():
    (fit,) = fit_loads(loads(0.0, 2e9, [13e9]))

    assert fit.source.bytes_per_s == pytest.approx(2e9, rel=0.02)
    assert (fit.fixed_s.value, fit.fixed_s.error) == (0.0, inf)
    assert "one size" in fit.fixed_s.note


def test_starts_of_one_size_tell_only_the_fixed_part():
    (fit,) = fit_loads(loads(30.0, 2.6e9, [13e9], source="process"))

    assert fit.source.fixed_s == pytest.approx(30.0, rel=0.03)
    assert fit.bytes_per_s.error == inf


def test_each_place_and_source_has_its_own_rate(tmp_path):
    path = tmp_path / "loads.csv"
    rows = [f"{t},{node},{kind},chat-7b,1,6000000000,{ms}" for t in range(3) for node, kind, ms in (
        ("a", "weights_disk", 3000), ("a", "weights_host", 400), ("b", "weights_disk", 1500),
    )]  # fmt: skip
    path.write_text(
        "t,node,kind,model,version,bytes,ms\n" + "\n".join([*rows, "9,a,evict,chat-7b,1,,5"]) + "\n"
    )

    found, skipped = read_loads(path, SHAPES)
    rates = {(fit.where, fit.source.name): fit.source.bytes_per_s / 1e9 for fit in fit_loads(found)}

    assert rates == pytest.approx(
        {("a", "disk_safetensors"): 2, ("a", "host_pinned"): 15, ("b", "disk_safetensors"): 4}
    )
    assert skipped == {"of kind evict": 1}


def test_loads_that_a_router_recorded_come_from_where_the_caller_says(tmp_path):
    """A router sees that a model came, not where from; a restart has no model, and some nodes tell no time."""
    (tmp_path / f"{RECORDING}.loads.000001.jsonl").write_text(
        '{"ccr_trace":1,"kind":"loads"}\n'
        '{"t":1.0,"node":"a","kind":"","model":"chat-7b","version":"1","bytes":null,"ms":5000.0}\n'
        '{"t":2.0,"node":"a","kind":"process","model":"","version":"","bytes":null,"ms":null}\n'
        '{"t":3.0,"node":"a","kind":"","model":"chat-7b","version":"1","bytes":null,"ms":null}\n'
    )

    (load,), skipped = read_loads(tmp_path, SHAPES, "remote")

    assert load == Load("remote", "a", SHAPES["chat-7b@1"].stored_bytes, 5.0)
    assert skipped == {"without model": 1, "without ms": 1}


def test_published_load_times_take_their_size_from_the_model(tmp_path):
    path = tmp_path / "loading.csv"
    path.write_text("gpu,disk,model,loader,loading_s\nA5000 24GB,NVMe,facebook/opt-6.7b,sllm,1.06\n")

    (load,), _ = read_loads(path, SHAPES)

    assert load == Load("disk_fast", "A5000 24GB", OPT_6_7B.stored_bytes, 1.06)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        pytest.param("0,a,teleport,chat-7b,1,1,5", "line 2: kind is 'teleport'; known: process", id="kind"),
        pytest.param("0,a,weights_disk,chat-7b,1,1,0", "line 2: ms is 0", id="no time"),
        pytest.param("0,a,weights_disk,gpt-9,,,5", "line 2: unknown model 'gpt-9'", id="no size"),
        pytest.param(
            "0,a,evict,chat-7b,1,,5", "no load of weights, only rows of kind evict", id="nothing to fit"
        ),
    ],
)
def test_loads_that_cannot_be_are_refused(tmp_path, row, says):
    path = tmp_path / "loads.csv"
    path.write_text(f"t,node,kind,model,version,bytes,ms\n{row}\n")

    with pytest.raises(TraceError, match=says):
        read_loads(path, SHAPES)


def test_two_loads_are_too_few():
    with pytest.raises(TraceError, match="2 loads from disk_safetensors; at least 3"):
        fit_loads(loads(0.0, 2e9, [13e9], n=2))


def test_a_place_with_too_few_loads_is_left_out_and_counted():
    found = [*loads(0.0, 2e9, [13e9]), Load("disk_safetensors", "b", 1e9, 1.0)]

    assert [fit.where for fit in fit_loads(found)] == ["a10-1"]
    assert too_few(found) == {"b from disk_safetensors": 1}
