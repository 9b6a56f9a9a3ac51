"""A trace as a picture: who asks when, how bursty, and how long."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ccr.errors import TraceError
from envs.traces.trace import Ints, Trace

_TOP = 8
_WINDOWS = 120
# Okabe and Ito: told apart also by those who see colours differently. The last is for all the others together.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#332288", "#BBBBBB")


def plot(trace: Trace, path: Path, title: str = "") -> None:
    """Write a picture; the suffix tells its format.

    Raises:
        TraceError: if the trace is empty, or the file cannot be written.
    """
    if not len(trace):
        raise TraceError("there is nothing to plot: the trace is empty")
    figure = Figure(figsize=(12, 7.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1.0))
    _rates(figure.add_subplot(grid[0, :]), trace)
    _gaps(figure.add_subplot(grid[1, 0]), trace)
    _lengths(figure.add_subplot(grid[1, 1]), trace)
    _shares(figure.add_subplot(grid[1, 2]), trace)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise TraceError(f"cannot write {path}: {error}") from error


def _rates(axes: Axes, trace: Trace) -> None:
    """Requests per second by model over time, one on top of the other."""
    order = _most_asked(trace)
    edges = np.linspace(0.0, max(trace.span_s, 1e-6), _WINDOWS + 1)
    counts = np.stack([np.histogram(trace.t[trace.model == i], edges)[0] for i in order[:_TOP]])
    names = [trace.models[i] for i in order[:_TOP]]
    if len(order) > _TOP:
        rest = np.isin(trace.model, order[_TOP:])
        counts = np.vstack([counts, np.histogram(trace.t[rest], edges)[0]])
        names.append(f"{len(order) - _TOP} others")
    counts = np.hstack([counts, counts[:, -1:]])  # a step needs its right end
    axes.stackplot(
        edges, counts / (edges[1] - edges[0]), step="post", labels=names, colors=_colours(len(names)), linewidth=0
    )  # fmt: skip
    axes.set(xlabel="time, s", ylabel="requests per second", xlim=(0.0, edges[-1]))
    axes.set_title("Arrivals by model", loc="left", fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, reverse=True)
    _plain(axes)


def _gaps(axes: Axes, trace: Trace) -> None:
    """How often the next arrival takes longer than x; a Poisson process for comparison."""
    gaps = np.sort(np.diff(trace.t))
    gaps = gaps[gaps > 0.0]
    axes.set_title("Gaps between arrivals", loc="left", fontsize=10)
    axes.set(xlabel="gap, s", ylabel="share of gaps that are longer")
    _plain(axes)
    if not gaps.size:
        return
    longer = 1.0 - np.arange(gaps.size) / gaps.size
    axes.loglog(gaps, longer, color=_COLOURS[0], linewidth=1.8, label="this trace")
    axis = np.geomspace(gaps[0], gaps[-1], 200)
    axes.loglog(
        axis, np.exp(-axis / gaps.mean()), color="#888888", linestyle="--", linewidth=1.2, label="Poisson"
    )
    axes.set_ylim(0.5 / gaps.size, 1.5)
    axes.set_xlim(left=max(gaps[0], gaps.mean() / 1e4))
    axes.legend(frameon=False, fontsize=8)


def _lengths(axes: Axes, trace: Trace) -> None:
    """How many tokens go in and come out."""
    axes.set_title("Lengths", loc="left", fontsize=10)
    axes.set(xlabel="tokens", ylabel="requests")
    columns = (
        (trace.prompt_tokens, "prompt", 0),
        (trace.output_tokens, "output", 1),
        (trace.prefix_tokens, "repeated", 2),
    )
    for tokens, name, colour in columns:
        known = tokens[tokens > 0]
        if known.size:
            edges = np.geomspace(1.0, max(float(known.max()), 2.0) * 1.01, 50).tolist()
            axes.hist(known, edges, histtype="stepfilled", alpha=0.25, color=_COLOURS[colour])
            axes.hist(known, edges, histtype="step", color=_COLOURS[colour], linewidth=1.5, label=name)
    if axes.patches:
        axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center", color="#888888")
    _plain(axes)


def _shares(axes: Axes, trace: Trace) -> None:
    """What part of the requests each model gets."""
    order = _most_asked(trace)[:_TOP]
    share = np.bincount(trace.model, minlength=len(trace.models))[order] / len(trace)
    names = [trace.models[i] for i in order]
    bars = axes.barh(range(len(order)), share * 100, color=_colours(len(order)))
    axes.bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="% of requests", xlim=(0.0, max(share.max() * 125, 1.0)))
    axes.set_title("Popularity", loc="left", fontsize=10)
    _plain(axes)


def _most_asked(trace: Trace) -> Ints:
    counts = np.bincount(trace.model, minlength=len(trace.models))
    order: Ints = np.argsort(-counts, kind="stable")
    return order


def _colours(count: int) -> list[str]:
    return [*_COLOURS[: min(count, _TOP)], *_COLOURS[_TOP:]][:count]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
