"""One set of weights on a node: the models that share it, their queues, their batch and its KV cache."""

from bisect import insort
from collections.abc import Sequence as Many
from math import inf
from operator import attrgetter

from ccr.timing import ModelSpec, StepCosts
from envs.words import Job, ModelState, Place

#: vLLM's default `max_num_seqs`.
MAX_SEQUENCES = 256

#: Place in a queue: priority (lower first), then order of arrival.
Key = tuple[float, int]

_BY_KEY = attrgetter("key")


class Sequence:
    """A job on the node. While it runs, ``lane.round - base_round`` of its tokens exist or are being made.

    Args:
        job: what was asked for.
        queue: of its model.
        key: its place in the queue; kept when it is recomputed.
        submitted_s: when it was handed to the node.
    """

    __slots__ = (
        "base_round", "cold", "first_token_s", "generated", "job", "key", "lane", "number", "queue",
        "reused", "started_s", "submitted_s",
    )  # fmt: skip

    def __init__(self, job: Job, queue: "Queue", key: Key, submitted_s: float) -> None:
        self.job = job
        self.queue = queue
        self.lane = queue.lane
        self.key = key
        self.submitted_s = submitted_s
        self.started_s = self.first_token_s = inf
        self.cold = False
        self.generated = 0  # before this admission: a recomputation has to read them again.
        self.reused = 0  # of its prompt, found in the prefix cache at this admission.
        self.base_round = 0
        self.number = 0  # order of admission; the highest is the newest.

    @property
    def prefill_tokens(self) -> int:
        """Tokens its next prefill makes keys and values of, or finds in the prefix cache."""
        return self.job.prompt_tokens + self.generated

    @property
    def held_tokens(self) -> int:
        """Tokens of KV cache it holds while it runs."""
        return self.job.prompt_tokens + self.lane.round - self.base_round

    @property
    def end_round(self) -> int:
        """The round of its lane that makes its last token."""
        return self.base_round + max(1, self.job.output_tokens)


class Queue:
    """One model's jobs on a lane, and for a LoRA sibling the place of its adapter.

    Args:
        model: its id.
        spec: its architecture.
        lane: whose weights it uses.
    """

    __slots__ = (
        "closed_after", "generation_tokens", "lane", "last_used_s", "load_s", "model", "place",
        "prompt_tokens", "running", "spec", "waiting", "wanted", "weight",
    )  # fmt: skip

    def __init__(self, model: str, spec: ModelSpec, lane: "Lane") -> None:
        self.model = model
        self.spec = spec
        self.lane = lane
        self.load_s: float | None = None
        self.weight = 0.0  # who stays when somebody has to leave: the higher.
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.clear()

    def clear(self) -> None:
        """As on a node that just started."""
        self.place = Place.ABSENT if self.spec.base else Place.RESIDENT  # of the adapter, if it has one.
        self.wanted: Key | None = None  # an explicit load of the adapter that has not begun.
        self.closed_after: Key | None = (
            None  # the adapter has to leave: younger jobs wait until it comes back.
        )
        self.last_used_s = -inf
        self.waiting: list[Sequence] = []
        self.running = 0

    @property
    def where(self) -> Place:
        """Where the weights are and, once they are resident, where the adapter is."""
        return self.lane.place if self.lane.place is not Place.RESIDENT else self.place

    @property
    def ready(self) -> bool:
        """Whether its head waits for nothing but the batch."""
        if not self.waiting or self.place is not Place.RESIDENT:
            return False
        return self.closed_after is None or self.waiting[0].key < self.closed_after

    @property
    def adapter_key(self) -> Key | None:
        """Place of its adapter among those to load; ``None`` when it needs none now."""
        if self.where is not Place.ABSENT or self.lane.place is not Place.RESIDENT:
            return None
        key = self.waiting[0].key if self.waiting else self.wanted
        return key if key is not None and self.lane.open_to(key) else None

    @property
    def state(self) -> ModelState:
        """What it shows."""
        return ModelState(
            self.where,
            self.running,
            len(self.waiting),
            self.load_s,
            self.prompt_tokens,
            self.generation_tokens,
        )

    def busy_for(self, key: Key) -> bool:
        """Whether it has work that goes before ``key``."""
        return self.running > 0 or (bool(self.waiting) and self.waiting[0].key < key)

    def enqueue(self, sequence: Sequence) -> None:
        """In order."""
        insort(self.waiting, sequence, key=_BY_KEY)


