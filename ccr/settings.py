"""Every setting of the router: one ``config.yaml``, ``CCR_*`` environment variables on top, unknown keys refused.

Durations are written ``30s``, ``500ms``, ``2m`` or as seconds; behind this module they are seconds.
A field ``idle_timeout_s`` is the key ``idle_timeout`` in the file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ccr.errors import ConfigError
from ccr.fleet import FleetRules
from ccr.guard import BoundedLoad
from ccr.outlier import OutlierRules
from ccr.policies import POLICIES, SCRIPT
from ccr.prices import PriceList, Stated, adapter_of
from ccr.shapes import SHAPES
from ccr.timing import GPUS, ModelSpec, weights_gib
from ccr.versions import DEFAULT_LOAD_GIB_PER_S, Catalogue, ModelEntry, Version

#: A number where it can be read as one; options that are text are paths.
Option = Annotated[float | str, Field(union_mode="left_to_right")]
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
SECRETS = frozenset({"api_key", "hash", "key", "redis_url", "secret", "token"})
"""Keys whose values no message repeats; a key pasted where its hash belongs is a secret too."""
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*")


def seconds(value: object) -> object:
    """``"30s"``, ``"500ms"``, ``"2m"``, ``"1h"`` or a number, as seconds.

    Raises:
        ValueError: if it is a text in another form, or yes or no.
    """
    if not isinstance(value, str | bool):
        return value
    match = _DURATION.fullmatch(str(value))
    if match:
        return float(match[1]) * _UNITS_S[match[2]]
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(
            f"{value!r} is no duration: write 30s, 500ms, 2m, 1h, or a number of seconds"
        ) from None


Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the config: unknown keys refused, ``_s`` dropped from the keys of durations."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        alias_generator=lambda name: name.removesuffix("_s"),
    )


class ServerSettings(Section):
    """The data listener: `/route`, `/v1/*`, `/metrics`, `/healthz`, `/readyz`."""

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` inside a container.")
    port: int = Field(8090, ge=0, le=65535, description="Port; 0 takes a free one and logs it.")
    max_body_bytes: int = Field(
        8 * 2**20, gt=0, description="Larger request bodies are refused with 413 before they are read."
    )
    max_headers: int = Field(64, gt=0, description="Requests with more headers are refused with 431.")
    max_header_bytes: int = Field(
        32 * 2**10, gt=0, description="Requests with larger headers are refused with 431."
    )
    body_timeout_s: Seconds = Field(30.0, description="Time a client may take to send its body.")
    max_connections: int = Field(
        4096, gt=0, description="Connections and requests above this get 503 at once."
    )
    metrics: bool = Field(
        default=True, description="Serve `/metrics` on the data listener too; the admin listener always does."
    )
    allowed_hosts: tuple[str, ...] = Field((), description="Host headers to accept; empty accepts all.")
    drain_s: Seconds = Field(30.0, description="After SIGTERM, time for requests under way to finish.")
    drain_grace_s: Seconds = Field(
        0.0,
        description="After SIGTERM, time new connections are still accepted while `/readyz` already says no (set it to your load balancer's probe period).",
    )
    replicas: int = Field(
        1,
        ge=1,
        description="Routers that share the traffic of these nodes evenly, this one included: each sees one in so many requests.",
    )
    clock_speed: float = Field(
        1.0,
        ge=0.001,
        le=1000.0,
        description="Only for emulated fleets: how many seconds of the router's clock pass in one of the wall. All durations and rates "
        "here, and the times in logs, metrics and recordings, are in seconds of that clock, as the nodes' are. On the wall stay what is "
        "about connections and the process (`server.body_timeout`, `drain` and `drain_grace`, `upstream.connect_timeout` and "
        "`idle_timeout`, `telemetry.timeout`, `discovery.dns[].interval`) and what clients are told or tell over HTTP "
        "(`Retry-After`, `expires_in_s`, latencies in `/feedback`).",
    )


class AdminSettings(Section):
    """The admin listener, with its own token: policy reload, drain, status."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8091, ge=0, le=65535, description="Port; 0 takes a free one and logs it.")
    token: SecretStr | None = Field(
        None,
        description="Bearer token. Unset: one is made at start and written to `token_file`. Better given as `CCR_ADMIN__TOKEN`.",
    )
    token_file: Path | None = Field(
        None,
        description="Where the made token is kept (mode 0600) for the commands on this machine; "
        "`~/.ccr/admin-PORT.token` when left out.",
    )

    def where_token_is(self, port: int | None = None) -> Path:
        """The token file; ``port`` where the listener took another than the configured one."""
        return self.token_file or Path.home() / ".ccr" / f"admin-{port or self.port}.token"


