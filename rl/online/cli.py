"""``ccr learn``: the learner beside the routers."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.live import Live

from ccr import log
from ccr.errors import ConfigError
from ccr.settings import Settings, load
from rl.online.learner import Learner, key_of
from rl.online.shelf import Shelf
from rl.online.shown import screen
from router.cli import CONFIG
from router.store.opened import opened
from router.store.store import Store

_TIMEOUT_S: Final = 1.0
_LINE_EVERY_S: Final = 10.0
_ONCE_S: Final = 1200.0


@click.command("learn")
@CONFIG
@click.option("--once", is_flag=True, help="Read what is there, retrain once if it is enough, and end.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print how it is as JSON: at the end with --once, else every ten seconds.",
)
def command(config_path: Path | None, *, once: bool, as_json: bool) -> None:
    """Learn from the records of running routers until SIGTERM or Ctrl-C: correct constants, see drift, retrain, publish.

    Takes the config of the routers: it needs their `store` and their `publication.key`. While another learner is at work
    this one stands by, and takes over when that one is gone.
    """
    settings = load(config_path)
    log.configure(settings.log.format if not sys.stderr.isatty() else "console", settings.log.level)
    store = store_of(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    os.nice(5)
    try:
        learner = Learner(settings, store, Shelf(directory_of(settings), key_of(settings)))
        if once:
            _once(learner, stop)
        else:
            with _shown(learner, stop, as_json=as_json):
                learner.run(stop)
    finally:
        store.close()
    if once and (as_json or not sys.stdout.isatty()):
        click.echo(json.dumps(learner.status(), indent=2))
    elif once:
        Console().print(screen(learner.status()))


def store_of(settings: Settings) -> Store:
    """The store of the routers, with more patience than they have.

    Raises:
        ConfigError: if none is configured.
        StoreDownError: if its directory cannot be used.
    """
    store = opened(settings.store.model_copy(update={"timeout_s": _TIMEOUT_S}))
    if store is None:
        raise ConfigError(
            "there is nothing to learn from: set `store.redis_url` or `store.directory`, as the routers have it"
        )
    return store


def directory_of(settings: Settings) -> Path:
    """The learner's own disk."""
    if settings.learner.directory is not None:
        return settings.learner.directory
    data = os.environ.get("XDG_DATA_HOME", "")
    root = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return root / "ccr-autopilot" / "learner"


def _once(learner: Learner, stop: threading.Event) -> None:
    """All that is there, then one retraining from begin to end."""
    try:
        learner.catch_up(stop)
        learner.begin_retraining()
        learner.finish(stop, _ONCE_S)
    finally:
        learner.close()


@contextlib.contextmanager
def _shown(learner: Learner, stop: threading.Event, *, as_json: bool) -> Iterator[None]:
    """A table that lives on a terminal; a line now and then for programs; the log alone elsewhere."""
    console = Console(stderr=True)
    if not as_json and not console.is_terminal:
        yield
        return
    live = None if as_json else Live("the learner begins ...", console=console, auto_refresh=False)

    def show() -> None:
        while not stop.wait(_LINE_EVERY_S if live is None else 1.0):
            if not learner.told:
                continue
            if live is None:
                click.echo(json.dumps(learner.told))
            else:
                live.update(screen(learner.told), refresh=True)

    thread = threading.Thread(target=show, name="shown", daemon=True)
    with live or contextlib.nullcontext():
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(2.0)
