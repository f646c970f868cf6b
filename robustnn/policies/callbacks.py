"""Stable-Baselines3 callbacks: rollouts at MLP speed, and the bound in the training log."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch.utils.hooks import RemovableHandle

from robustnn.errors import invalid
from robustnn.nn.module import ExplicitModule

__all__ = ["FreezeWeights", "LogLipschitz"]


class FreezeWeights(BaseCallback):
    """Compute explicit weights once per rollout instead of once per environment step.

    Parameters do not change during an on-policy rollout, so every network of the policy that has explicit
    weights is frozen when a rollout starts and unfrozen when it ends or training stops. Should something
    write to the parameters in between (another callback, say), the next action sees it: the parameters are
    compared, by value, before every use of the frozen weights. The comparison stays in place when training
    ends by an exception, so that even then no stale weight is used; the next rollout replaces it.

    Args:
        verbose: As in SB3.

    Example:
        >>> model.learn(50_000, callback=FreezeWeights())  # doctest: +SKIP
    """

    def __init__(self, verbose: int = 0) -> None:
        """Hold no weights yet."""
        super().__init__(verbose)
        self._frozen: list[tuple[ExplicitModule, RemovableHandle]] = []

    def _on_rollout_start(self) -> None:
        self._release()
        for module in self.model.policy.modules():
            if isinstance(module, ExplicitModule) and not _inside_another(module, self.model.policy):
                self._frozen.append((module, module.register_forward_pre_hook(_Renewal(module.freeze()))))

    def _on_step(self) -> bool:
        return True

    def _release(self) -> None:
        for module, hook in self._frozen:
            hook.remove()
            module.unfreeze()
        self._frozen = []

    def _on_rollout_end(self) -> None:
        self._release()

    def _on_training_end(self) -> None:
        self._release()


class _Renewal:
    """Forward pre-hook that freezes a network anew when its parameters have changed by value.

    Copies of a network are not frozen, and so a copy of the hook has nothing to do.
    """

    def __init__(self, module: ExplicitModule | None = None) -> None:
        if module is not None:
            self._remember(module)
        self._active = module is not None

    def _remember(self, module: ExplicitModule) -> None:
        self._tensors = [*module.parameters(), *module.buffers()]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        # On the CPU, bytes: copying and comparing them takes a fifth of the time of tensor operations.
        on_cpu = all(t.device.type == "cpu" and t.dtype != torch.bfloat16 for t in self._tensors)
        self._arrays = [tensor.detach().numpy() for tensor in self._tensors] if on_cpu else None
        self._snapshot = self._contents()

    def _contents(self) -> list[Any]:
        if self._arrays is not None:
            return [array.tobytes() for array in self._arrays]
        return [tensor.detach().clone() for tensor in self._tensors]

    def _unchanged(self) -> bool:
        if [tensor.data_ptr() for tensor in self._tensors] != self._addresses:
            return False
        if self._arrays is not None:
            return self._contents() == self._snapshot
        return all(map(torch.equal, self._tensors, self._snapshot))

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if not self._active or torch.is_grad_enabled() or not isinstance(module, ExplicitModule):
            return
        if not module.is_frozen or not self._unchanged():
            self._remember(module.freeze())

    def __reduce__(self) -> tuple[type[_Renewal], tuple[()]]:
        return _Renewal, ()


class LogLipschitz(BaseCallback):
    """Record `lipschitz/gamma` and `lipschitz/raw_observation` (the plain bound) once per rollout.

    Args:
        verbose: As in SB3.

    Raises:
        InvalidArgumentError: When training starts, if the policy has no bound.
    """

    def _on_training_start(self) -> None:
        if not hasattr(self.model.policy, "bound"):
            raise invalid(
                "model.policy", "LBDNActorCriticPolicy", type(self.model.policy).__name__,
                "Leave LogLipschitz out for policies without a bound.",
            )  # fmt: skip

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        bound = self.model.policy.bound(self.training_env)  # type: ignore[operator]
        self.logger.record("lipschitz/gamma", bound.lipschitz)
        self.logger.record("lipschitz/raw_observation", bound.plain)


def _inside_another(module: ExplicitModule, root: torch.nn.Module) -> bool:
    """Whether a network with explicit weights contains this one (a layer of an LBDN, say)."""
    return any(
        module is inner
        for outer in root.modules()
        if isinstance(outer, ExplicitModule) and outer is not module
        for inner in outer.modules()
    )
