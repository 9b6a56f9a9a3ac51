"""The state of things is the same everywhere, survives a flushed store, and holds here while the store is away."""

import pytest

from ccr.control import Control, Veto, paused, refusing, resumed, signed
from router.demo.redis_server import RedisServer
from router.publishing.board import NAME, Board
from router.publishing.memory import Memory
from router.store.backoff import Backoff
from router.store.embedded import EmbeddedStore
from router.store.redis_store import RedisStore
from router.store.store import StoreDownError
from tests.redis import REDIS
from tests.router.publishing.publications import KEY


@pytest.fixture(scope="module")
def redis_url():
    with RedisServer() as server:
        yield server.url


@pytest.fixture(params=["embedded", pytest.param("redis", marks=REDIS)])
def store(request, tmp_path):
    if request.param == "embedded":
        yield EmbeddedStore(tmp_path / "store")
        return
    store = RedisStore(request.getfixturevalue("redis_url"), f"t{abs(hash(str(tmp_path)))}", timeout_s=5.0)
    yield store
    store.close()


def a_board(store, owner="r1", **fields):
    return Board(store, KEY, owner, backoff=Backoff(draw=lambda: 0.0), **fields)


def a_veto(name):
    return refusing(Veto(sha256=name, name=name, why="missed 60%", by="r", at_s=1e9))


def down(*_):
    raise StoreDownError("away")


def test_what_one_changes_all_see(store):
    one, other = a_board(store, "one"), a_board(store, "other")

    one.change(paused("a release"))
    one.turn()
    other.turn()

    assert other.control == one.control
    assert other.control.is_paused
    assert one.is_told


def test_it_holds_here_at_once(store):
    board = a_board(store)

    board.change(paused(""))

    assert board.control.is_paused
    assert not board.is_told


def test_two_who_change_it_at_once_lose_nothing(store):
    one, other = a_board(store, "one"), a_board(store, "other")
    one.change(a_veto("a"))
    other.change(a_veto("b"))

    for board in (one, other, one, other):
        board.turn()

    assert (
        {veto.name for veto in one.control.vetoes}
        == {veto.name for veto in other.control.vetoes}
        == {"a", "b"}
    )


def test_a_store_that_lost_it_gets_it_back(store, tmp_path):
    board = a_board(store)
    board.change(paused(""))
    board.turn()
    fresh = EmbeddedStore(tmp_path / "flushed")
    board._store = fresh

    board.turn()

    newcomer = a_board(fresh, "newcomer")
    newcomer.turn()
    assert newcomer.control.is_paused


def test_an_older_state_is_not_heeded_and_written_over(store):
    board = a_board(store)
    board.turn()
    board.change(paused(""))
    board.turn()
    old = store.pointer(NAME)
    board.change(resumed(1e9))
    board.turn()

    store.point(NAME, store.pointer(NAME), old, store.lease(NAME, "evil", 1.0))
    store.release(store.lease(NAME, "evil", 1.0))
    board.turn()
    newcomer = a_board(store, "newcomer")
    newcomer.turn()

    assert not board.control.is_paused
    assert not newcomer.control.is_paused


def test_what_somebody_else_wrote_is_not_heeded(store):
    board = a_board(store)
    data = signed(Control(serial=2**40, is_stopped=True), b"the key of somebody else")
    store.point(NAME, None, data, store.lease(NAME, "evil", 1.0))
    store.release(store.lease(NAME, "evil", 1.0))

    board.turn()
    board.change(paused(""))
    board.turn()

    assert not board.control.is_stopped
    newcomer = a_board(store, "newcomer")
    newcomer.turn()
    assert newcomer.control.is_paused


def test_while_the_store_is_away_it_holds_here_and_is_told_later(tmp_path):
    store = EmbeddedStore(tmp_path / "store")
    board, pointer = a_board(store), store.pointer
    store.pointer = down
    board.change(a_veto("a"))
    board.turn()
    held = board.control.vetoes

    store.pointer = pointer
    board.turn()

    assert [veto.name for veto in held] == ["a"]
    assert board.is_told


def test_a_write_of_unknown_end_is_made_again_and_changes_nothing_twice(tmp_path):
    store = EmbeddedStore(tmp_path / "store")
    board, point = a_board(store), store.point

    def takes_but_fails(*arguments):
        point(*arguments)
        raise StoreDownError("no answer")

    store.point = takes_but_fails
    board.change(a_veto("a"))
    board.turn()
    store.point = point
    board.turn()

    assert board.is_told
    assert [veto.name for veto in board.control.vetoes] == ["a"]


def test_a_process_remembers_it_without_a_store(tmp_path):
    memory = Memory(tmp_path / "kept")
    board = a_board(EmbeddedStore(tmp_path / "store"), memory=memory)
    board.change(a_veto("a"))
    board.turn()

    again = a_board(EmbeddedStore(tmp_path / "another"), memory=memory)
    again.recall()

    assert [veto.name for veto in again.control.vetoes] == ["a"]


def test_what_the_disk_holds_must_be_ours_too(tmp_path):
    memory = Memory(tmp_path / "kept")
    memory.remember_control(signed(Control(serial=9, is_paused=True), b"the key of somebody else"))

    board = a_board(EmbeddedStore(tmp_path / "store"), memory=memory)
    board.recall()

    assert board.control == Control()


def test_a_veto_is_remembered_before_the_store_has_it(tmp_path):
    memory, store = Memory(tmp_path / "kept"), EmbeddedStore(tmp_path / "store")
    board = a_board(store, memory=memory)
    store.pointer = down

    board.change(a_veto("a"))

    again = a_board(store, memory=memory)
    again.recall()
    assert [veto.name for veto in again.control.vetoes] == ["a"]
    del store.pointer
    again.turn()
    newcomer = a_board(store, "newcomer")
    newcomer.turn()
    assert [veto.name for veto in newcomer.control.vetoes] == ["a"]
