"""First stage: CMA-ES over the weights of the cost terms, of refusing, of holding and of the engines' queues.

Each generation meets new days, so that nothing can be learned by heart; the mean of the search distribution is the
result, not its luckiest candidate (Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772).
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from cmaes import CMA  # type: ignore[import-untyped]  # it has no types
from numpy.typing import NDArray

from ccr.policies.network import HOLD_SHARE, PRIORITY, REJECT_COST, Network
from rl.days import Cores, Day

Point = NDArray[np.float64]

#: Of theta, then refusing, holding, priority: least and most. All are searched on a logarithmic scale.
_LOW: Final = np.array([0.1, 0.1, 0.1, 0.05, 0.05, 0.02, 0.02, 0.02, 0.2, 0.5, 0.01])
_HIGH: Final = np.array([30.0, 30.0, 10.0, 10.0, 10.0, 10.0, 30.0, 40.0, 50.0, 50.0, 10.0])
_SCALARS: Final = (REJECT_COST, HOLD_SHARE, PRIORITY)
_SIGMA: Final = 0.12


def to_point(network: Network) -> Point:
    """The tuned numbers of a network as a point of the unit cube, shape ``(11,)``."""
    values = np.concatenate((network.theta, network.scalars[list(_SCALARS)]))
    clipped = np.clip(values, _LOW, _HIGH)
    return np.asarray(np.log(clipped / _LOW) / np.log(_HIGH / _LOW))


def at_point(network: Network, point: Point) -> Network:
    """The network with the numbers of a point; the layers stay."""
    values = _LOW * (_HIGH / _LOW) ** np.clip(point, 0.0, 1.0)
    scalars = network.scalars.copy()
    scalars[list(_SCALARS)] = values[len(network.theta) :]
    return network._replace(theta=values[: len(network.theta)].copy(), scalars=scalars)


def search(
    start: Network,
    days: Callable[[int], list[Day]],
    cores: Cores,
    *,
    generations: int,
    population: int,
    seed: int,
    report: Callable[[int, float], None],
) -> Network:
    """The network with the weights where the search ended.

    Args:
        start: where it begins.
        days: of a generation, by its number.
        cores: play them.
        generations: how many.
        population: candidates of each.
        seed: of the candidates.
        report: told the generation and the mean cost ratio of its candidates to the shipped heuristic.
    """
    cma = CMA(
        mean=to_point(start), sigma=_SIGMA, population_size=population, seed=seed,
        bounds=np.tile([0.0, 1.0], (len(_LOW), 1)),
    )  # fmt: skip
    for generation in range(generations):
        points = [cma.ask() for _ in range(population)]
        regrets = cores.regrets(days(generation), [at_point(start, point) for point in points])
        costs = regrets[:, :, 0].mean(axis=1)
        cma.tell([(point, float(cost)) for point, cost in zip(points, costs, strict=True)])
        report(generation, float(np.exp(costs.mean())))
    return at_point(start, cma.mean)
