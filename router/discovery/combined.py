"""Several sources of nodes as one."""

import asyncio
from collections.abc import Sequence

from ccr.errors import ConfigError
from ccr.types import NodeSpec
from router.discovery.source import Discovery, OnError, OnNodes, log_error


class CombinedDiscovery:
    """The union of the sources' nodes.

    Of two nodes with one id or one url, the one of the earlier source (in the order given here) stands; the
    other is left out and reported once.

    Args:
        sources: in order of precedence.
        on_error: told of each node that was left out.
    """

    def __init__(self, sources: Sequence[Discovery], on_error: OnError = log_error) -> None:
        self._sources = tuple(sources)
        self._on_error = on_error
        self._found: list[tuple[NodeSpec, ...]] = [() for _ in self._sources]
        self._reported: set[str] = set()

    @property
    def place(self) -> str:
        """All places."""
        return ", ".join(source.place for source in self._sources)

    async def watch(self, on_nodes: OnNodes) -> None:
        """Tell the union whenever a source tells something; runs until cancelled."""

        def listen(position: int) -> OnNodes:
            def heard(specs: tuple[NodeSpec, ...]) -> None:
                self._found[position] = specs
                on_nodes(self._union())

            return heard

        async with asyncio.TaskGroup() as group:
            for position, source in enumerate(self._sources):
                group.create_task(source.watch(listen(position)), name=f"discovery {source.place}")

    def _union(self) -> tuple[NodeSpec, ...]:
        owners: dict[str, str] = {}
        union: list[NodeSpec] = []
        conflicts: set[str] = set()
        for source, specs in zip(self._sources, self._found, strict=True):
            for spec in specs:
                clash = next((key for key in _keys(spec) if key in owners), None)
                if clash is not None:
                    conflicts.add(
                        f"node {spec.id} of {source.place} is left out: {owners[clash]} already has {clash}. "
                        "Remove one of the two, or change its id or url"
                    )
                    continue
                owners.update(dict.fromkeys(_keys(spec), source.place))
                union.append(spec)
        for message in sorted(conflicts - self._reported):
            self._on_error(ConfigError(message))
        self._reported = conflicts
        return tuple(union)


def _keys(spec: NodeSpec) -> tuple[str, str]:
    return f"id {spec.id}", f"url {spec.url}"
