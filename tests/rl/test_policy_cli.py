"""``ccr policy list|show|diff|promote|rollback`` for people and for programs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from ccr import weights
from ccr.cli import cli
from ccr.errors import CCRError
from ccr.policies.learned import SHIPPED
from ccr.policies.network import KAPPA
from ccr.weights import save
from rl.versions import RunFacts
from tests.rl.verdicts import a_verdict
from tests.weights import a_network, some_weights

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def ccr(uri):
    """A command of the group; what it printed."""

    def invoke(*arguments, fails=False):
        done = CliRunner().invoke(cli, ["policy", *arguments, "--tracking-uri", uri])
        if fails:
            assert isinstance(done.exception, CCRError), done.output
            return str(done.exception)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    return invoke


@pytest.fixture
def two(registry, weights_file):
    """Two versions; the first has passed."""
    registry.register(weights_file(1, version="first"), RunFacts({"budget": "short"}, {"cost": 0.91}))
    registry.register(weights_file(2, version="second"))
    registry.store_verdict(registry.get(1), a_verdict(registry.get(1)))
    return registry


def lines_of(printed):
    return [" ".join(line.split()) for line in printed.splitlines() if line.strip()]


# -- list


def test_an_empty_registry_says_what_serves(ccr):
    assert "`ccr train` registers what it trains; the shipped weights serve" in ccr("list")
    assert json.loads(ccr("list", "--json")) == []


def test_the_list_shows_who_is_who(ccr, two):
    printed = lines_of(ccr("list"))

    assert printed[0] == "version name aliases created cost against heuristic gate"
    assert printed[2].startswith("1 first - 20")
    assert printed[2].endswith("0.910 [0.880, 0.940] pass against champion")
    assert printed[3].startswith("2 second challenger 20")
    assert printed[3].endswith("- -")


def test_the_list_for_programs(ccr, two):
    first, second = json.loads(ccr("list", "--json"))

    assert (first["version"], first["name"], first["verdict"]["passed"]) == (1, "first", True)
    assert (second["aliases"], second["verdict"], second["sha256"]) == ("challenger", None, two.get(2).sha256)


# -- show


def test_a_version_tells_everything(ccr, two):
    ccr("promote", "1", "--reason", "the first")

    printed = "\n".join(lines_of(ccr("show", "champion")))

    for said in (
        "version first", "created_at 2026-11-23T10:00:00+00:00", "training.seeds 1, 2", "params.budget short",
        "metrics.cost 0.91", f"sha256 {two.get(1).sha256}", "met cost below: 0.900 [0.800, 0.950]",
        "promote: the shipped weights -> version 1, by ",
    ):  # fmt: skip
        assert said in printed
    assert "canary" not in printed


def test_a_version_tells_programs_the_same(ccr, two):
    facts = json.loads(ccr("show", "1", "--json"))

    assert facts["weights"]["version"] == "first"
    assert facts["run"]["metrics"] == {"cost": 0.91}
    assert facts["verdict"]["passed"] is True
    assert facts["history"] == []


def test_a_file_and_the_shipped_weights_can_be_shown(ccr, weights_file):
    assert "version mine" in "\n".join(lines_of(ccr("show", str(weights_file(3, version="mine")))))
    assert json.loads(ccr("show", "shipped", "--json"))["weights"]["version"] == weights.load(SHIPPED).version
    assert json.loads(ccr("show", "champion", "--json"))["registered"] is None


# -- diff


def test_a_difference_is_laid_side_by_side(ccr, two):
    printed = lines_of(ccr("diff", "1", "2"))

    assert printed[:2] == ["one: version 1; other: version 2", "name one other ratio"]
    assert "theta.load 9.42 9.42 1" in printed
    assert "same action: " in "\n".join(printed)
    assert "features: the same" in printed
    assert "cost against the heuristic, one: 0.910 [0.880, 0.940]" in printed
    assert "cost against the heuristic, other: not judged" in printed


def test_numbers_that_differ_have_their_ratio(ccr, tmp_path):
    net = a_network()
    warmer = net._replace(theta=2.0 * net.theta, scalars=net.scalars.copy(), out=-net.out)
    warmer.scalars[KAPPA] = 4.0
    for name, one in (("a", net), ("b", warmer)):
        save(some_weights(one), tmp_path / f"{name}.npz")

    found = json.loads(ccr("diff", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--json"))

    ratios = {row["name"]: row["ratio"] for row in found["numbers"]}
    assert len(ratios) == 8 + 4
    assert {ratios[f"theta.{name}"] for name in ("load", "cold")} == {2.0}
    assert ratios["scalars.kappa"] == 0.5
    assert ratios["scalars.priority"] is None
    assert found["layers"]["own"] == 0.0
    assert found["layers"]["out"] == pytest.approx(2.0)
    assert 0.0 < found["same_actions"] < 1.0


def test_the_same_weights_do_not_differ(ccr, weights_file):
    path = str(weights_file())

    found = json.loads(ccr("diff", path, path, "--json"))

    assert set(found["layers"].values()) == {0.0}
    assert found["same_actions"] == 1.0
    assert all(row["one"] == row["other"] for row in found["numbers"])


def test_weights_for_other_features_can_still_be_compared(ccr, weights_file, tmp_path):
    """They cannot be used any more, and why is what one asks then."""
    with np.load(weights_file()) as arrays:
        old = dict(arrays)
    manifest = json.loads(old["manifest"].tobytes())
    manifest["schema"] = "0" * 16
    manifest["features"] = manifest["features"][1:]
    old["node"] = old["node"][1:]
    np.savez(
        tmp_path / "old.npz",
        **old | {"manifest": np.frombuffer(json.dumps(manifest).encode(), dtype=np.uint8)},
    )

    found = json.loads(ccr("diff", str(tmp_path / "old.npz"), str(weights_file()), "--json"))

    assert found["features"] == ["computed, never seen: load_term"]
    assert found["same_actions"] is None
    assert found["layers"]["node"] is None
    assert found["layers"]["own"] == 0.0


# -- promote and rollback


def test_a_promotion_hands_the_weights_over(ccr, two, tmp_path):
    printed = ccr("promote", "1", "--out", str(tmp_path / "champion.npz"))

    assert printed.startswith("version 1 is the champion now; before: the shipped weights\nwritten: ")
    assert weights.load(tmp_path / "champion.npz").version == "first"
    assert "pass against champion" in ccr("list")


def test_a_promotion_past_the_gate_says_so(ccr, two):
    assert "Run `ccr policy gate 2`" in ccr("promote", "2", fails=True)
    assert "say why with --reason" in ccr("promote", "2", "--force", fails=True)

    printed = ccr("promote", "challenger", "--force", "--reason", "a hunch")

    assert printed == "version 2 is the champion now; before: the shipped weights (forced): a hunch\n"
    assert "(forced): a hunch" in ccr("show", "2")


def test_a_place_that_cannot_be_written_is_told_before_anything_moves(ccr, two, tmp_path):
    assert "there is no directory" in ccr(
        "promote", "1", "--out", str(tmp_path / "nowhere" / "a.npz"), fails=True
    )

    assert two.champion() is None


def test_a_rollback_hands_over_what_was_before(ccr, two, tmp_path):
    ccr("promote", "1")
    ccr("promote", "2", "--force", "--reason", "a hunch")

    back = ccr("rollback", "--reason", "it was wrong", "--out", str(tmp_path / "a.npz"))
    again = ccr("rollback", "--out", str(tmp_path / "b.npz"))

    assert back.startswith("version 1 is the champion now; before: version 2: it was wrong\n")
    assert weights.load(tmp_path / "a.npz").version == "first"
    assert again.startswith("the shipped weights are in force again; before: version 1\n")
    assert weights.load(tmp_path / "b.npz").sha256 == weights.load(SHIPPED).sha256
    assert "there is no champion" in ccr("rollback", fails=True)


def test_what_is_not_there_is_named(ccr):
    for arguments in (("show", "9"), ("diff", "9", "shipped"), ("promote", "9")):
        assert "no version '9' of ccr-policy" in ccr(*arguments, fails=True)


def test_help_needs_no_mlflow():
    """It takes seconds to import."""
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom ccr.cli import cli\n"
        "done = CliRunner().invoke(cli, ['policy', 'list', '--help'])\n"
        "assert done.exit_code == 0 and 'mlflow' not in sys.modules and 'numba' not in sys.modules, sys.modules.keys()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
