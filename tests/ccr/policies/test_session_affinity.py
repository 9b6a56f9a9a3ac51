import numpy as np
import pytest

from ccr.policies.session_affinity import SessionAffinity
from tests.factories import a_fleet, a_node, a_request

KEYS = [f"session-{i}" for i in range(10_000)]


def homes(fleet, policy=SessionAffinity()):  # noqa: B008 - a value
    """Where each session lives, by node id."""
    return np.array([fleet.specs[policy.scores(a_request(session=key), fleet).argmax()].id for key in KEYS])


def test_a_node_that_leaves_moves_its_own_sessions_and_no_other():
    ten = a_fleet(*(a_node(f"node-{i}") for i in range(10)))
    nine = a_fleet(*(a_node(f"node-{i}") for i in range(10) if i != 3))

    before, after = homes(ten), homes(nine)

    moved = before != after
    assert (before[moved] == "node-3").all()
    assert 0 < moved.mean() <= 1.5 / 10


def test_sessions_spread_evenly():
    _, counts = np.unique(homes(a_fleet(*(a_node(f"node-{i}") for i in range(10)))), return_counts=True)

    # Six standard deviations of a binomial with p = 0.1 around the mean of 1000.
    assert np.abs(counts - 1000).max() < 180


def test_a_conversation_stays_where_it_is():
    fleet = a_fleet(*(a_node(id_) for id_ in "abcd"))

    first, later = (
        SessionAffinity().scores(a_request(model, seq=seq, session="s"), fleet)
        for model, seq in [("llama", 1), ("llama", 99)]
    )

    np.testing.assert_array_equal(first, later)


def test_single_shot_requests_keep_their_model_together():
    fleet = a_fleet(*(a_node(id_) for id_ in "abcd"))

    def home(model):
        return SessionAffinity().scores(a_request(model), fleet).argmax()

    assert len({home(f"model-{i}") for i in range(40)}) == 4
    assert home("model-1") == home("model-1")


@pytest.mark.parametrize(
    ("inflight", "gives_way"),
    [
        pytest.param(3, False, id="four requests are never too many"),
        pytest.param(11, False, id="12 of 32 on four nodes: 1.5 times the mean of 8"),
        pytest.param(13, True, id="14 of 34: over"),
    ],
)
def test_an_overloaded_node_gives_way(inflight, gives_way):
    calm = a_fleet(*(a_node(id_) for id_ in "abcd"))
    home = calm.specs[SessionAffinity().scores(a_request(session="s"), calm).argmax()].id
    others = 0 if inflight <= 3 else 20 / 3
    loaded = a_fleet(*(a_node(id_, inflight=inflight if id_ == home else others) for id_ in "abcd"))

    chosen = loaded.specs[SessionAffinity(factor=1.5).scores(a_request(session="s"), loaded).argmax()].id

    assert (chosen != home) == gives_way


def test_when_all_are_overloaded_the_least_loaded_is_best():
    fleet = a_fleet(*(a_node(id_, inflight=inflight) for id_, inflight in [("a", 9), ("b", 7), ("c", 8)]))

    scores = SessionAffinity(factor=0.1).scores(a_request(session="s"), fleet)

    assert scores.tolist() == [-10.0, -8.0, -9.0]


def test_an_overloaded_node_comes_after_every_other():
    fleet = a_fleet(a_node("a", inflight=40), *(a_node(id_) for id_ in "bcd"))

    scores = SessionAffinity().scores(a_request(session="s"), fleet)

    assert scores[0] < 0.0 <= scores[1:].min()
