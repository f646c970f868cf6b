"""Changes of distributions: the bounds hold under attack, and are attained by linear networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from robustnn.certify import PolicyCertificate, certify_policy, distribution_change
from robustnn.certify.stochastic import _divergence, _variation
from robustnn.errors import UnsupportedSpaceError
from tests.certify.models import model_of, states

UNEQUAL = (0.1, 0.5, 0.05, 0.5)
BOX = spaces.Box(-2.0, 2.0, (2,))
EPS32 = float(np.finfo(np.float32).eps)


def attacked(
    certificate: PolicyCertificate, points: Tensor, eps: float, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Largest distance of outputs that projected gradient ascent finds, per point."""
    network, scale = certificate.path.network, torch.tensor(certificate.scale)
    nominal = network(points).detach()
    largest = torch.zeros(len(points), dtype=torch.float64)
    for restart in range(4):
        z = 0.1 * states(len(points), points.shape[-1], seed=restart)
        for _ in range(12):
            z = z.detach().requires_grad_()
            value = distance(nominal, network(points + eps * scale * z))
            largest = torch.maximum(largest, value.detach())
            (gradient,) = torch.autograd.grad(value.sum(), z)
            if certificate.norm == "linf":
                z = (z.detach() + 0.7 * gradient.sign()).clamp(-1.0, 1.0)
            else:
                z = z.detach() + 0.7 * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-300)
                z = z * z.norm(dim=-1, keepdim=True).reciprocal().clamp_max(1.0)
    return largest


