"""Learn the value of actions under a fixed policy, smooth in the action, for many policies and settings at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustnn.closedloop.critics import Critic
from robustnn.closedloop.fitting import in_raw_units, masked_statistics, random_network
from robustnn.closedloop.perturb import Policy
from robustnn.closedloop.transitions import Transitions
from robustnn.errors import check_nonnegative, check_positive, check_positive_int, invalid

__all__ = ["LearnedQ", "SarsaSetting", "learn_robust_q"]

_TARGET_RATE = 0.02


@dataclass(frozen=True)
class SarsaSetting:
    """One point of the grid over which robust Sarsa is run.

    Args:
        regularisation: Weight lambda of the robustness term; zero for plain Sarsa.
        radius: Radius of the cube of actions over which Q must not change, in units of the actions' standard
            deviation in the data.
        discount: Discount factor per step.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    regularisation: float = 0.1
    radius: float = 0.3
    discount: float = 0.95

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_nonnegative("regularisation", self.regularisation)
        check_positive("radius", self.radius)
        if check_nonnegative("discount", self.discount) >= 1.0:
            raise invalid("discount", "a number below 1", self.discount, "Lower it.")


class LearnedQ(NamedTuple):
    """A critic learned for one setting, and how well it satisfies its equation.

    Attributes:
        setting: The setting.
        critic: Q(y, a), for all policies of the stack.
        error: Root mean square of the temporal differences over the standard deviation of Q in the data, per
            policy: shape () or (S,). One or more says that nothing was learned.
    """

    setting: SarsaSetting
    critic: Critic
    error: np.ndarray


def learn_robust_q(
    policy: Policy,
    data: Transitions,
    *,
    settings: Sequence[SarsaSetting] = (SarsaSetting(),),
    hidden: Sequence[int] = (64, 64),
    iterations: int = 1000,
    batch: int = 128,
    lr: float = 1e-2,
    seed: int = 0,
) -> tuple[LearnedQ, ...]:
    r"""Learn Q of a fixed policy by temporal differences with a robustness term (robust Sarsa).

    .. math:: \min_\theta \sum_i \big(r_i + \beta\,\bar Q(y'_i, \pi(y'_i)) - Q_\theta(y_i, a_i)\big)^2
        + \lambda \max_{\|\hat a - a_i\|_\infty \le \rho} \big(Q_\theta(y_i, \hat a) - Q_\theta(y_i, a_i)\big)^2

    (Zhang et al., NeurIPS 2020, arXiv 2003.08938). The target :math:`\bar Q` is a moving average of Q; the inner
    maximum is approximated by one step from a random action to a vertex of the cube. As the next action is the
    policy's own, the data may contain exploration, without which Q would not be known beside :math:`a = \pi(y)`.
    All policies of a stack and all settings are learned at once, in float32.

    Args:
        policy: The fixed policy, maps (N, n_y) to (N, n_u), or (S, N, n_y) to (S, N, n_u).
        data: Steps of the closed loop, from `watch` with `exploration`.
        settings: The grid.
        hidden: Hidden widths of the tanh networks.
        iterations: Steps of Adam.
        batch: Steps of the loop per iteration and policy.
        lr: Step size of Adam; it falls to zero along a line over the second half.
        seed: Of initial weights and batches.

    Returns:
        One critic per setting, in reward units.

    Raises:
        InvalidArgumentError: If an argument is of the wrong kind or out of its range.
    """
    if not settings:
        raise invalid("settings", "at least one SarsaSetting", "none", "Pass (SarsaSetting(),).")
    iterations, batch = check_positive_int("iterations", iterations), check_positive_int("batch", batch)
    widths = tuple(check_positive_int("hidden", width) for width in hidden)
    stacked = data.rewards.ndim == 2
    problem = _Problem(policy, data, settings, check_positive("lr", lr), seed)
    problem.initialise(widths)
    for k in range(iterations):
        problem.step(batch, min(1.0, 2.0 * (1.0 - k / iterations)))
    errors = problem.errors()
    found = []
    for g, setting in enumerate(settings):
        critic = problem.critic(g, stacked)
        found.append(LearnedQ(setting, critic, errors[g] if stacked else errors[g, 0]))
    return tuple(found)


