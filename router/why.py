"""``ccr why``: one decision of a running router, taken apart."""

import json
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ccr.cli import print_table
from ccr.settings import load
from router.cli import ADMIN, CONFIG, JSON, AdminClient

_SUMMARY = ("node", "chosen", "probability", "score", "cost_s", "residual", "least_cost_s", "not_eligible")


@click.command()
@CONFIG
@ADMIN
@JSON
@click.argument("request_id")
def why(config_path: Path | None, admin_url: str | None, request_id: str, *, as_json: bool) -> None:
    """Show why the request REQUEST_ID went where it went: what spoke for and against each node.

    REQUEST_ID is what the answer's header x-request-id tells. The router remembers its latest decisions (trace.keep).
    """
    path = f"/admin/why/{urllib.parse.quote(request_id, safe='')}"
    found = AdminClient(load(config_path), admin_url).call("GET", path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in told(found):
        click.echo(line)
    print_table([_summary(node) for node in found["nodes"]], _used(found), as_json=False)
    for field, title in (("terms", "seconds"), ("weighted", "seconds under the policy's weights")):
        rows = [{"node": node["node"], **node[field]} for node in found["nodes"] if node[field]]
        if rows:
            print_table(rows, list(rows[0]), as_json=False, title=title)


def told(found: Mapping[str, Any]) -> list[str]:
    """The decision in sentences.

    Args:
        found: an answer of ``/admin/why``.
    """
    version = f" (weights {found['version']})" if found["version"] else ""
    lines = [
        f"{found['request_id']} for {found['model']} went to {found['node']} by {found['policy']}{version}"
    ]
    if found["fallback"]:
        lines.append(f"that is the fallback: {found['fallback']}")
    if found["guard_reason"]:
        lines.append(f"the guard ({found['guard_reason']}) moved it there; drawn was {found['drawn']}")
    if found["heuristic"]:
        same = "the same" if found["heuristic"] == found["drawn"] else found["heuristic"]
        lines.append(f"least_cost would have chosen {same}")
    for action in found["actions"]:
        allowed = "allowed" if action["is_allowed"] else "not allowed in the fleet's state"
        lines.append(f"to {action['action']} had the logit {action['logit']:.3g}, {allowed}")
    return [*lines, found["note"]] if found["note"] else lines


def _summary(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **node,
        "chosen": "*" if node["is_chosen"] else "",
        "least_cost_s": node["heuristic_s"],
        "not_eligible": node["why_not"],
    }


def _used(found: Mapping[str, Any]) -> list[str]:
    """Columns in which something stands."""
    rows = [_summary(node) for node in found["nodes"]]
    return [name for name in _SUMMARY if any(row[name] not in {None, ""} for row in rows)]
