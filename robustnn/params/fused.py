r"""The map of `maps.lbdn_to_explicit` as one autograd node with a hand-written backward pass.

Training converts direct parameters to explicit weights once per optimiser step. At the widths of control
policies that conversion is dominated by the overhead of small operations, so the whole network is one node:
the forward pass keeps $M_k = S_k^{-1}$, and the backward pass re-uses it,

$$\bar S = -M^T \bar M M^T, \quad \bar X = \bar S - \bar S^T, \quad
  \bar Y = Y (\bar S + \bar S^T) - 2 \bar B^T M^T, \quad \bar M = 2 \bar A^T - 2 Y^T \bar B^T .$$

Here every layer is $W_k = c_k D_k^{-1} B_k R_k$ with $D_k = \Psi_k$ (identity in the output layer),
$R_k = A_{k-1}^T \Psi_{k-1}$ (identity in the first layer) and a number $c_k$. Higher derivatives go through
the reference map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustnn.linalg import accretive_inverse

__all__ = [
    "RADIUS_LIMIT",
    "LBDNConversion",
    "block_gradient",
    "block_inverse",
    "is_watched",
    "polar_gradients",
    "polar_scales",
    "psi_limit",
    "transforms_active",
]

Reference = Callable[..., tuple[Tensor, ...]]

# Largest |alpha| that is used. S = I + X - X^T + Y^T Y is formed in floating point, so its unit matrix drowns
# in the rounding of Y^T Y when alpha^2 eps nears one, and the bound with it.
RADIUS_LIMIT = 1e3
# From this width on, Y^T Y is computed by blocks: five eighths of the work at twice this width.
_GRAM_SPLIT = 512


def psi_limit(dtype: torch.dtype) -> float:
    """Largest |psi| that is used: neither Psi nor its inverse may overflow in the dtype."""
    return 0.45 * math.log(torch.finfo(dtype).max)


class LBDNConversion(torch.autograd.Function):
    """Weights W_0 ... W_L from (weight, alpha) of every layer and psi of every hidden layer.

    Not for use inside `torch.func` transforms; see `applicable`.
    """

    @staticmethod
    def applicable() -> bool:
        """Whether the node serves here: gradients are on, and no transform, compiler or tracer looks into it."""
        return torch.is_grad_enabled() and not is_watched()

    @staticmethod
    def forward(
        ctx: Any, reference: Reference, gamma: float, limit: float, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return W_0 ... W_L.

        Args:
            ctx: Context of the node.
            reference: The same map in plain tensor operations, for higher derivatives.
            gamma: Bound of the network.
            limit: Largest |psi| that is used.
            *tensors: weight_0 ... weight_L, alpha_0 ... alpha_L, psi_0 ... psi_{L-1}.
        """
        n = (len(tensors) + 1) // 3
        weights, alphas, psis = tensors[:n], tensors[n : 2 * n], tensors[2 * n :]
        radial = polar_scales(weights, alphas)
        results: list[Tensor] = []
        kept: list[tuple[Tensor, ...]] = []
        carry = weights[0]
        for k, (weight, polar) in enumerate(zip(weights, radial[1].unbind(), strict=True)):
            y, m = block_inverse(weight * polar)
            ym = y @ m
            w = ym.mT if k == 0 else ym.mT @ carry
            factor = -2.0 * _constant(k, n, gamma)
            if k < n - 1:
                log_psi = psis[k].clamp(-limit, limit)
                psi = log_psi.exp()
                row_scale = (psi / factor).unsqueeze(-1)
                w = w / row_scale
                twice = 2.0 * psi
                carry = m * twice
                carry.diagonal().sub_(psi)
                kept.append((m, y, ym, carry, twice, log_psi, row_scale))
            else:
                w = w * factor
                kept.append((m, y, ym))
            results.append(w)
        ctx.save_for_backward(*tensors, *results)
        ctx.reference, ctx.gamma, ctx.limit, ctx.kept = reference, gamma, limit, kept
        ctx.radial = radial
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of all tensors."""
        device_type = grads[0].device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return LBDNConversion.backward(ctx, *grads)
        n = len(ctx.kept)
        tensors, outputs = ctx.saved_tensors[: 3 * n - 1], ctx.saved_tensors[3 * n - 1 :]
        if torch.is_grad_enabled():
            pull_back = torch.func.vjp(lambda *t: ctx.reference(ctx.gamma, ctx.limit, *t), *tensors)[1]
            return (None, None, None, *pull_back(grads))
        weights, psis = tensors[:n], tensors[2 * n :]
        grad_weights, grad_psis = list(weights), list(psis)
        grad_carry = grad_columns = weights[0]
        for k in reversed(range(n)):
            g = grads[k]
            m, y, ym, *hidden = ctx.kept[k]
            grad_m = None
            products = g * outputs[k]
            if k < n - 1:
                # Psi_k divides the rows of W_k and multiplies the columns of W_{k+1}.
                _, twice, log_psi, row_scale = hidden
                grad_psis[k] = (grad_columns - products.sum(-1)) * (psis[k] == log_psi)
                grad_m = grad_carry.mul_(twice)
                g = g / row_scale
            else:
                g = g * (-2.0 * _constant(k, n, ctx.gamma))
            if k > 0:
                grad_columns = products.sum(-2)
                grad_carry = ym @ g
                grad_ym = ctx.kept[k - 1][3] @ g.mT
            else:
                grad_ym = g.mT
            grad_m = y.mT @ grad_ym if grad_m is None else grad_m.addmm_(y.mT, grad_ym)
            grad_weights[k] = block_gradient(m.mT @ grad_m @ m.mT, y, grad_ym, m.mT)
        grad_alphas = polar_gradients(weights, grad_weights, ctx.radial)
        return (None, None, None, *grad_weights, *grad_alphas, *grad_psis)


def block_inverse(scaled: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return Y and $M = (I + X - X^T + Y^T Y)^{-1}$ of X stacked on Y; not differentiable.

    Args:
        scaled: Shape (n_out + n_in, n_out).

    Returns:
        Y of shape (n_in, n_out), a view, and M of shape (n_out, n_out).
    """
    n_out = scaled.shape[-1]
    x, y = scaled[:n_out], scaled[n_out:]
    s = x - x.mT.contiguous()  # to copy a transposed matrix first is four times as fast as to subtract it
    _add_gram_(s, y)
    s.diagonal().add_(1.0)
    return y, accretive_inverse(s, use_lapack=s.device.type == "cpu")


