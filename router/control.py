"""FastAPI keeps what is not hot: health, metrics, models and docs for clients; the admin API for operators."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from ccr.errors import CCRError, ConfigError, ScriptError, WeightsError
from ccr.settings import Settings
from ccr.version import __version__
from router.dispatch import Dispatch
from router.exposition import CONTENT_TYPE, Exposition
from router.policies import Swap
from router.publishing.follower import Follower
from router.publishing.guardian import Desk
from router.recording.recordings import BusyError, Plan, Recordings
from router.recording.writer import RecordingError
from router.refusals import Refusal
from router.routes.sidecar import FeedbackBody, RouteAnswer, RouteBody
from router.sharing.fleet import Shared

PROXIED = {
    "/v1/chat/completions": "OpenAI chat completions, streamed or whole.",
    "/v1/completions": "OpenAI completions, streamed or whole.",
    "/v1/embeddings": "OpenAI embeddings.",
    "/v1/responses": "OpenAI responses, streamed or whole.",
    "/v1/messages": "Anthropic messages, streamed or whole.",
}


class Strict(BaseModel):
    """A body without surprises."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SwitchBody(Strict):
    """Which policy to put in force."""

    name: str = Field(min_length=1, max_length=64)
    options: dict[str, float | str] = {}


class DrainBody(Strict):
    """Out of rotation, or back."""

    draining: bool = True


