"""The book's prices are those of the timing model, for the model and the node at hand."""

import numpy as np
import pytest

from ccr import book as b
from ccr.book import BANDWIDTH, BUDGET_GIB, OVERHEAD_S
from ccr.prices import NodePrices, PriceList, Stated, adapter_of, gpu_of
from ccr.timing import (
    GIB,
    GPUS,
    LOAD_SOURCES,
    PRESETS,
    activation_bytes,
    adapter_s,
    decode_s,
    load_s,
    prefill_s,
    step_costs,
)
from envs.catalogue import catalogue
from tests.factories import a_spec

MODELS = catalogue(["chat-7b@1", "support-8b@1"])
CHAT = MODELS["chat-7b@1"]
SLOW_L4 = NodePrices(GPUS["L4"], PRESETS["eager"], LOAD_SOURCES["disk_fast"], 0.05, 0.8)


def a_book(*models, nodes=("a",), **priced):
    facts = [model if isinstance(model, tuple) else (model, 0.0, 0.0) for model in models]
    return PriceList(MODELS, priced).book(facts, [a_spec(node) for node in nodes])


@pytest.mark.parametrize(("tokens", "cached"), [(1, 0), (128, 0), (3000, 0), (3000, 2500)])
@pytest.mark.parametrize("node", ["plain", "slow"])
def test_a_prefill_is_priced_as_the_timing_model_has_it(node, tokens, cached):
    book = a_book(*MODELS, nodes=("plain", "slow"), slow=SLOW_L4)
    n, prices = {"plain": (0, NodePrices.of(a_spec("plain"))), "slow": (1, SLOW_L4)}[node]

    for m, spec in enumerate(MODELS.values()):
        costs = step_costs(spec, prices.gpu, prices.preset, prices.bw_scale)
        expected_s = prefill_s(costs, [tokens], [cached])
        assert b.prefill_alone_s(book, m, n, float(tokens), float(cached)) == pytest.approx(expected_s)


def test_a_decode_round_is_priced_as_the_timing_model_has_it():
    book = a_book("chat-7b@1")

    for prompt, output in ((500.0, 100.0), (900.0, 50.0)):
        b.place(book, 0, 0, prompt, output, 0.0, 0.0, 0.0)

    costs = step_costs(CHAT, NodePrices.of(a_spec()).gpu, PRESETS["graph"])
    assert b.round_s(book, 0) == pytest.approx(decode_s(costs, 2, 550 + 925))


def test_weights_keys_and_values_and_loads_are_the_architectures():
    book = a_book("chat-7b@1", nodes=("plain", "slow"), slow=SLOW_L4)

    assert book.weights_gib[0] == CHAT.stored_bytes / GIB
    assert book.kv_gib[0] == CHAT.kv_bytes_per_token / GIB
    assert book.load_s[0].tolist() == [
        load_s(CHAT, LOAD_SOURCES["engine_swap"]), load_s(CHAT, LOAD_SOURCES["disk_fast"]),
    ]  # fmt: skip
    assert (book.host_load_s < book.load_s).all()


def test_what_the_catalogue_states_wins_over_the_architecture():
    book = a_book(("chat-7b@1", 7.25, 9.5))

    assert (book.weights_gib[0], book.load_s[0, 0]) == (7.25, 9.5)


def test_a_load_from_host_memory_is_never_slower_than_from_the_source():
    assert a_book(("chat-7b@1", 0.0, 0.01)).host_load_s[0, 0] == 0.01


def test_a_node_is_priced_by_its_card_and_its_own_figures():
    book = a_book("chat-7b@1", nodes=("plain", "slow"), slow=SLOW_L4)

    assert book.load[OVERHEAD_S].tolist() == [0.0, 0.05]
    assert book.load[BANDWIDTH].tolist() == [1.0, 0.5 * 0.8]
    assert book.load[BUDGET_GIB, 1] == pytest.approx(0.9 * 22.05 - activation_bytes(2) / GIB)


def test_a_configured_node_tells_card_and_memory():
    told = NodePrices.of(a_spec(labels={"gpu": "A100-80G"}, gpu_total_gib=40.0))
    silent = NodePrices.of(a_spec(gpu_total_gib=0.0))

    assert (told.gpu.bandwidth, told.gpu.total_gib) == (GPUS["A100-80G"].bandwidth, 40.0)
    assert silent.gpu == GPUS["A10"]


def test_a_version_nobody_described_has_the_shape_of_its_model():
    prices = PriceList({"chat-7b": CHAT})

    assert prices.model("chat-7b@9") is CHAT


