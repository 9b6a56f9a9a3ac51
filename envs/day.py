"""The scenario that a trace and a fleet make up, as people name them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ccr.errors import ConfigError
from envs.scenario import NodePlan, Scenario
from envs.scenarios import of_trace, plain, scenario_of
from envs.traces.synth import Workload

Traffic = str | Path | Workload | None
Fleet = int | str | Sequence[NodePlan] | None

_NODES = 8
_RATE = 1.4  # per node: near, and below, what eight models on eight A10 can be served at.


def day(traffic: Traffic = None, fleet: Fleet = None, replicas: int | None = None) -> Scenario:
    """A scenario from its two halves.

    Args:
        traffic: file of a trace, a workload to draw from, or nothing: that of the named scenario, else the default mix.
        fleet: number of A10 nodes, the nodes themselves, or the name of a scenario whose nodes are taken.
        replicas: routers; by default those of the named scenario, else one.

    Raises:
        ConfigError: if a name is unknown, a trace cannot be used, or a node has a model warm that nobody serves.
    """
    scenario = _with_fleet(traffic, fleet)
    unknown = sorted({model for node in scenario.nodes for model in node.warm} - set(scenario.models))
    if unknown:
        raise ConfigError(
            f"nodes have {', '.join(unknown)} warm; the traffic asks for {', '.join(scenario.models)}. "
            "Name models of the traffic in NodePlan(warm=...)"
        )
    if replicas is None:
        return scenario
    if replicas < 1:
        raise ConfigError(f"replicas is {replicas}; give at least 1")
    return replace(scenario, replicas=replicas)


def _with_fleet(traffic: Traffic, fleet: Fleet) -> Scenario:
    if fleet is None or isinstance(fleet, int):
        return _served_by(traffic, fleet)
    if isinstance(fleet, str):
        named = scenario_of(fleet)
        if traffic is None:
            return named
        served = _served_by(traffic, len(named.nodes))  # its models are other ones, and so is what is warm
        nodes = tuple(
            replace(node, warm=other.warm) for node, other in zip(named.nodes, served.nodes, strict=True)
        )
        return replace(served, nodes=nodes)
    if not fleet:
        raise ConfigError("the fleet is empty; give at least one NodePlan")
    return replace(_served_by(traffic, len(fleet)), nodes=tuple(fleet))


def _served_by(traffic: Traffic, nodes: int | None) -> Scenario:
    if nodes is not None and nodes < 1:
        raise ConfigError(f"the fleet has {nodes} nodes; give at least 1")
    if isinstance(traffic, str | Path):
        return of_trace(Path(traffic), nodes or 0)
    count = nodes or _NODES
    if traffic is None:
        return plain("default", f"The default mix on {count} A10.", nodes=count, rate=_RATE)
    return plain(
        "workload",
        f"A workload on {count} A10.",
        nodes=count,
        rate=traffic.rate / count,
        models=traffic.models,
        workload=traffic,
        duration_s=traffic.duration_s,
    )
