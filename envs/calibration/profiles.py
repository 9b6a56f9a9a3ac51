"""Engine constants from step profiles: how long a batch's prefill and one decode step took, by model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ccr.errors import ConfigError, TraceError, UnknownModelError
from ccr.timing import GB, EnginePreset, GpuSpec, ModelSpec, StepCosts, decode_s, prefill_s, step_costs
from envs.calibration.rows import Row, read_rows
from envs.calibration.shapes import Shapes, shape_of
from envs.calibration.solve import Constant, Floats, Range, fit_constants

_COLUMNS = ("model", "input_len", "batch", "prefill_mean_s", "decode_mean_s")
# The artifact's benchmark makes 10 tokens and averages the 9 steps after the first (benchmark_latency.py): on average
# the step reads 5 tokens more than the prompt.
_GENERATED_TOKENS = 5

# Ends of what an A10 can be: 125 TFLOPS dense fp16 and 600 GB/s by its data sheet.
_PREFILL = MappingProxyType(
    {
        "prefill_fixed_s": (0.1e-3, 50e-3),
        "linear_flops": (5e12, 125e12),
        "attention_flops": (1e12, 125e12),
        "prefill_bandwidth": (60 * GB, 600 * GB),
    }
)
_DECODE = MappingProxyType(
    {
        "decode_bandwidth": (60 * GB, 600 * GB),
        "per_sequence_s": (1e-6, 2e-3),
        "kv_bandwidth": (30 * GB, 600 * GB),
    }
)


@dataclass(frozen=True, slots=True)
class Profile:
    """One cell of a profile.

    Args:
        model: as the file spells it.
        shape: its architecture.
        input_tokens: of each prompt.
        batch: prompts.
        prefill_s: of the whole batch, mean of the repeats.
        decode_s: of one step, mean of the repeats.
    """

    model: str
    shape: ModelSpec
    input_tokens: int
    batch: int
    prefill_s: float
    decode_s: float

    def predicted_prefill_s(self, costs: StepCosts) -> float:
        """What the timing model says."""
        return prefill_s(costs, [self.input_tokens] * self.batch)

    def predicted_decode_s(self, costs: StepCosts) -> float:
        """What the timing model says."""
        return decode_s(costs, self.batch, self.batch * (self.input_tokens + _GENERATED_TOKENS))


@dataclass(frozen=True, slots=True)
class PresetFit:
    """An engine preset and how well each of its constants is known."""

    preset: EnginePreset
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class ModelError:
    """Mean absolute errors of one model, as fractions of what was measured.

    Args:
        prefill_mape: of prefill times.
        decode_mape: of decode steps.
        n: cells.
    """

    prefill_mape: float
    decode_mape: float
    n: int


def read_profiles(path: Path, shapes: Shapes) -> tuple[list[Profile], int]:
    """The valid cells of a profile, and how many were marked invalid.

    Args:
        path: CSV with ``model,input_len,batch,prefill_mean_s,decode_mean_s`` and, where cells can be invalid, ``valid``.
        shapes: of the models.

    Raises:
        TraceError: naming the line and the reason.
    """
    rows = read_rows(path, _COLUMNS)
    valid = [row for row in rows if _is_valid(row)]
    if not valid:
        raise TraceError(f"{path.name}: none of its {len(rows)} rows has valid = 1")
    return [_profile(row, shapes) for row in valid], len(rows) - len(valid)


def _is_valid(row: Row) -> bool:
    word = row.text("valid", "1")
    if word not in ("0", "1"):
        raise row.wrong(f"valid is {word!r}; it is 0 or 1")
    return word == "1"


def _profile(row: Row, shapes: Shapes) -> Profile:
    try:
        model, shape = shape_of(shapes, row.required_text("model"))
    except UnknownModelError as error:
        raise row.wrong(str(error)) from error
    return Profile(
        model, shape, row.whole("input_len", 1), row.whole("batch", 1),
        row.above_zero("prefill_mean_s"), row.above_zero("decode_mean_s"),
    )  # fmt: skip


def choose(models: Iterable[str], fit: Sequence[str], hold_out: Sequence[str]) -> set[str]:
    """The models to fit on: those asked for, less those held out.

    Raises:
        ConfigError: a name the profile does not have, a name on both lists, or nothing left.
    """
    known = set(models)
    for name in (*fit, *hold_out):
        if name not in known:
            raise ConfigError(f"the profile has no model {name!r}; it has {', '.join(sorted(known))}")
    if both := sorted(set(fit) & set(hold_out)):
        raise ConfigError(f"{', '.join(both)}: either fitted or held out, not both")
    chosen = (set(fit) or known) - set(hold_out)
    if not chosen:
        raise ConfigError("every model is held out; leave at least one to fit on")
    return chosen


def fit_preset(profiles: Sequence[Profile], gpu: GpuSpec, start: EnginePreset) -> PresetFit:
    """Constants of an engine, from cells of any number of models.

    Args:
        profiles: what was measured.
        gpu: where; the constants are those of an A10 all the same.
        start: first guess, and what a constant keeps that the data cannot tell.
    """
    prefill = fit_constants(
        lambda values: _errors(_with(start, values), profiles, gpu)[0], _ranges(start, _PREFILL)
    )
    decode = fit_constants(
        lambda values: _errors(_with(start, values), profiles, gpu)[1], _ranges(start, _DECODE)
    )
    constants = {**prefill, **decode}
    values = {name: constant.value for name, constant in constants.items()}
    return PresetFit(replace(_with(start, values), name="calibrated"), tuple(constants.values()))


def model_errors(preset: EnginePreset, profiles: Sequence[Profile], gpu: GpuSpec) -> dict[str, ModelError]:
    """The error of a preset on each model, in the order of the profile."""
    errors: dict[str, ModelError] = {}
    for model in dict.fromkeys(cell.model for cell in profiles):
        cells = [cell for cell in profiles if cell.model == model]
        prefill, decode = (float(np.abs(part).mean()) for part in _errors(preset, cells, gpu))
        errors[model] = ModelError(prefill, decode, len(cells))
    return errors


def leave_one_out(
    profiles: Sequence[Profile], gpu: GpuSpec, start: EnginePreset
) -> dict[str, tuple[PresetFit, ModelError]]:
    """For each model, constants fitted on all the others, and their error on it; empty when there is only one."""
    models = list(dict.fromkeys(cell.model for cell in profiles))
    if len(models) < 2:
        return {}
    result = {}
    for model in models:
        fit = fit_preset([cell for cell in profiles if cell.model != model], gpu, start)
        held = [cell for cell in profiles if cell.model == model]
        result[model] = (fit, model_errors(fit.preset, held, gpu)[model])
    return result


def predictions(preset: EnginePreset, profiles: Sequence[Profile], gpu: GpuSpec) -> tuple[Floats, Floats]:
    """Seconds of prefill and of a decode step for each cell, shape ``(cells,)`` each."""
    costs = {cell.shape: step_costs(cell.shape, gpu, preset) for cell in profiles}
    prefill = np.array([cell.predicted_prefill_s(costs[cell.shape]) for cell in profiles])
    decode = np.array([cell.predicted_decode_s(costs[cell.shape]) for cell in profiles])
    return prefill, decode


def _errors(preset: EnginePreset, profiles: Sequence[Profile], gpu: GpuSpec) -> tuple[Floats, Floats]:
    """Relative errors of prefill and decode, shape ``(cells,)`` each."""
    prefill, decode = predictions(preset, profiles, gpu)
    return (
        prefill / np.array([cell.prefill_s for cell in profiles]) - 1.0,
        decode / np.array([cell.decode_s for cell in profiles]) - 1.0,
    )


def _with(preset: EnginePreset, values: Mapping[str, float]) -> EnginePreset:
    changes: dict[str, Any] = dict(values)
    return replace(preset, **changes)


def _ranges(start: EnginePreset, ends: Mapping[str, tuple[float, float]]) -> dict[str, Range]:
    return {name: Range(getattr(start, name), low, high) for name, (low, high) in ends.items()}
