"""Commands of the router: serve it, look at it, steer it."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import click
import yaml

from ccr.cli import print_table
from ccr.errors import CCRError, ConfigError
from ccr.settings import Settings, load
from router.click_types import BASE_URL

CONFIG = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    help="Config file; environment and defaults without.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
ADMIN = click.option(
    "--admin",
    "admin_url",
    type=BASE_URL,
    envvar="CCR_ADMIN_URL",
    help="Admin URL of the router, if not the config's.",
)
#: The admin token goes to the router itself, whatever proxy the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AdminClient:
    """Talks to the admin API of a running router.

    Args:
        settings: where it listens and where its token is.
        url: instead of the settings' address.
    """

    def __init__(self, settings: Settings, url: str | None) -> None:
        self._url = (url or f"http://{settings.admin.host}:{settings.admin.port}").rstrip("/")
        self._settings = settings
        self._port = urllib.parse.urlsplit(self._url).port

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON.

        Raises:
            CCRError: if the router is not there, or refuses; in its own words.
        """
        request = urllib.request.Request(  # noqa: S310 - the scheme is the operator's
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self._token()}", "content-type": "application/json"},
        )
        try:
            with _OPENER.open(request, timeout=10) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise CCRError(_message(error)) from error
        except OSError as error:
            raise CCRError(
                f"no router answers at {self._url} ({error}); is `ccr serve` running there?"
            ) from error
        except (ValueError, HTTPException) as error:
            raise CCRError(f"what answers at {self._url} is not the admin API of a router") from error

    def _token(self) -> str:
        admin = self._settings.admin
        if admin.token is not None:
            return admin.token.get_secret_value()
        path = admin.where_token_is(self._port)
        try:
            return path.read_text().strip()
        except OSError as error:
            raise ConfigError(
                f"cannot read the admin token from {path} ({error.strerror}); give the router's --config, "
                "or the token as CCR_ADMIN__TOKEN"
            ) from error


@click.command()
@CONFIG
@click.option("--host", help="Address to listen on, instead of the config's.")
@click.option("--port", type=int, help="Port to listen on, instead of the config's.")
@click.option("--policy", "policy_name", help="Policy, instead of the config's.")
def serve(config_path: Path | None, host: str | None, port: int | None, policy_name: str | None) -> None:
    """Run the router until SIGTERM or Ctrl-C; requests under way finish first."""
    from router.server import serve as run  # noqa: PLC0415 - the other commands need no server

    overrides = {"CCR_SERVER__HOST": host, "CCR_SERVER__PORT": port, "CCR_POLICY__NAME": policy_name}
    os.environ.update({name: str(value) for name, value in overrides.items() if value is not None})
    run(load(config_path))


@click.command()
@CONFIG
@ADMIN
@JSON
def status(config_path: Path | None, admin_url: str | None, *, as_json: bool) -> None:
    """Show a running router's nodes: load, models, memory, and who is out of rotation."""
    found = AdminClient(load(config_path), admin_url).call("GET", "/admin/status")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    ready = "ready" if found["ready"] else f"not ready: {found['why_not_ready']}"
    click.echo(f"policy {found['policy']['name']}, {found['in_flight']} in flight, {ready}")
    if ledger := found["ledger"]:
        click.echo(_ledger_line(ledger))
    columns = [
        "id",
        "address",
        "available",
        "inflight",
        "elsewhere",
        "qps",
        "latency_s",
        "gpu_free_gib",
        "waiting",
        "loaded_models",
        "why",
    ]
    print_table(found["nodes"], columns, as_json=False)


def _ledger_line(ledger: Mapping[str, Any]) -> str:
    if ledger["age_s"] is None:
        return f"ledger not shared at present: other routers are not heard, coverage {ledger['coverage']:g}"
    return f"ledger shared with {ledger['peers']} other router(s), heard {ledger['age_s']:.2f} s ago"


@click.command()
@CONFIG
@ADMIN
@JSON
@click.option("--limit", "-n", default=20, show_default=True, help="How many.")
def decisions(config_path: Path | None, admin_url: str | None, limit: int, *, as_json: bool) -> None:
    """Show the latest decisions: who got which request, with what probability, and how it ended."""
    found = AdminClient(load(config_path), admin_url).call("GET", f"/admin/decisions?limit={limit}")
    columns = [
        "request_id",
        "model",
        "version",
        "node",
        "policy",
        "propensity",
        "guard_reason",
        "status",
        "ttft_ms",
        "total_ms",
    ]
    print_table(found, columns, as_json=as_json)


