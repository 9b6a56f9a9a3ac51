"""The network in torch and the network that serves are one function."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccr.features import FEATURES, REQUEST_FEATURES
from ccr.policies.least_cost import LeastCost
from ccr.policies.network import EXTRA, blank, logits
from rl.module import MASKED, PolicyModule

torch.set_num_threads(1)


def a_network(rng):
    net = blank(rng.uniform(0.05, 10.0, 8), int(rng.integers(1000)))
    filled = [rng.normal(0.0, 0.4, part.shape) for part in net[2:]]
    return net._replace(scalars=rng.uniform(0.2, 12.0, 4), **dict(zip(net._fields[2:], filled, strict=True)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24))
def test_logits_are_those_of_the_serving_network(seed, n):
    rng = np.random.default_rng(seed)
    net = a_network(rng)
    nodes, request = rng.uniform(0.0, 1.5, (n, len(FEATURES))), rng.uniform(0.0, 1.0, len(REQUEST_FEATURES))
    mask = rng.random(n) < 0.7
    mask[rng.integers(n)] = True
    every = np.concatenate((mask, np.ones(EXTRA, dtype=bool)))

    served = logits(nodes, request, mask, net)
    trained = (
        PolicyModule(net)
        .double()(*(torch.tensor(each[None]) for each in (nodes, request, every)))[0]
        .detach()
        .numpy()
    )

    np.testing.assert_allclose(trained[every], served[every], rtol=1e-5)
    assert (trained[~every] == np.float64(MASKED)).all()
    assert trained.argmax() == np.where(every, served, -np.inf).argmax()


def test_places_behind_the_fleet_change_nothing():
    rng = np.random.default_rng(0)
    module = PolicyModule(a_network(rng)).double()
    nodes, request = (
        rng.uniform(0.0, 1.5, (1, 6, len(FEATURES))),
        rng.uniform(0.0, 1.0, (1, len(REQUEST_FEATURES))),
    )
    mask = torch.tensor([[True, True, True, True, False, False, True, True]])

    whole = module(torch.tensor(nodes), torch.tensor(request), mask)
    nodes[:, 4:] = 99.0
    padded = module(torch.tensor(nodes), torch.tensor(request), mask)

    torch.testing.assert_close(whole, padded)


def test_a_network_comes_out_as_it_went_in():
    net = a_network(np.random.default_rng(3))

    out = PolicyModule(net).double().network()

    for name, before, after in zip(net._fields, net, out, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7, err_msg=name)
        assert after.flags.c_contiguous, name


def test_what_is_switched_off_stays_switched_off():
    assert PolicyModule(blank(np.array(LeastCost().theta))).network().scalars[3] == 0.0


@pytest.mark.parametrize("field", ["theta", "out", "pool", "extra_bias"])
def test_a_planted_difference_is_found(field):
    rng = np.random.default_rng(5)
    net = a_network(rng)
    other = net._replace(**{field: getattr(net, field) * 1.01})
    nodes, request = (
        rng.uniform(0.0, 1.5, (1, 5, len(FEATURES))),
        rng.uniform(0.0, 1.0, (1, len(REQUEST_FEATURES))),
    )
    every = torch.ones((1, 7), dtype=torch.bool)

    there = (
        PolicyModule(other).double()(torch.tensor(nodes), torch.tensor(request), every).detach().numpy()[0]
    )

    assert not np.allclose(there, logits(nodes[0], request[0], np.ones(5, dtype=bool), net), rtol=1e-5)
