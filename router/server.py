"""Serves a router until it is told to stop: two listeners, our own signals, an orderly drain, exit code 0."""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn

from ccr import log
from ccr.errors import CCRError, ConfigError
from ccr.settings import Settings
from router.app import Router
from router.asgi import FrontDoor
from router.coalesce import CoalescingProtocol
from router.control import PROXIED
from router.hot import InstantRoutes, hot_protocol
from router.refusals import Refusal
from router.routes.body import closes
from router.turn import Instant, Reply

_log = log.get("server")

QUICK_S: Final = 0.005
#: Time a listener gets to close its connections once nothing of ours is under way there.
STOP_S: Final = 2.0


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would end with the signal's exit code."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._listening = asyncio.Event()
        self._leaving = asyncio.Event()

    async def until_listening(self, serving: "asyncio.Task[None]") -> None:
        """Return when connections are accepted, or when ``serving`` ended before that."""
        listening = asyncio.create_task(self._listening.wait())
        await asyncio.wait([listening, serving], return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()

    def leave(self) -> None:
        """Stop accepting, now; what is under way may finish."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """Wait to be told; the original looks ten times a second whether it was, and keeps a date header we do not send."""
        self._listening.set()
        await self._leaving.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse connections, let the requests under way finish; the original looks ten times a second whether they did."""
        for listener in self.servers:
            listener.close()
        for bound in sockets or ():
            bound.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        while (state.connections or state.tasks) and not self.force_exit:  # noqa: ASYNC110 - these sets have no event
            await asyncio.sleep(QUICK_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    """A router behind its two listeners.

    Args:
        settings: the whole config.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        with contextlib.ExitStack() as undo:
            self._data_socket = undo.enter_context(
                _bind(settings.server.host, settings.server.port, "server")
            )
            self._admin_socket = undo.enter_context(_bind(settings.admin.host, settings.admin.port, "admin"))
            self.port: int = self._data_socket.getsockname()[1]
            self.admin_port: int = self._admin_socket.getsockname()[1]
            self.token = _admin_token(settings, self.admin_port)
            self.router = Router(settings, self.token)
            undo.pop_all()
        self._hurry = asyncio.Event()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin the drain; called again, end it at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()
        self.router.readiness.draining = True

    async def run(self) -> None:
        """Serve until :meth:`stop`, then drain."""
        async with self.router as router:
            data = self._server(router.data, self._hot_protocol(), self.settings.server.max_connections)
            admin = self._server(FrontDoor({}, router.admin, frozenset()), CoalescingProtocol, 64)
            tasks = [
                asyncio.create_task(data.serve([self._data_socket])),
                asyncio.create_task(admin.serve([self._admin_socket])),
            ]
            for server, task in zip((data, admin), tasks, strict=True):
                await server.until_listening(task)
            _log.info(
                "server.started",
                url=f"http://{self.settings.server.host}:{self.port}",
                admin=f"http://{self.settings.admin.host}:{self.admin_port}",
                policy=router.policies.engine.policy.name,
                pid=os.getpid(),
            )
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            await self._drain(data, tasks[0])
            admin.leave()
            await _finished(tasks)

    async def _drain(self, data: _Server, serving: "asyncio.Task[None]") -> None:
        """No new requests; those under way finish, up to a limit; what is left is told so."""
        settings, router = self.settings.server, self.router
        router.readiness.draining = True
        _log.info("server.draining", in_flight=router.dispatch.ledger.in_flight, drain_s=settings.drain_s)
        await self._wait(settings.drain_grace_s)
        data.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await self._until_done_or_hurried(serving)
        aborted = await router.abort()
        data.force_exit = True
        await asyncio.wait([serving], timeout=STOP_S)
        _log.info("server.stopped", aborted=aborted, in_flight=router.dispatch.ledger.in_flight)

    async def _until_done_or_hurried(self, serving: "asyncio.Task[None]") -> None:
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait([serving, hurried], return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()

    async def _wait(self, length_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(length_s):
                await self._hurry.wait()

    def _hot_protocol(self) -> type[CoalescingProtocol]:
        """The data listener's protocol; hosts are checked by the ASGI door, so with a list of them nothing passes it by."""
        server = self.settings.server
        if server.allowed_hosts:
            return CoalescingProtocol
        router = self.router
        by_path: dict[bytes, Instant] = {
            path.encode(): partial(router.proxied.begin, path) for path in PROXIED
        }
        by_path[b"/route"] = router.sidecar.routed
        dispatch = router.dispatch

        def refused(refusal: Refusal, path: bytes) -> Reply:
            request_id = dispatch.fresh_id()
            dispatch.refused(refusal, request_id, path.decode("ascii"), dispatch.clock())
            body = refusal.body(request_id, anthropic=path == b"/v1/messages")
            return Reply(refusal.status, refusal.headers(request_id) + closes(refusal), body)

        routes = InstantRoutes(by_path, server.max_body_bytes, server.body_timeout_s, refused)
        return hot_protocol(routes, asyncio.get_running_loop())

    def _server(self, app: Any, protocol: type[CoalescingProtocol], max_connections: int) -> _Server:
        return _Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                limit_concurrency=max_connections,
                backlog=2048,
                timeout_keep_alive=75,
                h11_max_incomplete_event_size=self.settings.server.max_header_bytes,
            )
        )


async def _finished(tasks: "list[asyncio.Task[None]]") -> None:
    """Every listener is down; a connection that will not end does not keep the process."""
    _, stuck = await asyncio.wait(tasks, timeout=STOP_S)
    for task in stuck:
        task.cancel()
    for task in tasks:
        if not task.cancelled() and task not in stuck:
            task.result()


def serve(settings: Settings) -> None:
    """Run a router in this process until SIGTERM or SIGINT; a second signal ends it at once, SIGHUP reloads the script."""
    import uvloop  # noqa: PLC0415 - only the serving process needs it

    log.configure(settings.log.format, settings.log.level)
    _quieten_uvicorn()

    async def main() -> None:
        serving = Serving(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(_reload(serving.router)))
        _settle_memory()
        await serving.run()

    uvloop.run(main())


async def _reload(router: Router) -> None:
    try:
        await router.policies.reload()
    except CCRError as error:
        _log.error("policy.reload_refused", error=str(error))


def _settle_memory() -> None:
    """What was built so far stays, so no collection has to look at it; and requests leave few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _bind(host: str, port: int, section: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay off only where it is.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with `{section}.port`, "
            "or stop what uses it"
        ) from error
    bound.set_inheritable(False)
    return bound


def _admin_token(settings: Settings, port: int) -> str:
    """The configured token, or a fresh one in a file that only this user can read."""
    if settings.admin.token is not None:
        return settings.admin.token.get_secret_value()
    token = secrets.token_urlsafe(32)
    path = settings.admin.where_token_is(port)
    try:
        _write_private(path, token)
    except OSError as error:
        raise ConfigError(
            f"cannot keep the admin token in {path} ({error.strerror}); set `admin.token_file`, or give a token "
            "as CCR_ADMIN__TOKEN"
        ) from error
    return token


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(path.name + f".{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")
    fresh.replace(path)


class _Forward(logging.Handler):
    """What libraries log, in our form; without the one line that only says we cut a broken stream on purpose."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("ASGI callable returned without completing response"):
            return
        error = repr(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
        _log.log(record.levelno, "library.said", library=record.name, message=message.strip(), error=error)


def _quieten_uvicorn() -> None:
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(logging.WARNING)
