r"""A finite-impulse-response sandwich layer by the controllability Gramian.

The layer is $h^+_t = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} \sum_{s<l} B_s h_{t-s} + b)$ with a matrix A and a
filter B of l taps. In state space the filter is a shift register, $x^+ = N x + E u$, $y = C x + D u$, with fixed N and
E. For any positive definite T with $T - N T N^T - E E^T = R > 0$ the matrix

$$F = \begin{bmatrix} P - N^T P N & -N^T P E \\ -E^T P N & I - E^T P E \end{bmatrix}, \qquad P = T^{-1},$$

is positive definite, and $[C \; D] = V L$ with $F = L^T L$ and $A A^T + V V^T = I$ gives
$A A^T + B(\omega) B(\omega)^H \preceq I$ at every frequency, by the bounded real lemma with the storage $x^T P x$
(Pauli, Wang, Manchester & Allgoewer, *Lipschitz-bounded 1D convolutional neural networks using the Cayley transform and
the controllability Gramian*, CDC 2023). Since N is nilpotent, $T = I + \sum_j N^j R N^{jT}$ is a finite sum.

$R = \epsilon I + H^T H (I + H^T H / \bar r)^{-1}$ has eigenvalues between $\epsilon$ and $\epsilon + \bar r$ for every
H, which keeps F well conditioned by construction: its smallest eigenvalue is at least
$\epsilon / (1 + l (\epsilon + \bar r))$ in the metric diag(P, I), so its Cholesky factor, always computed in float64,
exists without a shift.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustnn.linalg import accretive_inverse, frobenius_norm
from robustnn.params.direct import SandwichParams, init_sandwich
from robustnn.params.fused import RADIUS_LIMIT
from robustnn.params.maps import sandwich_factors

__all__ = ["FIRParams", "fir_kernel", "init_fir", "storage_root"]

_EPSILON = 1e-6
_LARGEST = 100.0


class FIRParams(NamedTuple):
    """Free parameters of a FIR sandwich layer, n_in -> n_out channels, l taps.

    Attributes:
        weight: X stacked on Y, shape (n_out + l * n_in, n_out); only its direction matters.
        alpha: Radius of the polar form, shape ().
        storage: H, shape ((l - 1) * n_in, (l - 1) * n_in); None for one tap.
        psi: Logarithm of the diagonal of Psi, shape (n_out,).
        bias: Shape (n_out,), or None.
    """

    weight: Tensor
    alpha: Tensor
    storage: Tensor | None
    psi: Tensor
    bias: Tensor | None


def init_fir(
    n_in: int,
    n_out: int,
    taps: int,
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> FIRParams:
    """Draw fresh parameters: X and Y as in a dense layer with l n_in inputs, H close to the identity.

    Args:
        n_in: Channels in.
        n_out: Channels out.
        taps: Number of taps l.
        bias: Whether the layer has a bias.
        device: Device of the tensors.
        dtype: Floating dtype of the tensors.

    Returns:
        Fresh parameters (plain tensors without gradient).
    """
    dense = init_sandwich(taps * n_in, n_out, bias=bias, device=device, dtype=dtype)
    psi = torch.zeros(n_out, device=device, dtype=dtype)
    states = (taps - 1) * n_in
    storage = None
    if states:
        storage = torch.empty(states, states, device=device, dtype=dtype).normal_(std=0.1 / math.sqrt(states))
        storage.diagonal().add_(1.0 / math.sqrt(taps))
    return FIRParams(dense.weight, dense.alpha, storage, psi, dense.bias)


def fir_kernel(params: FIRParams, n_in: int, taps: int) -> Tensor:
    """Return the kernel of [A B], A with the last tap only, of norm at most one.

    Args:
        params: Free parameters.
        n_in: Channels in.
        taps: Number of taps l.

    Returns:
        Shape (n_out, n_out + n_in, 1, l); the last tap belongs to the present sample.
    """
    a_t, y_t = sandwich_factors(SandwichParams(params.weight, params.alpha, None, None))
    rows = y_t.mT  # (n_out, l n_in)
    if params.storage is not None:
        rows = rows @ storage_root(params.storage, n_in, taps)
    n_out = rows.shape[0]
    b = rows.reshape(n_out, taps, n_in).transpose(1, 2)
    a = torch.cat((a_t.new_zeros(n_out, n_out, taps - 1), a_t.mT.unsqueeze(-1)), dim=-1)
    return torch.cat((a, b), dim=1).unsqueeze(-2)


def storage_root(storage: Tensor, n_in: int, taps: int) -> Tensor:
    """Upper triangular factor L of F, $F = L^T L$.

    Args:
        storage: H, shape ((l - 1) n_in, (l - 1) n_in).
        n_in: Channels in.
        taps: Number of taps l.

    Returns:
        Shape (l n_in, l n_in), oldest sample first. NaN where H is not finite.
    """
    dtype, storage = storage.dtype, storage.double()
    h = storage * (RADIUS_LIMIT / frobenius_norm(storage).clamp_min(RADIUS_LIMIT))
    states = len(h)
    identity = torch.eye(states, dtype=h.dtype, device=h.device)
    m = accretive_inverse(identity + h.mT @ h / _LARGEST)
    r = (_EPSILON + _LARGEST) * identity - 0.5 * _LARGEST * (m + m.mT)
    # N shifts blocks towards the front: block i of N x is block i + 1 of x, and E u is the last block.
    gramian = identity
    term = r
    for _ in range(taps - 1):
        gramian = gramian + term
        term = torch.nn.functional.pad(term[n_in:, n_in:], (0, n_in, 0, n_in))
    p = torch.cholesky_inverse(torch.linalg.cholesky_ex(gramian).L)
    # [N E] is the shift [0 I]: F = diag(P, I) - [0 I]^T P [0 I].
    f = torch.block_diag(p, torch.eye(n_in, dtype=h.dtype, device=h.device))
    f = f - torch.nn.functional.pad(p, (n_in, 0, n_in, 0))
    return torch.linalg.cholesky_ex((f + f.mT) / 2).L.mT.to(dtype)
