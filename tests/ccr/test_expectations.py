"""Names become rows; what is known of a node or a model stays known while both are what they were."""

import numpy as np
import pytest

from ccr import book as b
from ccr import look as k
from ccr.expectations import MAX_SESSIONS, Expectations, look_of
from ccr.prices import PriceList, Stated, adapter_of
from ccr.types import COLUMNS
from envs.catalogue import catalogue
from tests.factories import a_fleet, a_node, a_request, a_spec

CHAT = catalogue(["chat-7b@1"])["chat-7b@1"]
IN_FLIGHT = (b.PENDING, b.PENDING_PREFILL_S, b.KV_GIB, b.REMAINING_TOKENS, b.ACTIVE_MODELS, b.PASS_S, b.CONTEXT_S, b.IN_BATCH)  # fmt: skip


def expected(*nodes, facts=(), **more):
    return Expectations(
        PriceList({"chat": CHAT}), [a_spec(node) for node in nodes or "ab"], facts=facts, **more
    )


def columns(n=2, **rows):
    found = np.zeros((len(COLUMNS), n))
    for name, values in rows.items():
        found[list(COLUMNS).index(name)] = values
    return found


def chat(**fields):
    return a_request("chat", **({"prompt_tokens": 500} | fields))


def place(book, node=0, request=None, now_s=0.0, **rows):
    return book.place(request or chat(), node, columns(len(book._specs), **rows), now_s)


def look(book, request=None, now_s=0.0):
    return book.look(request or chat(), columns(len(book._specs)), now_s)


# Models


def test_a_model_comes_with_its_first_request_and_keeps_what_others_have_in_flight():
    book = expected()
    first = place(book)
    before = book.book.load.copy()

    other = place(book, request=a_request("llama", model_gib=7.0))
    book.leave(other, 1.0, has_first_token=False)

    assert (first.model, other.model) == (0, 1)
    np.testing.assert_allclose(book.book.load[list(IN_FLIGHT)], before[list(IN_FLIGHT)])
    book.leave(first, 1.0, has_first_token=False)
    assert (book.book.load[list(IN_FLIGHT)] == 0.0).all()


def test_telemetry_may_name_a_model_before_the_catalogue_tells_its_size():
    book = expected()
    book.report(0, {"llama"})
    guessed = book.book.weights_gib[0]

    look(book, a_request("llama", model_gib=3.0, load_s=7.0))

    assert guessed == pytest.approx(8.46, abs=0.1)
    assert book.book.weights_gib[0] == 3.0
    assert book.book.load_s[0].tolist() == [7.0, 7.0]
    assert book.book.resident[0].tolist() == [True, False]


def test_a_size_that_changes_under_a_request_in_flight_leaves_no_residue():
    book = expected()
    placed = [place(book, request=a_request("llama", model_gib=3.0, prompt_tokens=50)) for _ in range(2)]
    book.first_token(placed[0], 0.5)

    look(book, a_request("llama", model_gib=12.0))
    book.leave(placed[0], 1.0, has_first_token=True)
    half = book.book.load[:, 0].copy()
    book.leave(placed[1], 1.0, has_first_token=False)

    assert half[b.PASS_S] == pytest.approx(book.book.costs[b.DECODE_FIXED_S, 0, 0])
    assert (half >= 0.0).all()
    assert (book.book.load[list(IN_FLIGHT)] == 0.0).all()


def test_models_known_from_the_start_are_equally_popular_until_there_is_traffic():
    book = expected(facts=[("chat", 0.0, 0.0), ("llama", 7.0, 3.0)])

    book.report(0, {"mistral"})

    assert book.book.share.tolist() == pytest.approx([1 / 3] * 3)


def test_a_model_that_comes_late_has_no_share_yet():
    book = expected()
    for _ in range(50):
        book.arrived(chat())

    book.report(0, {"llama"})

    assert book.book.share[1] == 0.0
    assert book.book.share.sum() == pytest.approx(1.0)


# Lengths


def test_a_clients_limit_caps_the_predicted_length():
    book = expected()

    assert book.output_tokens(chat()) == 128.0
    assert book.output_tokens(chat(output_tokens=16)) == 16.0
    assert book.output_tokens(chat(output_tokens=4096)) == 128.0


def test_predicted_lengths_outlive_the_coming_of_another_model():
    book = expected()
    for _ in range(300):
        placed = place(book)
        book.leave(placed, 0.0, has_first_token=False)
        book.learn(placed, 0.1, 1.0, 30.0, 0.0)

    look(book, a_request("llama"))

    assert book.output_tokens(chat()) == pytest.approx(30.0, rel=0.01)
    assert book.output_tokens(a_request("llama")) == 128.0


