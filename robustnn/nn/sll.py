"""The SDP-based Lipschitz layer, a residual baseline for the sandwich layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustnn.errors import check_positive_int, check_shape, invalid
from robustnn.nn.bounded import BoundedNet, add_affine_parameters
from robustnn.nn.module import CountedModule
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.maps import rounding_margin

__all__ = ["ExplicitResidual", "SLLBlock", "SLLNet"]


@dataclass(frozen=True, eq=False)
class ExplicitResidual:
    r"""The map $x_0 = g E x$, $x_{k+1} = x_k - R_k \,\mathrm{relu}(W_k^T x_k + b_k)$, $y = g S x_L$, by value.

    E pads with zeros to the width n of the state, and S takes its first n_out components.

    Attributes:
        inner: $W_k^T$, shape (m_k, n) each.
        outer: $R_k = 2 W_k T_k^{-1}$, shape (n, m_k) each.
        biases: b_k, shape (m_k,) each, or None.
        gain: g, the root of the bound of the network.
        in_features: Number of inputs.
        out_features: Number of outputs.
    """

    inner: tuple[Tensor, ...]
    outer: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    gain: float
    in_features: int
    out_features: int

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the network: (..., n_in) to (..., n_out)."""
        shape = f"(..., {self.in_features})"
        check_shape("input", x, shape, x.ndim > 0 and x.shape[-1] == self.in_features)
        x = functional.pad(self.gain * x, (0, self.inner[0].shape[-1] - self.in_features))
        for inner, outer, bias in zip(self.inner, self.outer, self.biases, strict=True):
            x = x - functional.linear(torch.relu(functional.linear(x, inner, bias)), outer)
        return self.gain * x[..., : self.out_features]

    def map(self, function: Callable[[Tensor], Tensor]) -> ExplicitResidual:
        """Return a copy with `function` applied to every tensor."""
        return replace(
            self,
            inner=tuple(function(t) for t in self.inner),
            outer=tuple(function(t) for t in self.outer),
            biases=tuple(None if t is None else function(t) for t in self.biases),
        )

    def to_mlp(self) -> ExplicitMLP:
        r"""Return the same map without shortcuts, with $m_k + 2 n$ units in hidden layer k.

        $\mathrm{relu}(x) - \mathrm{relu}(-x) = x$ carries the state past the nonlinearity:
        $x_{k+1} = [-R_k, I, -I]\,\mathrm{relu}([W_k; I; -I]^T x_k + [b_k; 0; 0])$.
        """
        n = self.inner[0].shape[-1]
        eye = torch.eye(n, dtype=self.inner[0].dtype, device=self.inner[0].device)
        weights: list[Tensor] = []
        carry = self.gain * eye[:, : self.in_features]
        for inner, outer in zip(self.inner, self.outer, strict=True):
            weights.append(torch.cat((inner, eye, -eye)) @ carry)
            carry = torch.cat((-outer, eye, -eye), dim=-1)
        weights.append(self.gain * carry[: self.out_features])
        biases = [None if bias is None else functional.pad(bias, (0, 2 * n)) for bias in self.biases]
        return ExplicitMLP(tuple(weights), (*biases, None), "relu")


class SLLBlock(CountedModule):
    r"""The parameters of one residual block, 1-Lipschitz from R^n to R^n (Araujo et al., ICLR 2023, Theorem 3).

    $$x^+ = x - 2 W T^{-1} \mathrm{relu}(W^T x + b), \qquad
      T = \mathrm{diag}\Big(\sum_j |W^T W|_{ij} \, q_j / q_i\Big) \succeq W^T W, \quad q > 0$$

    W is initialised by `torch.nn.init.xavier_normal_`, q is uniform in (0, 1) and trained as its logarithm.

    Args:
        state_features: Width n of the state.
        inner_features: Width m of the nonlinearity.
        bias: Whether to add b.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        state_features: int,
        inner_features: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        n = check_positive_int("state_features", state_features)
        m = check_positive_int("inner_features", inner_features)
        add_affine_parameters(self, n, m, bias, device, dtype)
        nn.init.xavier_normal_(self.weight)
        self.log_q = nn.Parameter(torch.rand(m, device=device, dtype=dtype).clamp_min(1e-3).log())

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        r"""Return $W^T$ (m, n), $2 W T^{-1}$ (n, m) and b (m,), computed in `dtype` if one is given."""
        weight, log_q = self.weight.to(dtype), self.log_q.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        limit = math.log(torch.finfo(weight.dtype).max) / 4
        q = (log_q - log_q.mean()).clamp(-limit, limit).exp()
        t = ((weight @ weight.mT).abs() @ q) / q
        return weight, 2.0 * weight.mT / t.clamp_min(torch.finfo(t.dtype).tiny), bias


class SLLNet(BoundedNet):
    r"""A network of residual SLL blocks, $\gamma$-Lipschitz, with relu.

    $$x_0 = \sqrt\gamma \begin{bmatrix} x \\ 0 \end{bmatrix}, \quad
      x_{k+1} = x_k - 2 W_k T_k^{-1} \mathrm{relu}(W_k^T x_k + b_k), \quad y = \sqrt\gamma \, (x_L)_{1 \dots n_{out}}$$

    The state is as wide as the widest of inputs, outputs and hidden layers. `residual()` is the network by value as it
    stands above; `explicit()` and `to_mlp()` are the same function without shortcuts, about three times as wide.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Width of the nonlinearity of each block, at least one.
        out_features: Number of outputs n_out.
        lipschitz: The bound gamma > 0, output units per input unit.
        bias: Whether the blocks have biases.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If gamma or a width is not acceptable.

    Example:
        >>> SLLNet(3, (32, 32), 1, lipschitz=5.0)(torch.zeros(7, 3)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        lipschitz: float = 1.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, hidden_features, out_features, lipschitz, "relu")
        if not self.hidden_features:
            raise invalid("hidden_features", "at least one width", "none", "Pass for example (64, 64).")
        self.state_features = max(self.in_features, *self.hidden_features, self.out_features)
        self.layers = nn.ModuleList(
            SLLBlock(self.state_features, width, bias=bias, device=device, dtype=dtype)
            for width in self.hidden_features
        )

    def residual(self) -> ExplicitResidual:
        """Return the network by value with its shortcuts; without gradients in float64, rounded once."""
        parameter = next(self.parameters())
        if torch.is_grad_enabled():
            return self._residual(None)
        return self._residual(torch.float64).map(lambda t: t.to(parameter.dtype))

    def _residual(self, dtype: torch.dtype | None) -> ExplicitResidual:
        inner, outer, biases = zip(*(block.factors(dtype) for block in self.layers), strict=True)  # type: ignore[operator]
        margin = rounding_margin(1 + len(inner), next(self.parameters()).dtype)
        gain = math.sqrt(self._lipschitz * margin)
        return ExplicitResidual(inner, outer, biases, gain, self.in_features, self.out_features)

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        return self._residual(dtype).to_mlp()

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the network; with gradients in the residual form, which is cheaper to train.

        Args:
            x: Shape (..., n_in), in the dtype of the parameters.

        Returns:
            Shape (..., n_out).
        """
        parameter = next(self.parameters())
        plain = torch.is_autocast_enabled(parameter.device.type) or parameter.dtype.itemsize < 4
        if plain or not torch.is_grad_enabled():
            return super().forward(x)
        return self.residual()(x)

    def extra_repr(self) -> str:
        """Summarise the network for `repr`."""
        return f"lipschitz={self._lipschitz:g}, state_features={self.state_features}"
