"""The options that every Lipschitz-bounded policy has, checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import nn

from robustnn.errors import UnsupportedSpaceError, check_nonnegative, check_positive, invalid
from robustnn.nn.lbdn import check_widths
from robustnn.params.activations import resolve_activation
from robustnn.policies.extractors import ScaleArgument, as_observation_scale, as_scale
from robustnn.policies.observation import check_start, size_of

__all__ = ["LipschitzOptions", "as_net_arch", "check_activation", "n_outputs"]


@dataclass(frozen=True)
class LipschitzOptions:
    """What a policy is told about its bound, in a form that can be compared and stored.

    Attributes:
        lipschitz: The bound gamma > 0 in the scaled units.
        observation_scale: One positive number per flat observation component, in its unit; None for ones.
        action_scale: One positive number per action component, in its unit; None for ones. Box actions only.
        trainable: Whether gamma is trained.
        penalty: Weight of gamma in the loss, >= 0; only with a trained gamma.
        critic: Bound of the critic in the scaled observation (and action); None for a critic without a bound.
    """

    lipschitz: float
    observation_scale: tuple[float, ...] | None = None
    action_scale: tuple[float, ...] | None = None
    trainable: bool = False
    penalty: float = 0.0
    critic: float | None = None

    @staticmethod
    def of(
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lipschitz: float | None,
        observation_scale: ScaleArgument | None,
        action_scale: Sequence[float] | None,
        trainable: bool,
        penalty: float,
        critic: float | None,
    ) -> LipschitzOptions:
        """Check the options against the spaces; errors as in the policy classes."""
        if lipschitz is None:
            raise invalid("lipschitz", "a bound > 0", None, "State it: policy_kwargs=dict(lipschitz=10.0).")
        bound = check_positive("lipschitz", lipschitz)
        size_of(observation_space)
        if observation_scale is not None:
            observation_scale = as_observation_scale(observation_scale, observation_space)
        if action_scale is not None:
            if not isinstance(action_space, spaces.Box):
                raise invalid("action_scale", "None for discrete actions", action_scale, "Remove it.")
            action_scale = as_scale("action_scale", action_scale, n_outputs(action_space))
        if not isinstance(trainable, (bool, np.bool_)):
            raise invalid("trainable_lipschitz", "True or False", repr(trainable), "Pass one of these.")
        penalty = check_nonnegative("lipschitz_penalty", penalty)
        if penalty and not trainable:
            raise invalid(
                "lipschitz_penalty", "0 for a bound that is not trained", penalty,
                "Add trainable_lipschitz=True, or lower a fixed bound with ScheduleLipschitz.",
            )  # fmt: skip
        if critic is not None:
            critic = check_positive("lipschitz_critic", critic)
        return LipschitzOptions(bound, observation_scale, action_scale, bool(trainable), penalty, critic)


def n_outputs(space: spaces.Space) -> int:
    """Return the number of outputs of an actor: action components, or logits.

    Args:
        space: Box, Discrete, MultiDiscrete or MultiBinary.

    Raises:
        UnsupportedSpaceError: If it is something else, offers no choice, or counts from another number than zero.
    """
    if isinstance(space, spaces.Box):
        if 0 in space.shape:
            raise UnsupportedSpaceError(
                f"action_space: expected at least one component, got {space}. There is nothing to decide."
            )
        return int(np.prod(space.shape or (1,)))
    if isinstance(space, spaces.Discrete) or (
        isinstance(space, spaces.MultiDiscrete) and len(space.nvec.shape) == 1
    ):
        choices = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        if (choices < 2).all():
            raise UnsupportedSpaceError(
                f"action_space: expected at least two choices, got {space}. A single action needs no policy."
            )
        check_start("action_space", space)
        return int(choices.sum())
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, (int, np.integer)):
        return int(space.n)
    raise UnsupportedSpaceError(
        f"action_space: expected Box, Discrete, MultiDiscrete or MultiBinary with one axis, got {space}. "
        "Choose one of these action spaces."
    )


def as_net_arch(net_arch: Any, roles: Sequence[str], optional: Sequence[str] = ()) -> Any:
    """Return a network architecture in the form that SB3 takes: a list of widths, or a dict of such lists.

    Args:
        net_arch: A sequence of widths for all networks, a dict with one for each, or None for the default.
        roles: Keys that a dict must have.
        optional: Further keys that it may have.

    Returns:
        The architecture.

    Raises:
        InvalidArgumentError: If it is something else, or a key is unknown or missing.
    """
    if isinstance(net_arch, list) and len(net_arch) == 1 and isinstance(net_arch[0], dict) and not roles:
        as_net_arch(net_arch[0], roles, optional)
        return net_arch  # an older form, which SB3's on-policy classes still take, with a warning
    if net_arch is None:
        return None
    if not isinstance(net_arch, dict):
        return list(check_widths("net_arch", net_arch))
    names = (*roles, *optional)
    if not names:
        raise invalid("net_arch", "a list of widths", repr(net_arch), "This policy has one kind of network.")
    wrong = [role for role in net_arch if role not in names] or [
        role for role in roles if role not in net_arch
    ]
    if wrong:
        known = " and ".join(f"'{name}'" for name in roles) or "no key in particular"
        more = f", at most {' and '.join(repr(name) for name in optional)} besides" if optional else ""
        state = "unknown" if wrong[0] in net_arch else "no"
        example = ", ".join(f"{name}=[64]" for name in roles or optional)
        raise invalid(
            "net_arch", f"the keys {known}{more}", f"{state} {wrong[0]!r}", f"Pass dict({example})."
        )
    return {role: list(check_widths(f"net_arch[{role!r}]", widths)) for role, widths in net_arch.items()}


def check_activation(activation_fn: type[nn.Module] | None) -> None:
    """Raise unless an activation has slopes in [0, 1] (None for the default of the algorithm)."""
    if activation_fn is not None:
        resolve_activation(activation_fn)
