"""Every policy a router can run by name; operator scripts come in through ``ccr.policies.script``."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ccr.policies.article import Article
from ccr.policies.bounded_hash import BoundedHash
from ccr.policies.hot_cold import HotCold
from ccr.policies.learned import learned
from ccr.policies.least_cost import LeastCost, LeastLatency
from ccr.policies.least_request import LeastRequest, PowerOfTwo
from ccr.policies.least_work import FastestDrain, LeastWork
from ccr.policies.observed_latency import LatencyCurve, LatencyPredictor
from ccr.policies.prefix_affinity import PrefixAffinity
from ccr.policies.random import Random
from ccr.policies.round_robin import RoundRobin
from ccr.policies.session_affinity import SessionAffinity
from ccr.policy import Policy

POLICIES: Mapping[str, Callable[..., Policy]] = MappingProxyType(
    {
        "random": Random,
        "round_robin": RoundRobin,
        "least_request": LeastRequest,
        "power_of_two": PowerOfTwo,
        "hot_cold": HotCold,
        "article": Article,
        "session_affinity": SessionAffinity,
        "bounded_hash": BoundedHash,
        "prefix_affinity": PrefixAffinity,
        "least_work": LeastWork,
        "fastest_drain": FastestDrain,
        "latency_curve": LatencyCurve,
        "latency_predictor": LatencyPredictor,
        "least_latency": LeastLatency,
        "least_cost": LeastCost,
        "learned": learned,
    }
)
#: The name under which an operator script runs; it needs a file, so it is not built from the table.
SCRIPT = "script"