class PolicySettings(Section):
    """What chooses the node."""

    name: str = Field("learned", description=f"One of {', '.join([*POLICIES, SCRIPT])}.")
    script: Path | None = Field(
        None, description="The operator's policy script; makes `name` default to `script`."
    )
    fallback: str = Field(
        "hot_cold",
        description="Scores instead when the policy fails; any built-in policy. The default is a heuristic that needs no file.",
    )
    options: dict[str, Option] = Field(
        {},
        description="What the policy takes, e.g. `cold_start_penalty` of `least_request`, `weights` of `learned`.",
    )
    exploration: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of decisions that go to any node on which the request is expected to keep its promise; only with "
        "policies that predict times (docs/guardrails.md).",
    )
    exploration_budget: float = Field(
        0.02, ge=0.0, le=1.0, description="What exploration may cost, as a share of the expected latency."
    )
    exploration_window_s: Seconds = Field(
        60.0,
        gt=0.0,
        description="Over which both are added up; exploration stands still while the budget is used up.",
    )

    @model_validator(mode="before")
    @classmethod
    def _script_implies_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("script") and "name" not in values:
            return {**values, "name": SCRIPT}
        return values

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if self.name not in {*POLICIES, SCRIPT}:
            raise ValueError(f"no policy is called {self.name!r}; there are {', '.join([*POLICIES, SCRIPT])}")
        if self.name == SCRIPT and self.script is None:
            raise ValueError("policy 'script' needs `script: PATH`")
        if self.fallback not in POLICIES:
            raise ValueError(
                f"no built-in policy is called {self.fallback!r}; there are {', '.join(POLICIES)}"
            )
        return self


class GuardSettings(Section):
    """The bounded-load guard; it stands behind every policy and cannot be switched off."""

    factor: float = Field(
        2.0, ge=1.0, le=10.0, description="No eligible node gets above this many times their mean in-flight."
    )
    min_inflight: int = Field(4, ge=1, description="A node with fewer requests is never over.")


class NodeSettings(Section):
    """One GPU node."""

    url: str = Field(description="Base URL, `http://host:port`.")
    id: str = Field("", description="Unique name; `host-port` when left out.")
    engine: str = Field(
        "auto", description="What runs there: auto, vllm, sglang, tgi, triton, trtllm or emulator."
    )
    tags: tuple[str, ...] = Field((), description="Words that requests can insist on with `x-ccr-node-tags`.")
    labels: dict[str, str] = Field(
        {},
        description="Facts for people and scripts. `gpu` is the card that times are predicted for: "
        f"{', '.join(GPUS)}, or as tools spell them (`NVIDIA-A10`, `A100-SXM4-80GB`); others are taken for an A10. "
        "`metrics_port` tells where telemetry is if not at the URL.",
    )
    gpu_gib: float = Field(0.0, ge=0.0, description="Device memory in GiB; 0: as telemetry tells.")
    models: tuple[str, ...] = Field((), description="Model ids it serves; empty: as telemetry tells.")
    loads_on_demand: bool = Field(
        False, description="Whether it loads a model when a request for it arrives."
    )
    max_inflight: int = Field(0, ge=0, description="Cap on requests in flight; 0 for none.")
    schedules_by_priority: bool = Field(
        False,
        description="Whether its engine orders its queue by the request's `priority` (vLLM's `--scheduling-policy priority`): "
        "it is then sent the policy's, unless the client gave one.",
    )
    api_key: SecretStr | None = Field(
        None, description="Sent to the node as its bearer token, instead of the client's."
    )


