"""What drifts: a fleet that the router knows well, the change, and what a router told of the change would know.

A case is drawn from a seed. Until the change all arms of a drill live through the very same day.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr.book import ANSWERS, SPEED
from envs.kernel.episode import Sim
from envs.scenario import Arrivals, Scenario, Trouble
from envs.scenarios import MODELS, plain
from envs.traces.synth import Workload

Floats = NDArray[np.float64]

_FOREVER_S: Final = 1e9
_STREAM: Final = 0xD1F7
_CERTAIN: Final = 20.0
"""Answers that a speed which was told rests on: as many as an observed one rests on at most."""
#: Most popular first; the last one has the shape of the first.
_CROWD: Final = (
    "chat-7b@1", "code-7b@1", "support-8b@1", "summary-7b@1", "extract-7b@1", "translate-6b@1", "code-7b@2",
    "support-8b@2", "summary-7b@2", "extract-7b@2", "translate-6b@2", "chat-7b@3", "code-7b@3", "support-8b@3",
    "summary-7b@3", "extract-7b@3", "chat-7b@2",
)  # fmt: skip
DOUBLED: Final = 1
"""Row of the model whose loads take twice as long in ``load-doubled``."""
_LONGEST: Final = 3072
"""Tokens of an answer, at most; what an A10 holds beside two models."""


class Times(NamedTuple):
    """The parts of an episode.

    Args:
        drift_s: end of the warm-up: the change.
        counted_s: from here on requests are counted.
        end_s: of the arrivals.
    """

    drift_s: float = 300.0
    counted_s: float = 600.0
    end_s: float = 1500.0


@dataclass(frozen=True, slots=True)
class Case:
    """One day with a drift.

    Args:
        scenario: fleet and models; its arrivals are those below, whatever the seed.
        arrivals: the change included, where it is one of the traffic.
        happens: changes the nodes of an episode that has reached the drift.
        tell: puts the truth into what its routers know.
    """

    scenario: Scenario
    arrivals: Arrivals
    happens: Callable[[Sim], None]
    tell: Callable[[Sim], None]


class Drift(NamedTuple):
    """A row of the table.

    Args:
        name: of the drill.
        about: one sentence for people.
        case: of a seed.
        recovers: whether there is something to win back: false where nothing drifts.
    """

    name: str
    about: str
    case: Callable[[int, Times], Case]
    recovers: bool = True


def _nothing(_: object) -> None:
    """No change."""


def _day(
    times: Times, *, nodes: int, rate: float, models: Sequence[str] = MODELS, zipf: float = 1.0
) -> Scenario:
    """A fleet whose traffic does not drift by itself; ``rate`` is per node."""
    workload = Workload(drift=0.0, zipf=zipf)
    scenario = plain(
        "drill", "", nodes=nodes, rate=rate, models=models, workload=workload, duration_s=times.end_s
    )
    return replace(scenario, warmup_s=times.counted_s)


def _case(
    scenario: Scenario,
    arrivals: Arrivals,
    happens: Callable[[Sim], None] = _nothing,
    tell: Callable[[Sim], None] = _nothing,
) -> Case:
    return Case(replace(scenario, arrivals=lambda _: arrivals), arrivals, happens, tell)


def _rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM]))


# -- the drifts ------------------------------------------------------------------------------------------------------


def no_drift(seed: int, times: Times) -> Case:
    """Nothing happens."""
    scenario = _day(times, nodes=8, rate=1.2)
    return _case(scenario, scenario.arrivals(seed))


def node_slow(seed: int, times: Times) -> Case:
    """Prefill, decode and loads of one node of four, drawn by the seed, take twice as long; nothing has to be loaded."""
    scenario = _day(times, nodes=4, rate=1.2, models=MODELS[:2])
    node = int(_rng(seed).integers(len(scenario.nodes)))

    def tell(sim: Sim) -> None:
        books = sim.books
        books.load[..., SPEED, node] *= 2.0
        books.load[..., ANSWERS, node] = _CERTAIN
        books.load_s[..., node] *= 2.0
        books.host_load_s[..., node] *= 2.0

    trouble = Trouble("slow", node, times.drift_s, _FOREVER_S, 2.0)
    return _case(replace(scenario, troubles=(trouble,)), scenario.arrivals(seed), tell=tell)


def load_doubled(seed: int, times: Times) -> Case:
    """Loads of the second most popular model of 17, for which there are 16 places, take twice as long everywhere."""
    scenario = _day(times, nodes=8, rate=1.0, models=_CROWD, zipf=1.2)

    def happens(sim: Sim) -> None:
        sim.nodes.line["source_s"][:, DOUBLED] *= 2.0

    def tell(sim: Sim) -> None:
        sim.books.load_s[..., DOUBLED, :] *= 2.0

    return _case(scenario, scenario.arrivals(seed), happens, tell)


def popularity_swap(seed: int, times: Times) -> Case:
    """The most popular model of 17, for which there are 16 places, and the least popular trade places.

    They have the same shape. A conversation goes on with the model that it began with.
    """
    scenario = _day(times, nodes=8, rate=1.0, models=_CROWD, zipf=1.2)
    arrivals = scenario.arrivals(seed)
    popular, unpopular = 0, len(_CROWD) - 1
    is_new = begun_s(arrivals) >= times.drift_s
    model = arrivals.model.copy()
    model[is_new & (arrivals.model == popular)] = unpopular
    model[is_new & (arrivals.model == unpopular)] = popular
    arrivals = arrivals._replace(model=model)
    shares = np.bincount(model[arrivals.t >= times.counted_s], minlength=len(scenario.models)).astype(
        np.float64
    )

    def tell(sim: Sim) -> None:
        sim.books.share[...] = sim.share[...] = shares / shares.sum()

    return _case(scenario, arrivals, tell=tell)


def lengths_tripled(seed: int, times: Times) -> Case:
    """Answers of every model are three times as long; until then the load is light."""
    scenario = _day(times, nodes=8, rate=0.65)
    arrivals = scenario.arrivals(seed)
    later = arrivals.t >= times.drift_s
    output = np.where(later, np.minimum(3 * arrivals.output_tokens, _LONGEST), arrivals.output_tokens)
    arrivals = arrivals._replace(output_tokens=output)
    means = mean_of_each(output[later], arrivals.model[later], len(scenario.models))

    def tell(sim: Sim) -> None:
        books = sim.books
        books.output_tokens[...] = np.where(np.isnan(means), books.output_tokens, means)

    return _case(scenario, arrivals, tell=tell)


#: Name -> drill.
DRIFTS: Final[Mapping[str, Drift]] = MappingProxyType(
    {
        drift.name: drift
        for drift in (
            Drift("node-slow", "one node takes twice as long for everything, and tells nobody", node_slow),
            Drift("load-doubled", "a model's weights take twice as long to load", load_doubled),
            Drift(
                "popularity-swap", "the most popular model and an unpopular one trade places", popularity_swap
            ),
            Drift("lengths-tripled", "answers are three times as long", lengths_tripled),
            Drift("nothing", "nothing drifts, and learning must not hurt", no_drift, recovers=False),
        )
    }
)


def begun_s(arrivals: Arrivals) -> Floats:
    """When the conversation of each request began, shape ``(r,)``; of one that stands alone, its own arrival."""
    first_s = np.full(arrivals.sessions + 1, np.inf)
    np.minimum.at(first_s, arrivals.session, arrivals.t)  # those of session -1 fall on the last place
    begun: Floats = np.where(arrivals.session >= 0, first_s[arrivals.session], arrivals.t)
    return begun


def mean_of_each(values: NDArray[np.int64], model: NDArray[np.int64], models: int) -> Floats:
    """Mean of the values of each model, NaN where it has none, shape ``(models,)``."""
    counts = np.bincount(model, minlength=models)
    sums = np.bincount(model, weights=values, minlength=models)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