@click.command()
@CONFIG
@ADMIN
@click.argument("node")
@click.option("--undo", is_flag=True, help="Put the node back.")
def drain(config_path: Path | None, admin_url: str | None, node: str, *, undo: bool) -> None:
    """Take NODE out of rotation while its requests finish, or put it back."""
    client = AdminClient(load(config_path), admin_url)
    path = f"/admin/nodes/{urllib.parse.quote(node, safe='')}/drain"
    client.call("POST", path, {"draining": not undo})
    click.echo(f"{node} is {'back in rotation' if undo else 'draining'}")


def show_policy(config_path: Path | None, admin_url: str | None, *, as_json: bool) -> None:
    """Print the policy in force in a running router."""
    found = AdminClient(load(config_path), admin_url).call("GET", "/admin/policy")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    script = (
        f" ({found['script']['path']}, sha256 {found['script']['sha256'][:12]})" if found["script"] else ""
    )
    version = f" (weights {found['version']})" if found.get("version") else ""
    click.echo(
        f"{found['name']}{script}{version}; falls back to {found['fallback']}; "
        f"choose among {', '.join(found['available'])}"
    )


@click.command("use")
@CONFIG
@ADMIN
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Weights of `learned`, a file where the router runs."
)
@click.argument("name")
def policy_use(config_path: Path | None, admin_url: str | None, weights: Path | None, name: str) -> None:
    """Put the policy NAME in force."""
    body: dict[str, Any] = {"name": name}
    if weights is not None:
        body["options"] = {"weights": str(weights.absolute())}
    _tell(AdminClient(load(config_path), admin_url).call("POST", "/admin/policy", body))


@click.command("reload")
@CONFIG
@ADMIN
@JSON
def policy_reload(config_path: Path | None, admin_url: str | None, *, as_json: bool) -> None:
    """Read the operator script again; if it is refused, the old one keeps serving and the exit code is 1."""
    swap = AdminClient(load(config_path), admin_url).call("POST", "/admin/policy/reload")
    if as_json:
        click.echo(json.dumps(swap))
    else:
        _tell(swap)


@click.group()
def config() -> None:
    """Check a config file, or show what is in force."""


@config.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@JSON
def config_check(file: Path, *, as_json: bool) -> None:
    """Check FILE as the router would at start; exit code 1 if something is wrong."""
    from router.discovery.configured import discovery_of  # noqa: PLC0415
    from router.policies import PolicySwitch  # noqa: PLC0415 - tries the operator script too

    try:
        settings = load(file)
        PolicySwitch(settings)
        discovery_of(settings)
    except CCRError as error:
        if as_json:
            click.echo(json.dumps({"ok": False, "error": str(error)}))
            raise SystemExit(1) from None
        raise
    summary = {
        "ok": True,
        "policy": settings.policy.name,
        "nodes": len(settings.nodes),
        "models": len(settings.models),
        "keys": len(settings.keys),
    }
    click.echo(
        json.dumps(summary)
        if as_json
        else f"{file} is good: " + ", ".join(f"{k} {v}" for k, v in list(summary.items())[1:])
    )


@config.command("show")
@CONFIG
@JSON
def config_show(config_path: Path | None, *, as_json: bool) -> None:
    """Show every setting in force: file, environment and defaults; secrets masked."""
    settings = load(config_path).model_dump(mode="json", by_alias=True)
    click.echo(
        json.dumps(settings, indent=2) if as_json else yaml.safe_dump(settings, sort_keys=False).rstrip()
    )


@click.group()
def key() -> None:
    """Make API keys."""


@key.command("new")
@click.argument("name")
@click.option(
    "--model", "models", multiple=True, help="A model it may use; repeat for more; all if left out."
)
@JSON
def key_new(name: str, models: tuple[str, ...], *, as_json: bool) -> None:
    """Make a key for NAME: print it once, and the entry for the config, which holds only its hash."""
    from router.auth import new_key  # noqa: PLC0415

    secret, digest = new_key()
    entry = {"name": name, "hash": digest, "models": list(models) or ["*"]}
    if as_json:
        click.echo(json.dumps({"key": secret, "entry": entry}))
        return
    click.echo(
        f"key, shown only now: {secret}\n\nfor the config:\n"
        + yaml.safe_dump({"keys": [entry]}, sort_keys=False).rstrip()
    )


def _tell(swap: dict[str, Any]) -> None:
    sha256 = f", sha256 {swap['sha256'][:12]}" if swap["sha256"] else ""
    click.echo(
        f"{swap['policy']} serves now (before: {swap['previous']}); took {swap['took_s'] * 1e3:.0f} ms{sha256}"
    )


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the router answered {error.code} {error.reason}"
