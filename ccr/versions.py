"""Which version of a model a request gets: by name, by alias, or by canary weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ccr.errors import UnknownModelError

DEFAULT_LOAD_GIB_PER_S = 1.4
"""GiB per second of a cold load when the config gives no time: A10 class, safetensors, start-up included."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model.

    Args:
        id: the resolved id nodes know it by.
        name: the model's name.
        version: the version; empty when the model has none.
        weight: its canary weight among the versions of the model.
        gib: GPU memory of the weights; 0 when unknown.
        load_s: expected time to load it; 0 when unknown.
        tags: node tags it insists on.
    """

    id: str
    name: str
    version: str = ""
    weight: float = 1.0
    gib: float = 0.0
    load_s: float = 0.0
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """What the catalogue knows about one model: its versions by name, and aliases to them."""

    name: str
    versions: Mapping[str, Version]
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models the config (later also the registry) tells about, by name."""

    models: Mapping[str, ModelEntry] = field(default_factory=dict)

    def resolve(self, model: str, version: str, u: float, is_served: Callable[[str], bool]) -> Version:
        """The version a request gets.

        Args:
            model: as the client gave it: ``name``, ``name@version`` or ``name@alias``.
            version: from the version header, a version or an alias; empty when absent. It wins over the one in ``model``.
            u: draw for the canary weights, in [0, 1); the same for all requests of a session keeps it on one version.
            is_served: whether some node serves a model id; asked for models that the catalogue does not list.

        Raises:
            UnknownModelError: if nothing fits, with what could have been meant.
        """
        name, _, inline = model.partition("@")
        wanted = version or inline
        entry = self.models.get(name)
        if entry is None:
            return _unlisted(name, wanted, is_served)
        if not wanted:
            return _by_weight(entry, u)
        found = entry.versions.get(entry.aliases.get(wanted, wanted))
        if found is None:
            known = [*entry.versions, *entry.aliases]
            raise UnknownModelError(f"{name}@{wanted}", f"it has {', '.join(known)}")
        return found


def _unlisted(name: str, wanted: str, is_served: Callable[[str], bool]) -> Version:
    model_id = f"{name}@{wanted}" if wanted else name
    if is_served(model_id):
        return _served(model_id, name, wanted)
    raise UnknownModelError(model_id, "no node serves it and the config does not list it under `models`")


@lru_cache(maxsize=1024)
def _served(model_id: str, name: str, version: str) -> Version:
    """A version that only the nodes tell about; nodes serve few models, and each request asks for one of them."""
    return Version(id=model_id, name=name, version=version)


def _by_weight(entry: ModelEntry, u: float) -> Version:
    """The version at quantile ``u`` of the canary weights."""
    versions = list(entry.versions.values())
    target = u * sum(version.weight for version in versions)
    for version in versions:
        target -= version.weight
        if target < 0.0:
            return version
    for version in reversed(versions):  # u so close to 1 that rounding used up the total
        if version.weight > 0.0:
            return version
    raise UnknownModelError(
        entry.name, f"no version of it has a weight above 0; ask for one of {', '.join(entry.versions)}"
    )
