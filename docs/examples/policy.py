"""Prefer nodes that have the model and a short queue; keep urgent requests away from full caches."""

from ccr.metrics import gpu_free_mem, inflight, kv_used, queue_length

# What a cold start is worth, in requests that wait: raise it when models load slowly.
COLD_START = 8
# Below this much free memory, in GiB, loading one more model evicts another.
SPARE_GIB = 8.0


def score(node, req) -> float:
    """Higher is preferred; called once per node."""
    points = -(inflight(node) + queue_length(node))
    if req.header.get("X-Model-Name") not in node.loaded_models:
        points -= COLD_START
        if gpu_free_mem(node) < SPARE_GIB:
            points -= COLD_START
    if req.priority > 0 and kv_used(node) > 0.9:
        points -= 4
    if node.labels.get("gpu") == "L4" and req.prompt_tokens > 8000:
        points += 2
    return points


def batch_hint(req_list) -> float:
    """Milliseconds this batch may still wait for more requests of the same model."""
    if len(req_list) >= 4 or any(req.priority > 0 for req in req_list):
        return 0
    return 10
