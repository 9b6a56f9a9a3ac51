"""Nodes from a YAML or JSON file, watched for changes; what is wrong is refused and the last good list stays."""

import asyncio
import json
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ccr.errors import ConfigError
from ccr.settings import StrictLoader
from ccr.types import NodeSpec
from router.discovery.entries import node_spec, refuse_repeats, short
from router.discovery.source import OnError, OnNodes, Sleep, log_error

# Reading 1 MiB of YAML, some 8,000 nodes, takes seconds; it happens in a thread, but it shares the interpreter.
MAX_BYTES = 1 << 20
_NEVER = object()


class FileDiscovery:
    """A list of nodes in a file, or a mapping with such a list under ``nodes``.

    Replace the file by renaming a complete one over it. An empty file is refused (it is what a half-done
    write looks like); ``[]`` is a list of no nodes.

    Args:
        path: ``.json`` is read as JSON, anything else as YAML.
        on_error: told of each content that was refused, once.
        poll_s: time between looks at the file's modification time, size and inode.
        sleep: waits that long.
    """

    def __init__(
        self,
        path: Path,
        on_error: OnError = log_error,
        poll_s: float = 1.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.path = path
        self._on_error = on_error
        self._poll_s = poll_s
        self._sleep = sleep

    @property
    def place(self) -> str:
        """The file."""
        return str(self.path)

    def read(self) -> tuple[NodeSpec, ...]:
        """The nodes in the file as it is now; for a check before anything starts.

        Raises:
            ConfigError: naming the file, the line or entry, and what would be right.
        """
        try:
            text = _bytes(self.path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        entries = _json(text, self.place) if self.path.suffix == ".json" else _yaml(text, self.place)
        specs = tuple(_spec(where, entry) for where, entry in entries)
        try:
            refuse_repeats(specs)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None
        return specs

    async def watch(self, on_nodes: OnNodes) -> None:
        """Tell the nodes at the start and whenever they changed; runs until cancelled."""
        seen: object = _NEVER
        told: tuple[NodeSpec, ...] | None = None
        while True:
            # The look comes before the reading: a change in between is seen at the next look.
            look = await asyncio.to_thread(_signature, self.path)
            if look != seen:
                seen = look
                specs = await self._read_or_report()
                if specs is not None and specs != told:
                    told = specs
                    on_nodes(specs)
            await self._sleep(self._poll_s)

    async def _read_or_report(self) -> tuple[NodeSpec, ...] | None:
        try:
            return await asyncio.to_thread(self.read)
        except ConfigError as error:
            self._on_error(error)
            return None


def _signature(path: Path) -> tuple[int, ...] | None:
    """What differs after any write or rename; ``None`` if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _bytes(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is not a file; name a YAML or JSON file of nodes")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); `discovery.file` names it") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes; a node takes about 100")
    return content


def _spec(where: str, entry: object) -> NodeSpec:
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{where}: expected a node like {{url: http://10.0.0.7:8000}}, found {short(entry)}"
        )
    try:
        return node_spec(entry)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


# (place, entry) of each node


def _yaml(text: str, place: str) -> list[tuple[str, object]]:
    # The pure Python loader: the one in C overruns the stack, and ends the process, on 20,000 open brackets.
    try:
        loader = StrictLoader(text)
        root = loader.get_single_node()
        document = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} is not valid YAML: {error}") from None
    except (
        RecursionError,
        ValueError,
    ) as error:  # ValueError: a date or number that cannot be, such as 2026-99-99
        raise ConfigError(f"{place} cannot be read as YAML: {error}") from None
    entries = _list(document, place)
    return [(f"{place}, line {line}", entry) for line, entry in zip(_lines(root), entries, strict=True)]


def _lines(root: Any) -> list[int]:
    """Where each node begins in the text."""
    if isinstance(root, yaml.MappingNode):
        root = next(value for key, value in root.value if key.value == "nodes")
    return [item.start_mark.line + 1 for item in root.value]


def _json(text: str, place: str) -> list[tuple[str, object]]:
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} cannot be read as JSON: {error}") from None
    return [(f"{place}, node {n}", entry) for n, entry in enumerate(_list(document, place), start=1)]


def _list(document: object, place: str) -> Sequence[object]:
    nodes = document["nodes"] if isinstance(document, Mapping) and set(document) == {"nodes"} else document
    if not isinstance(nodes, list):
        found = "nothing" if nodes is None else short(nodes)
        raise ConfigError(f"{place}: expected a list of nodes (`[]` for none), found {found}")
    return nodes


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        repeated = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise ValueError(f"key {', '.join(repeated)} is given twice in one object")
    return seen


def _no_constant(name: str) -> Callable[..., Any]:
    raise ValueError(f"{name} is no JSON number")
