import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.settings import KeySettings
from router.auth import Keys, Tenant, new_key
from router.refusals import Refusal

KEY, HASH = new_key()
KEYS = Keys([KeySettings(name="team-a", hash=HASH, models=("llama",), max_inflight=3)])


def refusal_of(headers, keys=KEYS):
    with pytest.raises(Refusal) as refused:
        keys.tenant(headers)
    return refused.value


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer " + KEY.encode()},
        {b"authorization": b"bearer  " + KEY.encode() + b" "},
        {b"x-api-key": KEY.encode()},
        {b"authorization": b"Basic dTpw", b"x-api-key": KEY.encode()},
    ],
    ids=["bearer", "case and blanks", "x-api-key", "beside another scheme"],
)
def test_the_holder_of_a_key_is_known(headers):
    tenant = KEYS.tenant(headers)

    assert (tenant.name, tenant.models, tenant.max_inflight) == ("team-a", {"llama"}, 3)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer "},
        {b"authorization": KEY.encode()},
        {b"authorization": b"Basic " + KEY.encode()},
        {b"cookie": KEY.encode()},
        {b"api-key": KEY.encode()},
    ],
    ids=["nothing", "empty", "no key", "no scheme", "another scheme", "a cookie", "another header"],
)
def test_without_a_key_nobody_gets_in(headers):
    refusal = refusal_of(headers)

    assert (refusal.status, refusal.code) == (401, "invalid_api_key")
    assert "missing" in refusal.message
    assert (b"www-authenticate", b"Bearer") in refusal.headers()


@pytest.mark.parametrize(
    "look_alike",
    [KEY[:-1], KEY + "A", KEY.upper(), KEY.replace("ccr-", "ccr_"), HASH, HASH.removeprefix("sha256:")],
    ids=["one short", "one long", "upper case", "other dash", "its hash", "its bare digest"],
)
def test_a_look_alike_is_not_the_key(look_alike):
    refusal = refusal_of({b"authorization": b"Bearer " + look_alike.encode()})

    assert refusal.status == 401
    assert look_alike not in refusal.message


@given(st.binary(max_size=64))
def test_no_made_up_key_gets_in(key):
    assert refusal_of({b"x-api-key": key}).status == 401


def test_a_wrong_bearer_is_not_saved_by_a_good_api_key():
    """Two credentials that disagree: the one that routes and logs see first must be the one that counts."""
    assert refusal_of({b"authorization": b"Bearer nope", b"x-api-key": KEY.encode()}).status == 401


def test_with_no_keys_configured_anyone_may_use_anything():
    keys = Keys([])

    assert not keys.are_required
    assert keys.tenant({b"authorization": b"Bearer whatever"}).may_use("any")


@pytest.mark.parametrize("model", ["LLAMA", "llama ", "llama-2", "lama", "", "*", "\u217clama"])
def test_a_key_opens_only_the_models_it_names(model):
    assert not Tenant("t", frozenset({"llama"})).may_use(model)


def test_a_key_that_names_no_models_opens_none():
    keys = Keys([KeySettings(name="new", hash=HASH)])

    assert not keys.tenant({b"x-api-key": KEY.encode()}).may_use("llama")


def test_a_star_opens_every_model():
    assert Tenant("t", frozenset({"*"})).may_use("anything")


def test_new_keys_differ_and_their_hash_is_what_the_config_takes():
    key, digest = new_key()

    assert key != KEY
    assert len(key) >= 43
    assert digest == "sha256:" + hashlib.sha256(key.encode()).hexdigest()
    assert KeySettings(name="n", hash=digest).hash == digest
