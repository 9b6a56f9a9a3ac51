"""What is told arrives as it was; what makes no sense is refused, and nothing that anybody writes can do more than that."""

import random
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ccr.hashing import hash64
from ccr.shared import ADDED, IN_FLIGHT, Part, nothing
from router.sharing import told
from router.sharing.told import PartError, decode, encode, summed

MODELS = ("a", "b", "c")
NODES = ("n1", "n2", "n3", "n4")
KEY = b"a key of the tests"


def hashes(names):
    return np.array([hash64(name) for name in names], dtype=np.uint64)


def places(names):
    return {hash64(name): k for k, name in enumerate(names)}


def part_of(counts, scale=1.0):
    """As many requests of each model on each node; everything else follows from that."""
    counts = np.asarray(counts, dtype=np.int64)
    part = nothing(*counts.shape)
    part.inflight[:] = counts
    part.load[:] = scale * counts.sum(axis=0)
    part.load[IN_FLIGHT] = counts.sum(axis=0)
    part.loading_s[:] = np.where(counts > 0, 2.5 * scale, 0.0)
    part.quiet_s[:] = np.where(counts.any(axis=0), 0.5, np.inf)
    part.done_per_s[:] = 0.25
    part.sent_per_s[:] = np.where(counts.any(axis=0), 0.75, 0.0)
    return part


def sent(part, models=MODELS, nodes=NODES, key=b""):
    return decode(encode(part, hashes(models), hashes(nodes), key), key)


ONE = part_of([[1, 0, 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]])


@given(
    arrays(np.int64, (3, 4), elements=st.integers(0, 500)),
    st.floats(0.0, 1e5, width=32),
)
def test_a_part_arrives_as_it_was(counts, scale):
    part = part_of(counts, scale)

    found = summed([sent(part)], places(MODELS), places(NODES))

    for name in Part._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(part, name), rtol=1e-6, err_msg=name)


def test_names_are_put_in_the_order_of_whoever_hears():
    found = summed([sent(ONE)], places(MODELS[::-1]), places(NODES[::-1]))

    np.testing.assert_array_equal(found.inflight, ONE.inflight[::-1, ::-1])
    np.testing.assert_allclose(found.load, ONE.load[:, ::-1])


def test_parts_add_up():
    found = summed([sent(ONE), sent(ONE)], places(MODELS), places(NODES))

    np.testing.assert_array_equal(found.inflight, 2 * ONE.inflight)
    np.testing.assert_allclose(found.loading_s, ONE.loading_s)


def test_nodes_and_models_that_are_not_known_here_are_left_out():
    found = summed([sent(ONE)], places(["b"]), places(["n3", "n9"]))

    np.testing.assert_array_equal(found.inflight, [[1, 0]])
    np.testing.assert_array_equal(found.load[IN_FLIGHT], [3.0, 0.0])


def test_an_idle_router_says_next_to_nothing():
    assert len(encode(nothing(3, 400), hashes(MODELS), hashes([f"n{k}" for k in range(400)]))) < 100


def test_no_name_is_in_what_is_told():
    said = encode(part_of([[1]]), hashes(["secret-model"]), hashes(["secret-node"]))

    assert b"secret" not in said


# -- what does not make sense


@dataclass(frozen=True)
class Bad:
    """A part with another value in one of its fields."""

    field: str
    value: object


def with_a(bad):
    good = sent(ONE)
    return msgspec.msgpack.encode(msgspec.structs.replace(good, **{bad.field: bad.value}))


def numbers(value, count):
    return np.full(count, value, dtype="<f4").tobytes()


LOADS = len(ADDED) * 4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Bad("load", numbers(np.nan, LOADS)), "not_finite"),
        (Bad("load", numbers(np.inf, LOADS)), "not_finite"),
        (Bad("rates", numbers(-1.0, 8)), "inconsistent"),
        (Bad("rates", numbers(1e30, 8)), "inconsistent"),
        (Bad("quiet", numbers(-2.0, 4)), "inconsistent"),
        (Bad("load", numbers(1.0, LOADS)), "inconsistent"),
        (Bad("load", b""), "inconsistent"),
        (Bad("counts", np.full(3, 7, "<u4").tobytes()), "inconsistent"),
        (Bad("pairs", np.full(6, 9, "<u2").tobytes()), "inconsistent"),
        (Bad("pairs", np.zeros(6, "<u2").tobytes()), "inconsistent"),
        (Bad("nodes", np.zeros(4, "<u8").tobytes()), "inconsistent"),
        (Bad("form", 99), "unreadable"),
    ],
    ids=lambda case: f"{case.field} {str(case.value)[:12]}" if isinstance(case, Bad) else "",
)
def test_what_makes_no_sense_is_refused(bad, reason):
    with pytest.raises(PartError) as refused:
        decode(with_a(bad))

    assert refused.value.reason == reason


def test_the_good_one_of_these_is_not():
    assert decode(with_a(Bad("form", told.FORM)))


def test_what_is_not_signed_with_the_key_is_refused():
    unsigned, other = (encode(ONE, hashes(MODELS), hashes(NODES), key) for key in (b"", b"another key"))

    for data in (unsigned, other, b""):
        with pytest.raises(PartError, match="unsigned"):
            decode(data, KEY)


def test_3000_mutations_do_no_more_than_to_be_refused():
    """Of those that pass nothing is negative, infinite or beyond reason."""
    rng, good = random.Random(1), encode(ONE, hashes(MODELS), hashes(NODES))
    passed = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            found = summed([decode(bytes(data))], places(MODELS), places(NODES))
        except PartError:
            continue
        passed += 1
        for name in set(Part._fields) - {"quiet_s"}:
            values = getattr(found, name)
            assert np.isfinite(values).all()
            assert (values >= 0).all()
            assert (values <= 1e9).all()
    assert passed < 1500


def test_3000_mutations_of_a_signed_part_are_refused():
    rng, good = random.Random(2), encode(ONE, hashes(MODELS), hashes(NODES), KEY)
    for _ in range(3000):
        data = bytearray(good)
        at = rng.randrange(len(data))
        data[at] ^= rng.randrange(1, 256)
        with pytest.raises(PartError):
            decode(bytes(data), KEY)
