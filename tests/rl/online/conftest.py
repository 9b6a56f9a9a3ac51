import pytest

from tests.rl.online.fleet import Bench


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    for learner in bench.learners:
        learner.close()
