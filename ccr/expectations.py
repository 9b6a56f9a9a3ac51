"""The live fleet's book: names to rows, sessions, and the events of a request in the order they happen.

Kept only while a policy that looks at it is in force: what nobody reads costs nothing.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from ccr import book as books
from ccr.book import Book, Floats, Placed
from ccr.look import RUNNING, WAITING, Look, look_at
from ccr.prices import PriceList
from ccr.types import Fleet, NodeSpec, Request

Facts = tuple[str, float, float]
"""Id of a model, GiB of its weights, seconds of its load; 0 where unknown."""

MAX_SESSIONS: Final = 100_000
"""Sessions whose last node is remembered; the least recently seen is forgotten first."""


class Expectations:
    """What is expected of each node of a live fleet.

    Args:
        prices: what models cost on nodes.
        specs: the nodes.
        coverage: share of the traffic that comes through this router, in (0, 1].
        observed: whether policies on observed latencies are in force.
        facts: models known already: id, GiB, load seconds; 0 where unknown.
    """

    def __init__(
        self,
        prices: PriceList,
        specs: Sequence[NodeSpec] = (),
        *,
        coverage: float = 1.0,
        observed: bool = False,
        facts: Sequence[Facts] = (),
    ) -> None:
        self._prices = prices
        self.coverage = coverage
        self.observed = observed
        self._specs: tuple[NodeSpec, ...] = tuple(specs)
        self._columns = {spec.id: n for n, spec in enumerate(self._specs)}
        self._models: dict[str, int] = {model: row for row, (model, _, _) in enumerate(facts)}
        self._facts: list[Facts] = list(facts)
        self._has_traffic = False
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.book: Book = prices.book(self._facts, self._specs)

    def look(self, request: Request, columns: Floats, now_s: float) -> Look:
        """The request on every node."""
        model = self._row(request)
        node_id, tokens = self._sessions.get(request.session, ("", 0.0)) if request.session else ("", 0.0)
        return look_at(
            self.book, columns, model, float(max(request.prompt_tokens, 1)), self.output_tokens(request),
            self._columns.get(node_id, -1), tokens, self.coverage, now_s, self.observed,
        )  # fmt: skip

    def output_tokens(self, request: Request) -> float:
        """Predicted: what the model's requests generate on average, and not more than the client's limit."""
        model = self._row(request)  # first: a new model makes a new book
        mean = float(self.book.output_tokens[model])
        return min(mean, float(request.output_tokens)) if request.output_tokens else mean

    def arrived(self, request: Request) -> None:
        """Count a dispatch for its model's share of the traffic."""
        model = self._row(request)
        self._has_traffic = True
        books.asked_for(self.book, model)

    def place(self, request: Request, node: int, columns: Floats, now_s: float) -> Placed:
        """The request goes to the node in this column."""
        model = self._row(request)
        book = self.book
        output_tokens = self.output_tokens(request)
        prompt_tokens = float(max(request.prompt_tokens, 1))
        cached = 0.0
        if request.session:
            last, tokens = self._sessions.pop(request.session, ("", 0.0))
            if last == self._specs[node].id:
                cached = min(tokens, prompt_tokens - 1.0)
            self._sessions[request.session] = (self._specs[node].id, prompt_tokens + output_tokens)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        told = float(columns[RUNNING, node] + columns[WAITING, node])
        unseen = max(told - float(book.load[books.IN_BATCH, node]), 0.0)
        return books.place(book, model, node, prompt_tokens, output_tokens, cached, unseen, now_s)

    def first_token(self, placed: Placed, now_s: float) -> None:
        """The first token of a placed request arrived."""
        books.first_token(self.book, placed, now_s)

    def leave(self, placed: Placed, now_s: float, *, has_first_token: bool) -> None:
        """A placed request is over."""
        books.leave(self.book, placed, has_first_token, now_s)

    def learn(
        self, placed: Placed, ttft_s: float | None, total_s: float, output_tokens: float, now_s: float
    ) -> None:
        """A placed request was answered in full; after :meth:`leave`.

        Of an answer that came whole only lengths and throughput are learned: when its first token was made is not known.
        """
        if ttft_s is None:
            books.learn(self.book, placed, total_s, total_s, output_tokens, now_s, False)
        else:
            books.learn(self.book, placed, ttft_s, total_s, output_tokens, now_s, self.observed)

    def report(self, node: int, resident: Collection[str], in_host: Collection[str] = ()) -> None:
        """Telemetry told which weights are where."""
        for model in [*resident, *in_host]:
            self._row_of(model, 0.0, 0.0)
        there = np.array([model in resident for model, _, _ in self._facts], dtype=np.bool_)
        asleep = np.array([model in in_host for model, _, _ in self._facts], dtype=np.bool_)
        books.report(self.book, node, there, asleep)

    def loading(self, node: int, models: Collection[str], now_s: float) -> None:
        """Telemetry told which weights are on their way, whoever asked for them."""
        for row in [self._row_of(model, 0.0, 0.0) for model in models]:
            books.loading(self.book, row, node, now_s)

    def forget(self, node: int) -> None:
        """The node is a new incarnation."""
        books.forget(self.book, node)

    def replace(self, specs: Sequence[NodeSpec]) -> None:
        """The fleet changed; nodes that stay as they were keep what is known of them."""
        old, was = self.book, {spec.id: (n, spec) for n, spec in enumerate(self._specs)}
        self._specs = tuple(specs)
        self._columns = {spec.id: n for n, spec in enumerate(self._specs)}
        self.book = self._prices.book(self._facts, self._specs)
        self._keep_models(old)
        for n, spec in enumerate(self._specs):
            before = was.get(spec.id)
            if before is not None and before[1] == spec:
                self._copy_node(old, before[0], n)

    def _row(self, request: Request) -> int:
        row = self._models.get(request.model)
        if row is None:
            return self._row_of(request.model, request.model_gib, request.load_s)
        _, gib, load_s = self._facts[row]
        if (request.model_gib and gib != request.model_gib) or (request.load_s and load_s != request.load_s):
            # Telemetry had named it before the catalogue told its size, or that changed.
            self._facts[row] = (request.model, request.model_gib or gib, request.load_s or load_s)
            self._reprice()
        return row

    def _row_of(self, model: str, gib: float, load_s: float) -> int:
        row = self._models.get(model)
        if row is not None:
            return row
        row = self._models[model] = len(self._facts)
        self._facts.append((model, gib, load_s))
        self._reprice()
        return row

    def _reprice(self) -> None:
        """The same book with the prices of the facts as they are now."""
        old, self.book = self.book, self._prices.book(self._facts, self._specs)
        self._keep_models(old)
        for n in range(len(self._specs)):
            self._copy_node(old, n, n)

    def _keep_models(self, old: Book) -> None:
        known = len(old.share)
        self.book.output_tokens[:known] = old.output_tokens
        if self._has_traffic:  # until then all models are taken for equally popular
            self.book.share[:] = 0.0
            self.book.share[:known] = old.share
        self.book.weights[:] = old.weights
        self.book.precision[:] = old.precision

    def _copy_node(self, old: Book, was: int, now: int) -> None:
        new, known = self.book, len(old.share)
        kept = [row for row in range(len(books.LOAD)) if row not in _PRICES]
        new.load[kept, now] = old.load[kept, was]
        for name in ("resident", "in_host", "inflight", "loading_until_s", "used_s"):
            getattr(new, name)[:known, now] = getattr(old, name)[:, was]
        for name in ("loads_until_s", "progress_s", "done_s"):
            getattr(new, name)[now] = getattr(old, name)[was]
        new.ttft_curve[:, now] = old.ttft_curve[:, was]
        new.ttft_seen[:, now] = old.ttft_seen[:, was]
        # Prices may have changed under the models in flight: what they add at their last end is what is there now.
        active = new.inflight[:, now] > 0
        new.load[books.PASS_S, now] = new.costs[books.DECODE_FIXED_S, active, now].sum()


