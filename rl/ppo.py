"""Third stage: PPO (Schulman et al. 2017, arXiv 1707.06347) of stable-baselines3 over every action, holding included.

stable-baselines3's own policies are neither equivariant nor free of the number of nodes, so its policy class is given
our network whole: the "features" are the observation itself, laid out flat, and the "latent" of the actor are logits.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ccr.policies.network import Network
from rl.module import PolicyModule
from rl.vector_env import FleetVecEnv

_VALUE_UNITS: Final = 64


class Flat(BaseFeaturesExtractor):
    """The observation in one row: features of the nodes, of the request, and the mask."""

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space, sum(int(np.prod(each.shape or ())) for each in space.values()))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Shape ``(b, N * F + Q + N + 2)``."""
        parts = (observations["nodes"], observations["request"], observations["action_mask"].float())
        return torch.cat([part.flatten(1) for part in parts], dim=1)


class ActorAndCritic(nn.Module):
    """What stands where stable-baselines3 expects its multilayer perceptrons.

    Args:
        network: where training starts.
        space: of the observations.
    """

    def __init__(self, network: Network, space: spaces.Dict) -> None:
        super().__init__()
        places, features = space["nodes"].shape or (0, 0)
        self._nodes, self._features = places, features
        self._request = (space["request"].shape or (0,))[0]
        self.actor = PolicyModule(network)
        self.each = nn.Sequential(nn.Linear(features, _VALUE_UNITS), nn.ReLU())
        self.whole = nn.Sequential(
            nn.Linear(2 * _VALUE_UNITS + self._request, _VALUE_UNITS), nn.ReLU(), nn.Linear(_VALUE_UNITS, 1)
        )
        self.latent_dim_pi, self.latent_dim_vf = places + 2, 1

    def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and value."""
        return self.forward_actor(flat), self.forward_critic(flat)

    def forward_actor(self, flat: Tensor) -> Tensor:
        """Masked logits, shape ``(b, N + 2)``."""
        nodes, request, mask = self._parts(flat)
        mask = mask > 0.5
        over = ~mask.any(dim=1)  # the observation after the last decision has no action
        mask[over, 0] = True
        logits: Tensor = self.actor(nodes, request, mask)
        return logits

    def forward_critic(self, flat: Tensor) -> Tensor:
        """Value, shape ``(b, 1)``: of the mean and of the largest over the nodes that may take the request."""
        nodes, request, mask = self._parts(flat)
        may = mask[:, : self._nodes, None] > 0.5
        units = torch.where(may, self.each(nodes), 0.0)
        mean = units.sum(dim=1) / may.sum(dim=1).clamp(min=1)
        value: Tensor = self.whole(torch.cat((mean, units.amax(dim=1), request), dim=1))
        return value

    def _parts(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self._nodes * self._features
        nodes = flat[:, :first].view(-1, self._nodes, self._features)
        return nodes, flat[:, first : first + self._request], flat[:, first + self._request :]


class EquivariantPolicy(ActorCriticPolicy):
    """Our network where stable-baselines3 wants a policy.

    Args:
        space: of the observations.
        network: where training starts.
        others: of the base class.
    """

    def __init__(self, space: spaces.Dict, *others: Any, network: Network, **named: Any) -> None:
        self._network, self._space = network, space
        ours = {"ortho_init": False, "features_extractor_class": Flat}
        super().__init__(space, *others, **{**named, **ours})

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = ActorAndCritic(self._network, self._space)  # type: ignore[assignment]  # by design

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()
        self.value_net = nn.Identity()  # type: ignore[assignment]  # nor has the value
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def network(self) -> Network:
        """The numbers as they stand, for serving."""
        module: ActorAndCritic = self.mlp_extractor  # type: ignore[assignment]  # see above
        return module.actor.network()


class _Checkpoints(BaseCallback):
    """Keeps the network after every so many steps, and tells how it goes."""

    def __init__(self, every: int, report: Callable[[int, float], None]) -> None:
        super().__init__()
        self.networks: list[Network] = []
        self._every = every
        self._report = report

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        recent = [info["r"] / max(info["l"], 1) for info in self.model.ep_info_buffer or ()]
        self._report(self.num_timesteps, float(np.mean(recent)) if recent else float("nan"))

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._every * (len(self.networks) + 1):
            self.networks.append(self.model.policy.network())  # type: ignore[operator]  # our own policy


def fine_tune(
    start: Network,
    env: FleetVecEnv,
    *,
    steps: int,
    checkpoints: int,
    seed: int,
    report: Callable[[int, float], None],
) -> list[Network]:
    """Networks along the way, the last one included; which of them is best only unseen days can tell.

    Args:
        start: where training starts.
        env: fleets to train on.
        steps: decisions.
        checkpoints: how many networks are wanted.
        seed: of sampling.
        report: told the decisions so far and the mean reward of recent ones.
    """
    model = PPO(
        EquivariantPolicy, env, n_steps=1024, batch_size=2048, n_epochs=4, learning_rate=3e-4, clip_range=0.2,
        target_kl=0.03, gamma=0.98, gae_lambda=0.95, ent_coef=0.0, seed=seed, device="cpu",
        policy_kwargs={"network": start},
    )  # fmt: skip
    kept = _Checkpoints(max(steps // checkpoints, 1), report)
    model.learn(steps, callback=kept)
    policy: EquivariantPolicy = model.policy  # type: ignore[assignment]  # given above
    return [*kept.networks, policy.network()][-checkpoints:]