def kl_of(groups: tuple[int, ...], binary: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        if binary:
            return kl_divergence(Bernoulli(logits=a), Bernoulli(logits=b)).sum(-1)
        pairs = zip(a.split(groups, -1), b.split(groups, -1), strict=True)
        return torch.stack(
            [kl_divergence(Categorical(logits=p), Categorical(logits=q)) for p, q in pairs]
        ).sum(0)

    return distance


def tv_of(groups: tuple[int, ...], binary: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Total variation distance of the joint distribution of all components."""

    def joint(logits: Tensor) -> Tensor:
        if binary:
            parts = [torch.stack((p, 1.0 - p), -1) for p in logits.sigmoid().unbind(-1)]
        else:
            parts = [part.softmax(-1) for part in logits.split(groups, -1)]
        result = parts[0]
        for part in parts[1:]:
            result = (result.unsqueeze(-1) * part.unsqueeze(-2)).flatten(-2)
        return result

    return lambda a, b: 0.5 * (joint(a) - joint(b)).abs().sum(-1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "actions", [spaces.Discrete(2), spaces.Discrete(4), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]
)
def test_discrete_distributions_under_attack(actions: spaces.Space, norm: str) -> None:
    model = model_of("PPO", actions)
    certificate = certify_policy(model, norm=norm, scale=UNEQUAL)
    groups, binary = certificate.path.action_map.choices, isinstance(actions, spaces.MultiBinary)
    points = states(100)
    for eps, local in ((0.02, False), (0.5, False), (4.0, False), (0.1, True)):
        change = distribution_change(certificate, points, eps, local=local)
        assert change.w2 is None
        assert bool((change.tv <= (0.5 * change.kl).sqrt() * (1 + 1e-9)).all()) and bool(
            (change.tv <= 1).all()
        )
        assert bool((attacked(certificate, points, eps, kl_of(groups, binary)) <= change.kl).all())
        assert bool((attacked(certificate, points, eps, tv_of(groups, binary)) <= change.tv).all())


@pytest.mark.parametrize("actions", [spaces.Discrete(2), spaces.MultiBinary(1)])
def test_attained_for_two_choices_by_a_linear_network(actions: spaces.Space) -> None:
    model = model_of("PPO", actions, policy_kwargs={"net_arch": []}, steps=80)
    certificate = certify_policy(model, scale=UNEQUAL)
    points, binary = states(50), isinstance(actions, spaces.MultiBinary)
    for eps in (0.02, 1.0):
        change = distribution_change(certificate, points, eps)
        kl = attacked(certificate, points, eps, kl_of((2,), binary))
        tv = attacked(certificate, points, eps, tv_of((2,), binary))
        # The allowance for rounding, relative to a change of the logits that is small here.
        assert float((kl / change.kl).min()) > 1 - 2e-2 and float((kl / change.kl).max()) <= 1.0
        assert float((tv / change.tv).min()) > 1 - 1e-2 and float((tv / change.tv).max()) <= 1.0


def gaussian_kl(std: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: kl_divergence(Normal(a, std), Normal(b, std)).sum(-1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_gaussian_policies_under_attack(norm: str) -> None:
    for kwargs, exact in (({}, False), ({"net_arch": []}, True)):
        model = model_of("PPO", BOX, policy_kwargs=kwargs, steps=80)
        with torch.no_grad():
            model.policy.log_std.copy_(torch.tensor([-1.0, 0.5]))
        std = model.policy.log_std.detach().double().exp()
        certificate = certify_policy(model, norm=norm, scale=UNEQUAL)
        points = states(100)
        for eps, local in ((0.05, False), (1.0, False), (0.1, True)):
            change = distribution_change(certificate, points, eps, local=local)
            kl = attacked(certificate, points, eps, gaussian_kl(std))
            w2 = attacked(certificate, points, eps, lambda a, b: (a - b).norm(dim=-1))
            assert change.w2 is not None
            assert bool((kl <= change.kl).all()) and bool((w2 <= change.w2).all())
            if exact and norm == "l2":
                assert float((kl / change.kl).min()) > 0.99 and float((w2 / change.w2).min()) > 0.995


def test_total_variation_of_gaussians_by_integration() -> None:
    model = model_of("PPO", spaces.Box(-1.0, 1.0, (1,)))
    certificate = certify_policy(model)
    change = distribution_change(certificate, states(1)[0], 0.3)
    assert change.w2 is not None
    std = float(model.policy.log_std.detach().exp())
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = [Normal(m, std).log_prob(x).exp() for m in (0.0, float(change.w2))]
    integral = float(torch.trapezoid((density[0] - density[1]).abs(), x)) / 2
    assert float(change.tv) == pytest.approx(integral, rel=1e-4)
    assert float(change.kl) == pytest.approx(0.5 * (float(change.w2) / std) ** 2, rel=1e-4)
    assert float(change.tv) < math.sqrt(0.5 * float(change.kl))


@pytest.mark.parametrize("span", [1e-6, 1e-3, 0.0099, 0.0101, 0.3, 2.0, 30.0, 900.0])
@pytest.mark.parametrize("rest", [0.0, 1e-30, 1e-9, 0.01, 0.3, 0.5, 0.8])
def test_divergences_are_the_largest_over_all_sets_of_choices(span: float, rest: float) -> None:
    def kl(a: float) -> float:
        if a == 0.0:
            return 0.0
        if a > 0.5:  # in a form without cancellation
            return (1 - a) * span + math.log1p((1 - a) * math.expm1(-span))
        gained = math.log1p(a * math.expm1(span)) if span < 700 else max(0.0, math.log(a) + span)
        return gained - a * span

    def tv(a: float) -> float:
        return a * (1 - a) / ((1 / math.expm1(span) if span < 700 else 0.0) + a) if a else 0.0

    grid = np.concatenate(
        [np.linspace(0, 1, 20_001), np.geomspace(1e-4, 0.5, 2000), [rest, 1 / (1 + math.exp(span / 2))]]
    )
    allowed = [a for a in grid.tolist() if a <= rest or a >= 1 - rest]
    upper = rest * span + math.log1p(rest * math.expm1(-span)) if rest < 0.5 else 0.0
    largest_kl, largest_tv = max(upper, *map(kl, allowed)), max(map(tv, allowed))
    tensors = torch.tensor(span, dtype=torch.float64), torch.tensor(rest, dtype=torch.float64).log()
    found_kl, found_tv = float(_divergence(*tensors)), float(_variation(*tensors))
    noise = 4e-16 * span * (rest + 1e-3)  # of the difference in kl()
    assert largest_kl - noise <= found_kl <= largest_kl * (1 + 2e-2) + noise
    assert largest_tv * (1 - 1e-12) <= found_tv <= largest_tv * (1 + 1e-6)
    assert found_kl <= span**2 / 8 * (1 + 1e-9) and found_tv <= math.tanh(span / 4) * (1 + 1e-9)


def test_zero_error_and_shapes() -> None:
    certificate = certify_policy(model_of("PPO", spaces.Discrete(3)))
    flat = states(6).reshape(2, 3, 4)
    change = distribution_change(certificate, flat, 0.0, local=True)
    assert change.kl.shape == change.tv.shape == (2, 3)
    assert float(change.tv.max()) < 1e5 * EPS32
    assert distribution_change(certificate, flat[:0], 0.1).kl.shape == (0, 3)
    one = distribution_change(certificate, flat[1, 1].numpy(), 0.1)
    assert one.kl.shape == ()


def test_masked_choices_have_no_probability() -> None:
    certificate = certify_policy(model_of("MaskablePPO", spaces.Discrete(3)))
    points = states(20)
    everything = distribution_change(certificate, points, 0.5)
    for allowed, largest in (([True, False, False], 0.0), ([True, True, False], 0.999)):
        masked = distribution_change(certificate, points, 0.5, action_masks=np.tile(allowed, (20, 1)))
        assert float((masked.kl / everything.kl).min()) <= largest
        assert bool((masked.kl <= everything.kl.max()).all())


@pytest.mark.parametrize(
    ("algorithm", "actions", "settings", "reason"),
    [
        ("SAC", BOX, {}, "free function of the observation"),
        ("PPO", BOX, {"use_sde": True}, "gSDE"),
        ("TD3", BOX, {}, "deterministic"),
        ("DQN", spaces.Discrete(2), {}, "greedily"),
    ],
)
def test_refused_with_the_reason(
    algorithm: str, actions: spaces.Space, settings: dict[str, Any], reason: str
) -> None:
    certificate = certify_policy(model_of(algorithm, actions, steps=0, **settings))
    with pytest.raises(UnsupportedSpaceError, match=reason):
        distribution_change(certificate, states(2), 0.1)
