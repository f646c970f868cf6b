"""How far outputs can move: bounds of all directions against gradient ascent, brute force and other bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from robustnn import MLP, ExplicitMLP
from robustnn.bounds import lipsdp, local_bound, lower_bound
from robustnn.certify import certify_policy, local_change
from robustnn.certify.change import network_row, output_change
from robustnn.certify.local import chord_slopes
from robustnn.certify.weights import input_weights
from robustnn.params import ACTIVATIONS
from tests.certify.models import FOUR, model_of, states
from tests.networks import ACTIVATION_NAMES, exported, randomised

UNIT = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)


def network_of(activation: str, widths: tuple[int, ...] = (10, 10), n_out: int = 3) -> ExplicitMLP:
    network = exported(randomised(MLP(4, widths, n_out, activation=activation, dtype=torch.float64), 1.0))
    return network.map(lambda t: t / t.shape[-1] ** 0.5)


def change_of(
    network: ExplicitMLP, norm: str, method: str = "auto", unit: Tensor = UNIT, **changed: Any
) -> Any:
    n_out = network.out_features
    settings: dict[str, Any] = {
        "declared": 1e3 * torch.eye(n_out, dtype=torch.float64),
        "output_scale": torch.ones(n_out, dtype=torch.float64),
        "multipliers": None,
        "groups": (n_out,),
        "iterations": 60,
        **changed,
    }
    return output_change(network, unit, norm, method=method, **settings)


def largest_gain(network: ExplicitMLP, norm: str, unit: Tensor) -> float:
    """Largest slope of a scalar network in the dual norm that gradient ascent finds."""
    power = 2.0 if norm == "l2" else 1.0
    x = (2.0 * states(64)).requires_grad_()
    best = 0.0
    for _ in range(60):
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        gain = (slope * unit).abs().pow(power).sum(-1).pow(1.0 / power)
        best = max(best, float(gain.detach().max()))
        if not gain.requires_grad:
            break
        (uphill,) = torch.autograd.grad(gain.sum(), x, allow_unused=True)
        if uphill is None:
            break
        x = (x + 0.1 * uphill / uphill.norm(dim=-1, keepdim=True).clamp_min(1e-9)).detach().requires_grad_()
    return best


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_above_gradient_ascent_for_every_output_and_every_pair(activation: str, norm: str) -> None:
    network = network_of(activation)
    pairs = change_of(network, norm).pairs
    assert torch.equal(pairs, pairs.mT)
    for i, j in ((0, 0), (1, 1), (0, 1), (1, 2)):
        row = network_row(network, i, j)
        found = largest_gain(row, norm, UNIT)
        assert found <= float(pairs[i, j])
        if activation == "identity":
            assert float(pairs[i, j]) <= found * (1 + 1e-6)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_one_proof_for_all_directions_is_as_good_as_its_multipliers(activation: str) -> None:
    network = network_of(activation)
    change = change_of(network, "l2", unit=torch.ones(4, dtype=torch.float64))
    whole = lipsdp(network, iterations=60).value
    factor = change.factors[1]
    assert float(torch.linalg.matrix_norm(factor, ord=2)) == pytest.approx(whole, rel=1e-6)
    assert float(change.norm(torch.ones(3, dtype=torch.float64))) <= whole * (1 + 1e-6)
    scale = torch.tensor([1.0, 0.1, 4.0], dtype=torch.float64)
    x = states(40)
    found = lower_bound(network, x, output_scale=1.0 / scale, iterations=60).value
    assert found <= float(change.norm(scale))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_search_per_direction_is_never_worse(norm: str) -> None:
    network = network_of("tanh")
    plain, searched = (change_of(network, norm, method).pairs for method in ("auto", "lipsdp"))
    assert bool((searched <= plain).all()) and float((searched / plain).mean()) < 0.99
    if norm == "l2":
        unit = UNIT.clamp_min(1e-12)
        row = network_row(network, 0, 2)
        same_effort = lipsdp(row, input_scale=unit, iterations=60).value
        assert float(searched[0, 2]) <= 1.001 * same_effort


def test_declared_and_constant() -> None:
    network = network_of("relu")
    assert torch.equal(
        change_of(network, "l2", "declared").factors[0], 1e3 * torch.eye(3, dtype=torch.float64)
    )
    *weights, last = network.weights
    constant = ExplicitMLP((*weights, torch.zeros_like(last)), network.biases, "relu")
    assert not bool(change_of(constant, "l2").pairs.any())


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (3, 1), (4, 2), (6, 6)])
def test_weights_of_a_box_solve_the_relaxation(n: int, rank: int) -> None:
    root = states(rank, n, seed=n)
    quadratic = root.mT @ root
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)
    exact = float(((signs @ quadratic) * signs).sum(-1).max())
    values = []
    for weight in input_weights(quadratic, "linf"):
        assert float(weight.sum()) == pytest.approx(1.0, rel=1e-12) and bool((weight > 0).all())
        values.append(
            float(torch.linalg.eigvalsh(weight.rsqrt().unsqueeze(-1) * quadratic * weight.rsqrt())[-1])
        )
    # The relaxation itself: unit vectors in the place of signs, by coordinate ascent.
    vectors = states(n, n, seed=1)
    for k in n * list(range(n)) * 20:
        rest = quadratic[k] @ vectors - quadratic[k, k] * vectors[k]
        vectors[k] = vectors[k] if n == 1 else rest
        vectors[k] /= vectors[k].norm()
    relaxed = float((quadratic * (vectors @ vectors.mT)).sum())
    assert exact * (1 - 1e-12) <= relaxed * (1 + 1e-9) and relaxed * (1 - 1e-9) <= min(values)
    assert min(values) <= relaxed * (1.0 + 1e-3)
    assert torch.equal(input_weights(quadratic, "l2")[0], torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_chord_slopes_by_difference_quotients(activation: str) -> None:
    function = ACTIVATIONS[activation].function
    centre = torch.tensor([-30.0, -4.0, -1.0, -0.1, 0.0, 0.2, 1.5, 6.0, 25.0], dtype=torch.float64).unsqueeze(
        -1
    )
    reach = torch.tensor([1e-12, 1e-6, 1e-2, 0.3, 2.0, 10.0], dtype=torch.float64)
    alpha, beta = chord_slopes(activation, centre.expand(-1, 6), reach.expand(9, -1))
    assert bool((alpha >= ACTIVATIONS[activation].slope_min).all() and (alpha <= beta).all())
    offsets = torch.linspace(-1.0, 1.0, 400, dtype=torch.float64)
    for k, r in enumerate(reach):
        steps = r * offsets
        quotient = (function(centre + steps) - function(centre)) / steps
        noise = 1e-15 * (1.0 + centre.abs()) / steps.abs()
        low, high = (quotient + noise).amin(-1), (quotient - noise).amax(-1)
        assert bool((alpha[:, k] <= (quotient + noise).amax(-1)).all())
        assert bool((alpha[:, k] <= low + 1e-9).all()) and bool((high <= beta[:, k] + 1e-9).all())
        if r >= 1e-2:  # and not much wider than need be
            assert bool((quotient.amin(-1) - alpha[:, k] < 1e-2).all())
            assert bool((beta[:, k] - quotient.amax(-1) < 0.5).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("arch", [[], [12], [12, 12], [8, 8, 8]])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.LeakyReLU])
def test_local_change_holds_and_tends_to_the_gradient(activation: type, arch: list[int], norm: str) -> None:
    kwargs = {"net_arch": arch, "activation_fn": activation}
    model = model_of("DQN", spaces.Discrete(3), policy_kwargs=kwargs, steps=30)
    scale = (1.0, 0.5, 0.0, 2.0)
    certificate = certify_policy(model, norm=norm, scale=scale)
    network, points = certificate.path.network, states(20)
    rows = network.weights[-1]
    for size in (1e-3, 0.1, 1.0):
        radius = points.new_full((20,), size)
        bound = local_change(certificate, points, radius, rows)
        many = local_change(certificate, points, radius, rows.expand(20, -1, -1))
        torch.testing.assert_close(many, bound, rtol=1e-12, atol=1e-15)
        z = states(200, seed=5)
        z = z / (z.norm(dim=-1, keepdim=True) if norm == "l2" else z.abs().amax(-1, keepdim=True))
        moved = network(points.unsqueeze(1) + size * z * torch.tensor(scale)) - network(points).unsqueeze(1)
        assert bool((moved.abs().amax(1) <= bound * (1 + 1e-9)).all())
        assert bool((bound <= certificate.change.pairs.diagonal() * size * 8).all())
    jacobian = torch.func.vmap(torch.func.jacrev(network))(points) * torch.tensor(scale)
    slope = jacobian.norm(dim=-1) if norm == "l2" else jacobian.abs().sum(-1)
    tiny = local_change(certificate, points, points.new_full((20,), 1e-6), rows) / 1e-6
    torch.testing.assert_close(tiny, slope, rtol=2e-4, atol=1e-6)


def test_local_change_is_as_good_as_local_lipschitz_bounds() -> None:
    model = model_of("DQN", spaces.Discrete(2), FOUR)
    certificate = certify_policy(model)
    network, points = certificate.path.network, states(8)
    row = network_row(network, 0, 1)
    for size in (0.01, 0.1):
        bound = local_change(certificate, points, points.new_full((8,), size), row.weights[-1]).squeeze(-1)
        other = local_bound(row, points, size, iterations=10) * size
        assert float((bound / other).mean()) < 1.1


def test_local_change_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = certify_policy(model_of("DQN", spaces.Discrete(2)))
    points, rows = states(10), certificate.path.network.weights[-1]
    whole = local_change(certificate, points, points.new_full((10,), 0.1), rows)
    monkeypatch.setattr("robustnn.certify.local._CHUNK", 24 * 24 * 3)
    pieces = local_change(certificate, points, points.new_full((10,), 0.1), rows.expand(10, -1, -1))
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=0)
    assert local_change(certificate, points[:0], points[:0, 0], rows).shape == (0, 2)
    assert not math.isnan(float(whole.sum()))
