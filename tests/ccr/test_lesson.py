"""Records to learn from: small, whole, without text, and refused where they make no sense."""

import dataclasses
import types
import typing

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr.book import LOAD
from ccr.lesson import OUTCOMES, Flag, Lesson, LessonError, as_numbers, decode, encode
from ccr.look import ASKED, PAIRS
from ccr.types import COLUMNS, Outcome
from tests.lessons import a_lesson

SEEN = {
    "flags": int(Flag.LOOKED),
    "load": as_numbers(np.ones((len(LOAD), 2))),
    "pairs": as_numbers(np.ones((len(PAIRS), 2))),
    "asked": as_numbers(np.ones(len(ASKED))),
}


@pytest.mark.parametrize("lesson", [a_lesson(), a_lesson(**SEEN)], ids=["plain", "looked"])
def test_what_is_encoded_is_decoded(lesson):
    assert decode(encode(lesson)) == lesson


def test_a_request_that_no_node_had_is_a_record_too():
    lesson = Lesson(at_s=1.0, outcome=OUTCOMES.index(Outcome.REJECTED), total_s=0.1, charged_s=0.1)

    assert decode(encode(lesson)) == lesson


def test_no_field_can_hold_text():
    for name, kind in typing.get_type_hints(Lesson).items():
        parts = typing.get_args(kind) or (kind,)
        assert set(parts) <= {int, float, bytes, types.NoneType, Ellipsis}, name


def test_what_was_seen_comes_back_by_rows():
    columns = np.arange(2.0 * len(COLUMNS)).reshape(-1, 2)

    found = decode(encode(a_lesson(columns=as_numbers(columns)))).rows("columns")

    np.testing.assert_array_equal(found, columns)


def test_nodes_mask_and_shares_come_back():
    lesson = decode(
        encode(a_lesson(n=3, mask=b"\1\0\1", probabilities=np.array([1 / 3, 0.0, 2 / 3]).tobytes()))
    )

    assert lesson.node_ids().tolist() == [0, 1, 2]
    assert lesson.eligible().tolist() == [True, False, True]
    assert lesson.distribution().tolist() == [1 / 3, 0.0, 2 / 3]


@pytest.mark.parametrize("outcome", Outcome)
def test_only_what_ended_well_is_measured_and_what_was_cut_short_is_censored(outcome):
    lesson = a_lesson(outcome)

    assert lesson.is_measured == (outcome is Outcome.OK)
    assert lesson.is_censored == outcome.is_censored


def test_outcomes_keep_their_numbers():
    """They are in streams and on disks; a new one goes to the end."""
    assert [str(one) for one in OUTCOMES] == [
        "ok",
        "upstream_4xx",
        "upstream_5xx",
        "upstream_reset",
        "timeout",
        "no_capacity",
        "rejected",
        "client_closed",
        "aborted_drain",
        "expired",
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param({"total_s": float("nan"), "charged_s": float("nan")}, "not_finite", id="not a number"),
        pytest.param({"propensity": float("inf")}, "not_finite", id="an endless propensity"),
        pytest.param({"at_s": float("-inf")}, "not_finite", id="an endless past"),
        pytest.param({"after": (float("nan"),)}, "not_finite", id="telemetry that is not a number"),
        pytest.param({"columns": as_numbers(np.full((len(COLUMNS), 2), np.nan))}, "not_finite", id="columns"),
        pytest.param({"total_s": -1.0}, "inconsistent", id="before it began"),
        pytest.param({"charged_s": 0.5}, "inconsistent", id="charged less than it took"),
        pytest.param({"total_s": 1e9, "charged_s": 1e9}, "inconsistent", id="longer than a day"),
        pytest.param({"outcome": 99}, "inconsistent", id="no outcome"),
        pytest.param({"chosen": 2}, "inconsistent", id="no such node"),
        pytest.param({"chosen": -1}, "inconsistent", id="no node among two"),
        pytest.param({"mask": b"\0\1"}, "inconsistent", id="a node that was not eligible"),
        pytest.param({"propensity": 0.0}, "inconsistent", id="what cannot happen"),
        pytest.param({"propensity": 0.9}, "inconsistent", id="another share than the distribution's"),
        pytest.param({"probabilities": np.array([0.5, 0.6]).tobytes()}, "inconsistent", id="shares above 1"),
        pytest.param(
            {"probabilities": np.array([0.5, np.nan]).tobytes()}, "inconsistent", id="shares not a number"
        ),
        pytest.param({"u": 1.0}, "inconsistent", id="no draw"),
        pytest.param({"nodes": b"x"}, "inconsistent", id="bytes that are no nodes"),
        pytest.param(
            {"columns": b"Hello, this is a prompt."}, "inconsistent", id="bytes that are no columns"
        ),
        pytest.param({"asked": b"\0\0\0\0"}, "inconsistent", id="a look without a look"),
        pytest.param({"form": 2}, "unreadable", id="another form"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, reason):
    with pytest.raises(LessonError) as refused:
        decode(encode(msgspec.structs.replace(a_lesson(), **wrong)))

    assert refused.value.reason == reason


@given(st.binary(max_size=200))
def test_bytes_from_anywhere_are_refused_and_nothing_else(data):
    with pytest.raises(LessonError):
        decode(data)


@given(st.data())
def test_a_changed_record_is_refused_or_makes_sense(data):
    raw = bytearray(encode(a_lesson()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))

    try:
        lesson = decode(bytes(raw))
    except LessonError:
        return
    assert 0.0 < lesson.propensity <= 1.0 + 1e-9
    assert lesson.charged_s >= lesson.total_s >= 0.0


def test_a_record_among_8_nodes_is_small():
    n = 8
    seen = {
        "load": as_numbers(np.random.default_rng(1).random((len(LOAD), n))),
        "pairs": as_numbers(np.random.default_rng(2).random((len(PAIRS), n))),
        "asked": as_numbers(np.random.default_rng(3).random(len(ASKED))),
    }

    assert len(encode(a_lesson(n=n, flags=int(Flag.LOOKED), **seen))) < 2000


def test_every_argument_is_told_about():
    told = Lesson.__doc__ or ""

    assert all(f"{field.name}:" in told for field in msgspec.structs.fields(Lesson))
    assert not dataclasses.is_dataclass(Lesson)
