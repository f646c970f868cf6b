"""Any gymnasium environment against plain loops over single environments."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import vector as wrappers
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from robustnn.closedloop import (
    Delay,
    EvaluationResult,
    GaussianNoise,
    MarginAttack,
    MaximalActionDifference,
    NoPerturbation,
    TorchVecEnv,
    TrajectoryAttack,
    UniformBall,
    evaluate,
    evaluate_env,
)
from robustnn.closedloop.decision import Decision
from robustnn.closedloop.faults import Bias, FaultSet, Gain, WhiteNoise
from robustnn.closedloop.padded import padded
from robustnn.closedloop.perturb import Loop
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError, UnsupportedSpaceError
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies import deploy

SWING_UP = "robustnn.envs:robustnn/PendulumSwingUp-v0"
MUJOCO = ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(n_in: int, n_out: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> ExplicitMLP:
    g = torch.Generator().manual_seed(seed)
    weights = (torch.randn(16, n_in, generator=g), torch.randn(n_out, 16, generator=g))
    biases = (torch.randn(16, generator=g), torch.zeros(n_out))
    return ExplicitMLP(tuple(w.to(dtype) for w in weights), tuple(b.to(dtype) for b in biases), "tanh")


def plain(env: gymnasium.Env, act: Any, seed: int, steps: int) -> tuple[float, int, bool]:
    """One episode as everybody would write it."""
    observation, _ = env.reset(seed=seed)
    total, length, terminated = 0.0, 0, False
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total, length = total + float(reward), length + 1
        if terminated or truncated:
            break
    return total, length, terminated


def of_one(policy: Any, space: spaces.Space) -> Any:
    """A policy of tensors for a single observation."""

    def act(observation: np.ndarray) -> Any:
        output = padded(policy)(torch.as_tensor(observation, dtype=torch.float32)[None])[0].numpy()
        if isinstance(space, spaces.Discrete):
            return int(output.argmax())
        return np.clip(output, space.low, space.high)

    return act


@pytest.mark.parametrize(
    ("name", "n_in", "n_out"), [("CartPole-v1", 4, 2), ("Pendulum-v1", 3, 1), (SWING_UP, 3, 1)]
)
def test_episodes_are_those_of_a_plain_loop(name: str, n_in: int, n_out: int) -> None:
    policy, seeds = network(n_in, n_out, seed=3), (5, 0, 11, 2, 7)
    result = evaluate_env(policy, name, seeds=seeds, n_envs=2)
    single = gymnasium.make(name)
    rows = [plain(single, of_one(policy, single.action_space), seed, 1000) for seed in seeds]
    assert list(zip(result.returns, result.lengths, result.terminated, strict=True)) == rows
    assert result.seeds.tolist() == list(seeds) and result.perturbation == {"name": "none"}
    assert (
        len(set(result.returns)) == len(set(result.lengths)) == 1
        or name != "CartPole-v1"
        or len(set(rows)) > 1
    )


PERTURBATIONS = [
    NoPerturbation(), GaussianNoise(0.1), UniformBall(0.2, "linf"), Delay(2), WhiteNoise(0.1),
    FaultSet(observation=[Bias(0.2, random=True)], action=[Gain(0.5, 0.9)]),
]  # fmt: skip


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: p.name)
def test_one_seed_is_one_episode_to_the_last_bit_whatever_the_copies(perturbation: Any) -> None:
    policy = network(3, 1)
    whole = evaluate_env(policy, "Pendulum-v1", perturbation, episodes=7, steps=60)
    for n_envs in (1, 3):
        parts = evaluate_env(policy, "Pendulum-v1", perturbation, seeds=(6, 0, 3), n_envs=n_envs, steps=60)
        np.testing.assert_array_equal(parts.returns, whole.returns[[6, 0, 3]])
    assert len(set(whole.returns)) == 7


@pytest.mark.parametrize(
    "attack",
    [MaximalActionDifference(0.2, iterations=5), MaximalActionDifference(0.2, "linf", iterations=5)],
)
def test_attacks_do_not_depend_on_the_copies_and_report_their_convergence(attack: Any) -> None:
    policy = network(3, 1, dtype=torch.float64)
    whole = evaluate_env(policy, "Pendulum-v1", attack, episodes=5, steps=20)
    parts = evaluate_env(policy, "Pendulum-v1", attack, episodes=5, steps=20, n_envs=2)
    np.testing.assert_allclose(whole.returns, parts.returns, rtol=1e-6)  # states are float32
    (convergence,) = whole.convergence
    assert convergence.values.shape == (20, 6)
    assert (whole.returns != evaluate_env(policy, "Pendulum-v1", episodes=5, steps=20).returns).all()


def test_perturbations_are_those_of_the_plant_with_equations() -> None:
    """The same policy, starts and noise in both evaluations: the environment computes in float64 and shows float32."""
    policy = network(3, 1, dtype=torch.float64)
    plant = Pendulum()

    class FromOurStart(gymnasium.Wrapper):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            from robustnn.closedloop import start_states

            start = start_states(plant, [seed or 0], dtype=torch.float64)[0].numpy()
            return self.env.reset(seed=seed, options={"state": start})

    for perturbation in (NoPerturbation(), WhiteNoise(0.1), Delay(3), MaximalActionDifference(0.1)):
        make = lambda: FromOurStart(gymnasium.make(SWING_UP))  # noqa: E731
        there = evaluate(policy, plant, perturbation, seeds=(4, 1), steps=15)
        here = evaluate_env(policy, make, perturbation, seeds=(4, 1), steps=15)
        np.testing.assert_allclose(here.returns, there.returns, rtol=2e-5)


def test_parameters_of_our_plants_can_be_changed_and_of_others_not() -> None:
    heavy = FaultSet(parameters={"mass": 1.5})
    policy = network(3, 1)
    changed = evaluate_env(policy, SWING_UP, heavy, episodes=2, steps=30)
    assert (changed.returns != evaluate_env(policy, SWING_UP, episodes=2, steps=30).returns).all()
    with pytest.raises(InvalidArgumentError, match="^perturbation"):
        evaluate_env(policy, "Pendulum-v1", heavy, episodes=1)
    with pytest.raises(InvalidArgumentError, match="^env"):
        evaluate_env(policy, DummyVecEnv([lambda: gymnasium.make(SWING_UP)]), heavy, episodes=1)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_models_of_discrete_actions_act_as_predict_does(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    result = evaluate_env(model, "CartPole-v1", episodes=4)
    single = gymnasium.make("CartPole-v1")
    for k in range(4):
        expected = plain(single, lambda o: int(model.predict(o, deterministic=True)[0]), k, 1000)
        assert (result.returns[k], result.lengths[k], result.terminated[k]) == expected


def normalised_model() -> tuple[PPO, VecNormalize]:
    venv = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * 3))
    model = PPO("MlpPolicy", venv, seed=1, device="cpu", n_steps=40, batch_size=40, n_epochs=1)
    model.learn(240)
    return model, venv


def test_normalised_models_see_frozen_statistics_and_raw_perturbations() -> None:
    model, venv = normalised_model()
    mean, var = venv.obs_rms.mean.copy(), venv.obs_rms.var.copy()
    assert np.ptp(var) > 0.1

    def act(observation: np.ndarray) -> np.ndarray:
        shown = venv.normalize_obs(observation + np.float32(0.2))
        return model.predict(shown, deterministic=True)[0]

    single = gymnasium.make("Pendulum-v1")
    rows = [plain(single, act, seed, 60)[0] for seed in (3, 9, 4, 1)]
    for env in (
        "Pendulum-v1",
        venv,
        VecMonitor(venv),
        SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 2),
    ):
        result = evaluate_env(model, env, Bias(0.2), seeds=(3, 9, 4, 1), steps=60)
        np.testing.assert_allclose(result.returns, rows, rtol=1e-4)  # of float32 actions and rewards
        assert not result.terminated.any() and (result.lengths == 60).all()
    deployed = evaluate_env(deploy_frozen(model, venv), "Pendulum-v1", Bias(0.2), seeds=(3, 9), steps=60)
    np.testing.assert_allclose(deployed.returns, result.returns[:2], rtol=1e-4)
    np.testing.assert_array_equal(venv.obs_rms.mean, mean)
    np.testing.assert_array_equal(venv.obs_rms.var, var)


def deploy_frozen(model: PPO, venv: VecNormalize) -> Any:
    venv.training = False
    return deploy(model, venv)


@pytest.mark.parametrize("name", MUJOCO)
def test_mujoco(name: str) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")
    with gymnasium.make(name) as single:
        n_in, n_out = single.observation_space.shape[0], single.action_space.shape[0]
        policy = network(n_in, n_out)
        seeds = (4, 0, 2)
        noisy = evaluate_env(policy, name, WhiteNoise(0.05), seeds=seeds, steps=40)
        alone = evaluate_env(policy, name, WhiteNoise(0.05), seeds=seeds[::-1], steps=40, n_envs=1)
        np.testing.assert_array_equal(noisy.returns, alone.returns[::-1])
        clean = evaluate_env(policy, name, seeds=seeds, steps=40)
        rows = [plain(single, of_one(policy, single.action_space), seed, 40) for seed in seeds]
        assert [row[1] for row in rows] == clean.lengths.tolist()
        np.testing.assert_allclose(clean.returns, [row[0] for row in rows], rtol=1e-9)
    assert (noisy.returns != clean.returns).all()


def test_processes_give_the_same_episodes() -> None:
    policy = network(4, 2, seed=3)
    here = evaluate_env(policy, "CartPole-v1", GaussianNoise(0.1), episodes=3)
    there = evaluate_env(policy, "CartPole-v1", GaussianNoise(0.1), episodes=3, n_envs=2, processes=True)
    np.testing.assert_array_equal(here.returns, there.returns)


def test_returns_and_ends_are_written_and_read(tmp_path: Any) -> None:
    result = evaluate_env(network(4, 2, seed=3), "CartPole-v1", episodes=3)
    assert result.terminated.all()
    result.to_csv(tmp_path / "r.csv")
    again = EvaluationResult.from_csv(tmp_path / "r.csv")
    assert again.to_rows() == result.to_rows() and again.terminated.tolist() == [True] * 3
    cut = evaluate_env(network(4, 2, seed=3), "CartPole-v1", episodes=3, steps=4)
    assert not cut.terminated.any() and cut.lengths.tolist() == [4] * 3


def test_choices_of_every_discrete_space() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3, -0.2, 0.4], [2.0, 1.0, -1.0, 0.5, 0.4]])
    assert Decision(spaces.Discrete(5))(scores).tolist() == [1, 0]
    assert Decision(spaces.Discrete(5, start=-2))(scores).tolist() == [-1, -2]
    assert Decision(spaces.MultiDiscrete([2, 3]))(scores).tolist() == [[1, 2], [0, 1]]
    assert Decision(spaces.MultiBinary(5))(scores).tolist() == [[1, 1, 1, 0, 1], [1, 1, 0, 1, 1]]
    box = spaces.Box(np.float32([-1, -2, 0, 0, 0]), np.float32([0, 0.5, 1, 1, 0.2]))
    np.testing.assert_array_equal(Decision(box)(scores)[0], np.float32([0, 0.5, 0.3, 0, 0.2]))
    with pytest.raises(UnsupportedSpaceError, match="^action_space"):
        Decision(spaces.Text(3))


def margin_process(choices: tuple[int, ...], weight: torch.Tensor, attack: MarginAttack) -> Any:
    policy = lambda y: y @ weight.T  # noqa: E731
    plant: Any = type("Sizes", (), {"n_y": weight.shape[1], "n_u": weight.shape[0]})()
    loop = Loop(plant, policy, 1, (6,), tuple(range(6)), torch.float64, torch.device("cpu"), choices)
    return policy, attack.start(loop)


def test_the_margin_attack_finds_the_worst_margin_of_linear_scores() -> None:
    """Of two linear scores the margin falls by eps times the norm of the difference of their gradients."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 4, dtype=torch.float64, generator=g)
    observation = torch.randn(6, 4, dtype=torch.float64, generator=g)
    for norm, dual in (("l2", 2), ("linf", 1)):
        policy, process = margin_process((2,), weight, MarginAttack(0.3, norm, iterations=80))  # type: ignore[arg-type]
        seen = process(0, observation, observation)
        before, after = policy(observation), policy(seen)
        chosen = before.argmax(-1, keepdim=True)
        margin = after.gather(-1, chosen) - after.gather(-1, 1 - chosen)
        worst = before.gather(-1, chosen) - before.gather(-1, 1 - chosen)
        worst = worst - 0.3 * torch.linalg.vector_norm(weight[0] - weight[1], ord=dual)
        torch.testing.assert_close(margin, worst, rtol=1e-9, atol=1e-9)
    _, process = margin_process((1, 1), weight, MarginAttack(0.3, "linf"))
    after = process(0, observation, observation) @ weight.T
    both = (observation @ weight.T).abs() - 0.3 * weight.abs().sum(1)
    signed = torch.where(observation @ weight.T > 0, after, -after)
    assert (signed.sum(-1) >= both.sum(-1) - 1e-9).all() and (
        signed.sum(-1) < (observation @ weight.T).abs().sum(-1)
    ).all()