class RecordBody(Strict):
    """A recording that is wanted: an absolute path on the router's machine, and for how long."""

    directory: str = Field(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")
    length_s: float | None = Field(None, gt=0.0, allow_inf_nan=False)
    kinds: list[Literal["requests", "telemetry", "loads"]] | None = Field(None, min_length=1)


class PauseBody(Strict):
    """Publish nothing."""

    why: str = Field("", max_length=200)


class ResumeBody(Strict):
    """Go on."""

    keep_vetoes: bool = False


class NoPublicationError(CCRError):
    """Nothing published is followed."""


class Control:
    """What both applications look at.

    Args:
        dispatch: the path of requests.
        exposition: the metrics page.
        settings: as in force.
        is_ready: what ``/readyz`` says.
        recordings: of traces.
        shared: how it stands with the ledgers of other routers.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        exposition: Exposition,
        settings: Settings,
        is_ready: Callable[[], tuple[bool, str]],
        recordings: Recordings,
        shared: Callable[[], Shared | None] = lambda: None,
    ) -> None:
        self.dispatch = dispatch
        self.exposition = exposition
        self.settings = settings
        self.is_ready = is_ready
        self.recordings = recordings
        self.shared = shared
        self.follower: Follower | None = None
        self.desk: Desk | None = None

    def learner(self) -> dict[str, Any]:
        """The learner and what became of its weights, as far as the store and this router know; waits for the store.

        Raises:
            NoPublicationError: if nothing published is followed.
        """
        return self.followed().status(None if self.follower is None else self.follower.state.published)

    def followed(self) -> Desk:
        """Of the guardian.

        Raises:
            NoPublicationError: if nothing published is followed.
        """
        if self.desk is None:
            raise NoPublicationError(
                "this router follows no published weights: give it a `store` and `publication.key`"
            )
        return self.desk

    def plan(self, body: RecordBody) -> Plan:
        """A recording as an operator wants it, within what the config allows."""
        record = self.settings.record
        if body.kinds:
            record = record.model_copy(update={"kinds": tuple(dict.fromkeys(body.kinds))})
        return Plan.of(record, Path(body.directory), body.length_s)

    def status(self) -> dict[str, Any]:
        """The router and its nodes, for people and programs."""
        dispatch = self.dispatch
        now_s = dispatch.clock()
        fleet = dispatch.fleet.at(now_s)
        is_ready, why = self.is_ready()
        outcomes: dict[str, int] = {}
        for (_, _, outcome), number in dispatch.stats.outcomes.items():
            outcomes[str(outcome)] = outcomes.get(str(outcome), 0) + number
        return {
            "version": __version__,
            "ready": is_ready,
            "why_not_ready": why,
            "uptime_s": round(now_s - dispatch.started_s, 1),
            "policy": dispatch.policies.describe(),
            "in_flight": dispatch.ledger.in_flight,
            "outcomes": outcomes,
            "panic": dispatch.fleet.panic,
            "guard_overrides": dispatch.stats.guard_overrides,
            "retries": dispatch.stats.retries,
            "ledger": _of_ledger(self.shared()),
            "nodes": [
                {
                    "id": node.id,
                    "address": node.address,
                    "available": node.available,
                    "why": node.why_unavailable,
                    "inflight": state.inflight,
                    "elsewhere": state.elsewhere,
                    "qps": round(node.qps, 2),
                    "latency_s": round(node.latency_s, 4),
                    "loaded_models": sorted(node.loaded_models),
                    "gpu_free_gib": round(node.gpu_free_gib, 2),
                    "gpu_total_gib": round(node.gpu_total_gib, 2),
                    "running": node.running,
                    "waiting": node.waiting,
                    "kv_used": round(node.kv_used, 4),
                    "telemetry_age_s": round(node.telemetry_age_s, 2),
                    "requests": state.requests,
                    "tags": sorted(node.tags),
                    "labels": dict(node.labels),
                }
                for node, state in zip(fleet.nodes, dispatch.fleet.states, strict=True)
            ],
        }

    def models(self) -> list[str]:
        """Model names clients may use: the catalogue's, and what the nodes report beyond it."""
        dispatch = self.dispatch
        listed: dict[str, None] = {}
        known: set[str] = set()
        for name, entry in dispatch.catalogue.models.items():
            listed[name] = None
            for version in entry.versions.values():
                known.add(version.id)
                if version.version:
                    listed[version.id] = None
            listed.update(dict.fromkeys(f"{name}@{alias}" for alias in entry.aliases))
        for loaded in dispatch.fleet.at(dispatch.clock()).loaded:
            listed.update(dict.fromkeys(sorted(loaded - known)))
        return list(listed)


def data_app(control: Control) -> FastAPI:
    """Health, metrics, models and docs, on the data listener."""
    app = FastAPI(title="CCR Autopilot", version=__version__, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _http_error)

    @app.get("/healthz", summary="The process is alive.", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Requests should be sent here.", tags=["health"], responses={503: {}})
    async def readyz() -> JSONResponse:
        is_ready, why = control.is_ready()
        return JSONResponse({"ready": is_ready, "why": why}, status_code=200 if is_ready else 503)

    if control.settings.server.metrics:
        app.add_api_route("/metrics", _metrics(control), summary="Prometheus metrics.", tags=["health"])

    @app.get("/v1/models", summary="The models that can be asked for.", tags=["OpenAI"], responses={401: {}})
    async def models(request: Request) -> Response:
        try:
            tenant = control.dispatch.keys.tenant(dict(request.scope["headers"]))
        except Refusal as refusal:
            return _as_response(refusal)
        allowed = [name for name in control.models() if tenant.may_use(name.partition("@")[0])]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "ccr"} for name in allowed]
        return JSONResponse({"object": "list", "data": data})

    _document_hot_paths(app)
    return app