class DnsSettings(Section):
    """Nodes behind a name, one per address."""

    name: str = Field(description="Prefix of the node ids.")
    host: str = Field(description="Name to resolve.")
    port: int = Field(gt=0, le=65535, description="Port of every node.")
    interval_s: Seconds = Field(10.0, description="Time between look-ups.")
    engine: str = Field("auto", description="As for a node.")
    tags: tuple[str, ...] = Field((), description="As for a node.")
    labels: dict[str, str] = Field({}, description="As for a node.")
    schedules_by_priority: bool = Field(False, description="As for a node.")


class DiscoverySettings(Section):
    """Where nodes come from besides `nodes`."""

    file: Path | None = Field(None, description="A YAML or JSON list of nodes, watched for changes.")
    dns: tuple[DnsSettings, ...] = Field((), description="Names that resolve to nodes.")


class ArchitectureSettings(Section):
    """What a model is inside, as its `config.json` says: the policies that predict times go by it."""

    like: str = Field(
        "",
        description=f"A public model of the same architecture: {', '.join(SHAPES)}. The fields below change what it says; "
        "without it `parameters`, `embedding_parameters`, `layers`, `hidden` and `kv_bytes_per_token` are needed. "
        "A model without architecture is taken for an 8B in 8 bits, scaled to its `gib`.",
    )
    parameters: int | None = Field(None, gt=0, description="All parameters.")
    embedding_parameters: int | None = Field(
        None, gt=0, description="Parameters of the input embedding: `vocab_size` times `hidden_size`."
    )
    layers: int | None = Field(None, gt=0, description="`num_hidden_layers`.")
    hidden: int | None = Field(None, gt=0, description="`hidden_size`.")
    kv_bytes_per_token: int | None = Field(
        None,
        gt=0,
        description="Keys and values of one token: 4 times `num_hidden_layers` times `num_key_value_heads` times "
        "`head_dim`, for a cache in 16 bits.",
    )
    weight_bytes: Literal[1, 2] | None = Field(
        None, description="Bytes per weight: 2, or 1 when quantised to 8 bits. 2 where nothing says so."
    )
    tied: bool | None = Field(None, description="`tie_word_embeddings`; no where nothing says so.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.like and self.like not in SHAPES:
            raise ValueError(f"no architecture is called {self.like!r}; there are {', '.join(SHAPES)}")
        given = self.model_dump(exclude_none=True, exclude={"like"})
        missing = [name for name in _ARCHITECTURE if name not in given]
        if given and missing and not self.like:
            raise ValueError(f"{', '.join(missing)} is missing; give it, or a public model as `like`")
        return self

    def spec(self, name: str, weight_bytes: int | None = None) -> ModelSpec | None:
        """As the timing model wants it; ``None`` when nothing is given.

        Args:
            name: of the model.
            weight_bytes: of a version that differs.
        """
        given = self.model_dump(exclude_none=True, exclude={"like"})
        if weight_bytes:
            given["weight_bytes"] = weight_bytes
        if self.like:
            return replace(SHAPES[self.like], architecture=name, **given)
        if not self.parameters:
            return None
        return ModelSpec(**{"architecture": name, "weight_bytes": 2, **given})


_ARCHITECTURE = ("parameters", "embedding_parameters", "layers", "hidden", "kv_bytes_per_token")


class VersionSettings(Section):
    """One version of a model."""

    id: str = Field("", description="The id nodes know it by; `name@version` when left out.")
    weight: float = Field(1.0, ge=0.0, description="Canary weight among the versions of the model.")
    gib: float = Field(
        0.0,
        ge=0.0,
        description="GPU memory of its weights in GiB; 0: as the model, or its architecture, says.",
    )
    load_s: Seconds = Field(0.0, description="Expected time to load it; 0: from `gib`.")
    weight_bytes: Literal[1, 2] | None = Field(
        None, description="Where it is quantised otherwise than the model's architecture says."
    )
    tags: tuple[str, ...] = Field((), description="Node tags it insists on.")


class ModelSettings(Section):
    """One model: its versions and aliases, and what it costs."""

    versions: dict[str, VersionSettings] = Field(
        {}, description="Version -> settings; none: the model has no versions."
    )
    aliases: dict[str, str] = Field({}, description="Alias -> version, for `name@alias`.")
    gib: float = Field(
        0.0, ge=0.0, description="GPU memory of the weights, or of the adapter, for versions that do not say."
    )
    architecture: ArchitectureSettings = ArchitectureSettings()
    lora_of: str = Field(
        "",
        description="For a LoRA adapter, the model it is loaded on, `name` or `name@version`, also listed under `models`. "
        "It shares that model's weights and batches; `gib` and `load` are then those of the adapter alone.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for alias, version in self.aliases.items():
            if version not in self.versions:
                raise ValueError(
                    f"alias {alias!r} points to {version!r}; versions are {', '.join(self.versions) or 'none'}"
                )
        if self.lora_of and self.architecture != ArchitectureSettings():
            raise ValueError("an adapter has the architecture of its `lora_of`: remove `architecture`")
        if self.architecture == ArchitectureSettings() and any(
            v.weight_bytes for v in self.versions.values()
        ):
            raise ValueError("`weight_bytes` of a version changes the model's `architecture`: give that too")
        if self.versions and not any(version.weight > 0.0 for version in self.versions.values()):
            raise ValueError(
                "every version has weight 0: give one a weight, or requests without a version have nowhere to go"
            )
        return self


class UpstreamSettings(Section):
    """Connections to the nodes, timeouts, retries."""

    client: Literal["native", "aiohttp"] = Field(
        "native",
        description="What speaks to the nodes: our own client, or aiohttp's, slower and widely used.",
    )
    pool_size: int = Field(200, gt=0, description="Connections kept per node.")
    idle_timeout_s: Seconds = Field(30.0, description="An idle connection is closed after this.")
    connect_timeout_s: Seconds = Field(2.0, description="Time to connect.")
    ttft_timeout_s: Seconds = Field(
        30.0,
        description="Time to the first byte of a streamed answer; raise it where cold loads take longer.",
    )
    answer_timeout_s: Seconds = Field(
        300.0,
        description="Time to an answer that is not streamed: all of it has to be generated before its first byte comes.",
    )
    stream_idle_timeout_s: Seconds = Field(15.0, description="Longest silence inside an answer.")
    retries: int = Field(
        1, ge=0, le=3, description="Other nodes tried after a failure before the first byte."
    )
    retry_ratio: float = Field(0.1, ge=0.0, le=1.0, description="Retry budget, as a share of requests ...")
    retry_per_s: float = Field(3.0, ge=0.0, description="... plus this many per second.")


class TelemetrySettings(Section):
    """Reading the nodes."""

    interval_s: Seconds = Field(0.5, description="Time between readings of a node.")
    timeout_s: Seconds = Field(1.0, description="Time a reading may take.")
    stale_after_s: Seconds = Field(2.0, description="Older readings are masked to a neutral value.")


class OutlierSettings(Section):
    """When a node leaves rotation, and how it comes back."""

    failures: int = Field(5, ge=1, description="Consecutive failures that eject.")
    timeouts: int = Field(2, ge=1, description="Consecutive timeouts that eject.")
    base_s: Seconds = Field(5.0, description="First ejection; doubled each time.")
    cap_s: Seconds = Field(300.0, description="Longest ejection.")
    soft_share: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Largest share of the fleet that errors may eject; nodes where nothing listens do not count.",
    )
    slow_start_s: Seconds = Field(30.0, description="Time over which a returning node's share grows to full.")
    penalty_s: Seconds = Field(30.0, description="Latency charged for a failure.")


class AdmissionSettings(Section):
    """How much is let in."""

    max_inflight: int = Field(1024, gt=0, description="Requests in flight in this router; above it 429.")
    low_priority_share: float = Field(
        0.8, gt=0.0, le=1.0, description="Priority below 0 is refused above this share of `max_inflight`."
    )
    max_qps: float = Field(
        0.0, ge=0.0, description="Requests per second let in, with a burst of one second; 0: no limit."
    )
    retry_after_s: Seconds = Field(1.0, description="What refused clients are told to wait.")


class BatchingSettings(Section):
    """The batching window. A script's `batch_hint` switches it on too."""

    enabled: bool = Field(
        False, description="Hold same-model requests for a moment so that they start together."
    )
    max_wait_s: Seconds = Field(0.010, le=0.1, description="Longest wait.")
    size: int = Field(4, ge=2, le=256, description="Requests that make a full batch.")


class SidecarSettings(Section):
    """`POST /route`: the caller reaches the node itself."""

    lease_s: Seconds = Field(
        120.0,
        gt=0.0,
        description="A decision without feedback ends after this, with outcome `expired`; where most callers never report, "
        "as soon as it was expected to be over.",
    )
    secret: SecretStr | None = Field(
        None,
        description="Signs decision tokens; share it among replicas as `CCR_SIDECAR__SECRET`. Unset: made at start.",
    )


class KeySettings(Section):
    """One API key. `ccr key new` makes one and prints its hash."""

    name: str = Field(description="Who it belongs to; the tenant in logs and metrics.")
    hash: str = Field(
        pattern=r"^sha256:[0-9a-f]{64}$", description="`sha256:` and the hex digest of the key."
    )
    models: tuple[str, ...] = Field((), description="Model names it may use; `*` for all; empty for none.")
    max_inflight: int = Field(0, ge=0, description="Its requests in flight; 0: no limit.")


class LogSettings(Section):
    """Logs go to standard error."""

    format: Literal["json", "console"] = Field("json", description="`json`, or `console` for people.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level written."
    )
    requests: bool = Field(
        True, description="One line per request: ids, node, outcome, times; never its text."
    )


class TraceSettings(Section):
    """Memory of recent decisions, for `ccr decisions` and replay."""

    keep: int = Field(1000, ge=0, description="Decisions kept in memory.")


class RecordSettings(Section):
    """Traces written to disk (docs/recording.md): off without a directory; `ccr traces record` starts one at any time."""

    directory: Path | None = Field(
        None, description="Where to write from the start on; a directory of its own for each router."
    )
    max_bytes: int = Field(
        2**30,
        gt=0,
        description="Disk all recordings in a directory may take; the oldest segments give way. 4 to 500 segments.",
    )
    segment_bytes: int = Field(64 * 2**20, ge=2**20, description="Size at which a file is closed.")
    kinds: tuple[Literal["requests", "telemetry", "loads"], ...] = Field(
        ("requests", "telemetry", "loads"), min_length=1, description="What to write."
    )

    @model_validator(mode="after")
    def _segments_fit(self) -> Self:
        if not 4 * self.segment_bytes <= self.max_bytes <= 500 * self.segment_bytes:
            raise ValueError(
                f"max_bytes must hold 4 to 500 segments; with segment_bytes {self.segment_bytes} that is "
                f"{4 * self.segment_bytes} to {500 * self.segment_bytes}"
            )
        return self


class StoreSettings(Section):
    """What routers and the learner share (docs/store.md): a Redis server, or a directory; nothing without either."""

    redis_url: SecretStr | None = Field(
        None,
        description="`redis://`, `rediss://` or `unix://`, of a Redis 6.2 or later. No request ever waits for it. "
        "Better given as `CCR_STORE__REDIS_URL`.",
    )
    directory: Path | None = Field(
        None,
        description="Without Redis: where to keep it, for one router and the learner on the same machine.",
    )
    prefix: str = Field(
        "ccr", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="Of all keys and channels in Redis."
    )
    timeout_s: Seconds = Field(
        0.050, gt=0.0, le=1.0, description="Longest wait for Redis, in a thread of its own."
    )
    stream_length: int = Field(
        100_000, ge=1000, description="Feedback records kept in Redis, about; the oldest give way."
    )
    stream_bytes: int = Field(
        64 * 2**20, ge=2**20, description="Feedback records kept in the directory; the oldest give way."
    )

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if self.redis_url is not None and self.directory is not None:
            raise ValueError(
                "both `redis_url` and `directory` are given: the store is in one place, remove the other"
            )
        return self


class FeedbackSettings(Section):
    """What the learner is told of each request (docs/feedback.md); only where there is a `store`."""

    enabled: bool = Field(True, description="Whether requests become records in the store.")
    directory: Path | None = Field(
        None,
        description="Where records wait while the store is away; a directory of its own for each router. "
        "Without it they wait in memory, and those that do not fit are dropped and counted.",
    )
    spool_bytes: int = Field(
        64 * 2**20, ge=2**20, description="Disk that waiting records may take; the oldest give way."
    )
    max_waiting: int = Field(
        8192, ge=64, description="Requests that may wait in memory, some 3 KB each with 8 nodes."
    )


class PublicationSettings(Section):
    """Weights published by a learner (docs/publication.md): followed where there is a `store` and a key."""

    key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Signs what is published; the same for learner and routers, and nobody else's. Without it nothing "
        "published is taken. Better given as `CCR_PUBLICATION__KEY`.",
    )
    interval_s: Seconds = Field(1.0, gt=0.0, description="Time between two looks at the version.")
    stale_after_s: Seconds = Field(
        900.0, description="Without word of a publisher for so long the fallback policy takes over; 0: never."
    )
    trial_s: Seconds = Field(
        180.0,
        gt=0.0,
        description="How long new weights are on trial: watched most closely (docs/guardrails.md).",
    )
    directory: Path | None = Field(
        None,
        description="Where the weights taken last are kept over a restart; a directory of its own for each router.",
    )


