from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import ScriptError
from ccr.policies.script_gate import (
    ALLOWED_IMPORTS,
    REFUSED_IMPORTS,
    REFUSED_NAMES,
    check_script,
    imported_modules,
)

PAGE = Path(__file__).parents[3] / "docs" / "operator-scripts.md"
GOOD = "def score(node, req):\n    return 1.0\n"

BAD = [
    pytest.param("def score(node, req)\n    return 1\n", 1, "expected ':'", id="syntax"),
    pytest.param("x = 1\ndef score(node, req):\n  if x:\n return 1\n", 4, "unindent", id="indentation"),
    pytest.param("", 1, "no score", id="empty"),
    pytest.param("def scores(node, req):\n    return 1\n", 1, "no score", id="misspelt"),
    pytest.param("\nscore = lambda node, req: 1\n", 2, "not a function", id="lambda"),
    pytest.param("class score:\n    pass\n", 1, "not a function", id="class"),
    pytest.param("class A:\n    def score(node, req):\n        return 1\n", 2, "not a function", id="method"),
    pytest.param("def score(node):\n    return 1\n", 1, "2 argument", id="too few"),
    pytest.param("def score(node, req, fleet):\n    return 1\n", 1, "2 argument", id="too many"),
    pytest.param("def score(node, req, *, fleet):\n    return 1\n", 1, "2 argument", id="keyword only"),
    pytest.param("async def score(node, req):\n    return 1\n", 1, "async", id="async"),
    pytest.param("def score(node, req):\n    yield 1\n", 1, "generator", id="generator"),
    pytest.param("def deco(f): return f\n@deco\ndef score(node, req):\n    return 1\n", 3, "decorated", id="decorator"),
    pytest.param(GOOD + GOOD, 1, "again on line 3", id="twice"),
    pytest.param(GOOD + "def batch_hint():\n    return 1\n", 3, "1 argument", id="batch_hint arity"),
    pytest.param(GOOD + "import requests\n", 3, "blocks", id="requests"),
    pytest.param(GOOD + "import urllib.request\n", 3, "blocks", id="submodule"),
    pytest.param(GOOD + "from socket import create_connection\n", 3, "blocks", id="socket"),
    pytest.param(GOOD + "def f():\n    import time\n", 4, "replay", id="clock"),
    pytest.param(GOOD + "from random import random\n", 3, "replay", id="dice"),
    pytest.param(GOOD + "from . import helper\n", 3, "relative", id="relative import"),
    pytest.param(GOOD + "from ccr import policies\n", 3, "ccr.policies", id="our insides"),
    pytest.param(GOOD + "import numpy\n", 3, "may import ccr", id="unknown module"),
    pytest.param(
        "def score(node, req):\n    try:\n        return 1\n    except:\n        return 0\n", 4, "bare except",
        id="bare except",
    ),
    pytest.param(
        "def score(node, req):\n    try:\n        return 1\n    except (ValueError, BaseException):\n        return 0\n",
        4, "BaseException", id="BaseException",
    ),
    pytest.param(
        "def score(node, req):\n    try:\n        x = 1\n    finally:\n        return 0\n", 5, "return in finally",
        id="return in finally",
    ),
    pytest.param(
        "def score(node, req):\n    for n in range(9):\n        try:\n            x = 1\n        finally:\n            continue\n",
        6, "continue in finally", id="continue in finally",
    ),
    pytest.param("def score(node, req):\n    while True:\n        x = 1\n", 2, "never ends", id="while True"),
    pytest.param(
        "def score(node, req):\n    while 1:\n        for n in ():\n            break\n", 2, "never ends",
        id="break of another loop",
    ),
    pytest.param("calls = 0\ndef score(node, req):\n    global calls\n    return 1\n", 3, "remembered", id="global"),
    pytest.param("def score(node, req):\n    return node.__class__\n", 2, "__class__", id="dunder"),
    pytest.param("def score(node, req):\n    return node._fleet\n", 2, "_fleet", id="private"),
    pytest.param("def score(node, req):\n    node.qps = 0\n    return 1\n", 2, "read-only", id="assignment"),
    pytest.param("def score(node, req):\n    node.labels['a'] += 'b'\n    return 1\n", 2, "read-only", id="item"),
    pytest.param("def score(node, req):\n    del req.header\n    return 1\n", 2, "read-only", id="deletion"),
    pytest.param("def score(node, req):\n    with x: return 1\n", 2, "with is refused", id="with"),
    pytest.param(GOOD + "class A:\n    def __del__(self): pass\n", 4, "__del__", id="finaliser"),
    pytest.param("x = '\0'\n" + GOOD, 1, "", id="null byte"),
    pytest.param("x = " + "(" * 5000 + ")" * 5000 + "\n" + GOOD, 1, "", id="too deep"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "line", "reason"), BAD)
