import json

import pytest

from router.refusals import Refusal

STATUSES = [400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 431, 499, 500, 502, 503, 504]
OPENAI_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
}
# https://docs.anthropic.com/en/api/errors
ANTHROPIC_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "timeout_error",
    "overloaded_error",
}


@pytest.mark.parametrize("status", STATUSES)
def test_openai_clients_find_their_four_fields_and_ours(status):
    error = json.loads(Refusal(status, "why", "what to do", param="model").body("r1"))["error"]

    assert error.pop("type") in OPENAI_TYPES
    assert error.pop("retryable") is (status in {408, 429, 502, 503, 504})
    assert error == {"message": "what to do", "param": "model", "code": "why", "request_id": "r1"}


@pytest.mark.parametrize("status", [status for status in STATUSES if status != 499])
def test_anthropic_clients_find_their_shape(status):
    body = json.loads(Refusal(status, "why", "what to do").body("r1", anthropic=True))

    assert body["error"].pop("type") in ANTHROPIC_TYPES
    assert body == {"type": "error", "error": {"message": "what to do"}, "request_id": "r1"}


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (404, "invalid_request_error", "not_found_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
        (504, "server_error", "timeout_error"),
    ],
)
def test_each_status_has_the_type_its_clients_know(status, openai, anthropic):
    refusal = Refusal(status, "", "")

    assert json.loads(refusal.body())["error"]["type"] == openai
    assert json.loads(refusal.body(anthropic=True))["error"]["type"] == anthropic


def test_the_reason_stands_in_the_headers_under_both_names():
    headers = dict(Refusal(503, "no_capacity", "").headers("r1"))

    assert headers[b"x-ccr-reason"] == headers[b"x-llm-d-request-dropped-reason"] == b"no_capacity"
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == b"r1"


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.2, b"1"), (1.0, b"1"), (2.6, b"3"), (0.0, None)])
def test_retry_after_is_whole_seconds_and_never_zero(retry_after_s, header):
    headers = dict(Refusal(429, "", "", retry_after_s=retry_after_s).headers())

    assert headers.get(b"retry-after") == header


def test_only_a_missing_key_asks_for_credentials():
    assert (b"www-authenticate", b"Bearer") in Refusal(401, "", "").headers()
    assert not any(name == b"www-authenticate" for name, _ in Refusal(403, "", "").headers())


def test_no_header_is_invented_for_a_request_without_an_id():
    assert not any(name == b"x-request-id" for name, _ in Refusal(400, "", "").headers())