class LedgerSettings(Section):
    """What routers tell each other of the requests they have in flight (docs/shared-ledger.md); only where there is `store.redis_url`."""

    shared: bool = Field(
        True, description="Whether this router tells the others, and takes in what they tell."
    )
    interval_s: Seconds = Field(
        0.1,
        gt=0.0,
        le=10.0,
        description="Time between two exchanges; on the wall, as all times of this section.",
    )
    expires_s: Seconds = Field(
        2.0, gt=0.0, le=60.0, description="What a router told, and does not tell again, is dropped after so long; at least "
        "four intervals.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _outlives_a_few_turns(self) -> Self:
        if self.expires_s < 4.0 * self.interval_s:
            raise ValueError(
                f"`expires` must be at least four intervals, {4.0 * self.interval_s:g}s; give more, or a shorter `interval`"
            )
        return self


class LearnerSettings(Section):
    """The learner, `ccr learn` (docs/learner.md): a process beside the routers, with their `store` and `publication.key`."""

    directory: Path | None = Field(
        None,
        description="Its own disk: what it published last, what it is training, versions not yet in the registry. By "
        "default among the user's data.",
    )
    tracking_uri: str = Field(
        "",
        description="MLflow that every published version is registered in: `sqlite:///FILE` or `http://HOST:PORT`. Empty: as "
        "for `ccr train`.",
    )
    retrain_every_s: Seconds = Field(
        600.0, description="Time between two retrainings; a drift brings the next one forward. 0: none."
    )
    search_s: Seconds = Field(
        60.0, gt=0.0, description="Seconds of one core that the search of a retraining may take."
    )
    episodes: int = Field(
        120, ge=100, description="Paired episodes in which what was found is judged against what serves."
    )
    least_requests: int = Field(
        1000, ge=100, description="Recorded lately, below which nothing is retrained."
    )


class Settings(BaseSettings):
    """The whole config."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="CCR_", env_nested_delimiter="__", case_sensitive=False
    )

    server: ServerSettings = ServerSettings()
    admin: AdminSettings = AdminSettings()
    policy: PolicySettings = PolicySettings()
    guard: GuardSettings = GuardSettings()
    nodes: tuple[NodeSettings, ...] = Field((), description="The nodes, if they are fixed.")
    discovery: DiscoverySettings = DiscoverySettings()
    models: dict[str, ModelSettings] = Field({}, description="Model name -> versions, canary weights, sizes.")
    upstream: UpstreamSettings = UpstreamSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    outlier: OutlierSettings = OutlierSettings()
    admission: AdmissionSettings = AdmissionSettings()
    batching: BatchingSettings = BatchingSettings()
    sidecar: SidecarSettings = SidecarSettings()
    keys: tuple[KeySettings, ...] = Field(
        (), description="API keys; none: anyone who reaches the port may use it."
    )
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    record: RecordSettings = RecordSettings()
    store: StoreSettings = StoreSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    publication: PublicationSettings = PublicationSettings()
    ledger: LedgerSettings = LedgerSettings()
    learner: LearnerSettings = LearnerSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which arrives as init arguments."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        _refuse_repeats("nodes", [node.id or node.url for node in self.nodes])
        _refuse_repeats("keys", [key.name for key in self.keys])
        _refuse_repeats("keys", [key.hash for key in self.keys])
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Self:
        for name, model in self.models.items():
            if model.lora_of:
                _base_of(name, self.models)
        return self

    def fleet_rules(self) -> FleetRules:
        """The live fleet's constants."""
        outlier = self.outlier
        return FleetRules(
            stale_after_s=self.telemetry.stale_after_s,
            penalty_s=outlier.penalty_s,
            outlier=OutlierRules(
                failures=outlier.failures,
                timeouts=outlier.timeouts,
                base_s=outlier.base_s,
                cap_s=outlier.cap_s,
                soft_share=outlier.soft_share,
                slow_start_s=outlier.slow_start_s,
            ),
        )

    def bounded_load(self) -> BoundedLoad:
        """The guard."""
        return BoundedLoad(factor=self.guard.factor, min_inflight=self.guard.min_inflight)

    def catalogue(self) -> Catalogue:
        """The models, with ids, sizes and load times filled in."""
        return Catalogue({name: _entry(name, model) for name, model in self.models.items()})

    def prices(self) -> PriceList:
        """What models cost: architectures, adapters and stated figures, by the ids that nodes know."""
        versions = [
            (self.models[name], version)
            for name, entry in self.catalogue().models.items()
            for version in entry.versions.values()
        ]
        stated = {version.id: Stated(version.gib, version.load_s) for _, version in versions}
        own = {version.id: spec for model, version in versions if (spec := _spec_of(model, version))}
        shapes = PriceList(own)
        adapters: dict[str, ModelSpec] = {}
        for model, version in versions:
            if model.lora_of:
                base = _base_of(version.name, self.models)
                adapters[version.id] = adapter_of(base, shapes.model(base, stated[base].gib), version.gib)
        return PriceList(own | adapters, stated=stated)


def load(path: Path | None) -> Settings:
    """The settings from a file and the environment.

    Args:
        path: a YAML file; ``None`` for defaults and environment alone.

    Raises:
        ConfigError: naming each wrong value, where it stands and what would be right.
    """
    if path is None:
        return parse(b"", "the environment")
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}; name one with --config")
    return parse(path.read_bytes(), str(path))


