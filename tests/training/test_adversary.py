"""The adversary in the rollouts: errors inside the ball, stronger than noise, seeded, and every part of SB3 served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from robustnn.closedloop import TorchVecEnv
from robustnn.closedloop.faults import FaultSet, WhiteNoise
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError, RobustNNError, ShapeError, UnsupportedSpaceError
from robustnn.policies import FreezeWeights, LBDNActorCriticPolicy, LogLipschitz, action_map
from robustnn.training import FaultyVecEnv, ObservationAdversary
from tests.policies.toy import ACTIONS, toy_vec_env

EPS32 = float(np.finfo(np.float32).eps)
EPS, SCALE = 0.2, (1.0, 0.5, 4.0)
METHODS = ("uniform", "mad", "plant")


def pendulum(n: int = 16, horizon: int = 30) -> TorchVecEnv:
    return TorchVecEnv(Pendulum(horizon=horizon), n)


def adversary(
    method: Any = "mad", venv: VecEnv | None = None, eps: float = EPS, **options: Any
) -> ObservationAdversary:
    settings = {"scale": SCALE, "iterations": 4, "horizon": 4, **options}
    return ObservationAdversary(pendulum() if venv is None else venv, eps, method, **settings)


def agent(env: VecEnv, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    return PPO(
        policy, env, n_steps=16, batch_size=32, n_epochs=2, device="cpu", seed=0,
        policy_kwargs={"net_arch": [8, 8], "log_std_init": -1.0, **kwargs},
    )  # fmt: skip


def attached(env: ObservationAdversary, scale: float = 20.0) -> Any:
    """A model with actions of some size."""
    model = agent(env)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(scale)
    env.attach(model)
    return model


def errors(env: ObservationAdversary, seen: np.ndarray) -> np.ndarray:
    return seen.astype(np.float64) - env.true_observations


def lengths(delta: np.ndarray, norm: str, scale: Any = SCALE) -> np.ndarray:
    weighted = delta / np.asarray(scale)
    return np.linalg.norm(weighted, axis=1) if norm == "l2" else np.abs(weighted).max(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", METHODS)
def test_errors_stay_in_the_ball(method: str, norm: Any) -> None:
    env = adversary(method, norm=norm)
    model = attached(env)
    env.seed(0)
    seen, found = env.reset(), []
    for _ in range(64):
        # The sum is rounded to float32; an observation is at most 8 here.
        found.append(lengths(errors(env, seen), norm))
        assert found[-1].max() <= EPS + 2 * EPS32 * 8.0 / min(SCALE)
        seen, _, dones, infos = env.step(model.predict(seen)[0])
        for k in np.flatnonzero(dones):
            true, last = infos[k]["true_terminal_observation"], infos[k]["terminal_observation"]
            size = lengths((last.astype(np.float64) - true)[None], norm)[0]
            assert 0.0 < size <= EPS + 2 * EPS32 * 8.0 / min(SCALE)
    assert np.mean(found) > (0.5 if method == "uniform" else 0.9) * EPS


def test_gaussian_errors_have_the_size_asked_for() -> None:
    env = adversary("gaussian", pendulum(4096))
    env.seed(0)
    delta = errors(env, env.reset())
    squares = (delta / np.asarray(SCALE)) ** 2
    assert squares.sum(1).mean() == pytest.approx(EPS**2, rel=5 * (2 / 3 / 4096) ** 0.5)


def test_mad_moves_a_linear_policy_by_the_most_possible() -> None:
    env = adversary(iterations=30)
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": []}, device="cpu", seed=0)
    gain = np.array([0.01, -0.04, 0.03])
    with torch.no_grad():
        model.policy.action_net.weight.copy_(torch.as_tensor(gain[None]))
    env.attach(model)
    seen = env.reset()
    change = np.abs(errors(env, seen) @ gain)
    largest = EPS * np.linalg.norm(gain * np.asarray(SCALE))
    assert change.max() <= largest * (1 + 100 * EPS32)
    assert change.min() >= 0.99 * largest  # steps of a fixed length end near the top


@pytest.mark.parametrize("policy", ["MlpPolicy", LBDNActorCriticPolicy])
def test_mad_changes_actions_more_than_noise_of_the_same_size(policy: Any) -> None:
    changes = {}
    for method in ("uniform", "mad"):
        env = adversary(method, pendulum(128))
        model = agent(env, policy, **({} if policy == "MlpPolicy" else {"lipschitz": 5.0}))
        model.policy.load_state_dict({k: 3 * v if isinstance(v, torch.Tensor) and "net" in k else v
                                      for k, v in model.policy.state_dict().items()})  # fmt: skip
        env.attach(model)
        env.seed(0)
        policy_map = action_map(model.policy)
        seen = torch.as_tensor(env.reset()).double()
        true = torch.as_tensor(env.true_observations).double()
        delta = seen - true
        delta *= EPS / torch.as_tensor(lengths(delta.numpy(), "l2"))[:, None]  # noise of full length
        changes[method] = float((policy_map(true + delta) - policy_map(true)).abs().mean())
    assert changes["mad"] > 1.2 * changes["uniform"] > 0.0


def balancing(env: ObservationAdversary | TorchVecEnv) -> Any:
    """A linear policy that holds the pendulum upright: torque 2 (-6 sin(theta) - 2 omega)."""
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": []}, device="cpu", seed=0)
    with torch.no_grad():
        model.policy.action_net.weight.copy_(torch.tensor([[0.0, -6.0, -2.0]]))
        model.policy.action_net.bias.zero_()
    return model


def test_the_attack_through_the_plant_costs_most() -> None:
    returns = {}
    for method in ("none", *METHODS):
        env = adversary(
            "uniform" if method == "none" else method, pendulum(32, 60), 0.0 if method == "none" else 0.06,
            scale=None, horizon=12, iterations=6,
        )  # fmt: skip
        model = balancing(env)
        env.attach(model)
        env.seed(0)
        env.set_options({"state": [0.05, 0.0]})
        seen, total = env.reset(), 0.0
        for _ in range(59):
            seen, rewards, _, _ = env.step(model.predict(seen, deterministic=True)[0])
            total += float(rewards.mean())
        returns[method] = -total
    assert returns["none"] < returns["uniform"] < returns["mad"]
    assert returns["plant"] > 1.2 * returns["mad"]


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_one_sequence(method: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        env = adversary(method)
        model = attached(env)
        env.seed(seed)
        seen = [env.reset()]
        for _ in range(35):
            seen.append(env.step(model.predict(seen[-1], deterministic=True)[0])[0])
        runs.append(np.stack(seen))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_shares_of_episodes_and_steps() -> None:
    env = adversary("uniform", pendulum(400, 20), episodes=0.3, steps=0.5)
    env.seed(0)
    hit = []
    seen = env.reset()
    for _ in range(20):
        hit.append(lengths(errors(env, seen), "l2") > 0.0)
        seen = env.step(np.zeros((400, 1)))[0]
    hits = np.stack(hit)
    attacked = hits.any(0)
    assert attacked.mean() == pytest.approx(0.3, abs=5 * (0.21 / 400) ** 0.5)
    assert hits[:, attacked].mean() == pytest.approx(0.5, abs=5 * 0.5 / (20 * attacked.sum()) ** 0.5)


def test_ramp_and_set_eps() -> None:
    env = adversary("uniform", pendulum(10, 100), ramp=(100, 300))
    env.reset()
    sizes = []
    for _ in range(40):
        seen = env.step(np.zeros((10, 1)))[0]
        sizes.append((env.eps, lengths(errors(env, seen), "l2").max()))
    assert [eps for eps, _ in sizes[:10]] == [0.0] * 10 and sizes[9][1] == 0.0
    assert sizes[19][0] == pytest.approx(0.5 * EPS) and sizes[-1][0] == EPS
    assert all(size <= eps + 10 * EPS32 * 8.0 for eps, size in sizes)
    env.set_eps(0.0)
    assert not errors(env, env.reset()).any()


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("policy", ["MlpPolicy", LBDNActorCriticPolicy])
def test_the_attack_follows_the_parameters(policy: Any, freeze: bool) -> None:
    env = adversary(restarts=1, iterations=30)
    model = agent(env, policy, **({} if policy == "MlpPolicy" else {"lipschitz": 5.0}))
    env.attach(model)
    if freeze:
        model.learn(256, callback=FreezeWeights())
    for factor in (1.0, 2.0, -3.0):
        for parameter in model.policy.action_net.parameters():
            parameter.data.mul_(factor)  # no version is counted here
        policy_map = action_map(model.policy)
        found = env._view(device="cpu", dtype=torch.float64)
        x = torch.randn(8, 3, dtype=torch.float64)
        assert torch.equal(found(x), policy_map(x))


@pytest.mark.parametrize("method", METHODS)
def test_ppo_trains_and_its_buffer_holds_what_it_saw(method: str) -> None:
    base = adversary(method, VecCheckNan(pendulum(), raise_exception=True))
    env = VecNormalize(base, norm_reward=False)
    model = agent(env, LBDNActorCriticPolicy, lipschitz=5.0)
    base.attach(model)
    model.learn(1024, callback=[FreezeWeights(), LogLipschitz(empirical_every=None)])
    assert model.num_timesteps == 1024
    last = env.get_original_obs()
    assert lengths(last - base.true_observations, "l2").max() > 0.3 * EPS
    env.training = False
    assert model.policy.bound(env).lipschitz == 5.0


@pytest.mark.parametrize("kind", ["torch", "gym"])
def test_sac_trains_and_its_replay_buffer_holds_what_it_saw(kind: str) -> None:
    venv = pendulum(4) if kind == "torch" else toy_vec_env(spaces.Box(-np.inf, np.inf, (3,)), ACTIONS, 4)
    env = adversary("mad", venv)
    model = SAC("MlpPolicy", env, learning_starts=32, buffer_size=1000, device="cpu", seed=0, batch_size=16,
                policy_kwargs={"net_arch": [8]})  # fmt: skip
    env.attach(model)
    model.learn(160)
    buffer: Any = model.replay_buffer
    size = buffer.pos
    ends = buffer.dones[:size].astype(bool)
    inside = ~ends[:-1]
    # The next observation of a step is what the next step starts from; at an end it is another, perturbed one.
    np.testing.assert_array_equal(
        buffer.next_observations[: size - 1][inside], buffer.observations[1:size][inside]
    )
    assert ends.any()
    assert not (buffer.next_observations[:size][ends] == env.true_observations[0]).all()


def test_terminal_observations_and_states() -> None:
    env = adversary("plant", pendulum(8, 5))
    model = attached(env)
    seen = env.reset()
    for _ in range(4):
        seen = env.step(model.predict(seen)[0])[0]
    state = env.venv.state
    action = model.predict(seen)[0]
    given = []
    attacker = env._attacker
    env._attacker = lambda scene: given.append(scene) or attacker(scene)  # type: ignore[assignment, func-returns-value]
    _, _, dones, infos = env.step(action)
    assert dones.all() and [scene.fresh is None for scene in given] == [True, False]
    plant = env.get_attr("plant")[0]
    expected = plant.transition(state, torch.as_tensor(action))
    torch.testing.assert_close(given[0].state, expected, rtol=0, atol=8 * EPS32)
    true = np.stack([info["true_terminal_observation"] for info in infos])
    torch.testing.assert_close(torch.as_tensor(true), plant.observation(expected), rtol=0, atol=8 * EPS32)
    assert not any(info["TimeLimit.truncated"] is False for info in infos)


def test_everything_else_passes_through(tmp_path: Path) -> None:
    env = adversary("mad")
    model = attached(env)
    plain = pendulum()
    for one in (env, plain):
        one.seed(3)
        one.reset()
        one.set_attr("gravity", 9.0)
    assert env.get_attr("gravity") == plain.get_attr("gravity") == [9.0] * 16
    state = torch.zeros(1, 2)
    assert torch.equal(env.env_method("observation", state, indices=0)[0], plain.plant.observation(state))
    np.testing.assert_array_equal(env.true_observations, plain.plant.observation(plain.state).numpy())
    results = [one.step(np.ones((16, 1), dtype=np.float32)) for one in (env, plain)]
    np.testing.assert_array_equal(env.true_observations, results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=env, device="cpu")
    env.attach(loaded)
    loaded.learn(256)
    evaluation = adversary("plant", pendulum(4))
    evaluation.attach(loaded, evaluation)
    evaluate_policy(loaded, evaluation, n_eval_episodes=4)


class TupleOfInfos(VecEnvWrapper):
    """Returns infos as SubprocVecEnv does."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        *rest, infos = self.venv.step_wait()
        return (*rest, tuple(infos))


