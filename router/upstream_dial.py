"""Connects to a node: resolves its name with care and a short memory, adds TLS, gives up in time."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver

from router.upstream import UpstreamError
from router.upstream_connection import Connection, words

#: How long the addresses of a name are remembered.
ADDRESSES_S: Final = 10.0
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node lives.

    Args:
        host: name or address, without brackets.
        port: TCP port.
        is_tls: whether it speaks HTTPS.
    """

    host: str
    port: int
    is_tls: bool = False

    @classmethod
    def of(cls, url: str) -> Self:
        """The place of a base URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme], parts.scheme == "https")

    @property
    def host_header(self) -> str:
        """As the ``Host`` header names it: without the port where it goes without saying."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = _DEFAULT_PORTS["https" if self.is_tls else "http"]
        return host if self.port == usual else f"{host}:{self.port}"


class Dialer:
    """Connects to one place.

    Args:
        place: where to.
        resolver: says where a name points; it refuses what no node may be.
        timeout_s: for all of it: the name, every address, TLS.
        tls: gives the TLS context; asked only where the place speaks HTTPS.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        place: Place,
        resolver: AbstractResolver,
        timeout_s: float,
        tls: Callable[[], ssl.SSLContext],
        clock: Callable[[], float],
    ) -> None:
        self._place = place
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._tls = tls
        self._clock = clock
        self._resolving = asyncio.Lock()
        self._addresses: list[str] = []
        self._known_until_s = 0.0

    async def __call__(self, connection: Connection) -> None:
        """Open the connection.

        Raises:
            UpstreamError: refused, if there is none in time.
        """
        place = self._place
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connect(connection)
        except TimeoutError as error:
            detail = f"no connection to {place.host}:{place.port} within {self._timeout_s:g} s"
            raise UpstreamError(detail, refused=True) from error
        except OSError as error:
            raise UpstreamError(words(error), refused=True) from error

    async def _connect(self, connection: Connection) -> None:
        """Try the addresses in turn."""
        *others, last = await self._resolve()
        for address in others:
            with contextlib.suppress(OSError):
                return await self._open(address, connection)
        return await self._open(last, connection)

    async def _open(self, address: str, connection: Connection) -> None:
        place, loop = self._place, asyncio.get_running_loop()
        if place.is_tls:
            await loop.create_connection(
                lambda: connection, address, place.port, ssl=self._tls(), server_hostname=place.host
            )
        else:
            await loop.create_connection(lambda: connection, address, place.port)

    async def _resolve(self) -> list[str]:
        """The addresses, another one first each time; whoever asks meanwhile waits for the same answer."""
        if _is_address(self._place.host):
            return [self._place.host]  # judged when the node was configured
        async with self._resolving:
            if self._clock() >= self._known_until_s:
                found = await self._resolver.resolve(self._place.host, self._place.port, socket.AF_UNSPEC)
                self._addresses = [result["host"] for result in found]
                self._known_until_s = self._clock() + ADDRESSES_S
        addresses = self._addresses
        self._addresses = addresses[1:] + addresses[:1]
        return addresses


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
