"""The sources of nodes that the settings name."""

from ccr.settings import NodeSettings, Settings
from ccr.types import NodeSpec
from router.discovery.combined import CombinedDiscovery
from router.discovery.dns import DnsDiscovery
from router.discovery.entries import node_spec
from router.discovery.file import FileDiscovery
from router.discovery.source import Discovery
from router.discovery.static import StaticDiscovery


def discovery_of(settings: Settings) -> Discovery:
    """Every configured source as one; the fixed list comes first.

    Raises:
        ConfigError: if a node or the file cannot be used, or two have one id or one url.
    """
    sources: list[Discovery] = []
    if settings.nodes or not (settings.discovery.file or settings.discovery.dns):
        sources.append(StaticDiscovery(tuple(spec_of(node) for node in settings.nodes)))
    if settings.discovery.file is not None:
        file = FileDiscovery(settings.discovery.file)
        file.read()  # refuse early: what is wrong at start is an error, later the old list stays
        sources.append(file)
    sources += [
        DnsDiscovery(
            dns.name,
            dns.host,
            dns.port,
            interval_s=dns.interval_s,
            entry={
                "engine": dns.engine,
                "tags": list(dns.tags),
                "labels": dict(dns.labels),
                "schedules_by_priority": dns.schedules_by_priority,
            },
        )
        for dns in settings.discovery.dns
    ]
    return sources[0] if len(sources) == 1 else CombinedDiscovery(sources)


def spec_of(node: NodeSettings) -> NodeSpec:
    """A configured node as the fleet knows it.

    Raises:
        ConfigError: if its url cannot be used.
    """
    given = node.model_dump(exclude={"api_key"}, exclude_defaults=True)
    return node_spec(given)
