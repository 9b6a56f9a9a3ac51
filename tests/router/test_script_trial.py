import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccr.errors import ScriptError
from ccr.policies.script import compile_script
from router.script_trial import try_on_made_nodes

PROJECT = Path(__file__).parents[2]
GOOD = "def score(node, req):\n    return node.inflight\n"


def confined(code):
    """Run ``code`` in a process that has confined itself; what it printed, and how it ended."""
    program = f"import os, socket, sys\nfrom router.script_trial import confine\nconfine()\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip(), done.returncode


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        pytest.param("socket.socket()", "OSError", id="socket"),
        pytest.param("open('/etc/hostname')", "OSError", id="file"),
        pytest.param("os.pipe()", "OSError", id="pipe"),
        pytest.param("bytearray(600 * 2**20)", "MemoryError", id="memory"),
        pytest.param("print('nothing')", "", id="nothing"),
    ],
)
def test_a_confined_process_gets_no_files_and_little_memory(attempt, error):
    printed, code = confined(f"try:\n    {attempt}\nexcept Exception as e:\n    print(type(e).__name__)")

    assert (printed, code) == (error or "nothing", 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="the kernel does not count root's processes")
def test_a_confined_process_gets_no_children():
    printed, code = confined("try:\n    os.fork()\nexcept OSError as e:\n    print(type(e).__name__)")

    assert (printed, code) == ("BlockingIOError", 0)


PLANTED = [
    pytest.param("return 1 / node.qps", "node 'made-0' raised ZeroDivisionError", "one idle node", id="idle node"),
    pytest.param("return 1 / node.gpu_total_gib", "raised ZeroDivisionError", "memory is not known", id="unknown memory"),
    pytest.param("return ['a'][int(node.inflight > 60)]", "returned a str", "one idle node", id="type"),
    pytest.param("return {'3': 1}[req.version]", "raised KeyError: ''", "one idle node", id="request without version"),
    pytest.param("return [0] [int(node.id[5:])]", "'made-1' raised IndexError", "four idle nodes", id="second node"),
    pytest.param("SEEN.append(1)\n    return len(SEEN)", "differently when asked the same again", "", id="remembers"),
    pytest.param("while node.telemetry_age_s > 9e3: pass\n    return 1", "timed out", "64 nodes", id="hangs on stale nodes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason", "case"), PLANTED)
def test_a_planted_mistake_is_found_and_the_fleet_that_shows_it_named(body, reason, case):
    policy = compile_script(f"SEEN = []\ndef score(node, req):\n    {body}\n", "policy.py")

    with pytest.raises(ScriptError, match=f"{reason}(?s:.*){case}"):
        try_on_made_nodes(policy)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_hint_that_fails_for_some_size_of_batch_is_refused(size):
    policy = compile_script(GOOD + f"def batch_hint(rs):\n    return 1 / (len(rs) - {size})\n", "policy.py")

    with pytest.raises(ScriptError, match="batch_hint raised ZeroDivisionError"):
        try_on_made_nodes(policy)


def test_a_good_script_passes():
    try_on_made_nodes(compile_script(GOOD, "policy.py"))
