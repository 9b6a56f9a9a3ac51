"""The fleet as a gymnasium environment: one step is one decision about one request.

``gymnasium.make("ccr/FleetRouting-v0", trace=..., fleet=...)`` after ``import envs``. See ``docs/environment.md``.
"""

from dataclasses import replace
from typing import Any, Final, Literal, SupportsInt

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ccr.errors import ConfigError
from ccr.features import FEATURES, REQUEST_FEATURES
from ccr.reward import LATENCY_CAP_S, cost
from envs.day import Fleet, Traffic, day
from envs.kernel import stepping
from envs.picture import draw
from envs.randomised import randomised, varied
from envs.render import View, as_text, view_of
from envs.scenario import Scenario
from envs.scenarios import scenario_of
from envs.seats import EXTRA_ACTIONS, Seats, Sitting

WORST_COST: Final = float(cost(np.array(LATENCY_CAP_S), np.array(0.0)))
"""The most one request can cost; the unit of the reward."""
MASKED_PENALTY: Final = 1.0
"""What a masked action costs by default, in the unit of the reward."""

Observation = dict[str, NDArray[Any]]
_SEEDS: Final = 2**31


def observation_space(max_nodes: int) -> spaces.Dict[Any]:
    """Of an environment with this many rows."""
    bound = stepping.BOUND
    return spaces.Dict(
        {
            "nodes": spaces.Box(-bound, bound, (max_nodes, len(FEATURES)), np.float32),
            "request": spaces.Box(-bound, bound, (len(REQUEST_FEATURES),), np.float32),
            "action_mask": spaces.MultiBinary(max_nodes + EXTRA_ACTIONS),
        }
    )


