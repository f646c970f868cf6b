"""Stable-Baselines3 callbacks about the bound: in the training log, and moved while training goes on."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from robustnn.errors import check_positive, check_positive_int, invalid
from robustnn.nn.schedule import LipschitzSchedule
from robustnn.policies.empirical import empirical_lipschitz
from robustnn.policies.freeze import FreezeWeights

__all__ = ["FreezeWeights", "LogLipschitz", "ScheduleLipschitz"]

_EVERY_OFF_POLICY = 1_000


class LogLipschitz(BaseCallback):
    """Record the bound, and how much of it the policy uses, in the training log.

    * `lipschitz/gamma`: the bound of the network, in the scaled units of the policy.
    * `lipschitz/raw_observation`: the plain bound from raw observation to action (`bound.plain`), at the present
      statistics of `VecNormalize`; for images per unit of a uint8 pixel.
    * `lipschitz/empirical`: a lower bound of the same gain, found by gradient ascent near recently seen observations
      (`empirical_lipschitz`).

    The last two are left out where no component of the observation is continuous. Training is the same with and
    without this callback.

    Args:
        every: Environment steps between two records, at the end of the rollout in which they are complete. If None,
            every rollout of on-policy algorithms and every 1,000 steps otherwise.
        empirical_every: Environment steps between two records with `lipschitz/empirical`, which takes about as long as
            a hundred steps; None for never.
        starts: Number of observations that the ascent starts from.
        iterations: Steps of the ascent.
        verbose: As in SB3.

    Raises:
        InvalidArgumentError: If a setting is no positive integer; when training starts, if the policy has no bound, or
            a wrapper of the environment is of unknown gain.

    Example:
        >>> model.learn(50_000, callback=[FreezeWeights(), LogLipschitz()])  # doctest: +SKIP
    """

    def __init__(
        self,
        every: int | None = None,
        *,
        empirical_every: int | None = 10_000,
        starts: int = 64,
        iterations: int = 30,
        verbose: int = 0,
    ) -> None:
        """Check the settings."""
        super().__init__(verbose)
        self.every = None if every is None else check_positive_int("every", every)
        self.empirical_every = (
            None if empirical_every is None else check_positive_int("empirical_every", empirical_every)
        )
        self.starts = check_positive_int("starts", starts)
        self.iterations = check_positive_int("iterations", iterations)
        self._next = self._next_empirical = 0

    def _on_training_start(self) -> None:
        _require(self.model.policy, "bound", "LogLipschitz")
        self._bound()  # an unknown wrapper is found now and not after a rollout
        self._next = self._next_empirical = 0

    def _bound(self) -> Any:
        return self.model.policy.bound(self.training_env, require_frozen=False)  # type: ignore[operator]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self._next:
            return
        every = self.every
        if every is None:
            every = _EVERY_OFF_POLICY if isinstance(self.model, OffPolicyAlgorithm) else 1
        self._next = self.num_timesteps + every
        bound = self._bound()
        self.logger.record("lipschitz/gamma", bound.lipschitz)
        if bound.one_hot and all(bound.one_hot):
            return
        self.logger.record("lipschitz/raw_observation", bound.plain)
        if self.empirical_every is not None and self.num_timesteps >= self._next_empirical:
            self._next_empirical = self.num_timesteps + self.empirical_every
            value = empirical_lipschitz(self.model, starts=self.starts, iterations=self.iterations)
            self.logger.record("lipschitz/empirical", value)


class ScheduleLipschitz(BaseCallback):
    r"""Move the bound of a policy, and of its target networks, to a final value while training goes on.

    Geometric: $\gamma = \gamma_0 (\gamma_1 / \gamma_0)^s$. Linear: $\gamma = \gamma_0 + (\gamma_1 - \gamma_0) s$.
    Here s goes from 0 to 1 between two fractions of the training, and $\gamma_0$ is the bound that the policy has
    before. The bound changes when a rollout starts, so that an on-policy update has the bound of its rollout, and the
    last rollout has $\gamma_1$. It is a guarantee at every moment; the function changes with it.

    Training that is continued (`learn(..., reset_num_timesteps=False)`, also with a loaded model and a new callback)
    goes on from the bound and the step count that the model has, and follows the curve of an uninterrupted training if
    it has the same end. Give `total_timesteps` where `learn` is called for parts of the training.

    Args:
        final: $\gamma_1$, in the scaled units of the policy.
        start: Fraction of the training at which the bound starts to move.
        end: Fraction of the training from which on it has its final value.
        kind: "geometric" or "linear".
        total_timesteps: Environment steps of the whole training; those of the call of `learn` if None.
        verbose: As in SB3.

    Raises:
        InvalidArgumentError: If a setting is out of range; when training starts, if the policy has no bound, or if its
            bound is trained.

    Example:
        >>> model.learn(50_000, callback=ScheduleLipschitz(final=2.0, start=0.2, end=0.8))  # doctest: +SKIP
    """

    def __init__(
        self,
        final: float,
        *,
        start: float = 0.0,
        end: float = 1.0,
        kind: str = "geometric",
        total_timesteps: int | None = None,
        verbose: int = 0,
    ) -> None:
        """Check the settings."""
        super().__init__(verbose)
        self.final = check_positive("final", final)
        if not 0.0 <= start < end <= 1.0:
            raise invalid(
                "start, end", "fractions with 0 <= start < end <= 1", (start, end), "Swap or scale them."
            )
        if kind not in ("geometric", "linear"):
            raise invalid("kind", "'geometric' or 'linear'", repr(kind), "Choose one of these.")
        self.start, self.end, self.kind = float(start), float(end), kind
        self.total_timesteps = (
            None if total_timesteps is None else check_positive_int("total_timesteps", total_timesteps)
        )

    def _on_training_start(self) -> None:
        policy: Any = self.model.policy
        _require(policy, "set_lipschitz", "ScheduleLipschitz")
        total = self.total_timesteps or self.model._total_timesteps
        self._begin = max(round(self.start * total), self.model.num_timesteps)
        steps = max(round(self.end * total) - self._begin, 1)
        self._schedule = LipschitzSchedule(policy.lbdn, self.final, steps, kind=self.kind)

    def _move(self, count: int) -> None:
        policy: Any = self.model.policy
        value = self._schedule.value(count)
        if value != policy.lipschitz:
            policy.set_lipschitz(value)

    def _on_rollout_start(self) -> None:
        self._move(self.model.num_timesteps + _rollout_length(self.model) - self._begin)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        # A rollout whose length was not known before may have been the last one.
        count = self.model.num_timesteps - self._begin
        if count >= self._schedule.steps:
            self._move(count)


def _rollout_length(model: Any) -> int:
    """Environment steps of the rollout that starts, 0 if it ends with an episode."""
    frequency = getattr(model, "train_freq", None)
    if isinstance(frequency, TrainFreq):
        return frequency.frequency * model.n_envs if frequency.unit is TrainFrequencyUnit.STEP else 0
    return int(getattr(model, "n_steps", 0)) * model.n_envs


def _require(policy: Any, attribute: str, callback: str) -> None:
    if not hasattr(policy, attribute):
        raise invalid(
            "model.policy",
            "a Lipschitz-bounded policy, for example LBDNActorCriticPolicy",
            type(policy).__name__,
            f"Leave {callback} out for policies without a bound.",
        )