def test_the_margin_attack_shortens_episodes_more_than_noise_of_its_size() -> None:
    hold = torch.tensor([[0.0, 0.0, -1.0, -0.3], [0.0, 0.0, 1.0, 0.3]])  # push to where the pole falls
    policy = ExplicitMLP((hold,), (None,), "identity")
    attacked = evaluate_env(policy, "CartPole-v1", MarginAttack(0.15, iterations=5), episodes=4)
    noisy = evaluate_env(policy, "CartPole-v1", UniformBall(0.15), episodes=4)
    assert attacked.mean < 0.7 * noisy.mean and attacked.lengths.max() < 500
    (convergence,) = attacked.convergence
    assert convergence.values.shape == (attacked.lengths.max(), 6)
    with pytest.raises(UnsupportedSpaceError, match="^perturbation"):
        evaluate_env(network(3, 1), "Pendulum-v1", MarginAttack(0.1), episodes=1)


POLICY = network(3, 1)
NATIVE = "CartPole-v1"
BAD: dict[str, Any] = {
    "trajectory": ({"perturbation": TrajectoryAttack(0.1)}, InvalidArgumentError, "perturbation"),
    "perturbation": ({"perturbation": "noise"}, InvalidArgumentError, "perturbation"),
    "no policy": ({"policy": 3}, InvalidArgumentError, "policy"),
    "shape": ({"policy": network(3, 2)}, ShapeError, r"policy\(observation\)"),
    "no tensor": ({"policy": lambda y: y[:, :1].numpy()}, InvalidArgumentError, "policy"),
    "nan": ({"policy": lambda y: y[:, :1] / 0.0 * 0.0}, NonFiniteError, r"policy\(observation\)"),
    "no environment": ({"env": 3}, InvalidArgumentError, "env"),
    "an environment": ({"env": gymnasium.make("Pendulum-v1")}, InvalidArgumentError, "env"),
    "makes none": ({"env": lambda: 3}, InvalidArgumentError, "env"),
    "one seed for all": ({"env": TorchVecEnv(Pendulum(), 2)}, InvalidArgumentError, "env"),
    "frames": (
        {"env": VecFrameStack(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), 2)}, InvalidArgumentError, "env",
    ),
    "native vector": (
        {"env": gymnasium.make_vec(NATIVE, 2, vectorization_mode="vector_entry_point")}, InvalidArgumentError, "env",
    ),
    "no limit": (
        {"env": lambda: gymnasium.make("Pendulum-v1").unwrapped.__class__()}, InvalidArgumentError, "steps",
    ),
    "no copies": ({"n_envs": 0}, InvalidArgumentError, "n_envs"),
    "no steps": ({"steps": 0}, InvalidArgumentError, "steps"),
    "twice": ({"seeds": (1, 1), "episodes": None}, InvalidArgumentError, "seeds"),
    "actions": (
        {"policy": network(4, 2), "env": NATIVE, "perturbation": FaultSet(action=[Gain(0.5)])},
        UnsupportedSpaceError, "action_space",
    ),
    "scale": ({"perturbation": UniformBall(0.1, "l2", (1.0, 1.0))}, ShapeError, "scale"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_name_the_argument(case: str) -> None:
    change, error, name = BAD[case]
    with pytest.raises(error, match=f"^{name}"):
        evaluate_env(**{"policy": POLICY, "env": "Pendulum-v1", "episodes": 2, **change})


def test_vector_wrappers_that_may_change_rewards_are_refused() -> None:
    def copies() -> SyncVectorEnv:
        return SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 2)

    def policy(y: torch.Tensor) -> torch.Tensor:
        return -y[:, 1:2]

    plain = evaluate_env(policy, copies(), episodes=2, steps=5).returns
    same = evaluate_env(policy, wrappers.RecordEpisodeStatistics(copies()), episodes=2, steps=5).returns
    assert (plain == same).all()
    for wrap in (wrappers.NormalizeReward, wrappers.NormalizeObservation):
        with pytest.raises(InvalidArgumentError, match="env: expected no vector wrapper"):
            evaluate_env(policy, wrap(copies()), episodes=2, steps=5)


def test_rewards_that_are_no_numbers_are_an_error() -> None:
    def make() -> gymnasium.Env:
        return gymnasium.wrappers.TransformReward(gymnasium.make("Pendulum-v1"), lambda _: math.nan)

    def policy(y: torch.Tensor) -> torch.Tensor:
        return -y[:, 1:2]

    with pytest.raises(
        NonFiniteError, match="reward: expected finite numbers only, got NaN or infinity at step 0"
    ):
        evaluate_env(policy, make, episodes=2, steps=5)

    class Broken(Pendulum):
        def reward(self, *step: torch.Tensor) -> torch.Tensor:
            return super().reward(*step) * math.nan

    with pytest.raises(NonFiniteError, match="rewards: expected finite"):
        evaluate(policy, Broken(), episodes=2, steps=5)
