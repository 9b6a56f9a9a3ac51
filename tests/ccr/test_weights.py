"""A weights file is what was saved, or it is refused with the difference spelled out."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import features, weights
from ccr.errors import CCRError, WeightsError
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import HOLD_SHARE, KAPPA, Network, blank
from ccr.weights import LARGEST_BYTES, MANIFEST, Weights, checksum, load, save
from tests.weights import VERSION, a_network, some_weights, training

FIELDS = Network._fields
#: Entries that every field may hold.
NUMBERS = st.floats(0.01, 100.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A good file; never written to."""
    path = tmp_path_factory.mktemp("weights") / "good.npz"
    save(some_weights(), path)
    return path


@pytest.fixture
def changed(saved, tmp_path):
    """The good file with some of its arrays replaced, added, or (``None``) left out."""

    def write(in_manifest=None, **arrays):
        with np.load(saved) as good:
            all_ = dict(good)
        stored = json.loads(all_[MANIFEST].tobytes()) | (in_manifest or {})
        text = json.dumps({key: value for key, value in stored.items() if value is not None})
        all_[MANIFEST] = np.frombuffer(text.encode(), dtype=np.uint8)
        all_ |= arrays
        path = tmp_path / "changed.npz"
        np.savez(path, **{name: array for name, array in all_.items() if array is not None})
        return path

    return write


def names_in(folder):
    return [one.name for one in folder.iterdir()]


def refusal(path):
    with pytest.raises(WeightsError) as refused:
        load(path)
    assert isinstance(refused.value, CCRError)
    assert str(path) in str(refused.value)
    return str(refused.value)


# -- there and back


def test_what_was_saved_is_loaded(saved):
    found = load(saved)

    for array, original in zip(found.network, a_network(), strict=True):
        np.testing.assert_array_equal(array, original)
    assert found.version == VERSION
    assert found.manifest["training"] == training()
    assert found.sha256 == found.manifest["sha256"] == checksum(a_network())


def test_the_arrays_are_ready_for_compiled_code(saved):
    """It is compiled once, for one kind of array."""
    for array in load(saved).network:
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.owndata


def test_saving_says_what_loading_will_find(tmp_path):
    said = save(some_weights(), tmp_path / "a.npz")

    assert said.manifest == load(tmp_path / "a.npz").manifest
    assert said.manifest["schema"] == features.schema()
    assert [name for name, _ in said.manifest["features"]] == list(features.FEATURES)


def test_what_was_loaded_can_be_saved_again(saved, tmp_path):
    again = save(load(saved), tmp_path / "again.npz")

    assert again.manifest == load(saved).manifest


def test_a_file_is_small_and_can_be_read_by_others(saved):
    assert saved.stat().st_size < 200_000
    assert saved.stat().st_mode & 0o044 == 0o044 & ~_umask()


def test_there_is_no_pickle_in_it(saved):
    with np.load(saved, allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype.str for name in arrays} == dict.fromkeys(FIELDS, "<f8") | {
            MANIFEST: "|u1"
        }


@given(st.data())
def test_any_network_within_its_ranges_comes_back_to_the_bit(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "a.npz"
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    sizes = {name: data.draw(NUMBERS, label=name) for name in FIELDS}
    network = Network(
        **{
            name: np.abs(value) if name in {"theta", "scalars"} else value
            for name, array in blank(np.zeros(8))._asdict().items()
            for value in [sizes[name] * rng.uniform(-1.0, 1.0, array.shape)]
        }
    )

    save(some_weights(network), path)

    for array, original in zip(load(path).network, network, strict=True):
        assert array.tobytes() == original.tobytes()


def test_other_layouts_of_the_same_numbers_are_the_same_weights(saved, tmp_path):
    net = a_network()
    turned = net._replace(own=np.asfortranarray(net.own), node=net.node[:, ::-1][:, ::-1])

    save(some_weights(turned), tmp_path / "a.npz")

    assert load(tmp_path / "a.npz").sha256 == load(saved).sha256


def test_the_shipped_weights_are_good():
    from ccr.policies.learned import SHIPPED

    assert load(SHIPPED).version
    assert SHIPPED.stat().st_size < 200_000


# -- writing is all or nothing


def test_what_is_refused_leaves_the_old_file_alone(saved, tmp_path):
    path = tmp_path / "kept.npz"
    path.write_bytes(saved.read_bytes())
    net = a_network()
    net.theta[0] = np.nan

    with pytest.raises(WeightsError, match="not finite"):
        save(some_weights(net), path)

    assert path.read_bytes() == saved.read_bytes()
    assert names_in(tmp_path) == ["kept.npz"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()

    for path in (tmp_path / "nowhere" / "a.npz", tmp_path / "file" / "a.npz", tmp_path):
        with pytest.raises(WeightsError, match="cannot write weights to"):
            save(some_weights(), path)
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        pytest.param({"version": ""}, "its version is ''", id="no version"),
        pytest.param({"version": "a\nb"}, "printable", id="version of two lines"),
        pytest.param({"created_at": "yesterday"}, "it was created at 'yesterday'; give a moment as ISO 8601", id="no moment"),
        pytest.param({"created_at": 5}, "ISO 8601", id="moment as a number"),
        pytest.param({"training": {"command": "x"}}, "does not tell commit, scenarios, seeds, stages, versions, wall_s", id="little said"),
        pytest.param({"training": training(wall_s=float("nan"))}, "cannot be JSON", id="NaN in it"),
        pytest.param({"training": training(seeds={1, 2})}, "cannot be JSON", id="a set in it"),
    ],
)  # fmt: skip
def test_weights_that_do_not_say_where_they_are_from_are_not_written(manifest, says, tmp_path):
    good = some_weights()

    with pytest.raises(WeightsError) as refused:
        save(Weights(good.network, {**good.manifest, **manifest}), tmp_path / "a.npz")

    assert says in str(refused.value)
    assert names_in(tmp_path) == []


