"""A learned adversary: its game, that it learns where a worst case is known, and that it stays what it was on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from robustnn.closedloop import (
    AdversarySettings,
    AdversaryVecEnv,
    LearnedAdversary,
    TorchVecEnv,
    UniformBall,
    evaluate,
    evaluate_env,
    rollout,
    start_states,
    train_adversary,
)
from robustnn.closedloop.ball import Ball
from robustnn.closedloop.learned import learned_adversary
from robustnn.closedloop.transitions import LEARNING_SEEDS
from robustnn.envs import DoubleIntegrator, Pendulum
from robustnn.errors import CheckpointError, InvalidArgumentError, ShapeError
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap
from robustnn.policies.normalization import Normalization
from tests.closedloop.plants import LinearPlant, error_gradients, linear_policy

SHORT = AdversarySettings(timesteps=256, n_envs=16, n_steps=8, minibatches=2, n_epochs=1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adversary(n_y: int = 3, gain: float = 4.0, **settings: Any) -> LearnedAdversary:
    g = torch.Generator().manual_seed(n_y)
    weights = (torch.randn(8, n_y, generator=g), gain * torch.randn(n_y, 8, generator=g))
    ones = torch.ones(n_y)
    norm = Normalization(
        torch.randn(n_y, generator=g).double(), torch.rand(n_y, generator=g).double() + 0.5, 10.0
    )
    network = ActionMap(ExplicitMLP(weights, (torch.zeros(8), None), "tanh"), norm, -ones, ones)
    return LearnedAdversary(settings.pop("eps", 0.2), network, **settings)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", [None, (1.0, 0.5, 2.0)])
def test_errors_lie_in_the_ball_and_reach_its_surface(norm: Any, scale: Any) -> None:
    plant = Pendulum()
    attack = adversary(norm=norm, scale=scale)
    start = start_states(plant, range(20), dtype=torch.float64)
    run = rollout(plant, lambda y: -y[..., 1:2], start, steps=50, perturbation=attack)
    length = attack.ball.length((run.perturbed - run.observations) / torch.tensor(scale or (1.0,) * 3))
    assert length.max() <= 0.2 * (1 + 1e-14) and length.max() >= 0.2 * (1 - 1e-14)


def test_the_error_depends_on_the_true_observation_alone() -> None:
    plant, attack = Pendulum(), adversary()
    start = start_states(plant, range(5), dtype=torch.float64)
    run = rollout(plant, lambda y: -y[..., 1:2], start, steps=20, perturbation=attack)
    z = attack.network.to(dtype=torch.float64)(run.observations)
    expected = run.observations + attack.ball.project(0.2 * z)
    torch.testing.assert_close(run.perturbed, expected, rtol=0, atol=1e-14)
    whole = evaluate(lambda y: -y[..., 1:2], plant, attack, episodes=7, dtype=torch.float32)
    alone = evaluate(lambda y: -y[..., 1:2], plant, attack, seeds=(6, 2), batch=1, dtype=torch.float32)
    np.testing.assert_array_equal(alone.returns, whole.returns[[6, 2]])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_game_is_the_victims_with_errors_and_the_opposite_reward(norm: Any) -> None:
    plant, ball = Pendulum(), Ball(0.3, norm, (1.0, 2.0, 0.5))
    policy = lambda y: (-2.0 * y[..., 1:2] - 0.4 * y[..., 2:3]).clamp(-1, 1)  # noqa: E731
    game, free = AdversaryVecEnv(TorchVecEnv(plant, 6), policy, ball), TorchVecEnv(plant, 6)
    for env in (game, free):
        env.seed(3)
    observation = game.reset()
    np.testing.assert_array_equal(observation, free.reset())
    generator = np.random.default_rng(0)
    ends = 0
    for _ in range(plant.horizon + 5):
        z = generator.uniform(-1.5, 1.5, (6, 3)).astype(np.float32)
        delta = ball.to_observation(ball.project(0.3 * torch.from_numpy(z).clamp(-1, 1)))
        action = policy(torch.from_numpy(observation) + delta).numpy()
        observation, reward, done, infos = game.step(z)
        expected, raw, free_done, free_infos = free.step(action)
        np.testing.assert_allclose(observation, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reward, -raw, rtol=1e-4, atol=1e-5)
        assert done.tolist() == free_done.tolist()
        for one, other in zip(infos, free_infos, strict=True):
            assert ("terminal_observation" in one) == ("terminal_observation" in other)
            ends += "terminal_observation" in one
    assert ends == 6


def test_it_learns_the_worst_case_of_a_linear_loop() -> None:
    """Returns are linear in the errors, so the worst constant one is known: it must find most of its effect."""
    plant, eps = LinearPlant(), 0.5
    gradients = error_gradients(plant.horizon)
    worst = eps * float(torch.linalg.vector_norm(gradients, dim=-1).sum())
    constant = eps * float(torch.linalg.vector_norm(gradients.sum(0)))
    settings = AdversarySettings(
        timesteps=12_000, n_envs=32, n_steps=24, n_epochs=4, learning_rate=1e-2, discount=0.99
    )
    learned = train_adversary(linear_policy, plant, eps, settings=settings)
    seeds = range(1000, 1064)
    clean = evaluate(linear_policy, plant, seeds=seeds, dtype=torch.float64).mean
    noise = evaluate(linear_policy, plant, UniformBall(eps), seeds=seeds, dtype=torch.float64).mean
    attacked = evaluate(linear_policy, plant, learned, seeds=seeds, dtype=torch.float64).mean
    assert clean - worst <= attacked < min(clean, noise) - 0.6 * constant


def test_gymnasium_environments_and_discrete_victims() -> None:
    """The policy balances the pole; the adversary learns to make it fall sooner than noise does."""
    hold = torch.tensor([[0.0, 0.0, -1.0, -0.3], [0.0, 0.0, 1.0, 0.3]])
    policy = ExplicitMLP((hold,), (None,), "identity")
    settings = AdversarySettings(timesteps=6_000, n_envs=4, n_steps=128, learning_rate=5e-3, n_epochs=5)
    learned = train_adversary(policy, "CartPole-v1", 0.1, norm="linf", settings=settings)
    assert learned.timesteps >= 6_000 and learned.budget(500).collected == learned.timesteps
    noise = evaluate_env(policy, "CartPole-v1", UniformBall(0.1, "linf"), episodes=8)
    attacked = evaluate_env(policy, "CartPole-v1", learned, episodes=8)
    assert attacked.mean < 0.7 * noise.mean


def test_kinds_of_environments() -> None:
    policy = lambda y: -y[..., 1:2]  # noqa: E731
    vec = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * 2))
    mean = vec.obs_rms.mean.copy()
    for env in (
        Pendulum(),
        "Pendulum-v1",
        lambda: gymnasium.make("Pendulum-v1"),
        vec,
        TorchVecEnv(Pendulum(), 4),
    ):
        learned = train_adversary(policy, env, 0.1, settings=SHORT)  # type: ignore[arg-type]
        assert learned.network.network.in_features == learned.network.network.out_features == 3
        assert learned.network.normalization is not None
    np.testing.assert_array_equal(vec.obs_rms.mean, mean)
    vec.close()


def test_one_seed_is_one_adversary() -> None:
    policy = lambda y: -y[..., 1:2]  # noqa: E731
    first, again, other = (
        train_adversary(policy, Pendulum(), 0.1, settings=replace(SHORT, seed=seed)).network.network_sha256
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("scale", [None, (1.0, 0.5, 2.0)])
def test_saved_adversaries_come_back_to_the_last_bit(tmp_path: Any, scale: Any) -> None:
    attack = adversary(norm="linf", scale=scale, timesteps=77)
    path = tmp_path / "adversary.npz"
    attack.save(path)
    again = LearnedAdversary.load(path)
    assert again.describe() == attack.describe() == json.loads(json.dumps(attack.describe()))
    policy = lambda y: -y[..., 1:2]  # noqa: E731
    returns = [
        evaluate(policy, Pendulum(), a, episodes=4).returns for a in (attack, again, replace(again, eps=0.3))
    ]
    np.testing.assert_array_equal(returns[0], returns[1])
    assert (returns[1] != returns[2]).all()
    trained = train_adversary(policy, Pendulum(), 0.1, settings=SHORT)
    trained.save(path)
    assert LearnedAdversary.load(path).describe() == trained.describe()
    assert [p.name for p in tmp_path.iterdir()] == ["adversary.npz"]


def test_broken_files_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "adversary.npz"
    adversary().save(path)
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", header=np.array(json.dumps({"format": "x"})))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, header=np.array([{"a": 1}], dtype=object))
    for content in (b"", b"abc", whole[:-40], whole[: len(whole) // 2], (tmp_path / "other.npz").read_bytes(),
                    pickled.read_bytes()):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="^path"):
            LearnedAdversary.load(path)
    with pytest.raises(CheckpointError, match="^path"):
        LearnedAdversary.load(tmp_path / "missing.npz")


BAD: dict[str, Any] = {
    "eps": (lambda: adversary(eps=-1.0), InvalidArgumentError, "eps"),
    "norm": (lambda: adversary(norm="l1"), InvalidArgumentError, "norm"),
    "network": (lambda: LearnedAdversary(0.1, lambda y: y), InvalidArgumentError, "network"),  # type: ignore
    "sizes": (
        lambda: LearnedAdversary(0.1, ActionMap(ExplicitMLP((torch.ones(2, 3),), (None,), "identity"))),
        ShapeError, "network",
    ),
    "other plant": (
        lambda: evaluate(lambda y: y[..., :1], DoubleIntegrator(), adversary(), episodes=1), ShapeError, "perturbation",
    ),
    "scale": (
        lambda: evaluate(lambda y: y[..., :1], Pendulum(), adversary(scale=(1.0,)), episodes=1), ShapeError, "scale",
    ),
    "no environment": (lambda: train_adversary(lambda y: y, 3, 0.1), InvalidArgumentError, "env"),  # type: ignore
    "no policy": (lambda: train_adversary(3, Pendulum(), 0.1), InvalidArgumentError, "policy"),
    "settings": (lambda: train_adversary(lambda y: y, Pendulum(), 0.1, settings={}), InvalidArgumentError, "settings"),  # type: ignore
    "timesteps": (lambda: AdversarySettings(timesteps=0), InvalidArgumentError, "timesteps"),
    "discount": (lambda: AdversarySettings(discount=1.5), InvalidArgumentError, "discount"),
    "train norm": (lambda: train_adversary(lambda y: y, Pendulum(), 0.1, norm="l1"), InvalidArgumentError, "norm"),  # type: ignore
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_name_the_argument(case: str) -> None:
    call, error, name = BAD[case]
    with pytest.raises(error, match=f"^{name}"):
        call()


def test_of_several_trainings_the_most_damaging_is_kept_at_the_size_asked_for() -> None:
    plant, trials = Pendulum(horizon=30), 6

    def policy(observation: torch.Tensor) -> torch.Tensor:
        return -4.0 * observation[..., 1:2] - observation[..., 2:]

    sizes = (0.5, 1.0, 4.0)
    settings: dict[str, Any] = {"timesteps": 256, "seed": 3}
    kept = learned_adversary(0.2, policy, plant, sizes=sizes, trials=trials, **settings)
    each = [
        replace(train_adversary(policy, plant, 0.2 * k, settings=AdversarySettings(**settings)), eps=0.2)
        for k in sizes
    ]
    seeds = range(4 * LEARNING_SEEDS, 4 * LEARNING_SEEDS + trials)
    returns = [evaluate(policy, plant, one, seeds=seeds, dtype=torch.float32).mean.item() for one in each]
    assert len(set(returns)) == len(sizes)
    chosen = each[int(np.argmin(returns))]
    same = zip(kept.network.network.weights, chosen.network.network.weights, strict=True)
    assert kept.eps == 0.2 and all(torch.equal(a, b) for a, b in same)
    assert kept.timesteps == sum(one.timesteps for one in each) + len(sizes) * trials * plant.horizon
    alone = learned_adversary(0.2, policy, plant, sizes=(1.0,), **settings)
    assert alone.timesteps == each[1].timesteps
    with pytest.raises(InvalidArgumentError, match="sizes: expected at least one"):
        learned_adversary(0.2, policy, plant, sizes=(), **settings)
    with pytest.raises(InvalidArgumentError, match="sizes"):
        learned_adversary(0.2, policy, plant, sizes=(-1.0,), **settings)
