"""What every plant promises, and the physics of each one against an independent formula."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from robustnn.closedloop.linear import linearize
from robustnn.closedloop.vec_env import TorchVecEnv
from robustnn.envs import (
    CartPole,
    CartPoleSwingUp,
    DoubleIntegrator,
    Pendulum,
    PlanarQuadrotor,
    Plant,
    SpringChain,
    TwoLinkArm,
    VanDerPol,
)
from robustnn.envs.plant import DrawablePlant

PLANTS: dict[str, Plant] = {
    "pendulum": Pendulum(),
    "cart-pole": CartPole(),
    "cart-pole with friction": CartPole(cart_friction=0.3, hinge_friction=0.02),
    "swing-up": CartPoleSwingUp(),
    "quadrotor": PlanarQuadrotor(),
    "quadrotor with drag": PlanarQuadrotor(drag=0.2),
    "arm": TwoLinkArm(),
    "arm in a vertical plane": TwoLinkArm(gravity=9.81),
    "one mass": SpringChain(masses=1),
    "chain": SpringChain(),
    "oscillator": VanDerPol(),
    "double integrator": DoubleIntegrator(),
}
IDS = [
    "CartPoleBalance", "CartPoleSwingUp", "DoubleIntegrator", "PendulumSwingUp", "PlanarQuadrotor", "SpringChain",
    "TwoLinkArm", "VanDerPol",
]  # fmt: skip
each = pytest.mark.parametrize("name", PLANTS)


def samples(plant: Plant, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States around the start states, three times as far out, and actions partly beyond their limits."""
    rng = np.random.default_rng(seed)
    centre = plant.initial(np.full(plant.n_x, 0.5))
    state = centre + 3.0 * (plant.initial(rng.random((count, plant.n_x))) - centre)
    return state, rng.uniform(-1.3, 1.3, (count, plant.n_u))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numpy_equals_torch(name: str, dtype: torch.dtype) -> None:
    plant = PLANTS[name]
    state, action = (torch.from_numpy(array).to(dtype) for array in samples(plant, 500))
    nxt = plant.transition(state, action)
    eps = torch.finfo(dtype).eps
    for ours, theirs in (
        (nxt, plant.transition(state.numpy(), action.numpy())),
        (plant.observation(state), plant.observation(state.numpy())),
        (plant.reward(state, action, nxt), plant.reward(state.numpy(), action.numpy(), nxt.numpy())),
    ):
        assert ours.dtype == dtype and theirs.dtype == ours.numpy().dtype
        scale = np.maximum(1.0, np.abs(theirs))
        assert np.max(np.abs(ours.numpy() - theirs) / scale) <= 300 * eps
    assert plant.terminal(state).dtype == torch.bool
    np.testing.assert_array_equal(plant.terminal(state).numpy(), plant.terminal(state.numpy()))


@each
def test_batches_equal_single_calls_and_arguments_stay(name: str) -> None:
    plant = PLANTS[name]
    state, action = samples(plant, 6)
    before = state.copy(), action.copy()
    nxt = plant.transition(state.reshape(2, 3, -1), action.reshape(2, 3, -1)).reshape(6, -1)
    for k in range(6):
        np.testing.assert_allclose(plant.transition(state[k], action[k]), nxt[k], rtol=1e-12, atol=1e-12)
        assert np.shape(plant.reward(state[k], action[k], nxt[k])) == ()
    assert plant.observation(state.reshape(2, 3, -1)).shape == (2, 3, plant.n_y)
    assert plant.terminal(state[:0]).shape == (0,)
    np.testing.assert_array_equal(state, before[0])
    np.testing.assert_array_equal(action, before[1])


@each
def test_actuators_saturate(name: str) -> None:
    plant = PLANTS[name]
    state, action = samples(plant, 50)
    clipped = np.clip(action, -1.0, 1.0)
    nxt = plant.transition(state, action)
    np.testing.assert_array_equal(nxt, plant.transition(state, clipped))
    np.testing.assert_array_equal(plant.reward(state, action, nxt), plant.reward(state, clipped, nxt))


