"""``ccr calibrate``: files in, constants and errors out."""

import json

import pytest
from click.testing import CliRunner

from ccr.timing import GPUS, PRESETS, step_costs
from envs.calibration.cli import calibrate
from envs.calibration.constants import read_calibration
from envs.calibration.profiles import Profile
from envs.calibration.shapes import known_shapes
from envs.catalogue import catalogue
from envs.node import EmulatedNode, NodeSettings
from envs.words import Finished, Job

SHAPES = known_shapes()
CHAT = "chat-7b@1"


def run(*arguments):
    return CliRunner().invoke(calibrate, [str(argument) for argument in arguments])


@pytest.fixture
def profiles(tmp_path):
    """Three models as the eager preset would take them; the third a tenth slower."""
    lines = ["model,input_len,batch,prefill_mean_s,decode_mean_s,valid"]
    for model, factor in (("llama2_7b", 1.0), ("yi1_5_6b_chat", 1.0), ("qwen_7b", 1.1)):
        costs = step_costs(SHAPES[model], GPUS["A10"], PRESETS["eager"])
        for n, batch in ((16, 1), (16, 32), (16, 100), (128, 1), (512, 1), (512, 4), (1024, 2), (2048, 1)):
            cell = Profile(model, SHAPES[model], n, batch, 1.0, 1.0)
            prefill, decode = cell.predicted_prefill_s(costs), cell.predicted_decode_s(costs)
            lines.append(f"{model},{n},{batch},{prefill * factor},{decode * factor},1")
    path = tmp_path / "profiles.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def trace(tmp_path):
    """A node with 40 ms of overhead and nine tenths of the bandwidth, as the router would record it."""
    node = EmulatedNode(catalogue([CHAT]), NodeSettings(overhead_s=0.04, bw_scale=0.9))
    node.place(CHAT)
    for i in range(60):
        node.submit(Job(str(i), CHAT, 50 + 20 * i, 10 + i), 0.7 * i)
    lines = [
        json.dumps({
            "t": end.submitted_s, "request_id": end.job.id, "model": "chat-7b", "version": "1", "node": "a10-1",
            "prompt_tokens": end.job.prompt_tokens, "output_tokens": end.job.output_tokens,
            "ttft_ms": 1000 * (end.first_token_s - end.submitted_s), "total_ms": 1000 * (end.at_s - end.submitted_s),
            "cold_start": False, "status": "ok",
        })
        for end in node.advance(1e6)
        if isinstance(end, Finished)
    ]  # fmt: skip
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_json_has_the_error_of_every_model(tmp_path, profiles):
    out = tmp_path / "errors.json"

    result = run("--profiles", profiles, "--json", out)

    assert result.exit_code == 0, result.output
    models = json.loads(out.read_text())["models"]
    assert set(models) == {"llama2_7b", "yi1_5_6b_chat", "qwen_7b"}
    for errors in models.values():
        assert set(errors) == {"prefill_mape", "decode_mape", "n"}
        assert errors["n"] == 8


def test_a_model_held_out_is_reported_and_not_fitted(tmp_path, profiles):
    out = tmp_path / "errors.json"

    result = run("--profiles", profiles, "--hold-out", "qwen_7b", "--json", out)

    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    assert document["fitted_on"] == ["llama2_7b", "yi1_5_6b_chat"]
    assert document["models"]["llama2_7b"]["decode_mape"] < 0.01
    assert document["models"]["qwen_7b"]["decode_mape"] == pytest.approx(1 - 1 / 1.1, abs=0.01)
    assert document["leave_one_out"] == {}


def test_constants_are_written_for_the_simulator_and_drawn_for_people(tmp_path, profiles):
    out, picture = tmp_path / "constants.yaml", tmp_path / "fit.png"

    result = run("--profiles", profiles, "--fit", "llama2_7b, yi1_5_6b_chat", "--out", out, "--plot", picture)

    assert result.exit_code == 0, result.output
    calibration = read_calibration(out)
    assert calibration.preset.decode_bandwidth == pytest.approx(PRESETS["eager"].decode_bandwidth, rel=0.01)
    assert len(calibration.measured["profiles.csv"]) == 64
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nodes_of_a_trace_are_written_with_their_own_constants(tmp_path, trace):
    out, errors = tmp_path / "constants.yaml", tmp_path / "errors.json"

    result = run("--trace", trace, "--out", out, "--json", errors)

    assert result.exit_code == 0, result.output
    settings = read_calibration(out).settings(NodeSettings(), node="a10-1")
    assert settings.overhead_s == pytest.approx(0.04, abs=0.002)
    assert settings.bw_scale == pytest.approx(0.9, rel=0.01)
    (row,) = json.loads(errors.read_text())["nodes"]["a10-1"]["errors"]
    assert (row["model"], row["n"]) == (CHAT, 60)
    assert row["first_mape"] < 0.02


def test_telemetry_that_shows_more_than_the_trace_is_warned_of(tmp_path, trace):
    telemetry = tmp_path / "telemetry.csv"
    telemetry.write_text("t,node,running\n" + "".join(f"{t},a10-1,30\n" for t in range(5, 35)))

    result = run("--trace", trace, "--telemetry", telemetry)

    assert result.exit_code == 0, result.output
    assert "warning: a10-1: telemetry shows 30.0 running" in result.output


def test_loads_are_written_by_place(tmp_path):
    loads, out = tmp_path / "loads.csv", tmp_path / "constants.yaml"
    loads.write_text(
        "t,node,kind,model,bytes,ms\n" + "".join(f"{t},a,weights_disk,x,6000000000,3000\n" for t in range(5))
    )

    result = run("--loads", loads, "--out", out)

    assert result.exit_code == 0, result.output
    assert read_calibration(out).loads["a"]["disk_safetensors"].bytes_per_s == pytest.approx(2e9, rel=0.01)


def test_a_bar_that_is_missed_fails_with_the_model(profiles):
    fine, missed = run("--profiles", profiles, "--bar", "15"), run("--profiles", profiles, "--bar", "5")

    assert fine.exit_code == 0
    assert missed.exit_code == 1
    assert "above the bar of 5 %, fitted or left out" in missed.output
    assert "qwen_7b" in missed.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], "nothing to fit to", id="nothing"),
        pytest.param(["--trace", "FILE", "--fit", "a"], "are about --profiles", id="models of no profile"),
        pytest.param(
            ["--profiles", "FILE", "--telemetry", "FILE"], "--telemetry goes with", id="telemetry alone"
        ),
        pytest.param(["--profiles", "FILE", "--fit", "gpt-9"], "no model 'gpt-9'", id="unknown model"),
        pytest.param(["--trace", "FILE"], "line 1: no column t, node, prompt_tokens", id="not a trace"),
    ],
)
def test_what_cannot_be_is_refused_in_words(profiles, arguments, says):
    result = run(*(profiles if argument == "FILE" else argument for argument in arguments))

    assert result.exit_code == 1
    assert says in result.output
