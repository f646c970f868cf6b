"""Robust fine-tuning through the plant: the game, the policy's gradient, what is kept, bounds, and errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.vec_env import VecNormalize

from robustnn.closedloop import TorchVecEnv, TrajectoryAttack, evaluate
from robustnn.closedloop.ball import Ball
from robustnn.closedloop.rollout import rollout
from robustnn.envs import DoubleIntegrator, Pendulum
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError, UnsupportedSpaceError
from robustnn.policies import LBDNActorCriticPolicy, LBDNSACPolicy, LBDNTD3Policy, action_map, policy_bound
from robustnn.training import robust_fine_tune
from robustnn.training.game import Game, GameSettings
from robustnn.training.live_map import LiveMap

SMALL = {"steps": 4, "episodes": 8, "window": 20, "validations": 2, "validation_episodes": 4}
WIDE = {"net_arch": [8, 8]}
PLANT = Pendulum(horizon=20)


def model_of(kind: str, seed: int = 0, plant: Any = None, **more: Any) -> Any:
    """An untrained agent on the pendulum."""
    env = TorchVecEnv(PLANT if plant is None else plant, 2)
    kwargs: dict[str, Any] = {**WIDE, **more}
    bounded = {"lipschitz": 8.0, "observation_scale": (1.0, 1.0, 4.0)} | kwargs
    makers: dict[str, Callable[[], Any]] = {
        "ppo": lambda: PPO("MlpPolicy", env, policy_kwargs=kwargs, seed=seed, device="cpu"),
        "a2c": lambda: A2C("MlpPolicy", env, policy_kwargs=kwargs, seed=seed, device="cpu"),
        "sac": lambda: SAC("MlpPolicy", env, policy_kwargs=kwargs, seed=seed, device="cpu"),
        "td3": lambda: TD3("MlpPolicy", env, policy_kwargs=kwargs, seed=seed, device="cpu"),
        "lbdn ppo": lambda: PPO(LBDNActorCriticPolicy, env, policy_kwargs=bounded, seed=seed, device="cpu"),
        "lbdn sac": lambda: SAC(LBDNSACPolicy, env, policy_kwargs=bounded, seed=seed, device="cpu"),
        "lbdn td3": lambda: TD3(LBDNTD3Policy, env, policy_kwargs=bounded, seed=seed, device="cpu"),
    }
    return makers[kind]()


def weights(model: Any) -> list[torch.Tensor]:
    """All numbers of the policy."""
    return [value.clone() for value in model.policy.state_dict().values() if isinstance(value, torch.Tensor)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


ALL = ("ppo", "a2c", "sac", "td3", "lbdn ppo", "lbdn sac", "lbdn td3")


@pytest.mark.parametrize("kind", ALL)
def test_live_map_is_the_action_map(kind: str) -> None:
    model = model_of(kind)
    observations = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    live = LiveMap(model)
    expected, _ = model.predict(observations.numpy(), deterministic=True)
    np.testing.assert_array_max_ulp(live()(observations).detach().numpy(), expected, maxulp=64)
    detached = live.detached()
    before = detached(observations)
    assert not before.requires_grad
    with torch.no_grad():
        for parameter in live.parameters:
            parameter.add_(1.0)
    assert torch.equal(detached(observations), before)
    assert not torch.equal(live()(observations), before)


@pytest.mark.parametrize("kind", ALL)
def test_live_map_has_the_gradient_of_differences(kind: str) -> None:
    model = model_of(kind)
    model.policy.double()
    live = LiveMap(model)
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in live.parameters]

    def value() -> torch.Tensor:
        return live()(observations).square().sum()

    gradients = torch.autograd.grad(value(), live.parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    step, values = 1e-5, []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for parameter, direction in zip(live.parameters, directions, strict=True):
                parameter.add_(sign * step * direction)
            values.append(float(value()))
    difference = (values[0] - values[1]) / (2.0 * step)
    # Truncation grows with step^2, rounding with the machine epsilon over the step.
    assert slope != 0.0
    assert abs(slope - difference) <= 1e6 * max(step**2, 2.3e-16 / step) * max(abs(slope), 1e-4)


def test_normalisation_of_the_environment_is_applied() -> None:
    env = VecNormalize(TorchVecEnv(PLANT, 2), norm_reward=False)
    model = PPO("MlpPolicy", env, policy_kwargs=WIDE, device="cpu", n_steps=16, batch_size=32)
    model.learn(64)
    raw = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    expected, _ = model.predict(env.normalize_obs(raw.numpy()), deterministic=True)
    got = LiveMap(model, env)()(raw).detach().numpy()
    bare = LiveMap(model)()(raw).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=64 * np.finfo(np.float32).eps)
    assert np.abs(bare - expected).max() > 1e-3
    assert len(robust_fine_tune(model, PLANT, eps=0.1, **SMALL).trials) == 3


def game_return(eps: float = 0.3) -> tuple[float, float]:
    """Return of the attacked episodes without moves and after many of them, the policy standing still."""
    model = model_of("ppo", seed=3)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(300.0)  # so that what it sees matters
    live = LiveMap(model)
    returns = []
    for moves in (1, 40):
        settings = GameSettings(8, 8, 30, 1, moves, 0.2)
        game = Game(Pendulum(), Ball(eps), settings, 0, live.parameters[0])
        returns.append(float(game.play(live, lambda r, z: (-r.mean()).backward(inputs=[z])).mean()))
    return returns[0], returns[1]


def test_errors_move_against_the_policy() -> None:
    first, last = game_return()
    assert last < first - 10.0


def test_errors_stay_in_their_ball_and_plans_move_on() -> None:
    eps, scale = 0.3, (1.0, 2.0, 3.0)
    live = LiveMap(model_of("ppo"))
    settings = GameSettings(6, 4, 10, 3, 2, 0.5)
    game = Game(Pendulum(), Ball(eps, "l2", scale), settings, 0, live.parameters[0])
    for _ in range(10):
        game.play(live, lambda r, z: (-r.mean()).backward(inputs=[z]))
        lengths = game._plan.norm(dim=-1)
        assert float(lengths.max()) <= eps * (1.0 + 8 * torch.finfo(torch.float32).eps)
        assert not game._plan.requires_grad and not game._state.requires_grad


def test_nominal_episodes_see_no_errors() -> None:
    plant = Pendulum()
    live = LiveMap(model_of("ppo"))
    game = Game(plant, Ball(0.5), GameSettings(6, 4, 10, 10, 1, 0.5), 0, live.parameters[0])
    start = game._state.clone()
    returns = game.play(live, lambda r, z: (-r.mean()).backward(inputs=[z]))
    with torch.no_grad():
        expected = rollout(plant, live.detached(), start, steps=10).returns
    assert torch.equal(returns[4:], expected[4:])
    assert bool((returns[:4] != expected[:4]).all())


def test_episodes_start_again_at_the_horizon() -> None:
    plant = Pendulum(horizon=12)
    live = LiveMap(model_of("ppo", plant=plant))
    game = Game(plant, Ball(0.1), GameSettings(32, 16, 5, 5, 1, 0.5), 0, live.parameters[0])
    assert len(set(game._age.tolist())) > 4
    for _ in range(6):
        age = game._age.clone()
        game.play(live, lambda r, z: (-r.mean()).backward(inputs=[z]))
        over = age + 5 >= 12
        assert game._age[over].eq(0).all() and game._age[~over].eq(age[~over] + 5).all()
        assert game._state[over][:, 1].abs().max() <= 1.0 if over.any() else True


@pytest.mark.parametrize("kind", ALL)
def test_only_the_actor_changes(kind: str) -> None:
    model = model_of(kind)
    before = {
        name: value.clone() for name, value in model.policy.state_dict().items() if torch.is_tensor(value)
    }
    tuning = robust_fine_tune(model, PLANT, eps=0.2, nominal_tolerance=1e6, **SMALL)
    after = model.policy.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    parameters = {id(p) for p in LiveMap(model).parameters}
    actor = {name for name, p in model.policy.named_parameters() if id(p) in parameters}
    assert changed <= actor and (tuning.kept.step == 0 or changed)
    assert all(p.grad is None for p in model.policy.parameters())


@pytest.mark.parametrize("kind", ["ppo", "lbdn sac"])
def test_same_seed_same_bits(kind: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        model = model_of(kind)
        runs.append((robust_fine_tune(model, PLANT, eps=0.2, seed=seed, **SMALL), weights(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])
    assert runs[0][0].trials[1:] != runs[2][0].trials[1:]


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = model_of("ppo")
    torch.manual_seed(5)
    robust_fine_tune(model, PLANT, eps=0.2, **SMALL)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["lbdn ppo", "lbdn sac", "lbdn td3"])
def test_the_bound_holds_afterwards_and_is_used(kind: str) -> None:
    model = model_of(kind, lipschitz=3.0)
    robust_fine_tune(
        model, PLANT, eps=0.3, nominal_tolerance=1e6, learning_rate=0.03, **(SMALL | {"steps": 60})
    )
    assert model.policy.lipschitz == 3.0
    policy = action_map(model)
    points = 2.0 * torch.randn(512, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(policy))(points)
    for scale, bound in (((1.0, 1.0, 4.0), 3.0), ((1.0, 1.0, 1.0), policy_bound(model).lipschitz)):
        steepest = float(torch.linalg.matrix_norm(jacobian * torch.tensor(scale), 2).max())
        assert 0.1 * bound < steepest <= bound * (1.0 + 64 * torch.finfo(torch.float32).eps)


def test_a_trained_bound_is_held() -> None:
    model = model_of("lbdn ppo", trainable_lipschitz=True)
    robust_fine_tune(model, PLANT, eps=0.3, nominal_tolerance=1e6, learning_rate=0.03, **SMALL)
    assert model.policy.lipschitz == pytest.approx(8.0, rel=8 * torch.finfo(torch.float32).eps)


def test_training_buys_robustness() -> None:
    """A mass that starts far from the origin: an untrained policy is pushed about, a trained one is not."""
    plant = DoubleIntegrator(horizon=50)
    model = model_of("ppo", plant=plant)
    attack = TrajectoryAttack(0.3, iterations=20, method="steepest")
    before = float(evaluate(action_map(model), plant, attack, episodes=16).mean)
    tuning = robust_fine_tune(
        model, plant, eps=0.3, steps=120, episodes=16, window=25, learning_rate=1e-2, validations=3,
        validation_episodes=8,
    )  # fmt: skip
    after = float(evaluate(action_map(model), plant, attack, episodes=16).mean)
    assert tuning.kept.step > 0
    assert after > 0.5 * before


def test_the_best_validation_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacked returns decide, among those whose nominal return is near the first one."""
    script = iter([(-10.0, -50.0), (-10.2, -40.0), (-12.0, -20.0), (-9.0, -45.0)])
    seen: list[list[torch.Tensor]] = []
    current: list[float] = []
    model = model_of("ppo")

    class Result:
        def __init__(self, mean: float) -> None:
            self.mean = mean

    def scripted(policy: Any, plant: Any, perturbation: Any, **_: Any) -> Result:
        if perturbation is None:
            seen.append(weights(model))
            current[:] = next(script)
            return Result(current[0])
        return Result(current[1])

    monkeypatch.setattr("robustnn.training.through_plant.evaluate", scripted)
    tuning = robust_fine_tune(model, PLANT, eps=0.1, **(SMALL | {"steps": 6, "validations": 3}))
    assert [trial.attacked for trial in tuning.trials] == [-50.0, -40.0, -20.0, -45.0]
    assert tuning.kept == tuning.trials[1] and same(weights(model), seen[1])
    assert not same(seen[1], seen[0]) and not same(seen[1], seen[3])


