import pytest

from router.asgi import FrontDoor


def an_app(name, calls):
    async def app(scope, receive, send):
        calls.append(name)

    return app


async def entered(scope, allowed=frozenset()):
    """Who was called, and what the door itself sent."""
    calls, sent = [], []

    async def send(message):
        sent.append(message)

    hot = {("POST", "/route"): an_app("hot", calls)}
    await FrontDoor(hot, an_app("rest", calls), allowed)(scope, None, send)
    return calls, sent


def a_scope(method="POST", path="/route", host=b"router:8090", kind="http"):
    return {"type": kind, "method": method, "path": path, "headers": [(b"a", b"b"), (b"host", host)]}


@pytest.mark.parametrize(
    ("method", "path", "who"),
    [
        ("POST", "/route", "hot"),
        ("GET", "/route", "rest"),
        ("POST", "/route/", "rest"),
        ("POST", "/ROUTE", "rest"),
        ("GET", "/healthz", "rest"),
    ],
)
async def test_only_the_exact_method_and_path_is_hot(method, path, who):
    assert await entered(a_scope(method, path)) == ([who], [])


async def test_the_lifespan_goes_to_the_rest():
    assert await entered({"type": "lifespan"}) == (["rest"], [])


async def test_a_websocket_is_closed():
    calls, sent = await entered(a_scope(kind="websocket"))

    assert calls == []
    assert sent == [{"type": "websocket.close", "code": 1003}]


@pytest.mark.parametrize("host", [b"router", b"router:8090", b"ROUTER:1", b"[::1]", b"[::1]:8090"])
async def test_an_allowed_host_comes_in_at_any_port(host):
    assert await entered(a_scope(host=host), frozenset({b"router", b"[::1]"})) == (["hot"], [])


@pytest.mark.parametrize(
    "host", [b"", b"evil", b"router.evil", b"evil:router", b"router@evil", b"[::2]", b"["]
)
@pytest.mark.parametrize("path", ["/route", "/healthz"])
async def test_any_other_host_is_refused_on_every_path(host, path):
    calls, sent = await entered(a_scope(path=path, host=host), frozenset({b"router", b"[::1]"}))

    assert calls == []
    assert (sent[0]["status"], sent[1]["body"]) == (400, b"unknown host\n")
    assert (b"content-length", b"13") in sent[0]["headers"]


async def test_a_missing_host_is_refused_where_hosts_are_listed():
    calls, sent = await entered({**a_scope(), "headers": []}, frozenset({b"router"}))

    assert (calls, sent[0]["status"]) == ([], 400)
