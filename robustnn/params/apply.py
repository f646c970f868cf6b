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
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.direct import LBDNParams
from robustnn.params.explicit import ExplicitMLP, check_input
from robustnn.params.fused import (
    LBDNConversion,
    block_gradient,
    block_inverse,
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
    if not LBDNConversion.applicable() or not _pays(shapes, len(samples)):
        return lbdn_to_explicit(params, activation)(x)
    *hidden, last = params.layers
    tensors = (
        *weights,
        *(layer.alpha for layer in params.layers),
        *(layer.psi for layer in hidden),
        *(
            layer.weight.new_zeros(layer.weight.shape[1]) if layer.bias is None else layer.bias
            for layer in hidden
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
    y = LBDNApplication.apply(_merged_output, activation, gamma, psi_limit(dtype), samples, *tensors)
    if root is not None:
        y = y * root
    if params.output_scale is not None:
        y = fold_output(y.mT, params.output_scale, eps).mT
    if last.bias is not None:
        y = y + last.bias
    return y.reshape(*x.shape[:-1], shapes[-1][1])


def _merged_output(activation: str, gamma: float, limit: float, x: Tensor, *tensors: Tensor) -> Tensor:
    n = (len(tensors) + 2) // 4
    weights = merged_weights(gamma, limit, *tensors[: 3 * n - 1])
    return ExplicitMLP(weights, (*tensors[3 * n - 1 :], None), activation)(x)


def _pays(shapes: list[tuple[int, int]], batch: int) -> bool:
    """Whether fewer products are needed without the weights than with them, 3 + 9 b/n against 11 + 3 b/n.

    Args:
        shapes: (n_in, n_out) of every layer.
        batch: Number of samples b.

    Returns:
        True for batches up to 4/3 of the width, if all layers have one width.
    """
    formed, applied = 0, 0  # multiplications of the forward and backward pass, less what both need
    for k, (n_in, n_out) in enumerate(shapes):
        first, last = k == 0, k == len(shapes) - 1
        formed += 3 * n_in * n_out * n_out + 2 * n_out**3 + 3 * n_in * n_out * batch
        formed += 0 if first else 3 * n_in * n_in * n_out
        applied += 3 * n_in * n_out * batch + (3 if last else 6) * n_out * n_out * batch
    return applied < formed


class LBDNApplication(torch.autograd.Function):
    """The output without its last bias, from the input and the direct parameters.

    Not for use inside `torch.func` transforms; see `LBDNConversion.applicable`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        reference: Reference,
        activation: str,
        gamma: float,
        limit: float,
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
            x: Input, shape (b, n_in).
            *tensors: weight_0 ... weight_L, alpha_0 ... alpha_L, psi_0 ... psi_{L-1}, bias_0 ... bias_{L-1}.
        """
        n = (len(tensors) + 2) // 4
        weights, alphas = tensors[:n], tensors[n : 2 * n]
        psis, biases = tensors[2 * n : 3 * n - 1], tensors[3 * n - 1 :]
        radial = polar_scales(weights, alphas)
        function = ACTIVATIONS[activation].function
        root = math.sqrt(gamma)
        columns, rows, inside = _diagonals(psis, limit, root)
        kept: list[Any] = []
        h = x
        for k, (weight, polar) in enumerate(zip(weights, radial[1].unbind(), strict=True)):
            y, m = block_inverse(weight * polar)
            q = torch.mm(torch.mm(h, y), m)
            known: tuple[Any, ...] = (h if k else None, y, m, q)  # x is among the saved tensors
            if k < n - 1:
                z = function(torch.addcmul(biases[k], q, rows[k]))
                u = z * columns[k]
                r = torch.mm(u, m.mT)
                h = torch.sub(r, u, alpha=0.5)
                known = (*known, z, u, r)
            kept.append(known)
        ctx.save_for_backward(x, *tensors)
        ctx.settings = reference, activation, gamma, limit
        ctx.kept, ctx.radial, ctx.diagonals = kept, radial, (columns, rows, inside)
        ctx.scale = -2.0 * (root if n > 1 else gamma)
        return q * ctx.scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the input and of all tensors."""
        device_type = grads[0].device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return LBDNApplication.backward(ctx, *grads)
        x, *tensors = ctx.saved_tensors
        reference, activation, gamma, limit = ctx.settings
        if torch.is_grad_enabled():
            pull_back = torch.func.vjp(lambda *t: reference(activation, gamma, limit, *t), x, *tensors)[1]
            return (None, None, None, None, *pull_back(grads[0]))
        n = len(ctx.kept)
        weights = tensors[:n]
        columns, rows, inside = ctx.diagonals
        grad_weights, grad_psis, grad_biases = list(weights), tensors[2 * n : 3 * n - 1], tensors[3 * n - 1 :]
        grad_x, grad_h, grad_q = None, grads[0], grads[0] * ctx.scale
        for k in reversed(range(n)):
            h, y, m, q, *hidden = ctx.kept[k]
            if hidden:
                z, u, r = hidden
                grad_r_m = torch.mm(grad_h, m)
                grad_u = torch.sub(grad_r_m, grad_h, alpha=0.5)
                grad_v = _PULL_BACK[activation](grad_u * columns[k], z)
                grad_q = grad_v * rows[k]
                # Psi multiplies u and divides q.
                grad_psis[k] = (grad_u * u).addcmul_(grad_q, q, value=-1.0).sum(0) * inside[k]
                grad_biases[k] = grad_v.sum(0)
            grad_p = torch.mm(grad_q, m.mT)
            negative = torch.mm(q.mT, grad_p)
            if hidden:
                negative.addmm_(grad_r_m.mT, r)
            grad_weights[k] = block_gradient(negative, y, (h if k else x).mT, grad_p)
            if k > 0:
                grad_h = torch.mm(grad_p, y.mT)
            elif ctx.needs_input_grad[4]:
                grad_x = torch.mm(grad_p, y.mT)
        grad_alphas = polar_gradients(weights, grad_weights, ctx.radial)
        return (None, None, None, None, grad_x, *grad_weights, *grad_alphas, *grad_psis, *grad_biases)


def _diagonals(
    psis: tuple[Tensor, ...], limit: float, root: float
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Diagonals of 2 sqrt2 Psi, of -2 sqrt2 / Psi (times the root in the first layer), and where psi is inside."""
    if not psis:
        return (), (), ()
    sizes = [len(psi) for psi in psis]
    raw = torch.cat(psis)
    log_psi = raw.clamp(-limit, limit)
    columns = log_psi.exp() * math.sqrt(8.0)
    rows = list((columns.reciprocal() * -8.0).split(sizes))
    rows[0] = rows[0] * root
    return columns.split(sizes), rows, (raw == log_psi).to(raw.dtype).split(sizes)


# The cotangent of the activation's input, from that of its output and the output itself.
_PULL_BACK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elu": lambda g, z: g * (z.clamp(max=0.0) + 1.0),
    "identity": lambda g, z: g,
    "leaky_relu": lambda g, z: torch.ops.aten.leaky_relu_backward(g, z, 0.01, True),
    "relu": lambda g, z: torch.ops.aten.threshold_backward(g, z, 0.0),
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "softplus": lambda g, z: g * -torch.expm1(-z),
    "tanh": torch.ops.aten.tanh_backward,
}
