"""Measures the table of claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.claims.days import Days, Drawn, Windows
from benchmarks.claims.play import CLOSE, Bench, Contender, sending_everything, tuned, without_network
from benchmarks.claims.retuned import retuned
from benchmarks.claims.table import BEST, COST_ALONE, RETUNED, SENDS_ALL, Bar, Line
from ccr.policies.network import Network
from envs.evaluation.statistics import Ratio

COMMAND: Final = "python -m benchmarks.claims"


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the report.

    Args:
        id: short and stable.
        claim: in words.
        bar: in words.
        value: measured; ``None``: it was not.
        low: lower end of the 95 % interval; ``None`` where there is none.
        high: upper end.
        n: pairs behind it.
        met: whether the bar is met; ``None``: not measured.
        command: that measures it.
    """

    id: str
    claim: str
    bar: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    met: bool | None = None
    command: str = COMMAND


def judged(name: str, words: str, bar: Bar, found: Ratio, command: str = COMMAND) -> Claim:
    """A claim and what was measured."""
    value, low, high = found.ratio, found.low, found.high
    met = None if value is None else bar.is_met(value, low, high)
    return Claim(name, words, bar.words, value, low, high, found.n, met, command)


class Field:
    """The learned policy and those it meets.

    Args:
        bench: plays.
        network: of the learned policy.
        keep: directory where retuned weights are kept.
    """

    def __init__(self, bench: Bench, network: Network, keep: Path | None) -> None:
        self.learned = Contender("learned", network=network)
        self.cost_alone = Contender(COST_ALONE, network=without_network(network))
        self.least_cost = tuned("least_cost")
        self._bench = bench
        self._network = network
        self._keep = keep
        self._named: Mapping[str, Contender] = {
            COST_ALONE: self.cost_alone,
            SENDS_ALL: Contender(SENDS_ALL, network=sending_everything(network)),
        }

    def who(self, line: Line) -> Contender | None:
        """Whom a line compares with; of some days that is found out first."""
        if line.against == RETUNED and isinstance(line.days, Drawn):
            return retuned(self._bench, line.days, self._network, self._keep)
        if line.against == BEST:
            return self.best_on(line.days)
        if not line.against:
            return None
        return self._named.get(line.against) or Contender(line.against)

    def best_on(self, days: Days) -> Contender:
        """The tuned heuristic with the least cost on these very days, which flatters it."""
        known = [tuned(name) for name in CLOSE]
        return min(known, key=lambda each: float(np.log(self._bench.figures(days, each, "cost")).mean()))


def measured(bench: Bench, field: Field, lines: Sequence[Line]) -> list[Claim]:
    """Every line of the table."""
    everybody = [(line, field.who(line)) for line in lines if line.against not in {RETUNED, BEST}]
    pairs = [(line.days, who) for line, known in everybody for who in (field.learned, known) if who]
    traces = {line.days for line in lines if isinstance(line.days, Windows)}
    pairs += [(days, who) for days in traces for who in (field.learned, *map(tuned, CLOSE))]
    bench.play("claims", pairs)
    found = []
    opponents: dict[tuple[Days, str], Contender | None] = {
        (line.days, line.against): who for line, who in everybody
    }
    for line in lines:
        key = (line.days, line.against)
        if key not in opponents:
            opponents[key] = field.who(line)
        found.append(_measured(bench, field.learned, line, opponents[key]))
    return found


def _measured(bench: Bench, learned: Contender, line: Line, opponent: Contender | None) -> Claim:
    if opponent is None:
        return judged(line.id, line.claim, line.bar, bench.level(line.days, learned, line.metric))
    words = line.claim + (f", {opponent.name}" if line.against == BEST else "")
    return judged(line.id, words, line.bar, bench.ratio(line.days, learned, opponent, line.metric))
