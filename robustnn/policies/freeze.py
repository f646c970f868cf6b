"""Stable-Baselines3 callback: explicit weights computed once for every value of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from robustnn.nn.module import ExplicitModule, Source, in_place
from robustnn.params.explicit import ExplicitMLP

__all__ = ["FreezeWeights", "KeptWeights"]


class FreezeWeights(BaseCallback):
    """Compute explicit weights once for every value of the parameters instead of at every use without gradients.

    That is once per rollout of PPO and A2C, where actions dominate; once per gradient step of SAC, whose action in the
    environment and next actions in the update come from one value of the parameters; and as often as target networks
    change (TD3: every second gradient step, DQN: every 10,000 steps).

    From the start of training to its end, every network of the policy with explicit weights, targets included, has its
    last weights kept, with a copy of the parameters they belong to. The two are compared, by value, before every use
    without gradients, so that whatever writes to the parameters (an optimiser, a target update, another callback) is
    seen by the next action; what is computed is the same, bit for bit, with the callback and without. When training
    ends by an exception the comparison goes on, so that even then no stale weight is used; the next training
    replaces it. Copies and files of the policy contain nothing of this.

    Args:
        verbose: As in SB3.

    Example:
        >>> model.learn(50_000, callback=FreezeWeights())  # doctest: +SKIP
    """

    def __init__(self, verbose: int = 0) -> None:
        """Hold no weights yet."""
        super().__init__(verbose)
        self._kept: list[tuple[ExplicitModule, KeptWeights]] = []

    def _on_training_start(self) -> None:
        self._release()
        inside = _inner_networks(self.model.policy)
        for module in self.model.policy.modules():
            if isinstance(module, ExplicitModule) and module not in inside:
                kept = KeptWeights()
                module.unfreeze()._keeper = kept
                self._kept.append((module, kept))

    def _on_step(self) -> bool:
        return True

    def _release(self) -> None:
        for module, kept in self._kept:
            if module._keeper is kept:
                module._keeper = None
        self._kept = []

    def _on_training_end(self) -> None:
        self._release()


class KeptWeights:
    """The last explicit weights of one network, and a copy of all that they were computed from.

    Called with the network, it returns the weights of the present parameters: the kept ones if everything is
    still the same, by value, else new ones.
    """

    def __init__(self) -> None:
        """Hold no weights yet."""
        self._weights: ExplicitMLP | None = None
        self._sources: list[Source] = []
        self._values = _Values([])

    def __call__(self, module: ExplicitModule) -> ExplicitMLP:
        """Return the explicit weights of the present parameters; to be called without gradients."""
        if in_place(self._sources):
            if self._weights is not None and self._values.unchanged():
                return self._weights
            again = self._weights is not None and self._values.renew()
        else:
            again = False
        self._weights = None
        if not again:
            self._sources = module._sources()
            self._values = _Values([value for _, _, value in self._sources if isinstance(value, Tensor)])
        self._weights = module.explicit()
        return self._weights


class _Values:
    """A copy of tensors, and whether they still have these values, to the last bit.

    Args:
        tensors: The tensors; what is done to them, in whatever way, is noticed.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._layouts = self._present_layouts()
        self._bits = [_as_integers(tensor) for tensor in tensors]
        # Bytes in the main memory are compared ten times as fast as tensors: memcmp, without a temporary copy.
        self._views: list[memoryview] | None = None
        if all(t.device.type == "cpu" and t.is_contiguous() for t in tensors):
            self._views = [bits.numpy().data for bits in self._bits]
            self._bytes = [bytearray(view) for view in self._views]
        else:
            self._copies = self._joined()

    def _present_layouts(self) -> list[Any]:
        tensors = self._tensors
        return [[t.data_ptr() for t in tensors], [t.shape for t in tensors], [t.stride() for t in tensors]]

    def _joined(self) -> list[Tensor]:
        """All bits in one tensor per device and size of entry: one comparison, and one wait for the device."""
        groups: dict[Any, list[Tensor]] = {}
        for bits in self._bits:
            groups.setdefault((bits.device, bits.dtype), []).append(bits.reshape(-1))
        return [torch.cat(group) for group in groups.values()]

    def renew(self) -> bool:
        """Copy the present values, if the tensors lie where they lay."""
        if self._views is None or self._present_layouts() != self._layouts:
            return False
        self._bytes = [bytearray(view) for view in self._views]
        return True

    def unchanged(self) -> bool:
        """Whether the tensors lie where they lay (the views would miss other memory) and hold the same bits."""
        if self._present_layouts() != self._layouts:
            return False
        if self._views is not None:
            return self._bytes == self._views
        return all(map(torch.equal, self._joined(), self._copies))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _as_integers(tensor: Tensor) -> Tensor:
    """The bits of a tensor, as a view: NaN equals itself, and 0 and -0 differ."""
    return tensor.detach().view(_INTEGERS[tensor.dtype.itemsize])


def _inner_networks(root: torch.nn.Module) -> set[torch.nn.Module]:
    """Networks with explicit weights inside another one (the layers of an LBDN, say)."""
    return {
        inner
        for outer in root.modules()
        if isinstance(outer, ExplicitModule)
        for inner in outer.modules()
        if inner is not outer
    }
