"""Train one policy of images, follow its certified radius along episodes, and attack its decisions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from experiments.atari_pong_study.config import Config, Model
from experiments.atari_pong_study.policies import decision_of, make_agent, n_parameters
from experiments.atari_pong_study.task import make_env
from experiments.classification_study.attack import attacked_correct
from experiments.classification_study.certificate import ExactClassifier, certified_radii
from robustnn.policies import FreezeWeights, LBDNCnnPolicy

# Start states of the evaluation: far from the seeds of training.
_EVALUATION_SEED = 30_000
_WHITE = 255.0


def train_and_measure(config: Config, model: Model, seed: int) -> dict[str, Any]:
    """Train a policy and measure its greedy decisions.

    Args:
        config: Settings.
        model: Which policy.
        seed: Seed of training.

    Returns:
        JSON values. `returns` of the episodes; the certified radii of the first one, `episode`; over all visited
        observations the share that is certified at every eps, `rate`, and quartiles of the radius; over a sample of
        them the shares certified and not changed by the attack. Bounds, parameters, seconds of training.
    """
    env = make_env(config, config.n_envs, seed)
    agent = make_agent(config, model, env, seed)
    start = time.perf_counter()
    agent.learn(config.timesteps, callback=FreezeWeights())
    seconds = time.perf_counter() - start
    env.close()
    decision = decision_of(agent)
    env = make_env(config, config.episodes, _EVALUATION_SEED)
    with frozen(agent):
        visited = follow(agent, env, decision, config.attacked, seed)
    env.close()
    labels = greedy(decision, visited.sample)
    radii = certified_radii(decision, visited.sample, labels)
    eps = tuple(size / _WHITE for size in config.eps)
    # Raises where the attack changes a certified decision.
    unchanged = attacked_correct(
        decision, decision.to(dtype=torch.float32), visited.sample, labels, eps, radii,
        iterations=config.attack_iterations, restarts=config.attack_restarts, seed=seed,
    )  # fmt: skip
    return {
        "returns": visited.returns.tolist(),
        "episode": [round(float(value), 3) for value in visited.episode],
        "observations": len(visited.radii),
        "disagreements": visited.disagreements,
        "radius": np.quantile(visited.radii, (0.25, 0.5, 0.75)).tolist(),
        "rate": [float((visited.radii > size).mean()) for size in config.eps],
        "certified": [float((radii > size).double().mean()) for size in eps],
        "unchanged": [float(row.double().mean()) for row in unchanged],
        "declared_bound": decision.declared if np.isfinite(decision.declared) else None,
        "proved_bound": decision.proved,
        "parameters": n_parameters(agent),
        "seconds": round(seconds, 2),
    }


@contextmanager
def frozen(agent: PPO) -> Iterator[None]:
    """Use the explicit weights of a bounded policy again and again: its actions are the same, and cost less."""
    if not isinstance(agent.policy, LBDNCnnPolicy):
        yield
        return
    with agent.policy.lbdn.frozen():
        yield


class Visited:
    """What was seen along the episodes.

    Attributes:
        returns: Return of every episode.
        radii: Certified radius of every decision, in units of a uint8 pixel.
        episode: Those of the first episode, in order.
        sample: Some observations, drawn uniformly, uint8, (n, channels, height, width).
        disagreements: Number of actions of `predict`, in float32, that are not the greedy ones in float64.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.returns: NDArray[np.float64] = np.zeros(0)
        self.radii: NDArray[np.float64] = np.zeros(0)
        self.episode: NDArray[np.float64] = np.zeros(0)
        self.disagreements = 0
        self._size, self._rng = size, np.random.default_rng(seed)
        self._kept: list[NDArray[np.uint8]] = []
        self._seen = 0

    @property
    def sample(self) -> Tensor:
        """The observations that were kept."""
        return torch.from_numpy(np.stack(self._kept))

    def offer(self, images: NDArray[np.uint8]) -> None:
        """Keep every image with the same probability, whenever it comes."""
        for image in images:
            self._seen += 1
            if len(self._kept) < self._size:
                self._kept.append(image.copy())
            elif (place := int(self._rng.integers(self._seen))) < self._size:
                self._kept[place] = image.copy()


def follow(agent: PPO, env: VecEnv, decision: ExactClassifier, size: int, seed: int) -> Visited:
    """Play one episode of the greedy policy in every environment, and certify every decision.

    Args:
        agent: The agent.
        env: The environments; they return uint8 images, channels first.
        decision: The agent's decision by value.
        size: Number of observations to keep.
        seed: Of that choice.

    Returns:
        What was seen.
    """
    found = Visited(size, seed)
    env.seed(_EVALUATION_SEED)
    observation: Any = env.reset()
    running = np.ones(env.num_envs, dtype=np.bool_)
    found.returns = np.zeros(env.num_envs)
    radii, first = [], []
    while running.any():
        images = torch.from_numpy(observation[running])
        labels = greedy(decision, images)
        radius = _WHITE * certified_radii(decision, images, labels).numpy()
        radii.append(radius)
        if running[0]:
            first.append(radius[0])
        found.offer(observation[running])
        action, _ = agent.predict(observation, deterministic=True)
        found.disagreements += int((action[running] != labels.numpy()).sum())
        observation, reward, done, _ = env.step(action)
        found.returns += np.where(running, reward, 0.0)
        running &= ~done
    found.radii, found.episode = np.concatenate(radii), np.array(first)
    return found


@torch.no_grad()
def greedy(decision: ExactClassifier, images: Tensor) -> Tensor:
    """Return the greedy actions of uint8 images in float64, on the CPU."""
    parts = [
        decision(part.to(decision.mean.device).double() / _WHITE).argmax(dim=1).cpu()
        for part in images.split(256)
    ]
    return torch.cat(parts)
