"""The features that weights were made for: written into their manifest, and compared where they are loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

from ccr.errors import WeightsError
from ccr.features import FEATURES, REQUEST_FEATURES, schema


def described() -> dict[str, Any]:
    """The features of this router: their digest, and lists of name and definition to tell differences by."""
    return {
        "schema": schema(),
        "features": [[name, feature._asdict()] for name, feature in FEATURES.items()],
        "request_features": [[name, {"meaning": meaning}] for name, meaning in REQUEST_FEATURES.items()],
    }


def check(manifest: Mapping[str, Any], where: str) -> None:
    """Refuse weights that were made for other features.

    Args:
        manifest: with what :func:`described` gave there.
        where: what messages begin with.

    Raises:
        WeightsError: naming what is missing, new, moved or defined otherwise.
    """
    if manifest.get("schema") == schema():
        return
    said = "; ".join(differences(manifest, described())) or "only the digest differs"
    raise WeightsError(
        f"{where}: made for other features than this router computes: {said}. "
        "Retrain with `ccr train`, or use the release the weights came from."
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, in words; empty if nothing does."""
    return [
        line
        for kind in ("features", "request_features")
        for line in _between(theirs.get(kind), ours.get(kind))
    ]


def _between(theirs: Any, ours: Any) -> list[str]:
    try:
        there, here = _by_name(theirs), _by_name(ours)
    except (TypeError, ValueError):
        return ["the manifest does not list them"]
    common = [name for name in there if name in here]
    order = [name for name in here if name in there]
    found = {
        "expected, not computed": [name for name in there if name not in here],
        "computed, never seen": [name for name in here if name not in there],
        "in another order": [name for name, other in zip(common, order, strict=True) if name != other],
        "defined otherwise": [f"{name} ({text})" for name in common if (text := _changes(there[name], here[name]))],
    }  # fmt: skip
    return [f"{what}: {', '.join(names)}" for what, names in found.items() if names]


def _by_name(listed: Sequence[Any]) -> dict[str, dict[str, Any]]:
    return {str(name): dict(definition) for name, definition in listed}


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return ", ".join(f"{key} {theirs.get(key)!r}, here {ours.get(key)!r}" for key in keys)