class Lane:
    """One set of weights on a node: a base model and the LoRA siblings that run in one batch with it.

    A decode round is a few operations however many sequences it serves: sequences are not counted up one by one, they
    are filed under the round that ends them.

    Args:
        model: id of the base model.
        spec: its architecture.
        costs: of its steps on this node.
        siblings: the LoRA models on top of it.
        slots: adapters of theirs the node has room for.
    """

    __slots__ = (
        "closed_after", "context", "costs", "ends", "kv", "last_round_s", "last_used_s", "listening", "model",
        "own", "place", "queues", "round", "running", "spec", "wanted", "weights",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        spec: ModelSpec,
        costs: StepCosts,
        siblings: Many[tuple[str, ModelSpec]] = (),
        slots: int = 0,
    ) -> None:
        self.model = model
        self.spec = spec
        self.costs = costs
        largest = max((sibling.adapter_bytes for _, sibling in siblings), default=0)
        self.weights = spec.stored_bytes + min(slots, len(siblings)) * largest
        self.kv = spec.kv_bytes_per_token
        self.own = Queue(model, spec, self)
        self.queues = [self.own, *(Queue(name, sibling, self) for name, sibling in siblings)]
        self.round = 0
        self.clear()

    def clear(self) -> None:
        """As on a node that just started."""
        self.place = Place.ABSENT
        self.wanted: Key | None = None  # an explicit load that has not begun.
        self.closed_after: Key | None = None  # it has to leave: younger jobs wait until it comes back.
        self.last_used_s = -inf
        self.last_round_s = -inf
        self.running: dict[str, Sequence] = {}  # in order of admission.
        self.listening: dict[str, None] = {}  # those of the running that stream.
        self.ends: dict[int, list[Sequence]] = {}
        self.context = 0  # tokens of KV cache held.
        for queue in self.queues:
            queue.clear()

    @property
    def kv_held(self) -> int:
        """Bytes of KV cache its batch holds."""
        return self.context * self.kv

    @property
    def head(self) -> Sequence | None:
        """The job that waits first, whatever it waits for."""
        return min((queue.waiting[0] for queue in self.queues if queue.waiting), key=_BY_KEY, default=None)

    @property
    def next(self) -> Sequence | None:
        """The job to prefill next, memory permitting."""
        if self.place is not Place.RESIDENT or len(self.running) >= MAX_SEQUENCES:
            return None
        first = min((queue.waiting[0] for queue in self.queues if queue.ready), key=_BY_KEY, default=None)
        return first if first is not None and self.open_to(first.key) else None

    @property
    def load_key(self) -> Key | None:
        """Its place among the loads to do; ``None`` when it needs none."""
        if self.place is Place.RESIDENT or self.place is Place.LOADING:
            return None
        head = self.head
        return self.wanted if head is None else head.key

    def open_to(self, key: Key) -> bool:
        """Whether work at ``key`` may still begin."""
        return self.closed_after is None or key < self.closed_after

    def busy_for(self, key: Key) -> bool:
        """Whether it has work that goes before ``key``."""
        head = self.head
        return bool(self.running) or (head is not None and head.key < key)

    def join_batch(self, sequence: Sequence, number: int, now_s: float) -> None:
        """From the head of its queue into the batch, with KV cache for its prompt and its next token."""
        queue = sequence.queue
        del queue.waiting[0]
        queue.running += 1
        sequence.number = number
        sequence.base_round = self.round - sequence.generated - 1
        sequence.started_s = min(sequence.started_s, now_s)
        self.running[sequence.job.id] = sequence
        if sequence.job.stream:
            self.listening[sequence.job.id] = None
        self.ends.setdefault(sequence.end_round, []).append(sequence)
        self.context += sequence.held_tokens
        self.last_used_s = queue.last_used_s = now_s

    def leave_batch(self, sequence: Sequence, now_s: float) -> None:
        """Out of the batch, finished or not; its KV cache is free."""
        del self.running[sequence.job.id]
        sequence.queue.running -= 1
        self.listening.pop(sequence.job.id, None)
        ending = self.ends[sequence.end_round]
        ending.remove(sequence)
        if not ending:
            del self.ends[sequence.end_round]
        self.context -= sequence.held_tokens
        self.last_used_s = sequence.queue.last_used_s = now_s

    def start_round(self, now_s: float) -> None:
        """One more token for each sequence of the batch."""
        self.context += len(self.running)
        self.round += 1
        self.last_round_s = now_s

    def holds(self, sequence: Sequence) -> bool:
        """Whether this very sequence is in the batch."""
        return self.running.get(sequence.job.id) is sequence
