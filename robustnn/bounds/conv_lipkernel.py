r"""Certificates of LipKernel layers: a completion of the kernel to an isometry, and the matrix inequality itself.

A layer of `robustnn.params.conv_lipkernel` has the kernel $[A \; B]$, $B = S R_1 \Omega R_2$. It is a part of

$$K = [A \quad B \quad S R_1 \Omega G \quad S R_1 \Delta], \qquad R_2 R_2^H + G G^H = I, \quad
  \Omega \Omega^T + \Delta \Delta^T = I,$$

a kernel of as many taps with $K K^H = I$ at every frequency (derived). That is seen from the correlations of K alone,
whatever it was computed from, and needs no sampling of frequencies. G is the response to the noise that R stands for:
driven by it and by the input, $x^+ = N x + E u + R^{1/2} n$ is a filter that keeps all of the energy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustnn.errors import CertificateError, invalid
from robustnn.nn.conv_lipkernel import LipKernelConv2d
from robustnn.params.conv_explicit import ConvStage
from robustnn.params.conv_grid import to_coarse_kernel
from robustnn.params.conv_lipkernel import gramian, innovation, lipkernel_kernel
from robustnn.params.fused import psi_limit

__all__ = ["completed_kernel", "roesser_residual"]


@torch.no_grad()
def completed_kernel(layer: LipKernelConv2d) -> Tensor:
    r"""Return the kernel K with $K K^H = I$ at every frequency whose first columns are those of [A B].

    Args:
        layer: The layer.

    Returns:
        Shape (n_out, N, k_h, k_w), float64, with N = (k_h + 1) n_out + k_w n_in and n_in the channels after
        `space_to_depth`.

    Raises:
        InvalidArgumentError: If it is another layer.

    Example:
        >>> from robustnn.bounds import supremum_of_norm
        >>> supremum_of_norm(completed_kernel(LipKernelConv2d(2, 3, 3))) < 1.0 + 1e-9
        True
    """
    _check(layer)
    taps, factors = layer.taps, layer.factors()
    b = lipkernel_kernel(factors, taps)
    parts = [functional.pad(factors.outer[..., None, None], (0, taps[1] - 1, 0, taps[0] - 1)), b]
    if layer.columns is not None:
        noise = _noise_response(factors.columns, layer.columns, b.shape[1], taps[1])
        parts.append(lipkernel_kernel(factors._replace(columns=noise), taps))
    identity = torch.eye(len(factors.core), dtype=b.dtype, device=b.device)
    rest = factors._replace(core=_root(identity - factors.core @ factors.core.mT), columns=identity)
    parts.append(functional.pad(lipkernel_kernel(rest, (taps[0], 1)), (0, taps[1] - 1)))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def roesser_residual(layer: LipKernelConv2d) -> float:
    r"""Return the smallest eigenvalue of the matrix inequality of LipKernel for the weights as they are exported.

    With the register x_2 and the chain x_1 of the exported kernel W, $x^+ = \mathcal A x + \mathcal B u$ and
    $v = \mathcal C x + \mathcal D u$, the layer $L \sigma(v + b)$ is 1-Lipschitz if

    $$\|u\|^2 + x^T P x - x^{+T} P x^+ - \|L y\|^2 - 2 y^T \Lambda (v - y) \ge 0, \qquad P = \mathrm{diag}(P_1, P_2)$$

    for all x, u and y. The form is taken in coordinates in which $\mathrm{diag}(P, I, 2 \Lambda)$ is the unit matrix:
    minus a few machine epsilons is rounding.

    Args:
        layer: The layer; S must not be singular, for P_1 is infinite otherwise (`completed_kernel` does not need it).

    Returns:
        The eigenvalue.

    Raises:
        InvalidArgumentError: If it is another layer.
        CertificateError: If S is singular.

    Example:
        >>> roesser_residual(LipKernelConv2d(2, 3, 3)) >= 0.0
        True
    """
    _check(layer)
    inner, _, outer = layer.explicit().stages
    assert isinstance(inner, ConvStage) and isinstance(outer, ConvStage)  # as the layer makes them
    w = to_coarse_kernel(inner.weight.double(), layer.stride)
    (n_out, n_in), (k_h, k_w) = w.shape[:2], layer.taps
    limit = psi_limit(layer.weight.dtype)
    psi = layer.psi.double().clamp(-limit, limit)
    lam = torch.diag((2.0 * psi).exp())
    # The chain holds sums of W; those of R_1 are scaled by (sqrt2 Psi^-1 S)^-1.
    factors = layer.factors()
    scale = torch.linalg.inv_ex(2.0**0.5 * (-psi).exp()[:, None] * factors.gain).inverse
    n1, n2 = (k_h - 1) * n_out, (k_w - 1) * n_in
    p1, p2 = (w.new_zeros(0, 0) for _ in range(2))
    if layer.rows is not None:
        lift = torch.block_diag(*[scale] * (k_h - 1))
        p1 = lift.mT @ gramian(layer.rows, n_out, k_h) @ lift
    if layer.columns is not None:
        p2 = torch.cholesky_inverse(torch.linalg.cholesky_ex(gramian(layer.columns, n_in, k_w)).L)
    taps = w.permute(2, 0, 3, 1).reshape(k_h * n_out, k_w * n_in)
    # Rows: x_1, x_2 at the next step, v; columns: x_1, x_2, u, y.
    chain = functional.pad(torch.eye(n1, dtype=w.dtype, device=w.device), (0, 0, n_out, 0))
    step = torch.cat((chain, taps), dim=1)
    shift = functional.pad(torch.eye(n2 + n_in, dtype=w.dtype, device=w.device)[n_in:], (n1, 0))
    step = functional.pad(torch.cat((step[:n1], shift, step[n1:])), (0, n_out))
    following, v = step[: n1 + n2], step[n1 + n2 :]
    p, one = torch.block_diag(p1, p2), torch.eye(n_in, dtype=w.dtype, device=w.device)
    matrix = outer.weight.double()[:, :, 0, 0]
    form = torch.block_diag(p, one, 2.0 * lam - matrix.mT @ matrix) - following.mT @ p @ following
    cross = functional.pad(lam @ v, (0, 0, n1 + n2 + n_in, 0))
    form = form - cross - cross.mT
    metric, failed = torch.linalg.cholesky_ex(torch.block_diag(p, one, 2.0 * lam))
    if failed or not bool(form.isfinite().all()):
        raise CertificateError(
            "layer: expected a layer with a finite storage, got one whose S is singular. Use certify_cnn(layer), which "
            "does not need S to have an inverse."
        )
    half = torch.linalg.solve_triangular(metric, form, upper=False)
    whole = torch.linalg.solve_triangular(metric, half.mT, upper=False)
    return float(torch.linalg.eigvalsh((whole + whole.mT) / 2.0)[0])


def _noise_response(factor: Tensor, storage: Tensor, channels: int, taps: int) -> Tensor:
    """Taps of G, oldest first, (k n, k (k - 1) n)."""
    states = len(storage)
    root = _root(innovation(storage))
    theta = torch.linalg.cholesky_ex(gramian(storage, channels, taps)).L
    # In the coordinates of unit storage [N E R^1/2; L G_0] is orthogonal, so its blocks of columns are too.
    unit = torch.eye(states + channels, dtype=theta.dtype, device=theta.device)
    moved = torch.linalg.solve_triangular(theta, unit[channels:], upper=False)  # Theta^-1 [N E]
    noise = torch.linalg.solve_triangular(theta, root, upper=False)
    direct = -torch.linalg.solve_ex(factor.mT, moved.mT @ noise).result
    found = [direct]
    for _ in range(taps - 1):
        found.append(factor[:, :states] @ root)
        root = functional.pad(root[channels:], (0, 0, 0, channels))
    return torch.cat(found[::-1], dim=1)


def _root(matrix: Tensor) -> Tensor:
    """Symmetric root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2.0)
    root: Tensor = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT
    return root


def _check(layer: LipKernelConv2d) -> None:
    if not isinstance(layer, LipKernelConv2d):
        raise invalid(
            "layer", "a LipKernelConv2d or LipKernelConv1d", type(layer).__name__, "Use certify_cnn."
        )
