"""Measured against predicted, as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccr.timing import EnginePreset, GpuSpec
from envs.calibration.profiles import Profile, predictions
from envs.calibration.solve import Floats

_BAND = 0.08
_PER_INCH = 150


def plot_profiles(path: Path, preset: EnginePreset, profiles: Sequence[Profile], gpu: GpuSpec) -> None:
    """Prefill and decode, one point for each cell, with the 8 % band; the format is that of the file's suffix."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    prefill, decode = predictions(preset, profiles, gpu)
    _panel(left, "prefill of a batch", profiles, np.array([cell.prefill_s for cell in profiles]), prefill)
    _panel(right, "decode step", profiles, np.array([cell.decode_s for cell in profiles]), decode)
    left.legend(fontsize="small")
    figure.savefig(path, dpi=_PER_INCH)


def _panel(axes: Axes, title: str, profiles: Sequence[Profile], measured: Floats, predicted: Floats) -> None:
    names = np.array([cell.model for cell in profiles])
    for model in dict.fromkeys(names.tolist()):
        chosen = names == model
        axes.scatter(
            1000 * measured[chosen], 1000 * predicted[chosen], s=14, alpha=0.7, linewidths=0, label=model
        )
    ends = 1000 * np.array([measured.min() * 0.9, measured.max() * 1.1])
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(ends, ends * (1 - _BAND), ends * (1 + _BAND), color="black", alpha=0.08, linewidth=0)
    axes.set(xscale="log", yscale="log", title=title, xlabel="measured, ms", ylabel="predicted, ms")
