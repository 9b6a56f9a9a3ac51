"""docs/results.md out of what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from benchmarks.claims.claims import Claim
from benchmarks.claims.play import CLOSE, tuned
from benchmarks.claims.table import COST_ALONE

_MET: Final = {True: "yes", False: "**no**", None: "not measured"}
#: Claims about several routers, in the order of the rows of headroom.
_SEVERAL: Final = ("unshared-4", "unshared-8", "hidden-4", "hidden-8")
_VERDICTS: Final = {"better": "better", "worse": "**worse**", "tie": "tie", None: ""}


def page(document: Mapping[str, Any], claims: Sequence[Claim]) -> str:
    """The page of a document as docs/results.json has it."""
    parts = (
        _head(document["facts"], claims),
        _claims(claims),
        _missed(claims),
        _headroom(document["headroom"], claims),
        _regimes(document["regimes"]),
        _traces(document["traces"], document["facts"]["left_out"]),
        _seeds(document["seeds"]),
        _sizes(document["sizes"]),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _head(facts: Mapping[str, Any], claims: Sequence[Claim]) -> Iterable[str]:
    yield "# What the learned policy does, and what it does not"
    yield ""
    yield (
        f"Written by `{facts['command']}`: {facts['weights']}, commit {facts['commit']}, {facts['machine']}. Each line is"
    )
    yield (
        f"paired on up to {facts['days']} days that nothing was trained or chosen on, an episode being one pair. Ratios are geometric means, below"
    )
    yield "1 is better unless the bar says otherwise, intervals are 95 %. A bar that also wants the interval is met only by both."
    yield ""
    yield f"{sum(one.met is True for one in claims)} of {len(claims)} bars are met, {sum(one.met is None for one in claims)} were not measured."
    yield ""


def _claims(claims: Sequence[Claim]) -> Iterable[str]:
    yield "| id | claim | bar | measured | 95 % interval | pairs | met | command |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in claims:
        value = "-" if one.value is None else f"{one.value:.3f}"
        interval = "-" if one.low is None or one.high is None else f"[{one.low:.3f}, {one.high:.3f}]"
        pairs = one.n if one.low is not None else "-"
        yield f"| {one.id} | {one.claim} | {one.bar} | {value} | {interval} | {pairs} | {_MET[one.met]} | `{one.command}` |"
    yield ""


def _missed(claims: Sequence[Claim]) -> Iterable[str]:
    missed = [one for one in claims if one.met is False]
    if missed:
        yield "## Bars that are missed"
        yield ""
        yield from (f"- `{one.id}`: {one.value:.3f} where {one.bar} was wanted." for one in missed)
        yield ""


def _headroom(rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim]) -> Iterable[str]:
    bars = {one.id: one for one in claims}
    yield "## What seeing every request would give several routers"
    yield ""
    yield "Routers with ledgers of their own see each other's requests only by telemetry. The same policy on the same days through *one* router, which sees all of them,"
    yield "costs what this policy would with a shared ledger. It is a yardstick and no bound: another policy may do better with or without one."
    yield ""
    yield "| days | pairs | cost through one router, of that through several | that, of weights tuned for exactly these days |"
    yield "|---|---|---|---|"
    for row, name in zip(rows, _SEVERAL, strict=False):
        found, ours = row["one_ledger"], bars[name].value
        both = "-" if ours is None else f"{ours * found['value']:.3f}"
        yield f"| {row['days']} | {found['n']} | {_cell(found)} | {both} |"
    yield ""


def _regimes(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield "## Where learning helps, and where it does not"
    yield ""
    yield "Cost of the learned policy, by level of load of drawn deployments and by scenario of the suite `full`. *Tie*: the interval covers 1."
    yield ""
    yield "| days | pairs | against `least_cost`, tuned | | against its own cost terms, network off | |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        first, second = row["least_cost"], row[COST_ALONE]
        yield f"| {row['days']} | {first['n']} | {_cell(first)} | {_VERDICTS[first['verdict']]} | {_cell(second)} | {_VERDICTS[second['verdict']]} |"
    yield ""


def _traces(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> Iterable[str]:
    yield "## On public traces"
    yield ""
    if not rows:
        yield "Not measured: the data sets are not part of this project; `--traces DIRECTORY` reads them."
        yield ""
        return
    yield "Weights trained on drawn days only. Each trace is cut into stretches that do not overlap, one pair each, as recorded, on as many A10 as"
    yield "[its work](../envs/work.py) asks for. They say what users ask, not how an A10 answered. Cost and P99 of the learned policy against each"
    yield "heuristic that is close:"
    yield ""
    names = [tuned(name).name for name in CLOSE]
    yield "| trace | A10 | what it is | " + " | ".join(f"`{name}` cost, P99" for name in names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    for row in rows:
        cells = (f"{_cell(row[name]['cost'])}, {_cell(row[name]['p99_s'])}" for name in names)
        yield f"| {row['trace']} | {row['nodes']} | {row['about']} | " + " | ".join(cells) + " |"
    yield ""
    if left_out:
        yield from (f"Left out: `{name}` ({why})." for name, why in left_out.items())
        yield ""


def _seeds(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if len(rows) < 2:
        return
    yield "## Other seeds of training"
    yield ""
    yield "The same command with another `--seed`, each on the same unseen drawn days."
    yield ""
    yield "| weights | cost against `least_cost` | P99 | cost against the first line |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {row['weights']} | {_cell(row['least_cost'])} | {_cell(row['least_cost_p99'])} | {_cell(row['learned'])} |"
    yield ""


def _sizes(sizes: Mapping[str, float]) -> Iterable[str]:
    yield "## Sizes"
    yield ""
    yield "| what | how many |"
    yield "|---|---|"
    yield from (f"| {name} | {number:,.0f} |" for name, number in sizes.items())


def _cell(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
