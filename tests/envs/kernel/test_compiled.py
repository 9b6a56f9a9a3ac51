"""Compiled code is kept where only its user writes, and never outlives the sources it was made from."""

import os
from pathlib import Path

import numba
import pytest

import ccr.timing
import envs.lane
from ccr.errors import ConfigError
from envs.kernel import compiled, queues


def test_the_cache_lies_under_a_digest_of_all_sources():
    assert Path(numba.config.CACHE_DIR).name == compiled.digest(compiled.sources())
    made_from = {Path(module.__file__) for module in (ccr.timing, envs.lane, queues)}
    assert made_from <= set(compiled.sources())


def test_a_change_of_any_source_changes_the_digest(tmp_path):
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("a = 1")
    other.write_text("b = 1")
    before = compiled.digest([one, other])

    other.write_text("b = 2")

    assert compiled.digest([one, other]) != before


def test_the_cache_goes_where_the_environment_says(tmp_path):
    named = compiled.cache_root(
        {"NUMBA_CACHE_DIR": str(tmp_path / "n"), "XDG_CACHE_HOME": str(tmp_path / "x")}
    )
    home = compiled.cache_root({"XDG_CACHE_HOME": str(tmp_path / "x")})

    assert named == tmp_path / "n"
    assert home == tmp_path / "x" / "ccr-autopilot" / "numba"


def test_a_home_that_cannot_be_written_falls_back_to_a_private_temporary_directory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    root = compiled.cache_root({"XDG_CACHE_HOME": str(tmp_path / "file")})

    assert root.parent == tmp_path / "tmp" / f"ccr-autopilot-{os.getuid()}"
    assert root.parent.stat().st_mode & 0o077 == 0


def test_a_directory_others_write_to_is_refused(tmp_path, monkeypatch):
    """Compiled code is executed: whoever writes there runs code as this user."""
    shared = tmp_path / f"ccr-autopilot-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(ConfigError, match="NUMBA_CACHE_DIR"):
        compiled.cache_root({"XDG_CACHE_HOME": str(tmp_path / "file")})
