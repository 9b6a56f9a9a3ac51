from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import PolicyError
from ccr.picker import BEST_OF_TWO, GREEDY, Exploring, draw
from tests.factories import DRAWS, EPSILONS, PROBABILITIES, SCORES

ALMOST_ONE = float(np.nextafter(1.0, 0.0))
EVERY_PICKER = [
    GREEDY,
    BEST_OF_TWO,
    Exploring(0.1),
    Exploring(0.0),
    Exploring(1.0),
    Exploring(0.3, BEST_OF_TWO),
]
every_picker = pytest.mark.parametrize("picker", EVERY_PICKER, ids=repr)


@every_picker
@given(scores_and_mask=SCORES)
def test_probabilities_sum_to_one_over_eligible_nodes(picker, scores_and_mask):
    scores, mask = scores_and_mask

    p = picker.probabilities(scores, mask)

    assert p.sum() == pytest.approx(1.0)
    assert (p >= 0.0).all()
    assert (p[~mask] == 0.0).all()


@every_picker
@given(scores_and_mask=SCORES)
def test_minus_infinity_means_never(picker, scores_and_mask):
    scores, mask = scores_and_mask

    p = picker.probabilities(scores, mask)

    assert (p[scores == -np.inf] == 0.0).all()


@every_picker
@given(scores_and_mask=SCORES)
def test_a_better_score_is_never_less_likely(picker, scores_and_mask):
    scores, mask = scores_and_mask

    p = picker.probabilities(scores, mask)

    ranked = p[mask][np.argsort(scores[mask])]
    assert (np.diff(ranked) >= 0.0).all()


@every_picker
@given(scores_and_mask=SCORES)
def test_what_an_excluded_node_scores_does_not_matter(picker, scores_and_mask):
    scores, mask = scores_and_mask
    nonsense = np.where(mask, scores, np.nan)

    np.testing.assert_array_equal(picker.probabilities(nonsense, mask), picker.probabilities(scores, mask))


@every_picker
@pytest.mark.parametrize(
    "scores",
    [
        pytest.param([np.nan, 1.0], id="NaN"),
        pytest.param([1.0, np.nan], id="NaN after the best"),
        pytest.param([np.inf, 1.0], id="+inf"),
        pytest.param([-np.inf, -np.inf], id="all -inf"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(picker, scores):
    with pytest.raises(PolicyError, match="no usable score: the best of the eligible nodes is"):
        picker.probabilities(np.array(scores), np.array([True, True]))


def test_equal_best_scores_share():
    p = GREEDY.probabilities(np.array([2.0, 1.0, 2.0, 3.0]), np.array([True, True, True, False]))

    assert p.tolist() == [0.5, 0.0, 0.5, 0.0]


@given(SCORES, EPSILONS)
def test_exploration_gives_every_node_its_floor_and_the_rest_to_the_inner_picker(scores_and_mask, epsilon):
    scores, mask = scores_and_mask
    allowed = mask & (scores > -np.inf)

    p = Exploring(epsilon).probabilities(scores, mask)

    expected = epsilon * allowed / allowed.sum() + (1.0 - epsilon) * GREEDY.probabilities(scores, mask)
    np.testing.assert_allclose(p, expected)
    assert (p[allowed] >= epsilon / allowed.sum() * (1.0 - 1e-12)).all()


@given(SCORES)
def test_best_of_two_is_a_contest_over_all_pairs(scores_and_mask):
    scores, mask = scores_and_mask

    p = BEST_OF_TWO.probabilities(scores, mask)

    np.testing.assert_allclose(p, contest_over_all_pairs(scores, mask))


def contest_over_all_pairs(scores, mask):
    nodes = np.flatnonzero(mask & (scores > -np.inf))
    if len(nodes) == 1:
        return (np.arange(len(scores)) == nodes[0]).astype(float)
    wins, pairs = np.zeros(len(scores)), list(combinations(nodes, 2))
    for a, b in pairs:
        if scores[a] == scores[b]:
            wins[[a, b]] += 0.5
        else:
            wins[a if scores[a] > scores[b] else b] += 1.0
    return wins / len(pairs)


@given(PROBABILITIES, DRAWS)
def test_a_draw_has_positive_probability(probabilities, u):
    assert probabilities[draw(probabilities, u)] > 0.0


@given(PROBABILITIES)
def test_the_ends_of_the_draw_have_positive_probability(probabilities):
    assert probabilities[draw(probabilities, 0.0)] > 0.0
    assert probabilities[draw(probabilities, ALMOST_ONE)] > 0.0


@given(PROBABILITIES)
def test_a_node_is_drawn_as_often_as_its_probability_says(probabilities):
    """A grid has no luck: an interval of length p holds p of its points, give or take one."""
    grid = (np.arange(1000) + 0.5) / 1000

    drawn = np.bincount([draw(probabilities, u) for u in grid], minlength=len(probabilities))

    np.testing.assert_allclose(drawn / 1000, probabilities, atol=1.001 / 1000)


@given(PROBABILITIES, st.lists(DRAWS, min_size=2, max_size=2).map(sorted))
def test_a_larger_draw_is_never_an_earlier_node(probabilities, draws):
    smaller, larger = draws

    assert draw(probabilities, smaller) <= draw(probabilities, larger)