# -- files that are something else


class Bomb:
    """Raises where it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing.npz")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"theta: [1, 2]", id="text"),
        pytest.param(pickle.dumps(Bomb()), id="pickle"),
        pytest.param(b"PK\x03\x04" + b"\0" * 100, id="the beginning of a zip"),
    ],
)
def test_what_is_no_npz_is_refused(content, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(content)

    assert "not a whole .npz file" in refusal(path)


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(8))

    assert "not a whole .npz file" in refusal(path)


def test_a_pickled_array_is_refused_unread(changed):
    path = changed(theta=np.array([Bomb()], dtype=object))

    assert "objects (pickle) are never read" in refusal(path)


def test_a_huge_file_is_refused_before_it_is_parsed(saved, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(saved.read_bytes() + b"\0" * LARGEST_BYTES)

    assert "larger than 4 MiB" in refusal(path)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(saved, tmp_path):
    path = tmp_path / "a.npz"
    with np.load(saved) as good:
        np.savez_compressed(path, **{**good, "node": np.zeros((10_000, 100))})

    assert path.stat().st_size < 200_000
    assert "unpacks to more than 4 MiB" in refusal(path)


def test_an_array_that_claims_to_be_huge_takes_no_memory(saved, tmp_path):
    """Numpy would set the memory aside before it looked at the bytes."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(saved) as good, zipfile.ZipFile(path, "w") as bad:
        for one in good.infolist():
            raw = good.read(one)
            if one.filename == "theta.npy":
                raw = raw.replace(b"(8,), }                ", b"(80000000000000000,), }")
            bad.writestr(one.filename, raw)

    assert "'theta' says it has shape (80000000000000000,), and its bytes are not as many" in refusal(path)


def test_an_array_that_is_there_twice_is_refused(saved, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("theta", b"")

    assert "an array is there twice" in refusal(path)


@given(cut=st.integers(0, 10**6))
def test_a_file_that_was_cut_off_is_refused(saved, tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "a.npz"
    whole = saved.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])

    assert "not a whole .npz file" in refusal(path)


@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_refused_or_means_the_same(saved, tmp_path_factory, flips):
    """Some bytes of a zip, such as times, mean nothing to us."""
    path = tmp_path_factory.mktemp("flipped") / "a.npz"
    damaged = bytearray(saved.read_bytes())
    for place, by in flips:
        damaged[place % len(damaged)] ^= by
    path.write_bytes(damaged)

    with suppress(WeightsError):
        found = load(path)

        assert found.sha256 == load(saved).sha256
        assert found.manifest == load(saved).manifest


# -- files that are nearly right


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"theta": None}, "these arrays are missing: theta", id="missing"),
        pytest.param({"bias2": np.zeros(3)}, "these arrays do not belong there: bias2", id="extra"),
        pytest.param({"theta": np.zeros(7)}, "'theta' has shape (7,), and (8,) is expected", id="shape"),
        pytest.param({"own": np.zeros((31, 32))}, "'own' has shape (31, 32), and (32, 32) is expected", id="width"),
        pytest.param({"theta": np.zeros(8, dtype=np.float32)}, "'theta' is not a plain array of float64", id="single precision"),
        pytest.param({"theta": np.zeros(8, dtype=">f8")}, "'theta' is not a plain array of float64", id="byte order"),
        pytest.param({"theta": np.zeros(8, dtype=np.uint8)}, "'theta' is not a plain array of float64", id="bytes"),
        pytest.param({MANIFEST: None}, "no manifest in it", id="no manifest"),
        pytest.param({MANIFEST: np.zeros(3)}, "'manifest' is not a plain array", id="manifest of numbers"),
        pytest.param({MANIFEST: np.frombuffer(b"{", dtype=np.uint8)}, "its manifest is not JSON", id="no JSON"),
        pytest.param({MANIFEST: np.frombuffer(b"[" * 10**6, dtype=np.uint8)}, "its manifest is not JSON", id="deep JSON"),
        pytest.param({MANIFEST: np.frombuffer(b'{"format": NaN}', dtype=np.uint8)}, "its manifest is not JSON", id="NaN"),
        pytest.param({MANIFEST: np.frombuffer(b"[1]", dtype=np.uint8)}, "format None, and this release reads 1", id="a list"),
        pytest.param({"in_manifest": {"format": 2}}, "format 2, and this release reads 1; use the release that wrote", id="format"),
        pytest.param({"in_manifest": {"version": None}}, "its version is None", id="no version"),
        pytest.param({"in_manifest": {"training": []}}, "its training does not tell command, commit", id="training"),
        pytest.param({"in_manifest": {"sha256": "0" * 64}}, "not those of the manifest's sha256", id="checksum"),
        pytest.param({"out": a_network(2).out}, "not those of the manifest's sha256", id="other numbers"),
    ],
)  # fmt: skip
def test_the_difference_is_spelled_out(change, says, changed):
    assert says in refusal(changed(**change))


