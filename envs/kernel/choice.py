"""How a node is chosen, compiled: the built-in policies, the pickers, the guard and the draw of :mod:`ccr.engine`.

Rules on the router's expectations are the core's own functions. The simple ones are written again as loops; a test
holds every one of them equal to the policy of its name.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccr import scoring
from ccr.book import Book
from ccr.cost import SELFISH
from ccr.look import Look
from ccr.picker import BEST_OF_TWO, GREEDY, Exploring
from ccr.policies.article import Article
from ccr.policies.bounded_hash import BoundedHash
from ccr.policies.hot_cold import HotCold
from ccr.policies.learned import Learned
from ccr.policies.least_cost import LeastCost, LeastLatency
from ccr.policies.least_request import LeastRequest, PowerOfTwo
from ccr.policies.least_work import FastestDrain, LeastWork
from ccr.policies.network import Network, blank
from ccr.policies.observed_latency import LatencyCurve, LatencyPredictor
from ccr.policies.prefix_affinity import PrefixAffinity
from ccr.policies.random import Random
from ccr.policies.round_robin import RoundRobin
from ccr.policies.session_affinity import SessionAffinity
from ccr.policy import Policy
from envs.kernel.compiled import njit
from envs.kernel.routers import GPU_FREE_GIB, INFLIGHT, LATENCY_S, QPS, ROOM_GIB, Names, Router

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

RANDOM: Final = 0
ROUND_ROBIN: Final = 1
LEAST_REQUEST: Final = 2
HOT_COLD: Final = 3
ARTICLE: Final = 4
SESSION_AFFINITY: Final = 5
BOUNDED_HASH: Final = 6
#: Rules from here on look at the router's expectations.
LOOKS: Final = 10
PREFIX_AFFINITY: Final = 10
LEAST_WORK: Final = 11
FASTEST_DRAIN: Final = 12
LATENCY_CURVE: Final = 13
LATENCY_PREDICTOR: Final = 14
LEAST_COST: Final = 15
#: The one rule that may also refuse a request, or hold it.
LEARNED: Final = 16

_FAR: Final = 1e6  # as in ccr.policies.hot_cold

#: Class of policy -> its rule and the weights of an instance, in the order the rule takes them.
RULES: Mapping[type, tuple[int, Callable[..., tuple[float, ...]]]] = MappingProxyType(
    {
        Random: (RANDOM, lambda _: ()),
        RoundRobin: (ROUND_ROBIN, lambda _: ()),
        LeastRequest: (LEAST_REQUEST, lambda p: (p.cold_start_penalty,)),
        PowerOfTwo: (LEAST_REQUEST, lambda p: (p.cold_start_penalty,)),
        HotCold: (HOT_COLD, lambda p: (p.quantile, p.default_load_s)),
        Article: (ARTICLE, lambda p: (p.affinity, p.per_free_gib, p.buffer_gib, p.per_qps)),
        SessionAffinity: (SESSION_AFFINITY, lambda p: (p.factor, p.min_inflight)),
        BoundedHash: (BOUNDED_HASH, lambda p: (p.factor,)),
        PrefixAffinity: (PREFIX_AFFINITY, lambda p: (p.cached, p.cold_start_penalty)),
        LeastWork: (LEAST_WORK, lambda p: (p.load,)),
        FastestDrain: (FASTEST_DRAIN, lambda p: (p.load,)),
        LatencyCurve: (LATENCY_CURVE, lambda p: (p.load,)),
        LatencyPredictor: (LATENCY_PREDICTOR, lambda p: (p.load, p.token)),
        LeastLatency: (LEAST_COST, lambda _: SELFISH),
        LeastCost: (LEAST_COST, lambda p: p.theta),
        Learned: (LEARNED, lambda p: tuple(p.network.theta)),
    }
)

# How scores become probabilities. -------------------------------------------------------------------------------
PICK_BEST: Final = 0
PICK_BEST_OF_TWO: Final = 1


class Chooser(NamedTuple):
    """A built-in policy as the kernel takes it; most rules read ``theta`` alone of the fields of a network.

    Args:
        rule: one of the numbers above.
        picker: :data:`PICK_BEST` or :data:`PICK_BEST_OF_TWO`.
        epsilon: share of exploration.
        theta: weights, in the order the rule takes them; the others as in :class:`ccr.policies.network.Network`.
    """

    rule: int
    picker: int
    epsilon: float
    theta: Floats
    scalars: Floats
    node: Floats
    request: Floats
    bias: Floats
    own: Floats
    pool: Floats
    second_bias: Floats
    out: Floats
    extra: Floats
    extra_bias: Floats


def chooser_of(policy: Policy) -> Chooser | None:
    """A policy as the kernel takes it; ``None`` where only the reference can run it."""
    found = RULES.get(type(policy))
    picker, epsilon = policy.picker, 0.0
    if isinstance(picker, Exploring):
        epsilon, picker = picker.epsilon, picker.inner
    if found is None or picker not in (GREEDY, BEST_OF_TWO):
        return None
    rule, weights_of = found
    net: Network = (
        policy.network
        if isinstance(policy, Learned)
        else blank(np.array(weights_of(policy), dtype=np.float64))
    )
    return Chooser(rule, PICK_BEST if picker == GREEDY else PICK_BEST_OF_TWO, epsilon, *net)


@njit
def is_resident(router: Router, book: Book, model: int, node: int) -> bool:
    """Reported, or in flight there; what :meth:`ccr.types.Fleet.resident` says."""
    return router.reported[model, node] or book.inflight[model, node] > 0


@njit
def score_simply(
    rule: int, theta: Floats, router: Router, book: Book, names: Names, model: int, session: int
) -> Floats:
    """Scores of a rule that looks at the columns alone, shape ``(n,)``."""
    columns = router.columns
    n = columns.shape[1]
    scores = np.zeros(n)
    if rule == ROUND_ROBIN:
        for i in range(n):
            scores[i] = -float((i - router.seq[0]) % n)
    elif rule == LEAST_REQUEST:
        for i in range(n):
            scores[i] = -(
                columns[INFLIGHT, i] + theta[0] * (0.0 if is_resident(router, book, model, i) else 1.0)
            )
    elif rule == HOT_COLD:
        threshold = np.sort(columns[INFLIGHT])[max(math.ceil(theta[0] * n) - 1, 0)]
        load_s = names.load_s[model] if names.load_s[model] > 0.0 else theta[1]
        any_hot = columns[INFLIGHT].max() > threshold
        for i in range(n):
            cold_s = 0.0 if is_resident(router, book, model, i) else load_s
            expected_s = columns[LATENCY_S, i] + cold_s
            if any_hot and columns[INFLIGHT, i] > threshold:
                scores[i] = -(_FAR + columns[INFLIGHT, i] + expected_s / _FAR)
            else:
                scores[i] = -expected_s
    elif rule == ARTICLE:
        for i in range(n):
            here = 1.0 if is_resident(router, book, model, i) else 0.0
            memory = theta[1] * max(columns[GPU_FREE_GIB, i] - theta[2], 0.0)
            scores[i] = theta[0] * here + memory + theta[3] * (100.0 - columns[QPS, i])
    elif rule == SESSION_AFFINITY:
        key = names.session[session] if session >= 0 else names.model[model]
        bound = max(theta[0] * (columns[INFLIGHT].sum() / n + 1.0 / n), theta[1])
        for i in range(n):
            over = columns[INFLIGHT, i] + 1.0 > bound
            weight = float(_mix(names.node[i] ^ key)) / 18446744073709551616.0
            scores[i] = -1.0 - columns[INFLIGHT, i] if over else weight
    elif rule == BOUNDED_HASH:
        bound = math.ceil(theta[0] * (columns[INFLIGHT].sum() + 1.0) / n)
        for i in range(n):
            way = float(names.node[i] - names.model[model]) / 18446744073709551616.0
            scores[i] = -1.0 - columns[INFLIGHT, i] if columns[INFLIGHT, i] + 1.0 > bound else -way
    return scores


@njit
def _mix(x: np.uint64) -> np.uint64:
    """:func:`ccr.hashing.mix` of one number."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit
