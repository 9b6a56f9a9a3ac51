"""``ccr policy list|show|diff|promote|rollback``: the registered versions for people and programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ccr import schema, weights
from ccr.cli import print_table
from ccr.cost import TERMS
from ccr.errors import ConfigError
from ccr.features import FEATURES
from ccr.policies.learned import SHIPPED
from ccr.policies.network import SCALARS
from envs.evaluation.manifest import flat
from rl.named import Named, named
from rl.registry import Registry
from rl.versions import Move, Version
from router.cli import ADMIN, CONFIG, show_policy

TRACKING = click.option(
    "--tracking-uri", default="", help="MLflow's: sqlite:///FILE or http://HOST:PORT.  [default: MLFLOW_TRACKING_URI, "
    "else a file among the user's data]",
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_OUT = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the champion's weights there too."
)
_REASON = click.option("--reason", default="", help="Kept with the champion.")
#: Parts of a manifest that only machines read.
_BULKY: Final = frozenset({"canary", "features", "request_features"})
#: The weights of the cost, after the features that are its terms.
_THETA: Final = tuple(name.removesuffix("_term") for name in list(FEATURES)[: len(TERMS)])
_LAYERS: Final = ("node", "request", "bias", "own", "pool", "second_bias", "out", "extra", "extra_bias")


@click.command("list")
@TRACKING
@_JSON
def list_(tracking_uri: str, *, as_json: bool) -> None:
    """List the trained versions: which serves, and how each was judged."""
    registry = Registry(tracking_uri)
    rows = [_row(version) for version in registry.versions()]
    if not rows and not as_json:
        click.echo(
            f"no versions at {registry.uri}: `ccr train` registers what it trains; the shipped weights serve"
        )
        return
    columns = ("version", "name", "aliases", "created", "cost_against_heuristic", "gate")
    print_table(rows, columns, as_json=as_json)


@click.command("show")
@click.argument("version", required=False)
@TRACKING
@CONFIG
@ADMIN
@_JSON
def show(
    version: str | None, tracking_uri: str, config_path: Path | None, admin_url: str | None, *, as_json: bool
) -> None:
    """Show the policy in force in a running router, or a trained VERSION: number, alias, FILE.npz or `shipped`.

    Of a version: where it comes from, what was logged, its latest verdict, and when it was champion.
    """
    if version is None:
        show_policy(config_path, admin_url, as_json=as_json)
        return
    registry = Registry(tracking_uri)
    facts = _facts(named(version, registry, is_tried=False), registry)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for part, content in facts.items():
        lines = flat(content) if isinstance(content, Mapping) else {}
        if lines:
            rows = [{"what": name, "value": " ".join(value.split())} for name, value in lines.items()]
            print_table(rows, ("what", "value"), as_json=False, title=part)
    for condition in (facts["verdict"] or {}).get("conditions", ()):
        click.echo(
            f"{'met    ' if condition['met'] else 'NOT MET'}  {condition['asks']}{_figures(condition)}"
        )
    for move in facts["history"]:
        moved = f"{move['action']}: {_who(move['before'])} -> {_who(move['version'])}"
        click.echo(f"{move['when']}  {moved}, by {move['who']}{_because(move)}")


@click.command("diff")
@click.argument("one")
@click.argument("other")
@TRACKING
@_JSON
def diff(one: str, other: str, tracking_uri: str, *, as_json: bool) -> None:
    """Show what differs between ONE and OTHER: versions, aliases, FILE.npz, or `shipped`.

    Weights of the cost terms side by side, how far apart the layers are, how often both do the same on the states every
    weights file is tried on, their features, and their verdicts.
    """
    registry = Registry(tracking_uri)
    pair = [named(text, registry, is_tried=False) for text in (one, other)]
    found = _differences(*pair)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    title = f"one: {pair[0].label}; other: {pair[1].label}"
    print_table(found["numbers"], ("name", "one", "other", "ratio"), as_json=False, title=title)
    layers = [{"layer": name, "distance": value} for name, value in found["layers"].items()]
    print_table(layers, ("layer", "distance"), as_json=False, title="Layers: distance relative to the larger")
    same = found["same_actions"]
    click.echo(
        "same action: " + ("cannot be compared" if same is None else f"on {same:.1%} of the canary's states")
    )
    click.echo("features: " + ("; ".join(found["features"]) or "the same"))
    for name, cost in zip(("one", "other"), found["verdicts"], strict=True):
        click.echo(f"cost against the heuristic, {name}: {cost or 'not judged'}")


@click.command("promote")
@click.argument("version")
@click.option("--force", is_flag=True, help="Without a verdict that it passed; needs --reason.")
@_REASON
@_OUT
@TRACKING
def promote(version: str, reason: str, out: Path | None, tracking_uri: str, *, force: bool) -> None:
    """Make VERSION the champion; it has to have passed the gate against the present one.

    Routers do not notice by themselves: give them the weights with --out.
    """
    registry = Registry(tracking_uri)
    _writable(out)
    chosen = registry.get(version)
    path = registry.fetch(chosen)
    move = registry.promote(chosen, reason, force=force)
    click.echo(
        f"version {move.version} is the champion now; before: {_who(move.before)}{_because(asdict(move))}"
    )
    _hand_over(path, out)


@click.command("rollback")
@_REASON
@_OUT
@TRACKING
def rollback(reason: str, out: Path | None, tracking_uri: str) -> None:
    """Make the champion what it was before the last promotion; again for the one before that."""
    registry = Registry(tracking_uri)
    _writable(out)
    move = registry.rollback(reason)
    serves = "the shipped weights are in force again"
    if move.version is not None:
        serves = f"version {move.version} is the champion now"
    click.echo(f"{serves}; before: {_who(move.before)}{_because(asdict(move))}")
    _hand_over(SHIPPED if move.version is None else registry.fetch(registry.get(move.version)), out)


def _row(version: Version) -> dict[str, Any]:
    gate = version.gate
    verdict = "-"
    if gate:
        who = gate["incumbent"]
        verdict = f"{'pass' if gate['passed'] else 'fail'} against {who['kind']} {who['version']}".rstrip()
    return {
        "version": version.number,
        "name": version.label,
        "aliases": ", ".join(version.aliases) or None,
        "created": version.created_at,
        "cost_against_heuristic": _cost(version) or None,
        "gate": verdict,
        "sha256": version.sha256,
        "run": version.run_id,
        "verdict": dict(gate) or None,
    }


def _facts(found: Named, registry: Registry) -> dict[str, Any]:
    _, manifest = weights.read(found.path)
    version = found.version
    facts: dict[str, Any] = {
        "weights": {key: value for key, value in manifest.items() if key not in _BULKY},
        "registered": None, "run": None, "verdict": None, "history": [],
    }  # fmt: skip
    if version is not None:
        row = _row(version)
        facts["registered"] = {key: row[key] for key in ("version", "aliases", "created", "gate", "run")}
        facts["run"] = registry.run_of(version)
        facts["verdict"] = registry.verdict(version)
        facts["history"] = [asdict(move) for move in registry.history() if _is_about(move, version)]
    return facts


def _is_about(move: Move, version: Version) -> bool:
    return version.number in {move.version, move.before}


def _differences(one: Named, other: Named) -> dict[str, Any]:
    (left, mine), (right, theirs) = weights.read(one.path), weights.read(other.path)
    numbers = [
        _pair(f"{field}.{name}", left[field][place], right[field][place])
        for field, names in (("theta", _THETA), ("scalars", SCALARS))
        for place, name in enumerate(names)
        if field in left and field in right and place < min(len(left[field]), len(right[field]))
    ]
    return {
        "one": one.label,
        "other": other.label,
        "numbers": numbers,
        "layers": {name: _distance(left.get(name), right.get(name)) for name in _LAYERS},
        "same_actions": _same_actions(mine, theirs),
        "features": schema.differences(mine, theirs),
        "verdicts": [_cost(each.version) if each.version else "" for each in (one, other)],
    }


def _pair(name: str, one: float, other: float) -> dict[str, Any]:
    ratio = float(other / one) if one else None
    return {"name": name, "one": float(one), "other": float(other), "ratio": ratio}


def _distance(one: Any, other: Any) -> float | None:
    """Length of the difference over that of the longer; ``None`` where shapes differ."""
    if one is None or other is None or one.shape != other.shape:
        return None
    longer = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return float(np.linalg.norm(one - other)) / longer if longer else 0.0


def _same_actions(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
    """Share of the canary's states on which both do the same; ``None`` with other features, for then states differ."""
    if mine.get("schema") != theirs.get("schema"):
        return None
    one, other = (manifest["canary"]["actions"] for manifest in (mine, theirs))
    return float(np.mean(np.array(one) == np.array(other)))


def _cost(version: Version) -> str:
    ratio = version.gate.get("against_heuristic") or {}
    return _figures(ratio).removeprefix(": ")


def _figures(ratio: Mapping[str, Any]) -> str:
    if ratio.get("ratio") is None or ratio.get("low") is None:
        return ""
    return f": {ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def _who(number: int | None) -> str:
    return "the shipped weights" if number is None else f"version {number}"


def _because(move: Mapping[str, Any]) -> str:
    forced = " (forced)" if move["forced"] else ""
    return forced + (f": {move['why']}" if move["why"] else "")


def _writable(out: Path | None) -> None:
    """Say so before anything moves."""
    if out is not None and not out.resolve().parent.is_dir():
        raise ConfigError(f"cannot write {out}: there is no directory {out.resolve().parent}")


def _hand_over(path: Path, out: Path | None) -> None:
    if out is None:
        return
    weights.save(weights.load(path), out)
    click.echo(
        f"written: {out}; for a router: ccr policy use learned --weights {out}, or `policy.options.weights`"
    )