_PRICES: Final = frozenset({books.BUDGET_GIB, books.OVERHEAD_S, books.BANDWIDTH})


def look_of(request: Request, fleet: Fleet, *, observed: bool = False) -> Look:
    """The request on every node of a fleet; remembered there for the decision's record.

    A live fleet answers from its ledger's book. A fleet that has none, such as one put together by hand, is taken to
    have in flight what it says it has: each like this request, or of another model where this one is not loaded.
    """
    look = (
        fleet.looker(request, fleet.columns, fleet.now_s, observed)
        if fleet.looker
        else _guess(request, fleet)
    )
    fleet.looked = look
    return look


def _guess(request: Request, fleet: Fleet) -> Look:
    others = sorted({model for loaded in fleet.loaded for model in loaded} - {request.model})
    facts = [(request.model, request.model_gib, request.load_s), *((model, 0.0, 0.0) for model in others)]
    expected = Expectations(PriceList(), fleet.specs, facts=facts)
    for n, loaded in enumerate(fleet.loaded):
        expected.report(n, loaded)
        model = request.model if request.model in loaded else min(loaded, default=_ANOTHER)
        alike = replace(request, model=model, session="", model_gib=0.0, load_s=0.0)
        for _ in range(min(int(fleet.inflight[n]), _GUESSED)):
            expected.first_token(expected.place(alike, n, fleet.columns, fleet.now_s), fleet.now_s)
    return expected.look(request, fleet.columns, fleet.now_s)


_GUESSED: Final = 64  # requests in flight of a node, at most
_ANOTHER: Final = "another model"