def _add_gram_(s: Tensor, y: Tensor) -> None:
    """Add Y^T Y in place; in blocks, of which those above the diagonal are copied."""
    n = y.shape[-1]
    if n < _GRAM_SPLIT:
        s.addmm_(y.mT, y)
        return
    left, right = y[:, : n // 2], y[:, n // 2 :]
    _add_gram_(s[: n // 2, : n // 2], left)
    _add_gram_(s[n // 2 :, n // 2 :], right)
    off_diagonal = right.mT @ left
    s[n // 2 :, : n // 2] += off_diagonal
    s[: n // 2, n // 2 :] += off_diagonal.mT.contiguous()


def block_gradient(negative: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Return the gradients of X and Y, stacked: $\bar S - \bar S^T$ and $Y (\bar S + \bar S^T) + L R$.

    Args:
        negative: $-\bar S$, shape (n_out, n_out).
        y: Shape (n_in, n_out).
        left: L, shape (n_in, b).
        right: R, shape (b, n_out).

    Returns:
        Shape (n_out + n_in, n_out).
    """
    grad_x = negative.mT.contiguous() - negative
    both = torch.add(grad_x, negative, alpha=2.0)
    return torch.cat((grad_x, torch.addmm(left @ right, y, both, alpha=-1.0)))


def polar_scales(weights: Sequence[Tensor], alphas: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for L layers, 1 / ||weight||, the factor alpha / ||weight||, and whether alpha is within its limit.

    Args:
        weights: L matrices.
        alphas: L tensors of shape ().

    Returns:
        Three tensors of shape (L,).
    """
    # By rows first: one sum of a million float32 squares is off by 4e-5.
    norms = torch.stack(
        [torch.linalg.vector_norm(torch.linalg.vector_norm(weight, dim=-1)) for weight in weights]
    )
    inverse_norms = (norms + (norms == 0)).reciprocal()
    radii = torch.stack(tuple(alphas))
    confined = radii.clamp(-RADIUS_LIMIT, RADIUS_LIMIT)
    return inverse_norms, confined * inverse_norms, radii == confined


def polar_gradients(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], radial: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Turn the gradients of alpha weight / ||weight|| into those of weight, in place, and return those of alpha.

    Args:
        weights: L matrices.
        gradients: L matrices of the same shapes, changed in place.
        radial: What `polar_scales` returned.

    Returns:
        L tensors of shape ().
    """
    inverse_norms, polars, inside = radial
    slopes = [(g * w).sum() for g, w in zip(gradients, weights, strict=True)]
    grad_alphas = torch.stack(slopes) * inverse_norms
    shrink = (grad_alphas * polars * inverse_norms).neg_()
    for gradient, weight, polar, c in zip(gradients, weights, polars.unbind(), shrink.unbind(), strict=True):
        gradient.mul_(polar).addcmul_(weight, c)
    return (grad_alphas * inside).unbind()


# Private in torch, so its absence only means the slower reference map.
transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def is_watched() -> bool:
    """Whether a transform of torch.func, a compiler or a tracer looks into the operations."""
    return transforms_active() or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _constant(k: int, n: int, gamma: float) -> float:
    if n == 1:
        return gamma
    return math.sqrt(2.0 * gamma) if k in (0, n - 1) else 2.0
