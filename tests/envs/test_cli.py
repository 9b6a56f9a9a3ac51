"""``ccr node`` refuses early; that it serves and ends cleanly is in test_emulator."""

import pytest
from click.testing import CliRunner

from envs import cli
from envs.cli import node


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["--count", "0"], "needs a node", id="no node"),
        pytest.param(["--speed", "0"], "speed is 0", id="stands still"),
        pytest.param(["--model", "chat-70b"], "unknown model 'chat-70b'", id="model"),
        pytest.param(["--gpu", "H200"], "'H200' is not one of", id="card"),
        pytest.param(["--bw-scale", "-1"], "bw_scale is -1", id="bandwidth"),
    ],
)
def test_what_cannot_be_is_refused_in_words(options, says):
    result = CliRunner().invoke(node, ["--port", "0", *options])

    assert result.exit_code != 0
    assert says in result.output


def test_options_become_settings(monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "run", lambda settings, _: asked.append(settings))

    result = CliRunner().invoke(
        node,
        ["--gpu", "A10", "--gpu", "L4", "--load", "disk_fast", "--overhead-ms", "50", "--warm", "chat-7b@1"],
    )

    assert result.exit_code == 0
    (settings,) = asked
    assert (settings.gpus, settings.load, settings.overhead_s) == (("A10", "L4"), "disk_fast", 0.05)
    assert (settings.port, settings.count, settings.warm) == (9001, 1, ("chat-7b@1",))