@pytest.mark.parametrize("wrapper", [ObservationAdversary, FaultyVecEnv])
def test_infos_in_a_tuple(wrapper: Any) -> None:
    inside = TupleOfInfos(toy_vec_env())
    env = (
        wrapper(inside, EPS, "uniform")
        if wrapper is ObservationAdversary
        else wrapper(inside, FaultSet(observation=[WhiteNoise(0.1)]))
    )
    env.reset()
    for _ in range(20):
        _, _, dones, infos = env.step(np.zeros((2, 2)))
    assert dones.all() and all("true_terminal_observation" in info for info in infos)


def test_mistakes() -> None:
    for options, message in (
        ({"method": "pgd"}, "method: expected one of"),
        ({"steps": 1.5}, "steps: expected a share"),
        ({"ramp": (3, 3)}, "ramp: expected numbers of steps"),
        ({"replan": 9}, "replan: expected at most horizon"),
        ({"eps": -1.0}, "eps"),
        ({"venv": VecNormalize(pendulum())}, "venv: expected raw observations, got a VecNormalize"),
        ({"venv": toy_vec_env(), "method": "plant"}, "venv: expected a TorchVecEnv"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            adversary(**options)
    with pytest.raises(ShapeError, match="scale: expected 3 numbers"):
        adversary(scale=(1.0, 2.0))
    with pytest.raises(UnsupportedSpaceError, match="observation_space: expected a Box"):
        adversary(venv=toy_vec_env(spaces.Discrete(3)))
    with pytest.raises(RobustNNError, match="model: method 'mad' attacks a policy, and none is attached"):
        adversary().reset()
    with pytest.raises(
        InvalidArgumentError, match="model: expected one whose environment contains this wrapper"
    ):
        adversary().attach(agent(pendulum()))
    stacked = adversary()
    with pytest.raises(InvalidArgumentError, match="VecFrameStack"):
        stacked.attach(agent(VecFrameStack(stacked, 2)))
    discrete = adversary(venv=toy_vec_env(spaces.Box(-9, 9, (3,)), spaces.Discrete(2)))
    with pytest.raises(UnsupportedSpaceError, match="expected Box for an attack by gradients"):
        discrete.attach(agent(discrete))
