"""One GPU node in virtual time: queue, batches, KV cache, resident models and their loads.

No clock, no socket, no dice: the caller says what time it is and draws the noise. One step runs at a time: a prefill
batch or one decode round of one model. Prefill goes first; models with running sequences take turns, each paying its
own pass over its weights. A prefill gives the first token, each decode round one more. A load takes no compute, but
its weights must fit before it starts. An adapter is loaded beside what runs, once the weights it belongs to are there.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

from ccr.errors import ConfigError, UnknownModelError
from ccr.timing import (
    GIB,
    GPUS,
    LOAD_SOURCES,
    PRESETS,
    EnginePreset,
    GpuSpec,
    LoadSource,
    ModelSpec,
    adapter_s,
    decode_s,
    load_s,
    prefill_s,
    step_costs,
)
from envs.adapters import Adapters
from envs.lane import Key, Lane, Queue, Sequence
from envs.memory import Memory
from envs.words import (
    Event,
    Evicted,
    Finished,
    FirstToken,
    Job,
    Loaded,
    Lost,
    ModelBusyError,
    NeverFitsError,
    NodeState,
    Place,
    Preempted,
    Tokens,
)

#: New prompt tokens of one prefill batch; a longer prompt goes alone.
PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node is made of.

    Args:
        gpu: the card.
        preset: the engine.
        source: where weights come from.
        overhead_s: HTTP and tokeniser, between a request's arrival and the queue.
        bw_scale: memory bandwidth relative to the fitted card.
        host_gib: host memory for models asleep at level 1, and for evicted ones if they are kept.
        keep_evicted: whether an evicted model goes to host memory, to come back faster.
        prefix_cache: whether the context of a session's last sequence is kept for its next.
        max_adapters: LoRA adapters on the card at once, >= 1; vLLM's deployments use about 8.
    """

    gpu: GpuSpec = field(default_factory=lambda: GPUS["A10"])
    preset: EnginePreset = field(default_factory=lambda: PRESETS["graph"])
    source: LoadSource = field(default_factory=lambda: LOAD_SOURCES["engine_swap"])
    overhead_s: float = 0.0
    bw_scale: float = 1.0
    host_gib: float = 48.0
    keep_evicted: bool = False
    prefix_cache: bool = True
    max_adapters: int = 8


@dataclass(slots=True)
class _Counts:
    submitted: int = 0
    finished: int = 0
    cancelled: int = 0
    preempted: int = 0
    evicted: int = 0
    cold_starts: int = 0
    loads: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class _Step:
    lane: Lane
    prefill: tuple[Sequence, ...]  # empty: a decode round.
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class _Load:
    queue: Queue  # of a lane: its own, or a sibling whose adapter is on its way.
    cold: bool
    start_s: float
    end_s: float


def _no_noise() -> float:
    return 1.0


def lanes_of(models: Mapping[str, ModelSpec], settings: NodeSettings) -> list[Lane]:
    """One lane for each base model, with the LoRA siblings on top of it.

    Raises:
        ConfigError: a sibling's base is not among the models, or there is no slot for adapters.
    """
    siblings: dict[str, list[tuple[str, ModelSpec]]] = {m: [] for m, spec in models.items() if not spec.base}
    for model, spec in models.items():
        if not spec.base:
            continue
        if spec.base not in siblings:
            raise ConfigError(
                f"{model!r} is an adapter on {spec.base!r}, which is not a base model of this node; "
                "add the base to its models"
            )
        if settings.max_adapters < 1:
            raise ConfigError(f"max_adapters is {settings.max_adapters}; {model!r} needs at least 1")
        siblings[spec.base].append((model, spec))
    return [
        Lane(
            base,
            models[base],
            step_costs(models[base], settings.gpu, settings.preset, settings.bw_scale),
            on_top,
            settings.max_adapters,
        )
        for base, on_top in siblings.items()
    ]


