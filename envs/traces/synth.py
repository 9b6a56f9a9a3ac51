"""Draws a bursty workload of many models: popularity that drifts, new versions, conversations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ccr.errors import ConfigError
from envs.traces.header import Header
from envs.traces.trace import Floats, Ints, Trace, numbered

_CELL_S = 0.5
_MOST_CELLS = 100_000
# Popularity walks, but does not walk off: each step goes this share of the way back, so that after many steps the
# logarithm of a model's popularity varies by about three times `drift`.
_PULL = 0.05
_PILOT = 4096
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token lengths of a class of models: lognormal, cut off.

    Args:
        prompt_median: new tokens that a turn adds to the conversation.
        prompt_sigma: standard deviation of their logarithm.
        prompt_max: longest prompt with all that was said before; a conversation ends there.
        output_median: tokens of an answer.
        output_sigma: standard deviation of their logarithm.
        output_max: longest answer.
        turns: mean turns of a conversation, >= 1; 1: every request stands alone.
    """

    prompt_median: float
    prompt_sigma: float
    prompt_max: int
    output_median: float
    output_sigma: float
    output_max: int
    turns: float = 1.0


#: Classes of models by the first word of the model's name. The medians are near those of public traces: conversation
#: (Azure 2023: 1,020 and 129 tokens) and code (1,469 and 13); shortened to what a 24 GB card serves.
CLASSES: Mapping[str, Lengths] = MappingProxyType(
    {
        "chat": Lengths(120, 1.0, 4096, 110, 0.8, 1024, turns=4.0),
        "support": Lengths(180, 0.8, 4096, 90, 0.7, 512, turns=3.0),
        "code": Lengths(700, 0.9, 4096, 40, 1.1, 512, turns=2.0),
        "summary": Lengths(1400, 0.6, 4096, 120, 0.5, 512),
        "extract": Lengths(600, 0.7, 3072, 25, 0.6, 128),
        "translate": Lengths(200, 0.9, 2048, 180, 0.9, 1024),
    }
)


