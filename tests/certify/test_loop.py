"""Certified gains of closed loops and the worst gains found, in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from robustnn import LBDN
from robustnn.bounds.recursion import gain_squared
from robustnn.certify.loop import certify_loop
from robustnn.certify.quadratic import quadratic_policy
from robustnn.certify.worst import worst_gain
from robustnn.closedloop import ControlProblem, control_problem, loop_gain, lqr, static_controller
from robustnn.closedloop.linear import hinf_norm
from robustnn.envs import DoubleIntegrator, SpringChain
from robustnn.errors import CertificateError, InvalidArgumentError, ShapeError
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies import ActionMap, Normalization

EPS = torch.finfo(torch.float64).eps
LIMITS = (-1.0, 1.0)


def chain_problem(masses: int = 1, damping: float = 1.0, **options: Any) -> ControlProblem:
    plant = SpringChain(masses=masses, damping=damping, max_force=1.0)
    return control_problem(plant, [0.0] * plant.n_x, [0.0], **options)


def linear_network(gain: np.ndarray) -> ExplicitMLP:
    return ExplicitMLP((torch.from_numpy(gain),), (torch.full((1,), 0.3, dtype=torch.float64),), "identity")


def velocity_feedback(problem: ControlProblem, gain: float) -> ExplicitMLP:
    """-g tanh of the velocity of the last mass, smoothly saturating."""
    row = torch.zeros(1, len(problem.c), dtype=torch.float64)
    row[0, -1] = 1.0
    return ExplicitMLP((row, torch.tensor([[-gain]]).double()), (None, None), "tanh")


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu", "sigmoid"])
def test_quadratic_form_bounds_what_the_linear_map_leaves(activation: str) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 3), (5, 7), (2, 5)]
    weights = tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    known = quadratic_policy(ExplicitMLP(weights, (None,) * 3, activation), LIMITS)
    theta = known.multipliers()
    gain = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    gamma = known.proved(theta, gain)
    x = torch.randn(4000, 3, dtype=torch.float64, generator=generator)
    step = 10.0 ** torch.empty(4000, 1).double().uniform_(-4, 1, generator=generator) * torch.randn(
        4000, 3, dtype=torch.float64, generator=generator
    )
    rest = known.function(x + step) - known.function(x) - step @ gain.T
    allowed = (step @ gamma * step).sum(-1)
    assert bool((rest.square().sum(-1) <= allowed * (1 + 1e-9)).all())
    # With K = 0 the form is the matrix of the LipSDP recursion.
    norm = float(torch.linalg.eigvalsh(known.gamma(theta, torch.zeros_like(gain)))[-1])
    assert norm == pytest.approx(float(gain_squared(known.chain, theta)), rel=1e-9)


def test_gradient_ascent_comes_close_to_the_quadratic_form_and_stays_below() -> None:
    # At zero all slopes of tanh without biases are largest at once; those of a random relu network never are.
    generator = torch.Generator().manual_seed(3)
    weights = tuple(
        torch.randn(s, dtype=torch.float64, generator=generator) for s in [(6, 2), (4, 6), (1, 4)]
    )
    known = quadratic_policy(ExplicitMLP(weights, (None,) * 3, "tanh"))
    gain = 0.05 * torch.randn(1, 2, dtype=torch.float64, generator=generator)
    gamma = known.proved(known.multipliers(), gain)
    x = torch.randn(64, 2, dtype=torch.float64, generator=generator).requires_grad_()
    step = (0.1 * torch.randn(64, 2, dtype=torch.float64, generator=generator)).requires_grad_()
    adam = torch.optim.Adam([x, step], 0.02)
    best = 0.0
    for _ in range(150):
        rest = known.function(x + step) - known.function(x) - step @ gain.T
        ratio = rest.square().sum(-1) / (step @ gamma * step).sum(-1)
        best = max(best, float(ratio.detach().max()))
        adam.zero_grad()
        (-ratio.sum()).backward()
        adam.step()
    assert 0.25 < best <= 1.0 + 1e-9  # squared; the multipliers are the best for K = 0


def test_one_neuron_is_a_sector() -> None:
    # u = -g tanh(v): with K = -g/2 the rest is at most g/2, and that slope is attained.
    problem = chain_problem()
    known = quadratic_policy(velocity_feedback(problem, 3.0))
    half = torch.tensor([[0.0, -1.5]], dtype=torch.float64)
    gammas = [known.gamma((torch.tensor([t]).double(),), half)[1, 1] for t in np.linspace(4.502, 20.0, 500)]
    assert float(min(gammas)) == pytest.approx(1.5**2, rel=1e-3)
    assert float(min(gammas)) >= 1.5**2 * (1 - 16 * EPS)


@pytest.mark.parametrize("process", [None, [0.0, 0.1]])
def test_an_affine_policy_has_the_norm_and_the_attack_finds_it(process: list[float] | None) -> None:
    problem = chain_problem(process=process)
    gain = -lqr(problem)[0]
    expected = loop_gain(problem, static_controller(problem, gain))
    certificate = certify_loop(problem, linear_network(gain))
    assert expected * (1 - 1e-9) <= certificate.gain <= expected * (1 + 1e-5)
    worst = worst_gain(problem, linear_network(gain), steps=250, sizes=(1.0,), iterations=12)
    assert 0.99 * expected <= worst.gain <= expected * (1 + 1e-9)
    assert list(worst.history) == sorted(worst.history)


def test_an_unstable_plant_needs_an_affine_policy() -> None:
    problem = control_problem(DoubleIntegrator(), [0.0, 0.0], [0.0])
    gain = -lqr(problem)[0]
    assert certify_loop(problem, linear_network(gain)).gain == pytest.approx(
        loop_gain(problem, static_controller(problem, gain)), rel=1e-5
    )
    with pytest.raises(CertificateError, match="expected a loop that the small-gain theorem covers"):
        certify_loop(problem, linear_network(gain), limits=LIMITS, iterations=10)


@pytest.mark.parametrize(("seed", "limits"), [(0, None), (1, LIMITS), (2, LIMITS)])
def test_certified_gain_is_above_the_worst_found(seed: int, limits: tuple[float, float] | None) -> None:
    torch.manual_seed(seed)
    problem = chain_problem(process=[0.0, 0.1])
    net = LBDN(2, [16, 16], 1, lipschitz=0.3)
    certificate = certify_loop(problem, net, limits=limits, iterations=30)
    assert certificate.small_gain < 1.0
    worst = worst_gain(problem, net, limits=limits, steps=100, iterations=8, state=[0.3, -0.2])
    assert 0.2 * certificate.gain < worst.gain <= certificate.gain
    # The disturbance, replayed without the code of the attack, has the gain that is claimed.
    policy = quadratic_policy(net, limits).function
    x = np.array([[0.3, -0.2], [0.3, -0.2]])
    energy = 0.0
    for d in worst.disturbance.numpy():
        seen = x + np.stack([d[2:], 0 * d[2:]])
        u = policy(torch.from_numpy(seen)).numpy()
        z = np.concatenate([x @ problem.state_weight, u @ problem.action_weight], 1)
        energy += ((z[0] - z[1]) ** 2).sum()
        x = x @ problem.a.T + u @ problem.b.T + np.stack([problem.process @ d[:2], np.zeros(2)])
    assert np.sqrt(energy / (worst.disturbance**2).sum().item()) == pytest.approx(worst.gain, rel=1e-9)


def test_a_linear_part_certifies_what_small_gain_alone_does_not() -> None:
    problem = chain_problem(damping=0.3)
    policy = velocity_feedback(problem, 1.0)
    alone = hinf_norm(problem.a, problem.b, problem.c[1:]) * 1.0
    assert alone > 2.0  # Lipschitz bound times the plant's gain: no certificate with K = 0
    certificate = certify_loop(problem, policy, iterations=30)
    assert certificate.linear[0, 1] < -0.1 and certificate.small_gain < 1.0
    worst = worst_gain(problem, policy, steps=200, iterations=10)
    assert worst.gain <= certificate.gain < 4.0 * worst.gain


def test_the_bound_grows_with_the_gain_of_the_policy_and_scales_with_the_sensor() -> None:
    problem = chain_problem()
    gains = [certify_loop(problem, velocity_feedback(problem, g), iterations=30).gain for g in (0.1, 0.4)]
    assert gains == sorted(gains)
    tenth = chain_problem(sensor=[0.1, 0.1])
    scaled = certify_loop(tenth, velocity_feedback(problem, 0.4), iterations=30).gain
    assert scaled == pytest.approx(0.1 * gains[1], rel=1e-5)


def test_an_action_map_is_taken_with_all_its_stages() -> None:
    problem = chain_problem()
    net = velocity_feedback(problem, 0.5)
    std = torch.tensor([2.0, 0.5], dtype=torch.float64)
    low, high = torch.tensor([-0.4]).double(), torch.tensor([0.4]).double()
    plain = ActionMap(net, Normalization(torch.zeros(2).double(), std, 10.0), low, high)
    known = quadratic_policy(plain, LIMITS)
    assert known.chain.widths == (2, 1, 1, 1)  # clip of the observation, tanh, action limits, actuator
    squashed = quadratic_policy(ActionMap(net, None, low, high, squash=True))
    assert squashed.chain.widths == (1, 1)
    x = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(known.function(x), plain(x))
    steep = ActionMap(
        ExplicitMLP((50 * net.weights[0], net.weights[1]), (None, None), "tanh"), None, low, high
    )
    bound = (
        float(
            torch.linalg.eigvalsh(
                quadratic_policy(steep).gamma(
                    quadratic_policy(steep).multipliers(), torch.zeros(1, 2).double()
                )
            )[-1]
        )
        ** 0.5
    )
    assert bound == pytest.approx(25.0, rel=1e-3)
    wide = certify_loop(problem, plain, iterations=20)
    assert worst_gain(problem, plain, steps=60, iterations=5).gain <= wide.gain


def test_bad_calls() -> None:
    problem = chain_problem()
    with pytest.raises(ShapeError, match="policy: expected 2 observations and 1 actions, got 3 and 1"):
        certify_loop(problem, LBDN(3, [4], 1))
    with pytest.raises(InvalidArgumentError, match="limits: expected low < high"):
        certify_loop(problem, LBDN(2, [4], 1), limits=(1.0, -1.0))
    steep = LBDN(2, [8], 1, lipschitz=500.0)
    with pytest.raises(CertificateError, match="a small gain of"):
        certify_loop(chain_problem(damping=0.05), steep, iterations=5)
    with pytest.raises(InvalidArgumentError, match="sizes"):
        worst_gain(problem, LBDN(2, [4], 1), sizes=(0.0,))
    network = LBDN(2, [4], 2).explicit()
    with pytest.raises(InvalidArgumentError, match="continuous actions"):
        quadratic_policy(ActionMap(network, kind="discrete", choices=(2,)))
