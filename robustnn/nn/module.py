"""The interface all networks share: explicit weights by value, and visible re-use of them by freezing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustnn.errors import NonFiniteError, invalid
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import transforms_active

__all__ = ["ExplicitModule", "check_floating"]

Self = TypeVar("Self", bound="ExplicitModule")


class ExplicitModule(nn.Module):
    """A network that is evaluated in two steps: parameters -> explicit weights -> output.

    `net(x)` is `net.explicit()(x)`. There is no hidden cache: explicit weights are recomputed from the
    parameters at every call, unless the caller asks for re-use with `with net.frozen():` (or `freeze()` and
    `unfreeze()`). Frozen weights serve only while gradients are disabled, and are dropped by `train(True)`,
    `load_state_dict`, `.to()` and its relatives, copying and pickling. They are passed over while another
    tensor or layer stands in the place of a parameter, buffer or layer, as in `torch.func.functional_call`.

    With gradients disabled the conversion runs in float64 and is rounded once to the dtype of the parameters,
    so that what is deployed, frozen or exported is one and the same set of weights, and its bound does not
    depend on the rounding of intermediate steps. Autocast never applies to the conversion.
    """

    _frozen_weights: ExplicitMLP | None
    _frozen_from: list[tuple[dict[str, Any], str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self._frozen_weights = None
        self._frozen_from = []

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        """Convert the parameters, first cast to `dtype` if one is given; may share memory with them."""
        raise TypeError(f"{type(self).__name__} must define _explicit()")

    def explicit(self) -> ExplicitMLP:
        """Return the explicit weights of the present parameters.

        Returns:
            The network by value: it shares no memory with the parameters, so that training on does not change
            it. With gradients enabled it carries the graph to the parameters; otherwise it is computed in
            float64 and rounded once.

        Raises:
            NonFiniteError: If gradients are disabled and the parameters, or the weights in their dtype,
                contain NaN or infinity.
        """
        return self._convert().map(torch.clone)

    def _convert(self) -> ExplicitMLP:
        parameter = next(self.parameters())
        dtype, device_type = parameter.dtype, parameter.device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self._convert()
        if torch.is_grad_enabled():
            if dtype.itemsize >= 4:
                return self._explicit()
            return self._explicit(torch.float32).to(dtype=dtype)  # no matrix inverse in half precision
        _check_tensors("parameter", dict(self.named_parameters()))
        # One memory layout as well: matrix products round differently for a transposed view.
        network = self._explicit(torch.float64).to(dtype=dtype).map(torch.Tensor.contiguous)
        _check_tensors("explicit weight", {f"W_{k}": weight for k, weight in enumerate(network.weights)})
        return network

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: Shape (..., n_in), in the dtype of the parameters.

        Returns:
            Shape (..., n_out).
        """
        if self._frozen_weights is not None and not torch.is_grad_enabled() and self._all_in_place():
            return self._frozen_weights(x)
        return self._evaluate(x)

    def _evaluate(self, x: Tensor) -> Tensor:
        """Evaluate the network without frozen weights."""
        return self._convert()(x)

    def _all_in_place(self) -> bool:
        return all(holder.get(name) is value for holder, name, value in self._frozen_from)

    def to_mlp(self) -> nn.Sequential:
        """Return an ordinary network of `nn.Linear` and activation modules with the same function.

        Returns:
            An independent `nn.Sequential` with the explicit weights (float64 conversion, rounded once).
        """
        with torch.no_grad():
            return self.explicit().to_sequential()

    @property
    def is_frozen(self) -> bool:
        """Whether frozen weights are held."""
        return self._frozen_weights is not None

    def freeze(self: Self) -> Self:
        """Compute the explicit weights once and use them in every call without gradients from now on."""
        self._frozen_weights = None
        with torch.no_grad():
            self._frozen_weights = self.explicit()
        self._frozen_from = [
            (holder, name, value)
            for module in self.modules()
            for holder in (module._parameters, module._buffers, module._modules)
            for name, value in holder.items()
        ]
        return self

    def unfreeze(self: Self) -> Self:
        """Drop frozen weights, if there are any."""
        self._frozen_weights = None
        self._frozen_from = []
        return self

    @contextmanager
    def frozen(self: Self) -> Iterator[Self]:
        """Freeze for the duration of a `with` block. Change no parameter inside it.

        A network that was frozen before the block stays frozen after it.

        Yields:
            This module.
        """
        was_frozen = self.is_frozen
        self.freeze()
        try:
            yield self
        finally:
            if not was_frozen:
                self.unfreeze()

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode; `train(True)` drops frozen weights."""
        if mode:
            self.unfreeze()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unfreeze()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.unfreeze()
        return super()._apply(fn, recurse)

    def _replicate_for_data_parallel(self: Self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()
        return replica.unfreeze()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_frozen_weights"] = None
        state["_frozen_from"] = []
        return state


def check_floating(name: str, dtype: torch.dtype | None) -> None:
    """Raise unless `dtype` is None or a real floating dtype.

    Args:
        name: Name of the argument, for the message.
        dtype: The dtype asked for.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise invalid(name, "a real floating dtype or None", dtype, "Pass torch.float32 or torch.float64.")


def _check_tensors(kind: str, tensors: dict[str, Tensor]) -> None:
    # A transform or a compiler has no values to look at.
    if transforms_active() or torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise NonFiniteError(
                f"{kind} {name}: expected finite entries, got NaN or infinity in {tensor.dtype}. Training diverged, "
                "the weights were overwritten, or the bound or a scale does not fit the dtype; load an earlier "
                "checkpoint, lower the learning rate, or use float64."
            )