@dataclass(frozen=True, slots=True)
class Switch:
    """The traffic of one model moves to another, conversation by conversation.

    Args:
        before: model id.
        after: model id.
        at_s: when it begins.
        ramp_s: how long until all have moved.
    """

    before: str
    after: str
    at_s: float
    ramp_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What to draw.

    Args:
        models: ids in order of their popularity at the start.
        duration_s: of the trace.
        rate: mean requests per second of all models together.
        zipf: popularity falls as one over rank to this power; 0: all alike.
        drift: standard deviation of the steps of each model's log-popularity.
        swaps: pairs of models that trade their popularity at each step.
        drift_s: between steps.
        cv: coefficient of variation of the gaps between a model's conversations (gamma); 1 is Poisson.
        burst_factor: how much higher the rate of a model is in its bursts (Markov-modulated); 1: no bursts.
        burst_s: mean length of a burst.
        burst_share: share of the time in bursts.
        diurnal: amplitude of a daily wave of the rate, in [0, 1].
        day_s: length of its day.
        switches: traffic that moves from one model id to another.
        release_every_s: mean time between new versions; 0: none. A model ``name@1`` moves to ``name@2``, and so on.
        release_ramp_s: how long such a move takes.
        classes: lengths by the first word of the model's name, or by the name; others are drawn like ``chat``.
        think_s: mean time from the end of an answer to the next turn.
        token_s: assumed time of an answer's token, for when the user can go on.
        priorities: priority -> share of the conversations.
    """

    models: tuple[str, ...] = (
        "chat-7b@1", "code-7b@1", "support-8b@1", "summary-7b@1", "extract-7b@1", "translate-6b@1",
    )  # fmt: skip
    duration_s: float = 600.0
    rate: float = 4.0
    zipf: float = 1.0
    drift: float = 0.3
    swaps: int = 0
    drift_s: float = 60.0
    cv: float = 2.0
    burst_factor: float = 1.0
    burst_s: float = 20.0
    burst_share: float = 0.1
    diurnal: float = 0.0
    day_s: float = 86_400.0
    switches: tuple[Switch, ...] = ()
    release_every_s: float = 0.0
    release_ramp_s: float = 60.0
    classes: Mapping[str, Lengths] = field(default_factory=lambda: CLASSES)
    think_s: float = 15.0
    token_s: float = 0.03
    priorities: Mapping[int, float] = field(default_factory=lambda: {0: 1.0})

    def __post_init__(self) -> None:
        for name, is_good, expected in (
            ("models", len(set(self.models)) == len(self.models) > 0 and all(self.models), "distinct ids, at least one"),
            ("duration_s", 0.0 < self.duration_s < math.inf, "seconds, > 0"),
            ("rate", 0.0 < self.rate < math.inf, "requests per second, > 0"),
            ("zipf", 0.0 <= self.zipf < math.inf, "a power, >= 0"),
            ("drift", 0.0 <= self.drift < math.inf, "a standard deviation, >= 0"),
            ("swaps", self.swaps >= 0, "a number of pairs, >= 0"),
            ("drift_s", 0.0 < self.drift_s < math.inf, "seconds, > 0"),
            ("cv", 0.0 < self.cv <= 20.0, "a coefficient of variation in (0, 20]"),
            ("burst_factor", 1.0 <= self.burst_factor < math.inf, "a factor, >= 1"),
            ("burst_s", 0.0 < self.burst_s < math.inf, "seconds, > 0"),
            ("burst_share", 0.0 < self.burst_share < 1.0, "a share in (0, 1)"),
            ("diurnal", 0.0 <= self.diurnal <= 1.0, "an amplitude in [0, 1]"),
            ("day_s", 0.0 < self.day_s < math.inf, "seconds, > 0"),
            ("release_every_s", 0.0 <= self.release_every_s < math.inf, "seconds, >= 0"),
            ("release_ramp_s", 0.0 <= self.release_ramp_s < math.inf, "seconds, >= 0"),
            ("think_s", 0.0 <= self.think_s < math.inf, "seconds, >= 0"),
            ("token_s", 0.0 <= self.token_s < math.inf, "seconds, >= 0"),
            ("priorities", min(self.priorities.values(), default=-1.0) >= 0.0 < sum(self.priorities.values()),
             "shares >= 0, not all 0"),
        ):  # fmt: skip
            if not is_good:
                raise ConfigError(f"workload: {name} is {getattr(self, name)!r}; expected {expected}")

    def lengths(self, model: str) -> Lengths:
        """The class of a model."""
        name = model.partition("@")[0]
        found = self.classes.get(name) or self.classes.get(name.partition("-")[0]) or self.classes.get("chat")
        if found is None:
            raise ConfigError(
                f"workload: no class for model {model!r}; add one under its name, or under `chat`"
            )
        return found


def draw(workload: Workload, seed: int) -> Trace:
    """A trace of this workload; the same seed gives the same trace.

    Conversations that began before the trace are in it from their first turn inside, so that the rate is the same at
    its start as later.
    """
    streams = np.random.SeedSequence(seed).spawn(3 + len(workload.models))
    shape_rng, release_rng, priority_rng, *model_rngs = [
        np.random.Generator(np.random.Philox(stream)) for stream in streams
    ]
    clock = _Clock.of(workload)
    shares = _shares(workload, clock, shape_rng)
    parts = [
        _conversations(workload, model, shares[i], clock, rng)
        for i, (model, rng) in enumerate(zip(workload.models, model_rngs, strict=True))
    ]
    turns = _joined(parts)
    ids, model = _switched(workload, turns, release_rng)
    priority = _priorities(workload, turns.conversation, priority_rng)
    return _trace(workload, seed, turns, ids, model, priority)


@dataclass(frozen=True, slots=True)
class _Clock:
    """Cells of time, from a while before the trace begins; edges have shape ``(cells + 1,)``."""

    edges: Floats

    @classmethod
    def of(cls, workload: Workload) -> "_Clock":
        """Early enough for nearly all conversations that are still going on at 0."""
        longest_s = max(
            (
                4.0 * each.turns * (workload.think_s + workload.token_s * each.output_median)
                if each.turns > 1
                else 0.0
            )
            for each in map(workload.lengths, workload.models)
        )
        cells = min(math.ceil((longest_s + workload.duration_s) / _CELL_S), _MOST_CELLS)
        return cls(np.linspace(-longest_s, workload.duration_s, cells + 1))

    @property
    def middles(self) -> Floats:
        """Shape ``(cells,)``."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def cell_s(self) -> float:
        """Length of a cell."""
        return float(self.edges[1] - self.edges[0])


