"""Second stage, the student: the network learns to put its probability on what turned out cheap."""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ccr.policies.network import Network
from rl.labels import Labelled
from rl.module import MASKED, PolicyModule

_TEMPERATURE: Final = 0.5
_ENTROPY: Final = 0.003
_BATCH: Final = 512
_HELD_OUT: Final = 0.15
_DECAY: Final = 0.1
"""Of the weights, decoupled from the gradient (Loshchilov and Hutter 2019, arXiv 1711.05101): what only some days say is forgotten."""


def learn(
    start: Network,
    data: Labelled,
    *,
    epochs: int,
    rates: tuple[float, float],
    seed: int,
    report: Callable[[int, float, float], None],
) -> Network:
    """The network after some passes over labelled decisions; the pass with the least held-out regret is kept.

    Args:
        start: its cost weights stay as they are; the layers are trained.
        data: decisions and the regret of each action.
        epochs: passes, at most.
        rates: learning rate of Adam at the beginning and at the end.
        seed: of the order of the decisions.
        report: told the pass, and the mean regret of what is trained on and of what is held out, in units of an
            average request.
    """
    generator = torch.Generator().manual_seed(seed)
    module = PolicyModule(start)
    module.theta_change.requires_grad_(False)
    module.scalars_change.requires_grad_(False)
    held_out, rest = _split(data, generator)
    columns = [torch.from_numpy(column) for column in (data.nodes, data.request, data.mask, data.regret)]
    trained = [each for each in module.parameters() if each.requires_grad]
    adam = torch.optim.AdamW(trained, lr=rates[0], weight_decay=_DECAY)
    decay = (rates[1] / rates[0]) ** (1.0 / max(epochs - 1, 1))
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, decay)
    best, kept = np.inf, start
    for epoch in range(epochs):
        shuffled = rest[torch.randperm(len(rest), generator=generator)]
        total = 0.0
        for batch in torch.split(shuffled, _BATCH):
            loss, regret = _loss(module, *(column[batch] for column in columns))
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            adam.step()
            total += float(regret.detach()) * len(batch)
        schedule.step()
        with torch.no_grad():
            _, unseen = _loss(module, *(column[held_out] for column in columns))
        report(epoch, total / len(rest), float(unseen))
        if float(unseen) < best:
            best, kept = float(unseen), module.network()
    return kept


def _split(data: Labelled, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of what is held out and of the rest. Whole days: what two decisions of one day share would leak."""
    days = int(data.day.max()) + 1
    away = torch.randperm(days, generator=generator)[: max(int(_HELD_OUT * days), 1)]
    is_away = torch.isin(torch.from_numpy(data.day), away)
    return torch.nonzero(is_away)[:, 0], torch.nonzero(~is_away)[:, 0]


def _loss(
    module: PolicyModule, nodes: Tensor, request: Tensor, mask: Tensor, regret: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss, and the expected regret in it."""
    logits = module(nodes, request, mask)
    log_p = torch.log_softmax(torch.where(mask, logits / _TEMPERATURE, MASKED), dim=1)
    p = torch.exp(log_p)
    expected = (p * regret).sum(dim=1).mean()
    entropy = -(p * torch.where(mask, log_p, 0.0)).sum(dim=1).mean()
    return expected - _ENTROPY * entropy, expected
