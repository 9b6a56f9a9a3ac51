"""The statistics of a trace: what arrives, when, of which model, how long, and what became of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.traces.trace import UNKNOWN, Floats, Ints, Outcomes, Trace

_PERCENTILES = (50, 90, 95, 99)
_WINDOWS_S = (1, 10, 60)
# A variance of counts over fewer windows than this says little.
_FEWEST_WINDOWS = 10


def describe(trace: Trace) -> dict[str, Any]:
    """Statistics as plain JSON values; ``None`` where the trace does not tell.

    Returns:
        ``requests``, ``span_s``, ``rate``, ``peak_rate`` (busiest second), ``interarrival_cv`` (1: Poisson, more:
        bursty), ``dispersion`` (window in seconds -> variance over mean of the counts in such windows; 1: Poisson),
        ``models`` (most asked for first), ``prompt_tokens``, ``output_tokens``, ``sessions``, ``prefix``,
        ``priorities``, ``outcomes`` and ``header``.
    """
    return {
        "requests": len(trace),
        "span_s": trace.span_s,
        "rate": _ratio(len(trace), trace.span_s),
        "peak_rate": _busiest(trace.t),
        "interarrival_cv": _cv(np.diff(trace.t)),
        "dispersion": {str(window_s): _dispersion(trace.t, window_s) for window_s in _WINDOWS_S},
        "models": _models(trace),
        "prompt_tokens": _lengths(trace.prompt_tokens),
        "output_tokens": _lengths(trace.output_tokens),
        "sessions": _sessions(trace),
        "prefix": _prefix(trace),
        "priorities": {str(value): int(count) for value, count in zip(*_counts(trace.priority), strict=True)},
        "outcomes": _outcomes(trace.outcomes) if trace.outcomes is not None else None,
        "header": trace.header.as_json(),
    }


def summary(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The statistics as rows for people: what, and how much."""
    sessions, prefix = found["sessions"], found["prefix"]
    rows = [
        ("source", found["header"]["source"] or "-"),
        ("kind", "drawn" if found["header"]["generated"] else "recorded or imported"),
        ("requests", f"{found['requests']:,}"),
        ("span", f"{found['span_s']:,.1f} s"),
        ("rate", f"{_text(found['rate'])} req/s, {found['peak_rate']} in the busiest second"),
        ("gaps between arrivals", f"cv {_text(found['interarrival_cv'])} (Poisson: 1)"),
        ("dispersion of counts", _dispersions(found["dispersion"])),
        ("prompt tokens", _lengths_text(found["prompt_tokens"])),
        ("output tokens", _lengths_text(found["output_tokens"])),
        ("sessions", _sessions_text(sessions)),
        ("repeated prompt tokens", "unknown" if prefix["share"] is None else f"{prefix['share']:.1%}"),
        ("priorities", ", ".join(f"{value}: {count:,}" for value, count in found["priorities"].items())),
    ]
    if found["outcomes"]:
        rows += _outcome_rows(found["outcomes"])
    return [{"what": what, "value": value} for what, value in rows]


def _models(trace: Trace) -> list[dict[str, Any]]:
    counts = np.bincount(trace.model, minlength=len(trace.models))
    rows_of = np.split(np.argsort(trace.model, kind="stable"), np.cumsum(counts)[:-1])
    return [
        {
            "model": trace.models[i],
            "requests": int(counts[i]),
            "share": _ratio(int(counts[i]), len(trace)),
            "first_s": float(trace.t[rows_of[i][0]]) if counts[i] else None,
            "interarrival_cv": _cv(np.diff(trace.t[rows_of[i]])),
            "prompt_p50": _lengths(trace.prompt_tokens[rows_of[i]])["p50"],
            "output_p50": _lengths(trace.output_tokens[rows_of[i]])["p50"],
        }
        for i in np.argsort(-counts, kind="stable").tolist()
    ]


def _lengths(tokens: Ints) -> dict[str, Any]:
    known = tokens[tokens != UNKNOWN]
    return {"unknown": int(tokens.size - known.size), **_spread(known.astype(np.float64))}


def _spread(values: Floats) -> dict[str, float | None]:
    """Mean, percentiles and maximum."""
    names = ["mean", *[f"p{percentile}" for percentile in _PERCENTILES], "max"]
    if not values.size:
        return dict.fromkeys(names)
    found = [values.mean(), *np.percentile(values, _PERCENTILES), values.max()]
    return dict(zip(names, map(float, found), strict=True))


