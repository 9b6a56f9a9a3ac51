"""The comparison as one HTML file: no network, no scripts, light and dark."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from envs.evaluation import plots
from envs.evaluation.comparison import ALL, Comparison, Row
from envs.evaluation.manifest import flat
from envs.evaluation.metrics import METRICS
from envs.evaluation.style import CSS
from envs.evaluation.terminal import counted, interval, notes, number

_SHOWN: Final = (
    "mean_s", "p50_s", "p99_s", "ttft_p99_s", "slo", "goodput", "cold_starts", "evictions", "peak_gib", "reject_rate",
)  # fmt: skip

_HOW_TO_READ: Final = """
<p>Every policy met the same arrivals with the same seeds, so each episode gives one <em>pair</em>. A ratio of 0.90 means
10 % less than the baseline, as the geometric mean over episodes (for counts and shares: the ratio of the means). The
bar is the 95 % interval of that mean, the pale dots are single episodes: a policy can be better on average and
still lose on some days.</p>
<p><strong>Better</strong> and <strong>worse</strong> mean that the interval does not cover 1; a <strong>tie</strong>
means that these seeds cannot tell the two apart, not that they are equal. Differences of a few per cent need a hundred
episodes or more. With many comparisons some verdicts are chance; the note below says how many to expect and which
do not survive a correction.</p>
<p>Cost is a quarter per second of latency, up to a minute, and two for a missed promise (2.5 times the latency on
an idle, warm node, and 2 s); a refused request has missed it. Latencies are of served requests only: a policy that refuses
much looks fast, so read them beside the share that kept the SLO, which counts every offered request.</p>
<p>All this is a simulation: its nodes follow fitted equations, its traffic is made or recorded. It ranks policies under
its assumptions; only an experiment on your own fleet tells what yours would gain.</p>
"""


def page(comparison: Comparison, about: Mapping[str, str], manifest: Mapping[str, Any]) -> str:
    """The whole report.

    Args:
        comparison: to show.
        about: scenario -> what it is, in a line.
        manifest: where the numbers come from.
    """
    sections = [_overview(comparison), _reading(comparison)]
    for i, name in enumerate(comparison.scenarios):
        sections.append(_scenario(comparison, name, i, about.get(name, "")))
    sections.append(_origin(manifest))
    title = f"Policies compared with {comparison.plan.baseline}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{CSS}</style></head>\n'
        f"<body><main><header><h1>{_text(title)}</h1><p>{_text(_in_short(comparison, manifest))}</p></header>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _in_short(comparison: Comparison, manifest: Mapping[str, Any]) -> str:
    plan = comparison.plan
    counts = sorted({len(comparison.seeds[name]) for name in comparison.scenarios}) or [0]
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{counted(len(plan.labels), 'policy', 'policies')}, {counted(len(comparison.scenarios), 'scenario')}, "
        f"seeds: {seeds} each; "
        f"{str(manifest['when'])[:10]}, commit {manifest['commit'] or 'unknown'}."
    )


def _overview(comparison: Comparison) -> str:
    plan = comparison.plan
    if not plan.challengers or not comparison.scenarios:
        return "<section><p>There is nothing to compare: name at least two policies.</p></section>"
    drawing = plots.forest(
        [plots.Line(row) for row in comparison.summary()],
        "overview",
        f"Cost of each policy relative to {plan.baseline}, average over scenarios",
        f"cost relative to {plan.baseline}, all scenarios with the same weight",
    )
    head = "".join(f"<th>{_text(label)}</th>" for label in plan.challengers)
    body = "".join(
        f'<tr><th><a href="#s{i}">{_text(name)}</a></th>'
        + "".join(_glance(comparison.row(name, label, "cost")) for label in plan.challengers)
        + "</tr>"
        for i, name in enumerate(comparison.scenarios)
    )
    foot = "".join(_glance(row) for row in comparison.summary())
    return (
        f"<section><h2>Cost at a glance</h2>{_wide(drawing)}"
        + _wide(
            f"<table><thead><tr><th>scenario</th>{head}</tr></thead>"
            f"<tbody>{body}</tbody><tfoot><tr><th>{ALL}</th>{foot}</tr></tfoot></table>"
        )
        + "</section>"
    )


def _reading(comparison: Comparison) -> str:
    said = "".join(f"<li>{_text(line)}</li>" for line in notes(comparison, "cost"))
    return f'<section class="reading"><h2>How to read this</h2>{_HOW_TO_READ}<ul>{said}</ul></section>'


def _scenario(comparison: Comparison, name: str, number_: int, about: str) -> str:
    n = len(comparison.seeds[name])
    return (
        f'<section id="s{number_}"><h2>{_text(name)}</h2><p class="about">{_text(about)} '
        f"<span>{counted(n, 'seed')}</span></p>"
        f"{_wide(plots.scenario(comparison, name, number_))}"
        f"{_figures(comparison, name)}<details><summary>All ratios</summary>{_ratios(comparison, name)}</details></section>"
    )


def _figures(comparison: Comparison, name: str) -> str:
    """The figures themselves, beside the ratio of the cost."""
    rows = []
    for label in comparison.plan.labels:
        cost = comparison.row(name, label, "cost")
        ratio = "<td>1</td>" if cost.verdict == "baseline" else f"<td>{_text(interval(cost))}</td>"
        values = [number(comparison.row(name, label, metric).value) for metric in _SHOWN]
        rows.append(
            f"<tr><th>{_text(label)}</th>{ratio}{_cells(values)}"
            f'<td class="{cost.verdict or ""}">{cost.verdict or "-"}</td></tr>'
        )
    return _table(["policy", "cost ratio", *[METRICS[metric].short for metric in _SHOWN], "verdict"], rows)


def _ratios(comparison: Comparison, name: str) -> str:
    """Every metric of every challenger, with intervals."""
    rows = [
        f"<tr><th>{_text(facts.label)}</th>"
        + "".join(_ratio_cell(comparison.row(name, label, metric)) for label in comparison.plan.challengers)
        + "</tr>"
        for metric, facts in METRICS.items()
    ]
    return _table(["metric, relative to the baseline", *comparison.plan.challengers], rows)


def _origin(manifest: Mapping[str, Any]) -> str:
    facts = flat({key: value for key, value in manifest.items() if key != "command"})
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return (
        "<section><h2>Where this comes from</h2><p>The command that made it; the same seeds give the same figures, except "
        f"for decision times.</p><pre>{_text(str(manifest['command']))}</pre><dl>{lines}</dl></section>"
    )


def _ratio_cell(row: Row) -> str:
    return f'<td class="{row.verdict or ""}">{_text(interval(row))}</td>'


def _glance(row: Row) -> str:
    """The ratio, and its interval small below: many policies fit side by side."""
    ratio, _, ends = interval(row).partition(" ")
    return f'<td class="{row.verdict or ""}">{_text(ratio)}<small>{_text(ends)}</small></td>'


def _cells(values: Iterable[str]) -> str:
    return "".join(f"<td>{_text(value)}</td>" for value in values)


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    return _wide(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _wide(element: str) -> str:
    """Scrolls by itself where the screen is narrow."""
    return f'<div class="wide">{element}</div>'


def _text(text: str) -> str:
    return html.escape(text)