# Conversations


def test_a_conversation_is_cached_where_its_last_turn_went():
    book = expected()
    book.report(0, {"chat"})
    book.report(1, {"chat"})
    for node in (0, 1):
        book.leave(place(book, node, chat(session="s", prompt_tokens=200)), 0.0, has_first_token=True)

    seen = look(book, chat(session="s", prompt_tokens=1000))

    assert seen.pairs[k.SESSION_HERE].tolist() == [0.0, 1.0]
    assert seen.pairs[k.CACHED_TOKENS].tolist() == [0.0, 200.0 + 128.0]
    assert look(book, chat(session="t")).pairs[k.SESSION_HERE].tolist() == [0.0, 0.0]
    assert look(book, chat()).pairs[k.SESSION_HERE].tolist() == [0.0, 0.0]


def test_the_next_turn_pays_for_its_new_tokens_only_where_the_last_one_was():
    book = expected()
    book.report(0, {"chat"})
    book.report(1, {"chat"})
    place(book, 0, chat(session="s", prompt_tokens=2000))

    here = place(book, 0, chat(session="s", prompt_tokens=2400)).prefill_s
    back = place(book, 1, chat(session="s", prompt_tokens=2400)).prefill_s

    assert here < 0.3 * back


def test_the_conversation_least_recently_seen_is_forgotten_first(monkeypatch):
    monkeypatch.setattr("ccr.expectations.MAX_SESSIONS", 2)
    book = expected()
    book.report(0, {"chat"})
    for session in ("old", "new", "old", "newer"):
        book.leave(place(book, 0, chat(session=session)), 0.0, has_first_token=True)

    known = [s for s in ("old", "new", "newer") if look(book, chat(session=s)).pairs[k.SESSION_HERE].any()]

    assert known == ["old", "newer"]
    assert MAX_SESSIONS >= 10_000


# LoRA siblings

SIBLINGS = {"chat": CHAT, "poet": adapter_of("chat", CHAT), "clerk": adapter_of("chat", CHAT)}
ADAPTER_S = 0.25


def with_siblings(*nodes, facts=()):
    stated = {name: Stated(load_s=ADAPTER_S) for name in ("poet", "clerk")}
    return Expectations(
        PriceList(SIBLINGS, stated=stated), [a_spec(node) for node in nodes or "ab"], facts=facts
    )


def ask(model, **fields):
    return a_request(model, **({"prompt_tokens": 500} | fields))


def test_siblings_in_flight_are_one_batch_of_their_base():
    book = with_siblings()
    book.report(0, {"chat", "poet", "clerk"})

    for model in ("poet", "clerk", "chat"):
        place(book, request=ask(model))

    assert book.book.load[b.PASS_S, 0] == pytest.approx(book.book.costs[b.DECODE_FIXED_S, 0, 0])
    assert book.book.load[b.ACTIVE_MODELS, 0] == 1.0
    assert look(book, ask("poet")).pairs[k.SAME_MODEL].tolist() == [3.0, 0.0]


def test_siblings_take_the_memory_of_one_model():
    book = with_siblings()
    book.report(0, {"chat", "poet", "clerk"})

    weights = look(book, ask("poet")).load[b.WEIGHTS_GIB, 0]

    assert weights == pytest.approx(CHAT.stored_bytes / 2**30)


def test_where_the_base_is_only_the_adapter_has_to_come():
    book = with_siblings("here", "base", "empty")
    book.report(0, {"chat", "poet"})
    book.report(1, {"chat"})

    seen = look(book, ask("poet", model_gib=0.1, load_s=ADAPTER_S)).pairs

    whole_s = book.book.load_s[0, 2]
    assert seen[k.LOAD_WAIT_S].tolist() == pytest.approx([0.0, ADAPTER_S, whole_s + ADAPTER_S])
    assert seen[k.RESIDENT].tolist() == [1.0, 1.0, 0.0]
    assert whole_s > 3.0


def test_an_adapter_never_changes_what_is_known_of_its_base():
    book = with_siblings(facts=[("chat", 7.5, 6.0)])

    look(book, ask("poet", model_gib=0.1, load_s=0.2))
    place(book, request=ask("clerk", model_gib=0.2, load_s=0.3))

    assert book.book.weights_gib.tolist() == [7.5]
    assert book.book.load_s.tolist() == [[6.0, 6.0]]


