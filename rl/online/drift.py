"""Says what drifted: which quantity of which node or model, by how much, since when.

Every quantity is a stream of numbers whose level should stay: means of blocks, so that one number hangs little on the
next. A stream that is new is looked at for a while; its middle and its spread then are what is normal. From there on two
sums (CUSUM; Page, Biometrika 1954), one for each direction, add up what lies beyond half the shift that counts, and
begin again at nothing. A sum above the bar is a drift, if the level since that sum began has moved by as much as matters at
all. The new level is what is normal from then on.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from rl.online.batch import Batch
from rl.online.windows import Floats, Ids

#: Blocks that say what is normal.
LEARNED_BLOCKS: Final = 16
#: Of those that were normal, the latest so many go on saying it.
NORMAL_BLOCKS: Final = 120
_SETTLED_EVERY: Final = 10
_MOST_HANGING: Final = 0.8
#: The shift that is looked for, in spreads of a block, and the bar of the sums; see docs/learner.md for what they give.
SHIFT: Final = 1.5
BAR: Final = 10.0
#: A block counts for no more than so many spreads: one that is far off may be anything.
_MOST_OFF: Final = 4.0
#: Drifts that are told of, and for how long.
_TOLD: Final = 32
TOLD_S: Final = 900.0
_MAD: Final = 1.4826
_LEAST_SPREAD: Final = 0.01
#: Slices of the clock in which requests are counted.
SLICE_S: Final = 5.0
_RARE_SHARE: Final = 0.02


class Quantity(NamedTuple):
    """What a stream is about.

    Args:
        name: for programs.
        words: for people; ``{}`` stands for whose.
        block: numbers that make one of the stream.
        least: factor by which the level has to move to be told.
    """

    name: str
    words: str
    block: int
    least: float


SPEED: Final = Quantity("speed", "time of answers of node {}, warm", 8, 1.4)
PREFILL: Final = Quantity("prefill", "time to the first token on node {}, warm", 8, 1.5)
LOAD: Final = Quantity("load", "load time of model {}", 2, 1.25)
LENGTH: Final = Quantity("length", "answer length of model {}", 24, 1.4)
SHARE: Final = Quantity("share", "share of the requests for model {}", 3, 1.5)
RATE: Final = Quantity("rate", "requests per second", 3, 1.4)


@dataclass(frozen=True, slots=True)
class Drift:
    """One that was found.

    Args:
        quantity: what.
        whose: hash of the node or model; 0 where it is the fleet's.
        factor: new level over what was normal.
        since_s: when the new level began, seconds since 1970.
        found_s: when it was found.
    """

    quantity: Quantity
    whose: int
    factor: float
    since_s: float
    found_s: float

    def told(self, names: Mapping[int, str]) -> str:
        """In words."""
        words = self.quantity.words.format(named(self.whose, names))
        return f"{words}: {_times(self.factor)} what it was"

    def as_json(self, names: Mapping[int, str]) -> dict[str, Any]:
        """For programs."""
        return {
            "quantity": self.quantity.name, "whose": named(self.whose, names) if self.whose else "",
            "factor": round(self.factor, 3), "since_s": round(self.since_s, 1), "found_s": round(self.found_s, 1),
            "words": self.told(names),
        }  # fmt: skip


@dataclass(slots=True)
class Stream:
    """One stream and its two sums.

    Args:
        quantity: what it is about.
        whose: hash of the node or model.
    """

    quantity: Quantity
    whose: int
    _normal: deque[float] = field(default_factory=lambda: deque(maxlen=NORMAL_BLOCKS))
    _seen: int = 0
    _middle: float = 0.0
    _spread: float = 0.0
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _since: list[list[tuple[float, float]]] = field(default_factory=lambda: [[], []])

    def take(self, value: float, at_s: float) -> Drift | None:
        """A block: its mean, and when it began.

        Args:
            value: mean of logarithms.
            at_s: seconds since 1970.
        """
        self._seen += 1
        if len(self._normal) < LEARNED_BLOCKS:
            self._normal.append(value)
            if len(self._normal) == LEARNED_BLOCKS:
                self._settle()
            return None
        off = min(max((value - self._middle) / self._spread, -_MOST_OFF), _MOST_OFF)
        for side, sign in enumerate((1.0, -1.0)):
            self._sums[side] = max(self._sums[side] + sign * off - 0.5 * SHIFT, 0.0)
            if self._sums[side] == 0.0:
                self._since[side].clear()
                continue
            self._since[side].append((value, at_s))
            if self._sums[side] > BAR and (found := self._found(side, at_s)):
                return found
        if max(self._sums) < 0.5 * BAR:
            self._normal.append(value)
            if self._seen % _SETTLED_EVERY == 0:
                self._settle()
        return None

    def _settle(self) -> None:
        """What is normal, from the latest blocks that were; its spread is that of means of blocks that hang on each other."""
        blocks = np.array(self._normal)
        n = len(blocks)
        self._middle = float(np.median(blocks))
        off = blocks - self._middle
        spread = max(_MAD * float(np.median(np.abs(off))), 0.7 * float(blocks.std(ddof=1)), _LEAST_SPREAD)
        bounded = np.clip(off / spread, -2.0, 2.0)
        power = float(bounded @ bounded) or 1.0
        hangs = float(bounded[1:] @ bounded[:-1]) / power
        hangs = min(
            max(hangs + (1.0 + 4.0 * hangs) / n, 0.0), _MOST_HANGING
        )  # few blocks show too little of it
        self._spread = spread * (1.0 + 3.0 / n) * math.sqrt((1.0 + hangs) / (1.0 - hangs))

    def _found(self, side: int, at_s: float) -> Drift | None:
        levels = np.array([value for value, _ in self._since[side]])
        # The first of them may be of before, when the sum had begun to grow for no reason: the likeliest moment counts.
        counts = np.arange(len(levels), 0, -1)
        sums = np.cumsum((levels - self._middle)[::-1])[::-1]
        begin = int(np.argmax(np.where(sums * (1.0 - 2.0 * side) > 0.0, sums**2 / counts, 0.0)))
        moved, since_s = float(np.median(levels[begin:])) - self._middle, self._since[side][begin][1]
        if abs(moved) < math.log(self.quantity.least):
            del self._since[side][:-LEARNED_BLOCKS]  # it has moved, but by too little to be told
            self._sums[side] = BAR
            return None
        self._middle += moved
        self._normal = deque((value + moved for value in self._normal), maxlen=NORMAL_BLOCKS)
        self._sums = [0.0, 0.0]
        self._since = [[], []]
        return Drift(self.quantity, self.whose, math.exp(moved), since_s, at_s)


@dataclass(slots=True)
class _Open:
    """A block that is not full yet."""

    total: float = 0.0
    count: int = 0
    begun_s: float = 0.0


class Detector:
    """All streams of a fleet.

    Attributes:
        found: drifts of late, the latest last.
    """

    def __init__(self) -> None:
        self.found: deque[Drift] = deque(maxlen=_TOLD)
        self._streams: dict[tuple[str, int], Stream] = {}
        self._open: dict[tuple[str, int], _Open] = {}
        self._counts: dict[int, int] = {}
        self._slice = -1
        self._known: dict[int, None] = {}

    def add(self, batch: Batch) -> list[Drift]:
        """Take in what was read; drifts that it shows."""
        found: list[Drift] = []
        with np.errstate(divide="ignore", invalid="ignore"):
            found += self._numbers(SPEED, batch.node, np.log(batch.whole), batch.at_s)
            first = np.log(batch.first_s / np.maximum(batch.work_s, 1e-4))
            found += self._numbers(PREFILL, batch.node, first, batch.at_s)
            found += self._numbers(LOAD, batch.model, np.log(batch.load_s), batch.at_s)
            lengths = np.where(batch.model != 0, np.log(np.maximum(batch.output_tokens, 1.0)), np.nan)
            found += self._numbers(LENGTH, batch.model, lengths, batch.at_s)
        found += self._arrivals(batch)
        self.found += found
        return found

    def lately(self, now_s: float) -> list[Drift]:
        """Drifts that are told of still."""
        return [one for one in self.found if now_s - one.found_s <= TOLD_S]

    def _numbers(self, quantity: Quantity, whose: Ids, values: Floats, at_s: Floats) -> Iterator[Drift]:
        """Add the numbers of each key to its block; a block that is full goes to its stream."""
        good = np.isfinite(values)
        if not good.any():
            return
        whose, values, at_s = whose[good], values[good], at_s[good]
        order = np.argsort(whose, kind="stable")
        distinct, begins = np.unique(whose[order], return_index=True)
        for key, mine in zip(distinct.tolist(), np.split(order, begins[1:]), strict=True):
            yield from self._blocks(quantity, key, values[mine], at_s[mine])

    def _blocks(self, quantity: Quantity, key: int, values: Floats, at_s: Floats) -> Iterator[Drift]:
        open_ = self._open.setdefault((quantity.name, key), _Open())
        while len(values):
            if open_.count == 0:
                open_.begun_s = float(at_s[0])
            room = quantity.block - open_.count
            open_.total += float(values[:room].sum())
            open_.count += len(values[:room])
            values, at_s = values[room:], at_s[room:]
            if open_.count == quantity.block:
                yield from self._block(quantity, key, open_.total / open_.count, open_.begun_s)
                open_.total, open_.count = 0.0, 0

    def _block(self, quantity: Quantity, key: int, value: float, at_s: float) -> Iterator[Drift]:
        stream = self._streams.get((quantity.name, key))
        if stream is None:
            stream = self._streams[quantity.name, key] = Stream(quantity, key)
        if (found := stream.take(value, at_s)) is not None:
            yield found

    def _arrivals(self, batch: Batch) -> Iterable[Drift]:
        """Count arrivals in slices of the clock; one that is over goes to the streams of rate and shares."""
        ends = batch.is_end
        if not ends.any():
            return
        slices = (batch.at_s[ends] // SLICE_S).astype(np.int64)
        models = batch.model[ends]
        for number in np.unique(slices).tolist():
            if self._slice < 0:
                self._slice = number
            if number > self._slice:
                yield from self._sliced(number)
            found, counts = np.unique(models[slices == number], return_counts=True)
            for model, count in zip(found.tolist(), counts.tolist(), strict=True):
                self._counts[model] = self._counts.get(model, 0) + count

    def _sliced(self, now: int) -> Iterator[Drift]:
        """The slice that was open is over; those in which nobody came count too, up to a minute of them."""
        counts, began = self._counts, self._slice
        self._counts, self._slice = {}, now
        for skipped in range(min(now - began, 12)):
            total, at_s = sum(counts.values()), SLICE_S * (began + skipped)
            yield from self._numbers(RATE, _one(0), np.array([math.log(total + 0.5)]), np.array([at_s]))
            if total:
                self._known.update(dict.fromkeys(counts))
                keys = np.array([key for key in self._known if key], dtype=np.uint64)
                shares = np.array([counts.get(int(key), 0) for key in keys]) / total
                logs = np.log(shares + _RARE_SHARE)
                yield from self._numbers(SHARE, keys, logs, np.full(len(keys), at_s))
            counts = {}


def named(key: int, names: Mapping[int, str]) -> str:
    """What the config calls it; what no config names is told as that."""
    return names.get(key, f"unknown-{key:016x}")


def _times(factor: float) -> str:
    return f"{factor:.2f} times" if factor < 10.0 else f"{factor:.0f} times"


def _one(key: int) -> Ids:
    return np.array([key], dtype=np.uint64)
