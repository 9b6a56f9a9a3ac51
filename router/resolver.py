"""Resolves node names, and refuses the addresses no node may have: a name can point anywhere, at any time."""

import errno
import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from router.discovery.addresses import why_forbidden


class CarefulResolver(AbstractResolver):
    """The usual resolver without link-local and metadata addresses; for every connection to a node."""

    def __init__(self) -> None:
        self._usual = aiohttp.DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of the host.

        Raises:
            OSError: if none of them is allowed.
        """
        found = await self._usual.resolve(host, port, family)
        allowed = [result for result in found if not why_forbidden(result["host"])]
        if not allowed:
            raise OSError(errno.EACCES, f"{host} resolves to an address no node may have")
        return allowed

    async def close(self) -> None:
        """Close the usual resolver."""
        await self._usual.close()
