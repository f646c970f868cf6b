"""Train one policy of the comparison, with its learning curve and its final return."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import stable_baselines3
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from experiments.algorithms_study.config import Config, Model, Task
from robustnn.policies import (
    FreezeWeights,
    LBDNActorCriticPolicy,
    LBDNDQNPolicy,
    LBDNSACPolicy,
    LBDNTD3Policy,
    ObservationScale,
    policy_bound,
)

POLICIES = {
    "PPO": LBDNActorCriticPolicy,
    "SAC": LBDNSACPolicy,
    "TD3": LBDNTD3Policy,
    "DQN": LBDNDQNPolicy,
}
# Start states of the evaluations: far from the seeds of training.
_CURVE_SEED = 10_000
_FINAL_SEED = 20_000


def first_returns(model: BaseAlgorithm, vec_env: VecEnv, seed: int) -> NDArray[np.float64]:
    """Return the return of the first episode of every environment under the deterministic policy.

    Args:
        model: The agent.
        vec_env: The environments.
        seed: Environment k starts from seed + k.

    Returns:
        Shape (num_envs,), in the unit of the reward.
    """
    vec_env.seed(seed)
    observation = vec_env.reset()
    returns = np.zeros(vec_env.num_envs)
    running = np.ones(vec_env.num_envs, dtype=np.bool_)
    while running.any():
        action, _ = model.predict(observation, deterministic=True)  # type: ignore[arg-type]
        observation, reward, done, _ = vec_env.step(action)
        returns += np.where(running, reward, 0.0)
        running &= ~done
    return returns


class LearningCurve(BaseCallback):
    """Evaluates the policy at some numbers of environment steps, and keeps the best one.

    Args:
        points: Environment steps, ascending.
        vec_env: Environments of the evaluation, one episode in each.
    """

    def __init__(self, points: tuple[int, ...], vec_env: VecEnv) -> None:
        super().__init__()
        self.pending = list(points)
        self.vec_env = vec_env
        self.returns: list[list[float]] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0

    def _evaluate(self) -> None:
        start = time.perf_counter()
        while self.pending and self.num_timesteps >= self.pending[0]:
            self.pending.pop(0)
            self.returns.append(first_returns(self.model, self.vec_env, _CURVE_SEED).tolist())
            if sum(self.returns[-1]) >= max(map(sum, self.returns)):
                self.best = copy.deepcopy(self.model.policy.state_dict())
        self.seconds += time.perf_counter() - start

    def _on_rollout_start(self) -> None:
        self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._evaluate()


def make_model(config: Config, task: Task, model: Model, seed: int) -> BaseAlgorithm:
    """Return the untrained agent."""
    settings = {name: _schedule(value) for name, value in task.settings.items() if name != "noise_std"}
    env = make_vec_env(task.env_id, task.num_envs, seed=seed)
    if "noise_std" in task.settings:
        n_act = int(np.prod(env.action_space.shape or ()))
        settings["action_noise"] = NormalActionNoise(
            np.zeros(n_act), np.full(n_act, task.settings["noise_std"])
        )
    policy_kwargs: dict[str, Any] = {"net_arch": list(config.hidden)}
    policy: Any = "MlpPolicy"
    if model.lipschitz is None:
        policy_kwargs["features_extractor_class"] = ObservationScale
        policy_kwargs["features_extractor_kwargs"] = {"scale": task.observation_scale}
    else:
        policy = POLICIES[task.algorithm]
        policy_kwargs |= {"lipschitz": model.lipschitz, "observation_scale": task.observation_scale}
    algorithm: Callable[..., BaseAlgorithm] = getattr(stable_baselines3, task.algorithm)
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **settings)


def _schedule(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("lin_"):
        start = float(value.removeprefix("lin_"))
        return lambda remaining: remaining * start
    return value


def train_agent(
    config: Config, task: Task, model: Model, seed: int
) -> tuple[BaseAlgorithm, LearningCurve, float]:
    """Train a policy.

    Args:
        config: Settings.
        task: Algorithm and environment.
        model: Which policy.
        seed: Seed of networks, environment and algorithm.

    Returns:
        The agent with its last weights, its learning curve with the best ones, the wall time of training in s.
    """
    agent = make_model(config, task, model, seed)
    curve = LearningCurve(task.points, make_vec_env(task.env_id, config.curve_episodes))
    callbacks: list[BaseCallback] = [curve]
    if model.lipschitz is not None:
        callbacks.append(FreezeWeights())
    start = time.perf_counter()
    agent.learn(task.timesteps, callback=callbacks)
    return agent, curve, time.perf_counter() - start - curve.seconds


def train(config: Config, task: Task, model: Model, seed: int) -> dict[str, Any]:
    """Train a policy and evaluate it; the arguments are those of `train_agent`.

    Returns:
        JSON values: the returns along the learning curve (points x episodes), those of the last policy and of the
        best one on the curve (episodes each, from other start states than the curve's), the bound of the last
        policy for scaled and raw observations (of action, logits or Q-values), the wall time of training in s.
    """
    agent, curve, seconds = train_agent(config, task, model, seed)
    bound = policy_bound(agent)
    final = make_vec_env(task.env_id, config.episodes)
    last = first_returns(agent, final, _FINAL_SEED)
    agent.policy.load_state_dict(curve.best)
    return {
        "curve": np.round(curve.returns, 3).tolist(),
        "last": np.round(last, 3).tolist(),
        "best": np.round(first_returns(agent, final, _FINAL_SEED), 3).tolist(),
        "bound": bound.lipschitz * max(bound.action_scale),
        "bound_raw": bound.plain,
        "seconds": round(seconds, 2),
    }
