"""A fitted model in the place of a plant: the same map, the same contract, the same constants."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from stable_baselines3 import PPO

from robustnn.closedloop import (
    LearnedPlant,
    NoPerturbation,
    ObservedTask,
    TorchVecEnv,
    TrajectoryAttack,
    evaluate,
    rollout,
)
from robustnn.closedloop.parts import describe_part
from robustnn.dynamics import (
    ContinuousStateSpace,
    Dataset,
    ExplicitStateSpace,
    LipschitzNARX,
    LipschitzStateSpace,
)
from robustnn.envs import Pendulum, PlantEnv, SpringChain, VanDerPol
from robustnn.errors import InvalidArgumentError, ShapeError

EPS = torch.finfo(torch.float64).eps
CHAIN = SpringChain(masses=1, damping=1.0)


def angle_and_speed(y: Any) -> Any:
    xp = array_namespace(y)
    return xp.stack((xp.atan2(y[..., 1], y[..., 0]), y[..., 2]), axis=-1)


def pendulum_data(records: int = 6, steps: int = 20, inputs: float = 1.0) -> Dataset:
    rng = np.random.default_rng(0)
    plant = Pendulum()
    state = plant.initial(rng.random((records, 2)))
    u, y = inputs * rng.uniform(-1.0, 1.0, (records, steps, 1)), []
    for t in range(steps):
        y.append(plant.observation(state))
        state = plant.transition(state, u[:, t])
    return Dataset.from_arrays(list(u), list(np.stack(y, axis=1)), plant.dt, n_init=1)


def fresh(data: Dataset, hidden: tuple[int, ...] = (6,), bound: float = 1.4) -> LipschitzNARX:
    model = LipschitzNARX(data, 1, 1, hidden, lipschitz=bound)
    model.start_(None, data, seed=1)
    return model


@pytest.fixture(scope="module")
def learned() -> LearnedPlant:
    return LearnedPlant.of(fresh(pendulum_data()), ObservedTask(Pendulum(), angle_and_speed))


@pytest.mark.parametrize("hidden", [(6,), (5, 4)])
def test_one_step_is_the_prediction_of_the_model(hidden: tuple[int, ...]) -> None:
    data = pendulum_data()
    model = fresh(data, hidden)
    plant = LearnedPlant.of(model, ObservedTask(Pendulum(), angle_and_speed))
    one = data.experiments[0]
    expected = model.predict(one.u, one.y)[1:]
    got = plant.transition(torch.from_numpy(one.y[:-1]), torch.from_numpy(one.u[:-1])).numpy()
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=200 * EPS * np.abs(one.y).max())
    numpy = plant.transition(one.y[:-1], one.u[:-1])
    assert isinstance(numpy, np.ndarray) and np.array_equal(numpy, got)


def test_a_continuous_model_keeps_its_runge_kutta_step() -> None:
    data = pendulum_data()
    model = ContinuousStateSpace(data, 3, (5,), lipschitz=0.5)
    with torch.no_grad():
        model.c.copy_(torch.eye(3))
        model.constant.zero_()
    plant = LearnedPlant.of(model, ObservedTask(Pendulum(), angle_and_speed))
    scaling, one = model.channels.scaling, data.experiments[0]
    x = torch.from_numpy((one.y - scaling.y_offset) / scaling.y_scale)
    with torch.no_grad():
        scaled = model.explicit().step(x, torch.from_numpy((one.u - scaling.u_offset) / scaling.u_scale))
    expected = scaling.y_offset + scaling.y_scale * scaled.numpy()
    got = plant.transition(torch.from_numpy(one.y), torch.from_numpy(one.u)).numpy()
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=500 * EPS * np.abs(one.y).max())


def test_actions_saturate_as_those_of_the_plant(learned: LearnedPlant) -> None:
    y = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
    one, more = (learned.transition(y, torch.full((1, 1), a, dtype=torch.float64)) for a in (1.0, 7.0))
    half = learned.transition(y, torch.full((1, 1), 0.5, dtype=torch.float64))
    assert torch.equal(one, more) and not torch.equal(one, half)


def test_reward_start_and_end_are_those_of_the_plant(learned: LearnedPlant) -> None:
    plant = Pendulum()
    rng = np.random.default_rng(3)
    uniform = torch.from_numpy(rng.random((50, 3)))
    first = learned.initial(uniform)
    state = plant.initial(uniform[:, :2])
    assert torch.equal(first, plant.observation(state))
    action = torch.from_numpy(rng.uniform(-2.0, 2.0, (50, 1)))
    following = plant.transition(state, action)
    got = learned.reward(first, action, plant.observation(following))
    torch.testing.assert_close(got, plant.reward(state, action, following), rtol=200 * EPS, atol=200 * EPS)
    assert not learned.terminal(first).any()


def test_training_a_model_on_does_not_change_the_plant() -> None:
    data = pendulum_data()
    for hidden in ((6,), (5, 4)):
        model = fresh(data, hidden)
        plant = LearnedPlant.of(model, ObservedTask(Pendulum(), angle_and_speed))
        y, u = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        before = plant.transition(y, u)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        assert torch.equal(plant.transition(y, u), before)


def test_other_dtypes_and_copies(learned: LearnedPlant) -> None:
    y, u = torch.ones(4, 3), torch.full((4, 1), 0.3)
    single = learned.to(dtype=torch.float32)
    assert single.transition(y, u).dtype == torch.float32
    assert torch.equal(single.transition(y, u), learned.transition(y, u))
    torch.testing.assert_close(
        single.transition(y, u).double(), learned.transition(y.double(), u.double()), rtol=0.0, atol=2e-5
    )
    again = pickle.loads(pickle.dumps(learned))
    assert torch.equal(again.transition(y.double(), u.double()), learned.transition(y.double(), u.double()))
    assert learned.observation_space is not learned.observation_space


def test_a_projection_comes_last_and_keeps_the_constant() -> None:
    data, bound = pendulum_data(), 1.4
    plant = LearnedPlant.of(fresh(data, bound=bound), ObservedTask(Pendulum(), angle_and_speed), into_box)
    free = replace(plant, project=None)
    y, u = torch.from_numpy(data.experiments[0].y), torch.from_numpy(data.experiments[0].u)
    assert torch.equal(plant.transition(y, u), into_box(free.transition(y, u)))
    scale = torch.from_numpy(data.scaling().y_scale)
    jacobians = torch.func.vmap(torch.func.jacrev(plant.transition))(y, u)
    norms = torch.linalg.matrix_norm(jacobians * scale / scale[:, None], 2)
    assert float(norms.max()) <= bound * (1.0 + 1e3 * EPS)
    assert float(norms.max()) > 0.5 * bound


def into_box(y: torch.Tensor) -> torch.Tensor:
    return y.clamp(-0.9, 0.9)


def test_ppo_trains_on_it_and_evaluate_runs_it(learned: LearnedPlant) -> None:
    env = TorchVecEnv(learned, 16)
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=64, n_epochs=1, device="cpu", seed=0)
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    agent.learn(256)
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    result = evaluate(lambda y: 0.0 * y[..., :1], learned, episodes=5, dtype=torch.float64)
    assert result.returns.shape == (5,) and np.isfinite(result.returns).all()
    assert (result.lengths == Pendulum().horizon).all()
    gym = PlantEnv(learned)
    observation, _ = gym.reset(seed=0)
    assert gym.step(gym.action_space.sample())[0].shape == observation.shape


def test_an_exact_model_attacks_as_the_plant_does() -> None:
    """A linear plant whose observation is its state is its own task."""
    zero, eye = np.zeros((1, CHAIN.n_u)), np.eye(CHAIN.n_x)
    a = torch.from_numpy(CHAIN.transition(eye, np.zeros((CHAIN.n_x, CHAIN.n_u))).T.copy())
    b = torch.from_numpy(CHAIN.transition(np.zeros((1, CHAIN.n_x)), zero + 1.0).T.copy())
    linear = ExplicitStateSpace(a, b, torch.eye(CHAIN.n_x).double(), torch.zeros(CHAIN.n_x, 1).double())
    limit = torch.from_numpy(CHAIN.action_space.high.astype(np.float64))
    learned = LearnedPlant(linear, CHAIN, -limit, limit)
    settings = {"horizon": 10, "replan": 5, "iterations": 15, "method": "steepest"}

    def policy(y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(-2.0 * y[..., :1] - y[..., 1:])

    def returns(attack: object) -> np.ndarray:
        return evaluate(policy, CHAIN, attack, episodes=4, steps=30, dtype=torch.float64).returns

    nominal = returns(NoPerturbation())
    through_plant = returns(TrajectoryAttack(0.3, model=CHAIN, **settings))
    through_model = returns(TrajectoryAttack(0.3, model=learned, **settings))
    assert (through_plant < nominal).all()
    np.testing.assert_allclose(through_model, through_plant, rtol=1e5 * EPS)


def test_gradients_reach_observation_and_action(learned: LearnedPlant) -> None:
    start = torch.tensor([[0.6, 0.8, 1.0]], dtype=torch.float64, requires_grad=True)
    trajectory = rollout(learned, lambda y: 0.3 * y[..., 1:2], start, steps=5, differentiable=True)
    (gradient,) = torch.autograd.grad(trajectory.returns.sum(), start)
    assert bool(gradient.isfinite().all()) and bool((gradient != 0.0).all())


def test_attacks_tell_one_model_from_another(learned: LearnedPlant) -> None:
    other = LearnedPlant.of(fresh(pendulum_data(), bound=1.5), learned.task)
    digests = [describe_part(plant)["sha256"] for plant in (learned, other, learned.to(dtype=torch.float64))]
    assert digests[0] == digests[2] != digests[1]


def test_models_and_tasks_that_do_not_fit_are_refused(learned: LearnedPlant) -> None:
    data, task = pendulum_data(), learned.task
    with pytest.raises(InvalidArgumentError, match="LipschitzNARX"):
        LearnedPlant.of(LipschitzStateSpace(data, 3, (4,), lipschitz_x=0.9), task)
    with pytest.raises(InvalidArgumentError, match="LipschitzNARX"):
        LearnedPlant.of(LipschitzNARX(data, 2, 1, (4,), lipschitz=1.2), task)
    with pytest.raises(InvalidArgumentError, match="3 and 1"):
        LearnedPlant.of(fresh(data), VanDerPol(dt=Pendulum().dt))
    with pytest.raises(InvalidArgumentError, match="sampling time"):
        LearnedPlant.of(fresh(data), ObservedTask(Pendulum(dt=0.1), angle_and_speed))
    with pytest.raises(InvalidArgumentError, match="no initial"):
        LearnedPlant.of(fresh(data), object())
    with pytest.raises(InvalidArgumentError, match="class"):
        LearnedPlant.of(fresh(data), Pendulum)
    with pytest.raises(InvalidArgumentError, match="StateSpaceModel"):
        LearnedPlant.of(learned.explicit, task)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="at least 2 samples"):
        task.initial(torch.zeros(4, 1))
    shifted = ExplicitStateSpace(
        learned.explicit.a, learned.explicit.b, learned.explicit.c, learned.explicit.d, learned.explicit.f,
        constant=torch.ones(3, dtype=torch.float64),
    )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="y = x"):
        replace(learned, explicit=shifted)