def score_look(rule: int, theta: Floats, look: Look) -> Floats:
    """Scores of a rule that looks at the router's expectations, shape ``(n,)``."""
    if rule == PREFIX_AFFINITY:
        return scoring.prefix_and_load(look, theta)
    if rule == LEAST_WORK:
        return scoring.least_work(look, theta)
    if rule == FASTEST_DRAIN:
        return scoring.fastest_drain(look, theta)
    if rule == LATENCY_CURVE:
        return scoring.lowest_curve(look, theta)
    if rule == LATENCY_PREDICTOR:
        return scoring.lowest_prediction(look, theta)
    return scoring.least_cost(look, theta)


@njit
def eligible(router: Router, book: Book, names: Names, model: int) -> Flags:
    """The action mask: every node serves every model, and has it or could make room for it."""
    n = router.columns.shape[1]
    mask = np.zeros(n, dtype=np.bool_)
    for i in range(n):
        mask[i] = is_resident(router, book, model, i) or router.columns[ROOM_GIB, i] >= names.gib[model]
    return mask


@njit
def pick(scores: Floats, mask: Flags, picker: int, epsilon: float) -> Floats:
    """Probabilities of the nodes, shape ``(n,)``; :mod:`ccr.picker`."""
    n = len(scores)
    allowed = 0
    for i in range(n):
        allowed += int(mask[i] and scores[i] > -np.inf)
    probabilities = np.zeros(n)
    if picker == PICK_BEST or allowed == 1:
        best = -np.inf
        for i in range(n):
            if mask[i] and scores[i] > best:
                best = scores[i]
        ties = 0
        for i in range(n):
            ties += int(mask[i] and scores[i] == best)
        for i in range(n):
            if mask[i] and scores[i] == best:
                probabilities[i] = 1.0 / ties
    else:
        pairs = allowed * (allowed - 1) / 2
        for i in range(n):
            if mask[i] and scores[i] > -np.inf:
                better = equal = 0
                for k in range(n):
                    if k != i and mask[k] and scores[k] > -np.inf:
                        better += int(scores[i] > scores[k])
                        equal += int(scores[i] == scores[k])
                probabilities[i] = (better + 0.5 * equal) / pairs
    if epsilon > 0.0:
        for i in range(n):
            explore = 1.0 / allowed if mask[i] and scores[i] > -np.inf else 0.0
            probabilities[i] = epsilon * explore + (1.0 - epsilon) * probabilities[i]
    return probabilities


