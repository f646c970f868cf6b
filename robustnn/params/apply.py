r"""The output of a Lipschitz-bounded network without its weights, as one autograd node; for small batches.

With $M_k = S_k^{-1}$ a batch passes through a hidden layer as

$$q = h Y M, \quad z = \sigma(-2\sqrt2\, \Psi^{-1} q + b), \quad u = 2\sqrt2\, \Psi z, \quad
  r = u M^T, \quad h^+ = r - \tfrac12 u$$

(one sample per row, $\sqrt\gamma$ in front and behind), so that A, B and the weights are never formed. Every product
with $M^T \bar M M^T$ in the backward pass of `fused` is then one of two tall matrices that are known already:
with the cotangents $\bar h^+$, $\bar u = \bar h^+ M - \tfrac12 \bar h^+$, $\bar q$ and $\bar p = \bar q M^T$,

$$-\bar S = (\bar h^+ M)^T r + q^T \bar p, \quad \bar X = \bar S - \bar S^T, \quad
  \bar Y = Y (\bar S + \bar S^T) + h^T \bar p, \quad \bar h = \bar p Y^T .$$

For n inputs and outputs and b samples that is the work of 3 + 9 b/n products of n x n matrices per layer, forward and
backward, against 11 + 3 b/n with merged weights. Higher derivatives go through the reference map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustnn.errors import check_positive
from robustnn.params.arrays import LARGEST_PRODUCT, Array, Namespace, namespace_for
from robustnn.params.direct import LBDNParams
from robustnn.params.explicit import ExplicitMLP, check_input
from robustnn.params.fused import (
    LBDNConversion,
    block_gradient,
    block_inverse,
    confined_psis,
    for_cotangents,
    in_pieces,
    polar_gradients,
    polar_scales,
    psi_limit,
)
from robustnn.params.maps import lbdn_to_explicit, merged_weights, rounding_margin
from robustnn.params.scales import fold_input, fold_output

__all__ = ["LBDNApplication", "lbdn_apply"]

Reference = Callable[..., Tensor]


def lbdn_apply(params: LBDNParams, activation: str, x: Tensor) -> Tensor:
    """Evaluate a Lipschitz-bounded network, by its explicit weights or without them, whichever is less work.

    The two differ in rounding only. The weights are formed for large batches, inside `torch.func` transforms and
    `torch.compile`, and when gradients are disabled.

    Args:
        params: Free parameters, bound and scales.
        activation: Key of the activation table.
        x: Shape (..., n_in).

    Returns:
        Shape (..., n_out), differentiable with respect to x and every tensor in `params`.

    Raises:
        InvalidArgumentError: If x or the bound is not acceptable.
    """
    weights = [layer.weight for layer in params.layers]
    shapes = [(weight.shape[0] - weight.shape[1], weight.shape[1]) for weight in weights]
    check_input(x, shapes[0][::-1], weights[0].dtype)
    samples = x.reshape(-1, x.shape[-1])
    largest = _largest_product(shapes, samples.shape[0])
    if not LBDNConversion.applicable() or not _pays(shapes, samples.shape[0], largest):
        return lbdn_to_explicit(params, activation)(x)
    layers, last_bias = params.layers, None
    if isinstance(params.lipschitz, Tensor) or params.output_scale is not None:
        # The last bias is in the units of the scaled output.
        last_bias = layers[-1].bias
        layers = (*layers[:-1], layers[-1]._replace(bias=None))
    tensors = (
        *weights,
        *(layer.alpha for layer in layers),
        *(layer.psi for layer in layers[:-1]),
        *(
            layer.weight.new_zeros(layer.weight.shape[1]) if layer.bias is None else layer.bias
            for layer in layers
        ),
    )
    dtype = weights[0].dtype
    eps, gamma, root = torch.finfo(dtype).eps, rounding_margin(len(weights), dtype), None
    if isinstance(params.lipschitz, Tensor):
        root = params.lipschitz.sqrt()
        samples = samples * root
    else:
        gamma *= check_positive("lipschitz", params.lipschitz)
    scale = params.input_scale
    samples = fold_input(samples, scale if scale is None or scale.ndim == 1 else scale.mT, eps)
    y = LBDNApplication.apply(_merged_output, activation, gamma, psi_limit(dtype), largest, samples, *tensors)
    if root is not None:
        y = y * root
    if params.output_scale is not None:
        y = fold_output(y.mT, params.output_scale, eps).mT
    if last_bias is not None:
        y = y + last_bias
    return y.reshape(*x.shape[:-1], shapes[-1][1])


def _merged_output(activation: str, gamma: float, limit: float, x: Tensor, *tensors: Tensor) -> Tensor:
    n = len(tensors) // 4 + 1
    weights = merged_weights(gamma, limit, *tensors[: 3 * n - 1])
    return ExplicitMLP(weights, tensors[3 * n - 1 :], activation)(x)


def _pays(shapes: list[tuple[int, int]], batch: int, largest_product: int) -> bool:
    """Whether it is less work without the weights than with them, 3 + 9 b/n products against 11 + 3 b/n.

    Where products are so small that numpy serves, it is: there the fewer operations count.

    Args:
        shapes: (n_in, n_out) of every layer.
        batch: Number of samples b.
        largest_product: Multiplications in the largest product without the weights.

    Returns:
        True for batches up to 4/3 of the width, if all layers have one width.
    """
    if largest_product <= LARGEST_PRODUCT:
        return True
    formed, applied = 0, 0  # multiplications of the forward and backward pass, less what both need
    for k, (n_in, n_out) in enumerate(shapes):
        first, last = k == 0, k == len(shapes) - 1
        formed += 3 * n_in * n_out * n_out + 2 * n_out**3 + 3 * n_in * n_out * batch
        formed += 0 if first else 3 * n_in * n_in * n_out
        applied += 3 * n_in * n_out * batch + (3 if last else 6) * n_out * n_out * batch
    return applied < formed


class LBDNApplication(torch.autograd.Function):
    """The output from the input and the direct parameters.

    Not for use inside `torch.func` transforms; see `LBDNConversion.applicable`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        reference: Reference,
        activation: str,
        gamma: float,
        limit: float,
        largest_product: int,
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Return the output, shape (b, n_out).

        Args:
            ctx: Context of the node.
            reference: The same map in plain tensor operations, for higher derivatives.
            activation: Key of the activation table.
            gamma: Bound of the network.
            limit: Largest |psi| that is used.
            largest_product: Multiplications in the largest product of two matrices.
            x: Input, shape (b, n_in).
            *tensors: weight_0 ... weight_L, alpha_0 ... alpha_L, psi_0 ... psi_{L-1}, bias_0 ... bias_L.
        """
        ctx.save_for_backward(x, *tensors)
        shapes = [
            (rows - n_out, n_out) for rows, n_out in (t.shape for t in tensors[: len(tensors) // 4 + 1])
        ]
        xp = namespace_for((x, *tensors), _largest_product(shapes, len(x)))
        ctx.settings = xp, reference, activation, gamma, limit
        with xp.quiet():
            y, ctx.kept = _apply(xp, activation, gamma, limit, x, tensors)
        return xp.tensor(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the input and of all tensors."""
        device_type = grads[0].device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return LBDNApplication.backward(ctx, *grads)
        saved = ctx.saved_tensors
        xp, reference, activation, gamma, limit = ctx.settings
        if torch.is_grad_enabled():
            pull_back = torch.func.vjp(lambda *t: reference(activation, gamma, limit, *t), *saved)[1]
            return (None, None, None, None, None, *pull_back(grads[0]))
        xp, kept = for_cotangents(xp, ctx.kept, grads)
        with xp.quiet():
            gradients = _pull_back(xp, activation, saved, kept, grads[0], ctx.needs_input_grad[5])
        return (None, None, None, None, None, *gradients)


