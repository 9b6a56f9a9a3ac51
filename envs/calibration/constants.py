"""What a calibration found, in a file that the emulator and the simulator read back."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from ccr.errors import ConfigError
from ccr.timing import EnginePreset, LoadSource
from envs.node import NodeSettings

_Found = TypeVar("_Found")
_VERSION = 1
_KEYS = ("ccr_calibration", "measured", "preset", "nodes", "loads")
_ABOVE_ZERO = (
    "bw_scale", "bytes_per_s", "linear_flops", "attention_flops", "prefill_bandwidth", "decode_bandwidth", "kv_bandwidth",
)  # fmt: skip
_WORDS = ("name", "origin")


@dataclass(frozen=True, slots=True)
class NodeConstants:
    """What is a node's own.

    Args:
        overhead_s: HTTP and tokeniser, on each request.
        bw_scale: memory bandwidth relative to the fitted card.
    """

    overhead_s: float
    bw_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted constants.

    Args:
        preset: of the engine; ``None`` when no profile was fitted.
        nodes: by node id; empty when no trace was fitted.
        loads: ``{place: {source name: source}}``, a place being a node or a card.
        measured: what it was fitted to: ``{file name: sha256}``.
    """

    preset: EnginePreset | None = None
    nodes: Mapping[str, NodeConstants] = field(default_factory=lambda: MappingProxyType({}))
    loads: Mapping[str, Mapping[str, LoadSource]] = field(default_factory=lambda: MappingProxyType({}))
    measured: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def settings(self, base: NodeSettings, node: str = "", place: str = "") -> NodeSettings:
        """``base`` with what was found; what was not fitted stays.

        Args:
            base: the node as it would be.
            node: whose overhead and bandwidth; empty: those of ``base``.
            place: where its weights were seen to load; empty: the node's own loads, where there are any.

        Raises:
            ConfigError: the file has no such node or place.
        """
        settings = base if self.preset is None else replace(base, preset=self.preset)
        if node:
            own = _among(self.nodes, node, "node")
            settings = replace(settings, overhead_s=own.overhead_s, bw_scale=own.bw_scale)
        sources = _among(self.loads, place, "place") if place else self.loads.get(node, {})
        return replace(settings, source=sources.get(base.source.name, base.source))


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the whole file or none of it."""
    document: dict[str, Any] = {"ccr_calibration": _VERSION, "measured": dict(calibration.measured)}
    if calibration.preset:
        document["preset"] = asdict(calibration.preset)
    if calibration.nodes:
        document["nodes"] = {node: asdict(own) for node, own in calibration.nodes.items()}
    if calibration.loads:
        document["loads"] = {
            place: {name: asdict(source) for name, source in sources.items()}
            for place, sources in calibration.loads.items()
        }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    partial.replace(path)


def read_calibration(path: Path) -> Calibration:
    """What :func:`write_calibration` wrote.

    Raises:
        ConfigError: naming the file, the place in it and the remedy.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("ccr_calibration") != _VERSION:
        raise ConfigError(
            f"{path.name} is not a calibration of version {_VERSION}; write one with ccr calibrate --out"
        )
    if unknown := [str(key) for key in document if key not in _KEYS]:
        raise ConfigError(f"{path.name}: unknown {', '.join(unknown)}; known: {', '.join(_KEYS)}")
    preset = document.get("preset")
    return Calibration(
        preset=None if preset is None else _made(EnginePreset, preset, f"{path.name}: preset"),
        nodes={
            str(node): _made(NodeConstants, own, f"{path.name}: nodes: {node}")
            for node, own in _mapping(document, "nodes", path.name).items()
        },
        loads={
            str(place): {
                str(name): _made(LoadSource, _mapping(sources, name, place), f"{path.name}: {place}: {name}")
                for name in sources
            }
            for place, sources in _mapping(document, "loads", path.name).items()
        },
        measured=_mapping(document, "measured", path.name),
    )


def _among(known: Mapping[str, _Found], name: str, kind: str) -> _Found:
    if name not in known:
        raise ConfigError(f"the calibration has no {kind} {name!r}; it has {', '.join(known) or 'none'}")
    return known[name]


def _mapping(document: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key}: expected a mapping")
    return value


def _made(kind: type[_Found], given: Any, where: str) -> _Found:
    items = fields(kind)  # type: ignore[arg-type]  # the callers give dataclasses
    required = {item.name for item in items if item.default is MISSING}
    if not isinstance(given, dict) or not required <= set(given) <= {item.name for item in items}:
        raise ConfigError(f"{where}: expected the fields {', '.join(item.name for item in items)}")
    for name, value in given.items():
        _check(value, name, where)
    return kind(**given)


def _check(value: Any, name: str, where: str) -> None:
    if name in _WORDS:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise ConfigError(f"{where}: {name} is {value!r}; give a number of at least 0")
    if value == 0 and name in _ABOVE_ZERO:
        raise ConfigError(f"{where}: {name} is 0; give a number above 0")
