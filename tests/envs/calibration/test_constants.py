"""A calibration is read back as it was written, and anything else is refused."""

import pytest

from ccr.errors import ConfigError
from ccr.timing import GPUS, LOAD_SOURCES, PRESETS, LoadSource
from envs.calibration.constants import Calibration, NodeConstants, read_calibration, write_calibration
from envs.node import NodeSettings

SLOW_DISK = LoadSource("disk_safetensors", 1.5, 1.3e9, 0.2, "fitted to 40 loads on a10-1")
FULL = Calibration(
    preset=PRESETS["eager"],
    nodes={"a10-1": NodeConstants(0.04, 0.9), "a10-2": NodeConstants(0.0, 1.0)},
    loads={"a10-1": {"disk_safetensors": SLOW_DISK}},
    measured={"trace.jsonl": "0" * 64},
)


@pytest.mark.parametrize(
    "calibration",
    [
        pytest.param(FULL, id="everything"),
        pytest.param(Calibration(preset=PRESETS["graph"]), id="an engine"),
        pytest.param(Calibration(nodes={"a": NodeConstants(0.1, 1.2)}), id="a node"),
    ],
)
def test_what_is_written_is_read_back(tmp_path, calibration):
    path = tmp_path / "constants.yaml"

    write_calibration(path, calibration)

    assert read_calibration(path) == calibration
    assert [file.name for file in tmp_path.iterdir()] == ["constants.yaml"]


def test_a_node_takes_its_own_constants_and_keeps_the_rest():
    base = NodeSettings(GPUS["L4"], source=LOAD_SOURCES["disk_safetensors"], host_gib=7.0)

    settings = FULL.settings(base, node="a10-1")

    assert (settings.overhead_s, settings.bw_scale, settings.source) == (0.04, 0.9, SLOW_DISK)
    assert (settings.preset, settings.gpu, settings.host_gib) == (PRESETS["eager"], GPUS["L4"], 7.0)


def test_a_source_that_was_not_measured_stays():
    base = NodeSettings(source=LOAD_SOURCES["disk_fast"])

    assert FULL.settings(base, node="a10-1").source == LOAD_SOURCES["disk_fast"]
    assert FULL.settings(base, node="a10-2").source == LOAD_SOURCES["disk_fast"]


def test_an_unknown_node_is_refused():
    with pytest.raises(ConfigError, match="no node 'a10-9'; it has a10-1, a10-2"):
        FULL.settings(NodeSettings(), node="a10-9")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        pytest.param(
            "ccr_calibration: 1", "ccr_calibration: 2", "not a calibration of version 1", id="version"
        ),
        pytest.param("nodes:", "knots:", "unknown knots", id="unknown key"),
        pytest.param("bw_scale: 0.9", "bw_scale: 0", "nodes: a10-1: bw_scale is 0", id="no bandwidth"),
        pytest.param("bw_scale: 0.9", "bw_scale: fast", "bw_scale is 'fast'", id="a word"),
        pytest.param(
            "bw_scale: 0.9", "bw: 0.9", "expected the fields overhead_s, bw_scale", id="another field"
        ),
        pytest.param("  sd: 0.2", "  sd: -0.2", "sd is -0.2", id="negative"),
        pytest.param("preset:", "preset: {", "cannot be read", id="torn"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path, before, after, says):
    path = tmp_path / "constants.yaml"
    write_calibration(path, FULL)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))

    with pytest.raises(ConfigError, match=says):
        read_calibration(path)
