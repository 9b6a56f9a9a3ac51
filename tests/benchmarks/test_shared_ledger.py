"""The comparison says what it compared; the figures are those of the days."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.exchange import measured
from benchmarks.shared_ledger import METRICS, Setup, compared, setups, table
from ccr.policies.least_cost import LeastCost
from envs.simulator import simulate
from tests.envs.days import a_day, poisson

DAYS = 12


def figures(**costs):
    """Costs of the setups by number of routers, on days that differ."""
    days = np.linspace(1.0, 3.0, DAYS)
    wanted = setups(0.1)
    found = np.ones((len(wanted), DAYS, len(METRICS)))
    for k, setup in enumerate(wanted):
        name = f"{'shared' if setup.share_s else 'own'}_{setup.replicas}"
        found[k] *= (costs.get(name, 1.0) * days)[:, None]
    return wanted, found


def test_every_setup_is_compared_with_one_router_and_with_not_sharing():
    rows = compared(*figures(own_1=1.0, shared_4=1.04, own_4=1.3))

    first = rows[0]
    assert first["setup"] == "4 routers, shared every 0.1 s"
    assert first["one"]["cost"]["ratio"] == pytest.approx(1.04)
    assert first["unshared"]["cost"]["ratio"] == pytest.approx(0.8)
    assert first["one"]["cost"]["n"] == DAYS
    assert len(table("days", rows)) == 2 + len(rows)


def test_an_exchange_that_breaks_down_does_so_in_the_middle_of_the_day():
    day = Setup(4, 0.1, until=0.5).of(a_day(poisson(1.0, 10)), 120.0)

    assert (day.replicas, day.share_s, day.share_until_s) == (4, 0.1, 60.0)


def test_routers_that_share_place_more_like_one_than_routers_that_do_not():
    """On a small fleet under one policy; how close they come is measured on drawn days."""
    day = a_day(poisson(3.0, 150, models=2), nodes=4)
    one, shared, own = (
        simulate(setup.of(replace(day, telemetry_delay_s=1.0), 50.0), LeastCost(), 3, engine="reference")
        for setup in (Setup(1), Setup(4, 0.02), Setup(4))
    )

    assert (shared.node == one.node).mean() > (own.node == one.node).mean()
    cost = [episode.metrics()["cost"] for episode in (one, shared, own)]
    assert abs(cost[1] / cost[0] - 1.0) < abs(cost[2] / cost[0] - 1.0)


def test_a_turn_is_timed():
    found = measured(nodes=3, rounds=10)

    assert found["bytes"] > 0
    assert all(found[name] > 0.0 for name in ("own_us", "enter_us", "encode_us", "read_us"))
