"""Which hosts can never be a node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.discovery.addresses import why_forbidden


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "169.254.255.255",
        "::ffff:169.254.169.254",
        "::ffff:a9fe:a9fe",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "2002:a9fe:a9fe::1",
        "fe80::1",
        "fe80::1%eth0",
        "febf::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "100.96.0.96",
        "168.63.129.16",
        "0.0.0.0",
        "::",
        "::ffff:0.0.0.0",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "metadata.google.internal",
        "Metadata.Google.Internal.",
        "metadata",
    ],
)
def test_metadata_services_and_addresses_of_nobody_are_forbidden(host):
    assert why_forbidden(host)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.1", "8.8.8.8", "fd12::7", "2001:db8::1", "fec0::1", "gpu-7", "a10.example.com", "::ffff:10.0.0.7"],
)  # fmt: skip
def test_private_public_and_loopback_addresses_may_be_nodes(host):
    assert why_forbidden(host) == ""


@given(st.integers(0, 0xFFFF), st.sampled_from(["::ffff:{}", "{}", "64:ff9b::{}", "::{}"]))
def test_no_way_of_writing_a_link_local_address_gets_through(low, form):
    assert why_forbidden(form.format(f"169.254.{low >> 8}.{low & 255}"))
