"""The prefix cache of the nodes, compiled; see :mod:`envs.prefix`.

A context is named by the job that left it. It is in two lists: its node's, by age, and its session's, on all nodes.
"""

from math import ceil
from typing import Any

from envs.kernel.compiled import inlined, njit
from envs.kernel.state import Nodes


@inlined
def held(nodes: Nodes, n: int, model: int, session: int) -> int:
    """The job that left the session's context of this model on this node; -1 for none."""
    if session < 0:
        return -1
    work = nodes.work
    j = nodes.newest_context[session]
    while j >= 0 and (work[j].home != n or work[j].model != model):
        j = work[j].same_older
    return j


@inlined
def keep_context(nodes: Nodes, n: int, j: int) -> None:
    """Keep the context of a finished job in place of its session's older one."""
    card, job = nodes.card[n], nodes.work[j]
    if job.session < 0 or card.prefix_cache == 0:
        return
    before = held(nodes, n, job.model, job.session)
    if before >= 0:
        drop_context(nodes, n, before)
    job.home, job.cached = n, job.prompt + job.output
    card.cached += job.cached * nodes.line[n, nodes.line[n, job.model].lane].kv
    _append(nodes, card, j)


@inlined
def _append(nodes: Nodes, card: Any, j: int) -> None:
    work = nodes.work
    job = work[j]
    job.older, job.newer = card.newest, -1
    if card.newest >= 0:
        work[card.newest].newer = j
    else:
        card.oldest = j
    card.newest = j
    same = nodes.newest_context[job.session]
    job.same_older, job.same_newer = same, -1
    if same >= 0:
        work[same].same_newer = j
    nodes.newest_context[job.session] = j


@njit
def drop_context(nodes: Nodes, n: int, j: int) -> None:
    """Forget the context that job ``j`` left."""
    card, work = nodes.card[n], nodes.work
    job = work[j]
    card.cached -= job.cached * nodes.line[n, nodes.line[n, job.model].lane].kv
    job.home = -1
    if job.older >= 0:
        work[job.older].newer = job.newer
    else:
        card.oldest = job.newer
    if job.newer >= 0:
        work[job.newer].older = job.older
    else:
        card.newest = job.older
    if job.same_older >= 0:
        work[job.same_older].same_newer = job.same_newer
    if job.same_newer >= 0:
        work[job.same_newer].same_older = job.same_older
    else:
        nodes.newest_context[job.session] = job.same_older


@njit
def drop_lane(nodes: Nodes, n: int, lane: int) -> None:
    """Forget every context of a lane's models; of all lanes when ``lane`` is -1."""
    j = nodes.card[n].oldest
    while j >= 0:
        newer = nodes.work[j].newer
        if lane < 0 or nodes.line[n, nodes.work[j].model].lane == lane:
            drop_context(nodes, n, j)
        j = newer


@inlined
def trim(nodes: Nodes, n: int) -> None:
    """Leave the prefix cache what running sequences do not need."""
    card = nodes.card[n]
    room = card.kv_budget - card.kv
    while card.cached > room and card.oldest >= 0:
        oldest = nodes.work[card.oldest]
        kv = nodes.line[n, nodes.line[n, oldest.model].lane].kv
        surplus = ceil((card.cached - room) / kv)
        if surplus >= oldest.cached:
            drop_context(nodes, n, card.oldest)
        else:
            oldest.cached -= surplus
            card.cached -= surplus * kv