@njit
def draw(probabilities: Floats, u: float) -> int:
    """The node at quantile ``u``; :func:`ccr.picker.draw`."""
    likeliest = int(probabilities.argmax())
    if probabilities[likeliest] == 1.0:
        return likeliest
    total = 0.0
    for i in range(len(probabilities)):
        total += probabilities[i]
    target, so_far, last = u * total, 0.0, 0
    for i in range(len(probabilities)):
        so_far += probabilities[i]
        if probabilities[i] > 0.0:
            last = i
        if so_far > target:
            return i
    return last


@njit
def guarded(scores: Floats, mask: Flags, inflight: Floats, drawn: int) -> int:
    """The node that is executed; :meth:`ccr.guard.BoundedLoad.executed` with its defaults, all nodes in full rotation."""
    n = len(mask)
    total, eligible_nodes, busiest = 1.0, 0, 0.0
    for i in range(n):
        if mask[i]:
            total += inflight[i]
            eligible_nodes += 1
        busiest = max(busiest, inflight[i])
    bound = max(float(max(math.ceil(2.0 * total / eligible_nodes), 4)), 1.0)
    if busiest + 1.0 <= bound or inflight[drawn] + 1.0 <= bound:
        return drawn
    target, best = -1, -np.inf
    for i in range(n):
        if mask[i] and inflight[i] + 1.0 <= bound and scores[i] > best:
            target, best = i, scores[i]
    if target >= 0:
        return target
    for i in range(n):  # the policy wants none of those with room
        if mask[i] and inflight[i] + 1.0 <= bound and -inflight[i] > best:
            target, best = i, -inflight[i]
    if target >= 0:
        return target
    for i in range(n):
        if mask[i] and -inflight[i] > best:
            target, best = i, -inflight[i]
    return target
