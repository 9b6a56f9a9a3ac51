"""The trained policy: :mod:`ccr.policies.network` behind the interface of every other policy."""

import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

# The module, not its names: whoever imports it first comes here, through this package, before it has any.
from ccr import weights as stored
from ccr.book import OVERHEAD_S, SPEED, Floats
from ccr.errors import WeightsError
from ccr.expectations import look_of
from ccr.features import FEATURES, node_features, request_features
from ccr.look import OUTPUT_TOKENS, PREFILL_S, STEP_AFTER_S, Look
from ccr.native import IS_NATIVE, swift
from ccr.picker import GREEDY, Picker
from ccr.policies.network import EXTRA, PRIORITY, REJECT, Network, logits, priority
from ccr.types import Fleet, Mask, Request, Scores

PRIORITY_LOGIT = 4.0
"""What each step of a request's priority takes off the logit of refusing it: low ones are refused first."""

#: The table of features as ``ccr/native/swift.c`` takes it: source rows, gains, scales, how many are logarithms.
_TABLE: Final = (
    np.array([feature.row for feature in FEATURES.values()]),
    np.array([feature.gain for feature in FEATURES.values()]),
    np.array([1.0 / feature.divisor for feature in FEATURES.values()]),
    sum(feature.is_log for feature in FEATURES.values()),
)

SHIPPED: Final = Path(__file__).parents[1] / "data" / "champion.npz"
"""The weights that come with the package."""
_KEPT: Final = 16
"""Files that stay in memory, some 30 KB each."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Trained weights over cost terms and a network beside them; may refuse a request or hold it.

    Args:
        network: what was trained.
        version: of the weights, for logs and records; empty when they are not published.
        name: as in the table.
        picker: how logits become probabilities.
    """

    network: Network
    version: str = ""
    name: str = "learned"
    picker: Picker = field(default=GREEDY)
    _swift: "swift.Network | None" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_swift", swift.Network(*self.network, *_TABLE) if IS_NATIVE else None)

    def __reduce__(self) -> tuple[type["Learned"], tuple[object, ...]]:
        return Learned, (self.network, self.version, self.name, self.picker)

    def scores(self, request: Request, fleet: Fleet) -> Scores:
        """Logits of the nodes, then of refusing and of holding, shape ``(len(fleet) + 2,)``."""
        look = look_of(request, fleet)
        mask = np.ones(len(fleet), dtype=np.bool_) if fleet.may is None else fleet.may
        found = self.logits(look, mask)
        found[REJECT - EXTRA] -= PRIORITY_LOGIT * request.priority
        return found

    def logits(self, look: Look, mask: Mask) -> Floats:
        """Logits of a look, shape ``(n + 2,)``; ``mask`` tells whom the network pools over, shape ``(n,)``."""
        if self._swift is None:
            return logits(node_features(look), request_features(look), mask, self.network)
        out = np.empty(len(mask) + EXTRA)
        self._swift.logits(look, mask, out)
        return out

    def priority(self, look: Look, chosen: int, arrived_s: float) -> int | None:
        """The number for the chosen node's engine, lower first, in tenths of a second; ``None`` where arrival alone decides."""
        if self.network.scalars[PRIORITY] <= 0.0:
            return None
        return priority(self.network, arrived_s, service_s(look, chosen))


def service_s(look: Look, chosen: int) -> float:
    """Expected seconds of prefill and decode at the chosen node.

    :func:`ccr.policies.network.service_s` for one node: 2 us where making all features again takes 90 (8 nodes).
    """
    load, pairs = look.load, look.pairs
    steps_s = pairs.item(PREFILL_S, chosen) + pairs.item(STEP_AFTER_S, chosen) * look.asked.item(
        OUTPUT_TOKENS
    )
    return load.item(SPEED, chosen) * steps_s + load.item(OVERHEAD_S, chosen)


def learned(weights: str = "") -> Learned:
    """The policy of a weights file.

    Args:
        weights: path of the file; empty: the weights that come with the package.

    Raises:
        WeightsError: if there is no such file, or it is refused.
    """
    path = path_of(weights)
    try:
        seen = path.stat()
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {getattr(error, 'strerror', error)}") from error
    return _of_file(path.absolute(), seen.st_mtime_ns, seen.st_size, seen.st_ino)


def path_of(weights: str) -> Path:
    """The file that a setting means: ``~`` is the user's home, empty the shipped weights."""
    return Path(os.path.expanduser(weights)) if weights else SHIPPED  # noqa: PTH111 - pathlib's raises


@lru_cache(maxsize=_KEPT)
def _of_file(path: Path, *_: int) -> Learned:
    """The policy of a file that looks, by its time, size and number, as when it was last read."""
    found = stored.load(path)
    return Learned(found.network, found.version)