def test_weights_come_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("ppo")
    before = weights(model)

    def broken(self: Game, *_: Any) -> None:
        with torch.no_grad():
            next(iter(model.policy.action_net.parameters())).fill_(7.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(Game, "play", broken)
    with pytest.raises(KeyboardInterrupt):
        robust_fine_tune(model, PLANT, eps=0.1, **SMALL)
    assert same(weights(model), before)


class Exploding(Pendulum):
    """A pendulum whose reward has no finite gradient."""

    def reward(self, state: Any, action: Any, next_state: Any) -> Any:
        return super().reward(state, action, next_state) - (0.0 * action[..., 0].square()).sqrt()


def test_gradients_that_are_not_finite_are_told() -> None:
    model = model_of("ppo")
    before = weights(model)
    with pytest.raises(NonFiniteError, match="gradient: expected finite entries"):
        robust_fine_tune(model, Exploding(horizon=20), eps=0.1, **SMALL)
    assert same(weights(model), before)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"eps": 0.0}, InvalidArgumentError, "eps"),
    ({"eps": math.nan}, NonFiniteError, "eps"),
    ({"norm": "l1"}, InvalidArgumentError, "norm"),
    ({"scale": (1.0, 1.0)}, ShapeError, "scale"),
    ({"steps": 0}, InvalidArgumentError, "steps"),
    ({"episodes": 0}, InvalidArgumentError, "episodes"),
    ({"window": 21}, InvalidArgumentError, "window"),
    ({"advance": 21}, InvalidArgumentError, "advance"),
    ({"moves": 0}, InvalidArgumentError, "moves"),
    ({"attacked_share": 1.5}, InvalidArgumentError, "attacked_share"),
    ({"learning_rate": -1.0}, InvalidArgumentError, "learning_rate"),
    ({"step_fraction": 0.0}, InvalidArgumentError, "step_fraction"),
    ({"validations": 0}, InvalidArgumentError, "validations"),
    ({"nominal_tolerance": -0.1}, InvalidArgumentError, "nominal_tolerance"),
    ({"seed": -1}, InvalidArgumentError, "seed"),
]