@pytest.mark.parametrize(
    ("field", "place", "value", "says"),
    [
        pytest.param("theta", 3, np.nan, "'theta' holds nan at 3, which is not finite", id="NaN"),
        pytest.param("own", (4, 5), -np.inf, "'own' holds -inf at (4, 5), which is not finite", id="infinite"),
        pytest.param("theta", 0, -0.5, "'theta' holds -0.5 at 0, outside 0 to 1000", id="negative cost"),
        pytest.param("theta", 7, 1001.0, "'theta' holds 1001 at 7, outside 0 to 1000", id="large cost"),
        pytest.param("scalars", KAPPA, 100.5, "'scalars' holds 100.5 at 0, outside 0 to 100", id="cold"),
        pytest.param("scalars", KAPPA, 0.0, "'kappa' is 0; it must be above", id="infinitely hot"),
        pytest.param("scalars", HOLD_SHARE, -1.0, "'scalars' holds -1 at 2, outside 0 to 1e+06", id="negative price"),
        pytest.param("node", (0, 0), 100.5, "'node' holds 100.5 at (0, 0), outside -100 to 100", id="large layer"),
        pytest.param("extra_bias", 1, -101.0, "'extra_bias' holds -101 at 1, outside -100 to 100", id="large bias"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named_both_ways(field, place, value, says, changed, tmp_path):
    """Where it is written, and where it is read."""
    array = getattr(a_network(), field).copy()
    array[place] = value

    assert says in refusal(changed(**{field: array}))
    with pytest.raises(WeightsError) as refused:
        save(some_weights(a_network()._replace(**{field: array})), tmp_path / "a.npz")
    assert says in str(refused.value)


# -- odd behaviour that no checksum sees


def test_weights_that_do_not_look_at_the_nodes_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="the best node is number 1 of those that may be chosen"):
        save(some_weights(blank(np.zeros(8))), tmp_path / "a.npz")


def test_weights_that_act_otherwise_here_than_at_the_trainer_are_refused(saved, monkeypatch):
    """As with another release, whose arithmetic is not that of the trainer's."""
    monkeypatch.setattr("ccr.canary.logits", lambda nodes, *rest: _logits(nodes * 1.02, *rest))

    assert "the canary is dead" in refusal(saved)


def test_a_rounding_apart_is_the_same(saved, monkeypatch):
    """Machines add up in different orders."""
    monkeypatch.setattr("ccr.canary.logits", lambda *state: _logits(*state) * (1.0 + 1e-9))

    assert load(saved).version == VERSION


def test_the_network_may_be_the_heuristic_alone(tmp_path):
    save(some_weights(blank(np.array(LeastCost().theta))), tmp_path / "a.npz")

    assert load(tmp_path / "a.npz").version == VERSION


def _logits(*state):
    from ccr.policies.network import logits

    return logits(*state)


def _umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_the_module_can_be_imported_before_the_policies():
    """It needs one of them, and one of them needs it."""
    for first in ("ccr.weights", "ccr.policies", "ccr.canary", "ccr.policies.learned"):
        done = subprocess.run([sys.executable, "-c", f"import {first}"], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_limits_are_those_of_the_page():
    assert (weights.FORMAT, weights.LARGEST_BYTES) == (1, 4 * 2**20)


def test_the_bytes_of_a_file_are_read_as_the_file_is(saved):
    found = weights.parse(saved.read_bytes(), "published weights")

    assert found.sha256 == load(saved).sha256


def test_bytes_that_are_refused_are_called_what_the_caller_calls_them():
    with pytest.raises(WeightsError, match=r"^published weights 3: larger than"):
        weights.parse(b"x" * (LARGEST_BYTES + 1), "published weights 3")
