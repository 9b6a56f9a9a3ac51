"""Engine constants from profiles: cited figures within the bar, known constants recovered, bad files refused."""

from dataclasses import replace

import numpy as np
import pytest

from ccr.errors import ConfigError, TraceError
from ccr.timing import GPUS, PRESETS, step_costs
from envs.calibration.profiles import (
    Profile,
    choose,
    fit_preset,
    leave_one_out,
    model_errors,
    read_profiles,
)
from envs.calibration.shapes import known_shapes

A10, EAGER = GPUS["A10"], PRESETS["eager"]
SHAPES = known_shapes()
BAR = 0.08

# (input tokens, batch, prefill ms, decode step ms): NVIDIA A10, vLLM fp16 eager, mean of 12 repeats; a few cells of the
# profiles that the Aegaeon artifact publishes (SOSP'25, doi 10.5281/zenodo.16673199, Apache-2.0).
CITED = {
    "llama2_7b": [
        (16, 1, 32.6, 30.7), (128, 1, 37.9, 31.1), (512, 1, 116.3, 31.6), (1024, 1, 223.4, 32.4),
        (2048, 1, 438.3, 33.6), (16, 8, 39.0, 33.6), (16, 16, 58.7, 35.8), (16, 60, 195.1, 48.1),
        (16, 100, 333.9, 56.3), (1024, 4, 933.3, 38.0), (16, 200, 672.0, 91.1),
    ],
    "yi1_5_6b_chat": [
        (16, 1, 29.5, 27.0), (128, 1, 33.6, 27.5), (512, 1, 93.5, 27.6), (1024, 1, 181.8, 27.5),
        (2048, 1, 367.5, 28.0), (16, 16, 47.6, 32.1), (16, 60, 168.0, 40.1), (1024, 4, 738.2, 29.8),
        (16, 200, 551.7, 67.4),
    ],
    "baichuan_7b": [
        (16, 1, 32.9, 31.0), (128, 1, 38.8, 31.7), (512, 1, 118.3, 32.1), (2048, 1, 446.1, 33.9),
        (16, 16, 68.4, 36.6), (16, 60, 204.6, 48.2), (1024, 4, 940.2, 37.8), (16, 200, 698.0, 95.8),
    ],
    "qwen_7b": [
        (16, 1, 34.6, 32.6), (128, 1, 40.3, 33.2), (512, 1, 114.1, 33.9), (2048, 1, 440.3, 35.5),
        (16, 16, 64.4, 38.0), (16, 60, 207.4, 50.1), (1024, 4, 906.8, 39.3), (16, 200, 727.6, 103.5),
    ],
}  # fmt: skip

CELLS = [(n, b) for n in (16, 64, 256, 1024, 2048) for b in (1, 2, 4, 16, 64, 128) if n * b <= 4096]


def cited(*models):
    return [
        Profile(model, SHAPES[model], n, batch, prefill / 1000, decode / 1000)
        for model in models or CITED
        for n, batch, prefill, decode in CITED[model]
    ]


def made(preset, models=("llama2_7b", "yi1_5_6b_chat"), noise=0.0, cells=CELLS, seed=1):
    """Cells that the timing model itself took, with noise."""
    rng = np.random.default_rng(seed)
    profiles = []
    for model in models:
        costs = step_costs(SHAPES[model], A10, preset)
        for n, batch in cells:
            cell = Profile(model, SHAPES[model], n, batch, 1.0, 1.0)
            prefill, decode = cell.predicted_prefill_s(costs), cell.predicted_decode_s(costs)
            factors = rng.normal(1.0, noise, 2)
            profiles.append(replace(cell, prefill_s=prefill * factors[0], decode_s=decode * factors[1]))
    return profiles


@pytest.mark.parametrize("model", CITED)
def test_the_preset_that_ships_is_within_the_bar_on_every_cited_model(model):
    errors = model_errors(EAGER, cited(model), A10)[model]

    assert errors.prefill_mape <= BAR
    assert errors.decode_mape <= BAR


def test_constants_fitted_on_the_other_models_are_within_the_bar():
    left_out = leave_one_out(cited(), A10, EAGER)

    assert set(left_out) == set(CITED)
    for fit, errors in left_out.values():
        assert errors.prefill_mape <= BAR
        assert errors.decode_mape <= BAR
        assert fit.preset != EAGER


