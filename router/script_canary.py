"""Load an operator script: read its file with suspicion, try it in a subprocess, and only then compile it here."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np

from ccr.errors import ScriptError
from ccr.policies.script import ScriptPolicy, compile_script
from ccr.policies.script_gate import check_script
from router.script_trial import CPU_LIMIT_S, Job

MAX_SCRIPT_BYTES = 256 * 1024
# A good script is through in 0.15-0.2 s, most of it the start of Python and numpy; this is for a loaded machine.
WALL_LIMIT_S = 5.0

# -I and -S: no environment, no site-packages hooks; only this project and numpy are put on the path.
_PYTHON = ("-I", "-S", "-B", "-c")
_BOOT = """
import json, sys
job = json.load(sys.stdin)
sys.path += job["path"]
from router.script_trial import main
main(job)
"""
_FOLDERS = sorted({str(Path(__file__).parents[1]), str(Path(np.__file__).parents[1])})


def load_script(path: Path) -> ScriptPolicy:
    """The policy that runs the script at ``path``, proved on made nodes.

    Raises:
        ScriptError: if the file is not the operator's, or the script is refused by the gate or the canary.
    """
    return compile_script(_proven(path), str(path))


async def load_script_async(path: Path) -> ScriptPolicy:
    """Like :func:`load_script`; the event loop serves others meanwhile."""
    return compile_script(await asyncio.to_thread(_proven, path), str(path))


def read_script(path: Path) -> str:
    """The text of a script that only root or this process's user can have written.

    Raises:
        ScriptError: if it is missing, a link out of its folder, not a plain file, writable by others,
            of another owner, too large, or not UTF-8.
    """
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(path.parent.resolve()):
            raise ScriptError(f"{path}: links to {real}, outside its folder; put the file itself there")
        return _text(_read(path, real), path)
    except OSError as error:
        raise ScriptError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def try_out(source: str, filename: str, wall_limit_s: float = WALL_LIMIT_S) -> None:
    """Run a script on made nodes in a subprocess with limits on time, memory, files and children.

    Args:
        source: the script's text.
        filename: for messages.
        wall_limit_s: for the whole trial, the start of Python included.

    Raises:
        ScriptError: if the script fails there.
    """
    job = Job(path=_FOLDERS, source=source, filename=filename)
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, a constant program; the script goes in by pipe
            [sys.executable, *_PYTHON, _BOOT], input=json.dumps(job).encode(), capture_output=True,
            timeout=wall_limit_s, check=False, cwd="/", env=_environment(), start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ScriptError(
            f"{filename}: the canary was not done after {wall_limit_s:g} s and was stopped; "
            "remove what blocks, or try again when the machine is less busy"
        ) from error
    problem = _verdict(done)
    if problem:
        raise ScriptError(problem if problem.startswith(filename) else f"{filename}: {problem}")


def _proven(path: Path) -> str:
    source = read_script(path)
    check_script(source, str(path))
    try_out(source, str(path))
    return source


def _read(path: Path, real: Path) -> bytes:
    """The bytes of a file that was examined after it was opened, so it cannot be exchanged in between."""
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ScriptError(f"{path}: is not a plain file; give the path of the script")
        if found.st_uid not in {0, os.geteuid()}:
            raise ScriptError(
                f"{path}: belongs to user {found.st_uid}; chown it to root or to the router's user"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ScriptError(
                f"{path}: others may write to it (mode {found.st_mode & 0o777:o}); chmod go-w it"
            )
        content = file.read(MAX_SCRIPT_BYTES + 1)
    if len(content) > MAX_SCRIPT_BYTES:
        raise ScriptError(
            f"{path}: is larger than {MAX_SCRIPT_BYTES // 1024} KiB; a script is a few functions"
        )
    return content


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ScriptError(f"{path}:{line}: is not UTF-8; save the file as UTF-8") from error


def _environment() -> dict[str, str]:
    """Nothing of ours, secrets least of all; one thread is enough, and numpy starts faster with it."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"OPENBLAS_NUM_THREADS": "1", **kept}


def _verdict(done: subprocess.CompletedProcess[bytes]) -> str:
    """What is wrong with the script; empty if nothing is."""
    if done.returncode == -signal.SIGXCPU:
        return (
            f"used more than {CPU_LIMIT_S} s of processor time in one call that cannot be interrupted, "
            "such as sum() over a huge range; bound it"
        )
    if done.returncode < 0:
        return f"the canary was ended by {signal.Signals(-done.returncode).name}; the script crashes Python"
    try:
        return str(json.loads(done.stdout)["problem"])
    except (ValueError, KeyError, TypeError):
        last = done.stderr.decode(errors="replace").strip().rsplit("\n", maxsplit=1)[-1]
        return f"the canary failed without a verdict, exit code {done.returncode} ({last[:300]})"
