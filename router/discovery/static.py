"""Nodes that do not change."""

import asyncio
from dataclasses import dataclass

from ccr.types import NodeSpec
from router.discovery.entries import refuse_repeats
from router.discovery.source import OnNodes


@dataclass(frozen=True, slots=True)
class StaticDiscovery:
    """A fixed list.

    Args:
        specs: the nodes.
        place: where they stand, for messages.

    Raises:
        ConfigError: if two have one id or one url.
    """

    specs: tuple[NodeSpec, ...]
    place: str = "`nodes` in the config"

    def __post_init__(self) -> None:
        refuse_repeats(self.specs)

    async def watch(self, on_nodes: OnNodes) -> None:
        """Tell them once, then wait to be cancelled."""
        on_nodes(self.specs)
        await asyncio.Event().wait()
