import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.engine import Engine
from ccr.errors import ScriptError
from ccr.policies.article import Article
from ccr.policies.least_request import LeastRequest
from ccr.policies.script import (
    LONGEST_WAIT_S,
    Header,
    ScriptPolicy,
    ScriptRequest,
    Strikes,
    batch_hint_s,
    compile_script,
)
from ccr.policies.time_guard import TIMED_OUT, ScriptTimeoutError
from ccr.policy import Policy
from ccr.types import COLUMNS, Fleet, NodeSpec, Request

PROJECT = Path(__file__).parents[3]
EXAMPLE = PROJECT / "docs" / "examples" / "policy.py"
ARTICLE = PROJECT.parent / "shared" / "article" / "policies_router.py"

OURS_IN_ITS_DIALECT = """
import ccr
from ccr.metrics import node_qps, gpu_free_mem

def score(node, req) -> float:
    points = 0.0
    if req.header.get("X-Model-Name") in node.loaded_models:
        points += 100
    points += max(0, gpu_free_mem(node) - 2) * 5
    points += (100 - node_qps(node)) * 0.5
    return points
"""

QUANTITIES = st.floats(0.0, 1e4)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "qps": QUANTITIES,
            "gpu_free_gib": QUANTITIES,
            "loaded": st.sampled_from([(), ("llama",), ("qwen", "llama")]),
        }
    ),
    min_size=1,
    max_size=9,
)
ANSWERS = st.one_of(
    st.none(),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.text(max_size=3),
    st.just(10**400),
    st.just([1.0]),
)


def a_fleet(*rows):
    return Fleet.of([{"spec": NodeSpec(f"n{i}", "http://n:1"), **row} for i, row in enumerate(rows)])


def patient(policy):
    """With time for a garbage collection or a busy machine: what is not about time must not depend on it."""
    return replace(policy, limit_s=5.0)


def compiled(source):
    return patient(compile_script(source, "policy.py"))


def a_script(body):
    return compiled(f"def score(node, req):\n    {body}\n")


def a_policy(score, limit_s=5.0):
    return ScriptPolicy(score=score, path="policy.py", sha256="", limit_s=limit_s)


REQUEST = Request(
    id="r1", model="llama", headers=MappingProxyType({"x-model-name": "the-llama-the-client-said"})
)
TWO_NODES = a_fleet({}, {"inflight": 3.0})


@given(ROWS)
def test_a_script_in_the_articles_dialect_scores_by_its_formula(rows):
    fleet = a_fleet(*rows)

    scores = compiled(OURS_IN_ITS_DIALECT).scores(REQUEST, fleet)

    np.testing.assert_allclose(scores, Article().scores(REQUEST, fleet))


@pytest.mark.skipif(not ARTICLE.exists(), reason="the founding article is not part of the project")
@given(rows=ROWS)
def test_the_articles_own_script_runs_unmodified(rows):
    fleet = a_fleet(*rows)
    policy = compiled(ARTICLE.read_text(encoding="utf-8"))

    scores = policy.scores(REQUEST, fleet)

    np.testing.assert_allclose(scores, Article().scores(REQUEST, fleet))
    assert batch_hint_s(policy, [REQUEST] * 3, pytest.fail) == pytest.approx(0.010)
    assert batch_hint_s(policy, [REQUEST] * 4, pytest.fail) == 0.0


def test_the_example_prefers_the_node_that_has_the_model():
    policy = compiled(EXAMPLE.read_text(encoding="utf-8"))

    scores = policy.scores(REQUEST, a_fleet({"inflight": 3.0, "loaded": ["llama"]}, {"inflight": 0.0}))

    assert scores[0] > scores[1]


def test_a_compiled_script_is_a_policy_and_tells_what_it_runs():
    policy = compile_script(OURS_IN_ITS_DIALECT, "policy.py")

    assert isinstance(policy, Policy)
    assert (policy.name, policy.path) == ("script", "policy.py")
    assert policy.sha256 == hashlib.sha256(OURS_IN_ITS_DIALECT.encode()).hexdigest()


def test_scores_are_float64_one_per_node():
    scores = a_script("return node.inflight > 1").scores(REQUEST, TWO_NODES)

    assert scores.dtype == np.float64
    assert scores.tolist() == [0.0, 1.0]


def test_an_empty_fleet_has_no_scores():
    assert a_script("return 1").scores(REQUEST, a_fleet()).shape == (0,)


def test_finite_scores_whose_sum_is_not_are_scores():
    assert a_script("return 1.7e308").scores(REQUEST, TWO_NODES).tolist() == [1.7e308, 1.7e308]


