"""What a calibration found, for people and for programs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import click

from ccr.cli import print_table
from ccr.timing import EnginePreset
from envs.calibration.loads import LoadFit
from envs.calibration.nodes import NodeFit
from envs.calibration.profiles import ModelError, PresetFit, Profile
from envs.calibration.solve import Constant

_WHICH = ("as shipped", "now", "left out")
_UNITS: Mapping[str, tuple[float, str]] = {
    "prefill_fixed_s": (1e3, "a, ms"),
    "linear_flops": (1e-12, "F1, TFLOPS"),
    "attention_flops": (1e-12, "F2, TFLOPS"),
    "prefill_bandwidth": (1e-9, "BWp, GB/s"),
    "decode_bandwidth": (1e-9, "BW, GB/s"),
    "per_sequence_s": (1e3, "c, ms"),
    "kv_bandwidth": (1e-9, "BWkv, GB/s"),
    "overhead_s": (1e3, "overhead, ms"),
    "bw_scale": (1.0, "bandwidth scale"),
    "fixed_s": (1.0, "fixed, s"),
    "bytes_per_s": (1e-9, "rate, GB/s"),
}


@dataclass(frozen=True, slots=True)
class EngineReport:
    """An engine fitted to profiles.

    Args:
        profiles: what was measured.
        invalid: rows marked invalid.
        fitted_on: models.
        fit: the constants.
        errors: of the fit, by model, those held out too.
        shipped: of the preset the fit began with.
        left_out: for each model, the constants fitted on all the others and their error on it; empty when models
            were held out by hand.
    """

    profiles: Sequence[Profile]
    invalid: int
    fitted_on: frozenset[str]
    fit: PresetFit
    errors: Mapping[str, ModelError]
    shipped: Mapping[str, ModelError]
    left_out: Mapping[str, tuple[PresetFit, ModelError]]


def show_profiles(report: EngineReport) -> None:
    """Errors by model, and the constants."""
    print_table(
        [_model_row(report, model) for model in report.errors],
        [
            "model",
            "cells",
            "fitted",
            *(f"{part} {which}, %" for part in ("prefill", "decode") for which in _WHICH),
        ],
        as_json=False,
        title="Mean absolute error by model",
    )
    click.echo(
        "as shipped: the preset the fit began with. now: the constants below. left out: constants fitted on all other "
        f"models. {report.invalid} rows were marked invalid."
    )
    print_table(
        [_constant_row(c) | {"left out": _span(report, c.name)} for c in report.fit.constants],
        ["constant", "value", "standard error", "left out", "note"],
        as_json=False,
        title="Constants",
    )


def _model_row(report: EngineReport, model: str) -> dict[str, Any]:
    held = report.left_out[model][1] if model in report.left_out else None
    row: dict[str, Any] = {
        "model": model,
        "cells": report.errors[model].n,
        "fitted": "yes" if model in report.fitted_on else "no",
    }
    for which, error in zip(_WHICH, (report.shipped[model], report.errors[model], held), strict=True):
        row[f"prefill {which}, %"] = None if error is None else round(100 * error.prefill_mape, 2)
        row[f"decode {which}, %"] = None if error is None else round(100 * error.decode_mape, 2)
    return row


def _span(report: EngineReport, name: str) -> str | None:
    """Least and greatest value of a constant over the fits that leave one model out."""
    factor = _UNITS[name][0]
    values = [
        constant.value * factor
        for fit, _ in report.left_out.values()
        for constant in fit.constants
        if constant.name == name and isfinite(constant.error)
    ]
    return f"{min(values):.4g} to {max(values):.4g}" if values else None


def show_nodes(nodes: Sequence[NodeFit], preset: EnginePreset) -> None:
    """Constants by node, errors by node and model, and what the telemetry gives away."""
    print_table(
        [
            {"node": node.node, "requests": node.requests} | _constant_row(constant)
            for node in nodes
            for constant in (node.overhead_s, node.bw_scale)
        ],
        ["node", "requests", "constant", "value", "standard error", "note"],
        as_json=False,
        title=f"Nodes, under the {preset.name} preset",
    )
    print_table(
        [
            {
                "node": error.node, "model": error.model, "requests": error.n,
                "prefill (first token), %": _percent(error.first_mape),
                "decode (the rest), %": _percent(error.decode_mape),
            }
            for node in nodes
            for error in node.errors
        ],
        ["node", "model", "requests", "prefill (first token), %", "decode (the rest), %"],
        as_json=False,
        title="Mean absolute error by node and model",
    )  # fmt: skip
    for node in nodes:
        if node.occupancy and node.occupancy.note:
            click.echo(f"warning: {node.node}: {node.occupancy.note}", err=True)


def show_loads(loads: Sequence[LoadFit]) -> None:
    """Sources, place by place."""
    print_table(
        [
            {"where": fit.where, "source": fit.source.name, "loads": fit.n, "sd, %": _percent(fit.source.sd),
             "error, %": _percent(fit.mape)} | _constant_row(constant)
            for fit in loads
            for constant in (fit.fixed_s, fit.bytes_per_s)
        ],
        ["where", "source", "loads", "constant", "value", "standard error", "sd, %", "error, %", "note"],
        as_json=False,
        title="Loads",
    )  # fmt: skip


def document(
    engine: EngineReport | None, nodes: Sequence[NodeFit], sources: Sequence[LoadFit]
) -> dict[str, Any]:
    """What ``--json`` writes: ``models`` is a fixed contract, the rest may grow."""
    result: dict[str, Any] = {}
    if engine:
        result["models"] = {model: asdict(error) for model, error in engine.errors.items()}
        result["shipped"] = {model: asdict(error) for model, error in engine.shipped.items()}
        result["leave_one_out"] = {model: asdict(error) for model, (_, error) in engine.left_out.items()}
        result["fitted_on"] = sorted(engine.fitted_on)
        result["constants"] = _constants(engine.fit.constants)
    if nodes:
        result["nodes"] = {
            node.node: {
                "constants": _constants((node.overhead_s, node.bw_scale)),
                "requests": node.requests,
                "errors": [asdict(error) for error in node.errors],
                "occupancy": asdict(node.occupancy) if node.occupancy else None,
            }
            for node in nodes
        }
    if sources:
        result["loads"] = [
            {"where": fit.where, "source": asdict(fit.source), "mape": fit.mape, "n": fit.n,
             "constants": _constants((fit.fixed_s, fit.bytes_per_s))}
            for fit in sources
        ]  # fmt: skip
    return result


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 2)


def _constant_row(constant: Constant) -> dict[str, Any]:
    factor, label = _UNITS[constant.name]
    error = f"{constant.error * factor:.2g}" if isfinite(constant.error) else "unknown"
    return {
        "constant": label,
        "value": f"{constant.value * factor:.4g}",
        "standard error": error,
        "note": constant.note,
    }


def _constants(constants: Iterable[Constant]) -> dict[str, Any]:
    """JSON has no infinity: an unknown error is null."""
    return {
        constant.name: {
            "value": constant.value,
            "error": constant.error if isfinite(constant.error) else None,
            "note": constant.note,
        }
        for constant in constants
    }
