r"""A network that starts as a given linear map, together with the multipliers that prove its bound.

With the singular value decomposition $K = U \Sigma V^T$ of rank r, r hidden units of every layer carry $V^T x$ to the
output, where $U \Sigma$ acts. How a unit carries its input depends on the activation:

- relu, leaky_relu, elu and softplus: a bias keeps its input where the slope is one, so that y = K x exactly (softplus:
  as torch evaluates it) for all $\|D_x^{-1} x\|_2 \le R$;
- identity: exactly, everywhere;
- tanh and sigmoid: the input is scaled into the part that is nearly linear, so that
  $\|D_y^{-1}(y - K x)\|_2 \le \epsilon \|K\| \|D_x^{-1} x\|_2$ in that region, with $\|K\|$ in the weighted norms.
  Sigmoid's slope is 1/4, so that L hidden layers need $4^L \|K\| \le \gamma$.

The remaining units see the input as far as the bound leaves room, and the output does not see them yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustnn.errors import check_finite, check_positive, invalid
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.maps import rounding_margin
from robustnn.params.scales import fold_input, fold_output, unfold_input, unfold_output

__all__ = ["linear_network"]

# Input from which the table's softplus is the identity.
_SOFTPLUS_LINEAR = 40.5
# Share of the room below the bound that the idle units use.
_SHARE = 0.9


def linear_network(
    gain: Tensor,
    widths: Sequence[int],
    lipschitz: float,
    activation: str,
    *,
    region: float = 1.0,
    tolerance: float = 1e-3,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[ExplicitMLP, list[Tensor]]:
    r"""Return a network with y = K x near the origin and multipliers for `explicit_to_lbdn`.

    Args:
        gain: K, shape (n_out, n_in), in output units per input unit.
        widths: Hidden widths, each at least the rank of K.
        lipschitz: The bound gamma; at least the norm of K, in the weighted norms.
        activation: Key of the activation table.
        region: Radius R > 0 within which y = K x, measured as the inputs are.
        tolerance: Relative error $\epsilon$ allowed within it, for tanh and sigmoid.
        input_scale: D_x, shape (n_in,) or (n_in, n_in); None for ones.
        output_scale: D_y, shape (n_out,) or (n_out, n_out); None for ones.
        dtype: Dtype of the parameters to come, whose rounding the bound must survive.

    Returns:
        The network in float64, drawn from torch's global generator where it is free, and the diagonals of
        $T_0 \dots T_{L-1}$.

    Raises:
        InvalidArgumentError: If the norm of K exceeds the bound, or its rank a hidden width.
    """
    check_finite("gain", gain)
    region, tolerance = check_positive("region", region), check_positive("tolerance", tolerance)
    depth, eps = len(widths), torch.finfo(dtype).eps
    bound = check_positive("lipschitz", lipschitz) * rounding_margin(depth + 1, dtype)
    gain = gain.detach().double()
    input_scale = None if input_scale is None else input_scale.double()
    output_scale = None if output_scale is None else output_scale.double()
    scaled = unfold_output(unfold_input(gain, input_scale, eps), output_scale, eps)
    u, sigma, v_t = torch.linalg.svd(scaled, full_matrices=False)
    norm = float(sigma[0])
    slope = 0.25 if activation == "sigmoid" else 1.0
    least = norm / slope**depth
    if least > bound * (1.0 + 1e-9 + 8 * (depth + 1) * eps):
        raise invalid(
            "lipschitz", f"at least {least:.12g}, the norm of the gain" + (" times 4^L" if slope < 1 else ""),
            lipschitz, "Raise the bound or lower the gain.",
        )  # fmt: skip
    sigma = sigma * min(1.0, bound / least) if norm > 0 else sigma
    rank = int((sigma > 1e-12 * norm).sum())
    if depth and min(widths) < rank:
        raise invalid(
            "hidden_features",
            f"widths of at least {rank}, the rank of the gain",
            list(widths),
            "Widen the layers.",
        )
    u, sigma, v_t = u[:, :rank], sigma[:rank], v_t[:rank]
    if depth == 0:
        weight = fold_output(fold_input((u * sigma) @ v_t, input_scale, eps), output_scale, eps)
        return ExplicitMLP((weight,), (gain.new_zeros(len(gain)),), activation), []

    carry, shift, centre = _working_point(activation, bound, region, tolerance, depth)
    extras = [width - rank for width in widths]
    # T_k carries a signal of gain one in units of bound / carry; the recursion of `certified_lipschitz` says how
    # much of the bound the gain uses up, and the idle units may have most of the rest.
    multipliers = [(bound / carry * slope**k) ** 2 for k in range(depth)]
    used = (sigma / (carry * slope)).square()
    for k in reversed(range(depth)):
        used = multipliers[k] ** 2 / (2 * multipliers[k] - used) * (carry if k == 0 else 1 / slope) ** 2
    room = (1.0 - used / bound**2).clamp_min(0.0)
    root = torch.eye(scaled.shape[1], dtype=torch.float64, device=gain.device)
    root = root + (v_t.mT * ((room * (room > 1e-9)).sqrt() - 1.0)) @ v_t

    first = torch.cat((carry * v_t, _SHARE * carry * _orthogonal(extras[0], root) @ root))
    weights, biases = [first], [_bias(rank, shift, extras[0], scaled)]
    identity = torch.eye(rank, dtype=torch.float64, device=gain.device)
    for before, after in zip(extras, extras[1:], strict=False):
        idle = _orthogonal(after, scaled.new_zeros(0, before))
        weights.append(torch.block_diag(identity / slope, idle))
        biases.append(_bias(rank, -centre / slope, after, scaled))
    last = u * sigma / (carry * slope)
    weights.append(torch.cat((last, last.new_zeros(len(last), extras[-1])), dim=1))
    offset = last.sum(1) * (shift if slope == 1.0 else centre)
    weights[0] = fold_input(weights[0], input_scale, eps)
    folded = fold_output(torch.cat((weights[-1], -offset.unsqueeze(-1)), dim=1), output_scale, eps)
    weights[-1] = folded[:, :-1]
    network = ExplicitMLP(tuple(weights), (*biases, folded[:, -1]), activation)
    return network, [w.new_full((w.shape[0],), t) for w, t in zip(weights[:-1], multipliers, strict=True)]


def _working_point(
    activation: str, bound: float, region: float, tolerance: float, depth: int
) -> tuple[float, float, float]:
    """Gain into the first layer, its bias, and the activation's value at the origin."""
    if activation == "tanh":  # |tanh(v) - v| <= |v|^3 / 3, once per layer
        return math.sqrt(3.0 * tolerance / depth) / region, 0.0, 0.0
    if activation == "sigmoid":  # |4 (sigmoid(v) - 1/2) - v| <= |v|^3 / 12
        return math.sqrt(12.0 * tolerance / depth) / region, 0.0, 0.5
    carry = math.sqrt(bound)
    if activation == "identity":
        return carry, 0.0, 0.0
    return carry, carry * region + (_SOFTPLUS_LINEAR if activation == "softplus" else 0.0), 0.0


def _bias(rank: int, carried: float, n_idle: int, like: Tensor) -> Tensor:
    return torch.cat((like.new_full((rank,), carried), like.new_empty(n_idle).uniform_(-0.5, 0.5)))


def _orthogonal(rows: int, like: Tensor) -> Tensor:
    """Random matrix (rows, columns of `like`) of norm one, with orthonormal rows or columns."""
    columns = like.shape[1]
    q = torch.linalg.qr(like.new_empty(max(rows, columns), min(rows, columns)).normal_()).Q
    return q if rows >= columns else q.mT