def _sessions(trace: Trace) -> dict[str, Any]:
    sessions, turns = _counts(trace.session[trace.session >= 0])
    return {
        "sessions": int(sessions.size),
        "requests": int(turns.sum()),
        "turns_mean": float(turns.mean()) if turns.size else None,
        "turns_max": int(turns.max()) if turns.size else None,
    }


def _prefix(trace: Trace) -> dict[str, Any]:
    """Prompt tokens that an unlimited prefix cache would spare."""
    known = (trace.prefix_tokens >= 0) & (trace.prompt_tokens >= 0)
    if not known.any():
        return {"tokens": None, "share": None}
    repeated = int(trace.prefix_tokens[known].sum())
    return {"tokens": repeated, "share": _ratio(repeated, int(trace.prompt_tokens[known].sum()))}


def _outcomes(outcomes: Outcomes) -> dict[str, Any]:
    cold = outcomes.cold_start[outcomes.cold_start != UNKNOWN]
    propensity = outcomes.propensity[~np.isnan(outcomes.propensity)]
    return {
        "status": _named_counts(outcomes.status),
        "nodes": _named_counts(outcomes.node),
        "policies": _named_counts(outcomes.policy),
        "cold_starts": int(cold.sum()) if cold.size else None,
        "cold_start_share": float(cold.mean()) if cold.size else None,
        "propensity_min": float(propensity.min()) if propensity.size else None,
        **{name: _spread(_known(getattr(outcomes, name))) for name in ("queue_ms", "ttft_ms", "total_ms")},
    }


def _known(values: Floats) -> Floats:
    found: Floats = values[~np.isnan(values)]
    return found


def _named_counts(values: NDArray[np.str_]) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True) if name}


def _counts(values: Ints) -> tuple[Ints, Ints]:
    found, counts = np.unique(values, return_counts=True)
    return found, counts


def _cv(gaps: Floats) -> float | None:
    if gaps.size < 2 or gaps.mean() == 0.0:
        return None
    return float(gaps.std() / gaps.mean())


def _dispersion(t: Floats, window_s: float) -> float | None:
    windows = int(t[-1] // window_s) if t.size else 0
    _, counts = _counts((t[t < windows * window_s] // window_s).astype(np.int64))
    if windows < _FEWEST_WINDOWS or not counts.size:
        return None
    mean = float(counts.sum()) / windows
    # Windows without arrivals have no count, but a share in the mean.
    return (float((counts.astype(np.float64) ** 2).sum()) / windows - mean**2) / mean


def _busiest(t: Floats) -> int | None:
    """Arrivals in the busiest second."""
    _, counts = _counts(t.astype(np.int64))
    return int(counts.max()) if counts.size else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _dispersions(found: Mapping[str, float | None]) -> str:
    texts = [f"{_text(value)} over {window} s" for window, value in found.items() if value is not None]
    return (", ".join(texts) or "too short to tell") + " (Poisson: 1)"


def _lengths_text(found: Mapping[str, Any]) -> str:
    unknown = f"{found['unknown']:,} unknown" if found["unknown"] else ""
    if found["mean"] is None:
        return unknown or "-"
    known = _spread_text(found, ("mean", "p50", "p95", "p99", "max"))
    return f"{known}, {unknown}" if unknown else known


def _sessions_text(found: Mapping[str, Any]) -> str:
    if not found["sessions"]:
        return "none"
    return (
        f"{found['sessions']:,} with {found['turns_mean']:.1f} turns on average, {found['turns_max']} at most"
    )


def _spread_text(found: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {found[name]:,.0f}" for name in names)


def _outcome_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (what, ", ".join(f"{name} {count:,}" for name, count in found[key].items()) or "unknown")
        for what, key in (("ended", "status"), ("served by", "nodes"), ("chosen by", "policies"))
    ]
    if found["cold_starts"] is not None:
        rows.append(("cold starts", f"{found['cold_starts']:,} ({found['cold_start_share']:.1%})"))
    rows += [
        (name.replace("_ms", ", ms"), _spread_text(found[name], ("mean", "p50", "p95", "p99")))
        for name in ("queue_ms", "ttft_ms", "total_ms")
        if found[name]["mean"] is not None
    ]
    return rows
