r"""Upper bounds of the Lipschitz constant of an ordinary network, from its weights.

==================  ===========================================================================  ===============
method              multipliers T                                                                cost
==================  ===========================================================================  ===============
`product_bound`     implied                                                                      L norms
`eclipse_fast`      a number per layer, in closed form                                           L norms
`eclipse`           a diagonal per layer, one layer after the other                              L small problems
`lipsdp`            all diagonals at once: the tightest bound of this kind                       one large problem
==================  ===========================================================================  ===============

All but the product are proved by a Cholesky factorisation that allows for its own rounding (`robustnn.bounds.lmi`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from robustnn.bounds.lmi import certified_bound
from robustnn.bounds.network import (
    Chain,
    Network,
    as_network,
    check_multipliers,
    constructive_multipliers,
    make_chain,
)
from robustnn.bounds.recursion import dual, gain_squared, greedy, improve, product_rule
from robustnn.bounds.solver import solve_multipliers
from robustnn.errors import NonFiniteError, check_positive_int
from robustnn.linalg import spectral_norm
from robustnn.nn.lbdn import LBDN
from robustnn.nn.scales import Scale
from robustnn.params.activations import ACTIVATIONS

__all__ = ["UpperBound", "eclipse", "eclipse_fast", "lipsdp", "product_bound"]


@dataclass(frozen=True, eq=False)
class UpperBound:
    r"""A proved upper bound of a Lipschitz constant.

    Attributes:
        value: The bound: $\|D_y^{-1}(f(x) - f(x'))\|_2 \le$ value $\cdot \|D_x^{-1}(x - x')\|_2$.
        multipliers: $T_k (\beta - \alpha)$ of every hidden layer, float64, (n_k,) each; for slopes in [0, 1] these are
            the $T_k = \gamma \Lambda_k$ of the LipSDP condition. Empty for a linear network.
        residual: Shift of the normalised LipSDP matrix under which its Cholesky factorisation still succeeded.
        history: Objective of the optimiser after every step, a smooth majorant of the bound; it is stricter, and
            may rise, from one stage to the next.
    """

    value: float
    multipliers: tuple[Tensor, ...]
    residual: float
    history: tuple[float, ...] = ()

    def __float__(self) -> float:
        """Return the value."""
        return self.value


def product_bound(
    network: Network, *, input_scale: Scale | None = None, output_scale: Scale | None = None
) -> float:
    r"""Product of the spectral norms of the weights and the largest slopes of the activations.

    $$\mathrm{Lip}(f) \le s_{max}^{L} \prod_{k=0}^{L} \|W_k\|_2$$

    Valid for every network and loose for deep ones: it lets every layer amplify the same direction at once.

    Args:
        network: Anything that `as_network` accepts.
        input_scale: D_x, (n_in,) in the units of the inputs, or a matrix; ones if None.
        output_scale: D_y, (n_out,) in the units of the outputs, or a matrix; ones if None.

    Returns:
        The bound between the weighted l2 norms, computed in float64.

    Raises:
        InvalidArgumentError: If the network or a scale is not acceptable.

    Example:
        >>> import torch
        >>> product_bound(ExplicitMLP((2 * torch.eye(2), 3 * torch.eye(2)), (None, None), "relu"))
        6.0
    """
    explicit = as_network(network)
    slope = ACTIVATIONS[explicit.activation].slope_max
    chain = make_chain(explicit, input_scale, output_scale, (0.0, slope))
    return slope ** len(chain.widths) * math.prod(float(spectral_norm(weight)) for weight in chain.weights)


def eclipse_fast(
    network: Network, *, input_scale: Scale | None = None, output_scale: Scale | None = None
) -> UpperBound:
    r"""The closed form of ECLipsE-Fast (Xu & Sivaranjani, NeurIPS 2024).

    From $Q = W_0 W_0^T$ forwards, $T_k = 1 / \lambda_{\max}(Q)$ and $Q \leftarrow W_{k+1} (2 T_k - T_k Q T_k)^{-1}
    W_{k+1}^T$; the bound is $\sqrt{\lambda_{\max}(Q)}$ at the end. Never above the product of the norms.

    Args:
        network: Anything that `as_network` accepts.
        input_scale: D_x, (n_in,) in the units of the inputs, or a matrix; ones if None.
        output_scale: D_y, (n_out,) in the units of the outputs, or a matrix; ones if None.

    Returns:
        The bound, rounding included.

    Raises:
        InvalidArgumentError: If the network or a scale is not acceptable.

    Example:
        >>> eclipse_fast(ExplicitMLP((2 * torch.eye(2), 3 * torch.eye(2)), (None, None), "relu")).value < 6.0000001
        True
    """
    chain = make_chain(as_network(network), input_scale, output_scale)
    return _result(chain, _forward_multipliers(chain, 0))


def eclipse(
    network: Network,
    *,
    input_scale: Scale | None = None,
    output_scale: Scale | None = None,
    iterations: int = 100,
) -> UpperBound:
    r"""The layer-by-layer bound ECLipsE (Xu & Sivaranjani, NeurIPS 2024).

    As `eclipse_fast`, but each $T_k$ is the diagonal that minimises the next $\lambda_{\max}(Q)$. That small
    semidefinite program is convex in one diagonal and is solved by L-BFGS on a smooth majorant of the eigenvalue.

    Args:
        network: Anything that `as_network` accepts.
        input_scale: D_x, as in `eclipse_fast`.
        output_scale: D_y, as in `eclipse_fast`.
        iterations: Largest number of L-BFGS steps per layer.

    Returns:
        The bound, rounding included.

    Raises:
        InvalidArgumentError: If the network, a scale or `iterations` is not acceptable.
    """
    check_positive_int("iterations", iterations)
    chain = make_chain(as_network(network), input_scale, output_scale)
    return _result(chain, _forward_multipliers(chain, iterations))


def _forward_multipliers(chain: Chain, iterations: int) -> tuple[Tensor, ...]:
    flipped = chain.transposed()
    theta = greedy(flipped, iterations=iterations)
    return dual(theta, gain_squared(flipped, theta))


def lipsdp(
    network: Network,
    *,
    multipliers: Sequence[Tensor] | None = None,
    input_scale: Scale | None = None,
    output_scale: Scale | None = None,
    slopes: tuple[float, float] | None = None,
    iterations: int = 300,
    solver: str | None = None,
) -> UpperBound:
    r"""The bound of LipSDP-Neuron (Fazlyab et al., NeurIPS 2019), without a solver.

    Minimises $\lambda_{\max}(P)$ of the recursion in `robustnn.bounds.recursion` over $\log T$ by L-BFGS in float64.
    The problem is convex in T, so there are no other minima to be caught in, and any T on the way is a proof.
    Starts from the best of: the product rule, the closed forms of ECLipsE-Fast in both directions, the
    constructive multipliers of an `LBDN`, and those given.

    Args:
        network: Anything that `as_network` accepts.
        multipliers: Further multipliers to start from, as in `UpperBound`.
        input_scale: D_x, (n_in,) in the units of the inputs, or a matrix; ones if None.
        output_scale: D_y, (n_out,) in the units of the outputs, or a matrix; ones if None.
        slopes: A wider interval of slopes than the activation's. (0, 1) gives multipliers for the inverse map
            of the sandwich parameterisation, whatever the activation.
        iterations: Largest number of L-BFGS steps; 0 only evaluates the starts.
        solver: "clarabel" or "scs" takes the multipliers from that solver instead (extra `certify`).

    Returns:
        The bound, rounding included: never above those of the starts (up to a relative 1e-9).

    Raises:
        InvalidArgumentError: If an argument is not acceptable.
        RobustNNError: If a solver is asked for that is not installed, or fails.

    Example:
        >>> from robustnn import MLP
        >>> bound = lipsdp(MLP(2, (16, 16), 1))
        >>> bound.value <= product_bound(MLP(2, (16, 16), 1).explicit()) * 10
        True
    """
    check_positive_int("iterations", iterations, minimum=0)
    explicit = as_network(network)
    chain = make_chain(explicit, input_scale, output_scale, slopes)
    if not chain.widths or chain.is_constant:
        return _result(chain, product_rule(chain))
    if solver is not None:
        return _result(chain, solve_multipliers(chain, solver))
    given = [constructive_multipliers(network)] if isinstance(network, LBDN) else []
    if multipliers is not None:
        given.append(check_multipliers(multipliers, chain))
    # On the edge of what is admissible rounding decides; the proof moves them inwards.
    starts = [certified_bound(chain, theta)[1] for theta in given]
    starts += [product_rule(chain), greedy(chain), _forward_multipliers(chain, 0)]
    gains = [float(gain_squared(chain, theta)) for theta in starts]
    index = gains.index(min(gains))
    history: list[float] = []
    found = improve(chain, starts[index], iterations, warm=index < len(given), history=history)
    return _result(chain, found, starts[index], history=tuple(math.exp(h / 2) for h in history))


def _result(chain: Chain, *candidates: tuple[Tensor, ...], history: tuple[float, ...] = ()) -> UpperBound:
    """The smallest bound that one of the candidates proves."""
    proofs = [certified_bound(chain, theta) for theta in candidates]
    bound, used, residual = min(proofs, key=lambda proof: float(proof[0]))
    if not bool(bound.isfinite()):
        raise NonFiniteError(
            "network: expected weights whose bound can be computed in float64, got a bound that overflows or "
            "drowns in rounding. Rescale the weights or the inputs and outputs."
        )
    return UpperBound(float(bound), used, float(residual), history)
