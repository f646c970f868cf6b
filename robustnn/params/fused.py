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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustnn.linalg import accretive_inverse

__all__ = ["RADIUS_LIMIT", "LBDNConversion", "psi_limit", "transforms_active"]

Reference = Callable[..., tuple[Tensor, ...]]

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
        """Whether the node serves here: gradients are on, and neither torch.func nor torch.compile is active."""
        return torch.is_grad_enabled() and not transforms_active() and not torch.compiler.is_compiling()

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
        norms = torch.stack([torch.linalg.vector_norm(weight) for weight in weights])
        inverse_norms = (norms + (norms == 0)).reciprocal()
        radii = torch.stack(alphas)
        confined = radii.clamp(-RADIUS_LIMIT, RADIUS_LIMIT)
        polars = confined * inverse_norms
        results: list[Tensor] = []
        kept: list[tuple[Tensor, ...]] = []
        carry = weights[0]
        for k, (weight, polar) in enumerate(zip(weights, polars.unbind(), strict=True)):
            n_out = weight.shape[-1]
            scaled = weight * polar
            x, y = scaled[:n_out], scaled[n_out:]
            s = torch.addmm(x, y.mT, y).sub_(x.mT)
            s.diagonal().add_(1.0)
            m = accretive_inverse(s, use_lapack=s.device.type == "cpu")
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
        ctx.radial = inverse_norms, polars, radii == confined
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
        grad_weights, grad_psis, slopes = list(weights), list(psis), list(weights)
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
            grad_s = m.mT @ grad_m @ m.mT
            grad_y = torch.addmm(grad_ym @ m.mT, y, grad_s + grad_s.mT, alpha=-1.0)
            grad_weights[k] = torch.cat((grad_s.mT - grad_s, grad_y))
            slopes[k] = torch.dot(grad_weights[k].view(-1), weights[k].reshape(-1))
        # The layer uses weight * polar with polar = alpha / ||weight||.
        inverse_norms, polars, inside = ctx.radial
        grad_alphas = torch.stack(slopes) * inverse_norms
        shrink = (grad_alphas * polars * inverse_norms).neg_().unbind()
        for k, polar in enumerate(polars.unbind()):
            grad_weights[k].mul_(polar).addcmul_(weights[k], shrink[k])
        return (None, None, None, *grad_weights, *(grad_alphas * inside).unbind(), *grad_psis)


# Private in torch, so its absence only means the slower reference map.
transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _constant(k: int, n: int, gamma: float) -> float:
    if n == 1:
        return gamma
    return math.sqrt(2.0 * gamma) if k in (0, n - 1) else 2.0
