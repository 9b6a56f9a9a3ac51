"""The state of things: signed, changed by whoever comes, and never guessed."""

import json
from functools import reduce

import pytest

from ccr import control as c
from ccr.control import Control, ControlError, Veto, opened, paused, refusing, resumed, signed
from ccr.publication import PublicationError
from ccr.publication import opened as publication_opened
from ccr.signed import sealed

KEY = b"a key of the tests"
HOUR_S = 3600.0


def a_veto(name="one", at_s=1e9, **fields):
    return Veto(
        **({"sha256": name * 8, "name": name, "why": "missed 60%", "by": "r1", "at_s": at_s} | fields)
    )


def after(*changes, before=Control()):  # noqa: B008 - frozen
    return reduce(lambda control, change: change(control), changes, before)


def test_what_is_written_is_read():
    control = after(refusing(a_veto()), paused("a release"), before=Control(serial=7))

    assert opened(signed(control, KEY), KEY) == control


def test_a_pause_lasts_until_somebody_resumes():
    control = after(paused("a release"), refusing(a_veto()))

    assert (control.is_paused, control.why) == (True, "a release")
    assert not after(resumed(2e9), before=control).is_paused


def test_weights_are_refused_once_whoever_says_so():
    control = after(refusing(a_veto(by="r1")), refusing(a_veto(by="r2")))

    assert [veto.by for veto in control.vetoes] == ["r1"]
    assert control.veto_of(a_veto().sha256).why == "missed 60%"
    assert control.veto_of("others") is None
    assert not control.is_stopped


@pytest.mark.parametrize(("apart_s", "is_stopped"), [(HOUR_S - 1.0, True), (HOUR_S + 1.0, False)])
def test_two_rollbacks_within_an_hour_stop_it(apart_s, is_stopped):
    control = after(refusing(a_veto("one", 1e9)), refusing(a_veto("two", 1e9 + apart_s)))

    assert control.is_stopped == is_stopped


def test_a_person_lets_it_go_on_and_the_count_begins_again():
    control = after(
        refusing(a_veto("one")), refusing(a_veto("two", 1e9 + 1.0)), resumed(1e9 + 2.0, keep_vetoes=True)
    )

    assert (control.is_stopped, len(control.vetoes)) == (False, 2)
    assert not after(refusing(a_veto("three", 1e9 + 3.0)), before=control).is_stopped


def test_resuming_clears_refusals_unless_they_are_to_stay():
    control = after(refusing(a_veto()))

    assert after(resumed(2e9), before=control).vetoes == ()
    assert after(resumed(2e9, keep_vetoes=True), before=control).vetoes == control.vetoes


def test_a_refusal_that_is_told_after_a_person_resumed_changes_nothing():
    control = after(resumed(2e9))

    assert after(refusing(a_veto(at_s=1e9)), before=control) == control


def test_only_so_many_refusals_are_remembered_and_they_fit():
    control = after(
        *[refusing(a_veto("\u00e9" * 64, 1e9 * k, sha256=f"{k:064x}", why="w" * 200)) for k in range(1, 100)]
    )

    assert len(control.vetoes) == c.MOST_VETOES
    assert opened(signed(control, KEY), KEY).vetoes[-1].at_s == 99e9


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"junk\n{}", id="junk"),
        pytest.param(signed(Control(serial=3), b"the key of somebody else"), id="another key"),
        pytest.param(signed(Control(serial=3), KEY)[:-1], id="cut off"),
        pytest.param(signed(Control(serial=3), KEY).replace(b'"serial":3', b'"serial":9'), id="changed"),
        pytest.param(sealed(b"{}", KEY, b"ccr publication 1\n"), id="a signature for something else"),
        pytest.param(sealed(b"[]", KEY, c._DOMAIN), id="of another form"),
        pytest.param(sealed(json.dumps({"serial": 1}).encode(), KEY, c._DOMAIN), id="of another release"),
    ],
)
def test_what_we_did_not_sign_or_do_not_understand_is_not_heeded(data):
    with pytest.raises(ControlError):
        opened(data, KEY)


def test_a_signed_state_is_no_manifest():
    with pytest.raises(PublicationError, match="unsigned"):
        publication_opened(signed(Control(), KEY), KEY)
