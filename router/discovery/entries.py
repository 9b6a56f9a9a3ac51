"""One node as people write it, checked: a mapping becomes a `NodeSpec`."""

import re
import reprlib
import socket
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ccr.errors import ConfigError
from ccr.types import NodeSpec
from router.collectors import COLLECTORS
from router.collectors.collector import METRICS_PORT
from router.discovery.addresses import why_forbidden

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})")
_CREDENTIALS = re.compile(r"//[^/]*@")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def node_spec(entry: Mapping[str, Any]) -> NodeSpec:
    """The node an entry describes.

    Args:
        entry: ``url``, and any of ``id`` (``host-port`` of the url if left out or empty), ``engine``, ``tags``,
            ``labels``, ``gpu_gib``, ``models``, ``loads_on_demand``, ``max_inflight``, ``schedules_by_priority``.

    Raises:
        ConfigError: naming the node, the key, the value and what would be right.
    """
    who = _who(entry)
    unknown = sorted(str(key) for key in entry if key not in _KEYS)
    if unknown:
        raise ConfigError(f"{who}: unknown key {', '.join(unknown)}; known keys: {', '.join(_KEYS)}")
    if "url" not in entry:
        raise ConfigError(f"{who}: `url` is missing; write e.g. url: http://10.0.0.7:8000")
    values = {}
    for key, value in entry.items():
        try:
            values[key] = _KEYS[key](value)
        except ValueError as error:
            raise ConfigError(f"{who}: `{key}` is {short(value)}, but {error}") from None
    url = values["url"]
    return NodeSpec(
        id=values.get("id") or _default_id(url),
        url=url,
        engine=values.get("engine", "auto"),
        tags=values.get("tags", frozenset()),
        labels=values.get("labels", {}),
        gpu_total_gib=values.get("gpu_gib", 0.0),
        models=values.get("models", frozenset()),
        loads_on_demand=values.get("loads_on_demand", False),
        max_inflight=values.get("max_inflight", 0),
        schedules_by_priority=values.get("schedules_by_priority", False),
    )


def refuse_repeats(specs: Sequence[NodeSpec]) -> None:
    """Refuse a list in which two nodes have one id or one url.

    Raises:
        ConfigError: naming the repeated value and both positions, counted from 1.
    """
    for what in ("id", "url"):
        seen: dict[str, int] = {}
        for number, spec in enumerate(specs, start=1):
            value = getattr(spec, what)
            if value in seen:
                raise ConfigError(
                    f"nodes {seen[value]} and {number} have the same {what} {value}; remove one, or change it"
                )
            seen[value] = number


def short(value: object) -> str:
    """The value for a message, whatever its size, without credentials in a url."""
    return _CREDENTIALS.sub("//***@", reprlib.repr(value))


def _who(entry: Mapping[str, Any]) -> str:
    name = entry.get("id") or entry.get("url")
    return f"node {short(name)}" if name else "a node"


def _default_id(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}-{parts.port}".replace(":", "-").strip("-")


# One function per key: the value, or ValueError saying what it must be.


def _url(value: object) -> str:
    """``scheme://host:port``, host in lower case, port always there."""
    parts = _split(_text(value))
    scheme, host = parts.scheme, (parts.hostname or "").rstrip(".")
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("it must hold no credentials")
    if parts.path.rstrip("/") or parts.query or parts.fragment:
        raise ValueError("it must end after the port: paths are the router's to add")
    port = parts.port if parts.port is not None else _DEFAULT_PORTS[scheme]
    if not port:
        raise ValueError("its port must be 1 to 65535")
    why = why_forbidden(host)
    if why:
        raise ValueError(f"no node may live there ({why})")
    return f"{scheme}://{_host(host)}:{port}"


def _split(text: str) -> SplitResult:
    if any(not char.isprintable() or char.isspace() for char in text):
        raise ValueError("it must hold no blanks or control characters")
    try:
        parts = urlsplit(text)
        _ = parts.port  # parsed, and so refused, only when asked for
    except ValueError as error:
        raise ValueError(f"it must be like http://10.0.0.7:8000 ({error})") from None
    return parts


def _host(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return _name(host)
    if isinstance(address, IPv4Address):
        return str(address)
    if address.scope_id:
        raise ValueError("its address must hold no zone (%...)")
    return f"[{address}]"


def _name(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ValueError("its host must be a name of letters, digits, dots and hyphens, or an IP address")
    try:
        dotted = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return host
    # Resolvers take 2852039166, 0xa9fea9fe or 127.1 for addresses; the check above does not see through these.
    raise ValueError(f"its host must be written as four decimal numbers, here {dotted}")


def _id(value: object) -> str:
    text = _text(value)
    if text and not _ID.fullmatch(text):
        raise ValueError("it must be at most 128 letters, digits, dots, hyphens and underscores")
    return text


def _engine(value: object) -> str:
    if not isinstance(value, str) or value not in COLLECTORS:
        raise ValueError(f"it must be one of {', '.join(COLLECTORS)}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("it must be text (put it in quotes)")  # noqa: TRY004 - node_spec makes one error of it
    return value


def _words(value: object) -> frozenset[str]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError("it must be a list, e.g. [a, b]")  # noqa: TRY004 - as above
    if not all(isinstance(word, str) and word for word in value):
        raise ValueError("it must be a list of words (put numbers in quotes)")
    return frozenset(value)


def _labels(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        raise ValueError("it must be names with texts, e.g. {gpu: A10} (put numbers in quotes)")
    port = value.get(METRICS_PORT, "1")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(f"{METRICS_PORT} must be a port, 1 to 65535, in quotes")
    return dict(value)


def _gib(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1e6:
        raise ValueError("it must be a number of GiB, 0 for unknown")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")  # noqa: TRY004 - as above
    return value


def _cap(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**6:
        raise ValueError("it must be a whole number, 0 for no cap")
    return value


_KEYS: Mapping[str, Callable[[object], Any]] = {
    "id": _id,
    "url": _url,
    "engine": _engine,
    "tags": _words,
    "labels": _labels,
    "gpu_gib": _gib,
    "models": _words,
    "loads_on_demand": _flag,
    "max_inflight": _cap,
    "schedules_by_priority": _flag,
}
