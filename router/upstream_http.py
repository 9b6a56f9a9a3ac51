"""The fast client of the nodes: HTTP/1.1 on pooled connections, without tasks or timers per request.

A connection that a node closes between two requests may take a request with it: the node's close and our
request cross on the wire. Whether the node saw the request cannot be told then, so only a method that may be
repeated (RFC 9110, 9.2.2) is sent again here, on another connection. A POST is not, as in nginx, aiohttp and
Go; it fails as :class:`UpstreamError`, and the retry budget decides about another node. To make that rare,
a connection that idled for a while is looked at before it is used.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Final

from aiohttp.abc import AbstractResolver

from ccr.settings import UpstreamSettings
from ccr.types import NodeSpec
from router.resolver import CarefulResolver
from router.upstream import RawHeaders, UpstreamAnswer, UpstreamError
from router.upstream_connection import HttpAnswer
from router.upstream_dial import Dialer, Place
from router.upstream_pool import Pool

#: A body up to this size goes out in one piece with the head.
TOGETHER_BYTES: Final = 64 * 2**10
_REPEATABLE: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
_WITHOUT_BODY: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "TRACE"})
# Nodes come and go: pools without a connection are forgotten when there are this many.
_MANY_POOLS: Final = 512


class HttpUpstream:
    """A pool of connections per node.

    Args:
        settings: pool size, idle and connect timeouts.
        resolver: says where names point; by default the one that refuses what no node may be.
        tls: context for nodes that speak HTTPS; by default the system's authorities.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._resolver = CarefulResolver() if resolver is None else resolver
        self._tls = tls
        self._clock = clock
        self._pools: dict[str, tuple[Pool, str]] = {}
        self._is_closed = False

    def start(
        self, node: NodeSpec, method: str, target: str, headers: RawHeaders, body: bytes
    ) -> HttpAnswer | None:
        """Make a request ready on a connection that idles; ``None`` if there is none."""
        known = self._pools.get(node.url)
        connection = known[0].take() if known else None
        if known is None or connection is None:
            return None
        head = request_head(method, target, known[1], headers, len(body))
        if len(body) <= TOGETHER_BYTES:
            head, body = head + body, b""
        return connection.begin(head, body, is_head=method == "HEAD", is_held=True)

    async def send(
        self, node: NodeSpec, method: str, target: str, headers: RawHeaders, body: bytes
    ) -> UpstreamAnswer:
        """Send a request and wait for the answer's headers."""
        pool, host = self._pools.get(node.url) or self._add(node.url)
        head = request_head(method, target, host, headers, len(body))
        if len(body) <= TOGETHER_BYTES:
            head, body = head + body, b""
        while True:
            connection = pool.take() or await pool.acquire()
            was_used = connection.was_used
            try:
                return await connection.ask(head, body, is_head=method == "HEAD")
            except UpstreamError:
                if not (was_used and connection.was_silent and method in _REPEATABLE):
                    raise

    async def close(self) -> None:
        """Close every connection."""
        self._is_closed = True
        await asyncio.gather(*[pool.close() for pool, _ in self._pools.values()])
        await self._resolver.close()

    def _add(self, url: str) -> tuple[Pool, str]:
        if self._is_closed:
            raise UpstreamError("the client of the nodes is closed", refused=True)
        if len(self._pools) >= _MANY_POOLS:
            self._pools = {known: item for known, item in self._pools.items() if not item[0].is_unused}
        settings, place = self._settings, Place.of(url)
        dial = Dialer(place, self._resolver, settings.connect_timeout_s, self._tls_context, self._clock)
        pool = Pool(dial, settings.pool_size, settings.idle_timeout_s, self._clock)
        self._pools[url] = pool, place.host_header
        return self._pools[url]

    def _tls_context(self) -> ssl.SSLContext:
        """Made when first needed: reading the system's authorities takes tens of milliseconds."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def request_head(method: str, target: str, host: str, headers: RawHeaders, length: int) -> bytes:
    """Everything before the body, which is ``length`` bytes long.

    Raises:
        ValueError: if a line would not be one line: what comes after it could be read as another request.
    """
    first = f"{method} {target} HTTP/1.1\r\nhost: {host}".encode("ascii")
    last = b"\r\n" if not length and method in _WITHOUT_BODY else b"content-length: %d\r\n\r\n" % length
    head = b"\r\n".join((first, *map(b": ".join, headers), last))
    lines = len(headers) + (3 if last == b"\r\n" else 4)
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise ValueError("a line break or NUL in the request line or a header; remove it")
    return head
