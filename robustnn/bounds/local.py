r"""Bounds over a ball of inputs: slopes that a neuron cannot have there are left out.

In three steps: how far the pre-activations can move over the ball, which slopes that allows, and the LipSDP
bound with a slope interval per neuron. A multiplier $\theta$ that serves for all slopes serves for fewer, so the
local bound is never above the global one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustnn.bounds.lmi import certified_bound
from robustnn.bounds.network import Chain, Network, as_network, make_chain
from robustnn.bounds.recursion import gain_squared, greedy, improve, product_rule
from robustnn.bounds.upper import lipsdp
from robustnn.errors import check_finite, check_positive, check_positive_int, check_shape, invalid
from robustnn.linalg import frobenius_norm
from robustnn.nn.scales import Scale
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.explicit import ExplicitMLP

__all__ = ["local_bound"]

_EPS = torch.finfo(torch.float64).eps
_GLOBAL_ITERATIONS = 300
# A neuron that cannot switch has one slope; it is given an interval this wide, relative to the largest slope.
_WIDTH_FLOOR = 1e-4

# Derivatives of the activations. Each either rises everywhere or falls on both sides of zero.
_DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda v: v.clamp_max(0.0).exp(),
    "leaky_relu": lambda v: torch.where(v > 0, 1.0, 0.01).to(v),
    "relu": lambda v: (v > 0).to(v),
    "sigmoid": lambda v: v.sigmoid() * (-v).sigmoid(),
    "softplus": lambda v: torch.where(v > 20, 1.0, v.sigmoid()),  # torch returns v beyond 20
    "tanh": lambda v: v.cosh().square().reciprocal(),
}


def local_bound(
    network: Network,
    center: Tensor,
    radius: float,
    *,
    norm: str = "l2",
    input_scale: Scale | None = None,
    output_scale: Scale | None = None,
    multipliers: Sequence[Tensor] | None = None,
    iterations: int = 100,
) -> Tensor:
    r"""Bound the Lipschitz constant over the balls $\|D_x^{-1}(x - c)\| \le r$.

    $$\|D_y^{-1}(f(x) - f(x'))\|_2 \le \text{bound} \cdot \|D_x^{-1}(x - x')\|_2 \quad\text{for x, x' in the ball}$$

    The pre-activations are enclosed by the best of three: intervals layer by layer, the l2 distance of the hidden
    states from those of the centre, and an interval enclosure of the Jacobian. The bound is the best of: LipSDP with
    the slopes of every neuron over its interval, the norm of the enclosed Jacobian, and the global `lipsdp`.

    Args:
        network: Anything that `as_network` accepts.
        center: Centres c, shape (..., n_in), in the units of the inputs; all balls are bounded in one batch.
        radius: r > 0, in units of the inputs divided by `input_scale`.
        norm: "l2" or "linf", the shape of the ball. The bound itself is between l2 norms for both.
        input_scale: D_x, (n_in,) in the units of the inputs, or a matrix; ones if None.
        output_scale: D_y, (n_out,) in the units of the outputs, or a matrix; ones if None.
        multipliers: Those of the global bound, `lipsdp(network).multipliers`, which saves computing them anew.
        iterations: L-BFGS steps over the multipliers of every ball.

    Returns:
        The bounds, shape (...), float64.

    Raises:
        ShapeError: If `center` or a scale has the wrong shape.
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> net = ExplicitMLP((torch.eye(2), torch.eye(2)), (None, None), "tanh")
        >>> float(local_bound(net, torch.tensor([3.0, -3.0]), 0.5)) < 0.03
        True
    """
    explicit = as_network(network)
    first = explicit.weights[0]
    if not isinstance(center, Tensor):
        raise invalid(
            "center", "a torch.Tensor", type(center).__name__, "Convert it with torch.as_tensor(...)."
        )
    n_in = explicit.in_features
    check_shape("center", center, f"(..., {n_in})", center.ndim > 0 and center.shape[-1] == n_in)
    check_finite("center", center)
    check_positive("radius", radius)
    check_positive_int("iterations", iterations, minimum=0)
    if norm not in ("l2", "linf"):
        raise invalid("norm", "'l2' or 'linf'", repr(norm), "It is the shape of the ball.")
    steps = _GLOBAL_ITERATIONS if multipliers is None else 0
    anywhere = lipsdp(
        explicit,
        multipliers=multipliers,
        input_scale=input_scale,
        output_scale=output_scale,
        iterations=steps,
    )
    points = center.detach().to(first.device, torch.float64).reshape(-1, n_in)
    result = torch.full((len(points),), anywhere.value, dtype=torch.float64, device=first.device)
    chain = make_chain(explicit, input_scale, output_scale)
    if chain.widths and not chain.is_constant and len(points):
        alpha, beta, jacobian_norm = _slopes(explicit, chain, points, float(radius), norm)
        theta = tuple(t.expand(len(points), -1) for t in anywhere.multipliers)
        region = Chain(chain.weights, alpha, beta, chain.spread)
        result = torch.minimum(result, torch.minimum(jacobian_norm, _lipsdp(region, theta, iterations)))
    return result.reshape(center.shape[:-1])


def _lipsdp(region: Chain, theta: tuple[Tensor, ...], iterations: int) -> Tensor:
    best, gain = theta, gain_squared(region, theta)
    for other in (product_rule(region), greedy(region)):
        other_gain = gain_squared(region, other)
        better = (other_gain < gain).unsqueeze(-1)
        best = tuple(torch.where(better, b, a) for a, b in zip(best, other, strict=True))
        gain = torch.minimum(gain, other_gain)
    if bool(gain.isfinite().all()):
        best = improve(region, best, iterations)
    return certified_bound(region, best)[0]


def _slopes(
    network: ExplicitMLP, chain: Chain, points: Tensor, radius: float, norm: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """Slope intervals (B, n_k) of all hidden neurons over the balls, and a bound (B,) of the Jacobian's norm."""
    entry = ACTIVATIONS[network.activation]
    biases = [None if b is None else b.detach().to(torch.float64) for b in network.biases]
    plain = [w.detach().to(torch.float64) for w in network.weights]
    state, state_error = points, torch.zeros_like(points)
    low = high = points  # replaced after the first layer, which the Jacobian encloses exactly
    distance = points.new_full((len(points),), radius * (1.0 if norm == "l2" else points.shape[1] ** 0.5))
    first = chain.spread[0]
    middle = chain.weights[0].expand(len(points), -1, -1)
    spread = torch.zeros_like(middle) if first is None else first.expand_as(middle)
    intervals: list[tuple[Tensor, Tensor]] = []
    for k in range(len(chain.widths)):
        weight, bias = plain[k], biases[k]
        rows = chain.weights[k] if first is None or k > 0 else chain.weights[k].abs() + first
        offset = torch.zeros_like(weight[:, 0]) if bias is None else bias
        pre = state @ weight.mT + offset
        unit = 4 * (weight.shape[1] + 4) * _EPS
        pre_error = state_error @ weight.abs().mT + unit * (state.abs() @ weight.abs().mT + offset.abs())
        reach = radius * _dual_norm(middle.abs() + spread, norm)
        reach = torch.minimum(reach, rows.norm(dim=-1) * distance.unsqueeze(-1)) * (1 + unit) + pre_error
        new_low, new_high = pre - reach, pre + reach
        if k > 0:
            centre, half = (low + high) / 2, (high - low) / 2
            box = centre @ weight.mT + offset
            largest = torch.maximum(low.abs(), high.abs())
            width = half @ weight.abs().mT + unit * (largest @ weight.abs().mT + offset.abs())
            new_low, new_high = torch.maximum(new_low, box - width), torch.minimum(new_high, box + width)
        alpha, beta = _slope_interval(network.activation, new_low, new_high)
        intervals.append(_widened(network.activation, alpha, beta))
        state, state_error = (
            entry.function(pre),
            entry.slope_max * pre_error + 4 * _EPS * entry.function(pre).abs(),
        )
        low, high = entry.function(new_low), entry.function(new_high)
        pad = 4 * _EPS * torch.maximum(low.abs(), high.abs())
        low, high = low - pad, high + pad
        moved = torch.maximum((high - state).abs(), (state - low).abs()) + state_error
        gain = torch.linalg.matrix_norm(rows, ord=2) * beta.amax(-1) * (1 + unit)
        distance = torch.minimum(distance * gain, moved.norm(dim=-1) * (1 + unit))
        middle, spread = _through(chain.weights[k + 1], chain.spread[k + 1], alpha, beta, middle, spread)
    norm_bound = torch.linalg.matrix_norm(middle, ord=2) + frobenius_norm(spread)
    return tuple(a for a, _ in intervals), tuple(b for _, b in intervals), norm_bound * (1 + 1e-12)


def _through(
    weight: Tensor, wrong: Tensor | None, alpha: Tensor, beta: Tensor, middle: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Enclose W D J for diagonal D in [alpha, beta] and J in middle +- spread, rounding included."""
    centre, half = ((alpha + beta) / 2).unsqueeze(-1), ((beta - alpha) / 2).unsqueeze(-1)
    magnitude = (centre + half) * (middle.abs() + spread)
    scaled_spread = half * middle.abs() + (centre + half) * spread
    unit = 8 * (weight.shape[1] + 4) * _EPS
    result = weight.abs() @ (scaled_spread + unit * magnitude)
    return weight @ (centre * middle), result if wrong is None else result + wrong @ magnitude


def _dual_norm(rows: Tensor, norm: str) -> Tensor:
    return rows.norm(dim=-1) if norm == "l2" else rows.sum(-1)


def _slope_interval(activation: str, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest slope over [low, high], rounding included."""
    entry, derivative = ACTIVATIONS[activation], _DERIVATIVES[activation]
    ends = derivative(low), derivative(high)
    peak = derivative(torch.zeros_like(low).clamp(low, high))
    beta = torch.maximum(torch.maximum(*ends), peak) * (1 + 16 * _EPS)
    alpha = torch.minimum(*ends) * (1 - 16 * _EPS)
    return alpha.clamp(entry.slope_min, entry.slope_max), beta.clamp(entry.slope_min, entry.slope_max)


def _widened(activation: str, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Slope intervals of at least the width that multipliers can cope with."""
    entry = ACTIVATIONS[activation]
    floor = _WIDTH_FLOOR * entry.slope_max
    beta = torch.maximum(beta, alpha + floor).clamp_max(entry.slope_max)
    return torch.minimum(alpha, beta - floor).clamp_min(0.0), beta
