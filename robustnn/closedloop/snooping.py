"""Snooping: a substitute of a policy that the attacker cannot look into, fitted to what it was seen doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robustnn.closedloop.fitting import in_raw_units, masked_statistics, random_network
from robustnn.closedloop.transitions import Transitions
from robustnn.errors import check_positive, check_positive_int, check_shape, invalid
from robustnn.policies.action_map import ActionMap

__all__ = ["Imitation", "imitate"]


class Imitation(NamedTuple):
    """A substitute and how well it predicts actions that it was not fitted to.

    Attributes:
        policy: The substitute, a map of raw observations like the policy it stands for.
        error: On the held-out tenth of the steps, per policy, shape () or (S,): for continuous actions the root mean
            square error over the standard deviation of the actions; for discrete ones the share of wrong choices.
    """

    policy: ActionMap
    error: np.ndarray


def imitate(
    data: Transitions,
    *,
    n_choices: int | None = None,
    hidden: Sequence[int] = (64, 64),
    iterations: int = 1000,
    batch: int = 128,
    lr: float = 5e-3,
    seed: int = 0,
) -> Imitation:
    r"""Fit a network to the actions that were seen, for attacks by its gradients.

    .. math:: \min_\theta \sum_i \|a_i - \hat\pi_\theta(y_i)\|_2^2

    or the cross-entropy of discrete choices (Inkawhich, Chen and Li, AAMAS 2020, arXiv 1905.11832). The attacker
    needs neither weights nor architecture. Attacks take the result as `surrogate`. What lies off the observations that
    were seen is extrapolated: of sensors that always move together, such as sine and cosine of one angle, the gain of
    each alone is not seen unless `watch` probes it with noise.

    Args:
        data: Steps of the closed loop, from `watch` without exploration but perhaps with a probe; the result has their
            dtype.
        n_choices: Number of discrete actions, which `data.actions` (..., N, 1) then counts from 0; None for
            continuous actions.
        hidden: Hidden widths of the tanh network.
        iterations: Steps of Adam.
        batch: Observations per step and policy.
        lr: Step size of Adam; it falls to zero along a line over the second half.
        seed: Of initial weights, batches and the held-out part.

    Returns:
        The substitute of every policy of the stack, and its error.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or nothing can be held out.
    """
    iterations, batch = check_positive_int("iterations", iterations), check_positive_int("batch", batch)
    lr = check_positive("lr", lr)
    widths = [check_positive_int("hidden", width) for width in hidden]
    if n_choices is not None:
        n_choices = check_positive_int("n_choices", n_choices, minimum=2)
        check_shape("data.actions", data.actions, "(..., N, 1)", data.actions.shape[-1] == 1)
    if data.count < 10 or not bool(data.valid.any(-1).all()):
        raise invalid("data", "at least 10 steps per policy", f"{data.count}", "Watch more episodes.")
    single = data.rewards.ndim == 1
    fields = (data.observations, data.actions, data.valid.unsqueeze(-1).to(data.actions))
    y, a, valid = (field.unsqueeze(0) if single else field for field in fields)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.count, generator=generator).to(y.device)
    held_out, fitted = order[: data.count // 10], order[data.count // 10 :]
    mean, std = masked_statistics(y, valid)
    goal_mean, goal_std = masked_statistics(a, valid)
    if n_choices is not None:
        goal_mean, goal_std = torch.zeros_like(goal_mean), torch.ones_like(goal_std)
    x, goal = (y - mean) / std, (a - goal_mean) / goal_std
    network = random_network((y.shape[-1], *widths, n_choices or a.shape[-1]), len(y), y, generator)
    leaves = [tensor for tensor in (*network.weights, *network.biases) if tensor is not None]
    adam = torch.optim.Adam(leaves, lr=lr)
    for k in range(iterations):
        rows = fitted[torch.randint(len(fitted), (batch,), generator=generator).to(y.device)]
        with torch.enable_grad():
            loss = (valid[:, rows].squeeze(-1) * _loss(network(x[:, rows]), goal[:, rows], n_choices)).mean(
                -1
            )
            loss.sum().backward()
        adam.param_groups[0]["lr"] = lr * min(1.0, 2.0 * (1.0 - k / iterations))
        adam.step()
        adam.zero_grad()
    with torch.no_grad():
        found, true, weight = network(x[:, held_out]), goal[:, held_out], valid[:, held_out].squeeze(-1)
        wrong = _squares(found, true) if n_choices is None else (found.argmax(-1) != true.squeeze(-1).long())
        error = (weight * wrong).sum(-1) / weight.sum(-1).clamp_min(1.0)
        error = error.sqrt() if n_choices is None else error
        network = in_raw_units(network, mean, std, goal_mean, goal_std)
    if single:
        network, error = network.map(lambda t: t[0]), error[0]
    if n_choices is None:
        seen = data.actions[data.valid]
        policy = ActionMap(network, low=seen.amin(0), high=seen.amax(0))
    else:
        policy = ActionMap(network, kind="discrete", choices=(n_choices,))
    return Imitation(policy, error.cpu().double().numpy())


def _loss(output: Tensor, goal: Tensor, n_choices: int | None) -> Tensor:
    """Loss per policy and step."""
    if n_choices is None:
        return _squares(output, goal)
    return functional.cross_entropy(output.movedim(-1, 1), goal.squeeze(-1).long(), reduction="none")


def _squares(found: Tensor, true: Tensor) -> Tensor:
    return (found - true).square().mean(-1)
