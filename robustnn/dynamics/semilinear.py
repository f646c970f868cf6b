r"""A bounded map with a linear part: the sandwich layer, some of whose units are linear.

$$F(\xi) = K \xi + W_1\, \sigma(W_0 \xi + b_0) + b_1, \qquad \|F(\xi) - F(\xi')\|_2 \le \|\xi - \xi'\|_2$$

The identity has slopes in [0, 1] like the other activations, so a hidden layer of a Lipschitz-bounded network may mix
both: its linear units together are $K \xi$. That is less restrictive than a bound on each part: the two may amplify the
same direction with opposite signs, as where a stiff spring gives way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustnn.errors import check_positive_int, invalid
from robustnn.nn.lbdn import LBDN, check_widths
from robustnn.nn.sandwich import SandwichLayer
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import psi_limit
from robustnn.params.inverse import explicit_to_lbdn
from robustnn.params.maps import rounding_margin

__all__ = ["SemilinearMap"]

Array = NDArray[np.float64]
# Largest singular value of K at the start: at one, the layer has no room for its other units.
_ROOM = 0.99


class SemilinearMap(nn.Module):
    """A map with Lipschitz bound one, in float64, for any value of its parameters.

    Args:
        n_in: Number of inputs.
        n_out: Number of outputs.
        hidden: Widths of the hidden layers. With one, it gets linear units besides; with more there is no linear
            part, and the map is an ordinary `LBDN`.
        activation: Name or torch.nn class.

    Attributes:
        n_linear: Number of linear units.
        network: The LBDN; its first `n_linear` hidden units are linear.
    """

    def __init__(
        self, n_in: int, n_out: int, hidden: Sequence[int], activation: str | type[nn.Module]
    ) -> None:
        super().__init__()
        widths = check_widths("hidden", hidden)
        check_positive_int("len(hidden)", len(widths))
        self.n_linear = min(n_in, n_out) if len(widths) == 1 else 0
        self.network = LBDN(
            n_in, (widths[0] + self.n_linear, *widths[1:]), n_out, activation=activation, dtype=torch.float64
        )

    def parts(self) -> tuple[Tensor | None, ExplicitMLP]:
        """Return K, shape (n_out, n_in), or None, and the network of the other units.

        The graph to the parameters is kept where gradients are enabled.
        """
        network = self.network.explicit()
        if not self.n_linear:
            return None, network
        k = self.n_linear
        (w0, w1), (b0, b1) = network.weights, network.biases
        assert b0 is not None and b1 is not None
        rest = ExplicitMLP((w0[k:], w1[:, k:]), (b0[k:], b1 + w1[:, :k] @ b0[:k]), network.activation)
        return w1[:, :k] @ w0[:k], rest

    def start_(self, gain: Array, offset: Array, rng: np.random.Generator, *, effect: float = 0.03) -> None:
        r"""Set the parameters so that the map starts near a linear one, with random nonlinear units.

        Args:
            gain: K, shape (n_out, n_in); singular values above .99 are cut to that.
            offset: Constant part, shape (n_out,).
            rng: Draws the nonlinear units, for inputs of about unit variance.
            effect: Standard deviation of what all nonlinear units together add to an output.
        """
        n_out, n_in = gain.shape
        if not self.n_linear:
            self._start_deep(gain, offset, rng)
            return
        width = self.network.hidden_features[0] - self.n_linear
        left, values, right = np.linalg.svd(gain, full_matrices=False)
        root = np.sqrt(np.minimum(values, _ROOM))
        rows = 0.3 * rng.normal(size=(width, n_in)) / np.sqrt(n_in)
        columns = effect * rng.normal(size=(n_out, width)) / np.sqrt(width)
        biases = rng.normal(size=width)
        while True:
            w0 = np.concatenate((root[:, None] * right, rows))
            w1 = np.concatenate((left * root, columns), axis=1)
            # The LipSDP condition with multipliers one.
            if np.linalg.eigvalsh(2.0 * np.eye(len(w0)) - w0 @ w0.T - w1.T @ w1)[0] > 1e-3:
                break
            rows, columns = 0.7 * rows, 0.7 * columns
        tensors = [
            torch.from_numpy(one) for one in (w0, w1, np.concatenate((np.zeros(len(root)), biases)), offset)
        ]
        explicit = ExplicitMLP((tensors[0], tensors[1]), (tensors[2], tensors[3]), self.network.activation)
        params = explicit_to_lbdn(explicit, [torch.ones(len(w0), dtype=torch.float64)], 1.0)
        self._copy(LBDN.from_direct(params, self.network.activation))

    def rescale_inputs_(self, factors: Array) -> None:
        r"""Replace the map F by $F(D \xi)$ with $D = \mathrm{diag}(d)$, which is again bounded by one.

        The first weight times D satisfies the LipSDP condition with the same multipliers, $\Psi^2$ of every layer.

        Args:
            factors: d, shape (n_in,), in (0, 1].

        Raises:
            InvalidArgumentError: If a factor is out of its range.
        """
        d = torch.as_tensor(np.asarray(factors, dtype=np.float64))
        if d.shape != (self.network.in_features,) or not bool(((d > 0.0) & (d <= 1.0)).all()):
            raise invalid(
                "factors", f"{self.network.in_features} numbers in (0, 1]", d.tolist(),
                "Larger ones would exceed the bound.",
            )  # fmt: skip
        with torch.no_grad():
            network = self.network.explicit()
            first, *others = network.weights
            scaled = ExplicitMLP((first * d, *others), network.biases, network.activation)
            limit, margin = psi_limit(torch.float64), rounding_margin(len(network.weights), torch.float64)
            psis = [layer.psi for layer in self.network.direct().layers[:-1]]
            multipliers = [
                margin * psi.clamp(-limit, limit).exp().square() for psi in psis if psi is not None
            ]
        params = explicit_to_lbdn(scaled, multipliers, 1.0)
        self._copy(LBDN.from_direct(params, self.network.activation))

    def _start_deep(self, gain: Array, offset: Array, rng: np.random.Generator) -> None:
        """Near the linear map for inputs of a few units, with the units that it does not need drawn at random."""
        left, values, right = np.linalg.svd(gain, full_matrices=False)
        kept = left @ (np.minimum(values, _ROOM)[:, None] * right)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            limit = 4.0 if self.network.activation == "sigmoid" else 1.0
            made = LBDN.from_linear(
                torch.from_numpy(kept / limit ** len(self.network.hidden_features)), self.network.hidden_features,
                lipschitz=1.0, activation=self.network.activation, region=4.0, tolerance=0.1, dtype=torch.float64,
            )  # fmt: skip
        with torch.no_grad():
            output = made.layers[-1]
            assert isinstance(output, SandwichLayer) and output.bias is not None
            output.bias.add_(torch.from_numpy(offset))
        self._copy(made)

    def _copy(self, source: LBDN) -> None:
        with torch.no_grad():
            for ours, theirs in zip(self.network.parameters(), source.parameters(), strict=True):
                ours.copy_(theirs)
