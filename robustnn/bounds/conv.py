r"""Norms of convolutions and of convolutional sandwich layers, proved from the kernels in float64.

A circular convolution is diagonal in frequency: its singular values on an image of n pixels are those of its symbol
$K(\omega)$ at the n frequencies (Sedghi, Gupta & Long, ICLR 2019). Padded with zeros it is a window of the convolution
on the infinite grid, so its norm is at most $\sup_\omega \|K(\omega)\|$. The supremum is bounded in two ways, and
the smaller number counts:

- $K K^H(\omega) = \sum_t G_t e^{i \omega^T t}$ gives $\|K\|^2 \le \|G_0\| + \sum_{t \ne 0} \|G_t\|$, which is sharp for
  kernels that are nearly orthogonal, such as those of this package;
- a real trigonometric polynomial of degree m is at most $1 / \cos(\pi m / N)$ times its maximum on N > 2m equidistant
  points (Ehlich & Zeller, Math. Z. 1964), here for $u^H K K^H u$ with m = k - 1 in each direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from robustnn.errors import ShapeError, check_finite, invalid
from robustnn.linalg import spectral_norm
from robustnn.params.conv_grid import Pair, as_pair, to_coarse_kernel

__all__ = [
    "circular_singular_values",
    "convolution_norm",
    "kernel_symbol",
    "norm_from_below",
    "norm_without_sampling",
    "supremum_of_norm",
]

_EPS = torch.finfo(torch.float64).eps
_GRID = 64


def kernel_symbol(kernel: Tensor, size: Pair) -> Tensor:
    """Return the symbol of a convolution at the frequencies of a grid, up to a phase.

    Args:
        kernel: Shape (out, in, k_h, k_w).
        size: Number of frequencies (rows, columns); taps beyond it wrap round.

    Returns:
        Shape (rows * columns, out, in), complex128.
    """
    waves = []
    for n, taps in zip(size, kernel.shape[2:], strict=True):
        turns = torch.arange(n, device=kernel.device)[:, None] * torch.arange(taps, device=kernel.device) % n
        angle = 2.0 * math.pi * turns.double() / n
        waves.append(torch.complex(angle.cos(), angle.sin()))
    half = torch.einsum("oiyx,wx->oiyw", kernel.to(torch.complex128), waves[1])
    return torch.einsum("oiyw,hy->hwoi", half, waves[0]).flatten(0, 1)


def circular_singular_values(kernel: Tensor, image_size: int | Pair, stride: int | Pair = 1) -> Tensor:
    """Return all singular values of a convolution on periodic images.

    Args:
        kernel: Shape (out, in, k_h, k_w).
        image_size: Height and width of the input; multiples of the stride.
        stride: (rows, columns), or one number for both.

    Returns:
        Shape (pixels of the output, min(out, in * stride area)), float64, descending in each row.

    Raises:
        ShapeError: If the kernel has another shape.
        InvalidArgumentError: If the sizes do not fit.

    Example:
        >>> circular_singular_values(torch.ones(1, 1, 1, 2), (1, 2)).squeeze().round(decimals=9).tolist()
        [2.0, 0.0]
    """
    coarse, steps, size = (
        _checked(kernel, stride),
        as_pair("stride", stride),
        as_pair("image_size", image_size),
    )
    if size[0] % steps[0] or size[1] % steps[1]:
        raise invalid(
            "image_size", f"multiples of the stride {steps}", size, "Fill the images up with zeros."
        )
    return torch.linalg.svdvals(kernel_symbol(coarse, (size[0] // steps[0], size[1] // steps[1])))


def supremum_of_norm(kernel: Tensor, stride: int | Pair = 1) -> float:
    r"""Return a proved bound of $\sup_\omega \|K(\omega)\|$, for images of any size and either padding.

    Args:
        kernel: Shape (out, in, k_h, k_w).
        stride: (rows, columns), or one number for both.

    Returns:
        The bound, with an allowance for rounding in float64.

    Raises:
        ShapeError: If the kernel has another shape.
        NonFiniteError: If it has an entry that is not finite.

    Example:
        >>> abs(supremum_of_norm(torch.ones(1, 1, 1, 1)) - 1.0) < 1e-12
        True
    """
    coarse = _checked(kernel, stride)
    if coarse.shape[0] > coarse.shape[1]:
        coarse = coarse.transpose(0, 1)  # the same values, of the smaller of K K^H and K^H K
    return _supremum(coarse)


def _supremum(kernel: Tensor) -> float:
    bound = _by_correlation(kernel)
    # The points of the coarse grid are points of the fine one, so sampling cannot give less than this.
    if bound * math.sqrt(_shrinkage(kernel)) <= norm_from_below(kernel):
        return bound
    return min(bound, _by_sampling(kernel))


def norm_from_below(kernel: Tensor) -> float:
    r"""Return the largest $\|K(\omega)\|$ at a few frequencies, which is at most the supremum.

    Args:
        kernel: Shape (out, in, k_h, k_w), float64.

    Returns:
        The norm, up to rounding.
    """
    size = tuple(1 if taps == 1 else 4 for taps in kernel.shape[2:])
    return float(_largest(kernel_symbol(kernel, (size[0], size[1]))))


def norm_without_sampling(kernel: Tensor) -> float:
    """Return a proved bound of the supremum that is cheap and not sharp, for kernels that hardly matter.

    Args:
        kernel: Shape (out, in, k_h, k_w).

    Returns:
        The sum of the Frobenius norms of the taps.
    """
    return float(kernel.double().square().sum((0, 1)).sqrt().sum()) * (1 + kernel.numel() * _EPS)


def convolution_norm(
    kernel: Tensor, *, stride: int | Pair = 1, circular: bool = False, image_size: Pair | None = None
) -> float:
    """Return a proved bound of the norm of a convolution: exact, up to rounding, if it is circular of known size.

    Args:
        kernel: Shape (out, in, k_h, k_w).
        stride: (rows, columns), or one number for both.
        circular: Whether images are continued periodically, and not by zeros.
        image_size: Height and width of the input, if known.

    Returns:
        The bound.
    """
    if not circular or image_size is None:
        return supremum_of_norm(kernel, stride)
    coarse, steps = _checked(kernel, stride), as_pair("stride", stride)
    symbol = kernel_symbol(coarse, (-(-image_size[0] // steps[0]), -(-image_size[1] // steps[1])))
    return float(spectral_norm(symbol).max()) + _rounding(coarse)


def _by_correlation(kernel: Tensor) -> float:
    rows, columns = kernel.shape[2] - 1, kernel.shape[3] - 1
    correlation = functional.conv2d(kernel, kernel, padding=(rows, columns))
    norms = spectral_norm(correlation.permute(2, 3, 0, 1))
    # Entry (i, j) of G_t has an error of at most (terms) u (|K| |K|^T)_ij, and the sum over all lags of these matrices
    # is (sum |K_t|)(sum |K_t|)^T, of Frobenius norm at most taps * |K|_F^2; the rest is for the singular values.
    taps = (rows + 1) * (columns + 1)
    units = taps * kernel.shape[1] + 8 * kernel.shape[0]
    allowance = units * taps * _EPS * float(kernel.square().sum())
    return math.sqrt(float(norms.sum()) + allowance) * (1 + 4 * _EPS)


def _grid(kernel: Tensor) -> tuple[Pair, list[int]]:
    """Frequencies in each direction, and degrees."""
    degrees = [taps - 1 for taps in kernel.shape[2:]]
    rows, columns = (1 if m == 0 else max(_GRID, 16 * m) for m in degrees)
    return (rows, columns), degrees


def _shrinkage(kernel: Tensor) -> float:
    size, degrees = _grid(kernel)
    return math.prod(math.cos(math.pi * m / n) for m, n in zip(degrees, size, strict=True))


def _by_sampling(kernel: Tensor) -> float:
    size, _ = _grid(kernel)
    # The symbol of a real kernel at the opposite frequency is the conjugate: half of the rows suffice.
    symbol = kernel_symbol(kernel, size).unflatten(0, size)[: size[0] // 2 + 1].flatten(0, 1)
    largest = max(float(_largest(part)) for part in symbol.split(512))
    return (largest + _rounding(kernel)) / math.sqrt(_shrinkage(kernel)) * (1 + 4 * _EPS)


def _largest(symbol: Tensor) -> Tensor:
    """Largest singular value over all frequencies, from the eigenvalues of the smaller Gram matrix."""
    if symbol.shape[-2] > symbol.shape[-1]:
        symbol = symbol.mT
    values = torch.linalg.eigvalsh(symbol @ symbol.mH)[..., -1]
    slack = 4 * (symbol.shape[-1] + symbol.shape[-2]) * _EPS * symbol.abs().square().sum((-2, -1))
    return (values + slack).clamp_min(0.0).max().sqrt()


def _rounding(kernel: Tensor) -> float:
    """What rounding may change in a symbol and its norm: a few units for every tap, and those of the SVD."""
    out, n_in, *taps = kernel.shape
    size = float(kernel.flatten(2).square().sum((0, 1)).sqrt().sum())
    return (8 * sum(taps) + 8 * (out + n_in)) * _EPS * size


def _checked(kernel: Tensor, stride: int | Pair) -> Tensor:
    """The kernel in float64 on the image after `space_to_depth`."""
    if not isinstance(kernel, Tensor) or kernel.ndim != 4 or 0 in kernel.shape:
        got = tuple(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
        raise ShapeError(
            f"kernel: expected shape (out, in, k_h, k_w), got {got}. Pass the weight of a convolution."
        )
    check_finite("kernel", kernel)
    return to_coarse_kernel(kernel.detach().double(), as_pair("stride", stride))