def admin_app(control: Control, token: str) -> FastAPI:
    """The admin API; every route of it wants the admin token."""
    bearer = HTTPBearer(auto_error=False, description="The admin token.")

    async def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401, "send the admin token as Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"}
            )

    app = FastAPI(title="CCR Autopilot admin", version=__version__, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_body)
    routes = APIRouter(prefix="/admin", dependencies=[Depends(authorised)])
    dispatch = control.dispatch

    @routes.get("/status", summary="The router and its nodes.")
    async def status() -> dict[str, Any]:
        return control.status()

    @routes.get("/config", summary="The settings in force, secrets masked.")
    async def config() -> dict[str, Any]:
        return control.settings.model_dump(mode="json", by_alias=True)

    @routes.get("/policy", summary="The policy in force.")
    async def policy() -> dict[str, Any]:
        return dispatch.policies.describe()

    @routes.post("/policy", summary="Put a policy in force.")
    async def switch(body: SwitchBody) -> dict[str, Any]:
        return await _swapped(control, lambda: dispatch.policies.switch(body.name, body.options))

    @routes.post("/policy/reload", summary="Read the operator script again.")
    async def reload() -> dict[str, Any]:
        return await _swapped(control, dispatch.policies.reload)

    @routes.post("/nodes/{node_id}/drain", summary="Take a node out of rotation, or put it back.")
    async def drain(node_id: str, body: DrainBody) -> dict[str, Any]:
        try:
            dispatch.fleet.drain(node_id, draining=body.draining, now_s=dispatch.clock())
        except KeyError:
            raise HTTPException(404, f"there is no node {node_id!r}") from None
        return {"node": node_id, "draining": body.draining}

    @routes.get("/ledger", summary="Every request in flight.")
    async def ledger() -> dict[str, Any]:
        now_s = dispatch.clock()
        leases = [
            {
                "request_id": lease.request_id,
                "node": lease.state.spec.id,
                "model": lease.model,
                "age_s": round(now_s - lease.since_s, 3),
            }
            for lease in dispatch.ledger.open_leases()
        ]
        return {
            "in_flight": dispatch.ledger.in_flight,
            "granted_total": dispatch.ledger.granted_total,
            "leases": leases,
        }

    @routes.get("/decisions", summary="The latest decisions, newest first.")
    async def decisions(limit: Annotated[int, Field(ge=1, le=1000)] = 20) -> list[Any]:
        return [msgspec.to_builtins(record) for record in dispatch.decisions(limit)]

    @routes.get("/decisions/{request_id}", summary="One decision, with what was seen.")
    async def decision(request_id: str) -> Any:
        record = dispatch.decision(request_id)
        if record is None:
            raise HTTPException(404, _forgotten(request_id, dispatch))
        return msgspec.to_builtins(record)

    @routes.get(
        "/why/{request_id}", summary="One decision taken apart: what spoke for and against each node."
    )
    async def why(request_id: str) -> Any:
        explanation = dispatch.why(request_id)
        if explanation is None:
            raise HTTPException(404, _forgotten(request_id, dispatch))
        return msgspec.to_builtins(explanation)

    @routes.get("/learner", summary="What is published, which router serves what, what was rolled back.")
    async def learner() -> dict[str, Any]:
        return await _of_learner(control)

    @routes.post("/learner/pause", summary="Publish nothing; what serves goes on serving.")
    async def pause(body: PauseBody) -> dict[str, Any]:
        return await _of_learner(control, lambda desk: desk.guardian.pause(body.why))

    @routes.post("/learner/resume", summary="Publish again; clear rollbacks and let weights serve again.")
    async def resume(body: ResumeBody) -> dict[str, Any]:
        return await _of_learner(control, lambda desk: desk.guardian.resume(keep_vetoes=body.keep_vetoes))

    @routes.get("/record", summary="The recording under way, or the last one.")
    async def recording() -> dict[str, Any]:
        return control.recordings.status()

    @routes.post("/record", summary="Begin to write traces.")
    async def record(body: RecordBody) -> dict[str, Any]:
        try:
            await control.recordings.start(control.plan(body))
        except BusyError as error:
            raise HTTPException(409, str(error)) from None
        except RecordingError as error:
            raise HTTPException(422, str(error)) from None
        return control.recordings.status()

    @routes.post("/record/stop", summary="End the recording under way.")
    async def stop_recording() -> dict[str, Any]:
        await control.recordings.stop()
        return control.recordings.status()

    app.include_router(routes)
    app.add_api_route("/metrics", _metrics(control), summary="Prometheus metrics.", tags=["health"])
    return app


