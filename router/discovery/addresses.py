"""Addresses that can never be a node: a request sent there would reach the cloud's metadata service or nobody."""

import ipaddress
from collections.abc import Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Network -> what lives there. The single addresses are metadata services outside the link-local range, as
#: the clouds document them.
FORBIDDEN: tuple[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str], ...] = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        ("169.254.0.0/16", "link-local: the metadata service of most clouds"),
        ("fe80::/10", "link-local"),
        ("fd00:ec2::254/128", "the metadata service of AWS"),
        ("fd20:ce::254/128", "the metadata service of Google Cloud"),
        ("100.100.100.200/32", "the metadata service of Alibaba Cloud"),
        ("100.96.0.96/32", "the metadata service of Volcano Engine"),
        ("168.63.129.16/32", "the host agent of Azure"),
        ("192.0.0.192/32", "the metadata service of Oracle Cloud"),
        ("0.0.0.0/8", "no address of a host"),
        ("::/128", "no address of a host"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("ff00::/8", "multicast"),
    )
)
FORBIDDEN_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    }
)
# NAT64 (RFC 6052) and the IPv4-compatible form (RFC 4291): the last 32 bits are an IPv4 address.
_V4_AT_THE_END = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


def why_forbidden(host: str) -> str:
    """Why a host may not be a node, in words; empty if it may.

    Args:
        host: a name, or an IPv4 or IPv6 address without brackets. A name is judged by itself; judge what
            it resolves to as well.
    """
    name = host.lower().rstrip(".")
    if name in FORBIDDEN_NAMES:
        return "the name of a metadata service"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return ""
    return next(
        (what for face in _faces(address) for network, what in FORBIDDEN if face in network),
        "",
    )


def _faces(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 addresses it stands for."""
    yield address
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    last = int(address) & 0xFFFFFFFF
    if last > 1 and any(address in network for network in _V4_AT_THE_END):
        yield ipaddress.IPv4Address(last)
