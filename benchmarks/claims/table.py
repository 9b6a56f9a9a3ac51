"""The claims, as a table: who is compared with whom on which days, and what would be good enough."""

from typing import Final, NamedTuple

from benchmarks.claims.days import Days, Drawn, Named, Windows
from envs.randomised import REGIMES


class Bar(NamedTuple):
    """What is good enough.

    Args:
        limit: of the value.
        at_least: whether more is better.
        is_certain: whether the whole interval has to be on the good side of 1, too.
    """

    limit: float
    at_least: bool = False
    is_certain: bool = False

    @property
    def words(self) -> str:
        """For the report."""
        sign, side = (">=", "above") if self.at_least else ("<=", "below")
        return f"{sign} {self.limit:g}" + (f", interval {side} 1" if self.is_certain else "")

    def is_met(self, value: float, low: float | None, high: float | None) -> bool:
        """Whether a measurement is good enough."""
        if self.at_least:
            return value >= self.limit and (not self.is_certain or (low is not None and low > 1.0))
        return value <= self.limit and (not self.is_certain or (high is not None and high < 1.0))


class Line(NamedTuple):
    """A claim.

    Args:
        id: short and stable.
        claim: in words.
        days: where it is measured.
        against: whom the learned policy is compared with, a key of the contenders; empty: with nobody, its own mean
            counts; :data:`RETUNED` and :data:`BEST` are found for the days at hand.
        metric: one of :data:`benchmarks.claims.play.KEPT`.
        bar: what is good enough.
    """

    id: str
    claim: str
    days: Days
    against: str
    metric: str
    bar: Bar


#: Weights tuned for exactly these days.
RETUNED: Final = "retuned"
#: The heuristic that does best on these days.
BEST: Final = "best heuristic"
#: The learned policy's own cost terms under its own weights, the network off.
COST_ALONE: Final = "tuned cost alone"
#: The learned policy that refuses and holds nothing.
SENDS_ALL: Final = "the same, sending everything"

_MEDIUM, _HIGH, _OVERLOAD = Named("medium"), Named("high"), Named("overload-4.2")
_ONE, _FOUR, _EIGHT = (Drawn(replicas, hidden=False) for replicas in (1, 4, 8))
_HIDDEN_FOUR, _HIDDEN_EIGHT = (Drawn(replicas, hidden=True) for replicas in (4, 8))

# fmt: off
TABLE: Final[tuple[Line, ...]] = (
    Line("article-medium-mean", "mean latency against the article's score, medium load", _MEDIUM, "article", "mean_s", Bar(0.60)),
    Line("article-medium-p99", "P99 against the article's score, medium load", _MEDIUM, "article", "p99_s", Bar(0.60)),
    Line("article-high-mean", "mean latency against the article's score, high load", _HIGH, "article", "mean_s", Bar(0.60)),
    Line("article-high-p99", "P99 against the article's score, high load", _HIGH, "article", "p99_s", Bar(0.60)),
    Line("slo-high", "kept promises at high load", _HIGH, "", "slo", Bar(0.97, at_least=True)),
    Line("greedy-medium", "cost against greedy predicted latency, medium load", _MEDIUM, "least_latency", "cost", Bar(0.85)),
    Line("greedy-high", "cost against greedy predicted latency, high load", _HIGH, "least_latency", "cost", Bar(0.70)),
    Line("residual", "cost of the network against the tuned cost alone, one router, full information", _ONE, COST_ALONE, "cost", Bar(1.02)),
    Line("residual-p99", "P99 of the same", _ONE, COST_ALONE, "p99_s", Bar(1.05)),
    *(
        Line(f"residual-{regime}{'-p99' if metric == 'p99_s' else ''}", f"{words}, {regime} load only", Drawn(1, hidden=False, regime=regime), COST_ALONE, metric, bar)
        for regime in REGIMES
        for metric, words, bar in (("cost", "the same cost", Bar(1.02)), ("p99_s", "the same P99", Bar(1.05)))
    ),
    Line("unshared-4", "cost against weights tuned for 4 routers with ledgers of their own", _FOUR, RETUNED, "cost", Bar(0.93, is_certain=True)),
    Line("unshared-8", "cost against weights tuned for 8 routers with ledgers of their own", _EIGHT, RETUNED, "cost", Bar(0.88, is_certain=True)),
    Line("hidden-4", "cost against weights tuned for 4 routers and hidden node speeds", _HIDDEN_FOUR, RETUNED, "cost", Bar(0.88, is_certain=True)),
    Line("hidden-4-p99", "P99 of the same", _HIDDEN_FOUR, RETUNED, "p99_s", Bar(0.90, is_certain=True)),
    Line("hidden-8", "cost against weights tuned for 8 routers and hidden node speeds", _HIDDEN_EIGHT, RETUNED, "cost", Bar(0.88, is_certain=True)),
    Line("hidden-8-p99", "P99 of the same", _HIDDEN_EIGHT, RETUNED, "p99_s", Bar(0.90, is_certain=True)),
    Line("one-policy-1", "one policy for all against weights tuned for exactly 1 router", _ONE, RETUNED, "cost", Bar(1.00)),
    Line("one-policy-4", "one policy for all against weights tuned for exactly 4 routers", _FOUR, RETUNED, "cost", Bar(1.00)),
    Line("one-policy-8", "one policy for all against weights tuned for exactly 8 routers", _EIGHT, RETUNED, "cost", Bar(1.00)),
    Line("zero-shot-32", "cost on 32 nodes, never trained on, against the tuned cost alone", Named("fleet-32"), COST_ALONE, "cost", Bar(1.03)),
    Line("refuse-goodput", "goodput at 4.2 req/s per node against the same policy sending everything", _OVERLOAD, SENDS_ALL, "goodput", Bar(1.2, at_least=True)),
    Line("refuse-slo", "kept promises over all offered, likewise", _OVERLOAD, SENDS_ALL, "slo", Bar(1.2, at_least=True)),
    Line("refused-steady", "share refused below saturation, steady load", Named("steady"), "", "reject_rate", Bar(0.005)),
    Line("refused-medium", "share refused below saturation, medium load", _MEDIUM, "", "reject_rate", Bar(0.005)),
)
# fmt: on


def of_trace(windows: Windows) -> tuple[Line, Line]:
    """The claims about a public trace, which nothing was trained on."""
    words = f"on {windows.name}, against the heuristic that does best there"
    return (
        Line(f"trace-{windows.name}-cost", f"cost {words}", windows, BEST, "cost", Bar(1.00)),
        Line(f"trace-{windows.name}-p99_s", f"P99 {words}", windows, BEST, "p99_s", Bar(1.05)),
    )