@each
def test_observations_stay_in_their_box_under_the_roughest_inputs(name: str) -> None:
    plant = PLANTS[name]
    rng = np.random.default_rng(3)
    state = plant.initial(rng.choice([0.0, 1.0 - 1e-12, 0.5], (300, plant.n_x)))
    box = plant.observation_space
    ended = np.zeros(300, dtype=bool)
    held = rng.choice([-1.0, 1.0], (300, plant.n_u))
    for t in range(plant.horizon):
        y = plant.observation(state)
        assert (y[~ended] >= box.low).all() and (y[~ended] <= box.high).all(), (name, t)
        flip = rng.random((300, plant.n_u)) < rng.choice([0.0, 0.05, 0.5], (300, 1))
        held = np.where(flip, -held, held)
        if name in ("chain", "one mass"):  # in resonance
            held[:100] = np.sign(state[:100, -1:] + 1e-9)
        state = plant.transition(state, held)
        y = plant.observation(state)
        assert (y[~ended] >= box.low).all() and (y[~ended] <= box.high).all(), (name, t)
        ended |= plant.terminal(state)


def differences(f: Callable[[np.ndarray], np.ndarray], at: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences, shape (outputs, inputs)."""
    steps = h * np.eye(len(at))
    return np.stack([(f(at + s) - f(at - s)) / (2 * h) for s in steps], axis=-1)


@each
def test_linearization_equals_finite_differences(name: str) -> None:
    plant = PLANTS[name]
    state, action = samples(plant, 5, seed=2)
    for x, u in zip(state / 3.0, 0.7 * np.clip(action, -1, 1), strict=True):
        linear = linearize(plant, x, u)
        np.testing.assert_allclose(linear.a, differences(lambda z, u=u: plant.transition(z, u), x), atol=2e-8)
        np.testing.assert_allclose(linear.b, differences(lambda z, x=x: plant.transition(x, z), u), atol=2e-8)
        np.testing.assert_allclose(linear.c, differences(plant.observation, x), atol=2e-8)
        np.testing.assert_allclose(linear.drift, plant.transition(x, u) - x, atol=1e-14)


@each
def test_pictures_show_state_and_action(name: str) -> None:
    plant = PLANTS[name]
    assert isinstance(plant, DrawablePlant)
    rest, turned = plant.initial(np.full(plant.n_x, 0.5)), plant.initial(np.full(plant.n_x, 0.9))
    first = plant.render_image(rest, None, size=96)
    assert first.shape == (96, 96, 3) and first.dtype == np.uint8
    assert (first != 255).any(axis=-1).mean() > 0.01
    assert (first != plant.render_image(turned, None, size=96)).any()
    assert (first != plant.render_image(rest, np.ones(plant.n_u), size=96)).any()


@pytest.mark.parametrize("name", IDS)
def test_environments_pass_both_checkers(name: str) -> None:
    env = gymnasium.make(f"robustnn.envs:robustnn/{name}-v0", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=importlib.util.find_spec("pygame") is None)
        check_env_sb3(env.unwrapped, warn=True)
    _, _ = env.reset(seed=1)
    steps = 0
    for _ in range(env.unwrapped.plant.horizon):
        steps += 1
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert np.isfinite(reward)
        if terminated or truncated:
            break
    assert terminated or steps == env.unwrapped.plant.horizon
    env.close()


@pytest.mark.parametrize("name", IDS)
def test_parameters_make_another_plant_and_bad_ones_are_refused(name: str) -> None:
    plant: Any = gymnasium.make(f"robustnn.envs:robustnn/{name}-v0").unwrapped.plant
    changed = 0
    state, action = samples(plant, 20)
    for field in dataclasses.fields(plant):
        value = getattr(plant, field.name)
        for bad in (-1.0, math.nan):
            with pytest.raises(ValueError, match=f"{field.name}: expected"):
                dataclasses.replace(plant, **{field.name: bad})
        if isinstance(value, float) and math.isfinite(value):
            other = dataclasses.replace(plant, **{field.name: value + 0.05})
            nxt = plant.transition(state, action)
            changed += bool(
                (other.transition(state, action) != nxt).any()
                or (other.reward(state, action, nxt) != plant.reward(state, action, nxt)).any()
                or (other.initial(np.full(plant.n_x, 0.3)) != plant.initial(np.full(plant.n_x, 0.3))).any()
                or (other.terminal(state) != plant.terminal(state)).any()
                or field.name in ("max_angle", "max_position")
            )
            assert changed, field.name
    with pytest.raises(ValueError, match="horizon"):
        dataclasses.replace(plant, horizon=1.5)


@each
def test_copies_in_one_vector_environment_follow_the_plant(name: str) -> None:
    plant = PLANTS[name]
    env = TorchVecEnv(plant, num_envs=5, dtype=torch.float64)
    env.seed(0)
    env.reset()
    state = env.state
    actions = np.random.default_rng(0).uniform(-1, 1, (5, plant.n_u)).astype(np.float32)
    _, rewards, _, _ = env.step(actions)
    nxt = plant.transition(state, torch.as_tensor(actions, dtype=torch.float64))
    expected = plant.reward(state, torch.as_tensor(actions, dtype=torch.float64), nxt)
    np.testing.assert_allclose(rewards, expected.numpy(), rtol=1e-6)


def derivative(plant: Any, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """dx/dt from an ever smaller step of the plant itself, Richardson-extrapolated."""
    slopes = []
    for dt in (2e-3, 1e-3):
        slopes.append((dataclasses.replace(plant, dt=dt).transition(x, u) - x) / dt)
    return 2 * slopes[1] - slopes[0]


def lagrangian(plant: Any) -> tuple[Callable[[Any, Any], Any], Callable[[Any, np.ndarray], Any]]:
    """Kinetic minus potential energy (q, dq) and generalised forces (dq, a), from positions of the bodies."""
    if isinstance(plant, CartPole):

        def energy(q: torch.Tensor, dq: torch.Tensor) -> torch.Tensor:
            # Integrate over the pole: points at distance s from the hinge.
            s = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 * 2 * plant.half_length
            vx = dq[0] - s * torch.cos(q[1]) * dq[1]
            vy = -s * torch.sin(q[1]) * dq[1]
            kinetic = 0.5 * plant.cart_mass * dq[0] ** 2 + 0.5 * plant.pole_mass * (vx**2 + vy**2).mean()
            return kinetic - plant.pole_mass * plant.gravity * (s * torch.cos(q[1])).mean()

        def forces(dq: torch.Tensor, a: np.ndarray) -> torch.Tensor:
            return torch.stack(
                (plant.max_force * a[0] - plant.cart_friction * dq[0], -plant.hinge_friction * dq[1])
            )

        return energy, forces
    assert isinstance(plant, TwoLinkArm)

    def energy_arm(q: torch.Tensor, dq: torch.Tensor) -> torch.Tensor:
        s = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        total = torch.zeros((), dtype=torch.float64)
        angle, rate = q[0] + q[1], dq[0] + dq[1]
        x1 = s * plant.length_1
        total = total + 0.5 * plant.mass_1 * (x1**2).mean() * dq[0] ** 2
        total = total - plant.mass_1 * plant.gravity * (x1 * torch.sin(q[0])).mean()
        x2 = s * plant.length_2
        vx = -plant.length_1 * torch.sin(q[0]) * dq[0] - x2 * torch.sin(angle) * rate
        vy = plant.length_1 * torch.cos(q[0]) * dq[0] + x2 * torch.cos(angle) * rate
        total = total + 0.5 * plant.mass_2 * (vx**2 + vy**2).mean()
        height = plant.length_1 * torch.sin(q[0]) + x2 * torch.sin(angle)
        return total - plant.mass_2 * plant.gravity * height.mean()

    def forces_arm(dq: torch.Tensor, a: np.ndarray) -> torch.Tensor:
        torque = torch.tensor([plant.max_torque_1 * a[0], plant.max_torque_2 * a[1]])
        return torque - plant.friction * dq

    return energy_arm, forces_arm


@pytest.mark.parametrize(
    "name", ["cart-pole", "cart-pole with friction", "swing-up", "arm", "arm in a vertical plane"]
)
def test_mechanics_obey_the_equations_of_lagrange(name: str) -> None:
    plant: Any = PLANTS[name]
    energy, forces = lagrangian(plant)
    rng = np.random.default_rng(5)
    n = plant.n_x // 2
    for _ in range(5):
        q, dq = (torch.tensor(rng.uniform(-2, 2, n)) for _ in range(2))
        a = rng.uniform(-1, 1, plant.n_u)
        mass = torch.func.jacrev(torch.func.jacrev(energy, argnums=1), argnums=1)(q, dq)
        mixed = torch.func.jacrev(torch.func.jacrev(energy, argnums=1), argnums=0)(q, dq)
        right = torch.func.jacrev(energy, argnums=0)(q, dq) + forces(dq, a) - mixed @ dq
        acceleration = torch.linalg.solve(mass, right).numpy()
        # The plant's own acceleration: its step over a vanishing time.
        got = derivative(plant, np.concatenate([q.numpy(), dq.numpy()]), a)
        np.testing.assert_allclose(got[:n], dq.numpy(), atol=1e-4)
        np.testing.assert_allclose(got[n:], acceleration, rtol=2e-4, atol=2e-4)


def exact_step(plant: Any, rate: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    return solve_ivp(lambda t, z: rate(z), (0.0, plant.dt), x, rtol=1e-12, atol=1e-12).y[:, -1]


def test_quadrotor_step_by_an_independent_integrator() -> None:
    plant = PlanarQuadrotor(drag=0.1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, a = rng.uniform(-1, 1, 6), rng.uniform(-1, 1, 2)
        left, right = (0.5 * plant.mass * plant.gravity * (1 + plant.authority * v) for v in a)

        def rate(z: np.ndarray, left: float = left, right: float = right) -> np.ndarray:
            total = left + right
            return np.array(
                [
                    z[3], z[4], z[5],
                    (-total * np.sin(z[2]) - plant.drag * z[3]) / plant.mass,
                    (total * np.cos(z[2]) - plant.drag * z[4]) / plant.mass - plant.gravity,
                    plant.arm * (right - left) / plant.inertia,
                ]
            )  # fmt: skip

        np.testing.assert_allclose(
            plant.transition(x, a), exact_step(plant, rate, x), atol=1e-5
        )  # the method's own error


def test_oscillator_step_and_limit_cycle() -> None:
    plant = VanDerPol(damping=0.5)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, a = rng.uniform(-2, 2, 2), rng.uniform(-1, 1, 1)
        expected = exact_step(
            plant, lambda z, a=a: np.array([z[1], 0.5 * (1 - z[0] ** 2) * z[1] - z[0] + 3.0 * a[0]]), x
        )
        np.testing.assert_allclose(plant.transition(x, a), expected, atol=1e-6)
    x, largest = np.array([0.1, 0.0]), 0.0
    for t in range(4000):
        x = plant.transition(x, np.zeros(1))
        largest = max(largest, abs(x[0])) if t > 2000 else 0.0
    assert largest == pytest.approx(2.0, abs=0.02)  # the amplitude of the limit cycle


def test_chain_is_its_matrices_and_passive() -> None:
    plant = SpringChain(masses=4)
    a, b, c = plant.matrices()
    continuous = plant.continuous()
    exact = expm(plant.dt * np.block([[continuous.a, continuous.b], [np.zeros((1, 9))]]))
    np.testing.assert_allclose(a, exact[:8, :8], atol=1e-13)
    np.testing.assert_allclose(b, exact[:8, 8:], atol=1e-13)
    x, u = samples(plant, 20)
    np.testing.assert_allclose(plant.transition(x, u), x @ a.T + np.clip(u, -1, 1) @ b.T, atol=1e-12)
    assert np.abs(np.linalg.eigvals(a)).max() < 1.0
    linear = linearize(plant, np.zeros(8), np.zeros(1))
    np.testing.assert_allclose(linear.a, a, atol=1e-13)
    np.testing.assert_allclose(linear.c, c, atol=0)
    with pytest.raises(ValueError, match="masses: expected a whole number"):
        SpringChain(masses=1.5)  # type: ignore[arg-type]


def test_double_integrator_by_hand() -> None:
    plant = DoubleIntegrator(mass=2.0, max_force=3.0)
    nxt = plant.transition(np.array([1.0, -0.5]), np.array([0.5]))
    np.testing.assert_allclose(nxt, [1.0 - 0.05 + 0.5 * 0.01 * 0.75, -0.5 + 0.1 * 0.75], rtol=1e-15)
    assert float(plant.reward(nxt, np.array([0.5]), np.array([2.0, 1.0]))) == pytest.approx(
        -(4.0 + 0.1 + 0.01 * 2.25)
    )


def test_start_states_fill_their_range() -> None:
    for plant in PLANTS.values():
        low, high = plant.initial(np.zeros(plant.n_x)), plant.initial(np.full(plant.n_x, 1.0))
        assert (low < high).all()
        middle = plant.initial(np.full(plant.n_x, 0.5))
        np.testing.assert_allclose(middle, 0.5 * (low + high), atol=1e-12)


def test_ends_of_the_cart_pole() -> None:
    plant = CartPole()
    states = np.array(
        [[2.39, 0, 9, 9], [2.41, 0, 0, 0], [-2.41, 0, 0, 0], [0, 0.49, 0, 0], [0, -0.51, 0, 0.0]]
    )
    assert plant.terminal(states).tolist() == [False, True, True, False, True]
    assert not CartPoleSwingUp().terminal(1e3 * states).any()
