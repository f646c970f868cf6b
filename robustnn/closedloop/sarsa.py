"""Robust Sarsa attack: the critic attack with a critic that the attacker learned of the policy it attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from robustnn.closedloop.ball import Norm
from robustnn.closedloop.budget import Budget
from robustnn.closedloop.critic import CriticAttack
from robustnn.closedloop.critics import Critic
from robustnn.closedloop.evaluate import evaluate
from robustnn.closedloop.perturb import Policy
from robustnn.closedloop.robust_q import LearnedQ, SarsaSetting, learn_robust_q
from robustnn.closedloop.transitions import LEARNING_SEEDS, watch

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["SARSA_GRID", "RobustSarsaAttack"]

SARSA_GRID = (
    SarsaSetting(regularisation=0.1, discount=0.95),
    SarsaSetting(regularisation=1.0, discount=0.95),
    SarsaSetting(regularisation=1.0, discount=0.98),
)


@dataclass(frozen=True)
class RobustSarsaAttack(CriticAttack):
    r"""Critic attack with a Q that was learned for this policy by robust Sarsa (Zhang et al., NeurIPS 2020).

    .. math:: \delta_t \approx \arg\min_{\|\delta / d\| \le \epsilon} Q_{RS}(y_t, \pi(y_t + \delta))

    It needs neither the agent's own critic nor gradients of the plant; `learn` makes one.

    Args:
        settings: Of the critic's learning, one per policy of the stack.
        collected: Steps of the loop that were watched and tried beforehand, for each policy.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> few = dict(episodes=2, iterations=3, trials=1)
        >>> attack = RobustSarsaAttack.learn(0.1, lambda y: -y[..., 1:2], Pendulum(), exploration=0.5, **few)
        >>> attack.name
        'robust-sarsa'
    """

    settings: tuple[SarsaSetting, ...] = ()
    collected: int = 0
    name: ClassVar[str] = "robust-sarsa"

    @classmethod
    def learn(
        cls,
        eps: float,
        policy: Policy,
        plant: Plant,
        *,
        norm: Norm = "l2",
        scale: Sequence[float] | None = None,
        policies: int | None = None,
        exploration: float,
        grid: Sequence[SarsaSetting] = SARSA_GRID,
        episodes: int = 32,
        trials: int = 16,
        iterations: int = 600,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> RobustSarsaAttack:
        """Watch the policy, learn a critic for each setting of a grid, and keep the one that does most damage.

        Damage is judged per policy over episodes of other seeds than small ones, so that an evaluation is no part
        of the choice.

        Args:
            eps: Radius, in observation units over those of the scale.
            policy: The policy, or a stack of S.
            plant: The plant.
            norm: "l2" or "linf".
            scale: d, one positive number per observation component; None for ones.
            policies: S for a stack; None for a single policy.
            exploration: Largest standard deviation of the noise on the actions while watching, in their unit; a
                quarter of their range is a good size.
            grid: The settings.
            episodes: Episodes to watch.
            trials: Episodes per setting to judge the damage; with one setting none are run.
            iterations: Steps of learning.
            seed: Of weights, batches, and episodes.
            dtype: Of the simulation: that of the policy.
            device: Of the simulation.

        Returns:
            The attack, for this policy only.
        """
        first = LEARNING_SEEDS * (seed + 1)
        data = watch(
            policy, plant, seeds=range(first, first + episodes), policies=policies, exploration=exploration,
            dtype=dtype, device=device,
        )  # fmt: skip
        learned = learn_robust_q(policy, data, settings=grid, iterations=iterations, seed=seed)
        seeds = range(first + episodes, first + episodes + trials)
        quick = CriticAttack(eps, learned[0].critic, norm, scale, iterations=8, step_fraction=0.5)
        choice = np.zeros(policies or 1, dtype=int)
        if len(grid) > 1:
            means = [
                evaluate(
                    policy, plant, replace(quick, critic=q.critic), seeds=seeds, policies=policies,
                    dtype=dtype, device=device,
                ).mean
                for q in learned
            ]  # fmt: skip
            choice = np.argmin(np.reshape(means, (len(grid), -1)), axis=0)
        settings = tuple(grid[g] for g in choice)
        tried = len(grid) * trials * plant.horizon if len(grid) > 1 else 0
        return cls(
            eps,
            _pick(learned, choice, policies),
            norm,
            scale,
            settings=settings,
            collected=data.count + tried,
        )

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        return {**super().describe(), "settings": [asdict(setting) for setting in self.settings]}

    def budget(self, steps: int) -> Budget:
        """Return what an episode of so many steps costs."""
        return replace(super().budget(steps), collected=self.collected)


def _pick(learned: Sequence[LearnedQ], choice: np.ndarray, policies: int | None) -> Critic:
    """The critic of the chosen setting, for every policy of the stack its own."""
    if policies is None:
        return learned[int(choice[0])].critic
    singles = []
    for s, g in enumerate(choice):
        critic = learned[g].critic
        singles.append(
            replace(critic, networks=tuple(net.map(lambda t, s=s: t[s]) for net in critic.networks))
        )
    return Critic.stack(singles)
