import importlib
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import click
import pytest

from ccr.cli import COMMANDS, cli, main, print_table
from ccr.errors import CCRError
from ccr.version import __version__


def ccr(monkeypatch, *arguments):
    """Exit code, standard output, standard error of ``ccr arguments``."""
    monkeypatch.setattr(sys, "argv", ["ccr", *arguments])
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def failing(monkeypatch):
    """Makes ``ccr status`` a command that raises."""

    def failing(error):
        @click.command()
        def status():
            raise error

        monkeypatch.setattr(importlib.import_module("router.cli"), "status", status)

    return failing


def test_help_imports_no_command():
    """It answers at once, and works where the parts of one command are not installed."""
    program = (
        "import sys; from ccr.cli import main; sys.argv = ['ccr', '--help']; main(); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    loaded = set(done.stderr.split())

    assert all(name.split()[0] in done.stdout for name in COMMANDS)
    assert not loaded & {
        "router",
        "envs",
        "rl",
        "numpy",
        "pydantic",
        "aiohttp",
        "fastapi",
        "rich",
        "ccr.settings",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_entry_of_the_table_is_a_command(name):
    where, text = COMMANDS[name]
    command = cli
    for word in name.split():
        command = command.get_command(click.Context(cli), word)

    assert isinstance(command, click.Command)
    assert command.name == name.split()[-1]
    assert where.partition(":")[0].split(".")[0] in {"ccr", "router", "envs", "registry_sync", "rl"}
    assert text.endswith(".")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps(name, monkeypatch):
    code, out, _ = ccr(monkeypatch, *name.split(), "--help")

    assert code == 0
    assert f" {name} " in out.splitlines()[0]
    assert "--help" in out


def test_the_version_is_told(monkeypatch):
    assert ccr(monkeypatch, "--version") == (0, f"ccr-autopilot, version {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["nope"], ["status", "--nope"], ["drain"], ["policy", "nope"]])
def test_a_wrong_call_explains_itself_with_exit_code_2(arguments, monkeypatch):
    code, out, err = ccr(monkeypatch, *arguments)

    assert (code, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


def test_an_error_of_ours_is_its_message_and_exit_code_1(failing, monkeypatch):
    failing(CCRError("the reason"))

    assert ccr(monkeypatch, "status") == (1, "", "error: the reason\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupted_command_ends_like_one(error, failing, monkeypatch):
    failing(error)

    code, out, err = ccr(monkeypatch, "status")

    assert (code, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 1), (130, 130)])
def test_a_command_that_ends_early_says_how(status, code, failing, monkeypatch):
    """A comparison that was interrupted, a gate that was not passed."""
    failing(click.exceptions.Exit(status))

    assert ccr(monkeypatch, "status") == (code, "", "")


def test_an_error_that_is_not_ours_is_not_hidden(failing, monkeypatch):
    failing(ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        ccr(monkeypatch, "status")


ROW = {
    "id": "a",
    "latency_s": 0.0123,
    "qps": 12.34,
    "bytes": 12345.6,
    "tags": ("b", "a"),
    "why": None,
    "n": 7,
}


def test_json_gets_every_key(capsys):
    print_table([ROW], ["id"], as_json=True)

    assert json.loads(capsys.readouterr().out) == [{**ROW, "tags": ["b", "a"]}]


def test_people_get_the_columns_asked_for(capsys):
    print_table([ROW], ["id", "latency_s", "qps", "bytes", "tags", "why", "n"], as_json=False, title="Nodes")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]

    assert lines[0] == ["Nodes"]
    assert lines[1] == ["id", "latency", "s", "qps", "bytes", "tags", "why", "n"]
    assert lines[-1] == ["a", "0.0123", "12.3", "12,346", "a", "b", "-", "7"]


@pytest.mark.parametrize(
    ("number", "cell"),
    [(0.0, "0"), (0.973, "0.973"), (9.999, "10"), (10.04, "10.0"), (999.94, "999.9"), (1e6, "1,000,000")],
)
def test_small_numbers_keep_their_digits_and_large_ones_do_not(number, cell, capsys):
    print_table([{"x": number}], ["x"], as_json=False)

    assert capsys.readouterr().out.split()[-1] == cell


def test_a_table_into_a_pipe_is_not_cut(capsys):
    print_table([{"a": "x" * 90, "b": "y" * 90}], ["a", "b"], as_json=False)

    assert "x" * 90 + "  " in (out := capsys.readouterr().out)
    assert "y" * 90 in out


def test_no_rows_make_an_empty_table(capsys):
    print_table([], ["id"], as_json=False)
    print_table([], ["id"], as_json=True)

    assert capsys.readouterr().out.rstrip().endswith("[]")