def test_an_adapter_is_on_its_way_once_a_request_for_it_went_there():
    book = with_siblings()
    book.report(0, {"chat"})
    book.report(1, {"chat"})

    place(book, 1, ask("poet"))
    on_its_way = look(book, ask("poet")).pairs[k.LOAD_WAIT_S].tolist()
    book.report(1, {"chat"})

    assert on_its_way == [ADAPTER_S, 0.0]
    assert look(book, ask("poet")).pairs[k.LOAD_WAIT_S].tolist() == [ADAPTER_S, ADAPTER_S]


def test_a_node_that_has_an_adapter_has_its_base():
    book = with_siblings()

    book.report(0, {"poet"})

    assert look(book, ask("clerk")).pairs[k.LOAD_WAIT_S, 0] == ADAPTER_S
    assert look(book, ask("chat")).pairs[k.LOAD_WAIT_S, 0] == 0.0


def test_adapters_stay_known_where_their_nodes_stay_and_go_with_a_restart():
    book = with_siblings("a", "b")
    book.report(1, {"chat", "poet"})

    book.replace([a_spec("b"), a_spec("c")])
    kept = look(book, ask("poet")).pairs[k.LOAD_WAIT_S, 0]
    book.forget(0)

    assert kept == 0.0
    assert look(book, ask("poet")).pairs[k.LOAD_WAIT_S, 0] > ADAPTER_S


# Nodes


def test_nodes_that_stay_keep_what_is_known_of_them_wherever_they_stand():
    book = expected("a", "b", "c")
    book.report(2, {"chat"})
    placed = place(book, 2, chat(session="s"))
    before = book.book.load[:, 2].copy()

    book.replace([a_spec("c"), a_spec("d")])

    np.testing.assert_allclose(book.book.load[:, 0], before)
    assert book.book.resident[0].tolist() == [True, False]
    assert look(book, chat(session="s")).pairs[k.SESSION_HERE].tolist() == [1.0, 0.0]
    book.leave(placed._replace(node=0), 1.0, has_first_token=False)
    assert (book.book.load[list(IN_FLIGHT)] == 0.0).all()


def test_a_node_whose_spec_changed_is_unknown_again():
    book = expected("a", "b")
    book.report(0, {"chat"})
    place(book, 0)

    book.replace([a_spec("a", gpu_total_gib=48.0), a_spec("b")])

    assert not book.book.resident.any()
    assert (book.book.load[list(IN_FLIGHT)] == 0.0).all()
    assert book.book.load[b.BUDGET_GIB, 0] > 1.9 * book.book.load[b.BUDGET_GIB, 1]


def test_what_was_learned_outlives_a_change_of_the_fleet():
    book = expected("a", "b", observed=True)
    book.report(0, {"chat"})
    for _ in range(50):
        placed = place(book)
        book.leave(placed, 0.0, has_first_token=False)
        book.learn(placed, 0.4, 2.0, 30.0, 0.0)
    before = [book.book.ttft_curve[:, 0].copy(), book.book.weights.copy(), book.book.load[b.SPEED, 0]]

    book.replace([a_spec("new"), a_spec("a")])

    np.testing.assert_array_equal(book.book.ttft_curve[:, 1], before[0])
    np.testing.assert_array_equal(book.book.weights, before[1])
    assert book.book.load[b.SPEED].tolist() == [1.0, before[2]]


def test_a_fleet_may_be_empty_at_first():
    book = Expectations(PriceList(), [])
    book.replace([a_spec("a")])

    assert look(book).pairs.shape == (len(k.PAIRS), 1)


# Fleets without a book


def test_a_fleet_put_together_by_hand_has_in_flight_what_it_says():
    fleet = a_fleet(a_node("a", models="chat", inflight=3.0), a_node("b", inflight=2.0), a_node("c"))

    seen = look_of(chat(), fleet)

    assert seen.pairs[k.BUSY].tolist() == [3.0, 2.0, 0.0]
    assert seen.pairs[k.SAME_MODEL].tolist() == [3.0, 0.0, 0.0]
    assert fleet.looked is seen


def test_a_busy_node_without_the_model_is_not_taken_for_one_that_has_it():
    fleet = a_fleet(a_node("cold", models="llama", inflight=2.0), a_node("empty", inflight=2.0))

    seen = look_of(chat(load_s=4.0), fleet)

    assert seen.pairs[k.RESIDENT].tolist() == [0.0, 0.0]
    assert seen.pairs[k.LOAD_WAIT_S, 0] == 4.0
    assert (seen.pairs[k.LOAD_WAIT_S] >= 4.0).all()
