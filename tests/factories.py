"""Builders and strategies that let a test mention only what it is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ccr.fleet import FleetRules, LiveFleet
from ccr.picker import GREEDY, Picker
from ccr.types import Fleet, NodeSpec, Request, Scores

MODELS = ("llama", "llama@2", "mistral", "qwen")
Row = dict[str, Any]


def a_spec(id: str = "a", *, serves: str = " ".join(MODELS), tags: str = "", **fields: Any) -> NodeSpec:  # noqa: A002 - the field's own name
    """A node that loads whatever it is asked for; ``serves`` and ``tags`` are words in a string."""
    fields = {"url": f"http://{id}.test:8000", "gpu_total_gib": 24.0, "loads_on_demand": True} | fields
    return NodeSpec(id=id, models=frozenset(serves.split()), tags=frozenset(tags.split()), **fields)


def a_node(id: str = "a", *, models: str = "", spec: NodeSpec | None = None, **columns: Any) -> Row:  # noqa: A002 - the field's own name
    """An idle, healthy node with ``models`` resident; columns, ``available`` and ``why`` by name."""
    return {"spec": spec or a_spec(id), "loaded": frozenset(models.split()), **columns}


def a_fleet(*nodes: Row, now_s: float = 0.0) -> Fleet:
    """A snapshot of these nodes."""
    return Fleet.of(nodes, now_s)


def a_request(model: str = "llama", *, seq: int = 0, tags: str = "", **fields: Any) -> Request:
    """A request for a resolved model, ``name`` or ``name@version``."""
    name, _, version = model.partition("@")
    fields = {"id": f"r{seq}", "name": name, "version": version} | fields
    return Request(model=model, seq=seq, tags=frozenset(tags.split()), **fields)


def a_live_fleet(*nodes: str | NodeSpec, now_s: float = 0.0, **rules: Any) -> LiveFleet:
    """A live fleet of specs or ids, in full rotation since long ago."""
    specs = [node if isinstance(node, NodeSpec) else a_spec(node) for node in nodes]
    return LiveFleet(FleetRules(**rules), specs, now_s)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A policy whose scores the test chose."""

    chosen: Sequence[float]
    name: str = "fixed"
    picker: Picker = GREEDY

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """As chosen, shape ``(len(fleet),)``."""
        return np.array(self.chosen, dtype=np.float64)


def _rows(ids: Sequence[str]) -> st.SearchStrategy[list[Row]]:
    node = st.fixed_dictionaries(
        {
            "loaded": st.frozensets(st.sampled_from(MODELS)),
            "available": st.booleans(),
            "inflight": st.integers(0, 12).map(float),
            "qps": st.floats(0.0, 50.0),
            "latency_s": st.floats(0.0, 30.0),
            "gpu_free_gib": st.floats(0.0, 24.0),
            "waiting": st.integers(0, 20).map(float),
            "kv_used": st.floats(0.0, 1.0),
            "ramp": st.sampled_from([1.0, 1.0, 0.5, 0.1]),
        }
    )

    def named(nodes: list[Row]) -> list[Row]:
        rows = [{"spec": a_spec(id_), **node} for id_, node in zip(ids, nodes, strict=False)]
        if not any(row["available"] for row in rows):
            rows[0]["available"] = True
        return rows

    return st.lists(node, min_size=1, max_size=len(ids)).map(named)


#: Nodes for :func:`a_fleet`; every one serves every model, at least one is available.
ROWS = _rows([f"node-{i}" for i in range(8)])
FLEETS = ROWS.map(lambda rows: a_fleet(*rows))

EPSILONS = st.floats(0.0, 1.0)
DRAWS = st.floats(0.0, 1.0, exclude_max=True)
SEQS = st.integers(0, 10**6)


@st.composite
def _scores_and_mask(draw: st.DrawFn) -> tuple[Scores, np.ndarray[Any, Any]]:
    n = draw(st.integers(1, 8))
    a_score = st.one_of(st.sampled_from([-1.0, 0.0, 1.0, -np.inf]), st.floats(-1e6, 1e6))
    scores = draw(arrays(np.float64, n, elements=a_score))
    mask = draw(arrays(np.bool_, n))
    usable = draw(st.integers(0, n - 1))
    mask[usable] = True
    if scores[usable] == -np.inf:
        scores[usable] = 0.0
    return scores, mask


#: Scores and a mask of the same length; ties and -inf are common, one eligible score is finite.
SCORES = _scores_and_mask()


@st.composite
def _probabilities(draw: st.DrawFn) -> Scores:
    weights = draw(
        st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1.0)), min_size=1, max_size=8).filter(any)
    )
    return np.array(weights) / sum(weights)


#: Distributions over one to eight nodes; zeros are common.
PROBABILITIES = _probabilities()
