"""What sessions leave behind fills what is free, and gives way from its oldest end."""

from envs.prefix import PrefixCache


def test_a_newer_context_replaces_the_session_s_older_one():
    cache = PrefixCache()
    cache.put("chat", "s", 100, 8)

    cache.put("chat", "s", 150, 8)

    assert (cache.held("chat", "s"), cache.bytes) == (150, 1200)


def test_a_context_belongs_to_its_model():
    cache = PrefixCache()
    cache.put("chat", "s", 100, 8)

    assert cache.held("code", "s") == 0


def test_the_oldest_context_shrinks_first_and_no_more_than_needed():
    cache = PrefixCache()
    for session in ("old", "middle", "new"):
        cache.put("chat", session, 100, 8)

    cache.trim(1201.0)

    assert [cache.held("chat", session) for session in ("old", "middle", "new")] == [0, 50, 100]
    assert cache.bytes == 1200


def test_nothing_stays_where_there_is_no_room():
    cache = PrefixCache()
    cache.put("chat", "s", 100, 8)

    cache.trim(-5.0)

    assert (cache.tokens, cache.bytes) == (0, 0)


def test_contexts_leave_with_their_weights():
    cache = PrefixCache()
    for model in ("chat", "chat+poet", "code"):
        cache.put(model, "s", 10, 8)

    cache.drop(["chat", "chat+poet"])

    assert (cache.held("code", "s"), cache.bytes) == (10, 80)
