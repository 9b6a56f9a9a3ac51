"""Records of a fleet whose nodes are as fast as a test says."""

import numpy as np

from ccr.book import BANDWIDTH, IN_BATCH, LOAD, PENDING, SPEED
from ccr.lesson import OUTCOMES, Flag, Lesson, as_numbers
from ccr.look import ASKED, COVERAGE, LOAD_S, LOAD_WAIT_S, PAIRS, PREFILL_S, RESIDENT, STEP_AFTER_S
from ccr.types import COLUMNS, Outcome

STEP_S, PREFILL, OVERHEAD_S = 0.03, 0.05, 0.02
_ROW = {name: row for row, name in enumerate(COLUMNS)}


def an_answer(
    node=0, *, n=4, at_s=1000.0, speed=1.0, overhead_s=OVERHEAD_S, prefill_s=PREFILL, prefill_speed=None, output=50, model=7,
    session=0, load_s=0.0, stated_load_s=6.0, outcome=Outcome.OK, inflight=0.0, told=None, streamed=True, flags=0, pending=0.0, **fields,
):  # fmt: skip
    """A request at a node that takes ``speed`` times as long as expected; with ``load_s``, one that began a load.

    Args:
        node: which.
        n: how many there are; ids count from 100.
        told: running requests by the telemetry of every node, where the router has ``inflight``.
    """
    pairs, columns, load, asked = (
        np.zeros((len(PAIRS), n)),
        np.zeros((len(COLUMNS), n)),
        np.zeros((len(LOAD), n)),
        np.zeros(len(ASKED)),
    )
    load[SPEED] = load[BANDWIDTH] = 1.0
    pairs[RESIDENT], pairs[STEP_AFTER_S], pairs[PREFILL_S] = float(not load_s), STEP_S, prefill_s
    load[PENDING], load[IN_BATCH] = pending, 4.0
    if load_s:
        pairs[LOAD_S] = pairs[LOAD_WAIT_S] = stated_load_s
    columns[_ROW["inflight"]] = inflight
    columns[_ROW["running"]] = inflight if told is None else told
    columns[_ROW["telemetry_age_s"]] = 0.5
    asked[COVERAGE] = 1.0
    ttft_s = overhead_s + load_s + (speed if prefill_speed is None else prefill_speed) * prefill_s
    total_s = ttft_s + speed * STEP_S * (output - 1)
    shares = np.full(n, 1.0 / n)
    given = {
        "at_s": at_s, "outcome": OUTCOMES.index(outcome), "flags": int(Flag.LOOKED) | flags, "total_s": total_s,
        "ttft_s": ttft_s if streamed else total_s, "charged_s": max(total_s, 30.0 if outcome.is_node_failure else 0.0),
        "prompt_tokens": 100, "output_tokens": output, "model": model, "session": session, "chosen": node, "drawn": node,
        "u": 0.5, "propensity": 1.0 / n, "drawn_propensity": 1.0 / n, "nodes": (100 + np.arange(n)).astype("<u8").tobytes(),
        "mask": b"\1" * n, "probabilities": shares.tobytes(), "columns": as_numbers(columns), "load": as_numbers(load),
        "pairs": as_numbers(pairs), "asked": as_numbers(asked), "after": (1.0, 0.0, 0.5, 2.0, 0.9),
    }  # fmt: skip
    return Lesson(**(given | fields))


def answers(rng, count, begin_s=1000.0, per_s=10.0, noise=0.1, speeds=(1.0, 1.0, 1.0, 1.0), **fields):
    """Answers of nodes in turn, each as noisy as that."""
    found = []
    for k in range(count):
        node = k % len(speeds)
        given = {
            "output": int(rng.integers(20, 80)),
            "prefill_s": float(rng.uniform(0.03, 0.3)),
            "model": 7 + k % 3,
        } | fields
        speed = speeds[node] * float(np.exp(noise * rng.standard_normal()))
        found.append(an_answer(node, at_s=begin_s + k / per_s, speed=speed, n=len(speeds), **given))
    return found
