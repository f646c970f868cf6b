"""The callback that puts penalties into the loss of a Stable-Baselines3 algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor
from torch.optim import Optimizer

from robustnn.errors import RobustNNError, UnsupportedSpaceError, check_positive_int, invalid
from robustnn.training.live_map import LiveMap
from robustnn.training.smoothness import MeanAction, Penalty, penalty_from_config

__all__ = ["SmoothnessPenalty"]

# Where the options are kept in a model, and hence in its file.
_ATTRIBUTE = "smoothness"


class SmoothnessPenalty(BaseCallback):
    r"""Add penalties to the loss of the actor: every gradient step descends $\text{loss} + \sum_i p_i$.

    All algorithms of SB3 clear the gradients, add those of their loss, clip the sum (PPO and A2C) and take a step.
    Here the gradient of the penalties is what gradients are cleared to, so that it is clipped with the rest. The
    penalties are estimated on a batch of their own: pairs of successive observations from the present rollout, or
    from the replay buffer. It works for PPO, A2C, SAC, TD3, DDPG and TQC with the policies of this package and with
    SB3's MlpPolicy, leaves both unchanged, and adds `train/caps` or `train/sa` to the log.

    The options are stored in the model and its file. To go on with a loaded model, pass
    `SmoothnessPenalty.from_model(model)`: a callback is not part of what SB3 saves.

    Args:
        *penalties: `CAPS` and `SARegulariser`, or plain values as `describe` returns them.
        batch_size: Number of pairs per gradient step; None for the batch size of the algorithm.
        seed: Seed of what the penalties draw.
        verbose: As in SB3.

    Raises:
        InvalidArgumentError: If an argument is not acceptable; when training starts, if the algorithm or policy is
            not supported.
        UnsupportedSpaceError: When training starts, if observations or actions are no Box.

    Example:
        >>> from robustnn.training import CAPS
        >>> model.learn(50_000, callback=SmoothnessPenalty(CAPS(0.01, 0.05)))  # doctest: +SKIP
    """

    def __init__(
        self,
        *penalties: Penalty | dict[str, Any],
        batch_size: int | None = None,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        """Check the settings."""
        super().__init__(verbose)
        self.penalties = tuple(p if isinstance(p, Penalty) else penalty_from_config(p) for p in penalties)
        self.batch_size = None if batch_size is None else check_positive_int("batch_size", batch_size)
        self.seed = check_positive_int("seed", seed, minimum=0)
        self._pairs: Callable[[], tuple[Any, Any]] | None = None
        self._optimizer: Optimizer | None = None

    @classmethod
    def from_model(cls, model: Any, verbose: int = 0) -> SmoothnessPenalty:
        """Return the callback with the options that a model was trained with.

        Args:
            model: The model, loaded or not.
            verbose: As in SB3.

        Raises:
            InvalidArgumentError: If the model was trained without.
        """
        stored = getattr(model, _ATTRIBUTE, None)
        if stored is None:
            raise invalid(
                "model", "one that was trained with SmoothnessPenalty", "one without its options",
                "Pass the penalties: SmoothnessPenalty(CAPS(...)).",
            )  # fmt: skip
        return cls(
            *stored["penalties"], batch_size=stored["batch_size"], seed=stored["seed"], verbose=verbose
        )

    def _on_training_start(self) -> None:
        self._release()
        model = self.model
        policy: Any = model.policy
        for role in ("observation", "action"):
            space = getattr(model, f"{role}_space")
            if not isinstance(space, spaces.Box):
                raise UnsupportedSpaceError(
                    f"{role}_space: expected a Box for SmoothnessPenalty, got {space}. Leave the callback out."
                )
        trains_elsewhere = any(kind.__name__ == "TRPO" for kind in type(model).__mro__)
        if trains_elsewhere or not isinstance(model, (OnPolicyAlgorithm, OffPolicyAlgorithm)):
            raise invalid(
                "model", "an algorithm that trains the actor by its optimiser (PPO, A2C, SAC, TD3, ...)",
                type(model).__name__, "Use PPO.",
            )  # fmt: skip
        setattr(
            model,
            _ATTRIBUTE,
            {
                "penalties": [penalty.describe() for penalty in self.penalties],
                "batch_size": self.batch_size,
                "seed": self.seed,
            },
        )
        self._map = LiveMap(policy)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._indices = np.random.default_rng([self.seed, model.num_timesteps])
        optimizer: Any = policy.actor.optimizer if hasattr(policy, "actor") else policy.optimizer
        self._optimizer, self._start_time = optimizer, model.start_time  # the latter is new in every learn()
        # An attribute of the object: copies and state dicts of an optimiser do not contain it.
        optimizer.zero_grad = self._clear

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if isinstance(self.model, OnPolicyAlgorithm):
            buffer: Any = self.model.rollout_buffer
            first, then = buffer.observations[:-1], buffer.observations[1:]
            # Rows of the buffer are time; no pair leads over the end of an episode.
            inside = np.nonzero(np.asarray(buffer.episode_starts)[1:] == 0.0)
            self._pairs = lambda: self._from_rollout(first, then, inside)
        else:
            self._pairs = self._from_replay

    def _from_rollout(
        self, first: NDArray[Any], then: NDArray[Any], inside: tuple[NDArray[Any], ...]
    ) -> tuple[Any, Any]:
        count = len(inside[0])
        size = self.batch_size or getattr(self.model, "batch_size", None) or count
        if size < count:
            chosen = self._indices.choice(count, size, replace=False, shuffle=False)
            inside = (inside[0][chosen], inside[1][chosen])
        return first[inside], then[inside]

    def _from_replay(self) -> tuple[Any, Any]:
        model: Any = self.model
        size = self.batch_size or model.batch_size
        state = (
            np.random.get_state()
        )  # SB3 draws from here: the loss sees the samples that it sees without this
        try:
            np.random.seed(self._indices.integers(2**32))
            data = model.replay_buffer.sample(size, env=model._vec_normalize_env)
        finally:
            np.random.set_state(state)
        return data.observations, data.next_observations

    def _clear(self, set_to_none: bool = True) -> None:
        """Set the gradients to those of the penalties; called in the place of `optimizer.zero_grad`."""
        optimizer = self._optimizer
        if optimizer is None:
            raise RobustNNError(
                "optimizer: expected one in training, got none. Pass the callback to learn()."
            )
        type(optimizer).zero_grad(optimizer, set_to_none)
        if self._pairs is None:
            return
        if self.model.start_time != self._start_time:  # an earlier training ended by an exception
            self._release()
            return
        like = self._map.parameters[0]
        observations, following = (
            torch.as_tensor(part, device=like.device, dtype=like.dtype).flatten(1) for part in self._pairs()
        )
        if len(observations) == 0:
            return
        mean = MeanAction(self._map(), self._std())
        total = like.new_zeros(())
        for penalty in self.penalties:
            value = penalty(mean, observations, following, self._generator)
            self.logger.record_mean(f"train/{penalty.name}", value.item())
            total = total + value
        if total.requires_grad:
            total.backward()

    def _std(self) -> Tensor | None:
        policy: Any = self.model.policy
        log_std = getattr(policy, "log_std", None)
        if not isinstance(log_std, Tensor) or getattr(policy, "use_sde", False):
            return None
        return log_std.detach().exp()

    def _release(self) -> None:
        if self._optimizer is not None:
            if getattr(vars(self._optimizer).get("zero_grad"), "__self__", None) is self:
                del self._optimizer.zero_grad
            self._optimizer = None
        self._pairs = None

    def _on_training_end(self) -> None:
        self._release()
