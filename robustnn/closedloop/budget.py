"""What an attack costs, counted in differentiated evaluations, so that attacks can be compared at equal cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """Differentiated evaluations of one episode, and what had to be collected before it.

    One evaluation is one observation (or state) of one episode, differentiated once; restarts count.
    Evaluations without gradient are not counted: they cost about a third of the others.

    Attributes:
        policy: Evaluations of the policy, or of its substitute.
        plant: Evaluations of the plant, or of its model.
        critic: Evaluations of the critic.
        collected: Steps of the closed loop watched beforehand, for all episodes together.

    Example:
        >>> Budget(policy=40, critic=40).gradients
        80
    """

    policy: int = 0
    plant: int = 0
    critic: int = 0
    collected: int = 0

    @property
    def gradients(self) -> int:
        """Differentiated evaluations of any kind, per episode."""
        return self.policy + self.plant + self.critic