class RoutingEnv(gymnasium.Env[Observation, np.int64]):
    """A fleet, its routers and its traffic.

    Args:
        trace: file of a trace, a :class:`envs.traces.synth.Workload`, or ``None`` for the default mix.
        fleet: number of A10 nodes, a sequence of :class:`envs.scenario.NodePlan`, or a scenario's name.
        scenario: the whole day instead: a scenario or its name.
        max_nodes: rows of the observation; the actions are these, then refuse, then hold.
        replicas: routers that share the traffic, each with a ledger of its own; every one asks this agent.
        randomise: draw fleet, traffic and constants anew with each reset; with a trace, fleet or scenario given, only
            the constants.
        on_masked: what a masked action does: ``penalise`` sends the request to the least busy node and takes
            ``masked_penalty`` off the reward, ``raise`` refuses the action.
        masked_penalty: in the unit of the reward.
        reward_scale: cost that is a reward of -1.
        render_mode: ``ansi`` or ``rgb_array``.

    Raises:
        ConfigError: if arguments contradict each other or name something that is not there.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 12}  # noqa: RUF012 - gymnasium's own annotation

    def __init__(
        self,
        trace: Traffic = None,
        fleet: Fleet = None,
        *,
        scenario: Scenario | str | None = None,
        max_nodes: int = 16,
        replicas: int | None = None,
        randomise: bool = False,
        on_masked: Literal["penalise", "raise"] = "penalise",
        masked_penalty: float = MASKED_PENALTY,
        reward_scale: float = WORST_COST,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"render_mode is {render_mode!r}; give 'ansi', 'rgb_array' or None")
        if on_masked not in {"penalise", "raise"}:
            raise ConfigError(f"on_masked is {on_masked!r}; give 'penalise' or 'raise'")
        if reward_scale <= 0.0:
            raise ConfigError(f"reward_scale is {reward_scale}; give a cost above 0")
        self.render_mode = render_mode
        self.observation_space: spaces.Dict[Any] = observation_space(max_nodes)  # type: ignore[assignment]  # arrays by name it is.
        self.action_space = spaces.Discrete(max_nodes + EXTRA_ACTIONS)
        self._on_masked = on_masked
        self._penalty = masked_penalty
        self._scale = reward_scale
        self._randomise = randomise
        self._fixed = _fixed(trace, fleet, scenario, replicas, randomise=randomise)
        self._replicas = replicas
        self._seats = Seats(1, max_nodes)
        self._cost = 0.0
        self._steps = 0
        self._choices: list[tuple[int, int]] = []

    # -- gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of the sequence of episodes; without one the sequence goes on.
            options: ``{"episode": 7}`` plays exactly the episode that ``ccr evaluate`` plays with seed 7.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(_SEEDS))
        episode = int((options or {}).get("episode", drawn))
        sitting = self._seats.seat(0, self._scenario(episode), episode)
        self._cost, self._steps, self._choices = 0.0, 0, []
        return self._observation(), {"scenario": sitting.scenario.name, "episode": episode, **self._next()}

    def step(self, action: SupportsInt) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Do what was chosen and run to the next decision.

        Returns:
            Observation, reward, whether the last request has been answered, ``False``, and facts: see
            ``docs/environment.md``.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset, or after the end.
            ConfigError: with ``on_masked="raise"``, if the action is masked.
            gymnasium.error.InvalidAction: if there is no such action.
        """
        chosen = int(action)
        self._check(chosen)
        self._seats.step((chosen,))
        info = self._told()
        self._cost += info["cost"]
        self._steps += 1
        self._choices = [*self._choices[-7:], (info["job"], info["node"])]
        reward = -info["cost"] / self._scale - self._penalty * info["masked"]
        over = info["asked"] < 0
        if over:
            info["metrics"] = self.sitting.episode().metrics()
        return self._observation(), float(reward), over, False, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """The fleet now, as a table or as a picture of shape ``(540, 960, 3)``."""
        if self.render_mode is None:
            gymnasium.logger.warn("no render_mode was given; make the environment with 'ansi' or 'rgb_array'")
            return None
        view = self.view()
        return as_text(view) if self.render_mode == "ansi" else draw(view)

    # -- more

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions may be taken now, shape ``(max_nodes + 2,)``; the name is sb3-contrib's."""
        masks: NDArray[np.bool_] = self._seats.mask[0].astype(np.bool_)
        return masks

    @property
    def sitting(self) -> Sitting:
        """The episode that is played.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        sitting = self._seats.sitting[0]
        if sitting is None:
            raise gymnasium.error.ResetNeeded("no episode has begun; call reset() first")
        return sitting

    def view(self) -> View:
        """What a picture of this moment shows."""
        return view_of(self.sitting, self._cost, self._choices)

    # -- inside

    def _scenario(self, seed: int) -> Scenario:
        if self._fixed is None:
            scenario = randomised(seed, nodes=(min(4, self._seats.max_nodes), self._seats.max_nodes))
        elif self._randomise:
            scenario = varied(self._fixed, seed)
        else:
            return self._fixed
        return scenario if self._replicas is None else replace(scenario, replicas=self._replicas)

    def _check(self, action: int) -> None:
        if self.sitting.play.at[stepping.ASKED] < 0:
            raise gymnasium.error.ResetNeeded("the episode is over; call reset()")
        if not 0 <= action < len(self._seats.mask[0]):
            raise gymnasium.error.InvalidAction(
                f"there is no action {action}; give 0 to {len(self._seats.mask[0]) - 1}"
            )
        if self._on_masked == "raise" and not self._seats.mask[0, action]:
            raise ConfigError(
                f"action {action} is masked; allowed now: {np.flatnonzero(self._seats.mask[0]).tolist()}. "
                "Choose among action_masks(), or make the environment with on_masked='penalise'"
            )

    def _observation(self) -> Observation:
        seats = self._seats
        return {
            "nodes": seats.nodes[0].copy(),
            "request": seats.request[0].copy(),
            "action_mask": seats.mask[0].copy(),
        }

    def _told(self) -> dict[str, Any]:
        told = self._seats.told[0].tolist()
        return {
            "cost": told[stepping.COST],
            "costs": self.sitting.charges(int(told[stepping.NEW_CHARGES])),
            "dt_s": told[stepping.DT_S],
            "job": int(told[stepping.DECIDED]),
            "node": int(told[stepping.NODE]),
            "masked": told[stepping.MASKED] > 0.0,
            "guarded": told[stepping.MOVED] > 0.0,
            **self._next(),
        }

    def _next(self) -> dict[str, Any]:
        return {
            "asked": int(self.sitting.play.at[stepping.ASKED]),
            "now_s": float(self.sitting.sim.clock[0]),
        }


def _fixed(
    trace: Traffic, fleet: Fleet, scenario: Scenario | str | None, replicas: int | None, *, randomise: bool
) -> Scenario | None:
    """What does not change from episode to episode; ``None`` if everything does."""
    if scenario is not None:
        if trace is not None or fleet is not None:
            raise ConfigError("a scenario has its own trace and fleet; give either it or them")
        whole = scenario_of(scenario) if isinstance(scenario, str) else scenario
        return whole if replicas is None else replace(whole, replicas=replicas)
    if randomise and trace is None and fleet is None:
        return None
    return day(trace, fleet, replicas)
