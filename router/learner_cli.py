"""``ccr learner status|pause|resume``: the learner as the routers see it, over the admin API of any of them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ccr.cli import print_table
from ccr.settings import load
from router import learner_lines
from router.cli import ADMIN, CONFIG, JSON, AdminClient

_REPLICAS = ("replica", "serves", "version", "on_trial", "for_s", "stale", "rollbacks")


@click.command()
@CONFIG
@ADMIN
@JSON
def status(config_path: Path | None, admin_url: str | None, *, as_json: bool) -> None:
    """Show what is published, which router serves what, the learner, and what was rolled back."""
    _show(AdminClient(load(config_path), admin_url).call("GET", "/admin/learner"), as_json=as_json)


@click.command()
@CONFIG
@ADMIN
@JSON
@click.option("--why", default="", help="Kept with the pause, for whoever finds it.")
def pause(config_path: Path | None, admin_url: str | None, why: str, *, as_json: bool) -> None:
    """Let the learner publish nothing: it goes on reading, and routers keep what they have."""
    found = AdminClient(load(config_path), admin_url).call("POST", "/admin/learner/pause", {"why": why})
    _show(found, as_json=as_json)


@click.command()
@CONFIG
@ADMIN
@JSON
@click.option("--keep-vetoes", is_flag=True, help="Weights that were rolled back stay refused.")
def resume(config_path: Path | None, admin_url: str | None, *, keep_vetoes: bool, as_json: bool) -> None:
    """Let the learner publish again, and weights serve again where the fallback served until a person acts.

    Weights that were rolled back may be taken again, unless --keep-vetoes is given.
    """
    body = {"keep_vetoes": keep_vetoes}
    _show(
        AdminClient(load(config_path), admin_url).call("POST", "/admin/learner/resume", body), as_json=as_json
    )


def _show(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in lines(found, time.time()):
        click.echo(line)
    print_table(found["replicas"], _REPLICAS, as_json=False)
    if found["control"]["vetoes"]:
        print_table(
            found["control"]["vetoes"],
            ("name", "sha256", "by", "why"),
            as_json=False,
            title="rolled back, and refused",
        )


def lines(found: Mapping[str, Any], now_s: float) -> list[str]:
    """What `ccr learner status` says in words.

    Args:
        found: as the admin API tells it.
        now_s: seconds since 1970.
    """
    published, learner, control = found["published"], found["learner"], found["control"]
    said = ["published: nothing"]
    if published is not None:
        ago_s = max(now_s - published["at_s"], 0.0)
        version = f"version {published['version']} of epoch {published['epoch']}"
        said = [f"published: {published['name']}, {version}, {ago_s:.0f} s ago ({published['reason']})"]
    said += ["learner: not heard of"] if learner is None else _learner(learner, now_s)
    if control["paused"]:
        said.append(f"paused{_because(control)}: `ccr learner resume` goes on")
    if control["stopped"]:
        said.append(
            f"the fallback serves until a person acts{_because(control)}: find out why, then `ccr learner resume`"
        )
    if not found["store_up"]:
        said.append("the store is away: this is what this router knows")
    elif not control["in_store"]:
        said.append("not yet in the store")
    return said


def _because(control: Mapping[str, Any]) -> str:
    return f" ({control['why']})" if control["why"] else ""


def _learner(learner: Mapping[str, Any], now_s: float) -> list[str]:
    try:
        return learner_lines.lines(learner, now_s)
    except (AttributeError, KeyError, TypeError, ValueError):  # whoever can write to the store wrote it
        return ["learner: there, but what it tells is not understood: it is of another release"]
