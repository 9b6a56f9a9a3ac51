"""The timing model gives back the published figures it was fitted to, and obeys its laws."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.errors import ConfigError
from ccr.shapes import LLAMA_2_7B, LLAMA_3_8B, MISTRAL_7B, QWEN_25_7B, YI_15_6B, int8
from ccr.timing import (
    GPUS,
    LOAD_SOURCES,
    PRESETS,
    adapter_s,
    decode_s,
    kv_tokens,
    load_s,
    prefill_s,
    step_costs,
    weights_gib,
)

A10 = GPUS["A10"]
EAGER = PRESETS["eager"]
LENGTHS = st.lists(st.integers(1, 4096), min_size=1, max_size=32)


def mean_error(pairs):
    """Mean absolute error of (ours, published) pairs, relative to the published."""
    return sum(abs(ours / published - 1.0) for ours, published in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("model", "published_s"),
    [
        pytest.param(
            LLAMA_2_7B, {128: 0.0378, 512: 0.1166, 1024: 0.2233, 2048: 0.4379}, id="Llama-2-7B fp16"
        ),
        pytest.param(YI_15_6B, {128: 0.0336, 512: 0.0929, 1024: 0.1819, 2048: 0.3671}, id="Yi-1.5-6B fp16"),
    ],
)
def test_prefill_is_within_8_percent_of_the_measured_a10(model, published_s):
    costs = step_costs(model, A10, EAGER)

    error = mean_error([(prefill_s(costs, [length]), s) for length, s in published_s.items()])

    assert error <= 0.08


def test_decode_is_within_8_percent_of_the_measured_a10():
    published_s = {1: 0.0307, 8: 0.0336, 16: 0.0356, 30: 0.0387, 60: 0.0481, 100: 0.0553, 200: 0.0896}
    costs = step_costs(LLAMA_2_7B, A10, EAGER)

    error = mean_error([(decode_s(costs, batch, 20 * batch), s) for batch, s in published_s.items()])

    assert error <= 0.08


def test_context_costs_what_was_measured():
    """Batch 4, context 16 -> 1024: 33.5 -> 38.1 ms."""
    costs = step_costs(LLAMA_2_7B, A10, EAGER)

    error = mean_error([(decode_s(costs, 4, 4 * 16), 0.0335), (decode_s(costs, 4, 4 * 1024), 0.0381)])

    assert error <= 0.08


@pytest.mark.parametrize(
    ("model", "fp16_gib", "fp16_tokens", "int8_gib", "int8_tokens", "pair_tokens"),
    [
        pytest.param(LLAMA_2_7B, 12.6, 13_700, 6.5, 26_000, 12_000, id="Llama-2-7B"),
        pytest.param(MISTRAL_7B, 13.5, 47_000, 7.0, 100_000, 41_000, id="Mistral-7B"),
        pytest.param(LLAMA_3_8B, 15.0, 35_000, 8.5, 88_000, 17_000, id="Llama-3-8B"),
        pytest.param(QWEN_25_7B, 14.2, 95_000, 8.1, 209_000, 51_000, id="Qwen2.5-7B"),
        pytest.param(YI_15_6B, 11.3, 130_000, 6.1, 215_000, 109_000, id="Yi-1.5-6B"),
    ],
)
def test_memory_left_for_kv_cache(model, fp16_gib, fp16_tokens, int8_gib, int8_tokens, pair_tokens):
    small = int8(model)

    assert weights_gib(model) == pytest.approx(fp16_gib, rel=0.01)
    assert weights_gib(small) == pytest.approx(int8_gib, rel=0.01)
    assert kv_tokens(A10, [model]) == pytest.approx(fp16_tokens, rel=0.03)
    assert kv_tokens(A10, [small]) == pytest.approx(int8_tokens, rel=0.03)
    assert kv_tokens(A10, [small, small]) == pytest.approx(pair_tokens, rel=0.03)


def test_models_that_do_not_fit_leave_no_kv_cache():
    assert kv_tokens(A10, [LLAMA_3_8B, LLAMA_3_8B]) == 0


@pytest.mark.parametrize(
    ("source", "low_s", "high_s"),
    [
        pytest.param("process", 30, 60, id="an engine that starts"),
        pytest.param("engine_swap", 5, 8, id="the article's cold start"),
        pytest.param("disk_safetensors", 2, 4, id="safetensors from disk"),
        pytest.param("disk_fast", 0.4, 0.8, id="fast loader"),
        pytest.param("host_pinned", 0.2, 0.6, id="wake from host memory"),
        pytest.param("resident", 0, 0, id="nothing to do"),
    ],
)
def test_loads_of_an_int8_7b_take_what_their_source_says(source, low_s, high_s):
    assert low_s <= load_s(int8(MISTRAL_7B), LOAD_SOURCES[source]) <= high_s


def test_a_tied_model_stores_its_embedding_once():
    tied = replace(int8(QWEN_25_7B), tied=True)

    assert tied.stored_bytes == tied.streamed_bytes
    assert tied.stored_bytes < int8(QWEN_25_7B).stored_bytes


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_bandwidth_that_cannot_be_is_refused(scale):
    with pytest.raises(ConfigError, match="bw_scale"):
        step_costs(LLAMA_2_7B, A10, EAGER, bw_scale=scale)


@given(lengths=LENGTHS, more=st.integers(1, 4096))
def test_a_longer_prefill_takes_no_less(lengths, more):
    costs = step_costs(int8(MISTRAL_7B), A10, EAGER)

    assert prefill_s(costs, [*lengths, more]) >= prefill_s(costs, lengths)
    assert prefill_s(costs, [lengths[0] + more, *lengths[1:]]) >= prefill_s(costs, lengths)


@given(length=st.integers(2, 8192), share=st.floats(0.0, 1.0))
def test_what_is_cached_costs_neither_its_tokens_nor_its_attention_among_themselves(length, share):
    costs = step_costs(int8(MISTRAL_7B), A10, EAGER)
    cached = int(share * (length - 1))

    arithmetic_s = costs.prefill_token_s * (length - cached) + costs.prefill_square_s * (
        length**2 - cached**2
    )

    seconds = prefill_s(costs, [length], [cached])
    assert seconds == pytest.approx(costs.prefill_fixed_s + max(arithmetic_s, costs.prefill_floor_s))
    assert seconds <= prefill_s(costs, [length])


def test_a_remote_adapter_takes_the_published_seconds_and_weights_theirs():
    """GenTD26: 22.7 s for a base model, 4.4 s for an adapter; their sizes, 7.5 GB and 0.16 GB, are assumed."""
    adapter = replace(MISTRAL_7B, base="base", adapter_bytes=160 * 10**6)

    assert adapter_s(adapter, LOAD_SOURCES["remote"]) == pytest.approx(4.4)
    assert adapter_s(adapter, LOAD_SOURCES["disk_safetensors"]) < 0.2
    remote = LOAD_SOURCES["remote"]
    assert remote.fixed_s + 7.5e9 / remote.bytes_per_s == pytest.approx(22.7, rel=0.01)


@given(sequences=st.integers(1, 256), context=st.integers(1, 100_000))
def test_a_fuller_decode_step_takes_longer_but_less_for_each(sequences, context):
    costs = step_costs(int8(MISTRAL_7B), A10, PRESETS["graph"])
    one, two = decode_s(costs, sequences, context), decode_s(costs, 2 * sequences, 2 * context)

    assert one < two < 2 * one


@given(bw_scale=st.floats(0.5, 2.0), lengths=LENGTHS)
def test_more_bandwidth_is_never_slower(bw_scale, lengths):
    slow = step_costs(int8(YI_15_6B), A10, EAGER, bw_scale=bw_scale)
    fast = step_costs(int8(YI_15_6B), A10, EAGER, bw_scale=bw_scale * 1.1)

    assert decode_s(fast, 8, 800) < decode_s(slow, 8, 800)
    assert prefill_s(fast, lengths) <= prefill_s(slow, lengths)


def test_an_l4_is_slower_and_an_a100_faster_than_an_a10():
    l4, a10, a100 = (
        decode_s(step_costs(LLAMA_3_8B, GPUS[name], EAGER), 8, 800) for name in ("L4", "A10", "A100-80G")
    )

    assert l4 > a10 > a100
    assert GPUS["L4"].origin == GPUS["A100-80G"].origin == "scaled, not measured"
