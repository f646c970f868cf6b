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

import numpy as np
import torch
from torch import Tensor

from robustnn.params.arrays import TORCH, Array, Namespace, namespace_for

__all__ = [
    "RADIUS_LIMIT",
    "LBDNConversion",
    "block_gradient",
    "block_inverse",
    "for_cotangents",
    "in_pieces",
    "is_watched",
    "merged_by_value",
    "polar_gradients",
    "polar_scales",
    "psi_limit",
    "confined_psis",
    "transforms_active",
]

Reference = Callable[..., tuple[Tensor, ...]]
Radial = tuple[Array, Array, Array]

# Largest |alpha| that is used. S = I + X - X^T + Y^T Y is formed in floating point, so its unit matrix drowns
# in the rounding of Y^T Y when alpha^2 eps nears one, and the bound with it.
RADIUS_LIMIT = 1e3


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
        xp = namespace_for(tensors, _largest_product(tensors[: (len(tensors) + 1) // 3]))
        with xp.quiet():
            outputs, ctx.kept = _convert(xp, gamma, limit, tensors, tensors[0].dtype)
        results = tuple(map(xp.tensor, outputs))
        ctx.save_for_backward(*tensors, *results)
        ctx.settings = xp, reference, gamma, limit
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of all tensors."""
        device_type = grads[0].device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return LBDNConversion.backward(ctx, *grads)
        xp, reference, gamma, limit = ctx.settings
        saved, n = ctx.saved_tensors, len(grads)
        tensors = saved[: 3 * n - 1]
        if torch.is_grad_enabled():
            pull_back = torch.func.vjp(lambda *t: reference(gamma, limit, *t), *tensors)[1]
            return (None, None, None, *pull_back(grads))
        xp, kept = for_cotangents(xp, ctx.kept, grads)
        with xp.quiet():
            return (None, None, None, *_pull_back(xp, gamma, saved, kept, grads))


def merged_by_value(
    gamma: float, limit: float, tensors: Sequence[Tensor], dtype: torch.dtype, target: torch.dtype
) -> tuple[Tensor, ...]:
    """Return W_0 ... W_L without a graph, for rounding to a dtype.

    Orthogonality is restored (`robustnn.linalg.polish`) where the rounding of the conversion could show in that dtype.

    Args:
        gamma: Bound of the network.
        limit: Largest |psi| that is used.
        tensors: weight_0 ... weight_L, alpha_0 ... alpha_L, psi_0 ... psi_{L-1}.
        dtype: Dtype of the computation, of 32 bits or more.
        target: Dtype that the weights will be rounded to.

    Returns:
        Tensors of the dtype of the computation.
    """
    xp = namespace_for(tensors, _largest_product(tensors[: (len(tensors) + 1) // 3]))
    with xp.quiet():
        return tuple(map(xp.tensor, _convert(xp, gamma, limit, tensors, dtype, target)[0]))


def _largest_product(weights: Sequence[Tensor]) -> int:
    return max(n * n * max(n, rows - n) for rows, n in (weight.shape for weight in weights))


def _convert(
    xp: Namespace,
    gamma: float,
    limit: float,
    tensors: Sequence[Tensor],
    dtype: torch.dtype,
    target: torch.dtype | None = None,
) -> tuple[list[Array], Any]:
    """Return the weights, and what the backward pass needs; polished for rounding to `target` if one is given."""
    n = (len(tensors) + 1) // 3
    weights = [xp.of(weight, dtype) for weight in tensors[:n]]
    radial = polar_scales(xp, weights, tensors[n : 2 * n], dtype)
    psis = _psis(xp, tensors[2 * n :], limit, dtype, [weight.shape[1] for weight in weights[:-1]])
    results: list[Array] = []
    layers: list[tuple[Array, ...]] = []
    carry: Array = None
    for k, (weight, polar) in enumerate(zip(weights, radial[1], strict=True)):
        y, m = block_inverse(xp, weight * polar)
        ym = xp.mm(y, m)
        if target is not None and _needs_polish(weight.shape[1], tensors[n + k], dtype, target):
            m, ym = _polished(xp, m, ym)
        w = None if k == 0 else xp.mm(ym.T, carry)
        factor: Any = -2.0 * _constant(k, n, gamma)
        if k < n - 1:
            minus, twice, inside = psis[k]
            row_scale = (2.0 * factor / twice)[:, None]
            carry = m * twice
            xp.add_to_diagonal_(carry, minus)
            layers.append((m, y, ym, carry, twice, inside, row_scale))
            factor = row_scale
        else:
            layers.append((m, y, ym))
        if w is None:
            w = ym.T * factor
        else:
            w *= factor
        results.append(w)
    return results, (radial, layers)


def _pull_back(
    xp: Namespace, gamma: float, saved: Sequence[Tensor], kept: Any, cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of weights, alphas and psis, from the cotangents of W_0 ... W_L."""
    radial, layers = kept
    n = len(layers)
    dtype = saved[0].dtype
    weights, outputs = ([xp.of(t, dtype) for t in part] for part in (saved[:n], saved[3 * n - 1 :]))
    grad_weights: list[Array] = [None] * n
    grad_psis: list[Array] = [None] * (n - 1)
    grad_carry: Array = None
    grad_columns: Array = None
    for k in reversed(range(n)):
        g = xp.of(cotangents[k], dtype)
        m, y, ym, *hidden = layers[k]
        grad_m = None
        products = g * outputs[k]
        if hidden:
            # Psi_k divides the rows of W_k and multiplies the columns of W_{k+1}.
            _, twice, inside, row_scale = hidden
            grad_psis[k] = (grad_columns - xp.row_sums(products)) * inside
            grad_m = grad_carry * twice
            g = g * row_scale
        else:
            g = g * (-2.0 * _constant(k, n, gamma))
        if k > 0:
            grad_columns = xp.column_sums(products)
            grad_carry = xp.mm(ym, g)
            grad_ym = xp.mm(layers[k - 1][3], g.T)
        else:
            grad_ym = g.T
        grad_m = xp.mm(y.T, grad_ym) if grad_m is None else xp.addmm_(grad_m, y.T, grad_ym)
        negative = xp.mm(xp.mm(m.T, grad_m), m.T)
        grad_weights[k] = block_gradient(xp, negative, y, grad_ym, m.T)
    grad_alphas = polar_gradients(xp, weights, grad_weights, radial)
    return (*map(xp.tensor, grad_weights), *grad_alphas, *map(xp.tensor, grad_psis))


def block_inverse(xp: Namespace, scaled: Array) -> tuple[Array, Array]:
    r"""Return Y and $M = (I + X - X^T + Y^T Y)^{-1}$ of X stacked on Y; not differentiable.

    Args:
        xp: Namespace of the arrays.
        scaled: Shape (n_out + n_in, n_out).

    Returns:
        Y of shape (n_in, n_out), a view, and M of shape (n_out, n_out).
    """
    n_out = scaled.shape[-1]
    x, y = scaled[:n_out], scaled[n_out:]
    s = xp.transposed(x)
    xp.subtract(x, s, out=s)
    xp.add_gram_(s, y)
    xp.add_to_diagonal_(s, 1.0)
    return y, xp.inverse(s)


def block_gradient(xp: Namespace, negative: Array, y: Array, left: Array, right: Array) -> Array:
    r"""Return the gradients of X and Y, stacked: $\bar S - \bar S^T$ and $Y (\bar S + \bar S^T) + L R$.

    Args:
        xp: Namespace of the arrays.
        negative: $-\bar S$, shape (n_out, n_out).
        y: Shape (n_in, n_out).
        left: L, shape (n_in, b).
        right: R, shape (b, n_out).

    Returns:
        Shape (n_out + n_in, n_out).
    """
    turned = xp.transposed(negative)
    grad_x = turned - negative
    turned += negative
    return xp.stack_rows(grad_x, xp.submm(xp.mm(left, right), y, turned))


def _needs_polish(n: int, alpha: Tensor, dtype: torch.dtype, target: torch.dtype) -> bool:
    r"""Whether the rounding of M, about $n (1 + \alpha^2)$ eps, is above a hundredth of the target's eps."""
    if not alpha.is_cpu:  # to look at alpha would be to wait for the device
        return True
    radius = min(abs(alpha.item()), RADIUS_LIMIT)
    return not n * (1.0 + radius * radius) * torch.finfo(dtype).eps < 0.01 * torch.finfo(target).eps


def _polished(xp: Namespace, m: Array, ym: Array) -> tuple[Array, Array]:
    r"""Return M and Y M after one step towards orthonormal columns of $2M - I$ on $-2 Y M$."""
    a_t = m + m
    xp.add_to_diagonal_(a_t, -1.0)
    half = xp.mm(a_t.T, a_t) * 0.5
    xp.addmm_(half, ym.T, ym + ym)
    xp.add_to_diagonal_(half, -0.5)
    return xp.submm(m, a_t * 0.5, half), xp.submm(ym, ym, half)


def polar_scales(
    xp: Namespace, weights: Sequence[Array], alphas: Sequence[Tensor], dtype: torch.dtype
) -> Radial:
    """Return, for L layers, 1 / ||weight||, the factor alpha / ||weight||, and whether alpha is within its limit.

    Args:
        xp: Namespace of the arrays.
        weights: L matrices.
        alphas: L tensors of shape ().
        dtype: Dtype of the matrices.

    Returns:
        Three arrays of shape (L,).
    """
    norms = xp.norms(weights)
    inverse_norms = 1.0 / (norms + (norms == 0))
    radii = xp.of(torch.stack(tuple(alphas)), dtype)
    confined = radii.clip(-RADIUS_LIMIT, RADIUS_LIMIT)
    return inverse_norms, confined * inverse_norms, radii == confined


def confined_psis(
    xp: Namespace, psis: Sequence[Tensor], limit: float, dtype: torch.dtype
) -> tuple[Array, Array]:
    """Return psi of all hidden layers in one vector, within its limits, and where it is.

    Args:
        xp: Namespace of the arrays.
        psis: At least one tensor of shape (n_k,).
        limit: Largest |psi|.
        dtype: Dtype of the arrays returned.

    Returns:
        Two arrays of shape (n_0 + n_1 + ...,).
    """
    raw = xp.of(torch.cat(tuple(psis)), dtype)
    log_psi = raw.clip(-limit, limit)
    return log_psi, raw == log_psi


def _psis(
    xp: Namespace, psis: Sequence[Tensor], limit: float, dtype: torch.dtype, sizes: Sequence[int]
) -> list[tuple[Array, Array, Array]]:
    """The diagonals of -Psi and 2 Psi of every hidden layer, and where psi is inside its limits."""
    if not psis:
        return []
    log_psi, inside = confined_psis(xp, psis, limit, dtype)
    psi = xp.exp(log_psi)
    return list(zip(*(in_pieces(array, sizes) for array in (-psi, psi + psi, inside)), strict=True))


def in_pieces(array: Array, sizes: Sequence[int]) -> list[Array]:
    """Split a vector into views of given lengths."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(array[start : start + size])
        start += size
    return pieces


def polar_gradients(
    xp: Namespace, weights: Sequence[Array], gradients: Sequence[Array], radial: Radial
) -> tuple[Tensor, ...]:
    """Turn the gradients of alpha weight / ||weight|| into those of weight, in place, and return those of alpha.

    Args:
        xp: Namespace of the arrays.
        weights: L matrices.
        gradients: L matrices of the same shapes, changed in place.
        radial: What `polar_scales` returned.

    Returns:
        L tensors of shape ().
    """
    inverse_norms, polars, inside = radial
    grad_alphas = xp.inner(gradients, weights) * inverse_norms
    shrink = -(grad_alphas * polars * inverse_norms)
    for gradient, weight, polar, c in zip(gradients, weights, polars, shrink, strict=True):
        xp.scale_add_(gradient, polar, weight, c)
    return xp.tensor(grad_alphas * inside).unbind()


def for_cotangents(xp: Namespace, kept: Any, cotangents: Sequence[Tensor]) -> tuple[Namespace, Any]:
    """Return the namespace for a backward pass, and in it what the forward one kept; batched cotangents need torch."""
    if xp is not TORCH and (is_watched() or any(type(g) is not Tensor or _is_batched(g) for g in cotangents)):
        return TORCH, _as_tensors(kept)
    return xp, kept


def _as_tensors(kept: Any) -> Any:
    if isinstance(kept, (tuple, list)):
        return type(kept)(_as_tensors(item) for item in kept)
    return torch.from_numpy(kept) if isinstance(kept, np.ndarray) else kept


# Private in torch, so its absence only means the slower reference map.
transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
# The same for the older kind of vmap, which `torch.autograd.grad(..., is_grads_batched=True)` uses.
_is_batched: Callable[[Tensor], bool] = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", lambda _: True
)


def is_watched() -> bool:
    """Whether a transform of torch.func, a compiler or a tracer looks into the operations."""
    return transforms_active() or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _constant(k: int, n: int, gamma: float) -> float:
    if n == 1:
        return gamma
    return math.sqrt(2.0 * gamma) if k in (0, n - 1) else 2.0
