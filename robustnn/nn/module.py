"""The interface all networks share: explicit weights by value, and visible re-use of them by freezing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustnn.errors import NonFiniteError, invalid
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import is_watched

__all__ = ["CountedModule", "ExplicitModule", "Source", "check_floating", "in_place", "switch_mode"]

Layer = TypeVar("Layer", bound="CountedModule")
Self = TypeVar("Self", bound="ExplicitModule")
Source = tuple[dict[str, Any], str, Any]  # a dictionary, a key of it, and the value found there

_SETTINGS = (bool, int, float, str, tuple)


class CountedModule(nn.Module):
    """A layer that counts how often it was loaded, moved or switched to training.

    A network around it whose weights are frozen learns from the count that they are out of date.
    """

    _changes: int = 0

    def _drop(self) -> None:
        vars(self)["_changes"] = (
            self._changes + 1
        )  # SB3 switches at every step; the setter of nn.Module is slow

    def train(self: Layer, mode: bool = True) -> Layer:
        """Set training mode; `train(True)` drops frozen weights."""
        if mode:
            self._drop()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self: Layer, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        self._drop()
        return super()._apply(fn, recurse)


class ExplicitModule(CountedModule):
    """A network that is evaluated in two steps: parameters -> explicit weights -> output.

    `net(x)` is `net.explicit()(x)`. There is no hidden cache: explicit weights are recomputed from the
    parameters at every call, unless the caller asks for re-use with `with net.frozen():` (or `freeze()` and
    `unfreeze()`). Frozen weights serve only while gradients are disabled, and are dropped by `train(True)`,
    `load_state_dict`, `.to()` and its relatives (of the network or of a layer in it), copying and pickling. They are
    passed over while another tensor, layer or setting stands in the place of one that they were computed from, as in
    `torch.func.functional_call`. Otherwise they are a snapshot: what is written into a parameter in place, by an
    optimiser, through `.data` or through a numpy view, shows after the next `freeze()` or `unfreeze()`. Where
    parameters change while weights are re-used, as in reinforcement learning, `robustnn.policies.FreezeWeights`
    compares them by value.

    With gradients disabled the conversion runs in float64 and is rounded once to the dtype of the parameters,
    so that what is deployed, frozen or exported is one and the same set of weights, and its bound does not
    depend on the rounding of intermediate steps. Autocast never applies to the conversion.
    """

    _frozen_weights: ExplicitMLP | None
    _frozen_from: list[Source]
    # Gives weights that were kept, if they belong to the present parameters, or makes new ones; set from outside.
    _keeper: Callable[[ExplicitModule], ExplicitMLP] | None = None

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
        network = self._convert()
        return network.map(torch.clone) if torch.is_grad_enabled() else network

    def _convert(self) -> ExplicitMLP:
        """Convert the parameters; without gradients the result shares no memory with them."""
        parameter = next(self.parameters())
        dtype, device_type = parameter.dtype, parameter.device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self._convert()
        if torch.is_grad_enabled():
            if dtype.itemsize >= 4:
                return self._explicit()
            return self._explicit(torch.float32).to(dtype=dtype)  # no matrix inverse in half precision
        if not _all_finite([p for m in self.modules() for p in m._parameters.values() if p is not None]):
            _report("parameter", dict(self.named_parameters()))
        # One memory layout as well: matrix products round differently for a transposed view.
        network = self._explicit(torch.float64).map(
            lambda tensor: tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        )
        if not _all_finite(network.weights):
            _report("explicit weight", {f"W_{k}": weight for k, weight in enumerate(network.weights)})
        return network

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: Shape (..., n_in), in the dtype of the parameters.

        Returns:
            Shape (..., n_out).
        """
        if not torch.is_grad_enabled():
            if self._frozen_weights is not None and self._all_in_place():
                return self._frozen_weights(x)
            if self._keeper is not None and not is_watched():
                return self._keeper(self)(x)
        return self._evaluate(x)

    def _evaluate(self, x: Tensor) -> Tensor:
        """Evaluate the network without frozen weights."""
        return self._convert()(x)

    def _sources(self) -> list[Source]:
        """All that the explicit weights are computed from: parameters, buffers, layers and plain settings."""
        found: list[Source] = []
        for module in self.modules():
            for holder in (module._parameters, module._buffers, module._modules):
                found += [(holder, name, value) for name, value in holder.items()]
            found += [
                (vars(module), name, value)
                for name, value in vars(module).items()
                if isinstance(value, _SETTINGS) and name not in ("training", "_changes")
            ]
        return found

    def _all_in_place(self) -> bool:
        return in_place(self._frozen_from)

    def to_mlp(self) -> nn.Sequential:
        """Return an ordinary network of `nn.Linear` and activation modules with the same function.

        Returns:
            An independent `nn.Sequential` with the explicit weights (float64 conversion, rounded once).
        """
        with torch.no_grad():
            return self.explicit().to_sequential()

    @property
    def is_frozen(self) -> bool:
        """Whether frozen weights are held, and would serve without gradients."""
        return self._frozen_weights is not None and self._all_in_place()

    def freeze(self: Self) -> Self:
        """Compute the explicit weights once and use them in every call without gradients from now on."""
        self.unfreeze()
        with torch.no_grad():
            self._frozen_weights = self.explicit()
        counts = [(vars(module), "_changes", vars(module).get("_changes")) for module in self.modules()]
        self._frozen_from = [*self._sources(), *counts]
        return self

    def unfreeze(self: Self) -> Self:
        """Drop frozen weights, if there are any."""
        if self._frozen_weights is not None:
            self._frozen_weights = None
            self._frozen_from = []
        return self

    @contextmanager
    def frozen(self: Self) -> Iterator[Self]:
        """Freeze for the duration of a `with` block: what is written into parameters inside it shows after it.

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

    def _drop(self) -> None:
        self.unfreeze()
        super()._drop()

    def _replicate_for_data_parallel(self: Self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()
        replica._keeper = None
        return replica.unfreeze()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state["_frozen_weights"] = None
        state["_frozen_from"] = []
        state.pop("_keeper", None)
        return state


def switch_mode(module: nn.Module, mode: bool) -> None:
    """Do what `module.train(mode)` does in a tenth of the time, by going round the setter of nn.Module.

    Args:
        module: Any module; where `train` is not that of torch or of `CountedModule`, it is called.
        mode: Whether to set training mode.
    """
    own, kind = vars(module), type(module)
    if "training" not in own or kind.train not in (nn.Module.train, CountedModule.train):
        module.train(mode)
        return
    if mode and kind.train is CountedModule.train:
        module._drop()  # type: ignore[operator]
    own["training"] = mode
    for child in own["_modules"].values():
        if child is not None:
            switch_mode(child, mode)


def in_place(sources: list[Source]) -> bool:
    """Whether every entry of the dictionaries is still the same object."""
    for holder, name, value in sources:
        if holder.get(name) is not value:
            return False
    return True


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


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    if is_watched():  # there are no values
        return True
    # A sum over all is finite unless an entry is not, or it overflows; it is eight times as fast for small tensors.
    total = torch.cat([tensor.reshape(-1) for tensor in tensors]).sum()
    return math.isfinite(float(total)) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def _report(kind: str, tensors: dict[str, Tensor]) -> None:
    """Raise, and name the first tensor with an entry that is not finite."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise NonFiniteError(
                f"{kind} {name}: expected finite entries, got NaN or infinity in {tensor.dtype}. Training diverged, "
                "the weights were overwritten, or the bound or a scale does not fit the dtype; load an earlier "
                "checkpoint, lower the learning rate, or use float64."
            )
