"""Smoothness penalties: right values, the exact gradient in the loss, every algorithm, and nothing left over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from robustnn.errors import InvalidArgumentError, ShapeError, UnsupportedSpaceError
from robustnn.params import ExplicitMLP
from robustnn.policies import (
    ActionMap,
    FreezeWeights,
    LBDNActorCriticPolicy,
    LBDNSACPolicy,
    LBDNTD3Policy,
    action_map,
)
from robustnn.training import CAPS, SARegulariser, SmoothnessPenalty, SpectralActorCriticPolicy
from robustnn.training.smoothness import MeanAction, penalty_from_config
from tests.policies.toy import OBSERVATIONS, toy_model, toy_vec_env

EPS64 = torch.finfo(torch.float64).eps
OFF_POLICY = {
    "learning_starts": 32,
    "batch_size": 32,
    "train_freq": 1,
    "gradient_steps": 1,
    "learning_rate": 3e-3,
}
ON_POLICY = {"n_steps": 64, "learning_rate": 3e-3}
ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "PPO": (PPO, LBDNActorCriticPolicy, {**ON_POLICY, "batch_size": 32, "n_epochs": 4}),
    "A2C": (A2C, LBDNActorCriticPolicy, {**ON_POLICY, "n_steps": 8}),
    "SAC": (SAC, LBDNSACPolicy, OFF_POLICY),
    "TD3": (TD3, LBDNTD3Policy, OFF_POLICY),
}
BOTH = (CAPS(temporal=0.5, spatial=0.5, sigma=0.3), SARegulariser(0.5, 0.3, divergence="l2", iterations=2))


def agent(name: str, mlp: bool = False, env: Any = None, **settings: Any) -> Any:
    algorithm, policy, usual = ALGORITHMS[name]
    kwargs: dict[str, Any] = {"net_arch": [8, 8]}
    if not mlp:
        kwargs["lipschitz"] = 8.0
    settings = {"device": "cpu", "seed": 0, **usual, **settings}
    return algorithm(
        "MlpPolicy" if mlp else policy,
        toy_vec_env() if env is None else env,
        policy_kwargs=kwargs,
        **settings,
    )


def linear(matrix: Tensor, std: Tensor | None = None) -> MeanAction:
    return MeanAction(ActionMap(ExplicitMLP((matrix,), (None,), "identity")), std)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def snapshot(model: Any) -> list[Tensor]:
    return [p.detach().clone() for p in model.policy.parameters()]


def action_change(model: Any, size: float = 0.3) -> float:
    """Mean change of the deterministic action under random shifts."""
    x = torch.randn(512, 3, generator=generator(5), dtype=torch.float64)
    shift = size * torch.randn(512, 3, generator=generator(6), dtype=torch.float64)
    policy_map = MeanAction(action_map(model.policy))
    return float((policy_map(x) - policy_map(x + shift)).norm(dim=-1).mean())


def test_caps_of_a_linear_policy() -> None:
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    x = torch.zeros(5, 2, dtype=torch.float64)
    following = torch.tensor([[1.0, 1.0]], dtype=torch.float64).expand(5, 2)
    caps = CAPS(temporal=0.1)
    assert float(caps(linear(matrix), x, following, generator())) == pytest.approx(0.5, rel=4 * EPS64)
    caps = CAPS(spatial=2.0, sigma=0.1, scale=(1.0, 0.0001))
    x = torch.zeros(100_000, 2, dtype=torch.float64)
    # 2 * 3 * 0.1 * E|w|, up to the error of the mean.
    expected = 0.6 * (2 / np.pi) ** 0.5
    assert float(caps(linear(matrix), x, x, generator())) == pytest.approx(expected, abs=5 * 0.6 / 1e5**0.5)
    assert float(CAPS()(linear(matrix), x, x, generator())) == 0.0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_inner_maximum_of_a_linear_policy(norm: Any) -> None:
    matrix = torch.tensor([[3.0, -1.0], [0.5, 2.0], [1.0, 1.0]], dtype=torch.float64)
    scale = torch.tensor([2.0, 0.5], dtype=torch.float64)
    std = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    penalty = SARegulariser(0.7, 0.2, norm, scale.tolist(), iterations=60)
    x = torch.randn(64, 2, generator=generator(1), dtype=torch.float64)
    mean = linear(matrix, std)
    worst = penalty.worst(mean, x, generator())
    length = (worst / scale).norm(dim=-1) if norm == "l2" else (worst / scale).abs().amax(-1)
    assert float(length.max()) <= 0.2 * (1 + 8 * EPS64)
    weighted = matrix * scale / std[:, None]
    if norm == "l2":
        largest = 0.2 * float(torch.linalg.matrix_norm(weighted, 2))
    else:
        corners = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        largest = 0.2 * float((corners @ weighted.mT).norm(dim=-1).max())
    value = float(penalty(mean, x, x, generator()))
    assert value <= 0.7 * 0.5 * largest**2 * (1 + 16 * EPS64)
    if norm == "l2":
        # Every start ends at the maximum, to the accuracy of steps of a fixed length that keep the best iterate.
        assert value >= 0.7 * 0.5 * (0.99 * largest) ** 2
    random = 0.2 * torch.nn.functional.normalize(torch.randn(64, 2, generator=generator(2)).double(), dim=-1)
    moved = ((random * scale) @ matrix.mT / std).square().sum(-1).mean()
    assert value > 0.7 * 0.5 * float(moved)


class Gradients(BaseCallback):
    """Keeps the gradients of the first optimiser step."""

    def __init__(self, optimizer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.optimizer, self.kept = optimizer, {}

    def _on_training_start(self) -> None:
        self.handle = self.optimizer(self.model).register_step_pre_hook(self._keep)

    def _keep(self, *args: Any) -> None:
        if not self.kept:
            self.kept = {
                name: p.grad.clone() for name, p in self.model.policy.named_parameters() if p.grad is not None
            }

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.handle.remove()


@pytest.mark.parametrize("mlp", [False, True])
def test_the_gradient_is_that_of_loss_plus_penalty(mlp: bool) -> None:
    caps = CAPS(temporal=3.0)
    settings = {"n_steps": 64, "n_epochs": 1, "batch_size": 128, "max_grad_norm": 1e9}
    grads = []
    for penalties in ((), (caps,)):
        model = agent("PPO", mlp, **settings)
        keep = Gradients(lambda m: m.policy.optimizer)
        start = copy.deepcopy(model.policy)
        model.learn(128, callback=[SmoothnessPenalty(*penalties), keep])
        grads.append(keep.kept)
    buffer = model.rollout_buffer  # flattened by now: copies one after the other
    observations = torch.as_tensor(buffer.observations).reshape(2, 64, 3)
    starts = torch.as_tensor(buffer.episode_starts).T[:, 1:]
    named = dict(start.named_parameters())
    with torch.enable_grad():
        latent = start.mlp_extractor.policy_net(observations) if mlp else observations
        mean = start.action_net(latent)
        change = (mean[:, 1:] - mean[:, :-1]).norm(dim=-1)[starts == 0.0]
        assert len(change) == 2 * 63 - 2 * 3  # toy episodes have 20 steps
        expected = torch.autograd.grad(3.0 * change.mean(), list(named.values()), allow_unused=True)
    compared = 0
    for (name, _), gradient in zip(named.items(), expected, strict=True):
        if gradient is not None:
            size = max(float(gradient.abs().max()), float(grads[0][name].abs().max()))
            torch.testing.assert_close(
                grads[1][name] - grads[0][name],
                gradient,
                rtol=0,
                atol=100 * torch.finfo(torch.float32).eps * size,
            )
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_weight_training_is_unchanged(name: str) -> None:
    ends = []
    for callback in (None, SmoothnessPenalty(CAPS())):
        model = agent(name)
        model.learn(128 if "n_steps" in ALGORITHMS[name][2] else 48, callback=callback)
        ends.append(snapshot(model))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_penalties_make_policies_smoother(name: str, mlp: bool) -> None:
    changes = []
    for penalties in ((), BOTH):
        model = agent(name, mlp)
        model.learn(
            160 if "learning_starts" in ALGORITHMS[name][2] else 640,
            callback=[FreezeWeights(), SmoothnessPenalty(*penalties, batch_size=64)],
        )
        changes.append(action_change(model))
    assert changes[1] < 0.6 * changes[0]


def test_both_penalties_with_the_spectral_policy_and_vec_normalize() -> None:
    env = VecNormalize(toy_vec_env())
    model = toy_model(env, policy=SpectralActorCriticPolicy, policy_kwargs={"lipschitz": 4.0})
    penalty = SmoothnessPenalty(CAPS(0.1, 0.1), SARegulariser(0.1, 0.1))
    model.learn(64, callback=penalty)
    assert {"train/caps", "train/sa"} <= set(model.logger.name_to_value) and model.policy.bound().plain == 4.0
    off_policy = agent("SAC", env=VecNormalize(toy_vec_env()))
    off_policy.learn(96, callback=SmoothnessPenalty(*BOTH))


def test_pairs_are_successive_observations_of_one_episode() -> None:
    seen = []

    class Spy(CAPS):
        def __call__(self, mean: Any, observations: Tensor, following: Tensor, generator: Any) -> Tensor:
            seen.append((observations, following))
            return super().__call__(mean, observations, following, generator)

    model = agent("A2C", n_steps=50)
    callback = SmoothnessPenalty(Spy(temporal=0.1))
    model.learn(100, callback=callback)
    observations = model.rollout_buffer.observations.reshape(2, 50, 3)
    pairs = {(tuple(a.tolist()), tuple(b.tolist())) for a, b in zip(*seen[0], strict=True)}
    expected = {
        (tuple(copy[t].tolist()), tuple(copy[t + 1].tolist()))
        for copy in observations
        for t in range(49)
        if (t + 1) % 20  # observation 20 is the first of the second episode
    }
    assert pairs == expected


def test_options_are_saved_and_loaded(tmp_path: Path) -> None:
    model = agent("PPO")
    model.learn(128, callback=SmoothnessPenalty(*BOTH, batch_size=16, seed=3))
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=toy_vec_env(), device="cpu")
    callback = SmoothnessPenalty.from_model(loaded)
    assert callback.penalties == BOTH and callback.batch_size == 16 and callback.seed == 3
    loaded.learn(128, callback=callback, reset_num_timesteps=False)
    for penalty in BOTH:
        assert penalty_from_config(penalty.describe()) == penalty
    with pytest.raises(InvalidArgumentError, match="model: expected one that was trained with"):
        SmoothnessPenalty.from_model(agent("PPO"))


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps > 200:
            raise KeyboardInterrupt
        return True


def test_nothing_is_left_over() -> None:
    model = agent("PPO")
    model.learn(128, callback=SmoothnessPenalty(*BOTH))
    assert "zero_grad" not in vars(model.policy.optimizer)
    with pytest.raises(KeyboardInterrupt):
        model.learn(256, callback=[SmoothnessPenalty(*BOTH), Stop()])
    assert "zero_grad" in vars(model.policy.optimizer)
    assert "zero_grad" not in vars(copy.deepcopy(model.policy).optimizer)
    twin = agent("PPO")
    twin.set_parameters(copy.deepcopy(model.get_parameters()))  # not the same tensors of Adam
    ends = []
    for one in (model, twin):  # the later training has no penalty
        one.set_env(toy_vec_env())
        one.set_random_seed(1)
        one.learn(128)
        ends.append(snapshot(one))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert "zero_grad" not in vars(model.policy.optimizer)


def test_reproducible() -> None:
    ends = []
    for _ in range(2):
        model = agent("SAC")
        model.learn(96, callback=SmoothnessPenalty(*BOTH))
        ends.append(snapshot(model))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_mistakes() -> None:
    with pytest.raises(
        InvalidArgumentError, match="divergence: expected 'l2' for a policy whose standard deviation"
    ):
        agent("SAC").learn(64, callback=SmoothnessPenalty(SARegulariser(0.1, 0.1)))
    discrete = toy_vec_env(OBSERVATIONS, spaces.Discrete(3))
    with pytest.raises(UnsupportedSpaceError, match="action_space: expected a Box"):
        toy_model(discrete).learn(16, callback=SmoothnessPenalty(CAPS(0.1)))
    with pytest.raises(ShapeError, match="scale: expected 3 numbers"):
        agent("PPO").learn(64, callback=SmoothnessPenalty(CAPS(spatial=0.1, scale=(1.0, 2.0))))
    for wrong in (
        lambda: CAPS(-1.0),
        lambda: SARegulariser(0.1, -1.0),
        lambda: SARegulariser(0.1, 1.0, "l1"),
    ):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            wrong()
    with pytest.raises(InvalidArgumentError, match="penalty: expected a mapping"):
        penalty_from_config({"name": "none"})
    with pytest.raises(InvalidArgumentError, match="penalty 'caps': expected parameters"):
        penalty_from_config({"name": "caps", "eps": 1.0})


def test_trpo_is_refused() -> None:
    trpo = pytest.importorskip("sb3_contrib").TRPO
    with pytest.raises(InvalidArgumentError, match="got TRPO"):
        trpo("MlpPolicy", toy_vec_env(), device="cpu").learn(16, callback=SmoothnessPenalty(CAPS(0.1)))
