"""What an operator script may measure of a node; units are in each docstring."""

from ccr.types import Node


def node_qps(node: Node) -> float:
    """Requests per second this router dispatched to the node, exponentially decayed."""
    return node.qps


def inflight(node: Node) -> float:
    """Requests this router has in flight on the node."""
    return node.inflight


def queue_length(node: Node) -> float:
    """Sequences waiting in the node's engine; 0 where telemetry is stale."""
    return node.waiting


def latency_s(node: Node) -> float:
    """Decayed mean latency seen by this router, in seconds; failures count as the penalty latency."""
    return node.latency_s


def gpu_free_mem(node: Node) -> float:
    """Free GPU memory in GiB; the mean of the other nodes where telemetry is stale."""
    return node.gpu_free_gib


def gpu_total_mem(node: Node) -> float:
    """GPU memory in GiB; 0 while unknown."""
    return node.gpu_total_gib


def kv_used(node: Node) -> float:
    """Used fraction of the KV cache, in [0, 1]; 0 where telemetry is stale."""
    return node.kv_used


def telemetry_age_s(node: Node) -> float:
    """Age of the node's last telemetry reading, in seconds."""
    return node.telemetry_age_s
