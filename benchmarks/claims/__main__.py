"""``python -m benchmarks.claims``."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from benchmarks.claims import comparisons, facts
from benchmarks.claims.claims import COMMAND, Claim, Field, measured
from benchmarks.claims.page import page
from benchmarks.claims.play import Bench
from benchmarks.claims.table import TABLE, Bar, of_trace
from benchmarks.claims.traces import Imported, imported
from ccr.policies.learned import SHIPPED
from ccr.weights import load
from envs.evaluation.manifest import commit, origin
from rl.days import Cores

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_NO_TRACES: Final = (
    Claim("trace-cost", "cost on public traces against the best tuned heuristic", Bar(1.00).words),
    Claim("trace-p99_s", "P99 on public traces against the best tuned heuristic", Bar(1.05).words),
)


@click.command()
@click.option("--weights", type=_FILE, default=SHIPPED, help="Weights to judge.  [default: those shipped]")
@click.option("--days", type=click.IntRange(min=8), default=100, show_default=True,
              help="Pairs of each comparison.")  # fmt: skip
@click.option("--traces", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Directory of public traces, as published.")  # fmt: skip
@click.option("--seed-weights", multiple=True, type=_FILE,
              help="Weights of another training seed; again for more.")  # fmt: skip
@click.option("--decide", type=_FILE, help="What `ccr bench decide --nodes 8,64 --json` wrote.")
@click.option("--real-time", type=_FILE, help="What `python -m benchmarks.contest --json` wrote.")
@click.option("--played", type=_FILE,
              help="A results.json of before: nothing is played, what --decide and --real-time tell is put in.")  # fmt: skip
@click.option("--keep", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Directory that keeps heuristics retuned for one kind of day, a quarter of an hour's work.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=DOCS, show_default=False,
              help="Directory.  [default: docs]")  # fmt: skip
def main(
    weights: Path, days: int, traces: Path | None, seed_weights: tuple[Path, ...], decide: Path | None,
    real_time: Path | None, played: Path | None, keep: Path | None, workers: int | None, out: Path,
) -> None:  # fmt: skip
    """Measure every claim and write results.json and results.md."""
    console = Console(stderr=True)
    told = (*facts.decisions(decide), *facts.real_time(real_time))
    if played is not None:
        _write(_with(json.loads(played.read_text()), told), out, console)
        return
    loaded = load(weights)
    others = {load(path).version: load(path).network for path in seed_weights}
    with tempfile.TemporaryDirectory(prefix="ccr-claims-") as folder, Cores(workers or 0) as cores:
        found = imported(traces, Path(folder)) if traces else Imported((), {})
        bench = Bench(cores, days, console)
        field = Field(bench, loaded.network, keep)
        lines = (*TABLE, *(line for windows in found.windows for line in of_trace(windows)))
        rows: dict[str, Any] = {
            "regimes": comparisons.regimes(bench, field),
            "headroom": comparisons.headroom(bench, field),
            "traces": comparisons.traces(bench, field, found.windows),
            "seeds": comparisons.seeds(bench, field, others),
            "sizes": facts.sizes(loaded, weights),
        }
        claims = measured(bench, field, lines)
    claims += () if found.windows else _NO_TRACES
    claims += (facts.training(loaded), *comparisons.of_seeds(rows["seeds"]))
    claims += told
    document: dict[str, Any] = {
        "facts": {
            "weights": f"weights {loaded.version}", "commit": commit(), "days": days, "left_out": found.left_out,
            "machine": _machine(), "command": _command(),
        },
        "claims": [asdict(one) for one in claims],
        **rows,
    }  # fmt: skip
    _write(document, out, console)


def _with(document: dict[str, Any], told: tuple[Claim, ...]) -> dict[str, Any]:
    """What was played, and what files tell now."""
    fresh = {one.id: asdict(one) for one in told if one.met is not None}
    document["claims"] = [fresh.get(one["id"], one) for one in document["claims"]]
    return document


def _write(document: dict[str, Any], out: Path, console: Console) -> None:
    claims = [Claim(**one) for one in document["claims"]]
    (out / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    (out / "results.md").write_text(page(document, claims))
    met = sum(one.met is True for one in claims)
    console.print(f"{met} of {len(claims)} bars are met; see {out / 'results.md'}")


def _machine() -> str:
    found = origin()["machine"]
    return f"{found['cpu_count']} cores, Python {found['python']}"


def _command() -> str:
    """As it was typed, without directories."""
    return " ".join([COMMAND, *(Path(word).name if "/" in word else word for word in sys.argv[1:])])


if __name__ == "__main__":
    main()
