r"""Lower bounds of a Lipschitz constant by batched gradient ascent.

An upper bound is a proof, a lower bound is a witness. Random pairs of inputs rarely come within half of the
true constant, so pairs are moved by gradient ascent, and the Jacobian is examined where the pairs end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustnn.errors import ShapeError, check_finite, check_positive, check_positive_int, check_shape, invalid

__all__ = ["LowerBound", "lower_bound"]


@dataclass(frozen=True)
class LowerBound:
    r"""A witness that the Lipschitz constant is at least `value`.

    Attributes:
        value: The largest gain found, in the weighted norms asked for.
        x: First point of the witness pair, shape (n_in,).
        x_prime: Second point, shape (n_in,); `value` = $\|D_y^{-1}(f(x) - f(x'))\| / \|D_x^{-1}(x - x')\|$,
            up to the curvature of f over the pair when the witness is a Jacobian.
        history: Largest gain over all restarts after each iteration, to judge convergence.
    """

    value: float
    x: Tensor
    x_prime: Tensor
    history: tuple[float, ...]


def lower_bound(
    function: Callable[[Tensor], Tensor],
    starts: Tensor,
    *,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
    iterations: int = 200,
    lr: float = 0.02,
    radius: float = 0.05,
    generator: torch.Generator | None = None,
) -> LowerBound:
    r"""Search for the largest gain of a function by gradient ascent on pairs of inputs.

    Each start becomes a pair x, x + d. Adam ascends $\log\|D_y^{-1}(f(x + d) - f(x))\| - \log\|D_x^{-1} d\|$
    over both, in the scaled input. At the end the Jacobian's largest singular value near the ends and the middle
    of the best pairs is taken as well, so that a smooth function is measured at a point and not over a chord.
    The points are moved by a random 1e-6 of `radius`: at a kink the derivative that automatic differentiation
    reports need not be a limit of derivatives, and would be no witness. The gain of a pair counts less an
    allowance for the rounding of its outputs.

    Args:
        function: Differentiable map of (n, n_in) to (n, n_out); give a float64 copy of a float32 network.
        starts: Points to start from, shape (n, n_in), float64; typical inputs, for example visited states.
        input_scale: Diagonal of D_x, shape (n_in,); ones if None.
        output_scale: Diagonal of D_y, shape (n_out,); ones if None.
        iterations: Adam steps.
        lr: Adam step size in scaled inputs; decays linearly to a tenth.
        radius: Length of the first pairs in scaled inputs.
        generator: Generator of the first directions, on the device of `starts`; seed 0 if None.

    Returns:
        The best witness.

    Raises:
        ShapeError: If `starts` is not a non-empty matrix, or `function` or a scale has the wrong shape.
        InvalidArgumentError: If a setting is out of range, `starts` or the output of `function` is not float64,
            or `function` cannot be differentiated.
        NonFiniteError: If `starts`, a scale or the output of `function` at `starts` is not finite.

    Example:
        >>> lower_bound(lambda x: 3.0 * x, torch.zeros(4, 2, dtype=torch.float64)).value
        3.0
    """
    if not isinstance(starts, Tensor):
        raise invalid(
            "starts", "a torch.Tensor", type(starts).__name__, "Convert it with torch.as_tensor(...)."
        )
    if starts.ndim != 2 or starts.numel() == 0:
        raise ShapeError(
            f"starts: expected shape (n, n_in) with n >= 1, got {tuple(starts.shape)}. Stack points."
        )
    if starts.dtype != torch.float64:
        raise invalid(
            "starts", "dtype torch.float64", starts.dtype, "Convert starts and function with .to()."
        )
    check_finite("starts", starts)
    check_positive_int("iterations", iterations)
    check_positive("lr", lr)
    check_positive("radius", radius)
    with torch.enable_grad():
        outputs = function(starts.detach().clone().requires_grad_())
    _check_outputs(outputs, starts)
    d_x = _diagonal("input_scale", input_scale, starts)
    d_y = _diagonal("output_scale", output_scale, outputs.detach())

    def scaled(z: Tensor) -> Tensor:
        return function(z * d_x) / d_y

    if generator is None:
        generator = torch.Generator(device=starts.device).manual_seed(0)
    with torch.enable_grad():
        z, d, history = _ascend(scaled, starts / d_x, iterations, lr, radius, generator)
        return _best_witness(scaled, z, d, d_x, tuple(history), radius, generator)


def _check_outputs(outputs: Tensor, starts: Tensor) -> None:
    n = len(starts)
    if not isinstance(outputs, Tensor) or outputs.dtype != torch.float64:
        got = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise invalid(
            "function", "a result of dtype torch.float64", got, "Convert the network with .double()."
        )
    check_shape("function(starts)", outputs, f"({n}, n_out)", outputs.ndim == 2 and len(outputs) == n)
    check_finite("function(starts)", outputs)
    if not outputs.requires_grad:
        raise invalid(
            "function",
            "a differentiable function",
            "a result without a graph",
            "Remove no_grad and detach().",
        )


def _diagonal(name: str, scale: Tensor | None, like: Tensor) -> Tensor:
    n = like.shape[-1]
    if scale is None:
        return like.new_ones(n)
    diagonal = torch.as_tensor(scale).to(like)
    check_shape(name, diagonal, f"({n},)", tuple(diagonal.shape) == (n,))
    check_finite(name, diagonal)
    if bool((diagonal <= 0).any()):
        raise invalid(
            name, "positive numbers", diagonal.tolist(), "A scale is a size, in the component's unit."
        )
    return diagonal


def _ascend(
    scaled: Callable[[Tensor], Tensor],
    starts: Tensor,
    iterations: int,
    lr: float,
    radius: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, list[float]]:
    direction = torch.randn(starts.shape, dtype=starts.dtype, device=starts.device, generator=generator)
    z = starts.detach().clone().requires_grad_()
    d = (radius * direction / direction.norm(dim=-1, keepdim=True)).requires_grad_()
    best_gain = starts.new_full(starts.shape[:1], -1.0)
    best_z, best_d = z.detach().clone(), d.detach().clone()
    optimizer = torch.optim.Adam([z, d], lr=lr)
    history: list[float] = []
    for iteration in range(iterations + 1):
        difference = scaled(z + d) - scaled(z)
        gain_squared = difference.square().sum(-1) / d.square().sum(-1)
        with torch.no_grad():
            gain = gain_squared.sqrt()
            better = gain > best_gain
            best_gain = torch.where(better, gain, best_gain)
            best_z = torch.where(better[:, None], z, best_z)
            best_d = torch.where(better[:, None], d, best_d)
            history.append(float(best_gain.max()))
        if iteration == iterations:
            break
        optimizer.param_groups[0]["lr"] = lr * (1.0 - 0.9 * iteration / iterations)
        # A pair without any gain (a dead or saturated region) has a finite gradient of zero, not NaN.
        loss = -(gain_squared + 1e-300).log().sum()
        z.grad, d.grad = torch.autograd.grad(loss, [z, d])
        optimizer.step()
        with torch.no_grad():
            length = d.norm(dim=-1, keepdim=True)
            d.mul_(length.clamp(1e-3 * radius, 10 * radius) / length.clamp_min(1e-300))
    return best_z, best_d, history


def _best_witness(
    scaled: Callable[[Tensor], Tensor],
    z: Tensor,
    d: Tensor,
    d_x: Tensor,
    history: tuple[float, ...],
    radius: float,
    generator: torch.Generator,
) -> LowerBound:
    with torch.no_grad():
        y, y_prime = scaled(z), scaled(z + d)
        rounding = 64 * torch.finfo(z.dtype).eps * (y.norm(dim=-1) + y_prime.norm(dim=-1))
        gain = ((y_prime - y).norm(dim=-1) - rounding).clamp_min(0.0) / d.norm(dim=-1)
        top = gain.topk(min(64, len(gain))).indices
        candidates = torch.cat([z[top] + t * d[top] for t in (0.0, 0.5, 1.0)])
        noise = torch.randn(candidates.shape, dtype=z.dtype, device=z.device, generator=generator)
        candidates = candidates + 1e-6 * radius * noise
        jacobians = torch.func.vmap(torch.func.jacrev(lambda point: scaled(point.unsqueeze(0)).squeeze(0)))(
            candidates
        )
        _, singular, v_h = torch.linalg.svd(jacobians, full_matrices=False)
        k = int(singular[:, 0].argmax())
        value = float(singular[k, 0])
        if value > float(gain.max()):
            x, step = candidates[k], 1e-6 * v_h[k, 0]
        else:
            k = int(gain.argmax())
            x, step, value = z[k], d[k], float(gain[k])
    return LowerBound(value, x * d_x, (x + step) * d_x, history)
