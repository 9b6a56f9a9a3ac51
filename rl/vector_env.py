"""Many fleets at once for training: all are advanced by one compiled call. Needs the extra ``learner``.

An environment that is over begins again by itself with a fresh scenario, as stable-baselines3 expects.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ccr.errors import ConfigError
from envs.kernel import stepping
from envs.randomised import randomised
from envs.routing_env import MASKED_PENALTY, WORST_COST, observation_space
from envs.scenario import Scenario
from envs.scenarios import scenario_of
from envs.seats import EXTRA_ACTIONS, Seats

_SEEDS = 2**31


class FleetVecEnv(VecEnv):
    """Episodes side by side, each with random numbers of its own.

    Args:
        scenarios: drawn from at each reset, by name or whole; a function gives one for a seed; by default
            :func:`envs.randomised.randomised`.
        num_envs: how many.
        seed: of everything; environment ``k`` has the same episodes whatever the others do.
        max_nodes: rows of the observation.
        masked_penalty: as in :class:`envs.routing_env.RoutingEnv`.
        reward_scale: likewise.
    """

    render_mode: str | None = None

    def __init__(
        self,
        scenarios: Sequence[Scenario | str] | Callable[[int], Scenario] | None = None,
        num_envs: int = 8,
        seed: int = 0,
        *,
        max_nodes: int = 16,
        masked_penalty: float = MASKED_PENALTY,
        reward_scale: float = WORST_COST,
    ) -> None:
        self._drawn = _drawn_from(scenarios, max_nodes)
        self._seats = Seats(num_envs, max_nodes)
        self._scale = reward_scale
        self._penalty = masked_penalty
        self._actions = np.zeros(num_envs, dtype=np.int64)
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._began_s = time.perf_counter()
        super().__init__(num_envs, observation_space(max_nodes), spaces.Discrete(max_nodes + EXTRA_ACTIONS))
        self._rngs = _streams(seed, num_envs)

    # -- what stable-baselines3 calls

    def reset(self) -> VecEnvObs:
        """Begin every episode anew; seeds given with :meth:`seed` count from now on."""
        for k, seed in enumerate(self._seeds):
            if seed is not None:
                self._rngs[k] = np.random.default_rng([seed, k])
            self.reset_infos[k] = {"scenario": self._begin(k).name}
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions, shape ``(num_envs,)``."""
        self._actions[:] = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Advance all; where an episode ended, its last observation is in the info and the next one has begun."""
        told = self._seats.told
        self._seats.step(self._actions)
        rewards = -told[:, stepping.COST] / self._scale - self._penalty * told[:, stepping.MASKED]
        dones = told[:, stepping.ASKS] < 0.0
        infos = self._infos()
        self._return += rewards
        self._length += 1
        for k in np.flatnonzero(dones):
            self._end(int(k), infos[k])
        return self._observations(), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of this class for each environment."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:  # noqa: ARG002 - the interface's own
        """Refused: what environments share is set when they are made.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{attr_name!r} cannot be set on single environments; make FleetVecEnv with it")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """``action_masks`` of each environment; there are no other methods.

        Raises:
            ConfigError: for another method.
        """
        if method_name != "action_masks" or method_args or method_kwargs:
            raise ConfigError(
                f"environments of FleetVecEnv have no method {method_name!r}; only 'action_masks'"
            )
        masks = self.action_masks()
        return [masks[k] for k in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:  # noqa: ARG002 - the interface's own
        """Nothing is wrapped."""
        return [False for _ in self._get_indices(indices)]

    # -- more

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions may be taken now, shape ``(num_envs, max_nodes + 2)``."""
        return self._seats.mask.astype(np.bool_)

    # -- inside

    def _begin(self, k: int) -> Scenario:
        rng = self._rngs[k]
        scenario = self._drawn(int(rng.integers(_SEEDS)))
        self._seats.seat(k, scenario, int(rng.integers(_SEEDS)))
        self._return[k], self._length[k] = 0.0, 0
        return scenario

    def _end(self, k: int, info: dict[str, Any]) -> None:
        sitting = self._seats.sitting[k]
        info["terminal_observation"] = {key: value[k] for key, value in self._observations().items()}
        info["TimeLimit.truncated"] = False
        info["episode"] = {  # the words of stable-baselines3's Monitor
            "r": float(self._return[k]),
            "l": int(self._length[k]),
            "t": time.perf_counter() - self._began_s,
        }
        if sitting is not None:
            info["metrics"] = sitting.episode().metrics()
        self._begin(k)

    def _observations(self) -> dict[str, NDArray[Any]]:
        seats = self._seats
        return {
            "nodes": seats.nodes.copy(),
            "request": seats.request.copy(),
            "action_mask": seats.mask.copy(),
        }

    def _infos(self) -> list[dict[str, Any]]:
        return [
            {
                "cost": told[stepping.COST],
                "dt_s": told[stepping.DT_S],
                "node": int(told[stepping.NODE]),
                "masked": told[stepping.MASKED] > 0.0,
                "guarded": told[stepping.MOVED] > 0.0,
            }
            for told in self._seats.told.tolist()
        ]


def _drawn_from(
    scenarios: Sequence[Scenario | str] | Callable[[int], Scenario] | None, max_nodes: int
) -> Callable[[int], Scenario]:
    if scenarios is None:
        return lambda seed: randomised(seed, nodes=(min(4, max_nodes), max_nodes))
    if callable(scenarios):
        return scenarios
    if not scenarios:
        raise ConfigError("scenarios is empty; give at least one, or None for randomised ones")
    table = [scenario_of(each) if isinstance(each, str) else each for each in scenarios]
    return lambda seed: table[seed % len(table)]


def _streams(seed: int, count: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, k]) for k in range(count)]
