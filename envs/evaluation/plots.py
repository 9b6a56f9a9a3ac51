"""The plots of a report, as SVG that takes its colours from the page: one drawing for light and dark."""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from envs.evaluation.comparison import Comparison, Row
from envs.evaluation.result import LEVELS

#: Stand-ins that matplotlib draws with -> the variable of the page they become.
_COLOURS: Final = {
    "#010101": "var(--ink)",
    "#010102": "var(--muted)",
    "#010103": "var(--line)",
    "#010104": "var(--better)",
    "#010105": "var(--worse)",
} | {f"#0102{i:02x}": f"var(--series-{i})" for i in range(8)}
_INK, _MUTED, _LINE, _BETTER, _WORSE = list(_COLOURS)[:5]
_SERIES: Final = tuple(list(_COLOURS)[5:])
_DASHES: Final = ("-", (0, (5, 2)), (0, (1, 1.5)))
_WIDTH_IN: Final = 9.6
_ROW_IN: Final = 0.34
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the font of the page
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_VERDICT_COLOURS: Final = {"better": _BETTER, "worse": _WORSE}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a forest plot.

    Args:
        row: the ratio and its verdict.
        episodes: paired ratios of the single episodes, to be seen behind it.
    """

    row: Row
    episodes: Sequence[float] = ()


def forest(lines: Sequence[Line], name: str, title: str, label: str) -> str:
    """Ratios with their intervals, one line each.

    Args:
        lines: from top to bottom.
        name: unique on the page.
        title: for those who cannot see it.
        label: of the axis.
    """
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = _figure(len(lines))
        _draw_forest(figure.subplots(), lines, label)
        return _svg(figure, name, title)


def scenario(comparison: Comparison, name: str, number: int) -> str:
    """Cost ratios beside the latencies they come from.

    Args:
        comparison: of everything.
        name: of the scenario.
        number: unique on the page.
    """
    lines = [
        Line(comparison.row(name, label, "cost"), _finite(np.exp(comparison.log_ratios(name, label, "cost"))))
        for label in comparison.plan.challengers
    ]
    with rc_context(_STYLE | {"svg.hashsalt": f"scenario-{number}"}):
        figure = _figure(max(len(lines), 7))
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.1))
        _draw_forest(left, lines, f"cost relative to {comparison.plan.baseline}")
        _draw_tails(right, comparison, name)
        return _svg(figure, f"scenario-{number}", f"{name}: cost ratios with intervals, and latency tails")


def _draw_forest(axes: Axes, lines: Sequence[Line], label: str) -> None:
    axes.axvline(1.0, color=_MUTED, linewidth=1.0)
    for y, line in enumerate(reversed(lines)):
        ratio = line.row.against
        if ratio.ratio is None or ratio.ratio <= 0.0:
            continue
        colour = _VERDICT_COLOURS.get(line.row.verdict or "", _INK)
        spread = 0.26 * np.sin(np.arange(len(line.episodes)) * 2.4)  # spread out, the same each time
        axes.scatter(line.episodes, y + spread, s=7, color=_MUTED, alpha=0.28, linewidths=0)
        if ratio.low is not None and ratio.high is not None:
            axes.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot([ratio.ratio], [y], "o", color=colour, markersize=6)
    axes.set_yticks(range(len(lines)), [line.row.policy for line in reversed(lines)])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    _ratio_ticks(axes, lines)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _ratio_ticks(axes: Axes, lines: Sequence[Line]) -> None:
    """Round ratios, symmetric for the eye; a log axis would label 10 and 100."""
    seen = [1.0]
    for line in lines:
        ends = (line.row.against.ratio, line.row.against.low, line.row.against.high)
        seen += [value for value in ends if value]
        seen += [float(value) for value in line.episodes]
    low, high = min(seen) / 1.03, max(seen) * 1.03
    low, high = min(low, 0.94), max(high, 1.06)
    round_ones = np.array(
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100]
    )  # fmt: skip
    inside = round_ones[(round_ones >= low) & (round_ones <= high)]
    kept: list[float] = [1.0]
    for tick in sorted(inside, key=lambda value: abs(np.log(value))):
        if min(abs(np.log(tick / other)) for other in kept) > 0.11 * np.log(high / low):
            kept.append(float(tick))
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(sorted(kept)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_tails(axes: Axes, comparison: Comparison, name: str) -> None:
    """Share of served requests that took longer; log on both axes, so the tail is as visible as the body."""
    for i, label in enumerate(comparison.plan.labels):
        latencies_s = comparison.latencies_s(name, label)
        if len(latencies_s):
            is_baseline = label == comparison.plan.baseline
            axes.plot(
                latencies_s, 1.0 - np.array(LEVELS), label=label,
                color=_INK if is_baseline else _SERIES[i % len(_SERIES)],
                linestyle=_DASHES[i // len(_SERIES) % len(_DASHES)], linewidth=2.2 if is_baseline else 1.5,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 1.15)
    axes.yaxis.set_major_locator(FixedLocator([1.0, 0.5, 0.1, 0.05, 0.01, 0.001]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100.0 * value:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", colors=_MUTED)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("served requests slower than this")
    axes.grid(color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8.5, loc="lower left", handlelength=1.8, labelspacing=0.35)


def _figure(rows: int) -> Figure:
    return Figure(figsize=(_WIDTH_IN, 0.9 + _ROW_IN * rows), layout="constrained")


def _svg(figure: Figure, name: str, title: str) -> str:
    """The drawing as an element of a page: its ids made unique, its colours made variables."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    for stand_in, variable in _COLOURS.items():
        svg = svg.replace(stand_in, variable)
    described = f'<svg role="img" aria-label="{html.escape(title, quote=True)}" '
    return re.sub(r'(width|height)="[\d.]+pt" ?', "", svg.replace("<svg ", described, 1), count=2)


def _finite(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in values[np.isfinite(values)]]
