"""Which engine serves: built from the settings, swapped as one value, struck out when its script misbehaves."""

import asyncio
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ccr import log
from ccr.engine import Engine
from ccr.errors import ConfigError
from ccr.exploration import Budget, Exploration
from ccr.policies import POLICIES, SCRIPT
from ccr.policies.learned import Learned
from ccr.policies.script import ScriptPolicy, Strikes
from ccr.policy import Policy
from ccr.publication import NOTHING, Fence
from ccr.settings import PolicySettings, Settings
from ccr.types import Explored
from router.script_canary import load_script, load_script_async

_EPOCHS: Final = 256
"""Epochs whose publication is remembered: requests of a while ago end with the policy of then."""
_STANDSTILL: Final = Exploration(0.0)
_log = log.get("policy")


@dataclass(frozen=True, slots=True)
class Swap:
    """What a change of policy did."""

    policy: str
    previous: str
    took_s: float
    sha256: str = ""


class PolicySwitch:
    """Holds the engine in force.

    Args:
        settings: policy and guard.

    Raises:
        ConfigError: if the policy's options do not fit.
        ScriptError: if the script is refused.
        WeightsError: if the weights are refused.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._script_path = settings.policy.script
        fallback = _built_in(settings.policy.fallback, {})
        self._previous_script: ScriptPolicy | None = None
        self._strikes = Strikes()
        self._lock = asyncio.Lock()
        self.epoch = 1
        self._fences: dict[int, Fence] = {}
        self._let_go = False
        share = settings.policy.exploration
        self._exploration = Exploration(share) if share else None
        self.budget = Budget(settings.policy.exploration_budget, settings.policy.exploration_window_s)
        self.engine = Engine(
            policy=self._first_policy(settings.policy),
            fallback=fallback,
            guard=settings.bounded_load(),
            exploration=self._exploration,
        )

    @property
    def script(self) -> ScriptPolicy | None:
        """The operator script in force, if one is."""
        policy = self.engine.policy
        return policy if isinstance(policy, ScriptPolicy) else None

    def describe(self) -> dict[str, Any]:
        """What is in force, for people and programs."""
        script = self.script
        return {
            "name": self.engine.policy.name,
            "fallback": self.engine.fallback.name,
            "epoch": self.epoch,
            "exploration": self._settings.policy.exploration,
            "version": getattr(self.engine.policy, "version", ""),
            "published": list(self.published(self.epoch)),
            "script": None if script is None else {"path": script.path, "sha256": script.sha256},
            "available": [*POLICIES, *([SCRIPT] if self._script_path else [])],
        }

    async def switch(self, name: str, options: Mapping[str, float | str] | None = None) -> Swap:
        """Put another policy in force.

        Raises:
            ConfigError: if there is no such policy, or its options do not fit.
            ScriptError: if it is the script and it is refused.
            WeightsError: if its weights are refused.
        """
        if name == SCRIPT:
            return await self.reload()
        started_s = time.perf_counter()
        async with self._lock:
            # Weights are read and tried for tens of milliseconds; requests go on meanwhile.
            return self._put(await asyncio.to_thread(_built_in, name, options or {}), started_s)

    async def reload(self, path: Path | None = None) -> Swap:
        """Read the operator script again and put it in force; the old one serves until then, and if this fails.

        Raises:
            ConfigError: if no script is configured.
            ScriptError: if it is refused.
        """
        started_s = time.perf_counter()
        async with self._lock:
            path = path or self._script_path
            if path is None:
                raise ConfigError("no script is configured: set `policy.script: PATH` in the config")
            script = await load_script_async(path)
            self._previous_script = self.script
            return self._put(script, started_s)

    def fell_back(self, reason: str, now_s: float) -> None:
        """A decision used the fallback; a script that keeps running out of time gives way to its predecessor.

        Args:
            reason: as the decision tells it.
            now_s: the moment.
        """
        script = self.script
        if script is None:
            return
        self._strikes = self._strikes.after(reason, now_s)
        if not self._strikes.out:
            return
        successor: Policy = self._previous_script or self.engine.fallback
        self._previous_script = None
        _log.error("policy.struck_out", script=script.path, sha256=script.sha256, successor=successor.name)
        self._put(successor, time.perf_counter())

    def explored(self, explored: Explored, now_s: float) -> None:
        """A decision may have gone to another node than the policy's: it stands still while its budget is used up.

        Args:
            explored: as the decision tells it.
            now_s: the moment.
        """
        wanted = self._exploration if self.budget.spend(explored, now_s) else _STANDSTILL
        if self.engine.exploration is not wanted:
            self.engine = replace(self.engine, exploration=wanted)

    def published(self, epoch: int) -> Fence:
        """Where the weights came in the order of publications that were in force in an epoch; zeros if not published."""
        return self._fences.get(epoch, NOTHING)

    def take(self, policy: Policy, fence: Fence) -> Swap | None:
        """Put published weights in force, if a learned policy is, or was until nothing was heard of its weights.

        Args:
            policy: of the weights.
            fence: of the publication.
        """
        if self.engine.policy.name != policy.name and not self._let_go:
            return None
        swap = self._put(policy, time.perf_counter())
        self._fences[self.epoch] = fence
        if len(self._fences) > _EPOCHS:
            del self._fences[next(iter(self._fences))]
        return swap

    def let_go(self) -> None:
        """Nothing is known any more of published weights: the fallback serves instead of them."""
        if self.published(self.epoch) != NOTHING:
            self._put(self.engine.fallback, time.perf_counter())
            self._let_go = True

    def fall_back(self) -> None:
        """Weights did harm: the fallback serves instead of them, unless somebody chose another policy."""
        if self._let_go or isinstance(self.engine.policy, Learned):
            self._put(self.engine.fallback, time.perf_counter())
            self._let_go = True

    def _put(self, policy: Policy, started_s: float) -> Swap:
        previous = self.engine.policy.name
        self.engine = replace(self.engine, policy=policy)
        self.epoch += 1
        self._let_go = False
        self._strikes = Strikes()
        sha256 = policy.sha256 if isinstance(policy, ScriptPolicy) else ""
        swap = Swap(policy.name, previous, time.perf_counter() - started_s, sha256)
        _log.info("policy.swapped", policy=swap.policy, previous=previous, epoch=self.epoch, sha256=sha256)
        return swap

    def _first_policy(self, settings: PolicySettings) -> Policy:
        if settings.name == SCRIPT and settings.script is not None:
            return load_script(settings.script)
        return _built_in(settings.name, settings.options)


def _built_in(name: str, options: Mapping[str, float | str]) -> Policy:
    if name not in POLICIES:
        raise ConfigError(f"no policy is called {name!r}; there are {', '.join(POLICIES)}")
    make = POLICIES[name]
    parameters = inspect.signature(make).parameters
    takes = [option for option in parameters if option not in {"name", "picker"}]
    unknown = sorted(set(options).difference(takes))
    if unknown:
        raise ConfigError(
            f"policy {name!r} has no option {', '.join(unknown)}; it takes {', '.join(takes) or 'none'}"
        )
    for option, value in options.items():
        is_text = isinstance(parameters[option].default, str)
        if isinstance(value, str) != is_text:
            wanted = "text" if is_text else "a number"
            raise ConfigError(f"option {option!r} of policy {name!r} is {value!r}; give {wanted}")
    return make(**options)
