"""Linear controllers against formulas, against each other, and in the closed loop of the policies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from robustnn.closedloop import TrajectoryAttack, UniformBall, evaluate, rollout, start_states
from robustnn.closedloop.controlled import ControlledPlant, SwitchedController, wire
from robustnn.closedloop.hinf import _normalise, hinf_controller
from robustnn.closedloop.linear import hinf_norm
from robustnn.closedloop.problem import ControlProblem, control_problem
from robustnn.closedloop.synthesis import (
    LinearController,
    close_loop,
    loop_gain,
    lqg,
    lqr,
    sensor_error_limit,
    static_controller,
)
from robustnn.envs import DoubleIntegrator, Pendulum, SpringChain, VanDerPol
from robustnn.errors import InvalidArgumentError, ShapeError

EPS = np.finfo(np.float64).eps


def random_problem(seed: int, disturbed: bool) -> ControlProblem:
    """An unstable plant of two to five states with all matrices dense."""
    rng = np.random.default_rng(seed)
    n, m, q = rng.integers(2, 6), rng.integers(1, 3), rng.integers(1, 4)
    a = rng.normal(size=(n, n))
    a *= 1.4 / np.abs(np.linalg.eigvals(a)).max()
    root, weight = rng.normal(size=(n, n)), rng.normal(size=(m, m))
    return ControlProblem(
        a,
        rng.normal(size=(n, m)),
        rng.normal(size=(q, n)),
        root @ root.T,
        weight @ weight.T + 0.1 * np.eye(m),
        np.eye(q) + 0.3 * rng.normal(size=(q, q)),
        rng.normal(size=(n, 2)) if disturbed else np.zeros((n, 0)),
        np.zeros(q),
        np.zeros(m),
        dt=0.3,
    )


def upright(**parameters: float) -> ControlProblem:
    return control_problem(Pendulum(**parameters), [0.0, 0.0], [0.0])


def h2_squared(problem: ControlProblem, controller: LinearController) -> float:
    """Mean cost per step under white noise."""
    a, b, c, d = close_loop(problem, controller)
    return float(np.trace(c @ solve_discrete_lyapunov(a, b @ b.T) @ c.T) + np.trace(d @ d.T))


def test_costs_are_the_weights_of_the_reward() -> None:
    plant = SpringChain(masses=2, max_force=3.0, position_cost=2.0, speed_cost=0.4, force_cost=0.05)
    problem = control_problem(plant, [0.0] * 4, [0.0])
    np.testing.assert_allclose(problem.state_cost, np.diag([2.0, 2.0, 0.4, 0.4]), rtol=4 * EPS)
    np.testing.assert_allclose(problem.action_cost, [[0.05 * 9.0]], rtol=8 * EPS)
    root = problem.state_weight
    np.testing.assert_allclose(root @ root, problem.state_cost, atol=8 * EPS)


@pytest.mark.parametrize("seed", range(4))
def test_lqr_solves_its_equation_and_no_other_gain_costs_less(seed: int) -> None:
    problem = random_problem(seed, True)
    a, b, q, r = problem.a, problem.b, problem.state_cost, problem.action_cost
    k, p = lqr(problem)
    residual = a.T @ p @ a - p - a.T @ p @ b @ k + q
    assert np.abs(residual).max() < 1e5 * EPS * np.abs(p).max()

    def cost(gain: np.ndarray) -> float:
        closed = a - b @ gain
        return float(np.trace(solve_discrete_lyapunov(closed.T, q + gain.T @ r @ gain)))

    assert cost(k) == pytest.approx(np.trace(p), rel=1e5 * EPS)
    rng = np.random.default_rng(seed)
    for size in (1e-2, -1e-2, 1e-3):
        assert cost(k + size * rng.normal(size=k.shape)) > cost(k)


@pytest.mark.parametrize("seed", range(4))
def test_lqg_has_the_cost_of_estimation_and_control(seed: int) -> None:
    problem = random_problem(seed, True)
    controller = lqg(problem)
    k, p = lqr(problem)
    noise, w = problem.sensor @ problem.sensor.T, problem.process @ problem.process.T
    a, b, c = problem.a, problem.b, problem.c
    sigma = np.zeros_like(a)
    for _ in range(2000):  # the filter's recursion, from the equations of prediction and update
        gain = sigma @ c.T @ np.linalg.inv(c @ sigma @ c.T + noise)
        after = sigma - gain @ c @ sigma
        sigma = a @ after @ a.T + w
    weight = problem.action_cost + b.T @ p @ b
    expected = np.trace(p @ w) + np.trace(after @ k.T @ weight @ k)
    assert h2_squared(problem, controller) == pytest.approx(expected, rel=1e-9)
    rng = np.random.default_rng(seed)
    for name in "abcd":
        matrix = getattr(controller, name)
        moved = replace(controller, **{name: matrix + 1e-4 * rng.normal(size=matrix.shape)})
        assert h2_squared(problem, moved) > h2_squared(problem, controller)


@pytest.mark.parametrize("seed", range(1, 12, 2))
def test_two_ways_to_the_limit_of_sensor_errors(seed: int) -> None:
    problem = random_problem(seed, False)
    design = hinf_controller(problem)
    limit = sensor_error_limit(problem)  # two Lyapunov equations and no iteration
    assert design.lower <= limit * (1 + 1e-9) and limit <= design.upper * (1 + 1e-9)
    assert design.upper - design.lower <= 1e-6 * design.upper
    assert limit * (1 - 1e-9) <= design.gain <= design.level * (1 + 1e-6)
    assert design.gain == hinf_norm(*close_loop(problem, design.controller))
    assert design.gain >= 0.999 * design.level  # the level is attained, not only kept


@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_hinf_with_disturbances_of_the_state(seed: int) -> None:
    problem = random_problem(seed, True)
    design = hinf_controller(problem)
    assert design.upper - design.lower <= 1e-6 * design.upper
    assert 0.999 * design.level <= design.gain <= design.level * (1 + 1e-6)
    assert sensor_error_limit(problem) < design.lower  # more disturbances, larger limit
    assert design.gain < loop_gain(problem, lqg(problem))
    normal = _normalise(problem)
    assert normal.solve(design.upper) is not None and normal.solve(design.lower) is None


def test_riccati_equations_of_the_level() -> None:
    normal = _normalise(random_problem(0, True))
    solved = normal.solve(40.0)
    assert solved is not None
    x, _ = solved
    row = np.hstack([normal.d11, normal.d12])
    b = np.hstack([normal.b1, normal.b2])
    r = row.T @ row - np.diag([1600.0] * normal.b1.shape[1] + [0.0] * normal.b2.shape[1])
    s = normal.c1.T @ row
    right = (x @ b + s) @ np.linalg.solve(r, b.T @ x + s.T)
    residual = normal.a.T @ x + x @ normal.a + normal.c1.T @ normal.c1 - right
    assert np.abs(residual).max() < 1e7 * EPS * np.abs(right).max()
    assert np.linalg.eigvalsh(x).min() > 0


def test_no_controller_of_low_order_beats_the_limit() -> None:
    from scipy.optimize import minimize

    problem, limit = upright(), sensor_error_limit(upright())
    design = hinf_controller(problem, margin=0.02)
    rng = np.random.default_rng(0)

    def gain(z: np.ndarray) -> float:
        a, b, c, d = z[:4].reshape(2, 2), z[4:10].reshape(2, 3), z[10:12].reshape(1, 2), z[12:].reshape(1, 3)
        moved = replace(design.controller, a=a, b=b, c=c, d=d)
        try:
            return loop_gain(problem, moved)
        except InvalidArgumentError:
            return 1e3

    k = design.controller
    start = np.concatenate([m.ravel() for m in (k.a, k.b, k.c, k.d)])
    best = min(
        minimize(
            gain, start * (1 + s * rng.normal(size=15)), method="Nelder-Mead", options={"maxfev": 300}
        ).fun
        for s in (0.0, 1e-3)
    )
    assert limit * (1 - 1e-9) <= best <= design.gain


def test_a_stable_plant_has_the_limit_zero() -> None:
    problem = control_problem(SpringChain(), [0.0] * 6, [0.0])
    assert sensor_error_limit(problem) == 0.0
    assert loop_gain(problem, static_controller(problem, np.zeros((1, 6)))) == 0.0
    with pytest.raises(InvalidArgumentError, match="Doing nothing has the gain zero"):
        hinf_controller(problem)


def test_limit_scales_with_the_errors_and_ignores_useless_sensors() -> None:
    limit = sensor_error_limit(upright())
    halved = control_problem(Pendulum(), [0.0, 0.0], [0.0], sensor=[0.5] * 3)
    assert sensor_error_limit(halved) == pytest.approx(0.5 * limit, rel=1e-9)
    cosine = control_problem(Pendulum(), [0.0, 0.0], [0.0], sensor=[100.0, 1.0, 1.0])
    assert sensor_error_limit(cosine) == pytest.approx(limit, rel=1e-9)
    # A third sensor, another copy of the angle, makes the errors easier to see through.
    p = upright()
    more = replace(
        p, c=np.vstack([p.c, p.c[1]]), sensor=np.eye(4), observation=np.array([1.0, 0.0, 0.0, 0.0])
    )
    assert sensor_error_limit(more) < 0.99 * limit


@pytest.mark.parametrize("stiffness", [6.0, 8.0, 12.0, 20.0])
def test_bias_of_the_angle_moves_the_pendulum_by_the_static_formula(stiffness: float) -> None:
    # Torque -K (theta + delta) - k omega about the upright, gravity 5 N m/rad: theta = -K delta / (K - 5).
    plant = Pendulum()
    problem = upright()
    controller = static_controller(problem, [[0.0, -stiffness / 2.0, -1.5]])
    a, b, c, d = close_loop(problem, controller)
    still = c @ np.linalg.solve(np.eye(2) - a, b) + d
    assert still[0, 1] == pytest.approx(-stiffness / (stiffness - plant.gravity_torque), rel=1e-10)
    assert loop_gain(problem, controller) >= abs(still[0, 1])
    # The nonlinear plant with a small constant bias of the sine sensor settles there.
    loop = ControlledPlant(plant, controller)
    bias = 1e-5 * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    biased = rollout(loop, lambda y: y + bias, torch.zeros(1, 2, dtype=torch.float64), steps=800)
    expected = -1e-5 * stiffness / (stiffness - plant.gravity_torque)
    assert float(biased.states[-1, 0, 0]) == pytest.approx(expected, rel=1e-3)


def test_a_static_controller_in_the_plant_is_the_policy() -> None:
    plant = Pendulum(max_start_angle=0.2, max_start_speed=0.2)
    gain = torch.tensor([[0.0, -5.0, -1.5]], dtype=torch.float64)
    controller = static_controller(upright(), gain.numpy())
    loop = ControlledPlant(plant, controller)

    def policy(y: torch.Tensor) -> torch.Tensor:
        return (y - torch.tensor([1.0, 0.0, 0.0]).to(y)) @ gain.T.to(y)

    attack = TrajectoryAttack(0.05, horizon=10, iterations=5, method="steepest", refine=3)
    for perturbation in (None, UniformBall(0.1), attack):
        options = {"episodes": 6, "steps": 30, "dtype": torch.float64}
        direct = evaluate(policy, plant, perturbation, **options)
        behind = evaluate(wire, loop, perturbation, **options)
        np.testing.assert_allclose(behind.returns, direct.returns, rtol=1e-9)
    start = start_states(plant, (3,), dtype=torch.float64)
    seen = rollout(loop, wire, start, steps=5, perturbation=UniformBall(0.1))
    used = loop.action(seen.states[:-1], seen.actions)
    torch.testing.assert_close(used, policy(seen.perturbed))


@pytest.mark.parametrize("design", ["lqg", "hinf"])
def test_the_loop_in_simulation_is_the_loop_on_paper(design: str) -> None:
    problem = upright()
    controller = lqg(problem) if design == "lqg" else hinf_controller(problem).controller
    loop = ControlledPlant(Pendulum(), controller)
    rng = np.random.default_rng(0)
    delta = 1e-7 * rng.normal(size=(40, 1, 3))
    sent = iter(torch.from_numpy(delta).unbind(0))
    first = rollout(loop, wire, torch.zeros(1, 4).double(), steps=1)
    assert first.states.shape == (2, 1, 4)
    deltas = list(sent)
    state, cost = torch.zeros(1, 4).double(), 0.0
    a, b, c, d = close_loop(problem, controller)
    x = np.zeros(4)
    for t in range(40):
        seen = loop.observation(state) + deltas[t]
        after = loop.transition(state, seen)
        cost -= float(loop.reward(state, seen, after))
        state, x = after, a @ x + b @ delta[t, 0]
        np.testing.assert_allclose(state[0].numpy(), x, rtol=1e-5, atol=1e-12)
    assert cost <= loop_gain(problem, controller) ** 2 * (delta**2).sum()


def test_hinf_withstands_attacks_that_break_lqg_less() -> None:
    plant = Pendulum(max_start_angle=0.0, max_start_speed=0.0)
    attack = TrajectoryAttack(0.02, method="steepest", horizon=60, iterations=30)
    problem = upright()
    design = hinf_controller(problem, margin=0.01)
    returns = {}
    for name, controller in (("lqg", lqg(problem)), ("hinf", design.controller)):
        result = evaluate(
            wire, ControlledPlant(plant, controller), attack, episodes=2, steps=60, dtype=torch.float64
        )
        returns[name] = result.returns.mean()
    energy = 60 * 0.02**2
    assert returns["lqg"] < returns["hinf"] < 0.0
    assert -returns["hinf"] <= design.gain**2 * energy * (1 + 1e-2)  # the plant is nonlinear
    assert -returns["lqg"] <= loop_gain(problem, lqg(problem)) ** 2 * energy * (1 + 1e-2)
    assert -returns["lqg"] > design.gain**2 * energy  # beyond what the other one can lose at all


def swing_up(plant: Pendulum) -> SwitchedController:
    """Pump energy until the rod is near the upright and slow enough, then hand over."""
    problem = control_problem(plant, [0.0, 0.0], [0.0], process=[1.0, 10.0])

    def energy_law(y: torch.Tensor) -> torch.Tensor:
        cosine, omega = y[..., 0:1], y[..., 2:3]
        energy = 0.5 * plant.inertia * omega**2 + plant.gravity_torque * (cosine - 1.0) - 0.5
        return torch.clamp(-2.0 * energy * omega, -1.0, 1.0)

    def near(y: torch.Tensor) -> torch.Tensor:
        angle = torch.atan2(y[..., 1], y[..., 0])
        return (angle.abs() < 0.4) & ((angle + 0.26 * y[..., 2]).abs() < 0.25)

    return SwitchedController(lqg(problem), energy_law, near)


def test_swing_up_with_a_switch_reaches_the_upright() -> None:
    plant = Pendulum()
    loop = ControlledPlant(plant, swing_up(plant))
    start = start_states(loop, range(16), dtype=torch.float64)
    ended = rollout(loop, wire, start).observations[-1]
    assert bool((ended[:, 0] > 0.999).all()) and bool((ended[:, 2].abs() < 0.05).all())
    np.testing.assert_array_equal(start[:, :2], start_states(plant, range(16), dtype=torch.float64))


def test_bad_calls() -> None:
    with pytest.raises(InvalidArgumentError, match="state, action: expected an equilibrium"):
        control_problem(Pendulum(), [0.3, 0.0], [0.0])
    with pytest.raises(InvalidArgumentError, match="without process noise"):
        hinf_controller(control_problem(DoubleIntegrator(), [0.0, 0.0], [0.0]))
    with pytest.raises(InvalidArgumentError, match="action_cost: expected a symmetric positive definite"):
        upright(torque_cost=0.0)
    with pytest.raises(InvalidArgumentError, match="sensor: expected an invertible matrix"):
        control_problem(VanDerPol(), [0.0, 0.0], [0.0], sensor=[1.0, 0.0])
    blind = replace(upright(), c=np.zeros((3, 2)))
    with pytest.raises(InvalidArgumentError, match="stabilising solution of the filter"):
        lqg(blind)
    with pytest.raises(InvalidArgumentError, match="unseen"):
        sensor_error_limit(blind)
    with pytest.raises(InvalidArgumentError, match="stabilising solution of the lqr"):
        lqr(replace(upright(), b=np.zeros((2, 1))))
    with pytest.raises(ShapeError, match="gain: expected shape"):
        static_controller(upright(), [1.0])
    with pytest.raises(ShapeError, match="b: expected shape"):
        replace(upright(), b=np.zeros((3, 1)))
    with pytest.raises(InvalidArgumentError, match="controller: expected"):
        ControlledPlant(Pendulum(), lambda y: y)  # type: ignore[arg-type]
