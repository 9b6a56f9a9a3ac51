"""One emulated node as a raw ASGI application: inference, model control, telemetry and faults."""

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

from ccr.errors import UnknownModelError
from envs.asgi import JSON, ClientLeftError, Receive, Scope, Send, read, respond, respond_json
from envs.dialect import BadAskError, Refusal, decode
from envs.faults import parse
from envs.inference import DIALECTS, hang, infer, refusal_of
from envs.life import Build, NodeLife
from envs.words import ModelBusyError, NeverFitsError, NodeResetError, Place

_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_TRITON_STATES = {
    Place.RESIDENT: "READY",
    Place.LOADING: "LOADING",
    Place.ABSENT: "UNAVAILABLE",
    Place.ASLEEP: "UNAVAILABLE",
}


class NodeApp:
    """A node that speaks HTTP.

    Args:
        build: what it is built from.
        abort: resets the connection of a request.
        die: stops listening and resets every connection, soon.
    """

    def __init__(self, build: Build, abort: Callable[[Scope], None], die: Callable[[], None]) -> None:
        self.life = NodeLife(build)
        self._abort = abort
        self._die = die

    def reboot(self) -> None:
        """A new life: new boot id, counters at zero, resident what is resident at boot."""
        self.life = NodeLife(self.life.build)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"a node speaks HTTP, not {scope['type']!r}")
        try:
            await self._route(scope, receive, send)
        except ClientLeftError:
            return

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in DIALECTS and scope["method"] == "POST":
            await infer(self.life, self._abort, scope, receive, send)
        elif path.startswith("/debug/"):
            await self._debug(scope, receive, send)
        else:
            await hang(self.life, receive)
            await self._look(scope, send)

    async def _look(self, scope: Scope, send: Send) -> None:
        match scope["method"], scope["path"]:
            case "GET", "/metrics":
                await respond(send, 200, self.life.metrics(), [_TEXT])
            case "GET", "/health":
                await respond(send, 200, b"", [])
            case "GET", "/v1/models":
                await respond_json(send, self._models())
            case _:
                await self._control(scope, send)

    def _models(self) -> dict[str, object]:
        created = self.life.created
        cards = [
            {
                "id": model,
                "object": "model",
                "created": created,
                "owned_by": "vllm",
                "root": model,
                "parent": None,
            }
            for model in self.life.build.models
        ]
        return {"object": "list", "data": cards}

    # -- vLLM's sleep mode and Triton's model repository ---------------------------------------------------------

    async def _control(self, scope: Scope, send: Send) -> None:
        query = {key: values[-1] for key, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        try:
            await self._act(scope["method"], scope["path"], query, send)
        except (BadAskError, ModelBusyError, NeverFitsError, NodeResetError, UnknownModelError) as error:
            # As Triton does it, the error is a string.
            await respond_json(send, {"error": str(error)}, 400)

    async def _act(self, method: str, path: str, query: Mapping[str, str], send: Send) -> None:
        driver = self.life.driver
        match method, *path.strip("/").split("/"):
            case "GET", "is_sleeping":
                await respond_json(send, {"is_sleeping": self._is_sleeping(query)})
            case "POST", "sleep":
                driver.sleep(self._named_or_all(query, Place.RESIDENT), _level(query))
                await respond(send, 200, b"", [])
            case "POST", "wake_up":
                await asyncio.gather(*map(driver.load, self._named_or_all(query, Place.ASLEEP)))
                await respond(send, 200, b"", [])
            case "POST", "v2", "repository", "index":
                await respond_json(send, self._index())
            case "POST", "v2", "repository", "models", model, "load":
                await driver.load(model)
                await respond(send, 200, b"{}", [JSON])
            case "POST", "v2", "repository", "models", model, "unload":
                driver.unload(model)
                await respond(send, 200, b"{}", [JSON])
            case _:
                await _nowhere(send, method, path)

    def _is_sleeping(self, query: Mapping[str, str]) -> bool:
        state = self.life.driver.state()
        if "model" in query:
            return query["model"] in state.at(Place.ASLEEP)
        return bool(state.at(Place.ASLEEP)) and not state.at(Place.RESIDENT)

    def _named_or_all(self, query: Mapping[str, str], place: Place) -> tuple[str, ...]:
        """The model a call names, or all that are there: vLLM has one model, this node may have more."""
        return (query["model"],) if "model" in query else self.life.driver.state().at(place)

    def _index(self) -> list[dict[str, str]]:
        models = self.life.driver.state().models.items()
        return [
            {"name": model, "version": "1", "state": _TRITON_STATES[one.place], "reason": ""}
            for model, one in models
        ]

    # -- debugging -----------------------------------------------------------------------------------------------

    async def _debug(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["method"], scope["path"]:
            case "GET", "/debug/state":
                await respond_json(send, self.life.snapshot())
            case "POST", "/debug/reset":
                self.life.reset()
                await respond_json(send, {})
            case "POST", "/debug/fault":
                await self._take_fault(receive, send)
            case method, path:
                await _nowhere(send, method, path)

    async def _take_fault(self, receive: Receive, send: Send) -> None:
        try:
            fault = parse(decode(await read(receive)))
        except BadAskError as error:
            await _refuse(send, refusal_of(error))
            return
        if fault.kind != "die":
            self.life.set_fault(fault)
        await respond_json(send, {"fault": fault.kind})
        if fault.kind == "die":
            self._die()


def _level(query: Mapping[str, str]) -> int:
    level = query.get("level", "1")
    if level not in ("1", "2"):
        raise BadAskError(
            f"there is no sleep level {level!r}: 1 keeps the weights in host memory, 2 drops them", "level"
        )
    return int(level)


async def _refuse(send: Send, refusal: Refusal) -> None:
    await respond(send, refusal.status, DIALECTS["/v1/chat/completions"].error(refusal), [JSON])


async def _nowhere(send: Send, method: str, path: str) -> None:
    await _refuse(send, Refusal(404, f"{method} {path} is not served by an emulated node", "not_found"))
