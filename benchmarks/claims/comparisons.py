"""Beside the claims: every kind of day, every trace and every training seed, so that nobody has to guess where learning helps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.claims.claims import Claim, Field, judged
from benchmarks.claims.days import Days, Drawn, Named, Windows
from benchmarks.claims.play import CLOSE, Bench, Contender, tuned
from benchmarks.claims.table import Bar
from ccr.policies.network import Network
from envs.evaluation.statistics import Ratio, geometric
from envs.randomised import REGIMES
from envs.scenarios import SUITES

Row = dict[str, Any]


def regimes(bench: Bench, field: Field) -> list[Row]:
    """Learned against the tuned heuristic, and against its own tuned cost alone, by level of load and by scenario."""
    kinds: list[Days] = [Drawn(regime=regime) for regime in REGIMES]
    kinds += [Named(name) for name in SUITES["full"]]
    rivals = (field.least_cost, field.cost_alone)
    bench.play("regimes", [(days, who) for days in kinds for who in (field.learned, *rivals)])
    return [
        {
            "days": days.words,
            **{who.name: _row(bench.ratio(days, field.learned, who, "cost")) for who in rivals},
        }
        for days in kinds
    ]


def headroom(bench: Bench, field: Field) -> list[Row]:
    """The same days through one router instead of several: what sharing the ledger would give this policy."""
    kinds = [Drawn(replicas, hidden=hidden) for hidden in (False, True) for replicas in (4, 8)]
    alone = {hidden: Drawn(1, hidden=hidden) for hidden in (False, True)}
    bench.play("one ledger", [(days, field.learned) for days in (*alone.values(), *kinds)])
    return [
        {
            "days": days.words,
            "one_ledger": _row(
                geometric(
                    bench.figures(alone[bool(days.hidden)], field.learned, "cost"),
                    bench.figures(days, field.learned, "cost"),
                )
            ),
        }
        for days in kinds
    ]


def traces(bench: Bench, field: Field, windows: Iterable[Windows]) -> list[Row]:
    """Learned against each heuristic that is close, on public traces."""
    return [
        {"trace": each.name, "about": each.about, "nodes": each.nodes}
        | {
            who.name: {
                metric: _row(bench.ratio(each, field.learned, who, metric)) for metric in ("cost", "p99_s")
            }
            for who in map(tuned, CLOSE)
        }
        for each in windows
    ]


def seeds(bench: Bench, field: Field, others: Mapping[str, Network]) -> list[Row]:
    """Weights of other training seeds on the same days: against the tuned heuristic, and against the shipped weights."""
    contenders = [field.learned, *(Contender(name, network=network) for name, network in others.items())]
    bench.play("training seeds", [(Drawn(), who) for who in (*contenders, field.least_cost)])
    return [
        {
            "weights": who.name,
            "least_cost": _row(bench.ratio(Drawn(), who, field.least_cost, "cost")),
            "least_cost_p99": _row(bench.ratio(Drawn(), who, field.least_cost, "p99_s")),
            "learned": _row(bench.ratio(Drawn(), who, field.learned, "cost")),
        }
        for who in contenders
    ]


def of_seeds(rows: Sequence[Row]) -> list[Claim]:
    """What the seeds have to show: the least lucky one is better than the heuristic, and close to the shipped one."""
    words = "cost of the least lucky training seed against "
    lines = (
        ("seeds-heuristic", words + "the tuned heuristic", "least_cost", Bar(1.00, is_certain=True)),
        ("seeds-spread", words + "the shipped weights", "learned", Bar(1.05)),
    )
    if len(rows) < 2:
        return [Claim(name, claim, bar.words) for name, claim, _, bar in lines]
    found = []
    for name, claim, column, bar in lines:
        worst = max((row[column] for row in rows), key=lambda each: float(each["value"]))
        ratio = Ratio(worst["value"], worst["low"], worst["high"], None, 0, worst["n"])
        found.append(judged(name, f"{claim}, of {len(rows)}", bar, ratio))
    return found


def _row(found: Ratio) -> Row:
    facts = asdict(found)
    return {
        "value": facts["ratio"], "low": facts["low"], "high": facts["high"], "n": facts["n"],
        "verdict": found.verdict(higher_is_better=False),
    }  # fmt: skip
