"""Training the bound: a penalty for a bound that is trained, a schedule for one that is not."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robustnn.errors import check_positive, check_positive_int, invalid
from robustnn.nn.bounded import BoundedNet
from robustnn.nn.lbdn import LBDN

__all__ = ["LipschitzSchedule", "lipschitz_penalty"]


def lipschitz_penalty(module: nn.Module) -> Tensor:
    r"""Return the sum of the trained bounds in a module, to be added to a loss.

    $$\text{loss} + \lambda \sum \gamma$$

    Args:
        module: An `LBDN` with `trainable_lipschitz=True`, or a module that contains some.

    Returns:
        Shape (), differentiable, in output units per input unit.

    Raises:
        InvalidArgumentError: If the module contains no trained bound.

    Example:
        >>> float(lipschitz_penalty(LBDN(3, (8,), 1, lipschitz=2.0, trainable_lipschitz=True)).detach())
        2.0
    """
    bounds = [
        net.direct().lipschitz
        for net in module.modules()
        if isinstance(net, LBDN) and net.log_lipschitz is not None
    ]
    if not bounds:
        raise invalid(
            "module", "an LBDN with trainable_lipschitz=True", type(module).__name__,
            "Build it so, or lower a fixed bound with LipschitzSchedule.",
        )  # fmt: skip
    return sum(bounds[1:], start=bounds[0])  # type: ignore[return-value]


class LipschitzSchedule:
    r"""Moves the bound of a network from one value to another while it is trained.

    Geometric: $\gamma_t = \gamma_0 (\gamma_T / \gamma_0)^{t/T}$.
    Linear: $\gamma_t = \gamma_0 + (\gamma_T - \gamma_0) t/T$.
    After T steps the bound stays. The bound is a guarantee at every step; the function changes with it.

    Args:
        net: The network; its present bound is where the schedule starts.
        final: The bound after the last step, > 0.
        steps: Number of steps T >= 1.
        kind: "geometric" or "linear".

    Raises:
        InvalidArgumentError: If the bound of the network is trained, or an argument is not acceptable.

    Example:
        >>> net = LBDN(3, (8,), 1, lipschitz=16.0)
        >>> schedule = LipschitzSchedule(net, final=1.0, steps=4)
        >>> schedule.step(), net.lipschitz
        (8.0, 8.0)
    """

    def __init__(self, net: LBDN | BoundedNet, final: float, steps: int, *, kind: str = "geometric") -> None:
        if not isinstance(net, (LBDN, BoundedNet)) or getattr(net, "log_lipschitz", None) is not None:
            raise invalid(
                "net",
                "an LBDN or ConvLBDN with a fixed bound",
                type(net).__name__,
                "Use trainable_lipschitz=False.",
            )
        if kind not in ("geometric", "linear"):
            raise invalid("kind", "'geometric' or 'linear'", repr(kind), "Choose one of these.")
        self.net = net
        self.initial = check_positive("net.lipschitz", net.lipschitz)
        self.final = check_positive("final", final)
        self.steps = check_positive_int("steps", steps)
        self.kind = kind
        self.count = 0

    def value(self, count: int) -> float:
        """Return the bound after `count` steps."""
        if count <= 0:
            return self.initial
        if count >= self.steps:
            return self.final
        fraction = count / self.steps
        if self.kind == "linear":
            return self.initial + (self.final - self.initial) * fraction
        return float(self.initial * (self.final / self.initial) ** fraction)

    def step(self) -> float:
        """Advance by one step, set the bound of the network (frozen weights are dropped) and return it."""
        self.count += 1
        bound = self.value(self.count)
        self.net.set_lipschitz(bound)
        return bound

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the network, as plain numbers and a string."""
        return {key: value for key, value in vars(self).items() if key != "net"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a schedule saved by `state_dict` stopped; sets the bound of the network.

        Raises:
            InvalidArgumentError: If the state is not one of a schedule.
        """
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise invalid(
                "state",
                f"a dict with the keys {sorted(self.state_dict())}",
                repr(state),
                "Pass state_dict().",
            )
        restored = LipschitzSchedule(self.net, state["final"], state["steps"], kind=state["kind"])
        restored.initial = check_positive("state['initial']", state["initial"])
        restored.count = check_positive_int("state['count']", state["count"], minimum=0)
        vars(self).update(vars(restored))
        self.net.set_lipschitz(self.value(self.count))
