import click
import pytest

from router.click_types import BASE_URL, DURATION


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("30s", 30.0), ("2m", 120.0), ("1.5", 1.5), (0, 0.0)]
)
def test_durations_are_read_as_in_the_config(text, seconds):
    assert DURATION.convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan", None])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    "text", ["http://host:80", "http://host:80/", "http://host:80/v1", "http://host:80/v1/"]
)
def test_a_base_url_may_end_as_people_write_it(text):
    assert BASE_URL.convert(text, None, None) == "http://host:80"


@pytest.mark.parametrize("text", ["host:80", "ftp://host", "http://", "http://host:99999", "http://[::1"])
def test_what_is_no_base_url_is_refused(text):
    with pytest.raises(click.BadParameter, match="is no base URL"):
        BASE_URL.convert(text, None, None)
