"""Weights as people name them: a registered version, an alias, a file, or those that come with the package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccr import weights
from ccr.policies.learned import SHIPPED
from rl.registry import Registry
from rl.versions import CHAMPION, Version

SHIPPED_NAME: Final = "shipped"
SUFFIX: Final = ".npz"


@dataclass(frozen=True, slots=True)
class Named:
    """Weights and what to call them.

    Args:
        label: for people.
        path: of a local file.
        version: where they are registered.
    """

    label: str
    path: Path
    version: Version | None = None


def named(text: str, registry: Registry, *, is_tried: bool = True) -> Named:
    """The weights that are meant.

    Args:
        text: number or alias of a version, a path that ends in ``.npz``, or ``shipped``. The champion of an empty
            registry is what ships.
        registry: where versions are.
        is_tried: whether they have to be weights that this release can use.

    Raises:
        RegistryError: if there is no such version.
        WeightsError: if the weights are refused.
    """
    found = _found(text, registry)
    if is_tried:
        weights.load(found.path)
    return found


def _found(text: str, registry: Registry) -> Named:
    if text.endswith(SUFFIX):
        return Named(text, Path(text))
    champion = registry.champion() if text == CHAMPION else None
    if text == SHIPPED_NAME or (text == CHAMPION and champion is None):
        return Named("the shipped weights", SHIPPED)
    version = champion or registry.get(text)
    return Named(f"version {version.number}", registry.download(version), version)
