r"""Other layers with a Lipschitz bound, to compare the sandwich layer with.

===========================  =============================================  =======================================
network                      layer                                          how its norm is bounded
===========================  =============================================  =======================================
`AOLNet`                     $\sigma(P D x + b)$, D diagonal                 sum of the entries of $|P^T P|$
`CayleyNet`                  $\sigma(Q x + b)$, Q (semi-)orthogonal          all singular values are one
`robustnn.nn.sll.SLLNet`     $x - 2 W T^{-1} \sigma(W^T x + b)$, T diagonal   $W^T W \preceq T$
===========================  =============================================  =======================================

All three bound every layer by one on its own, and the network by the product; the sandwich parameterisation bounds
the composition. They have the interface of `LBDN`: `lipschitz`, `explicit()`, freezing, `to_mlp()`, and a bound that
travels with the state dict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustnn.errors import check_positive_int
from robustnn.nn.bounded import BoundedNet, add_affine_parameters
from robustnn.nn.module import ExplicitModule
from robustnn.params.direct import SandwichParams
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.maps import rounding_margin, sandwich_factors

__all__ = ["AOLLinear", "AOLNet", "CayleyLinear", "CayleyNet"]


class _BoundedLinear(ExplicitModule):
    """An affine map x -> W x + b with a constraint on W; sub-classes say which."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.out_features = check_positive_int("out_features", out_features)
        add_affine_parameters(self, self.in_features, self.out_features, bias, device, dtype)
        self._initialise()

    def _initialise(self) -> None:
        """Fill the weight, and add further parameters."""
        raise TypeError(f"{type(self).__name__} must define _initialise()")

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound: one."""
        return 1.0

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W, computed in `dtype` if one is given; shape (n_out, n_in), spectral norm at most one."""
        raise TypeError(f"{type(self).__name__} must define matrix()")

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        bias = None if self.bias is None else self.bias.to(dtype)
        matrix = self.matrix(dtype) * rounding_margin(1, self.weight.dtype)
        return ExplicitMLP((matrix,), (bias,), "identity")

    def extra_repr(self) -> str:
        """Summarise the layer for `repr`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class AOLLinear(_BoundedLinear):
    r"""The almost-orthogonal layer of Prach & Lampert (ECCV 2022, Theorem 1).

    $$y = P D x + b, \qquad D = \mathrm{diag}\Big(\sum_j |P^T P|_{ij}\Big)^{-1/2}, \qquad \|P D\|_2 \le 1$$

    with equality only where the columns of P are orthogonal or parallel. P is initialised by
    `torch.nn.init.xavier_normal_`.

    Args:
        in_features: Input width n_in.
        out_features: Output width n_out.
        bias: Whether to add b.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If a width is not a positive integer.

    Example:
        >>> AOLLinear(4, 8)(torch.zeros(5, 4)).shape
        torch.Size([5, 8])
    """

    def _initialise(self) -> None:
        nn.init.xavier_normal_(self.weight)

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return P D, computed in `dtype` if one is given; shape (n_out, n_in)."""
        p = self.weight.to(dtype)
        # P D does not change when P is multiplied by a number: neither overflow nor underflow.
        p = p / _positive(p.detach().abs().max())
        return p / _positive((p.mT @ p).abs().sum(-1)).sqrt()


class CayleyLinear(_BoundedLinear):
    r"""An orthogonal layer by the Cayley map (Trockman & Kolter, ICLR 2021, section 3).

    $$y = Q x + b, \qquad Q^T Q = I \text{ or } Q Q^T = I, \qquad
      Q = \begin{bmatrix} (I + Z)^{-1} (I - Z) \\ -2 V (I + Z)^{-1} \end{bmatrix}, \quad Z = U - U^T + V^T V$$

    for a tall Q, and its transpose for a wide one. The free matrix [U; V] enters in the polar form
    $\alpha W / \|W\|_F$, as in the comparison of Wang & Manchester (ICML 2023). For a square layer this is the map
    "cayley" of `torch.nn.utils.parametrizations.orthogonal`, which has the same range but can neither be
    pickled nor be evaluated in float64 for a float32 layer.

    Args:
        in_features: Input width n_in.
        out_features: Output width n_out.
        bias: Whether to add b.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If a width is not a positive integer.

    Example:
        >>> w = CayleyLinear(3, 5, dtype=torch.float64).matrix()
        >>> bool(torch.allclose(w.mT @ w, torch.eye(3, dtype=torch.float64)))
        True
    """

    def _initialise(self) -> None:
        root = math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -1.0 / root, 1.0 / root)
        self.alpha = nn.Parameter(self.weight.detach().norm())

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return Q, computed in `dtype` if one is given; shape (n_out, n_in)."""
        weight, alpha = self.weight.to(dtype), self.alpha.to(dtype)
        wide = self.in_features > self.out_features
        # The factors of a sandwich layer are the blocks of just such a matrix.
        q = torch.cat(sandwich_factors(SandwichParams(weight.mT if wide else weight, alpha, None, None)))
        return q.mT if wide else q


class _LinearNet(BoundedNet):
    r"""$y = \sqrt\gamma W_L \sigma(\dots \sigma(\sqrt\gamma W_0 x + b_0)) + b_L$ with $\|W_k\|_2 \le 1$."""

    layer_class: ClassVar[type[_BoundedLinear]]

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        lipschitz: float = 1.0,
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, hidden_features, out_features, lipschitz, activation)
        widths = (self.in_features, *self.hidden_features, self.out_features)
        self.layers = nn.ModuleList(
            self.layer_class(n_in, n_out, bias=bias, device=device, dtype=dtype)
            for n_in, n_out in zip(widths, widths[1:], strict=False)
        )

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        parts = [layer._explicit(dtype) for layer in self.layers]  # type: ignore[operator]
        weights = [part.weights[0] for part in parts]
        root = math.sqrt(self._lipschitz)
        weights[0] = root * weights[0]
        weights[-1] = root * weights[-1]
        return ExplicitMLP(tuple(weights), tuple(part.biases[0] for part in parts), self.activation)


class AOLNet(_LinearNet):
    r"""A network of `AOLLinear` layers, $\gamma$-Lipschitz.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Widths of the hidden layers; may be empty.
        out_features: Number of outputs n_out.
        lipschitz: The bound gamma > 0, output units per input unit.
        activation: Name or torch.nn class from the activation table.
        bias: Whether the layers have biases.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If gamma, a width or the activation is not acceptable.

    Example:
        >>> AOLNet(3, (32, 32), 1, lipschitz=5.0).lipschitz
        5.0
    """

    layer_class = AOLLinear


class CayleyNet(_LinearNet):
    r"""A network of `CayleyLinear` layers, $\gamma$-Lipschitz.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Widths of the hidden layers; may be empty.
        out_features: Number of outputs n_out.
        lipschitz: The bound gamma > 0, output units per input unit.
        activation: Name or torch.nn class from the activation table.
        bias: Whether the layers have biases.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If gamma, a width or the activation is not acceptable.

    Example:
        >>> CayleyNet(3, (32, 32), 1, lipschitz=5.0).lipschitz
        5.0
    """

    layer_class = CayleyLinear


def _positive(x: Tensor) -> Tensor:
    """Return x, at least the smallest normal number of its dtype."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)
