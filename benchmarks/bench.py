"""Measure the router beside nginx in the same run: ``python -m benchmarks.bench``, or ``make bench``."""

import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import click

from benchmarks import nginx, report, wrk
from benchmarks.measures import MEASURES, Effort, Measured
from benchmarks.processes import Cores
from benchmarks.systems import FRONTS, Place
from ccr.errors import CCRError

OUT = Path(__file__).parent / "out" / "bench.json"


class _Names(click.ParamType[tuple[str, ...]]):
    """Words of a known list, separated by commas."""

    name = "names"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The words, in the order of the list."""
        if isinstance(value, tuple):
            return value
        words = {word.strip() for word in str(value).split(",")}
        if unknown := sorted(words - set(self.allowed)):
            self.fail(f"there is no {', '.join(unknown)}; there are {', '.join(self.allowed)}", param, ctx)
        return tuple(word for word in self.allowed if word in words)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", type=_Names(tuple(MEASURES)), default=tuple(MEASURES), help="Measures, by commas.")
@click.option(
    "--systems",
    type=_Names(tuple(FRONTS)),
    help="What to measure; default: nginx (without it the floor), the relay and the router.",
)
@click.option(
    "--repeats", type=click.IntRange(1, 50), default=3, show_default=True, help="Rounds over the systems."
)
@click.option(
    "--seconds", type=click.IntRange(1, 60), default=5, show_default=True, help="Length of one run."
)
@click.option("--quick", is_flag=True, help="One round of one second: shows that it works, not how fast.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the arrivals in the open loop.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    help="Where the JSON goes [default: benchmarks/out/bench.json].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def bench(
    only: tuple[str, ...],
    systems: tuple[str, ...] | None,
    repeats: int,
    seconds: int,
    quick: bool,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Measure the router beside something run in the same run; write JSON and print tables."""
    effort = Effort(1, 1, 0.3, seed) if quick else Effort(repeats, seconds, 1.0, seed)
    with tempfile.TemporaryDirectory(prefix="ccr-bench-") as folder:
        place = Place(Path(folder), Cores.available(), nginx.binary(), wrk.binary())
        about = report.origin(place, seed, sys.argv[1:])
        chosen = systems or ("nginx" if place.nginx else "floor", "relay", "router")
        whole = report.document(about, list(_measured(place, effort, only, chosen)))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(whole, indent=2) + "\n")
    click.echo(json.dumps(whole, indent=2) if as_json else report.render(whole))


def _measured(
    place: Place, effort: Effort, only: Sequence[str], systems: Sequence[str]
) -> Iterator[Measured]:
    for name in only:
        click.echo(f"measuring {name} ...", err=True)
        yield from MEASURES[name](place, effort, systems)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
    raise KeyboardInterrupt


def main() -> None:
    """Entry point; a signal to end still ends every server that was started."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        bench()
    except CCRError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