@dataclass(frozen=True, slots=True)
class _Turns:
    """Requests inside the trace, columns of shape ``(r,)``."""

    t: Floats
    model: Ints
    conversation: Ints
    prompt: Ints
    output: Ints
    prefix: Ints


def _shares(workload: Workload, clock: _Clock, rng: np.random.Generator) -> Floats:
    """Share of the requests of each model in each cell, shape ``(models, cells)``; columns sum to 1."""
    count = len(workload.models)
    steps = np.floor_divide(np.maximum(clock.middles, 0.0), workload.drift_s).astype(np.int64)
    log_share = np.empty((steps[-1] + 1, count))
    home = -workload.zipf * np.log(np.arange(1, count + 1))
    now = home.copy()
    for step in range(len(log_share)):
        if step:
            now = home + (1.0 - _PULL) * (now - home) + rng.normal(0.0, workload.drift, count)
            for _ in range(workload.swaps if count > 1 else 0):
                pair = rng.choice(count, 2, replace=False)
                home[pair], now[pair] = home[pair[::-1]], now[pair[::-1]]
        log_share[step] = now
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
    result: Floats = (share / share.sum(axis=1, keepdims=True))[steps].T
    return result


def _conversations(
    workload: Workload, model: str, share: Floats, clock: _Clock, rng: np.random.Generator
) -> _Turns:
    """All turns of one model's conversations, inside the trace; ``model`` is 0 throughout."""
    lengths = workload.lengths(model)
    intensity = share * _wave(workload, clock) * _bursts(workload, clock, rng)
    # What is too long ends early: fewer turns than asked for, so more conversations, for the rate to be as asked for.
    pilot = _dialogues(lengths, np.arange(_PILOT), rng)
    starts = _arrivals(intensity * workload.rate * _PILOT / pilot.of.size, workload.cv, clock, rng)
    dialogues = _dialogues(lengths, np.arange(starts.size), rng)
    t = starts[dialogues.of] + _delays(workload, dialogues, rng)
    return _inside(workload, dialogues, t)


def _wave(workload: Workload, clock: _Clock) -> Floats:
    """Factor on the rate in each cell by the time of day, mean 1 over the trace, shape ``(cells,)``."""
    wave: Floats = 1.0 + workload.diurnal * np.sin(2.0 * np.pi * clock.middles / workload.day_s)
    return wave / float(wave[clock.middles >= 0.0].mean())


def _bursts(workload: Workload, clock: _Clock, rng: np.random.Generator) -> Floats:
    """Factor on the rate in each cell, mean 1 in the long run, shape ``(cells,)``."""
    if workload.burst_factor == 1.0:
        return np.ones(clock.middles.size)
    calm_s = workload.burst_s * (1.0 - workload.burst_share) / workload.burst_share
    span_s = float(clock.edges[-1] - clock.edges[0])
    count = 2 * int(span_s / (calm_s + workload.burst_s) + 5.0 * math.sqrt(span_s / calm_s) + 8.0)
    begins_in_burst = rng.random() < workload.burst_share
    means = np.array([calm_s, workload.burst_s])[(np.arange(count) + begins_in_burst) % 2]
    changes = clock.edges[0] + np.cumsum(rng.exponential(means))
    is_burst = (np.searchsorted(changes, clock.middles) + begins_in_burst) % 2 == 1
    calm = 1.0 / (1.0 + (workload.burst_factor - 1.0) * workload.burst_share)
    return np.where(is_burst, calm * workload.burst_factor, calm)


