"""The functions of :mod:`ccr.book` and :mod:`ccr.look` on one book, compiled where :mod:`ccr.native` is there.

Both forms work on the same arrays, so what one wrote the other reads.
"""

from typing import Protocol

import numpy as np

from ccr import book as books
from ccr.book import LOAD, Book, Floats, Placed
from ccr.look import ASKED, PAIRS, Look, look_at
from ccr.native import IS_NATIVE, swift


class Accounts(Protocol):
    """A book that is kept; see the functions of the same names."""

    def asked_for(self, model: int) -> None:
        """:func:`ccr.book.asked_for`."""

    def place(
        self, model: int, node: int, prompt_tokens: float, output_tokens: float, cached_tokens: float,
        unseen: float, now_s: float,
    ) -> Placed:  # fmt: skip
        """:func:`ccr.book.place`."""

    def first_token(self, placed: Placed, now_s: float) -> None:
        """:func:`ccr.book.first_token`."""

    def leave(self, placed: Placed, has_first_token: bool, now_s: float) -> None:
        """:func:`ccr.book.leave`."""

    def learn(
        self,
        placed: Placed,
        ttft_s: float,
        total_s: float,
        output_tokens: float,
        now_s: float,
        observed: bool,
    ) -> None:
        """:func:`ccr.book.learn`."""

    def look_at(
        self, columns: Floats, model: int, prompt_tokens: float, output_tokens: float, session_node: int,
        session_tokens: float, coverage: float, now_s: float, observed: bool,
    ) -> Look:  # fmt: skip
        """:func:`ccr.look.look_at`; the look keeps a copy of the columns."""


class Plain:
    """By the definition.

    Args:
        book: is kept.
    """

    def __init__(self, book: Book) -> None:
        self._book = book

    def asked_for(self, model: int) -> None:
        """:func:`ccr.book.asked_for`."""
        books.asked_for(self._book, model)

    def place(
        self, model: int, node: int, prompt_tokens: float, output_tokens: float, cached_tokens: float,
        unseen: float, now_s: float,
    ) -> Placed:  # fmt: skip
        """:func:`ccr.book.place`."""
        return books.place(
            self._book, model, node, prompt_tokens, output_tokens, cached_tokens, unseen, now_s
        )

    def first_token(self, placed: Placed, now_s: float) -> None:
        """:func:`ccr.book.first_token`."""
        books.first_token(self._book, placed, now_s)

    def leave(self, placed: Placed, has_first_token: bool, now_s: float) -> None:
        """:func:`ccr.book.leave`."""
        books.leave(self._book, placed, has_first_token, now_s)

    def learn(
        self,
        placed: Placed,
        ttft_s: float,
        total_s: float,
        output_tokens: float,
        now_s: float,
        observed: bool,
    ) -> None:
        """:func:`ccr.book.learn`."""
        books.learn(self._book, placed, ttft_s, total_s, output_tokens, now_s, observed)

    def look_at(
        self, columns: Floats, model: int, prompt_tokens: float, output_tokens: float, session_node: int,
        session_tokens: float, coverage: float, now_s: float, observed: bool,
    ) -> Look:  # fmt: skip
        """:func:`ccr.look.look_at`; the look keeps a copy of the columns."""
        return look_at(
            self._book, columns.copy(), model, prompt_tokens, output_tokens, session_node, session_tokens, coverage,
            now_s, observed,
        )  # fmt: skip


class Compiled:
    """By ``swift.c``; what only policies on observed latencies read, by the definition.

    Args:
        book: is kept.
    """

    def __init__(self, book: Book) -> None:
        self._plain = Plain(book)
        self._swift = swift.Book(*book)
        self._nodes = len(book.stale)
        self._room = (len(LOAD) + len(PAIRS)) * self._nodes + len(ASKED)
        self._place = self._swift.place
        self.asked_for = self._swift.asked_for
        self.first_token = self._swift.first_token
        self.leave = self._swift.leave

    def place(
        self, model: int, node: int, prompt_tokens: float, output_tokens: float, cached_tokens: float,
        unseen: float, now_s: float,
    ) -> Placed:  # fmt: skip
        """:func:`ccr.book.place`."""
        return Placed._make(
            self._place(model, node, prompt_tokens, output_tokens, cached_tokens, unseen, now_s)
        )

    def learn(
        self,
        placed: Placed,
        ttft_s: float,
        total_s: float,
        output_tokens: float,
        now_s: float,
        observed: bool,
    ) -> None:
        """:func:`ccr.book.learn`."""
        if observed:
            self._plain.learn(placed, ttft_s, total_s, output_tokens, now_s, observed)
        else:
            self._swift.learn(placed, ttft_s, total_s, output_tokens, now_s)

    def look_at(
        self, columns: Floats, model: int, prompt_tokens: float, output_tokens: float, session_node: int,
        session_tokens: float, coverage: float, now_s: float, observed: bool,
    ) -> Look:  # fmt: skip
        """:func:`ccr.look.look_at`; the look keeps a copy of the columns."""
        if observed:
            return self._plain.look_at(
                columns, model, prompt_tokens, output_tokens, session_node, session_tokens, coverage, now_s, observed
            )  # fmt: skip
        n = self._nodes
        load_end, pairs_end = len(LOAD) * n, (len(LOAD) + len(PAIRS)) * n
        out = np.empty(self._room)
        self._swift.look(
            columns, model, prompt_tokens, output_tokens, session_node, session_tokens, coverage, now_s, out
        )
        return Look(
            columns.copy(),
            out[:load_end].reshape(-1, n),
            out[load_end:pairs_end].reshape(-1, n),
            out[pairs_end:],
        )


def accounts_of(book: Book) -> Accounts:
    """The book, kept by what this process has."""
    return Compiled(book) if IS_NATIVE else Plain(book)
