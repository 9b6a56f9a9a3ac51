"""The policy network in torch, for training: the same numbers as :mod:`ccr.policies.network`, in batches."""

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from ccr import cost
from ccr.book import Floats
from ccr.features import PROMISE, PROMISE_DIVISOR, TERM_DIVISOR, TERM_GAIN
from ccr.policies.network import HOLD_SHARE, KAPPA, LEAST_S, MISS_S, REJECT_COST, Network

_CHANGE: Final = 10.0
MASKED: Final = -1e8
"""Logit of what may not be done."""


class PolicyModule(nn.Module):
    """Logits of every action.

    What must stay positive, the weights of the cost and the scalars, is trained as the change of its logarithm, in tenths
    of what the layers are: a dozen numbers need larger steps than four thousand.

    Args:
        network: where training starts.
    """

    term_gain: Tensor
    term_divisor: Tensor
    first_theta: Tensor
    first_scalars: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._start = network
        self.register_buffer("first_theta", torch.log(torch.tensor(np.maximum(network.theta, 1e-6))))
        self.register_buffer("first_scalars", torch.log(torch.tensor(np.maximum(network.scalars, 1e-6))))
        self.theta_change = nn.Parameter(torch.zeros(len(network.theta)))
        self.scalars_change = nn.Parameter(torch.zeros(len(network.scalars)))
        self.node = _linear(network.node)
        self.request = _linear(network.request, network.bias)
        self.own = _linear(network.own)
        self.pool = _linear(network.pool, network.second_bias)
        self.out = _linear(network.out[:, None])
        self.beyond = _linear(network.extra, network.extra_bias)
        self.register_buffer("term_gain", torch.tensor(TERM_GAIN[:, 0]))
        self.register_buffer("term_divisor", torch.tensor(TERM_DIVISOR[:, 0]))
        self.to(torch.float32)

    @property
    def log_theta(self) -> Tensor:
        """Logarithms of the weights of the cost terms, shape ``(8,)``."""
        return self.first_theta + _CHANGE * self.theta_change

    @property
    def log_scalars(self) -> Tensor:
        """Logarithms of :attr:`ccr.policies.network.Network.scalars`, shape ``(4,)``."""
        return self.first_scalars + _CHANGE * self.scalars_change

    def forward(self, nodes: Tensor, request: Tensor, mask: Tensor) -> Tensor:
        """Logits, shape ``(b, N + 2)``; what is masked has :data:`MASKED`.

        Args:
            nodes: features, shape ``(b, N, F)``; rows behind the fleet may hold anything.
            request: features, shape ``(b, Q)``.
            mask: actions that may be taken, shape ``(b, N + 2)``, bool; at least one of them a node.
        """
        places = nodes.shape[1]
        may = mask[:, :places]
        found = torch.cat(self.residual(nodes, request, may), dim=1)
        log_cost = torch.log(self.costs_s(nodes))
        best = torch.where(may, log_cost, torch.inf).amin(dim=1)
        promised_s = torch.expm1(PROMISE_DIVISOR * request[:, PROMISE])
        reject = self.log_scalars[REJECT_COST] + torch.log(promised_s + MISS_S)
        hold = self.log_scalars[HOLD_SHARE] + best
        price = torch.cat((log_cost, reject[:, None], hold[:, None]), dim=1)
        logits = found - torch.exp(self.log_scalars[KAPPA]) * price
        return torch.where(mask, logits, MASKED)

    def residual(self, nodes: Tensor, request: Tensor, may: Tensor) -> tuple[Tensor, Tensor]:
        """What the network adds to the logits of nodes, shape ``(b, N)``, and of the other actions, ``(b, 2)``."""
        first = torch.relu(self.node(nodes) + self.request(request)[:, None, :])
        shares = may.to(first.dtype)
        shares = shares / shares.sum(dim=1, keepdim=True)
        pooled = torch.einsum("bn,bnh->bh", shares, first)
        second = torch.relu(self.own(first) + self.pool(pooled)[:, None, :])
        return self.out(second)[:, :, 0], self.beyond(pooled)

    def costs_s(self, nodes: Tensor) -> Tensor:
        """The weighted cost in seconds, shape ``(b, N)``; :func:`ccr.policies.network.costs_s`."""
        count = len(cost.TERMS)
        terms = torch.expm1(self.term_divisor * nodes[..., :count]) / self.term_gain
        weighted = terms * torch.exp(self.log_theta)
        first = torch.maximum(weighted[..., cost.LOAD], weighted[..., cost.BACKLOG])
        return torch.clamp(first + weighted[..., cost.BACKLOG + 1 :].sum(dim=-1), min=LEAST_S)

    def network(self) -> Network:
        """The numbers as they stand, for serving."""
        scalars = _numbers(torch.exp(self.log_scalars))
        # A logarithm has no zero: what was switched off stays switched off.
        scalars[self._start.scalars == 0.0] = 0.0
        return Network(
            theta=_numbers(torch.exp(self.log_theta)), scalars=scalars,
            node=_numbers(self.node.weight.T), request=_numbers(self.request.weight.T), bias=_numbers(self.request.bias),
            own=_numbers(self.own.weight.T), pool=_numbers(self.pool.weight.T), second_bias=_numbers(self.pool.bias),
            out=_numbers(self.out.weight[0]), extra=_numbers(self.beyond.weight.T), extra_bias=_numbers(self.beyond.bias),
        )  # fmt: skip


def _linear(weight: Floats, bias: Floats | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight.T))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def _numbers(values: Tensor) -> Floats:
    return np.ascontiguousarray(values.detach().numpy().astype(np.float64))
