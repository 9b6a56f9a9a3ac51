"""A bar on a terminal, a line now and then elsewhere."""

import io

from rich.console import Console

from envs.evaluation.progress import shown


class Clock:
    """Set by hand."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_elsewhere_there_is_a_line_every_ten_seconds_with_the_time_left():
    out, clock = io.StringIO(), Clock()

    with shown("evaluate", 100, Console(file=out, force_terminal=False), clock) as report:
        for _ in range(40):
            clock.now_s += 0.5
            report(1, "")

    assert out.getvalue().splitlines() == [
        "evaluate: 20 of 100, about 40 s left",
        "evaluate: 40 of 100, about 30 s left",
    ]


def test_on_a_terminal_there_is_a_bar_with_counts_and_state():
    out = io.StringIO()

    with shown("tune", 4, Console(file=out, force_terminal=True, width=120)) as report:
        report(3, "generation 2, best so far 0.912")

    assert "3/4" in out.getvalue()
    assert "best so far 0.912" in out.getvalue()
