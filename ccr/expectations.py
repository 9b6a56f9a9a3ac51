"""The live fleet's book: names to rows, sessions, and the events of a request in the order they happen.

Kept only while a policy that looks at it is in force: what nobody reads costs nothing.

LoRA siblings share the row of their base, as they share its weights, its batch and its place on the card; what a
sibling has of its own is the load of its adapter, on top of whatever its base has to wait for.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ccr import book as books
from ccr import shared
from ccr.accounts import accounts_of
from ccr.book import Book, Flags, Floats, Placed
from ccr.calibration import NOTHING, Calibration
from ccr.hashing import hash64
from ccr.look import LOAD_S, LOAD_WAIT_S, RESIDENT, RUNNING, WAITING, Look
from ccr.prices import PriceList
from ccr.shared import Part
from ccr.types import Fleet, NodeSpec, Request

Facts = tuple[str, float, float]
"""Id of a model, GiB of its weights, seconds of its load; 0 where unknown."""

MAX_SESSIONS: Final = 100_000
"""Sessions whose last node is remembered; the least recently seen is forgotten first."""


@dataclass(slots=True)
class _Adapter:
    """What is expected of a LoRA sibling's adapter on each node.

    Args:
        ready: there, or on its way for a request that went there, shape ``(n,)``.
        load_s: seconds to bring it in, shape ``(n,)``.
        stated_s: the same as the catalogue tells; 0 when it does not.
    """

    ready: Flags
    load_s: Floats
    stated_s: float = 0.0


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
        self._models: dict[str, int] = {}
        self._adapters: dict[str, _Adapter] = {}
        self._facts: list[Facts] = []
        for model, gib, load_s in facts:
            self._enter(model, gib, load_s)
        self._has_traffic = False
        self._calibration = NOTHING
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._keep(prices.book(self._facts, self._specs))

    def look(self, request: Request, columns: Floats, now_s: float) -> Look:
        """The request on every node."""
        model = self._row(request)
        node_id, tokens = self._sessions.get(request.session, ("", 0.0)) if request.session else ("", 0.0)
        look = self._accounts.look_at(
            columns, model, float(max(request.prompt_tokens, 1)), self._output_tokens(request, model),
            self._columns.get(node_id, -1), tokens, self.coverage, now_s, self.observed,
        )  # fmt: skip
        adapter = self._adapters.get(request.model)
        if adapter is not None:  # it comes after its base, and leaves with it
            missing_s = np.where(adapter.ready & (look.pairs[RESIDENT] > 0.0), 0.0, adapter.load_s)
            look.pairs[LOAD_WAIT_S] += missing_s
            look.pairs[LOAD_S] += missing_s
        return look

    def output_tokens(self, request: Request) -> float:
        """Predicted: what requests for the model's weights generate on average, and not more than the client's limit."""
        return self._output_tokens(request, self._row(request))

    def arrived(self, request: Request) -> None:
        """Count a dispatch for its model's share of the traffic."""
        model = self._row(request)
        self._has_traffic = True
        self._accounts.asked_for(model)

    def place(self, request: Request, node: int, columns: Floats, now_s: float) -> Placed:
        """The request goes to the node in this column."""
        model = self._row(request)
        if request.model in self._adapters:
            self._adapters[request.model].ready[node] = True
        output_tokens = self._output_tokens(request, model)
        prompt_tokens = float(max(request.prompt_tokens, 1))
        cached = 0.0
        if request.session:
            last, tokens = self._sessions.pop(request.session, ("", 0.0))
            if last == self._specs[node].id:
                cached = min(tokens, prompt_tokens - 1.0)
            self._sessions[request.session] = (self._specs[node].id, prompt_tokens + output_tokens)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        told = columns.item(RUNNING, node) + columns.item(WAITING, node)
        unseen = min(self.book.load.item(books.OTHERS, node), told)
        return self._accounts.place(model, node, prompt_tokens, output_tokens, cached, unseen, now_s)

    def first_token(self, placed: Placed, now_s: float) -> None:
        """The first token of a placed request arrived."""
        self._accounts.first_token(placed, now_s)

    def leave(self, placed: Placed, now_s: float, *, has_first_token: bool) -> None:
        """A placed request is over."""
        self._accounts.leave(placed, has_first_token, now_s)

    def learn(
        self, placed: Placed, ttft_s: float | None, total_s: float, output_tokens: float, now_s: float
    ) -> None:
        """A placed request was answered in full; after :meth:`leave`.

        Of an answer that came whole only lengths and throughput are learned: when its first token was made is not known.
        """
        if ttft_s is None:
            self._accounts.learn(placed, total_s, total_s, output_tokens, now_s, False)
        else:
            self._accounts.learn(placed, ttft_s, total_s, output_tokens, now_s, self.observed)

    def report(self, node: int, resident: Collection[str], in_host: Collection[str] = ()) -> None:
        """Telemetry told which weights are where."""
        here, asleep = (self._rows_of(models) for models in (resident, in_host))
        books.report(self.book, node, self._flags(here), self._flags(asleep))
        for model, adapter in self._adapters.items():
            adapter.ready[node] = model in resident

    def read(self, node: int, in_engine: float) -> None:
        """Telemetry told how many requests are running and waiting there, whoever sent them."""
        books.read(self.book, node, in_engine)

    def loading(self, node: int, models: Collection[str], now_s: float) -> None:
        """Telemetry told which weights are on their way, whoever asked for them."""
        for row in self._rows_of(models):
            books.loading(self.book, row, node, now_s)

    def forget(self, node: int) -> None:
        """The node is a new incarnation."""
        books.forget(self.book, node)
        shared.left(self.entered, node)
        for adapter in self._adapters.values():
            adapter.ready[node] = False

    # What other routers placed

    @property
    def rows(self) -> tuple[str, ...]:
        """Ids of the models of the book, in the order of its rows; the same object until there is another."""
        return self._row_ids

    @property
    def columns(self) -> tuple[str, ...]:
        """Ids of the nodes, in the order of its columns; likewise."""
        return self._column_ids

    def part(self, sent_per_s: Floats, now_s: float) -> Part:
        """What this router has placed, of requests it sent at this rate, shape ``(n,)``."""
        return shared.part_of(self.book, self.entered, sent_per_s, now_s)

    def enter(self, others: Part, now_s: float) -> None:
        """This is what other routers have placed, by the rows and columns of this book."""
        shared.enter(self.book, self.entered, others, now_s)

    def take(self, calibration: Calibration) -> None:
        """What a learner found out, where this router has seen too little itself; overheads, which it never sees, always."""
        self._calibration = calibration
        calibration.apply(
            self.book, [hash64(spec.id) for spec in self._specs], [hash64(facts[0]) for facts in self._facts],
            self._prior_load_s, self._prior_output_tokens,
        )  # fmt: skip

    def replace(self, specs: Sequence[NodeSpec]) -> None:
        """The fleet changed; nodes that stay as they were keep what is known of them."""
        old, stated_s, entered = self.book, self._stated_load_s, self.entered
        prior_s, prior_tokens = self._prior_load_s, self._prior_output_tokens
        was = {spec.id: (n, spec) for n, spec in enumerate(self._specs)}
        self._specs = tuple(specs)
        self._columns = {spec.id: n for n, spec in enumerate(self._specs)}
        self._keep(self._prices.book(self._facts, self._specs))
        self._keep_models(old, prior_tokens)
        stayed = [
            (before[0], n)
            for n, spec in enumerate(self._specs)
            if (before := was.get(spec.id)) is not None and before[1] == spec
        ]
        for before_n, n in stayed:
            self._copy_node(old, stated_s, prior_s, before_n, n)
            shared.move(entered, before_n, self.entered, n)
        for model, adapter in self._adapters.items():
            self._adapters[model] = fresh = self._adapter(model, adapter.stated_s)
            for before_n, n in stayed:
                fresh.ready[n] = adapter.ready[before_n]
        self.take(self._calibration)

    def _keep(self, book: Book) -> None:
        self.book = book
        self.entered = shared.none_entered(len(self._facts), len(self._specs))
        self._row_ids = tuple(model for model, _, _ in self._facts)
        self._column_ids = tuple(spec.id for spec in self._specs)
        self._stated_load_s = book.load_s.copy()
        self._prior_load_s = book.load_s.copy()
        self._prior_output_tokens = book.output_tokens.copy()
        self._accounts = accounts_of(book)

    def _output_tokens(self, request: Request, model: int) -> float:
        mean = self.book.output_tokens.item(model)
        return min(mean, float(request.output_tokens)) if request.output_tokens else mean

    def _row(self, request: Request) -> int:
        row = self._models.get(request.model)
        if row is None:
            return self._row_of(request.model, request.model_gib, request.load_s)
        if request.model in self._adapters:
            return row
        _, gib, load_s = self._facts[row]
        if (request.model_gib and gib != request.model_gib) or (request.load_s and load_s != request.load_s):
            # Telemetry had named it before the catalogue told its size, or that changed.
            self._facts[row] = (request.model, request.model_gib or gib, request.load_s or load_s)
            self._reprice()
        return row

    def _row_of(self, model: str, gib: float, load_s: float) -> int:
        row = self._models.get(model)
        if row is None:
            known = len(self._facts)
            row = self._enter(model, gib, load_s)
            if len(self._facts) > known:
                self._reprice()
        return row

    def _rows_of(self, models: Collection[str]) -> list[int]:
        return [self._row_of(model, 0.0, 0.0) for model in models]

    def _flags(self, rows: Sequence[int]) -> Flags:
        flags: Flags = np.zeros(len(self._facts), dtype=np.bool_)
        flags[list(rows)] = True
        return flags

    def _enter(self, model: str, gib: float, load_s: float) -> int:
        """A row for the model, or that of its base; prices have to be made again when there is one more."""
        row = self._models.get(model)
        if row is not None:
            return row
        base = self._prices.base(model)
        if base:
            row = self._enter(base, 0.0, 0.0)
            self._adapters[model] = self._adapter(model, load_s)
        else:
            row = len(self._facts)
            self._facts.append((model, gib, load_s))
        self._models[model] = row
        return row

    def _adapter(self, model: str, stated_s: float) -> _Adapter:
        """Of a sibling, on no node yet."""
        nowhere: Flags = np.zeros(len(self._specs), dtype=np.bool_)
        return _Adapter(nowhere, self._prices.adapter_s(model, self._specs, stated_s), stated_s)

    def _reprice(self) -> None:
        """The same book with the prices of the facts as they are now."""
        old, stated_s, entered = self.book, self._stated_load_s, self.entered
        prior_s, prior_tokens = self._prior_load_s, self._prior_output_tokens
        self._keep(self._prices.book(self._facts, self._specs))
        self._keep_models(old, prior_tokens)
        for n in range(len(self._specs)):
            self._copy_node(old, stated_s, prior_s, n, n)
            shared.move(entered, n, self.entered, n)
        self.take(self._calibration)

    def _keep_models(self, old: Book, prior_tokens: Floats) -> None:
        known = len(old.share)
        self.book.output_tokens[:known] = old.output_tokens
        self._prior_output_tokens[:known] = prior_tokens
        if self._has_traffic:  # until then all models are taken for equally popular
            self.book.share[:] = 0.0
            self.book.share[:known] = old.share
        self.book.weights[:] = old.weights
        self.book.precision[:] = old.precision

    def _copy_node(self, old: Book, stated_s: Floats, prior_s: Floats, was: int, now: int) -> None:
        """Keep what is known of a node.

        Args:
            old: the book in which it stands.
            stated_s: the loads as that book was priced, before any was seen, shape ``(M, n)``.
            prior_s: the loads there before any was seen: as priced, or as a learner told, shape ``(M, n)``.
            was: its column there.
            now: its column in this one.
        """
        new, known = self.book, len(old.share)
        alike = new.load_s[:known, now] == stated_s[:, was]
        new.load_s[:known, now] = np.where(alike, old.load_s[:, was], new.load_s[:known, now])
        self._prior_load_s[:known, now] = np.where(alike, prior_s[:, was], new.load_s[:known, now])
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
            placed = expected.place(alike, n, fleet.columns, fleet.now_s)._replace(load_s=0.0)
            expected.first_token(placed, fleet.now_s)
        expected.read(n, float(fleet.running[n] + fleet.waiting[n]))
    return expected.look(request, fleet.columns, fleet.now_s)


_GUESSED: Final = 64  # requests in flight of a node, at most
_ANOTHER: Final = "another model"
