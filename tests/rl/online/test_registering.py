"""Every published version becomes one of the registry, once, whatever happens in between."""

import hashlib

import pytest

from ccr.publication import Fence, Publication
from rl.online.registering import register
from rl.online.shelf import Shelf
from rl.registry import Registry
from rl.versions import RegistryError
from tests.rl.online.fleet import KEY
from tests.router.publishing.publications import weights_file

GATE = {"gate": {"has_passed": True, "cost": 0.9, "episodes": 120}, "why": "it was time"}


def a_publication(version, name="w", reason="retrained"):
    return Publication(
        epoch=5, version=version, sha256="0" * 64, size=1, name=name, created_at_s=1.0, reason=reason
    )


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "shelf", KEY)


def test_what_waits_is_registered_with_what_is_known_of_it(shelf, registry):
    shelf.enqueue(a_publication(2, "w2"), weights_file("w2", 2), GATE)
    shelf.enqueue(a_publication(1, "w1"), weights_file("w1", 1), {})

    assert register(shelf, registry) == 2

    versions = registry.versions()
    assert [one.label for one in versions] == ["w1", "w2"]
    run = registry.run_of(versions[1])
    assert run["params"]["reason"] == "retrained"
    assert run["params"]["why"] == "it was time"
    assert run["metrics"]["gate.cost"] == 0.9
    assert shelf.waiting() == []
    assert [shelf.number_of(Fence(5, number)) for number in (1, 2, 3)] == [1, 2, None]


def test_old_weights_that_are_published_again_are_another_version(shelf, registry):
    shelf.enqueue(a_publication(1), weights_file("w", 1), {})
    shelf.enqueue(a_publication(2, reason="rollback"), weights_file("w", 1), {})

    register(shelf, registry)

    assert len(registry.versions()) == 2


def test_a_registration_that_was_killed_before_it_was_noted_is_not_made_twice(shelf, registry, monkeypatch):
    shelf.enqueue(a_publication(1), weights_file("w", 1), {})
    with monkeypatch.context() as moment:
        moment.setattr(shelf, "registered", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            register(shelf, registry)

    register(shelf, registry)

    assert len(registry.versions()) == 1
    assert shelf.number_of(Fence(5, 1)) == 1


def test_a_registry_that_is_away_loses_nothing(shelf, registry):
    shelf.enqueue(a_publication(1), weights_file("w", 1), GATE)

    with pytest.raises(RegistryError):
        register(shelf, Registry("http://127.0.0.1:9"))

    assert len(shelf.waiting()) == 1
    assert register(shelf, registry) == 1


def test_what_is_registered_is_not_let_wait_again(shelf, registry):
    shelf.enqueue(a_publication(1), weights_file("w", 1), {})
    register(shelf, registry)
    shelf.enqueue(a_publication(1), weights_file("w", 1), {})

    assert shelf.waiting() == []


def test_the_shelf_believes_only_what_is_signed_and_whole(shelf, tmp_path):
    data = weights_file("w", 1)
    publication = Publication(
        epoch=5,
        version=3,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        name="w",
        created_at_s=1.0,
    )
    shelf.remember(publication, data)

    assert shelf.published() == (publication, data)
    assert Shelf(tmp_path / "shelf", b"another key of them").published() is None
    path = tmp_path / "shelf" / "published"
    path.write_bytes(path.read_bytes()[:-1])
    assert shelf.published() is None
