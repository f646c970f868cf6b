"""Bounds of the parts of a convolutional network, proved from their weights in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from robustnn.bounds.conv import (
    convolution_norm,
    norm_from_below,
    norm_without_sampling,
    supremum_of_norm,
)
from robustnn.bounds.lmi import certified_bound
from robustnn.bounds.network import Chain, make_chain
from robustnn.bounds.upper import product_bound
from robustnn.errors import CertificateError, invalid
from robustnn.linalg import spectral_norm
from robustnn.nn.conv_fir import FIRConv1d
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.conv_explicit import ActivationStage, ConvStage, LinearStage, ResidualStage, Stage
from robustnn.params.conv_gramian import fir_kernel, storage_root
from robustnn.params.conv_grid import Pair, to_coarse_kernel
from robustnn.params.conv_spectral import SpectralStage
from robustnn.params.direct import SandwichParams
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.maps import sandwich_factors

__all__ = [
    "dense_bound",
    "fir_bound",
    "next_multiplier",
    "residual_bound",
    "sandwich_bound",
    "spectral_bound",
    "stage_norm",
]

_EPS = torch.finfo(torch.float64).eps


def next_multiplier(given: list[Tensor] | None, width: int) -> Tensor | None:
    """Take the first of the multipliers, after checking it; None if there are none at all."""
    if given is None:
        return None
    if not given or tuple(given[0].shape) != (width,):
        got = tuple(given[0].shape) if given else "none left"
        raise invalid("multipliers", f"a tensor ({width},) for this layer", got, "Pass those of the network.")
    if not bool((given[0] > 0).all() and given[0].isfinite().all()):
        raise invalid("multipliers", "positive numbers", float(given[0].min()), "Multipliers are weights.")
    return given.pop(0)


def stage_norm(stage: ConvStage, size: Pair | None) -> float:
    """Bound the norm of a convolution with its padding.

    Args:
        stage: The convolution.
        size: Height and width of the input; any if None.

    Returns:
        The bound.

    Raises:
        InvalidArgumentError: If it returns periodic images that are larger than those it is given.
    """
    for pads, taps, stride in zip(
        (stage.rows, stage.columns), stage.weight.shape[2:], stage.stride, strict=True
    ):
        if stage.circular and sum(pads) > (-(-taps // stride) - 1) * stride:
            raise invalid(
                "network",
                "circular padding by at most the reach of the kernel",
                pads,
                "Pad less: pixels come twice.",
            )
    return convolution_norm(stage.weight, stride=stage.stride, circular=stage.circular, image_size=size)


def _are_adjoint(inner: ConvStage, outer: ConvStage) -> bool:
    """Whether two convolutions see the same pixels, so that one with the flipped kernel is the adjoint of the other."""
    windows = [
        (pads, back, taps)
        for pads, back, taps in (
            (inner.rows, outer.rows, inner.weight.shape[2]),
            (inner.columns, outer.columns, inner.weight.shape[3]),
        )
    ]
    same = all(pads == back[::-1] and sum(pads) == taps - 1 for pads, back, taps in windows)
    ordinary = inner.stride == outer.stride == (1, 1) and inner.circular == outer.circular
    return same and ordinary and inner.weight.shape[2:] == outer.weight.shape[2:]


def sandwich_bound(
    inner: ConvStage, others: Sequence[Stage], multiplier: Tensor, size: Pair | None, reference: Tensor | None
) -> float:
    """Bound a sandwich convolution: the smaller of the bound by the multiplier and the product of the norms.

    Args:
        inner: The first convolution.
        others: Activation and second convolution.
        multiplier: T, shape (n_out,).
        size: Height and width of the input; any if None.
        reference: A kernel whose first columns are, up to a factor and rounding, those of [A B]; its norm, which may be
            easier to prove, and that of the difference are tried as well.

    Returns:
        The bound.
    """
    activation, outer = others
    assert isinstance(activation, ActivationStage) and isinstance(outer, ConvStage)
    for pads, taps, stride in zip(
        (inner.rows, inner.columns), inner.weight.shape[2:], inner.stride, strict=True
    ):
        if inner.circular and sum(pads) < taps - stride:
            raise invalid(
                "network", "circular padding by the reach of the first kernel of a sandwich", pads,
                "Pad more: the second convolution would go round a smaller image.",
            )  # fmt: skip
    root = (multiplier / 2.0).sqrt()
    b = to_coarse_kernel(inner.weight, inner.stride)
    a = outer.weight.flip(-2, -1).transpose(0, 1)
    missing = [max(a.shape[k], b.shape[k]) for k in (-2, -1)]
    a, b = (functional.pad(t, (0, missing[1] - t.shape[-1], 0, missing[0] - t.shape[-2])) for t in (a, b))
    kernel = torch.cat((a / (2.0 * root)[:, None, None, None], b * root[:, None, None, None]), dim=1)
    fine = size
    if size is not None:
        size = -(-size[0] // inner.stride[0]), -(-size[1] // inner.stride[1])
    if reference is None:
        whole = convolution_norm(kernel, circular=inner.circular, image_size=size)
    else:
        whole = _near(kernel, reference)
        if whole > 1.001 * norm_from_below(kernel) or inner.circular:
            whole = min(whole, convolution_norm(kernel, circular=inner.circular, image_size=size))
    # The product of the norms is only worth its work if it can be smaller.
    slope = ACTIVATIONS[activation.name].slope_max
    product = math.inf
    if slope * norm_from_below(a) * norm_from_below(b) * 0.999 < whole**2 or inner.circular:
        product = slope * stage_norm(inner, fine) * stage_norm(outer, size)
    return min(whole**2, product) * (1 + 8 * _EPS)


def spectral_bound(stage: SpectralStage, multiplier: Tensor | None) -> float:
    """Bound a circular sandwich convolution, frequency by frequency."""
    inner, outer = (torch.view_as_complex(t.contiguous()) for t in (stage.inner, stage.outer))
    bound = (
        float(spectral_norm(inner).max() * spectral_norm(outer).max())
        * ACTIVATIONS[stage.activation].slope_max
    )
    if multiplier is not None:
        root = (multiplier / 2.0).sqrt()
        stacked = torch.cat((outer.mH / (2.0 * root)[:, None], inner * root[:, None]), dim=-1)
        bound = min(bound, float(spectral_norm(stacked).max()) ** 2)
    return bound * (1 + 16 * (inner.shape[1] + inner.shape[2]) * _EPS)


def residual_bound(stage: ResidualStage, size: Pair | None) -> float:
    r"""Bound of $x + U \sigma(V x + b)$ with $U = -2 V^T T^{-1} + E$ and T fitted to U and V.

    $I - 2 V^T T^{-1/2} D T^{-1/2} V$ has norm at most max(1, 2 c - 1) for all diagonal $0 \preceq D \preceq I$, where
    $c = \|T^{-1/2} V\|^2$, and E adds at most its norm times that of V. The norms of the convolutions come next.
    """
    one, two = stage.inner, stage.outer
    pads = [sum(one.rows) + sum(two.rows), sum(one.columns) + sum(two.columns)]
    reach = [m + n - 2 for m, n in zip(one.weight.shape[2:], two.weight.shape[2:], strict=True)]
    if pads != reach or one.stride != (1, 1) or two.stride != (1, 1):  # else the sum repeats pixels
        raise invalid("network", f"a residual block that keeps the image, padded by {reach}", pads, "Pad it.")
    v, slope = stage.inner.weight, ACTIVATIONS[stage.activation].slope_max
    u = stage.outer.weight.transpose(0, 1).flip(-2, -1)
    norms = [stage_norm(convolution, size) for convolution in (stage.outer, stage.inner)]
    bound = 1.0 + slope * math.prod(norms)
    if not _are_adjoint(stage.inner, stage.outer):
        return stage.gain * bound * (1 + 16 * _EPS)
    inverse = (-(u * v).sum((1, 2, 3)) / (2.0 * v.square().sum((1, 2, 3)))).nan_to_num(0.0)
    idle = (u.flatten(1) == 0).all(1) | (v.flatten(1) == 0).all(1)  # such a channel contributes a constant
    if bool(((inverse > 0) | idle).all()):
        root = torch.where(idle, torch.ones_like(inverse), inverse).sqrt()[:, None, None, None]
        used = (~idle)[:, None, None, None]
        v, u = root * v * used, u / root * used
        inner, error = (
            convolution_norm(k, circular=stage.inner.circular, image_size=size) for k in (v, u + 2.0 * v)
        )
        bound = min(bound, max(1.0, 2.0 * inner**2 - 1.0) + slope * error * inner)
    return stage.gain * bound * (1 + 16 * _EPS)


def fir_bound(layer: FIRConv1d, multiplier: Tensor) -> float:
    r"""Bound of a FIR layer by its storage function, for sequences of any length.

    In float64 $[C \; D] = V L$ and $F \succeq L^T L - \delta I$, $\delta$ the rounding of F and of its Cholesky factor.
    The register holds every sample l - 1 times, so the output of L has at most $1 + l \delta$ times the energy of the
    input, and $\|[A \; B]\|^2 \le (1 + l \delta) \|[A \; V]\|^2$. What was exported differs by a kernel whose norm is
    bounded by itself.
    """
    params = layer.direct(torch.float64)
    with torch.no_grad():
        factors = torch.cat(sandwich_factors(SandwichParams(params.weight, params.alpha, None, None)))
        norm, delta, product = float(spectral_norm(factors)), 0.0, 0.0
        if params.storage is not None:
            root = storage_root(params.storage, layer.in_channels, layer.kernel_size[1])
            size, trace = len(root), float(root.square().sum())
            delta = 4.0 * (size + 4) * _EPS * trace
            product = size * _EPS * math.sqrt(trace * len(params.psi) * layer.kernel_size[1])  # that of V L
        kernel = fir_kernel(params, layer.in_channels, layer.kernel_size[1])
        inner, _, outer = layer.explicit().stages
    assert isinstance(inner, ConvStage) and isinstance(outer, ConvStage)
    root = (multiplier / 2.0).sqrt()[:, None, None, None]
    shipped = torch.cat(
        (
            functional.pad(outer.weight.double().transpose(0, 1) / (2.0 * root), (kernel.shape[-1] - 1, 0)),
            inner.weight.double() * root,
        ),
        dim=1,
    )
    # The margin of the layer is a factor of the whole, not an error.
    margin = float((shipped * kernel).sum() / kernel.square().sum())
    rounding = norm_without_sampling(shipped - margin * kernel) + abs(margin) * product
    return (abs(margin) * norm * math.sqrt(1.0 + delta * kernel.shape[-1]) + rounding) ** 2 * (1 + 16 * _EPS)


def dense_bound(stages: Sequence[Stage], given: list[Tensor] | None) -> float:
    """Bound dense layers, by the LipSDP condition with the multipliers or else by the product of their norms."""
    layers = [stage for stage in stages if isinstance(stage, LinearStage)]
    names = {stage.name for stage in stages if isinstance(stage, ActivationStage)} or {"relu"}
    turns = all(isinstance(stage, (LinearStage, ActivationStage)[k % 2]) for k, stage in enumerate(stages))
    if len(names) > 1 or not turns or len(stages) % 2 == 0:
        raise invalid(
            "network", "linear maps and one kind of activation in turns", names, "Bound it yourself."
        )
    weights = tuple(layer.weight for layer in layers)
    network = ExplicitMLP(weights, (None,) * len(weights), names.pop())
    if given is None:
        return product_bound(network) * (1 + 16 * sum(sum(w.shape) for w in weights) * _EPS)
    chain = _narrow(make_chain(network))
    if not chain.widths:
        del given[: len(layers) - 1]  # without slopes to choose, the layers are one matrix
    theta = [next_multiplier(given, n) for n in chain.widths]
    if given:
        raise invalid(
            "multipliers", "one tensor per layer", f"{len(given)} too many", "Pass those of the network."
        )
    bound, _, _ = certified_bound(chain, [t for t in theta if t is not None])
    if not bool(bound.isfinite()):
        raise CertificateError(
            "multipliers: expected multipliers that prove a bound of the dense part, got a LipSDP matrix that is not "
            "positive definite for any bound. Use those of the network."
        )
    return float(bound)


def _narrow(chain: Chain) -> Chain:
    """Replace the first weight, if it is wide, by the triangular factor of its transpose: the same gain."""
    first = chain.weights[0]
    n, m = first.shape
    if m <= n or chain.spread[0] is not None:
        return chain
    r = torch.linalg.qr(first.mT, mode="r").R
    # Householder's method is exact for a matrix that differs by a few roundings per column and reflection.
    spread = (4.0 * (m + 1) * n * _EPS * first.norm(dim=1))[:, None].expand(n, n)
    return Chain((r.mT, *chain.weights[1:]), chain.alpha, chain.beta, (spread, *chain.spread[1:]))


def _near(kernel: Tensor, reference: Tensor) -> float:
    """Bound of the norm of a kernel that is, up to a factor and rounding, a part of another one."""
    n_out, size, *taps = kernel.shape
    if (
        reference.ndim != 4
        or (len(reference), *reference.shape[2:]) != (n_out, *taps)
        or reference.shape[1] < size
    ):
        raise invalid(
            "references", f"({n_out}, at least {size}, {taps[0]}, {taps[1]})", tuple(reference.shape),
            "Pass cnn_references(net).",
        )  # fmt: skip
    reference = reference.detach().to(kernel)
    part = reference[:, : kernel.shape[1]]
    factor = float((kernel * part).sum() / part.square().sum().clamp_min(1e-300))
    return abs(factor) * supremum_of_norm(reference) + norm_without_sampling(kernel - factor * part)
