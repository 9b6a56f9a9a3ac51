"""``ccr drill`` from the command line to its document."""

import json

import pytest
from click.testing import CliRunner

from ccr.errors import ConfigError
from rl.drills import cli
from rl.drills.cli import SEEDS, drill
from rl.drills.drifts import DRIFTS
from rl.drills.play import FROZEN, ONLINE
from rl.drills.poison import POISONS

pytestmark = pytest.mark.timeout(600)


def invoke(*arguments):
    return CliRunner().invoke(drill, [*arguments])


@pytest.mark.parametrize("arguments", [("--list",), ()], ids=["asked", "without a name"])
def test_the_drills_are_listed(arguments):
    done = invoke(*arguments)

    assert done.exit_code == 0
    assert all(name in done.output for name in (*DRIFTS, *POISONS))


def test_an_unknown_drill_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no drill is called 'flood'; there are node-slow"):
        CliRunner().invoke(drill, ["flood"], catch_exceptions=False)


def test_a_place_that_is_none_is_refused_before_anything_is_played(tmp_path):
    with pytest.raises(ConfigError, match="there is no directory"):
        CliRunner().invoke(
            drill, ["nothing", "--json", str(tmp_path / "no" / "x.json")], catch_exceptions=False
        )


@pytest.mark.parametrize("name", ["nothing", "nan-feedback"])
def test_a_drill_is_written_whole(name, tmp_path):
    out = tmp_path / "drill.json"

    done = invoke(name, "--quick", "--seeds", "2", "--workers", "1", "--json", str(out))

    written = json.loads(out.read_text())
    assert done.exit_code == (0 if all(bar["met"] for bar in written["bars"]) else 1), done.output
    assert {"drill", "seeds", "arms", "ratios", "recovered", "bars", "command", "commit", "weights"} <= set(
        written
    )
    assert written["seeds"] == {"first": SEEDS, "count": 2}
    assert all(bar["bar"] in done.output for bar in written["bars"])


def test_learning_that_is_switched_off_misses_the_bar(monkeypatch):
    """The planted mistake: what is called online has learned nothing."""
    drifted = cli._drifted

    def unlearned(name, policy, quick, seed):
        rows = drifted(name, policy, quick, seed)
        return rows | {ONLINE: rows[FROZEN]}

    monkeypatch.setattr(cli, "_drifted", unlearned)
    monkeypatch.setattr(cli, "Cores", Here)

    done = invoke("node-slow", "--quick", "--seeds", "2", "--workers", "1")

    assert done.exit_code == 1
    assert "MISSED  cost of online over frozen" in done.output


class Here:
    """Plays in this process, where mistakes can be planted."""

    def __init__(self, count):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, tasks):
        return map(function, tasks)


@pytest.mark.prove
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [*DRIFTS, *POISONS])
def test_every_bar_is_met(name):
    """What docs/drills.md tells."""
    done = invoke(name)

    assert done.exit_code == 0, done.output
