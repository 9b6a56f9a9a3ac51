"""The seam to the nodes: send a request, get bytes back as they come; and the client that does so by aiohttp.

The native client (``router/upstream_http.py``) is the default; both are held to one contract,
``tests/router/test_upstream.py``. Anything that forwards faster still is one line in ``router.app.UPSTREAMS``.
"""

import io
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import aiohttp
from yarl import URL

from ccr.settings import UpstreamSettings
from ccr.types import NodeSpec
from router.resolver import CarefulResolver

RawHeaders = list[tuple[bytes, bytes]]

# aiohttp writes bytes in one go and warns above this; a file it writes piece by piece, and others run in between.
_PIECEWISE_BYTES: Final = 2**20


class UpstreamError(Exception):
    """The exchange with a node broke.

    Args:
        detail: for people; never content.
        refused: nothing listened there, or no connection could be made in time.
    """

    def __init__(self, detail: str, *, refused: bool = False) -> None:
        self.refused = refused
        super().__init__(detail)


class UpstreamAnswer(Protocol):
    """A node's answer, headers first."""

    status: int
    headers: RawHeaders
    content_length: int | None

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, in the pieces it arrived in.

        Raises:
            UpstreamError: if the node goes away before the end.
        """

    async def read(self) -> bytes:
        """The rest of the body.

        Raises:
            UpstreamError: as :meth:`chunks`.
        """

    def close(self) -> None:
        """Done: the connection goes back to the pool if the answer ended, else it is closed at once."""


class StartedAnswer(UpstreamAnswer, Protocol):
    """An answer that is waited for without a task; its request goes out with :meth:`send`.

    Args:
        status: 0 until the headers are here.
        is_whole: whether the body is here, to its end.
        broken: why no more will come; empty while it may.
        on_news: called when any of this changed, until it is ``None``.
    """

    is_whole: bool
    broken: str
    on_news: Callable[[], None] | None

    def send(self) -> None:
        """Send the request; who decides about several sends afterwards."""

    def whole(self) -> bytes:
        """The body of an answer that is whole."""

    async def begun(self) -> None:
        """Return when the headers are here.

        Raises:
            UpstreamError: if they will not come.
        """


class Upstream(Protocol):
    """Connections to all nodes."""

    def start(
        self, node: NodeSpec, method: str, target: str, headers: RawHeaders, body: bytes
    ) -> StartedAnswer | None:
        """Make a request ready on a connection that idles; ``None`` if there is none, or this client has no such way."""

    async def send(
        self, node: NodeSpec, method: str, target: str, headers: RawHeaders, body: bytes
    ) -> UpstreamAnswer:
        """Send a request and wait for the answer's headers.

        Args:
            node: to whom.
            method: HTTP method.
            target: path and query, as the client encoded them.
            headers: as they go out, without hop-by-hop ones.
            body: as it goes out.

        Raises:
            UpstreamError: if no answer came.
        """

    async def close(self) -> None:
        """Close every connection."""


class AiohttpUpstream:
    """A pool of connections per node, by aiohttp.

    Args:
        settings: pool size, idle and connect timeouts.
    """

    def __init__(self, settings: UpstreamSettings) -> None:
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=settings.pool_size,
            keepalive_timeout=settings.idle_timeout_s,
            ttl_dns_cache=10,
            resolver=CarefulResolver(),
            enable_cleanup_closed=False,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            # The watchdog owns every other timeout: one clock for time to first byte, silence and drain.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        self._urls: dict[tuple[str, str], URL] = {}

    def start(
        self,
        node: NodeSpec,  # noqa: ARG002 - as the seam has it
        method: str,  # noqa: ARG002
        target: str,  # noqa: ARG002
        headers: RawHeaders,  # noqa: ARG002
        body: bytes,  # noqa: ARG002
    ) -> StartedAnswer | None:
        """There is no such way: aiohttp sends from tasks."""
        return None

    async def send(
        self, node: NodeSpec, method: str, target: str, headers: RawHeaders, body: bytes
    ) -> UpstreamAnswer:
        """Send a request and wait for the answer's headers."""
        try:
            response = await self._session.request(
                method,
                self._url(node.url, target),
                data=io.BytesIO(body) if len(body) > _PIECEWISE_BYTES else body or None,
                headers=[(name.decode("latin-1"), _text(value)) for name, value in headers],
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UpstreamError(_words(error), refused=True) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UpstreamError(_words(error)) from error
        return _AiohttpAnswer(response)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    def _url(self, base: str, target: str) -> URL:
        """Parsed once per node and path: parsing costs more than the decision."""
        url = self._urls.get((base, target))
        if url is None:
            if len(self._urls) >= 4096:
                self._urls.clear()
            url = self._urls[base, target] = URL(base + target, encoded=True)
        return url


class _AiohttpAnswer:
    """See :class:`UpstreamAnswer`."""

    __slots__ = ("_response", "content_length", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = [(name.lower(), value) for name, value in response.raw_headers]
        self.content_length = response.content_length

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UpstreamError(_words(error)) from error

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UpstreamError(_words(error)) from error

    def close(self) -> None:
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _text(value: bytes) -> str:
    """As aiohttp takes it, which encodes in UTF-8: only what is neither ASCII nor UTF-8 does not arrive as it came."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
