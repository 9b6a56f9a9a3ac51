import io
import os
from pathlib import Path

import numba
import pytest

from envs.ahead import compile_ahead, forget_old_versions


@pytest.mark.timeout(600)  # where nothing is compiled yet
def test_what_is_compiled_is_not_compiled_again():
    compile_ahead(io.StringIO())
    assert (Path(numba.config.CACHE_DIR) / "complete").exists()
    said = io.StringIO()

    compile_ahead(said)

    assert said.getvalue() == ""


def test_the_latest_versions_stay(tmp_path):
    for age, name in enumerate(["current", "last", "before", "older", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index").write_text("x")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))

    forget_old_versions(tmp_path / "current")

    assert sorted(place.name for place in tmp_path.iterdir()) == ["before", "current", "last"]