@pytest.mark.parametrize(
    ("kwargs", "error", "name"), BAD, ids=lambda v: next(iter(v)) if isinstance(v, dict) else ""
)
def test_bad_settings(kwargs: dict[str, Any], error: type[Exception], name: str) -> None:
    model = model_of("ppo")
    before = copy.deepcopy(weights(model))
    with pytest.raises(error, match=name):
        robust_fine_tune(model, PLANT, **({"eps": 0.1} | SMALL | kwargs))
    assert same(weights(model), before)


def test_other_plants_and_policies_are_refused() -> None:
    with pytest.raises(ShapeError, match="2 observations"):
        robust_fine_tune(model_of("ppo"), DoubleIntegrator(), eps=0.1, **SMALL)
    with pytest.raises(InvalidArgumentError, match="plant"):
        robust_fine_tune(model_of("ppo"), "pendulum", eps=0.1, **SMALL)
    with pytest.raises(InvalidArgumentError, match="policy"):
        robust_fine_tune(object(), PLANT, eps=0.1, **SMALL)
    discrete = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert isinstance(discrete.action_space, spaces.Discrete)
    with pytest.raises(UnsupportedSpaceError, match="Box"):
        robust_fine_tune(discrete, PLANT, eps=0.1, **SMALL)
    still = model_of("ppo")
    still.policy.requires_grad_(False)
    with pytest.raises(InvalidArgumentError, match="gradients"):
        robust_fine_tune(still, PLANT, eps=0.1, **SMALL)
