"""Manifests of published weights: signed, ordered, and nothing in them is looked at before the signature."""

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr import publication as p
from ccr.publication import KEPT, Fence, Publication, PublicationError, check_blob, opened, signed
from ccr.signed import LARGEST_BYTES, sealed

KEY = b"a key of the tests"
SHA256 = hashlib.sha256(b"weights").hexdigest()


def a_publication(**fields):
    given = {
        "epoch": 1_700_000_000,
        "version": 3,
        "sha256": SHA256,
        "size": 7,
        "name": "2026-11-23-1",
        "created_at_s": 5.0,
    }
    return Publication(**(given | fields))


def reason_of(data, key=KEY):
    with pytest.raises(PublicationError) as refused:
        opened(data, key)
    return refused.value.reason


def resigned(**fields):
    """What somebody with the key could have written."""
    content = json.loads(signed(a_publication(), KEY).partition(b"\n")[2]) | fields
    text = json.dumps(content).encode()
    return sealed(text, KEY, p._DOMAIN)


def test_what_is_signed_is_opened():
    publication = a_publication(reason="rollback", kept=(SHA256, "0" * 64))

    assert opened(signed(publication, KEY), KEY) == publication


def test_another_key_opens_nothing():
    assert reason_of(signed(a_publication(), KEY), b"another key of the tests") == "unsigned"


@given(st.data())
def test_whatever_is_changed_it_is_refused(data):
    raw = bytearray(signed(a_publication(), KEY))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))

    assert reason_of(bytes(raw)) == "unsigned"


@given(st.integers(0, 300))
def test_a_part_is_refused(length):
    whole = signed(a_publication(), KEY)

    assert reason_of(whole[: min(length, len(whole) - 1)]) == "unsigned"


@given(st.binary(max_size=200))
def test_bytes_from_anywhere_are_refused(data):
    assert reason_of(data) == "unsigned"


def test_a_manifest_without_end_is_not_even_checked():
    assert reason_of(signed(a_publication(), KEY) + b" " * LARGEST_BYTES) == "unsigned"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"version": "3"}, id="a version in words"),
        pytest.param({"version": 0}, id="version 0"),
        pytest.param({"version": True}, id="a version that is yes"),
        pytest.param({"epoch": 2**63}, id="an epoch too large"),
        pytest.param({"size": -1}, id="a negative size"),
        pytest.param({"sha256": "../../etc/passwd"}, id="a path for a hash"),
        pytest.param({"sha256": SHA256.upper()}, id="a hash in capitals"),
        pytest.param({"kept": ["x"]}, id="a kept file that is none"),
        pytest.param({"kept": [SHA256] * (KEPT + 1)}, id="too many files"),
        pytest.param({"kept": None}, id="no list"),
        pytest.param({"name": "x" * 200}, id="a long name"),
        pytest.param({"name": "a\nb"}, id="a name of two lines"),
        pytest.param({"created_at_s": "now"}, id="a time in words"),
        pytest.param({"more": 1}, id="a field of another release"),
    ],
)
def test_what_a_signer_should_not_have_written_is_malformed(fields):
    assert reason_of(resigned(**fields)) == "malformed"


def test_a_signed_text_that_is_no_manifest_is_malformed():
    for text in (b"", b"[]", b"{}", b"nonsense", b"[" * 5000):
        assert reason_of(sealed(text, KEY, p._DOMAIN)) == "malformed"


def test_a_later_epoch_comes_after_every_version_of_an_earlier_one():
    assert Fence(1, 9) < Fence(2, 1) < Fence(2, 2)


@pytest.mark.parametrize("data", [b"weight", b"weightz", b"weights ", b""])
def test_bytes_that_are_not_the_published_ones_are_refused(data):
    check_blob(a_publication(), b"weights")

    with pytest.raises(PublicationError, match="corrupt"):
        check_blob(a_publication(), data)


def test_every_field_is_told_about():
    told = Publication.__doc__ or ""

    assert all(f"{name}:" in told for name in msgspec.json.decode(resigned().partition(b"\n")[2]))
