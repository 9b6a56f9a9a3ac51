"""What a source of nodes is."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from ccr import log
from ccr.errors import ConfigError
from ccr.types import NodeSpec

OnNodes = Callable[[tuple[NodeSpec, ...]], None]
OnError = Callable[[ConfigError], None]
Sleep = Callable[[float], Awaitable[object]]


class Discovery(Protocol):
    """A source of nodes."""

    @property
    def place(self) -> str:
        """Where the nodes stand, for messages: ``nodes in the config``, ``/etc/ccr/nodes.yaml``, ..."""
        ...

    async def watch(self, on_nodes: OnNodes) -> None:
        """Tell the nodes as soon as they are known, and again at each change; runs until cancelled."""
        ...


def log_error(error: ConfigError) -> None:
    """Log what was refused; the nodes known before stay."""
    log.get(__name__).error("discovery.refused", error=str(error))