class EmulatedNode:
    """A node that serves every model it is given, loading and evicting as requests need.

    A request for a model that is not resident queues its load; loads run one at a time, in the order of the requests
    that wait for them. Room is made by evicting idle models, least recently used first unless :meth:`prefer` says
    otherwise. When there are not enough, the least recently used busy ones are closed to requests younger than the one
    that waits, drain, and leave (as Ollama does). An explicit load never closes a busy model: it waits for room.

    LoRA siblings share the lane of their base: its weights, its batch and its place on the card. What holds for models
    holds once more for their adapters: they are loaded one at a time and make room for each other in their slots.

    Args:
        models: what it can serve, by id.
        settings: what it is made of.
        load_noise: factor on the duration of the next load, > 0; drawn once for each load from the source.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSpec],
        settings: NodeSettings | None = None,
        load_noise: Callable[[], float] = _no_noise,
    ) -> None:
        self.settings = settings or NodeSettings()
        self._load_noise = load_noise
        self._lanes = lanes_of(models, self.settings)
        queues = {queue.model: queue for lane in self._lanes for queue in lane.queues}
        self._queues = {model: queues[model] for model in models}
        self._memory = Memory(self.settings.gpu)
        self._adapters = Adapters(self.settings.max_adapters)
        self._now_s = 0.0
        self._arrivals: deque[tuple[float, Sequence]] = deque()
        self._jobs: dict[str, Sequence] = {}
        self._step: _Step | None = None
        self._load: _Load | None = None
        self._adapter: _Load | None = None
        self._factor = 1.0
        self._load_factors: dict[str, float] = {}
        self._events: list[Event] = []
        self._numbers = 0
        self._busy_s = 0.0
        self._counts = _Counts()

    # -- what the world does to it -------------------------------------------------------------------------------

    def submit(self, job: Job, now_s: float) -> None:
        """Take a job.

        Raises:
            UnknownModelError: the node does not serve the model.
            NeverFitsError: the model and this job's KV cache are larger than the card.
        """
        queue = self._queue(job.model)
        if job.id in self._jobs:
            raise ValueError(f"job {job.id!r} is on this node already; give each job its own id")
        self._memory.refuse_what_never_fits(queue.lane, job.prompt_tokens + job.output_tokens)
        self._run_until(now_s)
        sequence = Sequence(job, queue, (job.priority, self._next_number()), now_s)
        self._jobs[job.id] = sequence
        self._counts.submitted += 1
        if self.settings.overhead_s > 0:
            self._arrivals.append((now_s + self.settings.overhead_s, sequence))
        else:
            self._enqueue(sequence)
            self._schedule()

    def cancel(self, job_id: str, now_s: float) -> bool:
        """Drop a job, queued or running, and free its KV cache; false when it is not on the node (any more)."""
        self._run_until(now_s)
        sequence = self._jobs.pop(job_id, None)
        if sequence is None:
            return False
        self._counts.cancelled += 1
        if sequence.lane.holds(sequence):
            sequence.lane.leave_batch(sequence, self._now_s)
        elif sequence in sequence.queue.waiting:
            sequence.queue.waiting.remove(sequence)
        else:
            self._arrivals = deque(entry for entry in self._arrivals if entry[1] is not sequence)
        self._schedule()
        return True

    def load(self, model: str, now_s: float) -> None:
        """Bring a model in, or wake it, as soon as there is room without disturbing busy models."""
        queue = self._queue(model)
        lane = queue.lane
        self._memory.refuse_what_never_fits(lane, 0)
        self._run_until(now_s)
        key = (inf, self._next_number())
        if lane.place in (Place.ABSENT, Place.ASLEEP) and lane.wanted is None:
            lane.wanted = key
        if queue.place is Place.ABSENT and queue.wanted is None:
            queue.wanted = key
        self._schedule()

    wake = load

    def unload(self, model: str, now_s: float) -> None:
        """Drop a model from GPU and host memory, and forget a load that has not begun; of a sibling, its adapter."""
        queue = self._queue(model)
        if queue is queue.lane.own:
            self._unload_weights(model, now_s)
        else:
            self._unload_adapter(queue, now_s)
        self._schedule()

    def sleep(self, model: str, now_s: float, level: int = 1) -> None:
        """Take a model off the GPU: level 1 keeps the weights in host memory, level 2 drops them.

        Sleeping itself takes no time here; on a real engine it takes seconds, in which the model serves nothing.
        LoRA siblings sleep with their base.
        """
        lane = self._idle_lane(model, now_s)
        if lane.place is not Place.RESIDENT:
            return
        self._evict(lane)
        if level == 1:
            self._keep_in_host(lane)
        self._schedule()

    def place(self, model: str) -> None:
        """Make a model resident at once: what was loaded before the story begins."""
        queue = self._queue(model)
        if queue.lane.place is not Place.RESIDENT:
            self._memory.refuse_what_does_not_fit_now(queue.lane)
            self._arrive(queue.lane)
        if queue.place is not Place.RESIDENT:
            if not self._adapters.free:
                raise NeverFitsError(f"no adapter slot is free for {model!r}; raise max_adapters")
            self._arrive_adapter(queue)

    def prefer(self, weights: Mapping[str, float]) -> None:
        """Who stays when somebody has to leave: models of low weight go first, among equals the least recently used.

        Args:
            weights: by model id; models left out keep theirs, which is 0 at first. The weight of a base model orders
                it among weights, that of a LoRA sibling orders it among adapters.
        """
        for model, weight in weights.items():
            self._queue(model).weight = weight

    def slow(self, factor: float, now_s: float) -> None:
        """Take ``factor`` times as long, > 0, for every step and load that starts from now on."""
        if not factor > 0:
            raise ValueError(f"a node cannot be {factor!r} times as slow; give a factor above 0")
        self._run_until(now_s)
        self._factor = factor

    def slow_loads(self, model: str, factor: float) -> None:
        """From now on loads of a model from the source take ``factor`` times as long, > 0; of a sibling, those of its base."""
        if not factor > 0:
            raise ValueError(f"a load cannot take {factor!r} times as long; give a factor above 0")
        self._load_factors[self._queue(model).lane.own.model] = factor

    def crash(self, now_s: float) -> None:
        """Lose everything in flight, and come back at once with nothing resident."""
        self._run_until(now_s)
        self._events += [Lost(now_s, job_id) for job_id in self._jobs]
        self._counts.lost += len(self._jobs)
        if self._step is not None:
            self._busy_s += now_s - self._step.start_s
        self._jobs.clear()
        self._arrivals.clear()
        self._step = self._load = self._adapter = None
        for lane in self._lanes:
            lane.clear()
        self._memory.clear()
        self._adapters.resident.clear()

    def advance(self, now_s: float) -> list[Event]:
        """Run to ``now_s``, and hand over everything that happened since the last call, in order."""
        self._run_until(now_s)
        events, self._events = self._events, []
        return events

    # -- what the world may see ----------------------------------------------------------------------------------

    def next_event_s(self) -> float:
        """When something happens next if nobody interferes; ``inf`` when idle."""
        return min(
            self._step.end_s if self._step else inf,
            self._load.end_s if self._load else inf,
            self._adapter.end_s if self._adapter else inf,
            self._arrivals[0][0] if self._arrivals else inf,
        )

    def where(self, model: str) -> Place:
        """Where the model's weights are."""
        return self._queue(model).where

    def state(self) -> NodeState:
        """Gauges and counters, as of the last advance."""
        counts = self._counts
        memory = self._memory
        kv_bytes = memory.kv_budget
        running_step_s = self._now_s - self._step.start_s if self._step else 0.0
        return NodeState(
            now_s=self._now_s,
            models={model: queue.state for model, queue in self._queues.items()},
            kv_used=min(1.0, memory.kv / kv_bytes) if kv_bytes else 0.0,
            kv_bytes=kv_bytes,
            gpu_used_gib=memory.used / GIB,
            gpu_peak_gib=memory.peak / GIB,
            gpu_total_gib=self.settings.gpu.total_gib,
            busy_s=self._busy_s + running_step_s,
            submitted=counts.submitted,
            finished=counts.finished,
            cancelled=counts.cancelled,
            preempted=counts.preempted,
            evicted=counts.evicted,
            cold_starts=counts.cold_starts,
            loads=counts.loads,
            lost=counts.lost,
            cached_tokens=memory.prefix.tokens,
        )

    # -- time ----------------------------------------------------------------------------------------------------

    def _run_until(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise ValueError(f"time runs forward: asked for {now_s} s after {self._now_s} s")
        while (at_s := self.next_event_s()) <= now_s:
            self._now_s = at_s
            self._happen(at_s)
            self._schedule()
        self._now_s = now_s

    def _happen(self, at_s: float) -> None:
        if self._step is not None and self._step.end_s <= at_s:
            self._end_step(self._step)
        if self._load is not None and self._load.end_s <= at_s:
            self._end_load(self._load)
        if self._adapter is not None and self._adapter.end_s <= at_s:
            self._end_adapter(self._adapter)
        while self._arrivals and self._arrivals[0][0] <= at_s:
            self._enqueue(self._arrivals.popleft()[1])

    def _schedule(self) -> None:
        if self._load is None:
            self._start_load()
        if self._adapter is None:
            self._start_adapter()
        if self._step is None:
            self._start_step()

    # -- steps ---------------------------------------------------------------------------------------------------

    def _start_step(self) -> None:
        while self._step is None:
            if (lane := self._next_prefill()) is not None and (batch := self._admit(lane)):
                lengths = [sequence.prefill_tokens for sequence in batch]
                reused = [sequence.reused for sequence in batch]
                self._begin(lane, batch, prefill_s(lane.costs, lengths, reused))
            elif (lane := self._next_decode()) is not None:
                self._start_round(lane)
            else:
                return

    def _begin(self, lane: Lane, prefill: tuple[Sequence, ...], seconds: float) -> None:
        self._step = _Step(lane, prefill, self._now_s, self._now_s + seconds * self._factor)
        self._memory.note_peak()

    def _next_prefill(self) -> Lane | None:
        heads = [head for lane in self._memory.resident if (head := lane.next) is not None]
        return min(heads, key=attrgetter("key")).lane if heads else None

    def _admit(self, lane: Lane) -> tuple[Sequence, ...]:
        """The next prefill batch of a lane, moved from its queue into its batch; empty when KV is full."""
        batch: list[Sequence] = []
        tokens = 0
        while (sequence := lane.next) is not None:
            reused = self._reusable(sequence)
            tokens += sequence.prefill_tokens - reused
            if (batch and tokens > PREFILL_TOKENS) or not self._kv_fits(sequence):
                break
            sequence.reused = reused
            self._memory.prefix.take(sequence.job.model, sequence.job.session)
            lane.join_batch(sequence, self._next_number(), self._now_s)
            self._memory.trim()
            batch.append(sequence)
        return tuple(batch)

    def _reusable(self, sequence: Sequence) -> int:
        """Tokens of its prompt that are in the prefix cache; the last token of a prompt is always read."""
        job = sequence.job
        return min(job.prefix_tokens, self._memory.prefix.held(job.model, job.session), job.prompt_tokens - 1)

    def _kv_fits(self, sequence: Sequence) -> bool:
        need = (sequence.prefill_tokens + 1) * sequence.lane.kv
        if self._memory.kv + need <= self._memory.kv_budget:
            return True
        # Nothing that runs will give memory back: idle models have to.
        return not self._running and self._make_room(need, sequence.key, sequence.lane, 0)

    def _next_decode(self) -> Lane | None:
        lanes = [lane for lane in self._memory.resident if lane.running]
        return min(lanes, key=attrgetter("last_round_s")) if lanes else None

    def _start_round(self, lane: Lane) -> None:
        memory = self._memory
        while memory.kv + len(lane.running) * lane.kv > memory.kv_budget:
            self._relieve(lane)
            if not lane.running:
                return
        seconds = decode_s(lane.costs, len(lane.running), lane.context)
        lane.start_round(self._now_s)
        memory.trim()
        self._begin(lane, (), seconds)

    def _relieve(self, lane: Lane) -> None:
        """Give one round of ``lane`` room: recompute the newest sequence, or evict when there is only one."""
        newest = self._memory.newest()
        if self._running > 1 or not self._make_room(lane.kv, newest.key, lane, 0):
            self._preempt(newest)

    def _preempt(self, sequence: Sequence) -> None:
        lane = sequence.lane
        lane.leave_batch(sequence, self._now_s)
        sequence.generated = lane.round - sequence.base_round
        sequence.queue.enqueue(sequence)
        self._counts.preempted += 1
        self._events.append(Preempted(self._now_s, sequence.job.id))

    def _end_step(self, step: _Step) -> None:
        self._step = None
        self._busy_s += step.end_s - step.start_s
        if step.prefill:
            self._end_prefill(step)
        else:
            self._end_round(step.lane)

    def _end_prefill(self, step: _Step) -> None:
        lane, now_s = step.lane, self._now_s
        here = [sequence for sequence in step.prefill if lane.holds(sequence)]
        first = [sequence for sequence in here if sequence.first_token_s == inf]
        for sequence in first:
            sequence.first_token_s = now_s
            sequence.queue.prompt_tokens += sequence.job.prompt_tokens
        for sequence in here:
            sequence.queue.generation_tokens += sequence.job.output_tokens > 0
        if first:
            self._events.append(FirstToken(now_s, lane.model, tuple(s.job.id for s in first)))
        again = tuple(s.job.id for s in here if s.job.stream and s.first_token_s < now_s)
        if again:
            self._events.append(Tokens(now_s, lane.model, again))
        self._finish(lane)

    def _end_round(self, lane: Lane) -> None:
        for queue in lane.queues:
            queue.generation_tokens += queue.running
        if lane.listening:
            self._events.append(Tokens(self._now_s, lane.model, tuple(lane.listening)))
        self._finish(lane)

    def _finish(self, lane: Lane) -> None:
        for sequence in tuple(lane.ends.get(lane.round, ())):
            lane.leave_batch(sequence, self._now_s)
            del self._jobs[sequence.job.id]
            self._keep_context(sequence)
            self._counts.finished += 1
            self._events.append(
                Finished(
                    self._now_s, sequence.job, sequence.submitted_s, sequence.started_s,
                    sequence.first_token_s, sequence.cold, sequence.reused,
                )
            )  # fmt: skip

    def _keep_context(self, sequence: Sequence) -> None:
        job = sequence.job
        if job.session and self.settings.prefix_cache:
            tokens = job.prompt_tokens + job.output_tokens
            self._memory.prefix.put(job.model, job.session, tokens, sequence.lane.kv)

    # -- residency -----------------------------------------------------------------------------------------------

    def _start_load(self) -> None:
        key, lane = self._next_load()
        if lane is None:
            self._memory.reopen()
        elif self._make_room(lane.weights + _first_kv(lane), key, lane, 1):
            self._begin_load(lane)

    def _next_load(self) -> tuple[Key, Lane | None]:
        first: tuple[Key, Lane | None] = ((inf, 0), None)
        for lane in self._lanes:
            if (key := lane.load_key) is not None and (first[1] is None or key < first[0]):
                first = (key, lane)
        return first

    def _begin_load(self, lane: Lane) -> None:
        cold = lane.head is not None
        seconds = self._load_seconds(lane) * self._factor
        self._counts.cold_starts += cold and lane.place is Place.ABSENT
        lane.place, lane.wanted, lane.own.load_s = Place.LOADING, None, seconds
        self._load = _Load(lane.own, cold, self._now_s, self._now_s + seconds)
        self._memory.reserve(lane)

    def _load_seconds(self, lane: Lane) -> float:
        if lane.place is Place.ASLEEP:
            return load_s(lane.spec, LOAD_SOURCES["host_pinned"])
        factor = self._load_factors.get(lane.own.model, 1.0)
        return load_s(lane.spec, self.settings.source) * self._load_noise() * factor

    def _end_load(self, load: _Load) -> None:
        self._load = None
        self._arrive(load.queue.lane)
        self._loaded(load)

    def _loaded(self, load: _Load) -> None:
        self._counts.loads += 1
        self._events.append(Loaded(self._now_s, load.queue.model, load.end_s - load.start_s, load.cold))

    def _arrive(self, lane: Lane) -> None:
        lane.place = Place.RESIDENT
        lane.last_used_s = self._now_s
        self._memory.arrive(lane)

    def _evict(self, lane: Lane) -> None:
        for queue in lane.queues[1:]:
            self._drop_adapter(queue)
        lane.place = Place.ABSENT
        lane.closed_after = None
        self._memory.leave(lane)
        self._left(lane.own)

    def _left(self, queue: Queue) -> None:
        self._counts.evicted += 1
        self._events.append(Evicted(self._now_s, queue.model))

    def _keep_in_host(self, lane: Lane) -> None:
        """Into host memory, and the least recently used sleepers out when it is full."""
        lane.place = Place.ASLEEP
        asleep = sorted(
            (other for other in self._lanes if other.place is Place.ASLEEP),
            key=attrgetter("last_used_s"),
        )
        while sum(other.spec.stored_bytes for other in asleep) > self.settings.host_gib * GIB:
            asleep.pop(0).place = Place.ABSENT

    def _make_room(self, need: float, key: Key, lane: Lane, arriving: int) -> bool:
        """Whether there is room now, after evicting who had to leave; see :meth:`Memory.make_room`."""
        victims = self._memory.make_room(need, key, lane, arriving)
        for victim in victims or ():
            self._evict(victim)
            if self.settings.keep_evicted:
                self._keep_in_host(victim)
        return victims is not None

    # -- adapters ------------------------------------------------------------------------------------------------

    def _start_adapter(self) -> None:
        key, queue = self._next_adapter()
        if queue is None:
            self._adapters.reopen()
        elif (victims := self._adapters.make_slot(key)) is not None:
            for victim in victims:
                self._evict_adapter(victim)
            self._begin_adapter(queue)

    def _next_adapter(self) -> tuple[Key, Queue | None]:
        first: tuple[Key, Queue | None] = ((inf, 0), None)
        for lane in self._memory.resident:
            for queue in lane.queues[1:]:
                if (key := queue.adapter_key) is not None and (first[1] is None or key < first[0]):
                    first = (key, queue)
        return first

    def _begin_adapter(self, queue: Queue) -> None:
        cold = bool(queue.waiting)
        seconds = adapter_s(queue.spec, self.settings.source) * self._load_noise() * self._factor
        self._counts.cold_starts += cold
        queue.place, queue.wanted, queue.load_s = Place.LOADING, None, seconds
        self._adapter = _Load(queue, cold, self._now_s, self._now_s + seconds)

    def _end_adapter(self, load: _Load) -> None:
        self._adapter = None
        self._arrive_adapter(load.queue)
        self._loaded(load)

    def _arrive_adapter(self, queue: Queue) -> None:
        queue.place = Place.RESIDENT
        queue.last_used_s = self._now_s
        self._adapters.resident.append(queue)

    def _evict_adapter(self, queue: Queue) -> None:
        self._drop_adapter(queue)
        self._left(queue)

    def _drop_adapter(self, queue: Queue) -> None:
        """Out of its slot, or not loaded any further."""
        if queue.place is Place.RESIDENT:
            self._adapters.resident.remove(queue)
        elif queue.place is Place.LOADING:
            self._adapter = None
        queue.place, queue.closed_after = Place.ABSENT, None

    def _unload_adapter(self, queue: Queue, now_s: float) -> None:
        self._run_until(now_s)
        if queue.running or queue.waiting or queue.where is Place.LOADING:
            raise self._busy(queue.model, queue.running, len(queue.waiting), queue.where)
        queue.wanted = None
        if queue.place is Place.RESIDENT:
            self._evict_adapter(queue)

    def _unload_weights(self, model: str, now_s: float) -> None:
        lane = self._idle_lane(model, now_s)
        lane.wanted = None
        for queue in lane.queues:
            queue.wanted = None
        if lane.place is Place.RESIDENT:
            self._evict(lane)
        lane.place = Place.ABSENT

    # -- small words ---------------------------------------------------------------------------------------------

    def _queue(self, model: str) -> Queue:
        if model not in self._queues:
            raise UnknownModelError(model, f"this node serves {', '.join(self._queues) or 'nothing'}")
        return self._queues[model]

    def _idle_lane(self, model: str, now_s: float) -> Lane:
        lane = self._queue(model).lane
        self._run_until(now_s)
        waiting = sum(len(queue.waiting) for queue in lane.queues)
        if lane.running or waiting or lane.place is Place.LOADING:
            raise self._busy(model, len(lane.running), waiting, lane.place)
        return lane

    def _busy(self, model: str, running: int, waiting: int, place: Place) -> ModelBusyError:
        return ModelBusyError(
            f"{model!r} cannot leave the GPU: {running} running, {waiting} waiting, {place}; drain it first"
        )

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.cold = sequence.queue.where is not Place.RESIDENT
        sequence.queue.enqueue(sequence)

    @property
    def _running(self) -> int:
        """Sequences in all batches."""
        return sum(len(lane.running) for lane in self._memory.resident)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers


def _first_kv(lane: Lane) -> int:
    """KV cache the first job in the queue needs in the end, in bytes."""
    if (head := lane.head) is None:
        return 0
    job = head.job
    return lane.kv * (job.prompt_tokens + job.output_tokens)
