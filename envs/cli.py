"""``ccr node``: emulated GPU nodes on this machine."""

import json
from typing import Any

import click

from ccr.errors import CCRError
from ccr.timing import GPUS, LOAD_SOURCES, PRESETS
from envs.catalogue import catalogue, model_facts
from envs.emulator import EmulatedFleet, EmulatorSettings, run


@click.command("node")
@click.option(
    "--port", default=9001, show_default=True, help="Port of the first node; 0: the system chooses."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--count", default=1, show_default=True, help="How many nodes.")
@click.option("--speed", default=1.0, show_default=True, help="How much faster than the wall clock they run.")
@click.option(
    "--gpu",
    "gpus",
    type=click.Choice(list(GPUS)),
    multiple=True,
    default=("A10",),
    show_default=True,
    help="Card; given several times, they are dealt in turn. Only the A10 is measured, the others are scaled.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="graph",
    show_default=True,
    help="Engine: with CUDA graphs, or eager.",
)
@click.option(
    "--load",
    type=click.Choice(list(LOAD_SOURCES)),
    default="engine_swap",
    show_default=True,
    help="Where weights come from: this decides how long a cold start takes.",
)
@click.option(
    "--model", "models", multiple=True, help="Model id to serve; repeat it. Default: the whole catalogue."
)
@click.option("--warm", multiple=True, help="Model id that is resident at boot; repeat it.")
@click.option(
    "--overhead-ms", default=0.0, show_default=True, help="HTTP and tokeniser time of each request."
)
@click.option(
    "--bw-scale", default=1.0, show_default=True, help="Memory bandwidth relative to the fitted card."
)
@click.option("--seed", default=0, show_default=True, help="Of the noise in load times.")
@click.option(
    "--supervisor-port", type=int, help="Also listen here for kill, revive and fault. Default: not at all."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of one line per node.")
def node(
    *,
    port: int,
    host: str,
    count: int,
    speed: float,
    gpus: tuple[str, ...],
    preset: str,
    load: str,
    models: tuple[str, ...],
    warm: tuple[str, ...],
    overhead_ms: float,
    bw_scale: float,
    seed: int,
    supervisor_port: int | None,
    as_json: bool,
) -> None:
    """Emulate GPU nodes: an OpenAI-compatible server whose times come from a fitted A10, until it is stopped."""
    try:
        settings = EmulatorSettings(
            count=count,
            host=host,
            port=port,
            supervisor_port=supervisor_port,
            speed=speed,
            gpus=gpus,
            preset=preset,
            load=load,
            models=models,
            warm=warm,
            overhead_s=overhead_ms / 1000,
            bw_scale=bw_scale,
            seed=seed,
        )
        run(settings, lambda fleet: click.echo(_announcement(fleet, as_json=as_json)))
    except CCRError as error:
        raise click.ClickException(str(error)) from None


def _announcement(fleet: EmulatedFleet, *, as_json: bool) -> str:
    settings = fleet.settings
    nodes = [
        {"name": each.name, "url": each.url, "gpu": settings.gpus[i % len(settings.gpus)]}
        for i, each in enumerate(fleet.nodes)
    ]
    supervisor = fleet.supervisor.url if fleet.supervisor else None
    if as_json:
        return json.dumps(
            {"nodes": nodes, "supervisor": supervisor, "speed": settings.speed, "models": _models(settings)}
        )
    lines = [f"{each['name']}  {each['url']}  {each['gpu']}  {settings.speed:g}x" for each in nodes]
    return "\n".join([*lines, f"supervisor  {supervisor}"] if supervisor else lines)


def _models(settings: EmulatorSettings) -> dict[str, dict[str, Any]]:
    """Memory, expected cold start in node seconds, and architecture of each model served: what a router's config wants to know."""
    facts = model_facts(LOAD_SOURCES[settings.load])
    return {
        model: {
            "gib": facts[model].gib,
            "load_s": facts[model].load_s,
            "architecture": {"like": facts[model].like, "weight_bytes": facts[model].weight_bytes},
        }
        for model in catalogue(settings.models)
    }
