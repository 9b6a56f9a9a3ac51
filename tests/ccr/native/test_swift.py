"""The compiled arithmetic is the definition's: the same bits up to `log`, `exp` and the order of the network's sums."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import book as b
from ccr import columns, cost, native
from ccr import look as k
from ccr.accounts import Compiled, Plain
from ccr.features import node_features, request_features
from ccr.look import Look
from ccr.native import swift
from ccr.policies.learned import _TABLE as TABLE
from ccr.policies.learned import Learned
from ccr.policies.network import HIDDEN, Network, blank, logits
from ccr.types import COLUMNS
from tests.looks import LOOKS, MODELS, NODES, TOKENS, a_book, columns_of

pytestmark = pytest.mark.skipif(
    not native.IS_NATIVE and "CCR_CI" not in os.environ,
    reason="nothing is compiled here: `make setup` needs a C compiler",
)

THETAS = st.lists(st.floats(0.0, 30.0), min_size=8, max_size=8).map(np.array)
EVENT = st.tuples(
    st.sampled_from(["place", "place", "place", "speak", "go", "learn", "report", "ask", "look"]),
    st.integers(0, MODELS - 1),
    st.integers(0, NODES - 1),
    TOKENS,
    TOKENS,
    st.floats(0.0, 3.0),
    st.integers(0, 1000),
)


def a_network(seed):
    rng = np.random.default_rng(seed)
    start = blank(rng.uniform(0.1, 5.0, 8), seed)
    noisy = {
        name: getattr(start, name) + rng.normal(0.0, 0.3, getattr(start, name).shape)
        for name in Network._fields
        if name not in {"theta", "scalars"}
    }
    return start._replace(scalars=rng.uniform(0.5, 9.0, 4), **noisy)


def live(accounts, book, events):
    """What a life of events returned; the book is left as it made it."""
    flights, told, now_s = [], [], 0.0
    for what, model, node, prompt, output, later_s, pick in events:
        now_s += later_s
        if what == "place":
            flights.append(
                [accounts.place(model, node, prompt, output, min(output, prompt - 1.0), 0.0, now_s), False]
            )
            told.append(flights[-1][0])
        elif what == "report":
            there = np.array([pick % (m + 2) == 0 for m in range(MODELS)])
            b.report(book, node, there, ~there)
            b.read(book, node, float(pick % 9))
        elif what == "ask":
            accounts.asked_for(model)
        elif what == "look":
            columns = columns_of(book, running=float(pick % 7), waiting=float(pick % 3))
            session_node = pick % (NODES + 1) - 1
            told.append(
                accounts.look_at(columns, model, prompt, output, session_node, 50.0, 0.5, now_s, False)
            )
        elif flights:
            flight = flights[pick % len(flights)]
            if what == "speak" and not flight[1]:
                accounts.first_token(flight[0], now_s)
                flight[1] = True
            else:
                flights.remove(flight)
                accounts.leave(flight[0], flight[1], now_s)
                if what == "learn":
                    accounts.learn(flight[0], 0.3, 0.3 + later_s, output, now_s, False)
    return told


def test_rows_stand_where_python_has_them():
    places = {
        "load": [(name, getattr(b, name)) for name in swift.ROWS["load"].split()],
        "costs": [(name, getattr(b, name)) for name in swift.ROWS["costs"].split()],
        "pairs": [(name, getattr(k, name)) for name in swift.ROWS["pairs"].split()],
        "asked": [(name, getattr(k, name)) for name in swift.ROWS["asked"].split()],
        "terms": [(name, getattr(cost, name)) for name in swift.ROWS["terms"].split()],
        "columns": [(name, list(COLUMNS).index(name.lower())) for name in swift.ROWS["columns"].split()],
        "seen": [(name, getattr(columns, name)) for name in swift.ROWS["seen"].split()],
    }

    assert places.keys() == swift.ROWS.keys()
    for rows in places.values():
        assert [place for _, place in rows] == list(range(len(rows)))
    assert [len(places[name]) for name in ("load", "pairs", "asked", "terms", "columns", "seen")] == [
        len(table) for table in (b.LOAD, k.PAIRS, k.ASKED, cost.TERMS, COLUMNS, columns.SEEN)
    ]


@given(st.lists(EVENT, max_size=40))
def test_any_life_of_a_book_is_the_same(events):
    ours, theirs = a_book(), a_book()

    told, wanted = live(Compiled(ours), ours, events), live(Plain(theirs), theirs, events)

    for name, array, by_definition in zip(b.Book._fields, ours, theirs, strict=True):
        np.testing.assert_allclose(array, by_definition, rtol=1e-13, atol=0.0, err_msg=name)
    for one, other in zip(told, wanted, strict=True):
        if isinstance(one, Look):
            exact = [row for row in range(len(b.LOAD)) if row != b.DONE_PER_S]
            np.testing.assert_array_equal(one.columns, other.columns)
            np.testing.assert_array_equal(one.load[exact], other.load[exact])
            np.testing.assert_allclose(one.load, other.load, rtol=1e-13)
            np.testing.assert_array_equal(one.pairs, other.pairs)
            np.testing.assert_array_equal(one.asked, other.asked)
        else:
            assert one == other


def test_a_look_belongs_to_the_decision():
    """Its record is written later, when book and columns have gone on."""
    book = a_book()
    accounts, at_nodes = Compiled(book), columns_of(book, running=1.0)
    seen = accounts.look_at(at_nodes, 0, 100.0, 20.0, -1, 0.0, 1.0, 0.0, False)
    before = [array.copy() for array in seen]

    at_nodes[:] = 7.0
    accounts.place(0, 0, 100.0, 20.0, 0.0, 0.0, 1.0)
    accounts.look_at(at_nodes, 1, 900.0, 20.0, 2, 50.0, 1.0, 2.0, False)

    for array, as_it_was in zip(seen, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


MOMENTS = st.one_of(st.floats(0.0, 100.0), st.just(-np.inf))
LAST_SEEN = st.tuples(
    st.floats(0.0, 50.0), MOMENTS, st.one_of(st.just(0.0), st.floats(0.01, 30.0)), st.floats(0.0, 100.0), MOMENTS,
    st.one_of(st.just(np.nan), st.floats(0.0, 80.0)), st.floats(0.0, 64.0), st.floats(0.0, 64.0), st.floats(0.0, 1.0),
    st.one_of(st.just(-1e18), st.floats(0.0, 100.0)),
)  # fmt: skip


@given(st.lists(LAST_SEEN, max_size=12), st.floats(0.0, 200.0), st.sampled_from([0.0, 30.0]))
def test_columns_age_as_the_definition_says(nodes, now_s, slow_start_s):
    seen = np.array(nodes, dtype=np.float64).reshape(-1, len(columns.SEEN)).T.copy()
    out, wanted = (np.full((len(COLUMNS), len(nodes)), 3.0) for _ in range(2))
    rules = (seen, 2.0, 5.0, 10.0, slow_start_s, now_s)

    mean_s, wanted_s = swift.refresh(*rules, out), columns.refresh(*rules, wanted)

    assert mean_s == wanted_s
    np.testing.assert_allclose(out, wanted, rtol=1e-13)


@given(LOOKS, THETAS)
def test_costs_are_the_definitions(seen, theta):
    out = np.empty(NODES)

    swift.costs(seen, theta, out)

    np.testing.assert_array_equal(out, cost.total(cost.terms(seen), theta))


@given(LOOKS, st.integers(0, 10_000), st.lists(st.booleans(), min_size=NODES, max_size=NODES).filter(any))
def test_logits_are_the_definitions(seen, seed, may):
    network, mask = a_network(seed), np.array(may)
    out = np.empty(NODES + 2)

    swift.Network(*network, *TABLE).logits(seen, mask, out)

    wanted = logits(node_features(seen), request_features(seen), mask, network)
    np.testing.assert_allclose(out, wanted, rtol=1e-9, atol=1e-9)


@given(LOOKS)
def test_equal_nodes_score_alike(seen):
    """Ties are shared, so the place of a node must not decide."""
    alike = Look(*(np.repeat(array[:, :1], 11, axis=1).copy() for array in seen[:3]), seen.asked)
    out = np.empty(13)

    swift.Network(*a_network(1), *TABLE).logits(alike, np.ones(11, dtype=bool), out)

    assert len(set(out[:11].tolist())) == 1


def test_fleets_of_any_size_one_after_the_other():
    compiled = swift.Network(*a_network(3), *TABLE)
    for n in (1, 300, 2, 64):
        book = a_book(nodes=n)
        seen = Plain(book).look_at(columns_of(book), 0, 100.0, 20.0, -1, 0.0, 1.0, 0.0, False)
        out, mask = np.empty(n + 2), np.ones(n, dtype=bool)

        compiled.logits(seen, mask, out)

        wanted = logits(node_features(seen), request_features(seen), mask, a_network(3))
        np.testing.assert_allclose(out, wanted, rtol=1e-9, atol=1e-9)


A_PLACED = Plain(a_book()).place(0, 0, 100.0, 20.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        pytest.param(lambda book: book.place(MODELS, 0, 1.0, 1.0, 0.0, 0.0, 0.0), IndexError, id="no such model"),
        pytest.param(lambda book: book.place(0, -1, 1.0, 1.0, 0.0, 0.0, 0.0), IndexError, id="no such node"),
        pytest.param(lambda book: book.place(0, 0), TypeError, id="too few arguments"),
        pytest.param(lambda book: book.place(0, 0, "1", 1.0, 0.0, 0.0, 0.0), TypeError, id="no number"),
        pytest.param(lambda book: book.leave((0, 0), False, 0.0), TypeError, id="no placed"),
        pytest.param(lambda book: book.leave(A_PLACED._replace(node=NODES), False, 0.0), IndexError, id="node gone"),
        pytest.param(lambda book: book.asked_for("a"), TypeError, id="a name for a row"),
        pytest.param(
            lambda book: book.look(np.zeros(3), 0, 1.0, 1.0, -1, 0.0, 1.0, 0.0, np.zeros(3)), ValueError,
            id="columns of another fleet",
        ),
        pytest.param(
            lambda book: book.look(columns_of(a_book()), 0, 1.0, 1.0, -1, 0.0, 1.0, 0.0, np.zeros(3)), ValueError,
            id="no room",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, error):
    arrays = a_book()
    before = [array.copy() for array in arrays]

    with pytest.raises(error):
        call(swift.Book(*arrays))

    for array, as_it_was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


def test_arrays_of_another_shape_or_type_are_refused():
    book, network = a_book(), a_network(0)

    with pytest.raises(ValueError, match="load: expected 64 items of type d"):
        swift.Book(*book._replace(load=book.load[:3]))
    with pytest.raises(ValueError, match="inflight"):
        swift.Book(*book._replace(inflight=book.inflight.astype(np.float64)))
    with pytest.raises(TypeError, match="23 arguments"):
        swift.Book(*book[:5])
    with pytest.raises(ValueError, match=r"expected \d+ items"):
        swift.Network(*network._replace(node=np.zeros((2, HIDDEN))), *TABLE)
    with pytest.raises(ValueError, match="reads a row that does not exist"):
        swift.Network(*network, np.full_like(TABLE[0], 10_000), *TABLE[1:])


def test_what_was_made_without_arrays_or_twice_is_an_error_and_no_crash():
    book = swift.Book(*a_book())

    with pytest.raises(RuntimeError, match="held already"):
        book.__init__(*a_book())
    with pytest.raises(RuntimeError, match="without its arrays"):
        swift.Network.__new__(swift.Network).logits(None, None, None)
    with pytest.raises(RuntimeError, match="without its arrays"):
        swift.Book.__new__(swift.Book).look(*[None] * 9)
    with pytest.raises(IndexError):
        swift.Book.__new__(swift.Book).place(0, 0, 1.0, 1.0, 0.0, 0.0, 0.0)


def test_the_arrays_outlive_whoever_made_them():
    book = a_book()
    compiled = swift.Book(*book)
    del book

    for _ in range(100):
        np.zeros(10_000)
        compiled.place(0, 0, 100.0, 20.0, 0.0, 0.0, 0.0)


def test_a_learned_policy_travels_between_processes():
    import pickle

    sent = pickle.loads(pickle.dumps(Learned(a_network(5), "v5")))

    assert sent.version == "v5"
    np.testing.assert_array_equal(sent.network.node, a_network(5).node)


_WHICH = """
from ccr.accounts import accounts_of
from ccr.native import IS_NATIVE
from tests.looks import a_book

print(IS_NATIVE, type(accounts_of(a_book())).__name__)
"""


def test_without_it_the_definition_runs():
    told = subprocess.run(
        [sys.executable, "-c", _WHICH],
        env={"CCR_NATIVE": "0", "PYTHONPATH": "."}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert told.stdout.split() == ["False", "Plain"]
