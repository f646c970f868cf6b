"""Train a policy on under a falling bound, and keep what was best by a measure of robustness."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.errors import NonFiniteError, check_nonnegative, check_positive, check_positive_int, invalid
from robustnn.policies.action_map import ActionMap, action_map
from robustnn.policies.base import LipschitzPolicy
from robustnn.policies.callbacks import ScheduleLipschitz
from robustnn.policies.cnn_base import LipschitzImagePolicy
from robustnn.policies.normalization import normalization_of
from robustnn.policies.observation import flatten_observation, is_one_hot

__all__ = ["FineTuning", "NoisyReturn", "Trial", "fine_tune"]

Measure = Callable[[Any], float]


@dataclass(frozen=True)
class Trial:
    """What a policy was worth at one moment of the training.

    Attributes:
        timesteps: Environment steps so far.
        lipschitz: Bound gamma of the policy then, in its scaled units.
        measure: Value of the measure; larger is better.
    """

    timesteps: int
    lipschitz: float
    measure: float


@dataclass(frozen=True)
class FineTuning:
    """The course of a fine-tuning.

    Attributes:
        trials: All evaluations, the one before training first.
        kept: The one whose weights the model has now.
    """

    trials: tuple[Trial, ...]
    kept: Trial


def fine_tune(
    model: BaseAlgorithm,
    total_timesteps: int,
    *,
    final_lipschitz: float,
    measure: Measure,
    schedule: str = "geometric",
    fall: float = 0.8,
    eval_every: int | None = None,
    keep_best: bool = True,
    callback: Any = None,
    reset_num_timesteps: bool = False,
) -> FineTuning:
    """Train a Lipschitz-bounded agent on while its bound falls, and keep the best one by a measure.

    Robustness is often best at a bound between that of the trained agent and the smallest one that still solves the
    task. The measure is taken before training, between rollouts, and at the end; the policy before is a candidate
    like the others, so by this measure the result is never worse; of equal ones the last, of the smallest bound, is
    taken. What is kept: networks, bound, optimisers, and the statistics of a `VecNormalize`.

    Args:
        model: An agent with a policy of this package, for example from `convert_policy`, and an environment.
        total_timesteps: Environment steps of the fine-tuning.
        final_lipschitz: The bound gamma at the end, at most the present one, in the policy's scaled units.
        measure: Takes the model and returns a number, larger for better; for example `NoisyReturn`, or the return
            under an attack of `robustnn.closedloop`.
        schedule: How the bound falls, "geometric" or "linear"; see `ScheduleLipschitz`.
        fall: Fraction of the steps over which the bound falls, in (0, 1]; the rest is trained at the final bound.
        eval_every: Environment steps between two measurements; a tenth of all if None.
        keep_best: Whether the model gets the best weights in the end; otherwise it keeps the last ones.
        callback: Further callbacks of SB3, for example `FreezeWeights()`.
        reset_num_timesteps: As in SB3's `learn`; True also restarts learning-rate schedules.

    Returns:
        The measurements, and which of them the model is.

    Raises:
        InvalidArgumentError: If the policy has no bound or a trained one, the final bound is above the present one,
            there is no environment, or a setting is out of its range.
        NonFiniteError: If the measure is NaN.

    Example:
        >>> robust = convert_policy(model)  # doctest: +SKIP
        >>> measure = NoisyReturn(eval_env, 0.2)  # doctest: +SKIP
        >>> tuning = fine_tune(robust, 50_000, final_lipschitz=5.0, measure=measure)  # doctest: +SKIP
        >>> tuning.kept.lipschitz  # doctest: +SKIP
        8.3
    """
    steps = check_positive_int("total_timesteps", total_timesteps)
    every = check_positive_int("eval_every", max(steps // 10, 1) if eval_every is None else eval_every)
    if not 0.0 < check_positive("fall", fall) <= 1.0:
        raise invalid("fall", "a fraction in (0, 1]", fall, "Use 0.8.")
    _check_model(model, check_positive("final_lipschitz", final_lipschitz))
    begin = 0 if reset_num_timesteps else model.num_timesteps
    falling = ScheduleLipschitz(final_lipschitz, end=(begin + fall * steps) / (begin + steps), kind=schedule)
    keeper = _Keeper(measure, every, keep_best)
    keeper.evaluate(model)
    callbacks = [keeper, falling]
    if callback is not None:
        callbacks += callback if isinstance(callback, list) else [callback]
    model.learn(steps, callback=callbacks, reset_num_timesteps=reset_num_timesteps)
    keeper.evaluate(model)
    if keep_best:
        keeper.restore(model)
    trials = tuple(keeper.trials)
    return FineTuning(trials, trials[keeper.best] if keep_best else trials[-1])


def _check_model(model: Any, final: float) -> None:
    policy = getattr(model, "policy", None)
    if not isinstance(policy, (LipschitzPolicy, LipschitzImagePolicy)):
        raise invalid(
            "model", "an agent with a policy of robustnn", type(policy or model).__name__,
            "Call convert_policy(model) first.",
        )  # fmt: skip
    if getattr(policy.lbdn, "log_lipschitz", None) is not None:
        raise invalid(
            "model.policy", "a bound that is not trained", "trainable_lipschitz=True",
            "Use lipschitz_penalty to lower a trained bound.",
        )  # fmt: skip
    if final > policy.lipschitz:
        raise invalid(
            "final_lipschitz", f"at most the present bound {policy.lipschitz:.6g}", final,
            "Pass a smaller bound, or raise the present one with set_lipschitz.",
        )  # fmt: skip
    if model.get_env() is None:
        raise invalid("model.env", "an environment", None, "Call model.set_env(env) first.")


class _Keeper(BaseCallback):
    """Measures between rollouts, when the weights have been trained at the present bound, and keeps the best."""

    def __init__(self, measure: Measure, every: int, keep: bool) -> None:
        super().__init__()
        self.measure = measure
        self.every = every
        self.keep = keep
        self.trials: list[Trial] = []
        self.best = 0
        self._state: dict[str, Any] = {}

    def _on_training_start(self) -> None:
        self._next = self.model.num_timesteps + self.every

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self._next:
            self._next = self.model.num_timesteps + self.every
            self.evaluate(self.model)

    def _on_step(self) -> bool:
        return True

    def evaluate(self, model: Any) -> None:
        value = float(self.measure(model))
        if math.isnan(value):
            raise NonFiniteError(
                f"measure: expected a number, got NaN after {model.num_timesteps} steps. Return -inf for a failure."
            )
        self.trials.append(Trial(model.num_timesteps, model.policy.lipschitz, value))
        if value >= self.trials[self.best].measure:
            self.best = len(self.trials) - 1
            if self.keep:
                self._state = _state_of(model)

    def restore(self, model: Any) -> None:
        model.set_parameters(self._state["parameters"])
        for name, value in self._state["variables"].items():
            attrgetter(name)(model).data.copy_(value)
        normalize = model.get_vec_normalize_env()
        if normalize is not None:
            normalize.obs_rms, normalize.ret_rms = copy.deepcopy(self._state["statistics"])


def _state_of(model: Any) -> dict[str, Any]:
    """A copy of everything that training changes and that belongs to the policy."""
    _, variables = model._get_torch_save_params()
    normalize = model.get_vec_normalize_env()
    statistics = None if normalize is None else (getattr(normalize, "obs_rms", None), normalize.ret_rms)
    return {
        "parameters": copy.deepcopy(model.get_parameters()),
        "variables": {name: attrgetter(name)(model).detach().clone() for name in variables},
        "statistics": copy.deepcopy(statistics),
    }


class NoisyReturn:
    r"""Mean return of the deterministic policy with observation errors of a fixed size at every step.

    At every step and in every environment the error is the worst of some random directions on the sphere
    $\|\delta\|_2 = \epsilon$: the one that changes the action most, or, for Discrete actions, that brings another
    action closest to being taken. This is a floor of what an attack can do; the attacks of
    `robustnn.closedloop` find worse. The same seeds give the same start states and directions for every model. Masks
    of MaskablePPO are not asked for.

    Args:
        vec_env: Environments for the evaluation, one episode in each, with raw observations: the `VecNormalize` of
            the model's own environment is applied to the disturbed observation.
        eps: l2 size of the error of the flat raw observation, >= 0. Components that code discrete quantities have none.
        candidates: Number of random directions at every step.
        seed: Seed of start states and directions.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> measure = NoisyReturn(make_vec_env("Pendulum-v1", 8), eps=0.1)
        >>> from stable_baselines3 import TD3
        >>> measure(TD3("MlpPolicy", "Pendulum-v1", device="cpu")) < 0.0
        True
    """

    def __init__(self, vec_env: VecEnv, eps: float, *, candidates: int = 8, seed: int = 0) -> None:
        self.vec_env = vec_env
        self.eps = check_nonnegative("eps", eps)
        self.candidates = check_positive_int("candidates", candidates)
        self.seed = check_positive_int("seed", seed, minimum=0)
        if normalization_of(vec_env, vec_env.observation_space) is not None:
            raise invalid(
                "vec_env", "raw observations", "VecNormalize",
                "Pass the bare environments; the model's own statistics are applied.",
            )  # fmt: skip

    def __call__(self, model: BaseAlgorithm) -> float:
        """Return the mean return per episode, in the unit of the reward.

        Args:
            model: A model that `action_map` accepts, on the same spaces.
        """
        env = self.vec_env
        generator = np.random.default_rng(self.seed)
        policy = action_map(model, model.get_env())
        env.seed(self.seed)
        observation = env.reset()
        returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=np.bool_)
        while running.any():
            observation, reward, done, _ = env.step(self._actions(policy, observation, generator))
            returns += np.where(running, reward, 0.0)
            running &= ~done
        return float(returns.mean())

    def _actions(self, policy: ActionMap, observation: Any, generator: np.random.Generator) -> NDArray[Any]:
        space = self.vec_env.observation_space
        device = policy.network.weights[0].device
        raw = torch.from_numpy(flatten_observation(space, observation)).to(device)
        noise = generator.normal(size=(self.candidates, *raw.shape)) * ~is_one_hot(space)
        length = np.linalg.norm(noise, axis=-1, keepdims=True)
        noise *= self.eps / np.where(length > 0.0, length, 1.0)
        disturbed = raw + torch.from_numpy(noise).to(device)
        worst = _change(policy, raw, disturbed).argmax(dim=0)
        chosen = disturbed[worst, torch.arange(len(raw), device=device)]
        actions = policy.decide(chosen) if policy.choices else policy(chosen)
        shape = (self.vec_env.num_envs, *(self.vec_env.action_space.shape or ()))
        result: NDArray[Any] = actions.reshape(shape).cpu().numpy().astype(self.vec_env.action_space.dtype)
        return result


def _change(policy: ActionMap, raw: Tensor, disturbed: Tensor) -> Tensor:
    """How far disturbances move the decision, shape (candidates, num_envs)."""
    before, after = policy(raw), policy(disturbed)
    if policy.kind != "discrete":
        return (after - before).norm(dim=-1)
    taken = before.argmax(-1, keepdim=True).expand_as(after[..., :1])
    others = after.scatter(-1, taken, -math.inf).amax(-1)
    return others - after.gather(-1, taken).squeeze(-1)
