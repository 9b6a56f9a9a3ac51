"""Fetches one page of a node: bounded in time and size, no redirects, never from a forbidden address."""

from typing import Protocol

import aiohttp

from ccr.errors import TelemetryError
from router.prometheus_text import TOO_LARGE
from router.resolver import CarefulResolver


class Fetch(Protocol):
    """Gets a body.

    Raises:
        TelemetryError: ``unreachable``, ``timeout``, ``status`` or ``too_large``.
    """

    async def __call__(self, url: str, method: str, timeout_s: float, max_bytes: int) -> bytes:
        """The body of a 200 answer, which came whole within ``timeout_s`` and has at most ``max_bytes``."""
        ...


class HttpFetch:
    """Over one aiohttp session, which is opened at the first call; close it when done."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, url: str, method: str, timeout_s: float, max_bytes: int) -> bytes:
        """As :class:`Fetch`."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._open().request(method, url, timeout=timeout, allow_redirects=False) as response:
                if response.status != 200:
                    raise TelemetryError("status", f"{response.status} from {url}")
                return await _body(response, max_bytes)
        except TimeoutError:
            raise TelemetryError("timeout", f"{url} took more than {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TelemetryError("unreachable", f"{url}: {str(error) or type(error).__name__}") from None

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No limit: nodes that hang must not make the others queue for a connection.
                connector=aiohttp.TCPConnector(limit=0, resolver=CarefulResolver()),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # identity is asked for below; a compressed body could grow without bound
                headers={
                    "Accept": "text/plain;version=0.0.4, application/json, */*;q=0.1",
                    "Accept-Encoding": "identity",
                },
            )
        return self._session


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise TelemetryError(TOO_LARGE, f"more than {max_bytes} bytes from {response.url}")
    return bytes(body)
