"""Why a request went where it went: a recorded decision taken apart, node by node.

A pure function of the record and the policy that decided: everything is computed again from what was seen then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ccr import cost
from ccr.admission import may_hold, may_reject
from ccr.book import Floats
from ccr.cost import SELFISH
from ccr.features import node_features, request_features
from ccr.look import Look
from ccr.policies.learned import PRIORITY_LOGIT, Learned
from ccr.policies.least_cost import LeastCost, LeastLatency
from ccr.policies.network import EXTRA, HOLD, REJECT, residual
from ccr.policy import Policy
from ccr.types import COLUMNS, Mask, TraceRecord

#: Row of :data:`ccr.cost.TERMS` -> its short name, as the options of `least_cost` have it.
TERM_NAMES: Final = ("load", "backlog", "prefill", "decode", "kv", "inflicted", "evicted", "cold")
_NOT_ELIGIBLE: Final = "not eligible"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAccount:
    """What spoke for and against one node; ``None`` and empty where the policy has no such thing.

    Args:
        node: its id.
        is_chosen: whether the request went there.
        why_not: why it was not eligible, in words; empty where it was.
        terms: name -> the cost term, in seconds; ``cold`` is 1 where the weights were missing.
        weighted: name -> what the policy made of the term, in seconds; of ``load`` and ``backlog``, which run side by side,
            the smaller counts 0.
        cost_s: their sum, which the policy ranks by.
        residual: what the network added to its logit.
        score: higher preferred; of `learned` the logit.
        probability: of being chosen, after mask and guard.
        heuristic_s: what `least_cost` with its shipped weights makes of it, in seconds.
    """

    node: str
    is_chosen: bool
    why_not: str
    terms: Mapping[str, float] = field(default_factory=dict)
    weighted: Mapping[str, float] = field(default_factory=dict)
    cost_s: float | None = None
    residual: float | None = None
    score: float | None = None
    probability: float = 0.0
    heuristic_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionAccount:
    """What spoke for refusing or holding the request.

    Args:
        action: ``refuse`` or ``hold``.
        logit: beside those of the nodes.
        residual: the network's part in it.
        is_allowed: whether the fleet's state asked for it; of holding: for a request that had not been held yet.
    """

    action: str
    logit: float
    residual: float
    is_allowed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A decision taken apart.

    Args:
        request_id: of the request.
        model: id of the model.
        policy: that decided.
        version: of its weights; empty where it has none.
        node: where the request went.
        propensity: probability of ``node``, after mask and guard.
        drawn: the node that the policy drew.
        drawn_propensity: probability of ``drawn``, before the guard.
        guard_reason: why the guard moved it; empty if it did not.
        fallback: why the configured policy was not used; empty normally.
        heuristic: the node that `least_cost` with its shipped weights prefers, before the guard; ``None`` if not known.
        note: what cannot be told of this policy; empty if nothing.
        nodes: one account for each, in the order of the fleet.
        actions: refusing and holding, of policies that may.
    """

    request_id: str
    model: str
    policy: str
    version: str
    node: str
    propensity: float | None
    drawn: str
    drawn_propensity: float | None
    guard_reason: str
    fallback: str
    heuristic: str | None
    note: str
    nodes: tuple[NodeAccount, ...]
    actions: tuple[ActionAccount, ...] = ()


def explain(record: TraceRecord, policy: Policy, why_not: Mapping[str, str] | None = None) -> Explanation:
    """Why the request went where it went.

    Args:
        record: with an observation.
        policy: the one that decided, with the weights it had then.
        why_not: node id -> why it was not eligible, as far as known; :func:`ccr.eligibility.reasons`.

    Raises:
        ValueError: if another policy decided.
    """
    if policy.name != record.policy:
        raise ValueError(f"{record.policy!r} decided on request {record.request_id}, not {policy.name!r}")
    mask = np.array(record.mask, dtype=np.bool_)
    look = look_in(record)
    words = why_not or {}
    columns = _columns(look, mask, policy)
    nodes = tuple(
        NodeAccount(
            node=node, is_chosen=node == record.node, why_not="" if mask[i] else words.get(node, _NOT_ELIGIBLE),
            score=record.scores[i], probability=record.probabilities[i], **{name: column[i] for name, column in columns.items()},
        )
        for i, node in enumerate(record.node_ids)
    )  # fmt: skip
    return Explanation(
        request_id=record.request_id, model=record.model_id or record.model, policy=record.policy,
        version=str(getattr(policy, "version", "")), node=record.node, propensity=record.propensity,
        drawn=record.drawn, drawn_propensity=record.drawn_propensity, guard_reason=record.guard_reason,
        fallback=record.fallback, heuristic=None if look is None else record.node_ids[_preferred(look, mask)],
        note=_note(look, policy), nodes=nodes, actions=_actions(look, mask, policy, record.priority),
    )  # fmt: skip