def test_a_bad_script_is_refused_with_file_line_and_reason(source, line, reason):
    with pytest.raises(ScriptError) as refusal:
        check_script(source, "policy.py")

    first = str(refusal.value).splitlines()[0]
    assert first.startswith(f"policy.py:{line}: ")
    assert reason in first


@pytest.mark.parametrize("name", sorted(REFUSED_NAMES))
def test_every_refused_name_is_refused(name):
    with pytest.raises(ScriptError, match=f"policy.py:2: {name} is refused"):
        check_script(f"def score(node, req):\n    return {name}\n", "policy.py")


@pytest.mark.parametrize("module", sorted(REFUSED_IMPORTS))
def test_every_refused_module_says_why(module):
    with pytest.raises(ScriptError, match=f"policy.py:1: import of {module} is refused: "):
        check_script(f"import {module}\n{GOOD}", "policy.py")


@pytest.mark.parametrize("module", sorted(ALLOWED_IMPORTS))
def test_every_allowed_module_is_allowed(module):
    tree = check_script(f"import {module}\n{GOOD}", "policy.py")

    assert imported_modules(tree) == [module]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("def score(node, req, weight=2.0):\n    return weight\n", id="defaults"),
        pytest.param("def score(*args):\n    return 1\n", id="any arguments"),
        pytest.param(
            "def score(node, req):\n    while True:\n        if node.id:\n            return 1\n",
            id="a loop that returns",
        ),
        pytest.param(
            "def score(node, req):\n    while True:\n        break\n    return 1\n", id="a loop that is left"
        ),
        pytest.param(
            "def score(node, req):\n    try:\n        return 1\n    except Exception:\n        return 0\n",
            id="except Exception",
        ),
        pytest.param(
            "def score(node, req):\n    try:\n        x = 1\n    finally:\n        for _ in ():\n            break\n    return x\n",
            id="a loop within finally",
        ),
        pytest.param(
            GOOD + "class A:\n    def __init__(self):\n        self._x = 1\n", id="own private attribute"
        ),
        pytest.param(GOOD + "if __name__ == '__main__':\n    score(1, 2)\n", id="main"),
    ],
)
def test_what_is_harmless_is_let_through(source):
    assert check_script(source, "policy.py").body


def test_all_findings_are_reported_at_once_in_the_order_of_lines():
    source = "import os\ndef score(node):\n    return eval('1')\n"

    with pytest.raises(ScriptError) as refusal:
        check_script(source, "policy.py")

    places = [line.split(": ")[0] for line in str(refusal.value).splitlines()]
    assert places == ["policy.py:1", "policy.py:2", "policy.py:3"]


@given(st.text(max_size=200))
def test_any_text_is_either_parsed_or_refused(text):
    """A broken file must never take down the reload with anything but a refusal."""
    try:
        check_script(text, "policy.py")
    except ScriptError as refusal:
        assert str(refusal).startswith("policy.py:")  # noqa: PT017 - passing the gate by luck would be fine


@pytest.mark.parametrize("word", sorted(ALLOWED_IMPORTS | REFUSED_NAMES.keys()))
def test_the_operators_page_names_what_is_allowed_and_what_is_refused(word):
    assert f"`{word}`" in PAGE.read_text(encoding="utf-8")


def test_the_script_on_the_operators_page_passes():
    page = PAGE.read_text(encoding="utf-8")

    check_script(page.split("```python\n")[1].split("```")[0], "policy.py")
