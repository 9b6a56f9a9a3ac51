"""Verdicts as the gate writes them, without playing a single episode."""

MANIFEST = {"when": "2026-11-23T10:00:00+00:00", "command": "ccr policy gate"}


def a_verdict(version, *, champion="", **changes):
    """Passed, against the champion, on the full suite."""
    return {
        "passed": True,
        "sha256": version.sha256,
        "suite": "full",
        "incumbent": {"kind": "champion", "version": champion},
        "against_heuristic": {"ratio": 0.91, "low": 0.88, "high": 0.94, "n": 12},
        "conditions": [
            {
                "opponent": "a",
                "asks": "cost below",
                "met": True,
                "ratio": 0.9,
                "low": 0.8,
                "high": 0.95,
                "bar": 1.0,
            }
        ],
        "manifest": MANIFEST,
    } | changes
