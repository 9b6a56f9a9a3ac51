"""Books with made-up prices, and looks at them, for tests of what reads them."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ccr import book as b
from ccr import look as k
from ccr.book import Book, Placed
from ccr.look import Look, look_at
from ccr.types import COLUMNS

MODELS, NODES = 3, 4
TOKENS = st.integers(1, 4000).map(float)


def a_book(models: int = MODELS, nodes: int = NODES) -> Book:
    """Idle, empty nodes; prices of about a 7B on an A10, that differ between models and between nodes."""
    book = b.blank(models, nodes)
    m, n = np.arange(models)[:, None], np.arange(nodes)[None, :]
    for row, price in enumerate((0.01, 0.015, 2e-4, 2e-9, 0.015, 5e-5, 4e-7)):
        book.costs[row] = price * (1.0 + 0.3 * m + 0.1 * n)
    book.costs[b.DECODE_SEQUENCE_S] = 5e-5
    book.load_s[:] = 5.0 + m + 0.0 * n
    book.host_load_s[:] = 0.5
    book.weights_gib[:] = 6.0 + np.arange(models)
    book.kv_gib[:] = 1e-4 * (1.0 + np.arange(models))
    book.load[b.BUDGET_GIB] = 19.0
    return book


def place(
    book: Book, model: int = 0, node: int = 0, *, prompt: float = 100.0, output: float = 20.0, cached: float = 0.0,
    unseen: float = 0.0, now_s: float = 0.0,
) -> Placed:  # fmt: skip
    """A request goes to a node."""
    return b.place(book, model, node, prompt, output, cached, unseen, now_s)


def columns_of(book: Book, **rows: Any) -> b.Floats:
    """Columns of a fleet with nothing to tell but these rows."""
    columns = np.zeros((len(COLUMNS), book.load.shape[1]))
    for name, values in rows.items():
        columns[list(COLUMNS).index(name)] = values
    return columns


def look(
    book: Book, model: int = 0, *, prompt: float = 100.0, output: float = 20.0, session_node: int = -1,
    session_tokens: float = 0.0, coverage: float = 1.0, now_s: float = 0.0, observed: bool = False, **rows: Any,
) -> Look:  # fmt: skip
    """A request on every node of the book; rows of the columns by name, as just read."""
    columns = columns_of(book, **rows)
    for node, in_engine in enumerate((columns[k.RUNNING] + columns[k.WAITING]).tolist()):
        b.read(book, node, in_engine)
    return look_at(
        book, columns, model, prompt, output, session_node, session_tokens, coverage, now_s, observed,
    )  # fmt: skip


@st.composite
def looks(draw: st.DrawFn) -> Look:
    """A look at nodes that had any past: requests in flight, loads, evictions, restarts, other routers' traffic."""
    book, now_s = a_book(), 0.0
    flights: list[tuple[Placed, bool]] = []
    for _ in range(draw(st.integers(0, 25))):
        now_s += draw(st.floats(0.0, 3.0))
        kind = draw(st.sampled_from(["place", "place", "speak", "go", "report"]))
        node, model = draw(st.integers(0, NODES - 1)), draw(st.integers(0, MODELS - 1))
        if kind == "place":
            placed = place(book, model, node, prompt=draw(TOKENS), output=draw(TOKENS), now_s=now_s)
            flights.append((placed, False))
        elif kind == "report":
            there = np.array(draw(st.lists(st.booleans(), min_size=MODELS, max_size=MODELS)))
            b.report(book, node, there, ~there & draw(st.booleans()))
        elif flights:
            placed, has_first = flights.pop(draw(st.integers(0, len(flights) - 1)))
            if kind == "speak" and not has_first:
                b.first_token(book, placed, now_s)
                flights.append((placed, True))
            else:
                b.leave(book, placed, has_first, now_s)
                seconds = draw(st.floats(0.01, 60.0))
                b.learn(
                    book, placed, 0.5 * seconds, seconds, placed.output_tokens, now_s, draw(st.booleans())
                )
    told = st.lists(st.integers(0, 30).map(float), min_size=NODES, max_size=NODES)
    return look(
        book, draw(st.integers(0, MODELS - 1)), prompt=draw(TOKENS), output=draw(TOKENS),
        session_node=draw(st.integers(-1, NODES - 1)), session_tokens=draw(TOKENS), coverage=draw(st.floats(0.1, 1.0)),
        now_s=now_s, observed=draw(st.booleans()), running=draw(told), waiting=draw(told), gpu_free_gib=10.0,
        gpu_total_gib=24.0, kv_used=0.5, qps=2.0, latency_s=3.0, telemetry_age_s=draw(st.sampled_from([0.3, 1e6])), ramp=1.0,
    )  # fmt: skip


#: Looks at fleets of four nodes with three models.
LOOKS = looks()