@given(st.lists(ANSWERS, min_size=1, max_size=6))
def test_scores_are_finite_or_refused_with_the_first_node_that_is_to_blame(answers):
    fleet = a_fleet(*({} for _ in answers))
    policy = a_policy(lambda node, req: answers[int(node.id[1:])])
    good = [isinstance(a, bool | int | float) and a != 10**400 and math.isfinite(a) for a in answers]

    if all(good):
        assert policy.scores(REQUEST, fleet).tolist() == [float(a) for a in answers]
    else:
        with pytest.raises(ScriptError, match=f"for node 'n{good.index(False)}'"):
            policy.scores(REQUEST, fleet)


@given(name=st.sampled_from([*COLUMNS, "id", "loaded_models", "labels", "spec", "new"]), value=ANSWERS)
def test_a_script_cannot_change_a_node(name, value):
    fleet = a_fleet({"inflight": 1.0, "loaded": ["llama"]})
    before = (fleet.columns.copy(), fleet.loaded, fleet.specs)

    with pytest.raises(ScriptError, match="read-only"):
        a_policy(lambda node, req: setattr(node, name, value)).scores(REQUEST, fleet)

    np.testing.assert_array_equal(fleet.columns, before[0])
    assert (fleet.loaded, fleet.specs) == before[1:]


@given(name=st.sampled_from([*ScriptRequest._fields, "new"]), value=ANSWERS)
def test_a_script_cannot_change_the_request(name, value):
    with pytest.raises(ScriptError, match="AttributeError"):
        a_policy(lambda node, req: setattr(req, name, value)).scores(REQUEST, TWO_NODES)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        pytest.param(
            "return 1 / (node.inflight - 3)",
            "n1.*ZeroDivisionError: float division by zero",
            id="on one node",
        ),
        pytest.param(
            "return node.gpu", "n0.*AttributeError: a node has no 'gpu'; it has", id="misspelt attribute"
        ),
        pytest.param("return score(node, req)", "n0.*RecursionError", id="recursion"),
        pytest.param("raise StopIteration", "n0.*raised StopIteration$", id="without a message"),
    ],
)
def test_what_a_script_raises_is_told_with_line_node_and_reason(body, what):
    with pytest.raises(ScriptError, match=rf"(?s)^policy\.py:2: score for node '{what}"):
        a_script(body).scores(REQUEST, TWO_NODES)


def test_a_script_cannot_stop_the_router():
    def score(node, req):
        raise SystemExit

    with pytest.raises(ScriptError, match="SystemExit"):
        a_policy(score).scores(REQUEST, TWO_NODES)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("while node: pass", id="loop"),
        pytest.param("return [1 for a in range(10**6) for b in range(10**6)]", id="comprehension"),
        pytest.param("return bool(re.match('(a+)+$', 'a' * 40 + 'b'))", id="regex bomb"),
        pytest.param("return fib(80)", id="exponential recursion"),
    ],
)
def test_a_script_that_does_not_return_is_told_with_its_line(body):
    source = f"import re\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\ndef score(node, req):\n    {body}\n"
    policy = compile_script(source, "policy.py")

    with pytest.raises(
        ScriptTimeoutError, match=rf"^{TIMED_OUT} after 5 ms at policy\.py:[24] in score for node 'n0'$"
    ):
        policy.scores(REQUEST, TWO_NODES)


def test_the_limit_is_for_all_nodes_together():
    """16 nodes at 1 ms each are too slow though each is quick."""

    def score(node, req):
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        return 0.0

    with pytest.raises(ScriptTimeoutError, match="node 'n"):
        a_policy(score, limit_s=0.005).scores(REQUEST, a_fleet(*({} for _ in range(16))))


def test_a_failing_script_hands_the_request_to_the_fallback():
    engine = Engine(policy=a_script("return None"), fallback=LeastRequest())
    fleet = a_fleet({"inflight": 2.0, "loaded": ["llama"]}, {"loaded": ["llama"]})

    decision = engine.decide(REQUEST, fleet, u=0.5)

    assert (decision.node_id, decision.policy) == ("n1", "least_request")
    assert "score returned None for node 'n0'" in decision.fallback


def test_the_model_header_is_the_resolved_model_in_any_case():
    header = ScriptRequest.of(REQUEST).header

    assert {header.get(name) for name in ("X-Model-Name", "x-model-name", "X-MODEL-NAME")} == {"llama"}


@given(st.dictionaries(st.sampled_from(["x-model-name", "x-a", "x-b"]), st.text(max_size=3)))
def test_headers_are_a_mapping(headers):
    header = Header(headers, "llama")

    assert dict(header) == {**headers, "x-model-name": "llama"}
    assert len(header) == len(dict(header))
    assert header.get("X-Absent", "none") == "none"


