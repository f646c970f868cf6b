r"""The inverse map: an ordinary network and a proof of its bound -> direct parameters of the same function.

The direct parameterisation is complete: every network whose weights satisfy the LipSDP condition

$$H = \begin{bmatrix} \gamma I & & & \\ -\Lambda_0 W_0 & 2\Lambda_0 & & \\ & \ddots & \ddots & \\
  & & -W_L & \gamma I \end{bmatrix} \succeq 0 \quad\text{(symmetric)}, \qquad \Lambda_k = \mathrm{diag} > 0$$

is the image of direct parameters (Wang & Manchester, ICML 2023, theorem 2). With $\Psi_k = \Lambda_k^{1/2}$ the
scaled weights $S_0 = \Psi_0 W_0 / \sqrt{2\gamma}$, $S_k = \Psi_k W_k \Psi_{k-1}^{-1} / 2$,
$S_L = W_L \Psi_{L-1}^{-1} / \sqrt{2\gamma}$ are $S_k = B_k A_{k-1}^T$, a block Cholesky factorisation of H:

$$B_0 = S_0, \qquad A_k = (I - B_k B_k^T)^{1/2}, \qquad B_{k+1} = S_{k+1} A_k^{-1},$$

with symmetric roots, which keep $A_k$ inside the range of the Cayley map. The multipliers here are those of the
recursion in `certified_lipschitz`, $T_k = \gamma \Lambda_k$: they do not depend on the bound they prove.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from robustnn.errors import ShapeError, check_finite, check_positive, invalid
from robustnn.linalg import inverse_cayley, spectral_norm
from robustnn.params.direct import LBDNParams, SandwichParams
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import psi_limit
from robustnn.params.maps import lbdn_to_explicit, rounding_margin
from robustnn.params.scales import unfold_input, unfold_output

__all__ = ["certified_lipschitz", "explicit_to_lbdn", "product_multipliers"]

# Largest error of the scaled weights S_k after the way there and back, relative to the largest entry of each.
_TOLERANCE = 1e-9
# A radius below this would make the polar form of a layer ill-conditioned for training.
_LEAST_RADIUS = 1e-3


def explicit_to_lbdn(
    network: ExplicitMLP,
    multipliers: Sequence[Tensor],
    lipschitz: float,
    *,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> LBDNParams:
    r"""Return direct parameters of an LBDN with the function and the bound of an ordinary network.

    The parameters found are mapped back, and accepted only if they reproduce the weights; nothing else is trusted.
    All arithmetic is in float64.

    Args:
        network: The network $y = W_L \sigma(\dots \sigma(W_0 x + b_0) \dots) + b_L$.
        multipliers: Diagonals of $T_0 \dots T_{L-1}$ (module docstring), one tensor (n_k,) > 0 per hidden layer, for
            slopes in [0, 1] and for the scaled network $D_y^{-1} W_L \dots W_0 D_x$ if there are scales.
        lipschitz: The bound gamma that the multipliers prove, or a larger one.
        input_scale: D_x, shape (n_in,) or (n_in, n_in), in which the bound is meant; see `LBDNParams`.
        output_scale: D_y, shape (n_out,) or (n_out, n_out).
        dtype: Dtype of the result; that of the weights if None.

    Returns:
        Direct parameters, detached, with the bound as a float. Biases and scales are copies.

    Raises:
        ShapeError: If the multipliers do not fit the hidden layers.
        InvalidArgumentError: If a multiplier is not positive, or the multipliers do not prove the bound. The
            message has the smallest bound they prove.

    Example:
        >>> net = ExplicitMLP((torch.eye(2), torch.eye(2)), (None, None), "relu")
        >>> explicit_to_lbdn(net, [torch.ones(2)], 1.5).lipschitz
        1.5
    """
    gamma = check_positive("lipschitz", lipschitz)
    given = _prepare(network, multipliers, input_scale, output_scale, dtype)
    proved = gamma * rounding_margin(len(given.weights), given.dtype)
    psis = [(t / proved).sqrt() for t in given.multipliers]
    limit = psi_limit(given.dtype)
    for k, psi in enumerate(psis):
        if float(psi.log().abs().max()) > limit:
            raise invalid(
                f"multipliers[{k}]", f"values within exp(+-{2 * limit:.0f}) times lipschitz", psi.square().tolist(),
                "Use float64, or rescale the weights of the layer and of the next one.",
            )  # fmt: skip
    scaled = _scaled_weights(given.weights, psis, proved)
    layers = [
        _layer(b, a, None if k == len(psis) else psis[k].log(), bias)
        for k, ((b, a), bias) in enumerate(zip(_factorise(scaled), given.biases, strict=True))
    ]
    found = LBDNParams(tuple(layers), gamma)
    with torch.no_grad():
        image = lbdn_to_explicit(found, network.activation, target=given.dtype)
    returned = _scaled_weights(list(image.weights), psis, proved)
    for ours, theirs in zip(returned, scaled, strict=True):
        if not float((ours - theirs).abs().max()) <= _TOLERANCE * float(theirs.abs().max()):
            raise _infeasible(given, gamma, psis, scaled)
    return _cast(found, given, input_scale, output_scale)


def product_multipliers(
    network: ExplicitMLP,
    lipschitz: float | None = None,
    *,
    slack: float = 1.05,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
) -> tuple[list[Tensor], float]:
    r"""Return multipliers that prove the product of the spectral norms, in closed form.

    $T_k = \gamma\,p \prod_{j \le k} \|W_j\|_2^{-2} I$ with $p = \prod_k \|W_k\|_2$ satisfies the LipSDP condition
    for every $\gamma \ge p$, in the middle of the range that does.

    Args:
        network: A single network by value.
        lipschitz: The bound gamma; `slack` times the product if None.
        slack: Factor >= 1 on the product, used if no bound is given; it keeps the factors nonsingular.
        input_scale: As in `explicit_to_lbdn`.
        output_scale: As in `explicit_to_lbdn`.

    Returns:
        The diagonals $T_0 \dots T_{L-1}$ in float64, and the bound.

    Raises:
        InvalidArgumentError: If the bound is below the product, or slack below one.
    """
    if check_positive("slack", slack) < 1.0:
        raise invalid(
            "slack", "a factor >= 1", slack, "Use 1.05, or tighter multipliers for a smaller bound."
        )
    weights = _prepare(network, None, input_scale, output_scale, None).weights
    # A zero weight makes the function constant: any norm will do.
    norms = [float(spectral_norm(weight)) or 1.0 for weight in weights]
    product = math.prod(norms)
    if not 0.0 < product < math.inf:
        raise invalid(
            "network",
            "spectral norms with a product that float64 can hold",
            f"norms {norms}",
            "Rescale the weights.",
        )
    if lipschitz is None:
        lipschitz = slack * product
    elif check_positive("lipschitz", lipschitz) < product:
        raise invalid(
            "lipschitz", f"at least {product:.6g}, the product of the spectral norms", lipschitz,
            "Raise it, or pass the multipliers of a tighter bound (robustnn.bounds.lipsdp) together with that bound.",
        )  # fmt: skip
    squares = list(accumulate((norm**2 for norm in norms[:-1]), lambda a, b: a * b))
    return [
        weight.new_full((weight.shape[0],), lipschitz * product / square)
        for weight, square in zip(weights[:-1], squares, strict=True)
    ], lipschitz


def certified_lipschitz(
    network: ExplicitMLP,
    multipliers: Sequence[Tensor],
    *,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
) -> float:
    r"""Return the smallest bound that given multipliers prove for slopes in [0, 1].

    From $P = W_L^T W_L$, for k = L-1 ... 0: $P \leftarrow W_k^T T_k (2 T_k - P)^{-1} T_k W_k$, which needs
    $2 T_k - P \succ 0$; then $\gamma^2 = \lambda_{max}(P)$.

    Args:
        network: A single network by value.
        multipliers: Diagonals of $T_0 \dots T_{L-1}$, each (n_k,) > 0.
        input_scale: As in `explicit_to_lbdn`.
        output_scale: As in `explicit_to_lbdn`.

    Returns:
        gamma, or infinity if the multipliers prove no bound at all.
    """
    given = _prepare(network, multipliers, input_scale, output_scale, None)
    return _certified(given)


class _Given(NamedTuple):
    """Arguments in float64, with the scales taken out of the weights."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    multipliers: list[Tensor]
    dtype: torch.dtype


