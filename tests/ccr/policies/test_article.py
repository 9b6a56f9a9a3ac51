import pytest
from hypothesis import given

from ccr.policies.article import Article
from tests.factories import FLEETS, a_fleet, a_node, a_request


def as_published(node, model):
    """The founding article's ``score``, line by line."""
    score = 0.0
    if model in node.loaded_models:
        score += 100
    score += max(0, node.gpu_free_gib - 2) * 5
    score += (100 - node.qps) * 0.5
    return score


@given(FLEETS)
def test_the_score_is_the_published_one(fleet):
    scores = Article().scores(a_request("llama"), fleet)

    assert scores.tolist() == pytest.approx([as_published(node, "llama") for node in fleet.nodes])


@pytest.mark.parametrize(
    ("node", "points"),
    [
        pytest.param(a_node(gpu_free_gib=0.0, qps=100.0), 0.0, id="full, busy, cold"),
        pytest.param(a_node(gpu_free_gib=0.0, qps=100.0, models="llama"), 100.0, id="has the weights"),
        pytest.param(a_node(gpu_free_gib=2.0, qps=100.0), 0.0, id="no more free than the buffer"),
        pytest.param(a_node(gpu_free_gib=12.0, qps=100.0), 50.0, id="10 GiB above the buffer"),
        pytest.param(a_node(gpu_free_gib=0.0, qps=0.0), 50.0, id="idle"),
        pytest.param(a_node(gpu_free_gib=0.0, qps=140.0), -20.0, id="busier than the article thought of"),
    ],
)
def test_points(node, points):
    assert Article().scores(a_request("llama"), a_fleet(node)).tolist() == [points]


def test_the_weights_are_settings():
    policy = Article(affinity=7.0, per_free_gib=2.0, buffer_gib=4.0, per_qps=0.1)
    fleet = a_fleet(a_node(models="llama", gpu_free_gib=9.0, qps=20.0))

    assert policy.scores(a_request("llama"), fleet).tolist() == pytest.approx([7.0 + 2.0 * 5.0 + 0.1 * 80.0])
