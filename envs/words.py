"""The words of an emulated node: jobs, what happens to them, and what the node shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ccr.errors import CCRError


class NeverFitsError(CCRError):
    """The model, or the model with this request's KV cache, is larger than the card."""


class ModelBusyError(CCRError):
    """The model has work, or is being loaded: it cannot leave the GPU now."""


class NodeResetError(CCRError):
    """The node was reset, or died, before the work was done."""


class Place(StrEnum):
    """Where a model's weights are."""

    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class Job:
    """One request for a node.

    Args:
        id: unique among the jobs on the node.
        model: model id.
        prompt_tokens: at least 1.
        output_tokens: exactly as many are generated; 0 for an embedding.
        priority: lower goes first, as in vLLM.
        stream: whether each token is reported; otherwise only the end is.
        session: the conversation it continues; empty for none.
        prefix_tokens: leading prompt tokens that repeat the session's previous context.
    """

    id: str
    model: str
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    stream: bool = False
    session: str = ""
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model's weights, or a sibling's adapter, arrived; ``cold`` when a request had to wait for them."""

    at_s: float
    model: str
    seconds: float
    cold: bool


@dataclass(frozen=True, slots=True)
class Evicted:
    """A model's weights, or a sibling's adapter, left the GPU; no request of it was running.

    The adapters on top of weights leave with them, without an event of their own.
    """

    at_s: float
    model: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A prefill ended: every job of the batch that had no token before has its first."""

    at_s: float
    model: str
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One more token for each of these streaming jobs."""

    at_s: float
    model: str
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job has all its tokens.

    Args:
        at_s: when.
        job: the job.
        submitted_s: when it was handed to the node.
        started_s: when its first prefill began.
        first_token_s: when its first prefill ended.
        cold: whether the weights, or its adapter, were not resident when it arrived.
        reused_tokens: prompt tokens its last prefill found in the prefix cache.
    """

    at_s: float
    job: Job
    submitted_s: float
    started_s: float
    first_token_s: float
    cold: bool
    reused_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Preempted:
    """KV cache was full: this job, the newest, gave its share back and will be recomputed."""

    at_s: float
    job_id: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The node died with this job on it."""

    at_s: float
    job_id: str


Event = Loaded | Evicted | FirstToken | Tokens | Finished | Preempted | Lost


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model on the node.

    Args:
        place: where the weights are; of a sibling, where its adapter is once the weights are resident.
        running: sequences in its batch.
        waiting: jobs in its queue.
        load_s: seconds its last load took; ``None`` before the first.
        prompt_tokens: prompt tokens prefilled, recomputation not counted.
        generation_tokens: tokens generated.
    """

    place: Place
    running: int
    waiting: int
    load_s: float | None
    prompt_tokens: int
    generation_tokens: int


@dataclass(frozen=True, slots=True)
class NodeState:
    """Gauges and counters of a node at one moment.

    Args:
        now_s: the moment.
        models: by model id.
        kv_used: used fraction of the KV cache, in [0, 1].
        kv_bytes: size of the KV cache beside what is resident.
        gpu_used_gib: weights, activations and the KV cache in use.
        gpu_peak_gib: its maximum so far.
        gpu_total_gib: device memory an engine sees.
        busy_s: seconds the GPU computed.
        submitted: jobs accepted.
        finished: jobs that got all their tokens.
        cancelled: jobs whose client left.
        preempted: recomputations because the KV cache was full.
        evicted: models that left the GPU.
        cold_starts: loads from the source that a request waited for.
        loads: weights and adapters that arrived, waited for or not.
        lost: jobs the node died with.
        cached_tokens: tokens in the prefix cache; not part of ``kv_used``.
    """

    now_s: float
    models: Mapping[str, ModelState]
    kv_used: float
    kv_bytes: float
    gpu_used_gib: float
    gpu_peak_gib: float
    gpu_total_gib: float
    busy_s: float
    submitted: int
    finished: int
    cancelled: int
    preempted: int
    evicted: int
    cold_starts: int
    loads: int = 0
    lost: int = 0
    cached_tokens: int = 0

    @property
    def running(self) -> int:
        """Sequences in all batches."""
        return sum(model.running for model in self.models.values())

    @property
    def waiting(self) -> int:
        """Jobs in all queues."""
        return sum(model.waiting for model in self.models.values())

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens prefilled, of all models."""
        return sum(model.prompt_tokens for model in self.models.values())

    @property
    def generation_tokens(self) -> int:
        """Tokens generated, of all models."""
        return sum(model.generation_tokens for model in self.models.values())

    def at(self, place: Place) -> tuple[str, ...]:
        """Ids of the models whose weights are there."""
        return tuple(model for model, state in self.models.items() if state.place is place)