def look_in(record: TraceRecord) -> Look | None:
    """What the policy saw of the router's expectations; ``None`` if it did not look."""
    if not record.look:
        return None
    load, pairs, asked = (np.array(record.look[name]) for name in ("load", "pairs", "asked"))
    return Look(np.array([record.observation[name] for name in COLUMNS]), load, pairs, asked[0])


def weights_of(policy: Policy) -> Floats | None:
    """What the policy weighs the cost terms with, shape ``(8,)``; ``None`` if its score is not made of them."""
    if isinstance(policy, Learned):
        return policy.network.theta
    if isinstance(policy, LeastCost):
        return np.array(policy.theta)
    return np.array(SELFISH) if isinstance(policy, LeastLatency) else None


def weighted_terms(parts: Floats, theta: Floats) -> Floats:
    """The addends of :func:`ccr.cost.total`, shape ``(8, n)``: loads and prefill of others run side by side, the shorter is 0."""
    out = theta[:, None] * parts
    is_load = out[cost.LOAD] >= out[cost.BACKLOG]
    out[cost.LOAD] = np.where(is_load, out[cost.LOAD], 0.0)
    out[cost.BACKLOG] = np.where(is_load, 0.0, out[cost.BACKLOG])
    return out


def _columns(look: Look | None, mask: Mask, policy: Policy) -> dict[str, list[Any]]:
    """Field of a node's account -> its value for each node, as far as there are such."""
    if look is None:
        return {}
    parts = cost.terms(look)
    columns: dict[str, list[Any]] = {
        "terms": _named(parts),
        "heuristic_s": cost.total(parts, np.array(LeastCost().theta)).tolist(),
    }
    theta = weights_of(policy)
    if theta is not None:
        columns["weighted"] = _named(weighted_terms(parts, theta))
        columns["cost_s"] = cost.total(parts, theta).tolist()
    if isinstance(policy, Learned):
        added, _ = residual(node_features(look), request_features(look), mask, policy.network)
        columns["residual"] = added.tolist()
    return columns


def _named(rows: Floats) -> list[Any]:
    return [dict(zip(TERM_NAMES, values, strict=True)) for values in rows.T.tolist()]


def _actions(look: Look | None, mask: Mask, policy: Policy, priority: int) -> tuple[ActionAccount, ...]:
    if look is None or not isinstance(policy, Learned):
        return ()
    found = policy.logits(look, mask)[-EXTRA:]
    found[REJECT] -= PRIORITY_LOGIT * priority
    _, added = residual(node_features(look), request_features(look), mask, policy.network)
    allowed = {"refuse": may_reject(look, mask), "hold": may_hold(look, mask, 0.0)}
    return tuple(
        ActionAccount(
            action=action, logit=float(found[i]), residual=float(added[i]), is_allowed=allowed[action]
        )
        for action, i in (("refuse", REJECT), ("hold", HOLD))
    )


def _preferred(look: Look, mask: Mask) -> int:
    cost_s = cost.total(cost.terms(look), np.array(LeastCost().theta))
    return int(np.where(mask, cost_s, np.inf).argmin())


def _note(look: Look | None, policy: Policy) -> str:
    if look is None:
        return f"{policy.name} does not look at what the router expects of each node: its scores are all there is"
    if weights_of(policy) is None:
        return f"{policy.name} does not weigh these cost terms: they are what the router expected, for comparison"
    return ""