def test_a_script_sees_what_the_request_says():
    request = Request(
        id="r1", model="llama@3", name="llama", version="3", session="s", priority=2, tenant="t",
        prompt_tokens=10, output_tokens=20,
    )  # fmt: skip

    view = ScriptRequest.of(request)

    assert all(
        getattr(view, name) == getattr(request, name) for name in ScriptRequest._fields if name != "header"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(
            "raise ValueError('no')\n", "policy.py:1: the module body raised ValueError: no", id="raises"
        ),
        pytest.param(
            "from ccr.metrics import qps\n",
            "policy.py:1: the module body raised ImportError",
            id="no such metric",
        ),
        pytest.param("return 1\n", "policy.py:1: 'return' outside function", id="compiler"),
        pytest.param(
            "for i in range(10**12): pass\n",
            f"{TIMED_OUT} after 250 ms at policy.py:1 in the module",
            id="hangs",
        ),
    ],
)
def test_a_script_whose_body_fails_is_refused(source, reason):
    with pytest.raises(ScriptError) as refusal:
        compile_script(source + "def score(node, req):\n    return 1\n", "policy.py")

    assert str(refusal.value).startswith(reason)


def test_a_score_that_is_overwritten_is_refused():
    with pytest.raises(ScriptError, match="score is overwritten with a int"):
        compile_script("def score(node, req):\n    return 1\nscore = 1\n", "policy.py")


def test_a_script_may_say_ccr_metrics_in_full():
    policy = compile_script(
        "import ccr\ndef score(node, req):\n    return ccr.metrics.inflight(node)\n", "policy.py"
    )

    assert policy.scores(REQUEST, TWO_NODES).tolist() == [0.0, 3.0]


def test_a_hundred_reloads_leave_the_last_one_serving():
    policies = [a_script(f"return {i}") for i in range(100)]

    assert [policy.scores(REQUEST, TWO_NODES)[0] for policy in policies] == list(range(100))
    assert len({policy.sha256 for policy in policies}) == 100


@pytest.mark.parametrize(
    ("hint", "wait_s"),
    [
        pytest.param("10", 0.010, id="milliseconds"),
        pytest.param("2.5", 0.0025, id="fractions"),
        pytest.param("-3", 0.0, id="not negative"),
        pytest.param("10000", LONGEST_WAIT_S, id="not for ever"),
    ],
)
def test_a_batch_hint_is_in_seconds_and_within_bounds(hint, wait_s):
    policy = compile_script(
        f"def score(n, r):\n    return 1\ndef batch_hint(rs):\n    return {hint}\n", "policy.py"
    )

    assert batch_hint_s(policy, [REQUEST], pytest.fail) == pytest.approx(wait_s)


def test_a_script_without_a_hint_does_not_wait():
    assert batch_hint_s(a_script("return 1"), [REQUEST], pytest.fail) == 0.0


@pytest.mark.parametrize(
    ("hint", "reason"),
    [
        pytest.param("return None", "policy.py: batch_hint returned None", id="None"),
        pytest.param("return 1e400", "policy.py: batch_hint returned inf", id="infinite"),
        pytest.param("return 1 / 0", "policy.py:4: batch_hint raised ZeroDivisionError", id="raises"),
        pytest.param("while rs: pass", f"{TIMED_OUT} after 5 ms at policy.py:4 in batch_hint", id="hangs"),
    ],
)
def test_a_failing_hint_means_no_wait_and_is_reported(hint, reason):
    policy = compile_script(f"def score(n, r):\n    return 1\ndef batch_hint(rs):\n    {hint}\n", "policy.py")
    reported = []

    wait_s = batch_hint_s(policy, [REQUEST], reported.append)

    assert wait_s == 0.0
    assert [str(error)[: len(reason)] for error in reported] == [reason]


def struck(*times_s, fallback=f"{TIMED_OUT} after 5 ms"):
    strikes = Strikes()
    for now_s in times_s:
        strikes = strikes.after(fallback, now_s)
    return strikes


def test_three_timeouts_within_a_minute_and_it_is_out():
    assert not struck(0.0, 1.0).out
    assert struck(0.0, 1.0, 59.0).out


def test_timeouts_far_apart_do_not_add_up():
    assert not struck(0.0, 40.0, 80.0, 120.0, 160.0).out


@pytest.mark.parametrize("fallback", ["", "policy.py:2: score raised ValueError"])
def test_only_timeouts_count(fallback):
    assert not struck(0.0, 1.0, 2.0, fallback=fallback).out


def test_the_engine_tells_a_timeout_in_a_way_that_counts():
    policy = compile_script("def score(node, req):\n    while node: pass\n", "policy.py")
    engine = Engine(policy=policy, fallback=LeastRequest())
    strikes = Strikes()

    for now_s in (1.0, 2.0, 3.0):
        decision = engine.decide(REQUEST, a_fleet({"loaded": ["llama"]}), u=0.5)
        strikes = strikes.after(decision.fallback, now_s)

    assert strikes.out
