"""Nodes behind a name: one per address it resolves to, asked for again and again."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from ccr.errors import ConfigError
from ccr.types import NodeSpec
from router.discovery.addresses import why_forbidden
from router.discovery.entries import node_spec
from router.discovery.source import OnError, OnNodes, Sleep, log_error

#: (host, port) -> addresses; raises OSError when it cannot tell.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# A resolver that lost its servers keeps a thread for up to 30 s (resolv.conf defaults: 5 s x 2 tries x 3 servers).
ANSWER_TIMEOUT_S = 5.0


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """The A and AAAA answers of the system's resolver."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class DnsDiscovery:
    """The nodes ``name-<address>`` of a host name.

    A failed or empty answer changes nothing: the nodes of the last good one stay, and ``failures`` counts.

    Args:
        name: prefix of the ids.
        host: what to resolve.
        port: of every node.
        entry: what else is true of every node, as in :func:`node_spec`: ``engine``, ``tags``, ...
        interval_s: time between questions.
        on_error: told when the answers begin to fail, and of addresses no node may have.
        resolve: asks.
        sleep: waits.

    Raises:
        ConfigError: if ``name``, ``host``, ``port`` or ``entry`` cannot make a node.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        entry: Mapping[str, Any] | None = None,
        interval_s: float = 10.0,
        on_error: OnError = log_error,
        resolve: Resolve = system_resolver,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.name, self.host, self.port = name, host, port
        self.failures = 0
        self._entry = dict(entry or {})
        self._interval_s = interval_s
        self._on_error = on_error
        self._resolve = resolve
        self._sleep = sleep
        self._troubles: frozenset[str] = frozenset()
        self._check()

    @property
    def place(self) -> str:
        """The name that is resolved."""
        return f"DNS name {self.host}"

    async def watch(self, on_nodes: OnNodes) -> None:
        """Tell the nodes at the first good answer and whenever they changed; runs until cancelled."""
        told: tuple[NodeSpec, ...] | None = None
        while True:
            specs, troubles = await self._ask()
            self._report(troubles)
            if specs and specs != told:
                told = specs
                on_nodes(specs)
            await self._sleep(self._interval_s)

    async def _ask(self) -> tuple[tuple[NodeSpec, ...], list[str]]:
        """The nodes of a fresh answer, none when it is no use; and what was wrong with it."""
        try:
            addresses = await self._resolve(self.host, self.port)
        except (OSError, UnicodeError) as error:  # OSError: TimeoutError and socket.gaierror too
            self.failures += 1
            return (), [f"no answer ({str(error) or type(error).__name__})"]
        refused = {address: why for address in addresses if (why := why_forbidden(address))}
        troubles = [f"{address} is left out: {why}" for address, why in refused.items()]
        allowed = sorted({address for address in addresses if address not in refused})
        if not allowed:
            self.failures += 1
            troubles.append("no usable address in the answer")
        return tuple(self._spec(address) for address in allowed), troubles

    def _spec(self, address: str) -> NodeSpec:
        host = f"[{address}]" if ip_address(address).version == 6 else address
        dashed = address.replace(".", "-").replace(":", "-")
        return node_spec({**self._entry, "id": f"{self.name}-{dashed}", "url": f"http://{host}:{self.port}"})

    def _check(self) -> None:
        if not self.name:
            raise ConfigError(
                f"{self.place}: `name` is empty; it begins the ids of the nodes, e.g. name: a10"
            )
        node_spec({"id": self.name, "url": f"http://{self.host}:{self.port}"})
        self._spec("127.0.0.1")

    def _report(self, troubles: Sequence[str]) -> None:
        """Each trouble once, until it is over."""
        for trouble in troubles:
            if trouble not in self._troubles:
                self._on_error(
                    ConfigError(
                        f"{self.place}: {trouble}. The nodes known so far stay; is `host` right, and the resolver up?"
                    )
                )
        self._troubles = frozenset(troubles)
