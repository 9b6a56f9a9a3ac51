"""Write the results in docs/baselines.md from what `ccr evaluate --json` gave: ``python -m benchmarks.baselines full.json``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "baselines.md"
_HEADING: Final = "## Results"
_LATENCY: Final = ("article", "least_latency", "least_cost")

Row = Mapping[str, Any]


def results(document: Mapping[str, Any]) -> str:
    """The section, from its heading on."""
    manifest = document["manifest"]
    rows = {(row["scenario"], row["policy"], row["metric"]): row for row in document["rows"]}
    overall = {row["policy"]: row for row in document["summary"] if row["metric"] == "cost"}
    baseline = manifest["baseline"]
    scenarios = list(dict.fromkeys(scenario for scenario, _, _ in rows))
    policies = [name for name in dict.fromkeys(policy for _, policy, _ in rows) if name != baseline]
    policies.sort(key=lambda name: overall[name]["ratio"])
    seeds = manifest["seeds"]
    plain = [name for name in policies if "@" not in name]
    return "\n".join(
        [
            _HEADING, "",
            (f"`ccr evaluate --suite full --seeds {seeds['count']} --baseline {baseline}`, seeds {seeds['base']} to "
            f"{seeds['base'] + seeds['count'] - 1}, commit {manifest['commit'][:12]}, 2 cores; written by "
            "`python -m benchmarks.baselines`. Cost as a ratio to the"),
            ("baseline on the same arrivals, geometric mean over scenarios and seeds, and 95 % interval; below 1 is better. "
            "`POLICY@tuned` runs with the weights in `benchmarks/tuned/`,"),
            ("which `ccr tune POLICY --suite train --generations 7 --population 8 --seeds 1 --validation-seeds 8` found; "
            "`least_cost` has tuned weights by default."), "",
            *_overall(policies, overall), "",
            "By scenario, without the tuned variants:", "",
            *_by_scenario(scenarios, plain, rows), "",
            ("Latency and kept promises of the founding article's score, of the selfish rule and of the charged one, means over "
            "the same episodes:"), "",
            *_latencies(scenarios, rows), "",
            ("`least_cost` runs with the weights that `ccr tune least_cost --suite train --generations 14 --population 10 --seeds 3` "
            "found: 0.68 [0.66, 0.70] of the cost of equal"),
            ("weights on 32 unseen seeds of the training scenarios. `hot_cold` and `bounded_hash` did not get better by tuning "
            "(0.97 [0.91, 1.03] and 0.99 [0.97, 1.02] on unseen seeds)."), "",
        ]
    )  # fmt: skip


def _overall(policies: Sequence[str], overall: Mapping[str, Row]) -> Iterable[str]:
    yield "| policy | cost, all scenarios |"
    yield "|---|---|"
    for name in policies:
        label = f"{name.partition('@')[0]}@tuned" if "@" in name else name
        yield f"| `{label}` | {_cell(overall[name])} |"


def _by_scenario(
    scenarios: Sequence[str], policies: Sequence[str], rows: Mapping[tuple[str, str, str], Row]
) -> Iterable[str]:
    yield "| scenario | " + " | ".join(f"`{name}`" for name in policies) + " |"
    yield "|---" * (len(policies) + 1) + "|"
    for scenario in scenarios:
        cells = (_cell(rows[scenario, name, "cost"]) for name in policies)
        yield f"| {scenario} | " + " | ".join(cells) + " |"


def _latencies(scenarios: Sequence[str], rows: Mapping[tuple[str, str, str], Row]) -> Iterable[str]:
    heads = [f"`{name}` {words}" for words in ("P99 s", "SLO") for name in _LATENCY]
    yield "| scenario | " + " | ".join(heads) + " |"
    yield "|---" * (len(heads) + 1) + "|"
    for scenario in scenarios:
        p99 = [f"{rows[scenario, name, 'p99_s']['value']:.1f}" for name in _LATENCY]
        slo = [f"{rows[scenario, name, 'slo']['value']:.3f}" for name in _LATENCY]
        yield f"| {scenario} | " + " | ".join([*p99, *slo]) + " |"


def _cell(row: Row) -> str:
    if row["ratio"] is None:
        return "-"
    if row["ratio_low"] is None:
        return f"{row['ratio']:.2f}"
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"


@click.command()
@click.argument("results_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--page", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, help="The page to write into."
)
def main(results_file: Path, page: Path) -> None:
    """Replace the results of the page by those of RESULTS_FILE."""
    before = page.read_text().partition(_HEADING)[0]
    page.write_text(before + results(json.loads(results_file.read_text())))
    click.echo(f"written: {page}")


if __name__ == "__main__":
    main()