def _arrivals(intensity: Floats, cv: float, clock: _Clock, rng: np.random.Generator) -> Floats:
    """A renewal process with gamma gaps, its time bent so that it has this intensity; rising, shape ``(starts,)``."""
    reached = np.concatenate([[0.0], np.cumsum(intensity * clock.cell_s)])
    shape = 1.0 / cv**2
    # Run in for a while: a gap that is being waited in is longer than most.
    warm = 20.0 * cv**2
    needed = float(reached[-1]) + warm
    points = np.empty(0)
    while not points.size or points[-1] < needed:
        gaps = rng.gamma(shape, 1.0 / shape, int(needed + 6.0 * cv * math.sqrt(needed)) + 16)
        points = np.concatenate([points, (points[-1] if points.size else 0.0) + np.cumsum(gaps)])
    points = points[(points >= warm) & (points < needed)] - warm
    return np.interp(points, reached, clock.edges)


@dataclass(frozen=True, slots=True)
class _Dialogues:
    """Turns of conversations, in order; columns of shape ``(turns,)``.

    ``of`` is the conversation, ``place`` the turn's place in it; ``said`` are the tokens of the conversation up to
    and with this answer.
    """

    of: Ints
    place: Ints
    new: Ints
    output: Ints
    said: Ints


def _dialogues(lengths: Lengths, of: Ints, rng: np.random.Generator) -> _Dialogues:
    """Geometric in their number of turns; a turn whose prompt would be too long ends the conversation before it."""
    turns = rng.geometric(1.0 / lengths.turns, of.size)
    conversation = np.repeat(of, turns)
    place = np.arange(conversation.size) - np.repeat(np.cumsum(turns) - turns, turns)
    new = _tokens(lengths.prompt_median, lengths.prompt_sigma, lengths.prompt_max, conversation.size, rng)
    output = _tokens(lengths.output_median, lengths.output_sigma, lengths.output_max, conversation.size, rng)
    said = _since_start((new + output).astype(np.float64), place).astype(np.int64)
    kept = said - output <= lengths.prompt_max
    return _Dialogues(conversation[kept], place[kept], new[kept], output[kept], said[kept])


def _tokens(median: float, sigma: float, most: int, count: int, rng: np.random.Generator) -> Ints:
    drawn = np.rint(rng.lognormal(math.log(median), sigma, count))
    tokens: Ints = np.clip(drawn, 1, most).astype(np.int64)
    return tokens


def _since_start(steps: Floats, place: Ints) -> Floats:
    """Running sums that begin anew with every conversation, shape ``(turns,)``."""
    running = np.cumsum(steps)
    first = np.flatnonzero(place == 0)
    before = running[first] - steps[first]
    sums: Floats = running - np.repeat(before, np.diff(first, append=place.size))
    return sums


def _delays(workload: Workload, dialogues: _Dialogues, rng: np.random.Generator) -> Floats:
    """From the start of the conversation to each turn: the earlier answers and the thinking after them."""
    thinking = rng.exponential(1.0, dialogues.of.size) * workload.think_s
    answers = np.concatenate([[0.0], dialogues.output[:-1] * workload.token_s])[: dialogues.of.size]
    return _since_start(np.where(dialogues.place == 0, 0.0, thinking + answers), dialogues.place)


