"""``ccr calibrate``: constants of the timing model from measurements, and how far off they are."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from ccr.errors import CCRError, ConfigError
from ccr.timing import GPUS, LOAD_SOURCES, PRESETS, EnginePreset, GpuSpec, LoadSource
from envs.calibration.constants import Calibration, NodeConstants, write_calibration
from envs.calibration.loads import LEAST_LOADS, LoadFit, fit_loads, read_loads, too_few
from envs.calibration.nodes import NodeFit, fit_node
from envs.calibration.profiles import choose, fit_preset, leave_one_out, model_errors, read_profiles
from envs.calibration.recorded import read_samples, read_served
from envs.calibration.report import EngineReport, document, show_loads, show_nodes, show_profiles
from envs.calibration.shapes import Shapes, known_shapes
from envs.node import NodeSettings
from envs.traces.source import sha256_of

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_RECORDED = click.Path(exists=True, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command("calibrate")
@click.option("--profiles", type=_FILE, help="Step profiles (CSV): fit the engine's constants.")
@click.option(
    "--trace",
    type=_RECORDED,
    help="Recorded requests, a file or the recording's directory: fit overhead and bandwidth of each node.",
)
@click.option(
    "--telemetry", type=_RECORDED, help="Telemetry of the same time, likewise: is the trace all of the load?"
)
@click.option(
    "--loads",
    type=_RECORDED,
    help="Recorded loads, likewise, or published load times: fit the rate by source.",
)
@click.option("--shapes", type=_FILE, help="YAML with the shapes of your own models, by name.")
@click.option("--fit", default="", help="Models of the profile to fit on, with commas. Default: all.")
@click.option("--hold-out", default="", help="Models of the profile not to fit on, only to report.")
@click.option("--gpu", type=click.Choice(list(GPUS)), default="A10", show_default=True, help="The card.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Where the fit starts, and what a trace is read with. Default: eager for profiles, graph for a trace alone.",
)
@click.option(
    "--load",
    "source",
    type=click.Choice(list(LOAD_SOURCES)),
    default="engine_swap",
    show_default=True,
    help="Where the trace's nodes load weights from, and what loads came from whose row does not tell.",
)
@click.option(
    "--prefix-cache/--no-prefix-cache",
    default=True,
    help="Whether the trace's nodes keep the context of a conversation for its next turn. Default: they do.",
)
@click.option(
    "--bar", type=click.FloatRange(0.0), help="Fail when a model's error is above this, in percent."
)
@click.option("--out", type=_NEW_FILE, help="Write the constants here (YAML).")
@click.option("--plot", type=_NEW_FILE, help="Draw measured against predicted profiles here (PNG, SVG, PDF).")
@click.option("--json", "json_path", type=_NEW_FILE, help="Write errors and constants here.")
def calibrate(
    *,
    profiles: Path | None,
    trace: Path | None,
    telemetry: Path | None,
    loads: Path | None,
    shapes: Path | None,
    fit: str,
    hold_out: str,
    gpu: str,
    preset: str | None,
    source: str,
    prefix_cache: bool,
    bar: float | None,
    out: Path | None,
    plot: Path | None,
    json_path: Path | None,
) -> None:
    """Fit the constants of the timing model to measurements, and report the error by node and model."""
    try:
        _refuse_what_makes_no_sense(profiles, trace, telemetry, loads, fit, hold_out, plot, bar)
        known, card = known_shapes(shapes), GPUS[gpu]
        engine = None
        if profiles:
            start = PRESETS[preset or "eager"]
            engine = _profile_report(profiles, known, card, start, _words(fit), _words(hold_out))
            show_profiles(engine)
        nodes: list[NodeFit] = []
        if trace:
            base = engine.fit.preset if engine else PRESETS[preset or "graph"]
            settings = NodeSettings(card, base, LOAD_SOURCES[source], prefix_cache=prefix_cache)
            nodes = _fit_nodes(trace, telemetry, known, settings)
            show_nodes(nodes, base)
        sources = _fit_loads(loads, known, source) if loads else []
        measured = [path for path in (profiles, trace, telemetry, loads) if path]
        if plot and engine:
            # matplotlib takes half a second to import, and most calibrations draw nothing.
            from envs.calibration.plot import plot_profiles  # noqa: PLC0415

            plot_profiles(plot, engine.fit.preset, engine.profiles, card)
        if out:
            write_calibration(out, _calibration(measured, engine, nodes, sources))
        if json_path:
            json_path.write_text(
                json.dumps(document(engine, nodes, sources), indent=2) + "\n", encoding="utf-8"
            )
        if bar is not None and engine:
            _refuse_above(bar / 100, engine)
    except (CCRError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _refuse_what_makes_no_sense(
    profiles: Path | None, trace: Path | None, telemetry: Path | None, loads: Path | None,
    fit: str, hold_out: str, plot: Path | None, bar: float | None,
) -> None:  # fmt: skip
    if not (profiles or trace or loads):
        raise ConfigError("nothing to fit to: give --profiles, --trace or --loads")
    if telemetry and not trace:
        raise ConfigError("--telemetry goes with the --trace of the same time")
    if not profiles and (fit or hold_out or plot or bar is not None):
        raise ConfigError("--fit, --hold-out, --plot and --bar are about --profiles; give one")


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _profile_report(
    path: Path, shapes: Shapes, gpu: GpuSpec, start: EnginePreset, fit: Sequence[str], hold_out: Sequence[str]
) -> EngineReport:
    profiles, invalid = read_profiles(path, shapes)
    chosen = choose((cell.model for cell in profiles), fit, hold_out)
    kept = [cell for cell in profiles if cell.model in chosen]
    found = fit_preset(kept, gpu, start)
    return EngineReport(
        profiles, invalid, frozenset(chosen), found,
        errors=model_errors(found.preset, profiles, gpu),
        shipped=model_errors(start, profiles, gpu),
        left_out=leave_one_out(profiles, gpu, start) if len(kept) == len(profiles) else {},
    )  # fmt: skip


def _refuse_above(bar: float, report: EngineReport) -> None:
    worst = {model: max(error.prefill_mape, error.decode_mape) for model, error in report.errors.items()}
    for model, (_, error) in report.left_out.items():
        worst[model] = max(worst[model], error.prefill_mape, error.decode_mape)
    if above := [f"{model} {100 * value:.1f} %" for model, value in worst.items() if value > bar]:
        raise ConfigError(f"above the bar of {100 * bar:g} %, fitted or left out: {', '.join(above)}")


def _fit_nodes(trace: Path, telemetry: Path | None, shapes: Shapes, settings: NodeSettings) -> list[NodeFit]:
    # rich is slow to import, and only people watch.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    served, skipped = read_served(trace, shapes)
    samples = read_samples(telemetry) if telemetry else {}
    if samples and not set(samples) & set(served):
        raise ConfigError(
            f"{trace.name} has nodes {', '.join(served)}, the telemetry {', '.join(samples)}: no node in common"
        )
    for reason, count in sorted(skipped.items()):
        click.echo(f"left out: {count} requests {reason}")
    nodes = track(
        served.items(),
        "replaying",
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    return [fit_node(requests, settings, samples.get(node, ())) for node, requests in nodes]


def _fit_loads(path: Path, shapes: Shapes, unnamed: str) -> list[LoadFit]:
    loads, skipped = read_loads(path, shapes, unnamed)
    for reason, count in sorted(skipped.items()):
        click.echo(f"left out: {count} rows {reason}")
    for which, count in too_few(loads).items():
        click.echo(f"left out: {count} loads of {which}; at least {LEAST_LOADS} are needed")
    found = fit_loads(loads)
    show_loads(found)
    return found


def _calibration(
    measured: Iterable[Path],
    engine: EngineReport | None,
    nodes: Sequence[NodeFit],
    sources: Sequence[LoadFit],
) -> Calibration:
    loads: dict[str, dict[str, LoadSource]] = {}
    for fit in sources:
        loads.setdefault(fit.where, {})[fit.source.name] = fit.source
    return Calibration(
        preset=engine.fit.preset if engine else None,
        nodes={node.node: NodeConstants(node.overhead_s.value, node.bw_scale.value) for node in nodes},
        loads=loads,
        measured={path.name: sha256_of(path) for path in measured},
    )
