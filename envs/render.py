"""What a person is shown of a fleet: a view of the moment, and the view as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ccr.timing import GIB
from envs.episode import REJECTED
from envs.kernel.episode import ENDED, IN_FLIGHT, NOW_S
from envs.kernel.routers import INFLIGHT
from envs.kernel.state import LOADING, RESIDENT
from envs.seats import Sitting


@dataclass(frozen=True, slots=True)
class Weights:
    """A model on a node.

    Args:
        model: row of the model.
        gib: its weights.
        loaded: how much of it has been loaded, in [0, 1]; 1 once it is resident.
    """

    model: int
    gib: float
    loaded: float = 1.0


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node.

    Args:
        id: its name.
        gpu: its card.
        total_gib: device memory.
        weights: what is on the card.
        kv_gib: keys and values of running sequences.
        cached_gib: keys and values of earlier ones.
        running: sequences in the batch by model, shape ``(M,)``.
        waiting: sequences in the queue by model, shape ``(M,)``.
        in_flight: requests sent there and not answered, by the routers' ledgers.
        slowed: how many times as long its steps take.
    """

    id: str
    gpu: str
    total_gib: float
    weights: tuple[Weights, ...]
    kv_gib: float
    cached_gib: float
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    in_flight: int
    slowed: float = 1.0

    @property
    def used_gib(self) -> float:
        """Weights, resident or on their way, and keys and values."""
        return sum(weights.gib for weights in self.weights) + self.kv_gib + self.cached_gib


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Args:
        model: row of its model.
        prompt_tokens: its length.
        node: where it was sent; -1: refused or held, or not decided.
    """

    model: int
    prompt_tokens: int
    node: int = -1


@dataclass(frozen=True, slots=True)
class View:
    """The moment.

    Args:
        scenario: its name.
        now_s: the time.
        models: ids by row.
        nodes: the fleet.
        cost: so far.
        ended: requests answered or refused.
        refused: of these.
        in_flight: requests at the nodes.
        asked: the request that wants a decision; ``None`` at the end.
        choices: the last decisions, newest last.
    """

    scenario: str
    now_s: float
    models: tuple[str, ...]
    nodes: tuple[NodeView, ...]
    cost: float
    ended: int
    refused: int
    in_flight: int
    asked: Asked | None
    choices: tuple[Asked, ...]


def view_of(sitting: Sitting, cost: float, choices: Sequence[tuple[int, int]]) -> View:
    """The episode as it stands.

    Args:
        sitting: the episode.
        cost: of the requests that have ended.
        choices: request and node of the last decisions, newest last.
    """
    sim = sitting.sim
    ended = sim.ended[: sim.tally[ENDED]]
    asked = int(sitting.play.at[0])
    return View(
        scenario=sitting.scenario.name,
        now_s=float(sim.clock[NOW_S]),
        models=tuple(sitting.scenario.models),
        nodes=tuple(_node(sitting, i) for i in range(len(sitting.scenario.nodes))),
        cost=cost,
        ended=len(ended),
        refused=int((sim.status[ended] == REJECTED).sum()),
        in_flight=int(sim.tally[IN_FLIGHT]),
        asked=_asked(sitting, asked, -1) if asked >= 0 else None,
        choices=tuple(_asked(sitting, job, node) for job, node in choices),
    )


def _asked(sitting: Sitting, job: int, node: int) -> Asked:
    jobs = sitting.sim.jobs
    return Asked(int(jobs.model[job]), int(jobs.prompt[job]), node)


def _node(sitting: Sitting, i: int) -> NodeView:
    plan, sim = sitting.scenario.nodes[i], sitting.sim
    card, lines = sim.nodes.card[i], sim.nodes.line[i]
    return NodeView(
        id=plan.id,
        gpu=plan.gpu,
        total_gib=float(card["total"]) / GIB,
        weights=tuple(_weights(card, lines, float(sim.clock[NOW_S]))),
        kv_gib=float(card["kv"]) / GIB,
        cached_gib=float(card["cached"]) / GIB,
        running=tuple(lines["running"].tolist()),
        waiting=tuple(lines["waiting"].tolist()),
        in_flight=round(float(sim.routers.columns[:, INFLIGHT, i].sum())),
        slowed=float(card["factor"]),
    )


def _weights(card: Any, lines: Any, now_s: float) -> list[Weights]:
    """Models on the card by row; of those that load, one does so at a time and the others have not begun."""
    here = []
    for m, line in enumerate(lines):
        if line["lane"] != m or line["place"] not in {RESIDENT, LOADING}:
            continue
        loaded = 1.0
        if line["place"] == LOADING:
            start_s, end_s = float(card["load_start_s"]), float(card["load_end_s"])
            is_this = int(card["load_lane"]) == m and isfinite(end_s)
            loaded = min(max((now_s - start_s) / max(end_s - start_s, 1e-9), 0.0), 1.0) if is_this else 0.0
        here.append(Weights(m, float(line["weights"]) / GIB, loaded))
    return here


# -- as text ---------------------------------------------------------------------------------------------------------

_BAR = 20


def summary(view: View) -> str:
    """The figures of the moment in one line."""
    each = f" ({view.cost / view.ended:.2f} each)" if view.ended else ""
    return (
        f"answered {view.ended - view.refused}, refused {view.refused}, in flight {view.in_flight}, "
        f"cost {view.cost:.1f}{each}"
    )


def as_text(view: View) -> str:
    """A table with a row per node; the bar is weights, weights on their way, keys and values, and earlier ones."""
    width = max(len(_resident(view, node)) for node in view.nodes)
    lines = [
        f"{view.scenario} at {view.now_s:.1f} s: {summary(view)}",
        f"{'node':10} {'models':{width}}  {'memory':{_BAR + 10}} {'batch':>5} {'queue':>5} {'in flight':>9}",
    ]
    last = view.choices[-1] if view.choices else None
    for i, node in enumerate(view.nodes):
        mark = f"  <- {view.models[last.model]}" if last is not None and last.node == i else ""
        lines.append(
            f"{node.id:10} {_resident(view, node):{width}}  {_bar(node)} {node.used_gib:4.1f} GiB "
            f"{sum(node.running):5} {sum(node.waiting):5} {node.in_flight:9}{mark}"
        )
    if last is not None and last.node < 0:
        lines.append(f"{view.models[last.model]} was not sent")
    if view.asked is not None:
        lines.append(f"next: {view.models[view.asked.model]}, {view.asked.prompt_tokens} prompt tokens")
    return "\n".join(lines)


def _resident(view: View, node: NodeView) -> str:
    names = [
        view.models[each.model] + (f" ({each.loaded:.0%})" if each.loaded < 1.0 else "")
        for each in node.weights
    ]
    return " ".join(names) or "-"


def _bar(node: NodeView) -> str:
    """Twenty characters of device memory."""
    resident = sum(each.gib for each in node.weights if each.loaded == 1.0)
    loading = sum(each.gib for each in node.weights if each.loaded < 1.0)
    bar, so_far = "", 0.0
    for sign, gib in (("█", resident), ("▒", loading), ("=", node.kv_gib), ("-", node.cached_gib)):
        so_far += gib
        bar += sign * (round(_BAR * so_far / node.total_gib) - len(bar))
    return f"{bar:·<{_BAR}}"[:_BAR]