def _inside(workload: Workload, dialogues: _Dialogues, t: Floats) -> _Turns:
    """The turns inside the trace; nothing repeats in it what was said before it began."""
    kept = (t >= 0.0) & (t < workload.duration_s)
    of = dialogues.of[kept]
    prompt = (dialogues.said - dialogues.output)[kept]
    is_first = np.diff(of, prepend=-1) != 0
    prefix = np.where(is_first, 0, prompt - dialogues.new[kept])
    return _Turns(t[kept], np.zeros(of.size, np.int64), of, prompt, dialogues.output[kept], prefix)


def _joined(parts: list[_Turns]) -> _Turns:
    """All models together in order of time, conversations numbered through."""
    conversation, before = [], 0
    for part in parts:
        conversation.append(part.conversation + before)
        before += int(part.conversation.max(initial=-1)) + 1
    t = np.round(np.concatenate([part.t for part in parts]), _DIGITS)
    order = np.argsort(t, kind="stable")
    return _Turns(
        t=t[order],
        model=np.repeat(np.arange(len(parts)), [part.t.size for part in parts])[order],
        conversation=np.concatenate(conversation)[order],
        prompt=np.concatenate([part.prompt for part in parts])[order],
        output=np.concatenate([part.output for part in parts])[order],
        prefix=np.concatenate([part.prefix for part in parts])[order],
    )


def _switched(workload: Workload, turns: _Turns, rng: np.random.Generator) -> tuple[list[str], Ints]:
    """Ids, and the index into them of each request, after all moves. A conversation moves once and stays."""
    ids = list(workload.models)
    model = turns.model.copy()
    conversations = int(turns.conversation.max(initial=-1)) + 1
    for switch in sorted((*workload.switches, *_releases(workload, rng)), key=lambda one: one.at_s):
        if switch.before not in ids:
            raise ConfigError(
                f"workload: nothing asks for {switch.before!r}, so it cannot give way to {switch.after!r}; "
                f"there is {', '.join(ids)} at {switch.at_s:g} s"
            )
        if switch.after not in ids:
            ids.append(switch.after)
        patience = rng.random(conversations)[turns.conversation] * switch.ramp_s
        has_moved = (model == ids.index(switch.before)) & (turns.t >= switch.at_s + patience)
        model[has_moved] = ids.index(switch.after)
    return ids, model


def _releases(workload: Workload, rng: np.random.Generator) -> list[Switch]:
    """New versions of models drawn at random."""
    current = list(workload.models)
    switches: list[Switch] = []
    at_s = 0.0
    while workload.release_every_s > 0.0:
        at_s += float(rng.exponential(workload.release_every_s))
        if at_s >= workload.duration_s:
            break
        i = int(rng.integers(len(current)))
        before, current[i] = current[i], _next_version(current[i])
        switches.append(Switch(before, current[i], at_s, workload.release_ramp_s))
    return switches


def _next_version(model: str) -> str:
    name, _, version = model.partition("@")
    return f"{name}@{int(version) + 1 if version.isdecimal() else version + '2'}"


def _priorities(workload: Workload, conversation: Ints, rng: np.random.Generator) -> Ints:
    values = np.array(sorted(workload.priorities), np.int64)
    shares = np.array([workload.priorities[int(value)] for value in values], np.float64)
    count = int(conversation.max(initial=-1)) + 1
    drawn: Ints = rng.choice(values, count, p=shares / shares.sum())[conversation]
    return drawn


def _trace(
    workload: Workload, seed: int, turns: _Turns, ids: list[str], model: Ints, priority: Ints
) -> Trace:
    is_alone = np.array([workload.lengths(one).turns == 1.0 for one in workload.models])[turns.model]
    place = numbered(model)
    return Trace(
        models=tuple(ids[i] for i in model[np.unique(place, return_index=True)[1]]),
        t=turns.t,
        model=place.astype(np.int32),
        prompt_tokens=turns.prompt,
        output_tokens=turns.output,
        session=numbered(np.where(is_alone, -1, turns.conversation)),
        prefix_tokens=turns.prefix,
        priority=priority,
        header=Header(source="synth", generated=True, seed=seed, rows_read=0, rows=turns.t.size),
    )
