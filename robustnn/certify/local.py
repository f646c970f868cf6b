r"""How far outputs can move over a ball around one observation: chords of the activations from its centre.

The change of a neuron's output is $\delta z = s\,\delta v$ with s the slope of a chord that begins at the centre. Over
the interval $|\delta v| \le \rho$ it lies in some $[\alpha, \beta]$, so $\delta z = \bar s\,\delta v + e$ with
$|e| \le (\beta - \alpha) \rho / 2$. Replacing $\delta z$ from the output backwards leaves a linear map of the input
and a sum of such errors,

$$|u \cdot \delta z_L| \le r \|u_0 D\|_* + \sum_k |u_k| \cdot \tfrac12 (\beta_k - \alpha_k) \rho_k, \qquad
  u_{k-1} = (u_k \bar s_k) W_{k-1},$$

with the dual norm (l2, or l1 for a box), and the same for every neuron gives its $\rho$. This is a linear relaxation in
the manner of CROWN (Zhang et al., NeurIPS 2018) with lines through the centre. As the ball shrinks it tends to the
norm of the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustnn.params.activations import ACTIVATIONS

if TYPE_CHECKING:
    from robustnn.certify.certificate import PolicyCertificate

__all__ = ["local_change"]

_S_SHAPED = ("sigmoid", "tanh")  # convex below zero, concave above; all others are convex
# Numbers held at a time, per hidden layer.
_CHUNK = 2**23


def local_change(certificate: PolicyCertificate, points: Tensor, radius: Tensor, rows: Tensor) -> Tensor:
    """Bound the change of linear maps of the last hidden layer over balls around points.

    The float64 rounding of this bound is less than a millionth of what a certificate allows for that of float32.

    Args:
        certificate: Has the network, the norm and the scale of the balls.
        points: Centres as inputs of the network, shape (B, n_obs).
        radius: r > 0 of every ball, shape (B,).
        rows: The maps, shape (m, n_L) for all points or (B, m, n_L).

    Returns:
        Shape (B, m).
    """
    network = certificate.path.network
    widths = [len(weight) for weight in network.weights[:-1]]
    largest = max((a * b for a, b in zip(widths[1:], widths, strict=False)), default=1)
    size = max(1, _CHUNK // max(largest, rows.shape[-1] * rows.shape[-2]))
    parts = []
    for k in range(0, len(points), size):
        part = slice(k, k + size)
        own = rows[part] if rows.ndim == 3 else rows
        parts.append(_Ball(certificate, points[part], radius[part]).reach(own))
    return torch.cat(parts) if parts else points.new_zeros(0, rows.shape[-2])


class _Ball:
    """Mean slopes of all hidden neurons over balls around points, and what is left of their outputs' changes."""

    def __init__(self, certificate: PolicyCertificate, points: Tensor, radius: Tensor) -> None:
        network = certificate.path.network
        self._norm, self._radius = certificate.norm, radius.unsqueeze(-1)
        self._weights, self._unit = network.weights, certificate.unit
        self._middles: list[Tensor] = []
        self._errors: list[Tensor] = []
        activation = ACTIVATIONS[network.activation].function
        state = points
        for weight, bias in zip(network.weights[:-1], network.biases[:-1], strict=True):
            pre = state @ weight.mT if bias is None else state @ weight.mT + bias
            rho = self.reach(weight)
            alpha, beta = chord_slopes(network.activation, pre, rho)
            self._middles.append(0.5 * (alpha + beta))
            self._errors.append(0.5 * (beta - alpha) * rho)
            state = activation(pre)

    def reach(self, rows: Tensor) -> Tensor:
        """Bound the change of linear maps (m, n_k) or (B, m, n_k) of the present layer, shape (B, m)."""
        total = torch.zeros_like(self._radius)
        u = rows
        for k in reversed(range(len(self._middles))):
            middle, weight = self._middles[k], self._weights[k]
            if u.ndim == 2:
                total = total + self._errors[k] @ u.abs().mT
            else:
                total = total + (u.abs() @ self._errors[k].unsqueeze(-1)).squeeze(-1)
            if u.ndim == 2 and k == 0:  # one product for all points
                columns = middle.mT.unsqueeze(-1) * weight.unsqueeze(1)
                u = (u @ columns.flatten(1)).unflatten(-1, columns.shape[1:]).transpose(0, 1)
            else:
                u = (u * middle.unsqueeze(-2)) @ weight
        u = u * self._unit
        linear = u.norm(dim=-1) if self._norm == "l2" else u.abs().sum(-1)
        return total + self._radius * linear


def chord_slopes(activation: str, centre: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest slope of the chords from `centre` to any point at most `reach` away.

    A chord of a convex function becomes steeper as its end moves to the right. With an S-shaped one the slope has one
    peak, so the least is at an end of the interval. The largest is at the left end where the function is concave, and
    at the right end where it is convex; an interval with zero inside has the rise to its far end over at least the
    distance to zero.

    Args:
        activation: Key of `ACTIVATIONS`.
        centre: Any shape.
        reach: Zero or greater, of the same shape.

    Returns:
        Two tensors of that shape.
    """
    entry = ACTIVATIONS[activation]
    safe = reach.clamp_min(
        1e-9 * (1.0 + centre.abs())
    )  # a little more than the interval, where that is a point
    low, high = centre - safe, centre + safe
    value = entry.function(centre)
    left = (value - entry.function(low)) / (centre - low)
    right = (entry.function(high) - value) / (high - centre)
    if activation in _S_SHAPED:
        alpha = torch.minimum(left, right)
        across = torch.where(centre > 0.0, value - entry.function(low), entry.function(high) - value)
        beta = torch.where(low >= 0.0, left, torch.where(high <= 0.0, right, across / centre.abs()))
    else:
        alpha, beta = left, right
    # Rounding of the quotients.
    slack = 8.0 * torch.finfo(centre.dtype).eps * (value.abs() + centre.abs() + 1.0) / safe
    return (alpha - slack).clamp_min(entry.slope_min), (beta + slack).clamp_max(entry.slope_max)
