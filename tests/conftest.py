"""What every test gets: how hard hypothesis looks, and a real Redis on request."""

import os

import pytest
import structlog
from hypothesis import settings

from router.demo.redis_server import RedisServer

# Shared machines stall now and then; a deadline would make that look like a bug.
settings.register_profile("dev", max_examples=25, stateful_step_count=30, deadline=None)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile("prove", settings.get_profile("dev"), max_examples=500, stateful_step_count=60)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if "CI" in os.environ else "dev"))


@pytest.fixture(autouse=True)
def _logging_as_before():
    """Commands that run in the tests' process set up logging for it: what the next test says must be heard."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def redis_server():
    """A real Redis of the test's own, with an append-only file; it may kill, stop and start it."""
    with RedisServer() as server:
        yield server
