import asyncio
import io

from rich.console import Console

from router.load_progress import describe, shown
from router.load_tally import Answer, Sample, Tally, Window


def a_tally(window=None):
    tally = Tally(window or Window())
    for error in ("", "", "reset"):
        tally.began()
        tally.add(Sample(0.0, 0.0, 0.2, "m", Answer(error)))
    tally.began()
    return tally


def test_the_state_of_a_load_in_words():
    assert describe(a_tally(), elapsed_s=1.0, scale=10.0) == (
        "3 requests, 1 errors, 1 in flight, recent P50 2,000 P99 2,000 ms"
    )
    assert describe(a_tally(Window(warmup_s=2.0)), elapsed_s=1.0).startswith("warm-up, ")
    assert describe(Tally(Window()), elapsed_s=1.0).endswith("recent P50 - P99 - ms")


async def test_a_terminal_sees_a_moving_line_and_a_file_plain_ones():
    pages = {}
    for is_terminal in (True, False):
        page = io.StringIO()
        async with shown("a load", a_tally(), Console(file=page, force_terminal=is_terminal, width=120)):
            await asyncio.sleep(0)  # the display draws at once, then waits
        pages[is_terminal] = page.getvalue()

    assert "3 requests" in pages[True]
    assert "\x1b[" in pages[True]
    assert pages[False] == "a load: started\n"
