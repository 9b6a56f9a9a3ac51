from collections import Counter

import pytest

from ccr.engine import decide
from ccr.guard import BoundedLoad
from ccr.policies.round_robin import RoundRobin
from tests.factories import a_fleet, a_node, a_request


def served(seq, *nodes):
    return decide(a_request(seq=seq), a_fleet(*nodes), RoundRobin(), BoundedLoad(), u=0.5).node_id


def test_each_node_has_its_turn():
    nodes = [a_node(id_) for id_ in "abc"]

    assert "".join(served(seq, *nodes) for seq in range(7)) == "abcabca"


def test_the_turn_of_a_node_that_is_out_goes_to_the_next():
    nodes = [a_node("a"), a_node("b", available=False), a_node("c")]

    assert "".join(served(seq, *nodes) for seq in range(6)) == "accacc"


@pytest.mark.parametrize("n", [1, 2, 7])
def test_turns_are_shared_evenly_over_a_round(n):
    nodes = [a_node(f"node-{i}") for i in range(n)]

    turns = Counter(served(seq, *nodes) for seq in range(1000 * n, 1005 * n))

    assert set(turns.values()) == {5}


def test_scores_count_how_many_turns_a_node_has_to_wait():
    fleet = a_fleet(*(a_node(id_) for id_ in "abc"))

    assert RoundRobin().scores(a_request(seq=1), fleet).tolist() == [-2.0, 0.0, -1.0]
