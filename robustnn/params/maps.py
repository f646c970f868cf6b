r"""The map from direct parameters to explicit weights: the only file with the paper's algebra.

Source: Wang & Manchester, Direct Parameterization of Lipschitz-Bounded Deep Networks (ICML 2023).
One sandwich layer is $h^+ = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B h + b)$ with $A A^T + B B^T = I$;
a network is $\sqrt\gamma$, hidden layers, and the output layer $y = \sqrt\gamma B h + b$. Between two
activations only a product of matrices acts, so an LBDN is an ordinary network with the weights

$$W_0 = \sqrt{2\gamma} \Psi_0^{-1} B_0, \quad
  W_k = 2 \Psi_k^{-1} B_k A_{k-1}^T \Psi_{k-1}, \quad
  W_L = \sqrt{2\gamma} B_L A_{L-1}^T \Psi_{L-1}$$

and unchanged biases.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from robustnn.errors import InvalidArgumentError, check_positive
from robustnn.linalg import cayley, frobenius_norm, polish
from robustnn.params.arrays import TORCH
from robustnn.params.direct import LBDNParams, SandwichParams
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import (
    RADIUS_LIMIT,
    LBDNConversion,
    block_inverse,
    is_watched,
    merged_by_value,
    psi_limit,
)
from robustnn.params.scales import fold_input, fold_output

__all__ = [
    "lbdn_to_explicit",
    "merged_weights",
    "rounding_margin",
    "sandwich_factors",
    "sandwich_to_explicit",
]


def sandwich_factors(params: SandwichParams) -> tuple[Tensor, Tensor]:
    r"""Return $(A^T, B^T)$ of a sandwich layer, $A A^T + B B^T = I$.

    alpha is confined to $\pm$`RADIUS_LIMIT`. With gradients disabled the factors are polished, so that the
    identity holds to a few units in the last place wherever the parameters lie.

    Args:
        params: Free parameters of a layer n_in -> n_out.

    Returns:
        $A^T$ of shape (n_out, n_out) and $B^T$ of shape (n_in, n_out).
    """
    weight, alpha = params.weight, params.alpha
    norm = frobenius_norm(weight)
    radius = alpha.clamp(-RADIUS_LIMIT, RADIUS_LIMIT)
    scaled = weight * (radius / torch.where(norm > 0, norm, torch.ones_like(norm)))
    n_out = weight.shape[-1]
    if torch.is_grad_enabled() or is_watched() or scaled.dtype.itemsize < 4:
        factors = cayley(scaled[:n_out], scaled[n_out:])
        return polish(*factors)
    y, m = block_inverse(TORCH, scaled)  # the same map; LAPACK is called without a detour where it serves
    a_t = 2.0 * m
    a_t.diagonal().sub_(1.0)
    return polish(a_t, -2.0 * (y @ m))


def sandwich_to_explicit(
    params: SandwichParams, activation: str, *, target: torch.dtype | None = None
) -> ExplicitMLP:
    r"""Explicit weights of a single layer: two matrices for a hidden layer, one for an output layer.

    Args:
        params: Free parameters of a layer n_in -> n_out.
        activation: Key of the activation table.
        target: Dtype that the weights will be rounded to; that of the parameters if None.

    Returns:
        $\sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B x + b)$, or $B x + b$ when psi is None.
    """
    a_t, b_t = sandwich_factors(params)
    if params.psi is None:
        margin = rounding_margin(1, target or b_t.dtype)
        return ExplicitMLP((margin * b_t.mT,), (params.bias,), activation)
    psi = _exp_psi(params.psi, psi_limit(target or params.psi.dtype))
    w_in = math.sqrt(2.0) * rounding_margin(2, target or b_t.dtype) * (b_t / psi).mT
    return ExplicitMLP((w_in, math.sqrt(2.0) * (a_t * psi)), (params.bias, None), activation)


def lbdn_to_explicit(
    params: LBDNParams,
    activation: str,
    *,
    dtype: torch.dtype | None = None,
    target: torch.dtype | None = None,
) -> ExplicitMLP:
    r"""Explicit weights of a Lipschitz-bounded network, as in the module docstring.

    With input and output scales the network is $y = D_y f(D_x^{-1} x)$, so that
    $\|D_y^{-1}(y - y')\|_2 \le \gamma \|D_x^{-1}(x - x')\|_2$; both are folded into the first and last weight
    (and the last bias stays in the units of the output). A bound given as a tensor multiplies the first and last
    weight by its root, and is taken to be positive.

    $\gamma$ is reduced by `rounding_margin` of the target dtype, so that rounding the weights does not carry the
    network above the bound.

    Args:
        params: Free parameters, bound and scales.
        activation: Key of the activation table.
        dtype: Dtype of the computation and of the weights returned; that of the parameters if None.
        target: Dtype that the weights will be rounded to; that of the parameters if None.

    Returns:
        The network by value, biases as they are; differentiable with respect to every tensor in `params`.

    Raises:
        InvalidArgumentError: If the bound is not positive, or psi is missing in a hidden layer or present in
            the output layer.
    """
    n = len(params.layers)
    if n == 0 or any((layer.psi is None) != (k == n - 1) for k, layer in enumerate(params.layers)):
        raise InvalidArgumentError(
            f"params: expected hidden layers with psi and one output layer without, got {n} layers with psi "
            f"{[layer.psi is not None for layer in params.layers]}. Set psi to None in the last layer only."
        )
    own = params.layers[-1].weight.dtype
    target, dtype = target or own, dtype or own
    limit, eps = psi_limit(target), torch.finfo(target).eps
    gamma, root = rounding_margin(n, target), None
    if isinstance(params.lipschitz, Tensor):
        root = params.lipschitz.to(dtype).sqrt()
    else:
        gamma *= check_positive("lipschitz", params.lipschitz)
    tensors: tuple[Tensor, ...] = (
        *(layer.weight for layer in params.layers),
        *(layer.alpha for layer in params.layers),
        *(layer.psi for layer in params.layers if layer.psi is not None),
    )
    if torch.is_grad_enabled() or is_watched():
        if dtype != own:
            tensors = tuple(tensor.to(dtype) for tensor in tensors)
        fused = LBDNConversion.applicable()
        convert = partial(LBDNConversion.apply, merged_weights) if fused else merged_weights
        weights = list(convert(gamma, limit, *tensors))
    else:
        weights = list(merged_by_value(gamma, limit, tensors, dtype, target))
    if root is not None:
        weights[0] = weights[0] * root
        weights[-1] = weights[-1] * root
    d_x, d_y = (
        scale if scale is None else scale.to(dtype) for scale in (params.input_scale, params.output_scale)
    )
    weights[0] = fold_input(weights[0], d_x, eps)
    weights[-1] = fold_output(weights[-1], d_y, eps)
    return ExplicitMLP(tuple(weights), tuple(layer.bias for layer in params.layers), activation)


def rounding_margin(n_layers: int, dtype: torch.dtype) -> float:
    """Factor slightly below one that the bound is reduced by, a few machine epsilons per layer.

    In float64 there is no wider type to convert in, so the rounding of the conversion itself is allowed for as well.
    """
    return 1.0 - (8.0 if dtype == torch.float64 else 2.0) * n_layers * torch.finfo(dtype).eps


def merged_weights(gamma: float, limit: float, *tensors: Tensor) -> tuple[Tensor, ...]:
    """W_0 ... W_L from weight_0 ... weight_L, alpha_0 ... alpha_L, psi_0 ... psi_{L-1}."""
    n = (len(tensors) + 1) // 3
    weights: list[Tensor] = []
    carry: Tensor | None = None
    for k in range(n):
        psi = _exp_psi(tensors[2 * n + k], limit) if k < n - 1 else None
        a_t, b_t = sandwich_factors(SandwichParams(tensors[k], tensors[n + k], psi, None))
        outer = math.sqrt(2.0 * gamma)
        b = b_t.mT if psi is None else (b_t / psi).mT
        if carry is None:
            weights.append((gamma if psi is None else outer) * b)
        else:
            weights.append((outer if psi is None else 2.0) * (b @ carry))
        if psi is not None:
            carry = a_t * psi
    return tuple(weights)


def _exp_psi(psi: Tensor, limit: float) -> Tensor:
    """Diagonal of Psi; psi is confined so that neither Psi nor its inverse overflows."""
    return psi.clamp(-limit, limit).exp()