def _prepare(
    network: ExplicitMLP,
    multipliers: Sequence[Tensor] | None,
    input_scale: Tensor | None,
    output_scale: Tensor | None,
    dtype: torch.dtype | None,
) -> _Given:
    if network.weights[0].ndim != 2:
        raise invalid("network", "a single network", "a stack", "Treat its members one by one.")
    dtype = dtype or network.weights[0].dtype
    eps = torch.finfo(dtype).eps
    wide = network.detach().to(dtype=torch.float64)
    weights = list(wide.weights)
    for k, weight in enumerate(weights):
        check_finite(f"network.weights[{k}]", weight)
    weights[0] = unfold_input(weights[0], None if input_scale is None else input_scale.double(), eps)
    weights[-1] = unfold_output(weights[-1], None if output_scale is None else output_scale.double(), eps)
    diagonals = (
        [] if multipliers is None else [torch.as_tensor(t, device=weights[0].device) for t in multipliers]
    )
    diagonals = [t.detach().to(torch.float64) for t in diagonals]
    widths = [(weight.shape[0],) for weight in weights[:-1]]
    if multipliers is not None and [tuple(t.shape) for t in diagonals] != widths:
        raise ShapeError(
            f"multipliers: expected one diagonal per hidden layer, of shapes {widths}, got "
            f"{[tuple(t.shape) for t in diagonals]}. Pass the diagonals of T_0 ... T_(L-1)."
        )
    for k, diagonal in enumerate(diagonals):
        check_finite(f"multipliers[{k}]", diagonal)
        if not bool((diagonal > 0).all()):
            raise invalid(
                f"multipliers[{k}]", "positive numbers", diagonal.tolist(), "Drop dead units or lift zeros."
            )
    return _Given(weights, list(wide.biases), diagonals, dtype)


