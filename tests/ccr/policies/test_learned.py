"""The learned policy is that of a file: the shipped one, or the one that is named."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import WeightsError
from ccr.features import node_features
from ccr.policies import POLICIES, network
from ccr.policies.learned import PRIORITY_LOGIT, SHIPPED, Learned, learned, service_s
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import PRIORITY, blank
from ccr.weights import load, save
from tests.factories import a_fleet, a_node, a_request
from tests.looks import LOOKS, NODES, a_book
from tests.looks import look as a_look
from tests.weights import VERSION, a_network, some_weights


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.npz"
    save(some_weights(), path)
    return path


def test_without_a_path_it_is_the_shipped_one():
    policy = learned()

    assert policy.version == load(SHIPPED).version
    np.testing.assert_array_equal(policy.network.theta, load(SHIPPED).network.theta)


def test_a_path_names_other_weights(file):
    policy = POLICIES["learned"](weights=str(file))

    assert (policy.name, policy.version) == ("learned", VERSION)
    np.testing.assert_array_equal(policy.network.out, a_network().out)


def test_a_path_may_start_at_home(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))

    assert learned("~/some.npz").version == VERSION


def test_a_file_is_read_once(file, monkeypatch):
    first = learned(str(file))
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr("ccr.weights.load", lambda path: pytest.fail(f"{path} was read again"))

    assert learned(str(file)) is first
    assert learned("some.npz") is first


def test_a_file_that_changed_is_read_again(file):
    before = learned(str(file))

    save(some_weights(a_network(2), version="next"), file)

    assert learned(str(file)).version == "next"
    assert before.version == VERSION


def test_a_file_that_went_bad_is_refused_and_not_remembered(file):
    learned(str(file))
    file.write_bytes(b"")

    with pytest.raises(WeightsError, match="not a whole"):
        learned(str(file))


@pytest.mark.parametrize("path", ["/nowhere/weights.npz", "a\0b.npz", "~nobody-of-that-name/a.npz"])
def test_a_file_that_is_not_there_is_named(path):
    """Nothing steps in for it."""
    with pytest.raises(WeightsError, match="cannot read weights"):
        learned(path)


def test_weights_of_the_heuristic_decide_as_the_heuristic(tmp_path):
    save(some_weights(blank(np.array(LeastCost().theta))), tmp_path / "a.npz")
    nodes = [a_node(f"n{i}", models="llama" if i % 2 else "", inflight=float(i)) for i in range(6)]
    fleet, request = a_fleet(*nodes), a_request("llama")

    mine = learned(os.fspath(tmp_path / "a.npz")).scores(request, fleet)[:-2]

    assert mine.argmax() == LeastCost().scores(request, fleet).argmax()


def test_each_step_of_a_request_s_priority_takes_as_much_off_refusing_it_and_nothing_else(file):
    fleet = a_fleet(a_node("a", models="llama"), a_node("b"))
    low, normal, high = (learned(str(file)).scores(a_request("llama", priority=p), fleet) for p in (-1, 0, 1))

    np.testing.assert_allclose(low - normal, [0.0, 0.0, PRIORITY_LOGIT, 0.0])
    np.testing.assert_allclose(normal - high, [0.0, 0.0, PRIORITY_LOGIT, 0.0])


@given(LOOKS, st.integers(0, NODES - 1))
def test_the_time_at_the_chosen_node_is_that_of_its_features(look, chosen):
    assert service_s(look, chosen) == pytest.approx(network.service_s(node_features(look), chosen), rel=1e-9)


def test_an_engine_s_queue_is_ordered_by_arrival_and_the_time_at_the_node():
    net = blank(np.array(LeastCost().theta))
    seen = a_look(a_book(), prompt=1000.0, output=50.0)

    net.scalars[PRIORITY] = 0.5
    number = Learned(net).priority(seen, 2, arrived_s=1000.0)
    net.scalars[PRIORITY] = 0.0

    assert number == int(10.0 * (1000.0 + 0.5 * service_s(seen, 2)))
    assert Learned(net).priority(seen, 2, arrived_s=1000.0) is None