class _Problem:
    """Weights and data of G settings for S policies, setting by setting along one axis of length G S."""

    def __init__(
        self, policy: Policy, data: Transitions, settings: Sequence[SarsaSetting], lr: float, seed: int
    ) -> None:
        with torch.no_grad():
            next_actions = policy(data.next_observations)
        received = data.actions[data.valid]
        low, high = received.amin(0), received.amax(0)
        fields = (
            data.observations,
            data.actions,
            data.next_observations,
            next_actions.clamp(low, high),
            data.rewards.unsqueeze(-1),
            (~data.ended).unsqueeze(-1),
            data.valid.unsqueeze(-1),
        )
        single = data.rewards.ndim == 1
        parts = [(f.unsqueeze(0) if single else f).float() for f in fields]
        self._stack, self._grid, self._lr = parts[0].shape[0], len(settings), lr
        y, a, y_next, a_next, rewards, self._goes_on, self._valid = parts
        self._mean, self._std = masked_statistics(torch.cat((y, a), -1), self._valid)
        self._inputs = (torch.cat((y, a), -1) - self._mean) / self._std
        self._next_inputs = (torch.cat((y_next, a_next), -1) - self._mean) / self._std
        self._n_u, self._n_y = a.shape[-1], y.shape[-1]
        mean, std = masked_statistics(rewards, self._valid)
        self._unit = mean.abs() + std
        self._rewards = rewards / self._unit

        def per_network(values: list[float]) -> Tensor:
            return y.new_tensor(values).repeat_interleave(self._stack).reshape(-1, 1, 1)

        self._weight = per_network([s.regularisation for s in settings])
        self._radius = per_network([s.radius for s in settings])
        self._discount = per_network([s.discount for s in settings])
        self._generator = torch.Generator().manual_seed(seed)

    def initialise(self, widths: Sequence[int]) -> None:
        sizes = (self._inputs.shape[-1], *widths, 1)
        self._net = random_network(sizes, self._grid * self._stack, self._inputs, self._generator)
        self._leaves = [t for t in (*self._net.weights, *self._net.biases) if t is not None]
        self._target = self._net.map(lambda t: t.detach().clone())
        self._adam = torch.optim.Adam(self._leaves, lr=self._lr)

    def step(self, batch: int, pace: float) -> None:
        """One step of Adam on a batch."""
        count = self._inputs.shape[-2]
        index = torch.randint(count, (batch,), generator=self._generator).to(self._inputs.device)
        inputs, following, rewards, goes_on, valid = (
            self._spread(values[:, index])
            for values in (self._inputs, self._next_inputs, self._rewards, self._goes_on, self._valid)
        )
        with torch.no_grad():
            # Values are counted in units of (1 - discount): their size does not depend on it.
            target = (1.0 - self._discount) * rewards + self._discount * goes_on * self._target(following)
        moved = self._hardest(inputs)
        with torch.enable_grad():
            both = self._net(torch.cat((inputs, moved), dim=-2))
            values, changed = both[:, :batch], both[:, batch:]
            loss = (values - target).square() + self._weight * (changed - values).square()
            (valid * loss).mean((-2, -1)).sum().backward()
        for group in self._adam.param_groups:
            group["lr"] = self._lr * pace
        self._adam.step()
        self._adam.zero_grad()
        with torch.no_grad():
            old = [t for t in (*self._target.weights, *self._target.biases) if t is not None]
            torch._foreach_lerp_(old, self._leaves, _TARGET_RATE)

    def _hardest(self, inputs: Tensor) -> Tensor:
        """Move the actions to where Q differs most, within the cube: one step from random ones to a vertex."""
        net = self._net.detach()
        drawn = 2.0 * torch.rand(inputs.shape[-2], self._n_u, generator=self._generator) - 1.0
        shift = self._radius * drawn.to(inputs)
        with torch.enable_grad():
            shift = shift.requires_grad_()
            moved = inputs + torch.nn.functional.pad(shift, (self._n_y, 0))
            change = (net(moved) - net(inputs).detach()).square()
            (gradient,) = torch.autograd.grad(change.sum(), shift)
        return inputs + torch.nn.functional.pad(self._radius * gradient.sign(), (self._n_y, 0))

    def _spread(self, values: Tensor) -> Tensor:
        """Repeat (S, N, n) for every setting, (G S, N, n)."""
        return values.repeat(self._grid, 1, 1)

    def errors(self) -> np.ndarray:
        """Temporal differences over the spread of Q in the data, (G, S)."""
        with torch.no_grad():
            valid = self._spread(self._valid)
            values = self._net(self._spread(self._inputs))
            following = self._spread(self._goes_on) * self._net(self._spread(self._next_inputs))
            target = (1.0 - self._discount) * self._spread(self._rewards) + self._discount * following
            squares = (valid * (target - values).square()).sum(-2) / valid.sum(-2)
            _, spread = masked_statistics(values, valid)
        found = squares.sqrt().squeeze(-1) / spread.reshape(-1)
        return found.reshape(self._grid, self._stack).cpu().numpy()

    def critic(self, g: int, stacked: bool) -> Critic:
        """Return the critics of one setting, in the units of observations, actions and rewards."""
        rows = slice(g * self._stack, (g + 1) * self._stack)
        unit = self._unit / (1.0 - self._discount[rows])
        net = self._net.detach().map(lambda t: t[rows])
        net = in_raw_units(net, self._mean, self._std, torch.zeros_like(unit), unit)
        if not stacked:
            net = net.map(lambda t: t[0])
        return Critic((net,), "action")
