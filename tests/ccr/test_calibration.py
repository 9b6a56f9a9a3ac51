"""What a learner tells routers: signed, in range, and taken only where a router has seen too little itself."""

import json
import math

import numpy as np
import pytest

from ccr import calibration as c
from ccr.book import ANSWERS, OVERHEAD_S, SPEED
from ccr.calibration import Calibration, CalibrationError, ModelConstants, NodeConstants, opened, signed
from ccr.expectations import Expectations
from ccr.fleet import LiveFleet
from ccr.hashing import hash64
from ccr.prices import PriceList
from ccr.signed import sealed
from ccr.types import NodeSpec
from tests.factories import a_request

KEY = b"a key of the tests"
NODES = ("n1", "n2")


def a_calibration(
    at_s=1000.0, *, speed=2.0, overhead_s=0.1, is_doubted=False, load_s=9.0, output_tokens=300.0
):
    return Calibration(
        at_s,
        {hash64("n1"): NodeConstants(speed, overhead_s, is_doubted)},
        {hash64("m"): ModelConstants(load_s, output_tokens)},
    )


def specs(*names):
    return [
        NodeSpec(name, f"http://{name}", models=frozenset({"m"}), loads_on_demand=True, gpu_total_gib=24.0)
        for name in names
    ]


def expecting(**fields):
    expected = Expectations(PriceList(), specs(*NODES), facts=[("m", 6.0, 5.0)])
    expected.take(a_calibration(**fields))
    return expected


def placed(expected, model="m"):
    request = a_request(model, prompt_tokens=100)
    columns = np.zeros((11, len(NODES)))
    return expected.place(request, 0, columns, 1.0)


def test_what_is_signed_can_be_opened():
    assert opened(signed(a_calibration(), KEY), KEY) == a_calibration()


def test_what_is_not_known_stays_unknown():
    sparse = Calibration(1.0, {1: NodeConstants()}, {2: ModelConstants(load_s=3.0)})

    found = opened(signed(sparse, KEY), KEY)

    assert math.isnan(found.nodes[1].speed)
    assert math.isnan(found.models[2].output_tokens)
    assert found.models[2].load_s == 3.0


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: b"0" + d[1:], lambda d: d + b" ", lambda _: b""]
)
def test_what_is_damaged_is_refused(damage):
    with pytest.raises(CalibrationError) as refusal:
        opened(damage(signed(a_calibration(), KEY)), KEY)

    assert refusal.value.reason == "unsigned"


def test_another_key_is_refused_and_so_is_the_signature_of_another_kind():
    text = signed(a_calibration(), KEY).partition(b"\n")[2]

    for data in (
        signed(a_calibration(), b"another key of theirs"),
        sealed(text, KEY, b"ccr publication 1\n"),
    ):
        with pytest.raises(CalibrationError) as refusal:
            opened(data, KEY)
        assert refusal.value.reason == "unsigned"


@pytest.mark.parametrize(
    "fields",
    [
        {"speed": 0.01},
        {"speed": 50.0},
        {"overhead_s": -1.0},
        {"overhead_s": 60.0},
        {"load_s": 0.0},
        {"output_tokens": 1e9},
    ],
)
def test_what_is_out_of_range_is_refused_though_it_is_signed(fields):
    with pytest.raises(CalibrationError) as refusal:
        opened(signed(a_calibration(**fields), KEY), KEY)

    assert refusal.value.reason == "out_of_range"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"form": 9}', "nonsense", '{"form":1,"at_s":1.0,"nodes":{"xyz":[1,0,false]},"models":{}}',
             '{"form":1,"at_s":1.0,"nodes":{"1":[true,0,false]},"models":{}}', '{"form":1,"at_s":-1.0,"nodes":{},"models":{}}',
             '{"form":1,"at_s":1.0,"nodes":{"1":[1,0]},"models":{}}'],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_though_it_is_signed(text):
    with pytest.raises(CalibrationError) as refusal:
        opened(sealed(text.encode(), KEY, c._DOMAIN), KEY)

    assert refusal.value.reason == "malformed"


def test_a_doubted_node_is_never_taken_for_fast():
    assert (
        opened(signed(a_calibration(speed=0.5, is_doubted=True), KEY), KEY).nodes[hash64("n1")].speed == 1.0
    )
    assert (
        opened(signed(a_calibration(speed=2.0, is_doubted=True), KEY), KEY).nodes[hash64("n1")].speed == 2.0
    )


def test_it_fits_a_large_fleet():
    large = Calibration(
        1.0, {hash64(str(k)): NodeConstants(1.23456789, 0.0123456789) for k in range(4096)},
        {hash64(str(k)): ModelConstants(12.3456789, 123.456789) for k in range(1000)},
    )  # fmt: skip

    assert len(opened(signed(large, KEY), KEY).nodes) == 4096


def test_a_router_that_has_seen_nothing_takes_all_of_it():
    book = expecting().book

    assert book.load[SPEED].tolist() == [2.0, 1.0]
    assert book.load[OVERHEAD_S].tolist() == [0.1, 0.0]
    assert (book.load_s[0] == 9.0).all()
    assert book.output_tokens[0] == 300.0


def test_a_newer_calibration_replaces_the_one_before():
    expected = expecting()

    expected.take(a_calibration(speed=1.5, load_s=7.0, output_tokens=200.0))

    assert expected.book.load[SPEED, 0] == 1.5
    assert (expected.book.load_s[0] == 7.0).all()
    assert expected.book.output_tokens[0] == 200.0


def test_a_router_that_has_seen_enough_keeps_what_it_saw():
    expected = Expectations(PriceList(), specs(*NODES), facts=[("m", 6.0, 5.0)])
    expected.book.load[SPEED, 0], expected.book.load[ANSWERS, 0] = 1.2, 12.0
    seen = placed(expected)
    expected.first_token(seen, 31.0)  # a load of 30 s instead of 5
    expected.leave(seen, 32.0, has_first_token=True)
    expected.learn(seen, 30.0, 31.0, 40.0, 32.0)
    loads, lengths, speed = (
        expected.book.load_s.copy(),
        expected.book.output_tokens.copy(),
        expected.book.load[SPEED, 0],
    )

    expected.take(a_calibration())

    assert expected.book.load[SPEED, 0] == speed
    assert (expected.book.load_s == loads).all()
    assert (expected.book.output_tokens == lengths).all()
    assert expected.book.load[OVERHEAD_S, 0] == 0.1


def test_what_was_taken_outlives_a_change_of_the_fleet_and_a_new_model():
    expected = expecting()

    expected.replace(specs("n2", "n1", "n3"))
    expected.output_tokens(a_request("another"))

    assert expected.book.load[OVERHEAD_S].tolist() == [0.0, 0.1, 0.0]
    assert expected.book.load[SPEED].tolist() == [1.0, 2.0, 1.0]
    assert (expected.book.load_s[0] == 9.0).all()
    expected.take(a_calibration(load_s=8.0))
    assert (expected.book.load_s[0] == 8.0).all()


def test_a_book_that_is_begun_later_takes_it_too():
    fleet = LiveFleet(specs=specs(*NODES))

    fleet.calibrate(a_calibration())

    assert fleet.expect(1.0).book.load[SPEED].tolist() == [2.0, 1.0]


def test_the_value_holds_no_name():
    text = json.loads(signed(a_calibration(), KEY).partition(b"\n")[2])

    assert list(text["nodes"]) == [f"{hash64('n1'):016x}"]
