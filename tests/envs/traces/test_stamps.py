import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.traces.rows import BadRow
from envs.traces.stamps import Since, nanoseconds


@pytest.mark.parametrize(
    ("text", "ns", "zoned"),
    [
        pytest.param("1970-01-02 00:00:00", 0, False, id="no fraction, no zone"),
        pytest.param("1970-01-02 00:00:00.0000001", 100, False, id="seven digits are all kept"),
        pytest.param("1970-01-02 00:00:00.009930+00:00", 9_930_000, True, id="with zone"),
        pytest.param("1970-01-02T00:00:01Z", 10**9, True, id="T and Z"),
        pytest.param("1970-01-02 01:30:00+01:30", 0, True, id="east of Greenwich"),
        pytest.param("1970-01-01 23:00:00-01:00", 0, True, id="west of Greenwich"),
    ],
)
def test_a_point_in_time_is_exact(text, ns, zoned):
    origin, _ = nanoseconds("1970-01-02 00:00:00", "t")

    at, has_zone = nanoseconds(text, "t")

    assert (at - origin, has_zone) == (ns, zoned)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2023-02-30 00:00:00", "2023-11-16 25:00:00", "2023-11-16", "1700000000", "\uff12023-11-16 00:00:00"]
)  # fmt: skip
def test_what_is_no_time_is_refused_with_an_example(text):
    with pytest.raises(BadRow, match="expected a time such as 2024-05-10"):
        nanoseconds(text, "TIMESTAMP")


@given(st.datetimes())
def test_differences_are_those_of_the_calendar(moment):
    origin, _ = nanoseconds("1970-01-01 00:00:00", "t")

    at, _ = nanoseconds(moment.isoformat(" "), "t")

    since = moment - moment.__class__(1970, 1, 1)
    assert at - origin == (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def test_times_count_from_the_first():
    since = Since()

    assert [since.seconds(at) for at in (5 * 10**9, 6_500_000_000, 4 * 10**9)] == [0.0, 1.5, -1.0]
