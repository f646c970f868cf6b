r"""The circular sandwich convolution of the paper, by Fourier transform.

Circular convolution is diagonal in frequency, so the Cayley map is applied to one small complex matrix per frequency
(Wang & Manchester, ICML 2023, section 4.3; Trockman & Kolter, ICLR 2021, for the orthogonal case):

$$S_f = \sum_t W_t \, e^{2 \pi i f^T (t - s) / n}, \qquad [A_f \; B_f] = \mathrm{Cayley}(\alpha S_f / \|W\|_F),
  \qquad A_f A_f^H + B_f B_f^H = I,$$

with $s = \lfloor (k - 1) / 2 \rfloor$. Every 1-Lipschitz circular layer of this form is reached as the kernel grows
to the size of the image. The published code divides by the norm of the sampled spectrum instead of $\|W\|_F$, so its
operator changes with the size of the image; here the same symbol is sampled at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.linalg import cayley, frobenius_norm, polish
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.conv_direct import SpectralParams
from robustnn.params.conv_explicit import Shape, Stage
from robustnn.params.conv_grid import Pair, fill_up, space_to_depth
from robustnn.params.conv_kernel import conv_margin
from robustnn.params.fused import RADIUS_LIMIT, is_watched, psi_limit

__all__ = [
    "SpectralConvStage",
    "SpectralStage",
    "coarse_size",
    "conv_from_torch",
    "half_spectrum",
    "spectral_factors",
    "spectral_to_stage",
]

_SMALL_SQUARE = 32.0


def half_spectrum(weight: Tensor, size: Pair) -> tuple[Tensor, Tensor]:
    """Symbol of a centred circular cross-correlation at the frequencies that `torch.fft.rfft2` keeps.

    Taps beyond the image wrap round, so that any kernel serves for any image.

    Args:
        weight: Shape (out, in, k_h, k_w), real.
        size: Height and width (h, w) of the image.

    Returns:
        Real and imaginary part, each of shape (h * (w // 2 + 1), out, in).
    """
    out, n_in, *taps = weight.shape
    turns = []
    for n, k, kept in ((size[0], taps[0], size[0]), (size[1], taps[1], size[1] // 2 + 1)):
        shift = torch.arange(k, device=weight.device) - (k - 1) // 2
        frequency = torch.arange(kept, device=weight.device)
        turns.append((frequency[:, None] * shift % n).double() / n)
    angle = 2.0 * math.pi * (turns[0][:, None, :, None] + turns[1][None, :, None, :])
    angle = angle.reshape(-1, taps[0] * taps[1])
    flat = weight.permute(2, 3, 0, 1).reshape(-1, out * n_in)
    real, imaginary = (wave(angle).to(weight.dtype) @ flat for wave in (torch.cos, torch.sin))
    return real.reshape(-1, out, n_in), imaginary.reshape(-1, out, n_in)


def spectral_factors(weight: Tensor, alpha: Tensor, size: Pair) -> tuple[Tensor, Tensor]:
    r"""Return $A_f^T$ and $B_f^T$ at every frequency of half a spectrum.

    Args:
        weight: Shape (n_out, n_out + n_in, k_h, k_w).
        alpha: Radius, shape (); confined as in `sandwich_factors`.
        size: Height and width of the image.

    Returns:
        Complex, of shapes (F, n_out, n_out) and (F, n_in, n_out), the stacked columns orthonormal.
    """
    n_out = weight.shape[0]
    norm = frobenius_norm(weight.reshape(n_out, -1))
    radius = alpha.clamp(-RADIUS_LIMIT, RADIUS_LIMIT)
    scaled = weight * (radius / torch.where(norm > 0, norm, torch.ones_like(norm)))
    # Transposed before the transform, which leaves the matrices of the Cayley map contiguous.
    tall = torch.complex(*half_spectrum(scaled.transpose(0, 1), size))
    factors = cayley(tall[:, :n_out], tall[:, n_out:])
    # The factors are off by rounding times the largest square; in training a polish, which doubles the time, is spared
    # where that is little. On other devices to look would be to wait.
    small = torch.is_grad_enabled() and not is_watched() and tall.is_cpu
    small = small and float(torch.view_as_real(tall.detach()).square().sum((1, 2, 3)).max()) < _SMALL_SQUARE
    return factors if small else polish(*factors)


def coarse_size(size: Pair, stride: Pair) -> Pair:
    """Size of the image after `fill_up` and `space_to_depth`."""
    return -(-size[0] // stride[0]), -(-size[1] // stride[1])


def spectral_to_stage(
    params: SpectralParams,
    activation: str,
    stride: Pair,
    image_size: Pair,
    *,
    gain: float = 1.0,
    target: torch.dtype | None = None,
) -> SpectralStage:
    """Explicit form of a circular sandwich convolution for one image size.

    Args:
        params: Free parameters of a layer n_in * stride area -> n_out.
        activation: Key of the activation table.
        stride: (rows, columns); the layer acts on the image after `space_to_depth`.
        image_size: Height and width of the input.
        gain: Factor of the input.
        target: Dtype that the weights will be rounded to; that of the parameters if None.

    Returns:
        The stage.
    """
    target = target or params.weight.dtype
    a_t, b_t = spectral_factors(params.weight, params.alpha, coarse_size(image_size, stride))
    limit = psi_limit(target)
    diagonal = params.psi.clamp(-limit, limit).exp()
    root = math.sqrt(2.0) * conv_margin(len(diagonal), params.weight.shape[1], 1, target)
    inner = b_t.mT * (root * gain / diagonal)[:, None]
    outer = a_t.conj() * (root * diagonal)
    return SpectralStage(
        torch.view_as_real(inner.resolve_conj()), params.bias, activation,
        torch.view_as_real(outer.resolve_conj()), stride, image_size,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SpectralStage(Stage):
    r"""Circular convolution, activation and circular convolution, each by a matrix per frequency.

    Complex matrices are stored as real ones with a last axis of two.

    Attributes:
        inner: $\sqrt2 \Psi^{-1} B_f$, shape (F, n_out, n_in, 2).
        bias: Shape (n_out,), or None.
        activation: Key of the activation table.
        outer: $\sqrt2 A_f^H \Psi$, shape (F, n_out, n_out, 2).
        stride: (rows, columns) of the `space_to_depth` in front.
        image_size: Height and width of the input.
    """

    inner: Tensor
    bias: Tensor | None
    activation: str
    outer: Tensor
    stride: Pair
    image_size: Pair

    def __call__(self, x: Tensor) -> Tensor:
        """Map (b, channels, height, width) to (b, n_out, height', width')."""
        x = _coarse(x, self.stride, self.image_size, self.inner.dtype)
        size = tuple(x.shape[-2:])
        half = (size[0], size[1] // 2 + 1)
        frequencies = torch.view_as_complex(self.inner) @ _frequencies(x)
        # Pixels first, samples last: the activation does not mind, and the products need no other order.
        v = torch.fft.irfft2(frequencies.reshape(*half, -1, len(x)), s=size, dim=(0, 1))
        if self.bias is not None:
            v = v + self.bias[:, None]
        frequencies = torch.fft.rfft2(ACTIVATIONS[self.activation].function(v), dim=(0, 1))
        frequencies = torch.view_as_complex(self.outer) @ frequencies.reshape(len(self.outer), -1, len(x))
        return torch.fft.irfft2(frequencies.reshape(*half, -1, len(x)).permute(3, 2, 0, 1), s=size)

    def tensors(self) -> dict[str, Tensor]:
        """Return both spectra and the bias."""
        spectra = {"inner": self.inner, "outer": self.outer}
        return spectra if self.bias is None else {**spectra, "bias": self.bias}

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Refuse: the kernels are as large as the image."""
        raise _not_ordinary()


@dataclass(frozen=True, eq=False)
class SpectralConvStage(Stage):
    """A circular convolution by a matrix per frequency.

    Attributes:
        spectrum: Shape (F, n_out, n_in, 2).
        bias: Shape (n_out,), or None.
        stride: (rows, columns) of the `space_to_depth` in front.
        image_size: Height and width of the input.
    """

    spectrum: Tensor
    bias: Tensor | None
    stride: Pair
    image_size: Pair

    def __call__(self, x: Tensor) -> Tensor:
        """Map (b, channels, height, width) to (b, n_out, height', width')."""
        x = _coarse(x, self.stride, self.image_size, self.spectrum.dtype)
        size = tuple(x.shape[-2:])
        frequencies = torch.view_as_complex(self.spectrum) @ _frequencies(x)
        frequencies = frequencies.reshape(size[0], size[1] // 2 + 1, -1, len(x))
        y = torch.fft.irfft2(frequencies.permute(3, 2, 0, 1), s=size)
        return y if self.bias is None else y + self.bias[:, None, None]

    def tensors(self) -> dict[str, Tensor]:
        """Return spectrum and bias."""
        spectrum = {"spectrum": self.spectrum}
        return spectrum if self.bias is None else {**spectrum, "bias": self.bias}

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Refuse: the kernel is as large as the image."""
        raise _not_ordinary()


def _coarse(x: Tensor, stride: Pair, image_size: Pair, dtype: torch.dtype) -> Tensor:
    """The image after `space_to_depth`, if it has the size that the spectrum belongs to."""
    if tuple(x.shape[-2:]) != image_size:
        raise ShapeError(
            f"input: expected images of {image_size}, the size that this spectrum belongs to, got "
            f"{tuple(x.shape[-2:])}. Compute the explicit weights for the other size."
        )
    if dtype.itemsize < 4:
        raise InvalidArgumentError(
            f"network: expected a spectrum in float32 or float64, got {dtype}. Convert the network with .float()."
        )
    x = x.to(dtype)  # another one only under autocast
    return x if stride == (1, 1) else space_to_depth(fill_up(x, stride), stride)


def _frequencies(x: Tensor) -> Tensor:
    """Half a spectrum, shape (F, channels, b)."""
    return torch.fft.rfft2(x).permute(2, 3, 1, 0).flatten(0, 1)


def _not_ordinary() -> InvalidArgumentError:
    return InvalidArgumentError(
        "network: expected layers with explicit kernels, got one that is evaluated by Fourier transform. "
        'Build it with parametrization="kernel" to export it as ordinary convolutions.'
    )


def conv_from_torch(
    weight: Tensor, alpha: Tensor, psi: Tensor, bias: Tensor | None, image_size: Pair
) -> SpectralParams:
    """Read a convolutional layer of the authors' torch code, whose radius belongs to one image size.

    Differentiable, so that gradients can be compared.

    Args:
        weight: Shape (n_out, n_out + n_in, k_h, k_w).
        alpha: Radius relative to the norm of the sampled spectrum, one element.
        psi: Shape (n_out,).
        bias: Shape (n_out,), or None.
        image_size: Height and width of the image (after `space_to_depth`) at which the radius was trained.

    Returns:
        The same layer in our layout.
    """
    real, imaginary = half_spectrum(weight, image_size)
    sampled = (real.square().sum() + imaginary.square().sum()).sqrt()
    return SpectralParams(weight, alpha.reshape(()) * weight.norm() / sampled, psi, bias)