def _largest_product(shapes: Sequence[tuple[int, int]], batch: int) -> int:
    return max(n_out * max(n_out, batch) * max(n_in, n_out) for n_in, n_out in shapes)


def _apply(
    xp: Namespace, activation: str, gamma: float, limit: float, x: Tensor, tensors: Sequence[Tensor]
) -> tuple[Array, Any]:
    """Return the output, and what the backward pass needs."""
    n = len(tensors) // 4 + 1
    weights, psis, raw_biases = tensors[:n], tensors[2 * n : 3 * n - 1], tensors[3 * n - 1 :]
    sizes = [weight.shape[1] for weight in weights]
    matrices = [xp.of(weight, x.dtype) for weight in weights]
    radial = polar_scales(xp, matrices, tensors[n : 2 * n], x.dtype)
    biases = in_pieces(xp.of(torch.cat(tuple(raw_biases)), x.dtype), sizes)
    root = math.sqrt(gamma)
    function = xp.activation(activation)
    h = xp.of(x, x.dtype)
    diagonals = _diagonals(xp, psis, limit, sizes[:-1], root)
    layers: list[tuple[Array, ...]] = []
    for k, (weight, polar) in enumerate(zip(matrices, radial[1], strict=True)):
        y, m = block_inverse(xp, weight * polar)
        q = xp.mm(xp.mm(h, y), m)
        hidden: tuple[Array, ...] = ()
        if k < n - 1:
            column, row, inside = diagonals[k]
            z = function(xp.affine(q, row, biases[k]))
            u = z * column
            r = xp.mm(u, m.T)
            hidden = z, u, r, column, row, inside
        layers.append((h if k else None, y, m, q, *hidden))  # x is among the saved tensors
        if hidden:
            h = xp.less_half(r, u)
    scale = -2.0 * (root if n > 1 else gamma)
    return q * scale + biases[-1], (radial, layers, scale)


