from itertools import islice

import pytest

from router.load_mix import BYTES_PER_TOKEN, Lengths, Mix, Shot, prompt_of, prompt_text, zipf

MIX = Mix(models=zipf(["a", "b", "c"]), stream_share=0.5)


def test_the_same_seed_and_client_ask_the_same():
    first = list(islice(MIX.shots(seed=7, client=3), 50))

    assert list(islice(MIX.shots(seed=7, client=3), 50)) == first
    assert list(islice(MIX.shots(seed=7, client=4), 50)) != first
    assert list(islice(MIX.shots(seed=8, client=3), 50)) != first


def test_popularity_follows_the_weights():
    shots = list(islice(MIX.shots(seed=1), 20_000))

    shares = [sum(shot.model == model for shot in shots) / len(shots) for model in "abc"]

    assert shares == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.015)
    assert sum(shot.stream for shot in shots) / len(shots) == pytest.approx(0.5, abs=0.02)


def test_lengths_stay_in_their_range_and_around_their_median():
    shots = list(islice(MIX.shots(seed=1), 5_000))

    prompts = sorted(shot.prompt_tokens for shot in shots)
    outputs = sorted(shot.output_tokens for shot in shots)

    assert (prompts[0], prompts[-1]) == (32, 256)
    assert (outputs[0], outputs[-1]) == (8, 64)
    assert prompts[2_500] == pytest.approx(96, rel=0.05)
    assert outputs[2_500] == pytest.approx(24, rel=0.05)


def test_zipf_sums_to_one_and_falls_with_rank():
    shares = [share for _, share in zipf(["a", "b", "c", "d"], exponent=2.0)]

    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] / shares[1] == pytest.approx(4.0)


@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 128, 5000])
def test_a_prompt_has_the_right_length(tokens):
    assert len(prompt_text(tokens, number=99).encode()) == tokens * BYTES_PER_TOKEN


def test_no_two_prompts_share_their_beginning():
    """A prefix cache would otherwise make every engine look fast."""
    heads = {prompt_text(64, shot.number)[:16] for shot in islice(MIX.shots(seed=1), 1_000)}

    assert len(heads) == 1_000


def test_the_prompts_of_a_session_go_on_where_the_last_one_ended():
    """As conversations do; a prefix cache is to find them, on emulated nodes and on real ones."""
    first, second = (prompt_of(Shot("m", tokens, 8, session="s", number=tokens)) for tokens in (64, 100))
    other = prompt_of(Shot("m", 100, 8, session="t"))

    assert second.startswith(first)
    assert other[:16] != second[:16]
    assert len(second) == 100 * BYTES_PER_TOKEN


def test_a_length_without_spread_is_its_median():
    assert {
        shot.prompt_tokens for shot in islice(Mix([("a", 1.0)], Lengths(50, 0.0, 1, 99)).shots(0), 20)
    } == {50}
