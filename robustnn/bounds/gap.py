"""How far the bounds of one network lie apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustnn.bounds.lower import lower_bound
from robustnn.bounds.network import Network, as_network, fold_scales
from robustnn.bounds.upper import eclipse_fast, lipsdp, product_bound
from robustnn.errors import check_positive_int
from robustnn.nn.lbdn import LBDN
from robustnn.params.explicit import ExplicitMLP

__all__ = ["GapReport", "gap_report"]


@dataclass(frozen=True)
class GapReport:
    """Bounds of one Lipschitz constant, in the norms of the network, from below and from above.

    Attributes:
        lower: Largest gain found by gradient ascent.
        lipsdp: The LipSDP bound.
        eclipse_fast: The closed-form bound.
        product: Product of the norms and largest slopes.
        lipschitz: The guaranteed bound gamma of an `LBDN`, otherwise None.
    """

    lower: float
    lipsdp: float
    eclipse_fast: float
    product: float
    lipschitz: float | None = None

    @property
    def gap(self) -> float:
        """Relative distance of the best upper bound from the lower one."""
        uppers = [self.lipsdp, self.eclipse_fast, self.product, self.lipschitz]
        return min(u for u in uppers if u is not None) / self.lower - 1 if self.lower > 0 else math.inf

    def table(self) -> str:
        """Return the bounds as lines of text, each with its ratio to the lower bound."""
        rows = [("lower bound", self.lower), ("LipSDP", self.lipsdp)]
        if self.lipschitz is not None:
            rows.append(("gamma", self.lipschitz))
        rows += [("ECLipsE-Fast", self.eclipse_fast), ("product", self.product)]
        lines = [f"{'':14}{'bound':>12}{'/ lower':>10}"]
        for name, value in rows:
            ratio = value / self.lower if self.lower > 0 else math.nan
            lines.append(f"{name:14}{value:12.6g}{ratio:10.3f}")
        return "\n".join(lines)


def gap_report(
    network: Network,
    *,
    starts: Tensor | None = None,
    iterations: int = 300,
    lower_iterations: int = 200,
) -> GapReport:
    """Compute all bounds of a network; those of an `LBDN` in its own norms.

    Args:
        network: Anything that `as_network` accepts.
        starts: Inputs from which the lower bound is searched, (n, n_in), for example visited states; 64 standard
            normal samples in the scaled input if None.
        iterations: Steps of `lipsdp`.
        lower_iterations: Steps of the search from below.

    Returns:
        The report.

    Raises:
        InvalidArgumentError: If the network or an argument is not acceptable.

    Example:
        >>> print(gap_report(LBDN(2, (8,), 1, lipschitz=3.0)).table())  # doctest: +SKIP
    """
    check_positive_int("iterations", iterations, minimum=0)
    explicit = as_network(network).to(dtype=torch.float64)
    d_x, d_y, gamma = None, None, None
    if isinstance(network, LBDN):
        d_x, d_y, gamma = network.input_scale, network.output_scale, network.lipschitz
    if starts is None:
        generator = torch.Generator().manual_seed(0)
        starts = torch.randn(64, explicit.in_features, dtype=torch.float64, generator=generator)
    elif d_x is not None:
        starts = starts / d_x if d_x.ndim == 1 else torch.linalg.solve(d_x.mT, starts.to(d_x), left=False)
    # In scaled inputs and outputs; the output's bias does not matter.
    scaled, _ = fold_scales(explicit, d_x, d_y)
    searched = ExplicitMLP(tuple(scaled), (*explicit.biases[:-1], None), explicit.activation)
    return GapReport(
        lower=lower_bound(searched, starts.to(scaled[0]), iterations=lower_iterations).value,
        lipsdp=lipsdp(network, input_scale=d_x, output_scale=d_y, iterations=iterations).value,
        eclipse_fast=eclipse_fast(network, input_scale=d_x, output_scale=d_y).value,
        product=product_bound(network, input_scale=d_x, output_scale=d_y),
        lipschitz=gamma,
    )
