"""Small files in each format, made by the tests that read them."""

import pytest

from envs.traces.convert import import_trace
from envs.traces.files import rows_of
from envs.traces.reader import Wishes
from envs.traces.source import Source


@pytest.fixture
def file(tmp_path):
    """Writes a file, from text or bytes."""

    def write(content, name="source.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def imported(tmp_path):
    """Imports a file: ``(header, rows)`` of what came of it."""

    def run(form, path, *, skip_bad=False, **wishes):
        out = tmp_path / "out.jsonl"
        header = import_trace(form, path, out, Wishes(**wishes), skip_bad=skip_bad)
        return header, list(rows_of(Source(out)))

    return run
