"""Which models a node has, from the JSON its API answers."""

from typing import TypeVar

import msgspec

from ccr.errors import TelemetryError
from router.collectors.collector import MODELS, Bodies
from router.collectors.values import ids
from router.prometheus_text import MALFORMED

T = TypeVar("T")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Info(msgspec.Struct):
    model_id: str


class _IndexEntry(msgspec.Struct):
    name: str
    version: str = ""
    state: str = ""


def openai_models(bodies: Bodies) -> frozenset[str] | None:
    """The ids of ``GET /v1/models``, LoRA adapters included; ``None`` if it did not come."""
    body = bodies.get(MODELS)
    return None if body is None else ids(model.id for model in _decode(body, _Models).data)


def tgi_info(body: bytes) -> frozenset[str]:
    """The model of TGI's ``GET /info``."""
    return ids([_decode(body, _Info).model_id])


def triton_index(body: bytes) -> frozenset[str]:
    """The models Triton's repository index calls READY: ``name``, and ``name@version`` for each such version."""
    ready = [entry for entry in _decode(body, list[_IndexEntry]) if entry.state == "READY"]
    names = [entry.name for entry in ready]
    return ids([*names, *(f"{entry.name}@{entry.version}" for entry in ready if entry.version)])


def _decode(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TelemetryError(MALFORMED, f"list of models: {error}") from None
