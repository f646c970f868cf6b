"""Explicit weights: an ordinary feed-forward network by value, as immutable tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.params.activations import ACTIVATIONS

__all__ = ["ExplicitMLP", "check_input"]


@dataclass(frozen=True, eq=False)
class ExplicitMLP:
    r"""The map $z_0 = x$, $z_{k+1} = \sigma(W_k z_k + b_k)$, $y = W_L z_L + b_L$, by value.

    Everything downstream of a network (closed loops, attacks, certificates, export) takes this object and
    never the module. Weights are (out, in); a stack of S networks of one architecture, made by `stack`, has
    weights (S, out, in) and maps (S, E, n_in) to (S, E, n_out), each network its own slice.

    Attributes:
        weights: W_0 ... W_L.
        biases: b_0 ... b_L, each a tensor (..., out) or None.
        activation: Key of `robustnn.params.activations.ACTIVATIONS`.

    Example:
        >>> net = ExplicitMLP((torch.ones(2, 3), torch.ones(1, 2)), (None, None), "relu")
        >>> net(torch.ones(3))
        tensor([6.])
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activation: str

    def __post_init__(self) -> None:
        """Check that the tensors form a network."""
        if self.activation not in ACTIVATIONS:
            raise InvalidArgumentError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}. Pass its name."
            )
        if not self.weights or len(self.weights) != len(self.biases):
            raise InvalidArgumentError(
                f"weights, biases: expected two tuples of the same length >= 1, got {len(self.weights)} weights "
                f"and {len(self.biases)} biases. Give None for an absent bias."
            )
        shapes = [tuple(w.shape) for w in self.weights]
        leading = shapes[0][:-2]
        if any(len(s) not in (2, 3) or s[:-2] != leading for s in shapes) or any(
            after[-1] != before[-2] for before, after in zip(shapes, shapes[1:], strict=False)
        ):
            raise ShapeError(
                f"weights: expected a chain of shapes (out, in), or (S, out, in) for a stack, got {shapes}. "
                "The inputs of each weight are the outputs of the one before."
            )
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if bias is not None and bias.shape != weight.shape[:-1]:
                raise ShapeError(
                    f"biases[{k}]: expected shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}. "
                    "A bias has one entry per output of its layer."
                )

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: Shape (..., n_in), any number of leading axes (also none, also empty). Stacked: (S, E, n_in).

        Returns:
            Shape (..., n_out).

        Raises:
            InvalidArgumentError: If x is no tensor.
            ShapeError: If the last axis (or the leading axis of a stack) does not fit.
            InvalidArgumentError: If the dtype of x differs from that of the weights.
        """
        check_input(x, tuple(self.weights[0].shape), self.weights[0].dtype)
        activation = ACTIVATIONS[self.activation].function
        linear = _stacked_linear if self.weights[0].ndim == 3 else functional.linear
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = linear(x, weight, bias)
            if k < last:
                x = activation(x)
        return x

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.weights[0].shape[-1]

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.weights[-1].shape[-2]

    def map(self, function: Callable[[Tensor], Tensor]) -> ExplicitMLP:
        """Return a copy with `function` applied to every tensor.

        Args:
            function: Tensor to tensor of the same shape.

        Returns:
            The new network.
        """
        return replace(
            self,
            weights=tuple(function(w) for w in self.weights),
            biases=tuple(None if b is None else function(b) for b in self.biases),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExplicitMLP:
        """Return a copy on another device or in another dtype."""
        return self.map(lambda t: t.to(device=device, dtype=dtype))

    def detach(self) -> ExplicitMLP:
        """Return a copy that shares the values and no graph."""
        return self.map(torch.Tensor.detach)

    @staticmethod
    def stack(networks: Sequence[ExplicitMLP]) -> ExplicitMLP:
        """Stack networks of one architecture along a new leading axis S.

        Args:
            networks: At least one network; all with the same shapes and activation.

        Returns:
            One network with weights (S, out, in).

        Raises:
            InvalidArgumentError: If the list is empty or the architectures differ.
        """
        if not networks or not all(isinstance(n, ExplicitMLP) and n.weights[0].ndim == 2 for n in networks):
            raise InvalidArgumentError(
                "networks: expected a sequence of at least one ExplicitMLP that is no stack itself, got "
                f"{[type(n).__name__ for n in networks]}. Pass [net.explicit() for net in nets]."
            )
        first = networks[0]
        for k, other in enumerate(networks):
            if other.activation != first.activation or _shapes(other) != _shapes(first):
                raise InvalidArgumentError(
                    f"networks: expected one architecture, got {_shapes(first)} ({first.activation}) and, at "
                    f"index {k}, {_shapes(other)} ({other.activation}). Stack only networks of equal shapes."
                )
        biases = zip(*(n.biases for n in networks), strict=True)
        return ExplicitMLP(
            tuple(torch.stack(w) for w in zip(*(n.weights for n in networks), strict=True)),
            tuple(None if b[0] is None else torch.stack([t for t in b if t is not None]) for b in biases),
            first.activation,
        )

    def to_sequential(self) -> nn.Sequential:
        """Return a plain `nn.Sequential` of `nn.Linear` and activation modules with these weights.

        Returns:
            A module with parameters of its own, ready for deployment, ONNX or fine-tuning without a bound.

        Raises:
            InvalidArgumentError: If this is a stack of networks.
        """
        if self.weights[0].ndim != 2:
            raise InvalidArgumentError(
                "network: expected a single network, got a stack. Export its members one by one."
            )
        modules: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            out_features, in_features = weight.shape
            linear = nn.utils.skip_init(
                nn.Linear, in_features, out_features, bias=bias is not None,
                device=weight.device, dtype=weight.dtype,
            )  # fmt: skip
            with torch.no_grad():
                linear.weight.copy_(weight)
                if bias is not None:
                    linear.bias.copy_(bias)
            modules += [linear, ACTIVATIONS[self.activation].module()]
        return nn.Sequential(*modules[:-1])


def _stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.bmm(x, weight.mT)
    return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)


def _shapes(network: ExplicitMLP) -> list[tuple[tuple[int, ...], torch.dtype, bool]]:
    return [
        (tuple(w.shape), w.dtype, b is not None) for w, b in zip(network.weights, network.biases, strict=True)
    ]


def check_input(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise unless `x` is an input of a network.

    Args:
        x: The input.
        shape: Shape of the first weight, (out, in) or (S, out, in).
        dtype: Dtype of the weights.

    Raises:
        ShapeError: If the last axis (or the leading axis of a stack) does not fit.
        InvalidArgumentError: If it is no tensor, or its dtype is another one.
    """
    if not isinstance(x, Tensor):
        raise InvalidArgumentError(
            f"input: expected a torch.Tensor, got {type(x).__name__}. Convert it with torch.as_tensor(...)."
        )
    if x.ndim == 0 or x.shape[-1] != shape[-1]:
        raise ShapeError(
            f"input: expected shape (..., {shape[-1]}), got {tuple(x.shape)}. "
            "The last axis must be the network's number of inputs."
        )
    if len(shape) == 3 and (x.ndim != 3 or x.shape[0] != shape[0]):
        raise ShapeError(
            f"input: expected shape ({shape[0]}, E, {shape[-1]}) for a stack of "
            f"{shape[0]} networks, got {tuple(x.shape)}. Add the leading axes."
        )
    if x.dtype != dtype:
        raise InvalidArgumentError(
            f"input: expected dtype {dtype}, that of the weights, got {x.dtype}. "
            "Convert the input with .to(...) or the network with .to(...)."
        )
