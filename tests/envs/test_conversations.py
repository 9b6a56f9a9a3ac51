"""A prompt goes on where its conversation left off, or it does not."""

import pytest

from envs import conversations
from envs.conversations import Conversations


def test_a_prompt_that_begins_with_the_last_one_goes_on():
    said = Conversations()

    answers = [said.goes_on("m", "s", prompt) for prompt in (b"hello", b"hello, yes?", b"hello, yes? tell")]

    assert answers == [False, True, True]


def test_asking_the_same_again_goes_on():
    said = Conversations()
    said.goes_on("m", "s", b"hello")

    assert said.goes_on("m", "s", b"hello")


@pytest.mark.parametrize("prompt", [b"hell", b"Hello, yes?", b"", b"something else"])
def test_a_prompt_that_was_shortened_or_edited_starts_anew(prompt):
    said = Conversations()
    said.goes_on("m", "s", b"hello")

    assert not said.goes_on("m", "s", prompt)
    assert said.goes_on("m", "s", prompt + b" and on")


@pytest.mark.parametrize(("model", "session"), [("m", "t"), ("n", "s")])
def test_conversations_are_of_one_session_with_one_model(model, session):
    said = Conversations()
    said.goes_on("m", "s", b"hello")

    assert not said.goes_on(model, session, b"hello again")


def test_the_conversation_least_recently_heard_is_forgotten(monkeypatch):
    monkeypatch.setattr(conversations, "MAX_CONVERSATIONS", 2)
    said = Conversations()
    for session in ("old", "new", "old", "newer"):
        said.goes_on("m", session, b"hello")

    assert said.goes_on("m", "old", b"hello again")
    assert not said.goes_on("m", "new", b"hello again")
