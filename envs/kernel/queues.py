"""Who waits and who runs: a heap of jobs per queue, by place; a heap of jobs per lane, by the round that ends them."""

from typing import Any

from envs.kernel.compiled import inlined
from envs.kernel.state import Nodes


@inlined
def merge(work: Any, first: int, second: int) -> int:
    """Two skew heaps of waiting jobs into one, by ``key``; each is the index of its root, -1 for an empty one."""
    if first < 0:
        return second
    if second < 0:
        return first
    if work[second].key < work[first].key:
        first, second = second, first
    root = first
    while True:
        right = work[first].right
        work[first].right = work[first].left
        if right < 0:
            work[first].left = second
            return root
        if work[second].key < work[right].key:
            right, second = second, right
        work[first].left = right
        first = right


@inlined
def push_end(nodes: Nodes, n: int, lane: int, j: int) -> None:
    """File a running job under the round that ends it; the lane counts it afterwards."""
    heap, work = nodes.ends[n, lane], nodes.work
    at = nodes.line[n, lane].batch
    while at > 0:
        above = (at - 1) // 2
        if _ends_before(work, heap[above], j):
            break
        heap[at] = heap[above]
        at = above
    heap[at] = j


@inlined
def remove_end(nodes: Nodes, n: int, lane: int, at: int) -> None:
    """Take the job at position ``at`` out of the lane's heap; the lane counts it off afterwards."""
    heap, work = nodes.ends[n, lane], nodes.work
    last = nodes.line[n, lane].batch - 1
    moved = heap[last]
    while at > 0 and _ends_before(work, moved, heap[(at - 1) // 2]):
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    while 2 * at + 1 < last:
        below = 2 * at + 1
        if below + 1 < last and _ends_before(work, heap[below + 1], heap[below]):
            below += 1
        if _ends_before(work, moved, heap[below]):
            break
        heap[at] = heap[below]
        at = below
    heap[at] = moved


@inlined
def _ends_before(work: Any, one: int, other: int) -> bool:
    first, second = work[one].end_round, work[other].end_round
    return first < second or (first == second and work[one].number < work[other].number)