def parse(text: bytes, origin: str) -> Settings:
    """The settings from YAML text; ``origin`` names it in errors.

    Raises:
        ConfigError: as :func:`load`.
    """
    try:
        document = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"{origin}: expected settings as `key: value`, found a {type(document).__name__}")
    problems = _unknown_variables()
    try:
        settings = Settings(**document)
    except ValidationError as error:
        problems += [_explain(problem) for problem in error.errors(include_url=False)]
    except SettingsError as error:
        raise ConfigError(f"the environment: {error}; write it as JSON, or in a config file") from error
    except TypeError as error:
        raise ConfigError(f"{origin}: setting names must be text ({error})") from error
    if problems:
        raise ConfigError("\n  ".join([f"{origin}: {len(problems)} setting(s) are wrong", *problems]))
    return settings


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if no key stands there twice."""
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node)
        return super().construct_mapping(node, deep)  # type: ignore[arg-type]  # it refuses any other node


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is given twice", key_node.start_mark
            )
        seen.add(key)


def _unknown_variables() -> list[str]:
    """What ``CCR_SECTION__KEY`` variables name no section; Kubernetes sets others, with single underscores."""
    split = [(name, name.lower().partition("__")) for name in os.environ]
    known = {f"ccr_{section}" for section in Settings.model_fields}
    return [
        f"{name}: no such setting; see docs/configuration.md, or unset it"
        for name, (section, nested, _) in split
        if nested and section.startswith("ccr_") and section not in known
    ]


def _explain(problem: ErrorDetails) -> str:
    """One problem: the setting, where it came from if not from the file, what is wrong, what was given."""
    loc, given = problem["loc"], problem["input"]
    where = ".".join(str(part) for part in loc) or "(top level)"
    where += _variable(loc)
    if problem["type"] == "extra_forbidden":
        return f"{where}: no such setting; see docs/configuration.md, or remove it"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing" or not isinstance(given, str | int | float) or loc[-1] in SECRETS:
        return f"{where}: {message}"
    return f"{where}: {message} (given: {_short(given)})"


def _variable(loc: tuple[int | str, ...]) -> str:
    """The environment variable that a setting came from, as part of a message."""
    given = {name.lower(): name for name in os.environ}
    for depth in range(len(loc), 0, -1):
        name = given.get("__".join(["ccr_" + str(loc[0]), *map(str, loc[1:depth])]).lower())
        if name is not None:
            return f" (from {name})"
    return ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what}: {', '.join(repeated)} is given more than once")


def _entry(name: str, model: ModelSettings) -> ModelEntry:
    if not model.versions:
        return ModelEntry(name, {"": _version(name, "", model, VersionSettings(id=name))})
    versions = {key: _version(name, key, model, version) for key, version in model.versions.items()}
    return ModelEntry(name, versions, dict(model.aliases))


def _version(name: str, key: str, model: ModelSettings, version: VersionSettings) -> Version:
    gib = version.gib or model.gib
    if not gib and (spec := model.architecture.spec(name, version.weight_bytes)):
        gib = weights_gib(spec)
    return Version(
        id=version.id or f"{name}@{key}",
        name=name,
        version=key,
        weight=version.weight,
        gib=gib,
        load_s=version.load_s or gib / DEFAULT_LOAD_GIB_PER_S,
        tags=frozenset(version.tags),
    )


def _spec_of(model: ModelSettings, version: Version) -> ModelSpec | None:
    settings = model.versions.get(version.version)
    return model.architecture.spec(version.name, settings.weight_bytes if settings else None)


def _base_of(name: str, models: Mapping[str, ModelSettings]) -> str:
    """The id of the model that an adapter is loaded on.

    Raises:
        ValueError: if `models` has none, or several, of what its `lora_of` says.
    """
    wanted = models[name].lora_of
    base_name, _, version = wanted.partition("@")
    base = models.get(base_name)
    problem = f"models.{name}: `lora_of` is {wanted!r}, but "
    if base is None:
        raise ValueError(f"{problem}`models` does not list it: add it, `{base_name}: {{}}` is enough")
    if base.lora_of:
        raise ValueError(f"{problem}that is an adapter itself: name the model it is loaded on")
    versions = _entry(base_name, base).versions
    if not version and len(versions) == 1:
        return next(iter(versions.values())).id
    found = versions.get(base.aliases.get(version, version))
    if found is None or not version:
        known = ", ".join(f"{base_name}@{key}" for key in versions if key) or base_name
        raise ValueError(f"{problem}the model is known as {known}: write one of these")
    return found.id


def keys_by_section(settings: type[BaseModel] = Settings) -> Mapping[str, FieldInfo]:
    """Every setting with its field; for the generated reference and its tests.

    Returns:
        By dotted key, in order; what stands in a list or under a free name is ``nodes[].url``, ``models.NAME.gib``.
    """
    found: dict[str, FieldInfo] = {}
    for name, info in settings.model_fields.items():
        key = info.alias or name
        section, place = _section_in(info.annotation)
        if section is None or place:
            found[key] = info
        if section is not None:
            found.update({f"{key}{place}.{sub}": field for sub, field in keys_by_section(section).items()})
    return found


def _section_in(kind: Any) -> tuple[type[BaseModel] | None, str]:
    inner, place = kind, ""
    if get_origin(kind) is tuple:
        inner, place = get_args(kind)[0], "[]"
    elif get_origin(kind) is dict:
        inner, place = get_args(kind)[1], ".NAME"
    return (inner, place) if isinstance(inner, type) and issubclass(inner, BaseModel) else (None, "")