def _of_ledger(shared: Shared | None) -> dict[str, Any] | None:
    """For :meth:`Control.status`; ``None`` where the ledger is not shared."""
    if shared is None:
        return None
    age_s = None if shared.age_s is None else round(shared.age_s, 3)
    return {"peers": shared.peers, "age_s": age_s, "coverage": round(shared.coverage, 4)}


async def _of_learner(control: Control, act: Callable[[Desk], None] | None = None) -> dict[str, Any]:
    """What is known of the learner, after something was done; all in a thread that may wait for the store."""

    def done() -> dict[str, Any]:
        if act is not None:
            desk = control.followed()
            act(desk)
            desk.guardian.board.turn()
        return control.learner()

    try:
        return await asyncio.to_thread(done)
    except NoPublicationError as error:
        raise HTTPException(409, str(error)) from None


def _forgotten(request_id: str, dispatch: Dispatch) -> str:
    return (
        f"request {request_id!r} is not among the last {dispatch.recent.maxlen} decisions; "
        "set trace.keep higher to remember more"
    )


def _metrics(control: Control) -> Callable[[], Awaitable[Response]]:
    async def metrics() -> Response:
        return Response(control.exposition.page(), media_type=CONTENT_TYPE)

    return metrics


async def _swapped(control: Control, change: Callable[[], Awaitable[Swap]]) -> dict[str, Any]:
    reloads = control.dispatch.stats.policy_reloads
    try:
        swap = await change()
    except (ConfigError, ScriptError, WeightsError) as error:
        reloads["refused"] += 1
        raise HTTPException(422, str(error)) from None
    reloads["ok"] += 1
    return {
        "policy": swap.policy,
        "previous": swap.previous,
        "took_s": round(swap.took_s, 4),
        "sha256": swap.sha256,
    }


async def _bad_body(_: Request, error: Exception) -> Response:
    """A body or parameter that does not fit, in the same shape; names what is wrong, quotes nothing."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for that class
    found = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
    refusal = Refusal(422, "invalid_request", "; ".join(found))
    return Response(refusal.body(), refusal.status, media_type="application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    """Every error of FastAPI in the one documented shape."""
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - registered for that class
    codes = {401: "unauthorised", 404: "not_found", 405: "method_not_allowed", 409: "busy", 422: "refused"}
    code = codes.get(error.status_code, "error")
    refusal = Refusal(error.status_code, code, str(error.detail))
    return Response(
        refusal.body(), error.status_code, dict(error.headers or {}), media_type="application/json"
    )


def _as_response(refusal: Refusal) -> Response:
    headers = {name.decode(): value.decode() for name, value in refusal.headers()}
    return Response(refusal.body(), refusal.status, headers)


def _document_hot_paths(app: FastAPI) -> None:
    """The raw handlers in front of FastAPI appear in its documentation."""
    (route_in, route_out, feedback_in), components = msgspec.json.schema_components(
        [RouteBody, RouteAnswer, FeedbackBody], ref_template="#/components/schemas/{name}"
    )
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
            schema["paths"]["/route"] = _operation(
                "Choose a node; the caller goes there itself.", route_in, route_out
            )
            schema["paths"]["/feedback"] = _operation(
                "Say how a routed request ended.", feedback_in, {"type": "object"}
            )
            anything = {"type": "object", "additionalProperties": True}
            for path, summary in PROXIED.items():
                schema["paths"][path] = _operation(summary, anything, anything)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(summary: str, body: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    refused = {"description": "Refused; `error.code` says why."}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": {"description": "Done.", "content": {"application/json": {"schema": reply}}},
                **{
                    str(status): refused
                    for status in (400, 401, 403, 404, 408, 413, 415, 429, 431, 502, 503, 504)
                },
            },
        }
    }