def _scaled_weights(weights: list[Tensor], psis: list[Tensor], gamma: float) -> list[Tensor]:
    """S_0 ... S_L of the module docstring."""
    outer = math.sqrt(2.0 * gamma)
    if not psis:
        return [weights[0] / gamma]
    first = psis[0].unsqueeze(-1) * weights[0] / outer
    middle = [
        0.5 * after.unsqueeze(-1) * weight / before
        for before, after, weight in zip(psis, psis[1:], weights[1:], strict=False)
    ]
    return [first, *middle, weights[-1] / psis[-1] / outer]


def _factorise(scaled: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (B_k, A_k) with S_k = B_k A_{k-1}^T and A_k A_k^T + B_k B_k^T = I, A_k symmetric and >= 0.

    Negative eigenvalues of I - B B^T are taken as zero and zero ones are not inverted. If H >= 0 both are
    rounding; if not, the factors do not reproduce the weights, which the caller finds out.
    """
    factors: list[tuple[Tensor, Tensor]] = []
    inverse_root: Tensor | None = None
    for s in scaled:
        b = s if inverse_root is None else s @ inverse_root
        n = b.shape[0]
        gap = torch.eye(n, dtype=b.dtype, device=b.device) - b @ b.mT
        values, vectors = torch.linalg.eigh(gap)
        roots = values.clamp_min(0.0).sqrt()
        invertible = values > 4 * n * torch.finfo(b.dtype).eps
        inverses = torch.where(invertible, roots, 1.0).reciprocal() * invertible
        factors.append((b, (vectors * roots) @ vectors.mT))
        inverse_root = (vectors * inverses) @ vectors.mT
    return factors


def _layer(b: Tensor, a: Tensor, psi: Tensor | None, bias: Tensor | None) -> SandwichParams:
    x, y = inverse_cayley(a, b.mT)
    if float(y.norm()) < _LEAST_RADIUS:
        # Only the skew part of X counts, so a multiple of I lends the polar form a radius and changes nothing.
        x = x + torch.eye(len(x), dtype=x.dtype, device=x.device)
    weight = torch.cat((x, y))
    return SandwichParams(weight, weight.norm(), psi, bias)


def _cast(
    found: LBDNParams, given: _Given, input_scale: Tensor | None, output_scale: Tensor | None
) -> LBDNParams:
    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(given.dtype, copy=True)

    layers = tuple(SandwichParams(*map(cast, layer)) for layer in found.layers)  # type: ignore[arg-type]
    return LBDNParams(layers, found.lipschitz, cast(input_scale), cast(output_scale))


def _certified(given: _Given) -> float:
    last = given.weights[-1]
    p = last.mT @ last
    for weight, t in zip(reversed(given.weights[:-1]), reversed(given.multipliers), strict=True):
        # With the diagonal of T divided out: T (2 T - P)^{-1} T = T^{1/2} (2 I - T^{-1/2} P T^{-1/2})^{-1} T^{1/2}.
        root = t.sqrt()
        gap = 2.0 * torch.eye(len(t), dtype=t.dtype, device=t.device) - p / root / root.unsqueeze(-1)
        factor, failed = torch.linalg.cholesky_ex(gap)
        if bool(failed):
            return math.inf
        half = torch.linalg.solve_triangular(factor, root.unsqueeze(-1) * weight, upper=False)
        p = half.mT @ half
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(p)[-1])))


def _least_eigenvalue(scaled: list[Tensor]) -> float:
    """Least eigenvalue of H, scaled to a unit diagonal: the blocks -S_k stand below it."""
    sizes = [scaled[0].shape[1], *(s.shape[0] for s in scaled)]
    starts = list(accumulate(sizes, initial=0))
    h = torch.eye(starts[-1], dtype=scaled[0].dtype, device=scaled[0].device)
    for k, s in enumerate(scaled):
        h[starts[k + 1] : starts[k + 2], starts[k] : starts[k + 1]] = -s
    return float(torch.linalg.eigvalsh(h, UPLO="L")[0])


def _infeasible(given: _Given, gamma: float, psis: list[Tensor], scaled: list[Tensor]) -> Exception:
    least = _certified(given) / rounding_margin(len(given.weights), given.dtype)
    found = f"a condition H >= 0 that fails: its least eigenvalue, at unit diagonal, is {_least_eigenvalue(scaled):.3g}"
    if math.isinf(least):
        return invalid(
            "multipliers", "multipliers that prove a bound", found,
            "They prove none, however large; compute them for this very network (the order is T_0 ... T_(L-1), T_k "
            "is gamma times Lambda_k) or use product_multipliers.",
        )  # fmt: skip
    return invalid(
        "lipschitz", f"at least {least:.8g}, the smallest bound that the multipliers prove in {given.dtype}",
        f"{gamma:.8g}, with {found}", "Raise it, or pass the multipliers of a tighter bound.",
    )  # fmt: skip
