"""What happens when a node becomes slow: latency before, during and after, and a picture of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from ccr.errors import ConfigError
from router.demo.contest import Rules, load
from router.demo.stage import Stage
from router.demo.workload import ServedModel
from router.load_tally import Sample, Tally, Window, percentile

POLICY: Final = "learned"
FACTOR: Final = 4.0
_MODELS: Final = 2
#: Of the whole run: until then all is well, and from there on it counts as after.
_FROM, _AFTER = 1 / 4, 2 / 3
_BINS: Final = 48
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 860, 380, 70, 50, 50


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen.

    Args:
        samples: every answered request: when it was sent, and how long it took, emulated seconds.
        node: that became slow.
        from_s: when, emulated seconds.
        after_s: from here on it counts as after.
        end_s: of the run.
        learner: what the learner told at the end.
        share_before: of the requests that went to the node; likewise after.
        share_after: see there.
    """

    samples: tuple[tuple[float, float], ...]
    node: str
    from_s: float
    after_s: float
    end_s: float
    learner: dict[str, Any] | None
    share_before: float
    share_after: float

    def phases(self) -> dict[str, list[float]]:
        """Latencies before, during and after, by when they were sent."""
        found: dict[str, list[float]] = {"before": [], "during": [], "after": []}
        for sent_s, took_s in self.samples:
            found[
                "before" if sent_s < self.from_s else "during" if sent_s < self.after_s else "after"
            ].append(took_s)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row for each phase; emulated milliseconds."""
        rows = []
        for phase, latencies in self.phases().items():
            ordered = sorted(latencies)
            figures = {
                f"p{p}_ms": round(1e3 * percentile(ordered, p), 1) if ordered else None for p in (50, 95, 99)
            }
            rows.append({"phase": phase, "requests": len(ordered), **figures})
        return rows

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "node": self.node, "factor": FACTOR, "from_s": self.from_s, "after_s": self.after_s, "end_s": self.end_s,
            "phases": self.rows(), "share_before": round(self.share_before, 4), "share_after": round(self.share_after, 4),
        }  # fmt: skip


async def drifted(stage: Stage, rules: Rules, console: Console) -> Seen:
    """One node becomes four times as slow in the middle of a load, and stays so.

    Args:
        stage: everything that runs.
        rules: three times their seconds are measured, after the warm-up.
        console: is told.
    """
    whole_s = 3.0 * rules.seconds
    await stage.reset_nodes()
    await stage.use_policy(POLICY)
    slow = stage.nodes[0]
    samples: list[Sample] = []
    tally = Tally(Window(rules.warmup_s, whole_s, 30.0), on_sample=samples.append)
    console.print(
        f"{POLICY}: {whole_s:.0f} s of load; after {whole_s * _FROM:.0f} s {slow.id} becomes {FACTOR:g} times as slow"
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(load(stage, rules, tally, _few(stage.models)))
        group.create_task(
            _degrade(stage, rules.warmup_s + whole_s * _FROM, slow.url, f"{slow.id} is slow now", console)
        )
    learner = None if stage.learning is None else await asyncio.to_thread(stage.learning.status)
    good = [one for one in samples if not one.answer.error and one.due_s >= rules.warmup_s]
    return _seen(good, slow.id, rules.warmup_s, whole_s, stage.speed, learner)


def _few(models: Sequence[ServedModel]) -> list[ServedModel]:
    """One version each of as many models as every node holds: what is slow then is the node, not the loads."""
    names = list(dict.fromkeys(model.name for model in models))[:_MODELS]
    return [next(model for model in models if model.name == name) for name in names]


async def _degrade(stage: Stage, after_s: float, url: str, words: str, console: Console) -> None:
    await asyncio.sleep(after_s)
    await stage.fault(url, "slow", factor=FACTOR)
    console.print(words)


def _seen(
    samples: list[Sample],
    node: str,
    warmup_s: float,
    whole_s: float,
    speed: float,
    learner: dict[str, Any] | None,
) -> Seen:
    from_s, after_s = (warmup_s + whole_s * part for part in (_FROM, _AFTER))
    before = [one.answer.node == node for one in samples if one.due_s < from_s]
    after = [one.answer.node == node for one in samples if one.due_s >= after_s]
    taken = tuple((speed * (one.due_s - warmup_s), speed * one.total_s) for one in samples)
    return Seen(
        taken, node, speed * whole_s * _FROM, speed * whole_s * _AFTER, speed * whole_s, learner,
        sum(before) / max(len(before), 1), sum(after) / max(len(after), 1),
    )  # fmt: skip


def save(seen: Seen, path: Path) -> None:
    """Draw it.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        path.write_text(svg(seen))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give --plot another place") from error


def svg(seen: Seen) -> str:
    """P50 and P99 over time, when the node became slow, and what drift the learner saw."""
    bins: list[list[float]] = [[] for _ in range(_BINS)]
    for sent_s, took_s in seen.samples:
        bins[min(int(sent_s / seen.end_s * _BINS), _BINS - 1)].append(took_s)
    lines = {p: _smooth([percentile(sorted(one), p) if one else None for one in bins]) for p in (99, 50)}
    top_s = 1.1 * max([value for line in lines.values() for value in line if value is not None], default=1.0)

    def x(at_s: float) -> float:
        return _LEFT + (at_s / seen.end_s) * (_WIDTH - _LEFT - 20)

    def y(value_s: float) -> float:
        return _HEIGHT - _BOTTOM - value_s / top_s * (_HEIGHT - _BOTTOM - _TOP)

    slow, high = x(seen.end_s) - x(seen.from_s), _HEIGHT - _BOTTOM - _TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<rect x="{x(seen.from_s):.1f}" y="{_TOP}" width="{slow:.1f}" height="{high}" fill="#f6e3d8"/>',
        f'<text x="{x(seen.from_s) + 6:.1f}" y="{_TOP + 16}">{seen.node} takes {FACTOR:g} times as long</text>',
        f'<text x="{_LEFT}" y="24" font-size="15">Latency while a node becomes slow, policy {POLICY}</text>',
    ]
    for step in range(5):
        value_s = top_s * step / 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{y(value_s):.1f}" y2="{y(value_s):.1f}" stroke="#ddd"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y(value_s) + 4:.1f}" text-anchor="end">{value_s:.1f} s</text>'
        )
        at_s = seen.end_s * step / 4
        parts.append(f'<text x="{x(at_s):.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{at_s:.0f} s</text>')
    for p, colour in ((99, "#b03a2e"), (50, "#1f618d")):
        points = " ".join(
            f"{x((k + 0.5) / _BINS * seen.end_s):.1f},{y(value):.1f}"
            for k, value in enumerate(lines[p])
            if value is not None
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        place = _WIDTH - 110 if p == 99 else _WIDTH - 60
        parts.append(f'<text x="{place}" y="24" fill="{colour}">P{p}</text>')
    drift = [one["words"] for one in (seen.learner or {}).get("drift", [])]
    told = f"the learner: {drift[-1]}" if drift else "emulated seconds"
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 8}" fill="#555">{_escaped(told)}</text></svg>')
    return "\n".join(parts) + "\n"


def _smooth(values: list[float | None]) -> list[float | None]:
    """The middle one of three neighbours."""
    found: list[float | None] = []
    for k, value in enumerate(values):
        near = sorted(one for one in values[max(k - 1, 0) : k + 2] if one is not None)
        found.append(None if value is None else near[len(near) // 2])
    return found


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
