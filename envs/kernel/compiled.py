"""How kernels are compiled: numba without Python objects, kept on disk, and thrown away when any source changes.

numba's cache watches the file of a function, not the files of what it calls. So the cache lies in a directory named
after the sources of everything that is compiled: change one of them and all kernels are compiled anew.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numba
from numba.extending import register_jitable

import ccr.admission
import ccr.book
import ccr.cost
import ccr.features
import ccr.look
import ccr.policies.network
import ccr.reward
import ccr.scoring
import ccr.shared
import ccr.timing
import envs.lane
import envs.node
from ccr.errors import ConfigError

#: Core modules whose functions are compiled as they are.
CORE = (
    ccr.timing, ccr.book, ccr.look, ccr.shared, ccr.cost, ccr.scoring, ccr.features, ccr.admission, ccr.reward,
    ccr.policies.network,
)  # fmt: skip

#: Modules whose constants are compiled in.
CONSTANTS = (envs.lane, envs.node)


def sources() -> list[Path]:
    """The files that compiled code is made from."""
    here = Path(__file__).parent
    modules = (*CORE, *CONSTANTS)
    return [*sorted(here.rglob("*.py")), *(Path(module.__file__) for module in modules if module.__file__)]


def digest(paths: Iterable[Path]) -> str:
    """Sixteen hex digits that change when any of the files does."""
    seen = hashlib.sha256()
    for path in paths:
        seen.update(hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()[:16]


def cache_root(environ: Mapping[str, str]) -> Path:
    """A directory of this user to keep compiled code in: it is executed, so nobody else may write there.

    Raises:
        ConfigError: neither the user's cache nor the temporary directory can be used.
    """
    if named := environ.get("NUMBA_CACHE_DIR"):
        return Path(named)
    home = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    places = [Path(home) / "ccr-autopilot", Path(tempfile.gettempdir()) / f"ccr-autopilot-{os.getuid()}"]
    for place in places:
        if _private(place):
            return place / "numba"
    tried = " and ".join(map(str, places))
    raise ConfigError(f"no place to keep compiled kernels: {tried} cannot be written; set NUMBA_CACHE_DIR")


def _private(place: Path) -> bool:
    """Whether the directory is there, or could be made, and only this user writes to it."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = place.lstat()
    except OSError:
        return False
    return seen.st_uid == os.getuid() and not seen.st_mode & 0o022 and os.access(place, os.W_OK)


numba.config.CACHE_DIR = str(cache_root(os.environ) / digest(sources()))  # type: ignore[attr-defined]  # made at run time.

#: Compile without Python objects, division by zero as numpy has it, and keep the result on disk.
njit = numba.njit(cache=True, error_model="numpy")

#: The same, and made part of its caller. A call that hands over a fleet's arrays costs about 70 ns: what happens in
#: every step and is not long is inlined.
inlined = numba.njit(cache=True, error_model="numpy", forceinline=True)

_COMPILED: tuple[Callable[..., Any], ...] = (
    *(ccr.timing.activation_bytes, ccr.timing.decode_s, ccr.timing.prefill_step_s),
    *(ccr.book.prefill_alone_s, ccr.book.round_s, ccr.book.asked_for, ccr.book.place, ccr.book.first_token),
    *(ccr.book.leave, ccr.book.learn, ccr.book.predictor_inputs, ccr.book._regress, ccr.book.report),
    *(ccr.book._learn_load, ccr.book.read),
    *(ccr.book.loading, ccr.book.forget, ccr.book.refresh, ccr.book._round_with, ccr.book.count_arrival),
    *(
        ccr.shared.add,
        ccr.shared.put,
        ccr.shared.nothing,
        ccr.shared.part_of,
        ccr.shared.enter,
        ccr.shared.own_rate,
    ),
    *(ccr.shared._own_load, ccr.shared._own_done),
    *(
        ccr.look.look_at,
        ccr.look._on_curve,
        ccr.look._predict,
        ccr.cost.terms,
        ccr.cost.total,
        ccr.cost.latency_s,
    ),
    *(ccr.scoring.least_cost, ccr.scoring.least_work, ccr.scoring.fastest_drain, ccr.scoring.lowest_curve),
    *(ccr.scoring.lowest_prediction, ccr.scoring.prefix_and_load),
    *(ccr.features.derived, ccr.features.node_features, ccr.features.request_features),
    *(ccr.policies.network.terms_of, ccr.policies.network.costs_s, ccr.policies.network.residual),
    *(ccr.policies.network.logits, ccr.policies.network.service_s, ccr.policies.network.priority),
    *(ccr.admission.may_reject, ccr.admission.may_hold),
    *(ccr.reward.slo_s, ccr.reward.cost, ccr.reward.cost_of_rejection),
)
for function in _COMPILED:
    register_jitable(function)