@pytest.mark.parametrize("gib", [3.0, 8.0, 16.0])
def test_an_unknown_model_is_the_typical_one_at_its_size(gib):
    typical = PriceList().model("mystery", gib)

    assert typical.stored_bytes / GIB == pytest.approx(gib, rel=1e-6)
    small, large = (
        step_costs(PriceList().model("m", size), GPUS["A10"], PRESETS["graph"]) for size in (gib, 2 * gib)
    )
    assert large.decode_fixed_s == pytest.approx(2 * small.decode_fixed_s, rel=1e-6)
    assert large.prefill_token_s == pytest.approx(2 * small.prefill_token_s, rel=1e-6)


def test_a_model_of_unknown_size_is_taken_for_an_8b():
    assert 7.0 < PriceList().model("mystery").stored_bytes / GIB < 10.0


def test_a_fresh_book_is_idle_and_empty():
    book = a_book(*MODELS, nodes=("a", "b"))

    assert not book.resident.any()
    assert not book.inflight.any()
    kept = [row for row in range(len(b.LOAD)) if row not in (BUDGET_GIB, OVERHEAD_S, BANDWIDTH, b.SPEED)]
    assert (book.load[kept] == 0.0).all()
    np.testing.assert_array_equal(book.share, [0.5, 0.5])


# Cards


@pytest.mark.parametrize("label", [*GPUS])
def test_a_card_goes_by_its_own_name(label):
    assert gpu_of(label) is GPUS[label]


@pytest.mark.parametrize(
    ("label", "card"),
    [
        ("NVIDIA-A10", "A10"),
        ("NVIDIA A10", "A10"),
        ("nvidia-a10g", "A10"),
        ("A10-PCIE-24GB", "A10"),
        (" a10 ", "A10"),
        ("NVIDIA-L4", "L4"),
        ("l4_24gb", "L4"),
        ("A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA-A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA A100 80GB PCIe", "A100-80G"),
        ("Tesla-A100-80g", "A100-80G"),
    ],
)
def test_a_card_is_known_by_its_usual_spellings(label, card):
    assert gpu_of(label) is GPUS[card]


@pytest.mark.parametrize(
    "label",
    [
        "", "A1", "A100", "A100-SXM4-40GB", "L40", "L40S", "H100", "A10-SHARED", "A100-SXM4-80GB-MIG-1g.10gb",
        "NVIDIA", "A10 L4",
    ],
)  # fmt: skip
def test_another_card_or_a_slice_of_one_is_not_taken_for_it(label):
    assert gpu_of(label) is None


def test_a_node_of_an_unknown_card_is_priced_as_an_a10():
    assert NodePrices.of(a_spec(labels={"gpu": "H100"}, gpu_total_gib=0.0)).gpu == GPUS["A10"]
    assert NodePrices.of(a_spec(labels={"gpu": "NVIDIA-L4"})).gpu.bandwidth == GPUS["L4"].bandwidth


# What the operator states


def test_what_is_stated_of_a_model_is_known_before_its_first_request():
    prices = PriceList(MODELS, stated={"chat-7b@1": Stated(6.5, 9.0)})
    book = prices.book([("chat-7b@1", 0.0, 0.0), ("support-8b@1", 0.0, 0.0)], [a_spec()])

    assert (book.weights_gib[0], book.load_s[0, 0]) == (6.5, 9.0)
    assert book.weights_gib[1] == MODELS["support-8b@1"].stored_bytes / GIB


def test_what_a_request_brings_along_wins_over_what_was_stated():
    prices = PriceList(MODELS, stated={"chat-7b@1": Stated(6.5, 9.0)})

    book = prices.book([("chat-7b@1", 7.0, 4.0)], [a_spec()])

    assert (book.weights_gib[0], book.load_s[0, 0]) == (7.0, 4.0)


# Adapters


def test_an_adapter_has_the_shape_of_its_base_and_a_load_of_its_own():
    poet = adapter_of("chat", CHAT, gib=0.5)
    prices = PriceList({"chat": CHAT, "poet": poet}, {"slow": SLOW_L4})

    assert (prices.base("poet"), prices.base("chat"), prices.base("else")) == ("chat", "", "")
    assert poet.stored_bytes == CHAT.stored_bytes
    assert poet.adapter_bytes == GIB // 2
    assert prices.adapter_s("poet", [a_spec("a"), a_spec("slow")]).tolist() == [
        adapter_s(poet, LOAD_SOURCES["engine_swap"]), adapter_s(poet, SLOW_L4.source),
    ]  # fmt: skip
    assert prices.adapter_s("poet", [a_spec("a")], stated_s=3.0).tolist() == [3.0]


def test_an_adapter_of_unknown_size_is_small():
    assert 0 < adapter_of("chat", CHAT).adapter_bytes < 0.05 * CHAT.stored_bytes
