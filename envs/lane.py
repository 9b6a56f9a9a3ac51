"""One model on a node: its weights, its queue, its batch and the KV cache the batch holds."""

from bisect import insort
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
        lane: of its model.
        key: its place in the queue; kept when it is recomputed.
        submitted_s: when it was handed to the node.
    """

    __slots__ = (
        "base_round", "cold", "first_token_s", "generated", "job", "key", "lane", "number",
        "started_s", "submitted_s",
    )  # fmt: skip

    def __init__(self, job: Job, lane: "Lane", key: Key, submitted_s: float) -> None:
        self.job = job
        self.lane = lane
        self.key = key
        self.submitted_s = submitted_s
        self.started_s = self.first_token_s = inf
        self.cold = False
        self.generated = 0  # before this admission: a recomputation has to read them again.
        self.base_round = 0
        self.number = 0  # order of admission; the highest is the newest.

    @property
    def prefill_tokens(self) -> int:
        """Tokens its next prefill reads."""
        return self.job.prompt_tokens + self.generated

    @property
    def held_tokens(self) -> int:
        """Tokens of KV cache it holds while it runs."""
        return self.job.prompt_tokens + self.lane.round - self.base_round

    @property
    def end_round(self) -> int:
        """The round of its lane that makes its last token."""
        return self.base_round + max(1, self.job.output_tokens)


class Lane:
    """One model on a node.

    A decode round is a few operations however many sequences it serves: sequences are not counted up one by one, they
    are filed under the round that ends them.

    Args:
        model: its id.
        spec: its architecture.
        costs: of its steps on this node.
    """

    __slots__ = (
        "closed_after", "context", "costs", "ends", "generation_tokens", "kv", "last_round_s", "last_used_s",
        "listening", "load_s", "model", "place", "prompt_tokens", "round", "running", "spec", "waiting",
        "wanted", "weights",
    )  # fmt: skip

    def __init__(self, model: str, spec: ModelSpec, costs: StepCosts) -> None:
        self.model = model
        self.spec = spec
        self.costs = costs
        self.weights = spec.stored_bytes
        self.kv = spec.kv_bytes_per_token
        self.place = Place.ABSENT
        self.load_s: float | None = None
        self.wanted: Key | None = None  # an explicit load that has not begun.
        self.closed_after: Key | None = None  # it has to leave: younger jobs wait until it comes back.
        self.last_used_s = -inf
        self.last_round_s = -inf
        self.waiting: list[Sequence] = []
        self.running: dict[str, Sequence] = {}  # in order of admission.
        self.listening: dict[str, None] = {}  # those of the running that stream.
        self.ends: dict[int, list[Sequence]] = {}
        self.round = 0
        self.context = 0  # tokens of KV cache held.
        self.prompt_tokens = 0
        self.generation_tokens = 0

    @property
    def kv_held(self) -> int:
        """Bytes of KV cache its batch holds."""
        return self.context * self.kv

    @property
    def admissible(self) -> bool:
        """Whether the head of its queue may be prefilled, memory permitting."""
        if not self.waiting or self.place is not Place.RESIDENT or len(self.running) >= MAX_SEQUENCES:
            return False
        return self.closed_after is None or self.waiting[0].key < self.closed_after

    @property
    def load_key(self) -> Key | None:
        """Its place among the loads to do; ``None`` when it needs none."""
        if self.place is Place.RESIDENT or self.place is Place.LOADING:
            return None
        return self.waiting[0].key if self.waiting else self.wanted

    @property
    def state(self) -> ModelState:
        """What it shows."""
        return ModelState(
            self.place,
            len(self.running),
            len(self.waiting),
            self.load_s,
            self.prompt_tokens,
            self.generation_tokens,
        )

    def busy_for(self, key: Key) -> bool:
        """Whether it has work that goes before ``key``."""
        return bool(self.running) or (bool(self.waiting) and self.waiting[0].key < key)

    def enqueue(self, sequence: Sequence) -> None:
        """Into the queue, in order."""
        insort(self.waiting, sequence, key=_BY_KEY)

    def join_batch(self, sequence: Sequence, number: int, now_s: float) -> None:
        """From the head of the queue into the batch, with KV cache for its prompt and its next token."""
        del self.waiting[0]
        sequence.number = number
        sequence.base_round = self.round - sequence.generated - 1
        sequence.started_s = min(sequence.started_s, now_s)
        self.running[sequence.job.id] = sequence
        if sequence.job.stream:
            self.listening[sequence.job.id] = None
        self.ends.setdefault(sequence.end_round, []).append(sequence)
        self.context += sequence.held_tokens
        self.last_used_s = now_s

    def leave_batch(self, sequence: Sequence, now_s: float) -> None:
        """Out of the batch, finished or not; its KV cache is free."""
        del self.running[sequence.job.id]
        self.listening.pop(sequence.job.id, None)
        ending = self.ends[sequence.end_round]
        ending.remove(sequence)
        if not ending:
            del self.ends[sequence.end_round]
        self.context -= sequence.held_tokens
        self.last_used_s = now_s

    def start_round(self, now_s: float) -> None:
        """One more token for each sequence of the batch."""
        self.context += len(self.running)
        self.round += 1
        self.last_round_s = now_s

    def holds(self, sequence: Sequence) -> bool:
        """Whether this very sequence is in the batch."""
        return self.running.get(sequence.job.id) is sequence