def test_a_single_model_leaves_nothing_out():
    assert leave_one_out(cited("llama2_7b"), A10, EAGER) == {}


def test_known_constants_come_back_from_noisy_cells():
    truth = replace(
        EAGER, prefill_fixed_s=5e-3, linear_flops=80e12, attention_flops=25e12, prefill_bandwidth=400e9,
        decode_bandwidth=500e9, per_sequence_s=0.1e-3, kv_bandwidth=250e9,
    )  # fmt: skip

    fit = fit_preset(made(truth, noise=0.01), A10, EAGER)

    for constant in fit.constants:
        known = getattr(truth, constant.name)
        assert not constant.note
        assert constant.value == pytest.approx(known, rel=0.10)
        assert abs(constant.value - known) <= 4 * constant.error
        assert getattr(fit.preset, constant.name) == constant.value


def test_short_prompts_cannot_tell_the_cost_of_attention():
    cells = [(n, b) for n, b in CELLS if n <= 64]

    fit = fit_preset(made(EAGER, noise=0.01, cells=cells), A10, replace(EAGER, attention_flops=30e12))

    (attention,) = (constant for constant in fit.constants if constant.name == "attention_flops")
    assert attention.value == 30e12
    assert "cannot tell" in attention.note


def test_a_preset_has_the_error_that_its_cells_have():
    slower = [
        replace(cell, prefill_s=2 * cell.prefill_s, decode_s=4 * cell.decode_s)
        for cell in made(EAGER, ("qwen_7b",))
    ]

    errors = model_errors(EAGER, slower, A10)["qwen_7b"]

    assert (errors.prefill_mape, errors.decode_mape, errors.n) == (
        pytest.approx(0.5),
        pytest.approx(0.75),
        len(slower),
    )


HEADER = "model,input_len,batch,prefill_mean_s,decode_mean_s,valid\n"


def test_invalid_cells_are_counted_and_left_out(tmp_path):
    path = tmp_path / "profiles.csv"
    path.write_text(HEADER + "llama2_7b,16,1,0.03,0.03,1\nllama2_7b,2048,4,0.9,0.04,0\n")

    (cell,), invalid = read_profiles(path, SHAPES)

    assert (cell.input_tokens, cell.batch, cell.prefill_s, invalid) == (16, 1, 0.03, 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("gpt-9,16,1,0.03,0.03,1", "line 2: unknown model 'gpt-9'.*--shapes", id="model"),
        pytest.param("llama2_7b,0,1,0.03,0.03,1", "line 2: input_len is '0'", id="no prompt"),
        pytest.param("llama2_7b,16,1.5,0.03,0.03,1", "line 2: batch is 1.5", id="half a prompt"),
        pytest.param("llama2_7b,16,1,0,0.03,1", "line 2: prefill_mean_s is 0", id="no time"),
        pytest.param("llama2_7b,16,1,0.03,,1", "line 2: decode_mean_s is ''", id="no decode"),
        pytest.param("llama2_7b,16,1,0.03,0.03,yes", "line 2: valid is 'yes'", id="valid"),
        pytest.param("llama2_7b,16,1,0.03,0.03,0", "none of its 1 rows", id="nothing valid"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_with_its_line(tmp_path, line, says):
    path = tmp_path / "profiles.csv"
    path.write_text(HEADER + line + "\n")

    with pytest.raises(TraceError, match=says):
        read_profiles(path, SHAPES)


def test_models_are_fitted_unless_held_out():
    assert choose("abc", [], []) == {"a", "b", "c"}
    assert choose("abc", ["a", "b"], []) == {"a", "b"}
    assert choose("abc", [], ["a"]) == {"b", "c"}


@pytest.mark.parametrize(
    ("fit", "hold_out", "says"),
    [
        pytest.param(["d"], [], "no model 'd'; it has a, b, c", id="unknown"),
        pytest.param(["a"], ["a"], "a: either fitted or held out", id="both"),
        pytest.param([], ["a", "b", "c"], "at least one", id="nothing left"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(fit, hold_out, says):
    with pytest.raises(ConfigError, match=says):
        choose("abc", fit, hold_out)
