"""The same results for any number of processes; a run that fails is named; no process stays behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from envs.evaluation.parallel import RunFailedError, Workers
from envs.evaluation.plan import Contender, Plan
from tests.envs.evaluation import synthetic

ROOT = Path(__file__).parents[3]


def a_plan(*policies, scenarios=("calm", "rush"), seeds=5):
    contenders = tuple(Contender(name, name) for name in policies or ("base", "half"))
    return Plan(contenders, contenders[0].label, scenarios, range(seeds))


def test_results_are_in_the_order_of_the_tasks_and_the_same_for_any_number_of_processes():
    tasks = a_plan().tasks()

    with Workers(synthetic.run, 1) as alone:
        by_one = alone.all(tasks)
    with Workers(synthetic.run, 3) as together:
        by_three = together.all(tasks)

    assert by_one == by_three
    assert [(one.scenario, one.label, one.seed) for one in by_one] == [
        (task.scenario, task.contender.label, task.seed) for task in tasks
    ]


def test_a_pool_serves_again_and_again():
    """A search asks it once per generation."""
    with Workers(synthetic.run, 1) as pool:
        assert pool.all(a_plan(seeds=2).tasks()) == pool.all(a_plan(seeds=2).tasks())


def test_a_run_that_raises_is_named_with_its_reason():
    with (
        Workers(synthetic.failing, 2) as pool,
        pytest.raises(
            RunFailedError, match=r"'calm', policy 'half', seed 3: ValueError: the queue has 7 ends"
        ),
    ):
        pool.all(a_plan().tasks())

    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_named_by_the_run_it_was_at():
    with (
        Workers(synthetic.dying, 2) as pool,
        pytest.raises(
            RunFailedError, match=r"'calm', policy 'half', seed 3: the process was killed by SIGKILL"
        ),
    ):
        pool.all(a_plan().tasks())

    assert not multiprocessing.active_children()


def test_leaving_with_an_error_ends_processes_that_would_never_end():
    with pytest.raises(KeyboardInterrupt), Workers(synthetic.stuck, 2) as pool:
        interrupt_after_the_first(pool.results(a_plan(seeds=3).tasks()))

    assert not multiprocessing.active_children()


def test_linear_algebra_gets_one_thread_per_process_and_our_own_environment_stays(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    with Workers(threads, 1) as pool, pytest.raises(RunFailedError, match="threads: 1"):
        pool.all(a_plan(seeds=1).tasks())

    assert "OMP_NUM_THREADS" not in os.environ


def interrupt_after_the_first(results):
    next(results)
    raise KeyboardInterrupt


def threads(scenario, policy, seed, options):
    raise RuntimeError(f"threads: {os.environ.get('OMP_NUM_THREADS')}")


PROGRAM = """
import signal
import os, sys
from contextlib import contextmanager
from pathlib import Path
from envs.evaluation import cli
from tests.envs.evaluation.synthetic import an_engine, stuck

HERE = Path(os.environ["CCR_TEST_STARTED"])

@contextmanager
def shown(label, total, console):
    yield lambda done, state: (HERE / f"kept-{len(list(HERE.glob('kept-*')))}").touch()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it
    cli.shown = shown
    cli.evaluate.main(sys.argv[1:], obj=an_engine(stuck))
"""


def test_ctrl_c_shows_what_is_finished_and_leaves_nobody_behind(tmp_path):
    """The whole group gets the signal, as it does from a terminal."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "out.json"
    # Both policies finish seed 0; the two processes then hang in seed 1.
    command = [
        sys.executable, str(program), "--policies", "base,half", "--baseline", "base", "--scenarios", "calm",
        "--seeds", "3", "--workers", "2", "--json", str(out),
    ]  # fmt: skip

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CCR_TEST_STARTED": str(tmp_path)},
    ) as process:  # fmt: skip
        until_stuck(tmp_path, process)
        group = members(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        said, complaints = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "interrupted after 2 of 6 runs" in said
    assert '"ratio"' in out.read_text()
    assert "Traceback" not in complaints
    assert len(group) >= 3
    assert psutil.wait_procs(group, timeout=10)[1] == []


def until_stuck(directory, process):
    """Wait until two results are kept and two runs hang; each leaves a file."""
    tick = threading.Event()
    for _ in range(600):
        if len(list(directory.glob("stuck-*"))) == len(list(directory.glob("kept-*"))) == 2:
            return
        assert process.poll() is None, process.communicate()
        tick.wait(0.05)
    raise AssertionError("the runs did not start")


def members(pgid):
    """The processes of a group."""
    return [one for one in psutil.process_iter() if group_of(one.pid) == pgid]


def group_of(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
