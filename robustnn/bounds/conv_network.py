r"""The bound of a convolutional network, proved from its exported weights.

Every sandwich convolution $W_2 \sigma(W_1 x + b)$ with slopes in [0, 1] is bounded by $\|[A \; B]\|^2$ with
$A^H = W_2 T^{-1/2} / \sqrt2$ and $B = T^{1/2} W_1 / \sqrt2$, for any positive diagonal T, one number per channel: if
$A A^H + B B^H \preceq c I$, then $2 A^H D B$ has norm at most c for every diagonal $0 \preceq D \preceq I$ (Wang &
Manchester, ICML 2023, for c = 1). The dense part is bounded by the LipSDP condition, pooling by its own constant, and
the network by the product. Where the product of the norms of W_1 and W_2 is smaller, it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustnn.bounds.conv_lipkernel import completed_kernel
from robustnn.bounds.conv_parts import (
    dense_bound,
    fir_bound,
    next_multiplier,
    residual_bound,
    sandwich_bound,
    spectral_bound,
    stage_norm,
)
from robustnn.bounds.lower import LowerBound, lower_bound
from robustnn.errors import check_shape, invalid
from robustnn.linalg import spectral_norm
from robustnn.nn.conv import ConvModule, SandwichConv2d
from robustnn.nn.conv_fir import FIRConv1d
from robustnn.nn.conv_lbdn import ConvLBDN
from robustnn.nn.conv_lipkernel import LipKernelConv2d
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.conv_direct import KernelParams
from robustnn.params.conv_explicit import (
    ActivationStage,
    ConvStage,
    ExplicitCNN,
    FlattenStage,
    LinearStage,
    PoolStage,
    ResidualStage,
    Stage,
)
from robustnn.params.conv_grid import Pair, as_pair
from robustnn.params.conv_kernel import pointwise_kernel
from robustnn.params.conv_spectral import SpectralConvStage, SpectralStage
from robustnn.params.fused import psi_limit

__all__ = ["ConvBound", "certify_cnn", "cnn_bound", "cnn_multipliers", "cnn_references", "image_lower_bound"]

_EPS = torch.finfo(torch.float64).eps
_SANDWICHES = (SandwichConv2d, LipKernelConv2d)


@dataclass(frozen=True)
class ConvBound:
    r"""A proved Lipschitz bound of a convolutional network, $\|f(x) - f(x')\|_2 \le$ value $\cdot \|x - x'\|_2$.

    Attributes:
        value: The bound, output units per unit of the pixels.
        parts: Name and bound of every part, in order; the value is their product.
    """

    value: float
    parts: tuple[tuple[str, float], ...]

    def __float__(self) -> float:
        """Return the value."""
        return self.value


def certify_cnn(net: ConvModule, image_size: Pair | None = None) -> ConvBound:
    r"""Prove the bound of a network or layer from its weights as exported, rounded to the dtype of its parameters.

    Args:
        net: The network or layer; it is evaluated without gradients.
        image_size: Height and width of the images; those of the constructor if None.

    Returns:
        The bound.

    Raises:
        CertificateError: If the weights prove no bound.
        InvalidArgumentError: If a size is needed and missing.

    Example:
        >>> from robustnn.nn import ConvLBDN
        >>> certify_cnn(ConvLBDN((1, 8, 8), [(4, 3)], (), 2, lipschitz=3.0)).value <= 3.0
        True
    """
    if not isinstance(net, ConvModule):
        raise invalid(
            "net", "a convolutional network or layer", type(net).__name__, "Or call cnn_bound(...)."
        )
    if isinstance(net, FIRConv1d):
        bound = fir_bound(net, *cnn_multipliers(net))
        return ConvBound(bound, (("FIR layer", bound),))
    size = net.image_size if image_size is None else as_pair("image_size", image_size)
    with torch.no_grad():
        network = net.explicit(size)
    own = cnn_multipliers(net) if isinstance(net, (ConvLBDN, *_SANDWICHES)) else None
    return cnn_bound(network, own, size, cnn_references(net))


def cnn_multipliers(net: ConvModule) -> tuple[Tensor, ...]:
    r"""Multipliers T by which a network satisfies its own bound: $\Psi^2$ over the gain of a convolution's input.

    Args:
        net: The network or layer.

    Returns:
        One float64 tensor (n_k,) per sandwich convolution and per dense hidden layer.
    """
    limit = psi_limit(next(net.parameters()).dtype)

    def squared(psi: Tensor) -> Tensor:
        return (2.0 * psi.detach().double().clamp(-limit, limit)).exp()

    if isinstance(net, (FIRConv1d, *_SANDWICHES)):
        return (squared(net.psi),)
    if not isinstance(net, ConvLBDN):
        raise invalid("net", "a ConvLBDN or a sandwich convolution", type(net).__name__, "Others have none.")
    gains, found = net.gains(), []
    for layer in net.features:
        if isinstance(layer, _SANDWICHES):
            found.append(squared(layer.psi) / gains.pop(0))
    found += [
        math.sqrt(net.lipschitz) * squared(layer.psi) for layer in net.layers if isinstance(layer.psi, Tensor)
    ]
    return tuple(found)


def cnn_bound(
    network: ExplicitCNN,
    multipliers: Sequence[Tensor] | None = None,
    image_size: Pair | None = None,
    references: Sequence[Tensor | None] | None = None,
) -> ConvBound:
    """Prove a bound of any convolutional network by value.

    Args:
        network: The network; its weights are taken as they are, in float64.
        multipliers: As in `cnn_multipliers`. Without them convolutions and dense layers are bounded by the product of
            their norms, which is looser for sandwich layers.
        image_size: Height and width of the input; bounds for any size if None.
        references: One kernel per sandwich convolution, or None, that [A B] is nearly a part of; its norm, which may be
            easier to prove, and the norm of the difference are then tried as well.

    Returns:
        The bound.

    Raises:
        CertificateError: If the multipliers prove no bound of the dense part.
        ShapeError: If the multipliers do not belong to the network.
    """
    network = network.detach().to("cpu", torch.float64)
    size = image_size or network.image_size
    shapes = [(0, 0, 0)] * len(network.stages) if size is None else network.shapes(size)
    given = None if multipliers is None else [t.detach().to("cpu", torch.float64) for t in multipliers]
    stages, parts, k = list(network.stages), [], 0
    rest = list(references or ())
    while k < len(stages):
        stage = stages[k]
        area = None if size is None or len(shapes[k]) != 3 else (shapes[k][1], shapes[k][2])
        if isinstance(stage, LinearStage):
            parts.append(("dense part", dense_bound(stages[k:], given)))
            break
        if isinstance(stage, SpectralStage):
            parts.append(
                ("spectral layer", spectral_bound(stage, next_multiplier(given, stage.inner.shape[1])))
            )
        elif isinstance(stage, ConvStage) and given is not None and _is_sandwich(stages[k : k + 3]):
            multiplier = next_multiplier(given, len(stage.weight))
            assert multiplier is not None  # as given is not
            known = rest.pop(0) if rest else None
            bound = sandwich_bound(stage, stages[k + 1 : k + 3], multiplier, area, known)
            parts.append(("sandwich layer", bound))
            k += 2
        elif isinstance(stage, ConvStage):
            parts.append(("convolution", stage_norm(stage, area)))
        elif isinstance(stage, SpectralConvStage):
            spectrum = torch.view_as_complex(stage.spectrum.contiguous())
            slack = 1 + 16 * sum(spectrum.shape[1:]) * _EPS
            parts.append(("spectral convolution", float(spectral_norm(spectrum).max()) * slack))
        elif isinstance(stage, ResidualStage):
            parts.append(("residual block", residual_bound(stage, area)))
        elif isinstance(stage, PoolStage):
            parts.append((f"{stage.kind} pool", stage.lipschitz * (1 + 8 * _EPS)))
        elif isinstance(stage, ActivationStage):
            parts.append((stage.name, ACTIVATIONS[stage.name].slope_max))
        elif not isinstance(stage, FlattenStage):
            raise invalid("network", "stages of this package", type(stage).__name__, "Bound it yourself.")
        k += 1
    if given and not any(name == "dense part" for name, _ in parts):
        raise invalid(
            "multipliers", "one tensor per layer", f"{len(given)} too many", "Pass those of the network."
        )
    value = math.prod(bound for _, bound in parts) * (1 + len(parts) * _EPS)
    return ConvBound(value, tuple(parts))


def image_lower_bound(
    function: Callable[[Tensor], Tensor],
    starts: Tensor,
    *,
    iterations: int = 200,
    lr: float = 0.02,
    radius: float = 0.05,
) -> LowerBound:
    """Search for the largest gain of a function of images by gradient ascent on pairs; see `lower_bound`.

    Args:
        function: Differentiable map of (n, channels, height, width) to (n, ...); a float64 copy of a float32 network.
        starts: Images to start from, shape (n, channels, height, width), float64.
        iterations: Adam steps.
        lr: Adam step size in units of the pixels.
        radius: Length of the first pairs in units of the pixels.

    Returns:
        The best witness; its points are flattened images.

    Raises:
        ShapeError: If `starts` has another shape.
    """
    check_shape("starts", starts, "(n, channels, height, width)", starts.ndim == 4)
    shape = starts.shape[1:]

    def flat(x: Tensor) -> Tensor:
        return function(x.reshape(-1, *shape)).flatten(1)

    return lower_bound(flat, starts.flatten(1), iterations=iterations, lr=lr, radius=radius)


def cnn_references(net: ConvModule) -> tuple[Tensor | None, ...]:
    """Return kernels of which the layers use some columns only, computed in float64, for `cnn_bound`.

    Args:
        net: The network or layer.

    Returns:
        One per sandwich convolution, or None where there is none.
    """
    layers = [net] if isinstance(net, _SANDWICHES) else getattr(net, "features", ())
    found: list[Tensor | None] = []
    for layer in layers:
        if isinstance(layer, LipKernelConv2d):
            found.append(completed_kernel(layer).cpu())
        elif isinstance(layer, SandwichConv2d) and layer.outer == "kernel":
            found.append(None)
        elif isinstance(layer, SandwichConv2d):
            params = layer.direct(torch.float64)
            assert isinstance(params, KernelParams)
            with torch.no_grad():
                a, b = pointwise_kernel(params, layer.taps)
            a = functional.pad(a[..., None, None], (0, b.shape[-1] - 1, 0, b.shape[-2] - 1))
            found.append(torch.cat((a, b), dim=1).cpu())
    return tuple(found)


def _is_sandwich(stages: Sequence[Stage]) -> bool:
    """Whether a convolution, an activation and an unstrided convolution without bias follow one another.

    Where their windows lie does not matter: a shift of A multiplies its symbol by a number of modulus one.
    """
    if len(stages) < 3 or not isinstance(stages[1], ActivationStage):
        return False
    inner, outer = stages[0], stages[2]
    if not isinstance(inner, ConvStage) or not isinstance(outer, ConvStage):
        return False
    return outer.stride == (1, 1) and inner.circular == outer.circular