def _pull_back(
    xp: Namespace, activation: str, saved: Sequence[Tensor], kept: Any, cotangent: Tensor, with_input: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the input (if asked for), weights, alphas, psis and biases."""
    radial, layers, scale = kept
    n = len(layers)
    dtype = saved[0].dtype
    x, *weights = (xp.of(t, dtype) for t in saved[: n + 1])
    derivative = xp.pull_back(activation)
    grad_weights, grad_psis, grad_biases = [None] * n, [None] * (n - 1), [None] * n
    grad_h = xp.of(cotangent, dtype)
    grad_q = grad_h * scale
    grad_biases[-1] = xp.column_sums(grad_h)
    for k in reversed(range(n)):
        h, y, m, q, *hidden = layers[k]
        if hidden:
            z, u, r, column, row, inside = hidden
            grad_r_m = xp.mm(grad_h, m)
            grad_u = xp.less_half(grad_r_m, grad_h)
            grad_v = derivative(grad_u * column, z)
            grad_q = grad_v * row
            # Psi multiplies u and divides q.
            grad_psis[k] = xp.column_sums(xp.difference(grad_u, u, grad_q, q)) * inside
            grad_biases[k] = xp.column_sums(grad_v)
        grad_p = xp.mm(grad_q, m.T)
        negative = xp.mm(q.T, grad_p)
        if hidden:
            negative = xp.addmm_(negative, grad_r_m.T, r)
        grad_weights[k] = block_gradient(xp, negative, y, (h if k else x).T, grad_p)
        if k > 0 or with_input:
            grad_h = xp.mm(grad_p, y.T)
    grad_alphas = polar_gradients(xp, weights, grad_weights, radial)
    return (
        xp.tensor(grad_h) if with_input else None,
        *map(xp.tensor, grad_weights),
        *grad_alphas,
        *map(xp.tensor, grad_psis),
        *map(xp.tensor, grad_biases),
    )


def _diagonals(
    xp: Namespace, psis: Sequence[Tensor], limit: float, sizes: Sequence[int], root: float
) -> list[tuple[Array, Array, Array]]:
    """Diagonals of 2 sqrt2 Psi, of -2 sqrt2 / Psi (times the root in the first layer), and where psi is inside."""
    if not psis:
        return []
    log_psi, inside = confined_psis(xp, psis, limit, psis[0].dtype)
    column = xp.exp(log_psi) * math.sqrt(8.0)
    columns, rows, insides = (in_pieces(array, sizes) for array in (column, -8.0 / column, inside))
    rows[0] = rows[0] * root
    return list(zip(columns, rows, insides, strict=True))
