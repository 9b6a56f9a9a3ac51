"""Processes that play days end with whoever started them, however that ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from rl.days import Cores

ROOT = Path(__file__).parents[2]

PROGRAM = """
import signal
import sys
from pathlib import Path
import rl.cli
from tests.rl.test_days import stuck

def train(plan, directory, cores, progress):
    list(cores.map(stuck, [directory / "0", directory / "1"]))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it
    rl.cli.train = train
    rl.cli.simulator = lambda: None  # nothing is simulated
    rl.cli.command.main(sys.argv[1:])
"""


def stuck(mark):
    """A task that never ends; leaves a file that says it began."""
    mark.write_text(str(os.getpid()))
    threading.Event().wait(600)


def twice(number):
    return 2 * number


def broken(number):
    raise ValueError(number)


def test_results_come_in_the_order_of_the_tasks():
    with Cores(2) as cores:
        assert list(cores.map(twice, range(5))) == [0, 2, 4, 6, 8]


def test_an_error_ends_the_processes():
    with pytest.raises(ValueError, match="3"), Cores(1) as cores:
        list(cores.map(broken, [3]))

    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 130, id="asked to end"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed"),
    ],
)
def test_training_that_is_ended_leaves_no_process_behind(tmp_path, number, status):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), "--dir", str(tmp_path), "--out", str(tmp_path / "p.npz"), "--workers", "2",
               "--no-registry"]  # fmt: skip

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        until_begun([tmp_path / "0", tmp_path / "1"], process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        said, complaints = process.communicate(timeout=30)

    assert process.returncode == status
    assert "Traceback" not in complaints
    assert ("the same command goes on" in said) == (status == 130)
    assert len(family) >= 3
    assert psutil.wait_procs(family, timeout=10)[1] == []


def until_begun(marks, process):
    """Wait until every task has left its file."""
    tick = threading.Event()
    for _ in range(600):
        if all(mark.exists() and mark.read_text() for mark in marks):
            return
        assert process.poll() is None, process.communicate()
        tick.wait(0.05)
    raise AssertionError("the tasks did not begin")
