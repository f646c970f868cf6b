"""Measure one policy on the true plant, and the pair of model and policy: sensitivity, prediction, attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.model_based_study.config import Config, Source
from experiments.model_based_study.models import load_model, model_path
from experiments.model_based_study.train import policy_path
from experiments.model_based_study.tube import drift
from experiments.policy_files import load_policy
from robustnn.closedloop import (
    LearnedPlant,
    Perturbation,
    TrajectoryAttack,
    UniformBall,
    evaluate,
    rollout,
    start_states,
)
from robustnn.closedloop.attacks import SteepestSteps, descend
from robustnn.closedloop.ball import Ball
from robustnn.envs import Pendulum
from robustnn.policies import ActionMap

Array = NDArray[np.float64]
# Numbers of steps after which the search drives trajectories apart, evenly spread on a logarithmic scale.
_ENDS = 8
# Seeds of episodes: those of evaluation begin at zero.
_CALIBRATION, _SEARCH = 10_000, 20_000
_ACTION_WIDTH = 2.0  # actions are a share of the torque, in [-1, 1]


def return_cell(config: Config, folder: Path, source: Source, seed: int) -> dict[str, Any]:
    """Evaluate a policy on the true plant, and on the model that it was trained on.

    Returns:
        JSON values: returns per episode on the "plant" and on the "model".
    """
    policy = load_policy(policy_path(folder, source, seed)).to(dtype=torch.float64)
    found = {"plant": _returns(config, policy, Pendulum(), None)}
    if source.kind != "plant":
        found["model"] = _returns(config, policy, load_model(model_path(folder, source, seed)), None)
    return found


def pair_cell(
    config: Config, folder: Path, source: Source, seed: int, facts: dict[str, Any], policy_constant: float
) -> dict[str, Any]:
    """Certify a pair of model and policy, and try to contradict the certificate.

    Returns:
        JSON values. "tube" and "found": distance of two trajectories of the learned loop after 0 ... k steps, proved
        and found by gradient ascent. "prediction": for given actions, and "loop": in closed loop, errors of predictions
        of the true loop against the number of steps: root mean square, largest, proved where no step errs by more than
        the worst of the calibration episodes, and the share below that. "one_step": that worst error.
    """
    policy = load_policy(policy_path(folder, source, seed)).to(dtype=torch.float64)
    learned = load_model(model_path(folder, source, seed))
    kind: dict[str, Any] = {"input_scale": config.input_scale}
    closed = {**kind, "policy": policy_constant, "width": _ACTION_WIDTH}
    steps = config.sensitivity_steps
    tube = drift(facts["constants"], steps, eps=config.sensitivity_eps, **closed)
    known = _episodes(config, policy, _CALIBRATION, config.calibration)
    worst = float(_errors(config, learned, *known, 1, None)[1].max())
    test = _episodes(config, policy, 0, config.episodes)
    predicted = {}
    for name, acting, arguments in (("prediction", None, kind), ("loop", policy, closed)):
        bound = drift(facts["constants"], steps, model_error=worst, **arguments)
        errors = _errors(config, learned, *test, steps, acting)[1:]
        predicted[name] = {
            "rms": [float(np.sqrt(np.mean(one**2))) for one in errors],
            "max": [float(one.max()) for one in errors],
            "bound": bound[1:].tolist(),
            "inside": [float(np.mean(one <= limit)) for one, limit in zip(errors, bound[1:], strict=True)],
        }
    found = search(config, learned, policy)
    return {"tube": tube.tolist(), "found": found.tolist(), "one_step": worst, **predicted}


def attack_cell(config: Config, folder: Path, source: Source, seed: int, eps: float) -> dict[str, Any]:
    """Attack a policy on the true plant: by noise, through its learned model, and through the plant itself.

    Both trajectory attacks re-plan from what has really been reached, with equal settings; they differ in what they
    differentiate.

    Returns:
        JSON values: returns per episode by attack.
    """
    policy = load_policy(policy_path(folder, source, seed)).to(dtype=torch.float32)
    learned = load_model(model_path(folder, source, seed)).to(dtype=torch.float32)
    scale = config.observation_scale
    attacks: dict[str, Perturbation] = {
        "uniform": UniformBall(eps, "l2", scale),
        "model": TrajectoryAttack(eps, "l2", scale, model=learned, **config.attack),
        "plant": TrajectoryAttack(eps, "l2", scale, model=Pendulum(), **config.attack),
    }
    return {name: _returns(config, policy, Pendulum(), attack) for name, attack in attacks.items()}


def search(config: Config, learned: LearnedPlant, policy: ActionMap) -> Array:
    """Search for errors of the observation that drive two trajectories of the learned loop apart.

    Args:
        config: Size of the errors, number of steps, starts and iterations.
        learned: The model, float64.
        policy: The policy, float64.

    Returns:
        Largest distance found after every step, shape (steps + 1,), scaled observations.
    """
    plant: Any = learned
    scale = torch.tensor(config.observation_scale, dtype=torch.float64)
    # Inside the ball in spite of rounding.
    ball = Ball(config.sensitivity_eps * (1.0 - 1e-12), "l2", config.observation_scale)
    seeds = range(_SEARCH, _SEARCH + config.sensitivity_starts)
    start = start_states(plant, seeds, dtype=torch.float64)
    # From states that the loop visits, a different time in every episode.
    visited = rollout(plant, policy, start, steps=max(2, plant.horizon // 2)).states
    start = visited[torch.arange(len(start)) % len(visited), torch.arange(len(start))]
    generator = torch.Generator().manual_seed(0)
    best = torch.zeros(config.sensitivity_steps + 1, dtype=torch.float64)

    nominal = [start]
    with torch.no_grad():
        for _ in range(config.sensitivity_steps):
            nominal.append(plant.transition(nominal[-1], policy(nominal[-1])))

    def distances(z: Tensor) -> Tensor:
        apart, state = [start.new_zeros(len(start))], start
        for error, undisturbed in zip(ball.to_observation(z), nominal[1:], strict=False):
            state = plant.transition(state, policy(state + error))
            apart.append(((state - undisturbed) / scale).norm(dim=-1))
        return torch.stack(apart)

    ends = np.geomspace(1, config.sensitivity_steps, _ENDS).round().astype(int)
    for k in np.unique(ends).tolist():
        z = ball.surface_sample(torch.randn(k, *start.shape, generator=generator, dtype=torch.float64))
        rule = SteepestSteps(ball, 0.3, momentum=0.7, decay_over=config.sensitivity_iterations)
        z, _, _ = descend(lambda one: -distances(one)[-1], z, rule, config.sensitivity_iterations)
        with torch.no_grad():
            best[: k + 1] = torch.maximum(best[: k + 1], distances(z).amax(1))
    return best.numpy()


def _returns(config: Config, policy: ActionMap, plant: Any, attack: Perturbation | None) -> list[float]:
    dtype = policy.network.weights[0].dtype
    result = evaluate(policy, plant, attack, episodes=config.episodes, dtype=dtype)
    return [float(one) for one in np.round(result.returns, 2)]


def _episodes(config: Config, policy: ActionMap, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Observations (T, E, n_y) and actions (T, E, n_u) of the true loop without errors."""
    plant = Pendulum()
    start = start_states(plant, range(first, first + count), dtype=torch.float64)
    trajectory = rollout(plant, policy, start)
    return trajectory.observations, trajectory.actions


def _errors(
    config: Config, learned: LearnedPlant, y: Tensor, u: Tensor, steps: int, policy: ActionMap | None
) -> Array:
    """Errors of predictions from all samples, scaled norms (steps + 1, n), with given actions or those of a policy."""
    scale = y.new_tensor(config.observation_scale)
    count = len(y) - steps
    predicted, found = y[:count], [y.new_zeros(y[:count].shape[:-1])]
    with torch.no_grad():
        for k in range(steps):
            action = u[k : k + count] if policy is None else policy(predicted)
            predicted = learned.transition(predicted, action)
            found.append(((predicted - y[k + 1 : k + 1 + count]) / scale).norm(dim=-1))
    return torch.stack(found).flatten(1).numpy()
