from envs.evaluation.metrics import METRICS
from tests.envs.evaluation.synthetic import run


def test_every_figure_of_an_episode_has_its_line_and_no_line_is_left_over():
    assert list(METRICS) == list(run("calm", "base", 0, {}).metrics())
