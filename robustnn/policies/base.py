"""What all Lipschitz-bounded policies share, whatever the algorithm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from robustnn.errors import CheckpointError, UnsupportedSpaceError, check_finite, invalid
from robustnn.nn.lbdn import LBDN
from robustnn.nn.module import switch_mode
from robustnn.nn.sandwich import SandwichLayer
from robustnn.policies.action_map import ActionMap, action_map
from robustnn.policies.extractors import ObservationScale, ScaleArgument, rounded
from robustnn.policies.networks import decider_of
from robustnn.policies.observation import TOO_LARGE, check_observation
from robustnn.policies.options import LipschitzOptions, as_net_arch, check_activation, n_outputs
from robustnn.policies.scaling import Bound, policy_bound

__all__ = ["LipschitzPolicy"]

Self = TypeVar("Self", bound="LipschitzPolicy")

# With [X; Y] of this Frobenius norm the output layer's B has about twice this norm. A larger gamma makes it
# smaller, so that first outputs are near zero whatever gamma is.
_OUTPUT_RADIUS = 0.01
_LARGE_GAMMA = 20.0


class LipschitzPolicy(BasePolicy):
    r"""Base of SB3 policies whose deterministic action is Lipschitz in the raw observation.

    $$\|D_a^{-1}(\pi(o) - \pi(o'))\|_2 \le \gamma \, \|D_o^{-1}(o - o')\|_2$$

    where $\pi(o)$ is what `model.predict(o, deterministic=True)` returns, in the units of the action space
    (after clipping, or tanh and rescaling), and o is what predict receives, flattened. For discrete actions
    $\pi$ stands for the logits or Q-values that are compared. The whole map from features to output is one LBDN.

    Put it in front of SB3's policy class: `class MyPolicy(LipschitzPolicy, SACPolicy)`, and make the networks with
    `_new_network`.

    Args:
        observation_space: Box that is no image, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        action_space: As the algorithm allows.
        lr_schedule: Learning-rate schedule, given by the algorithm.
        net_arch: Hidden widths as in SB3.
        activation_fn: torch.nn class with slopes in [0, 1], for all networks; the algorithm's own if None.
        lipschitz: The bound gamma > 0 in the norms above. Required.
        observation_scale: Diagonal of D_o, a positive number per observation component in its unit: the change
            that counts as one; for a Dict a dict of such sequences. Observations are divided by it before all
            networks. Default ones.
        action_scale: Diagonal of D_a, a positive number per action component in its unit (Box only). Default ones.
        trainable_lipschitz: Whether gamma is trained, from `lipschitz` on. What is trained is its logarithm, so an
            optimiser with weight decay pulls gamma towards one.
        lipschitz_penalty: Weight of gamma in the loss of the actor, >= 0; for a trained gamma. Its gradient is
            added after the algorithm has clipped the others.
        lipschitz_critic: Bound of the critic's value in the scaled observation (and the action, scaled to [-1, 1]);
            None for an ordinary critic.
        **kwargs: Further arguments of SB3's policy class.

    Raises:
        UnsupportedSpaceError: If a space is not supported.
        InvalidArgumentError: If gamma, a scale, the activation or a feature extractor is not acceptable.
    """

    activation_fn: Any  # set by SB3's class
    # Keys of net_arch, if it may be a dict: those it must have and those it may have.
    _roles: ClassVar[tuple[str, ...]] = ()
    _optional_roles: ClassVar[tuple[str, ...]] = ()
    _actions: ClassVar[tuple[type[spaces.Space], ...]] = (
        spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary,
    )  # fmt: skip
    _takes_dict: ClassVar[bool] = True
    _has_critic: ClassVar[bool] = True
    _always_squashed: ClassVar[bool] = False
    _switched: ClassVar[tuple[str, ...]] = ()  # what SB3 switches to training mode, if not the whole policy

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] | None = None,
        *,
        lipschitz: float | None = None,
        observation_scale: ScaleArgument | None = None,
        action_scale: Sequence[float] | None = None,
        trainable_lipschitz: bool = False,
        lipschitz_penalty: float = 0.0,
        lipschitz_critic: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._options = LipschitzOptions.of(
            observation_space, action_space, lipschitz, observation_scale, action_scale,
            trainable_lipschitz, lipschitz_penalty, lipschitz_critic,
        )  # fmt: skip
        self._check_actions(action_space, self._always_squashed or bool(kwargs.get("squash_output", False)))
        if isinstance(observation_space, spaces.Dict) and not self._takes_dict:
            raise UnsupportedSpaceError(
                f"observation_space: expected no Dict for {type(self).__name__}, got {observation_space}. "
                "Its algorithm takes arrays only: flatten the observation in the environment."
            )
        if lipschitz_critic is not None and not self._has_critic:
            raise invalid(
                "lipschitz_critic", f"None for {type(self).__name__}", lipschitz_critic, "Remove it."
            )
        _check_extractor(kwargs)
        net_arch = as_net_arch(net_arch, self._roles, self._optional_roles)
        check_activation(activation_fn)
        if kwargs.get("optimizer_class", Adam) is Adam:
            # One fused step serves the many small parameters of sandwich layers.
            if kwargs.get("optimizer_kwargs") is None:
                kwargs["optimizer_kwargs"] = {**self._adam_kwargs(), "fused": True}
        kwargs["features_extractor_class"] = ObservationScale
        kwargs["features_extractor_kwargs"] = {"scale": self._options.observation_scale}
        if activation_fn is not None:
            kwargs["activation_fn"] = activation_fn
        super().__init__(observation_space, action_space, lr_schedule, net_arch=net_arch, **kwargs)
        optimizer = self._actor_optimizer()
        if type(optimizer) is RMSprop:  # that of A2C
            for group in optimizer.param_groups:
                if group["foreach"] is None:
                    group["foreach"] = True  # the same steps, bit for bit, in two thirds of the time
        self._attach_penalty()

    @classmethod
    def _check_actions(cls, space: spaces.Space, squash: bool) -> None:
        if not isinstance(space, cls._actions):
            names = " or ".join(kind.__name__ for kind in cls._actions)
            raise UnsupportedSpaceError(
                f"action_space: expected {names} for {cls.__name__}, got {space}. "
                "Use the policy of an algorithm for these actions."
            )
        n_outputs(space)
        if squash and not _has_range(space):
            raise UnsupportedSpaceError(
                f"action_space: expected a floating Box with finite limits low < high where actions are squashed, "
                f"got {space}. Bound the actions, or use an algorithm that does not squash them."
            )

    @staticmethod
    def _adam_kwargs() -> dict[str, Any]:
        """Settings that the algorithm's own policy gives to Adam."""
        return {}

    def _n_outputs(self) -> int:
        """Number of outputs of the bounded network."""
        return n_outputs(self.action_space)

    def _new_network(self, in_features: int, widths: Sequence[int], *, small_output: bool) -> LBDN:
        """Return the bounded network from features to output."""
        net = LBDN(
            in_features,
            tuple(widths),
            self._n_outputs(),
            lipschitz=self._options.lipschitz,
            activation=self.activation_fn,
            output_scale=self._output_scale(),
            trainable_lipschitz=self._options.trainable,
            device=self.device,
        )
        if small_output:
            self._shrink_output(net)
        return net

    def _shrink_output(self, net: LBDN) -> None:
        """Make the first outputs nearly zero, as SB3's small last layer does."""
        gamma = net.lipschitz * (1.0 if net.output_scale is None else float(net.output_scale.max()))
        with torch.no_grad():
            cast(SandwichLayer, net.layers[-1]).alpha.fill_(_OUTPUT_RADIUS * min(1.0, _LARGE_GAMMA / gamma))

    def _output_scale(self) -> Tensor | None:
        """D_a, divided by the half range that rescaling multiplies by, so that gamma is that of the action."""
        space = self.action_space
        if not isinstance(space, spaces.Box) or (
            self._options.action_scale is None and not self.squash_output
        ):
            return None
        scale = np.ones(n_outputs(space))
        if self._options.action_scale is not None:
            scale = np.asarray(self._options.action_scale)
        if self.squash_output:
            half = 0.5 * (space.high - space.low)  # as SB3 rescales
            scale = scale / half.reshape(-1).astype(np.float64)
        return rounded(scale, up=False)

    @property
    def lbdn(self) -> LBDN:
        """The bounded network, from features to mean action (before clipping or tanh), logits or Q-values."""
        return cast(LBDN, decider_of(self).lbdn)

    def bounded_networks(self) -> Iterator[LBDN]:
        """Yield the bounded network and its copies in target networks."""
        yield self.lbdn

    @property
    def lipschitz(self) -> float:
        """The bound gamma in the scaled observation and action units of the class docstring."""
        return self.lbdn.lipschitz

    @property
    def observation_scale(self) -> tuple[float, ...] | None:
        """Diagonal of D_o over the flat observation, or None for ones."""
        return self._options.observation_scale

    @property
    def action_scale(self) -> tuple[float, ...] | None:
        """Diagonal of D_a, or None for ones."""
        return self._options.action_scale

    def set_lipschitz(self, lipschitz: float) -> None:
        """Change the bound of the actor and of its target; the function changes with it.

        Args:
            lipschitz: The new gamma > 0, in the scaled units.

        Raises:
            InvalidArgumentError: If it is not positive.
        """
        for net in self.bounded_networks():
            net.set_lipschitz(lipschitz)

    def bound(self, vec_env: VecEnv | None = None, *, require_frozen: bool = True) -> Bound:
        """Return the bound from raw observation to deterministic action; see `policy_bound`."""
        return policy_bound(self, vec_env, require_frozen=require_frozen)

    def action_map(self, vec_env: VecEnv | None = None, *, dtype: torch.dtype = torch.float64) -> ActionMap:
        """Return the deterministic predict path by value; see `robustnn.policies.action_map`."""
        return action_map(self, vec_env, dtype=dtype)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[NDArray[Any], Any]:
        """Return actions as SB3's `predict` does, after refusing observations that mean nothing.

        Raises:
            InvalidArgumentError: If the observation is not an array of numbers, has other keys than the space, or a
                discrete value is out of range.
            NonFiniteError: If the observation contains NaN or infinity, or does in float32, or the network overflows.
        """
        reset_result = (
            isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict)
        )
        if not reset_result:  # SB3 has a message for this mistake
            check_observation(observation, self.observation_space)
        actions, state = super().predict(observation, *args, **kwargs)
        if isinstance(self.action_space, spaces.Box):
            check_finite("action", actions, TOO_LARGE)
        return actions, state

    def set_training_mode(self, mode: bool) -> None:
        """Switch the networks that the algorithm trains between training and evaluation, as SB3 does at every step.

        Args:
            mode: Whether to set training mode.
        """
        if not self._switched:
            super().set_training_mode(mode)
            return
        for name in self._switched:
            switch_mode(getattr(self, name), mode)
        self.training = mode

    def _actor_optimizer(self) -> Optimizer:
        """The optimiser that steps the parameters of the bounded network."""
        return self.optimizer

    def _attach_penalty(self) -> None:
        parameter = self.lbdn.log_lipschitz
        if not self._options.penalty or parameter is None:
            return
        optimizer = self._actor_optimizer()
        hooks = (
            optimizer._optimizer_step_pre_hooks.values()
        )  # a shallow copy of the policy shares the optimiser
        if not any(isinstance(hook, _Penalty) and hook.parameter is parameter for hook in hooks):
            optimizer.register_step_pre_hook(_Penalty(parameter, self._options.penalty))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._attach_penalty()  # optimisers lose their hooks when they are copied

    @classmethod
    def load(cls: type[Self], path: str, device: torch.device | str = "auto") -> Self:
        """Load a policy that `save` wrote.

        Args:
            path: The file.
            device: Device of the policy.

        Returns:
            The policy with its bound, scales and weights.

        Raises:
            CheckpointError: If the file is damaged or holds something else.
        """
        try:
            return super().load(path, device)
        except OSError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"path: expected a file written by {cls.__name__}.save, got {path} ({type(error).__name__}). "
                "The file is damaged, or holds another class or a whole model: use PPO.load for model.save."
            ) from error

    def _get_constructor_parameters(self) -> dict[str, Any]:
        given_by_us = ("features_extractor_class", "features_extractor_kwargs")
        stored = super()._get_constructor_parameters().items()
        # SB3 stores None for settings of gSDE where there is none.
        data = {name: value for name, value in stored if name not in given_by_us and value is not None}
        options = self._options
        data.update(
            lipschitz=self.lipschitz,
            observation_scale=options.observation_scale,
            action_scale=options.action_scale,
            trainable_lipschitz=options.trainable,
            lipschitz_penalty=options.penalty,
            lipschitz_critic=options.critic,
        )
        return data


class _Penalty:
    r"""Step pre-hook of an optimiser: adds the gradient of $\lambda \gamma$ to that of $\log \gamma$."""

    def __init__(self, parameter: nn.Parameter, weight: float) -> None:
        self.parameter = parameter
        self.weight = weight

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.parameter.requires_grad:  # gamma was fixed after all
            return
        if self.parameter.grad is None:
            raise invalid(
                "lipschitz_penalty", "0 for an algorithm that does not train the actor by its optimiser (TRPO)",
                self.weight, "Remove it, or use PPO.",
            )  # fmt: skip
        self.parameter.grad += self.weight * self.parameter.detach().exp()


def _has_range(space: spaces.Space) -> bool:
    """Whether SB3 can rescale squashed actions to the limits of a space, in their dtype."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        width = space.high - space.low
    return bool((np.isfinite(width) & (width > 0)).all())


def _check_extractor(kwargs: dict[str, Any]) -> None:
    extractor = kwargs.get("features_extractor_class", FlattenExtractor)
    if extractor is not FlattenExtractor or kwargs.get("features_extractor_kwargs"):
        raise invalid(
            "features_extractor_class",
            "none: the bound starts at the observation",
            getattr(extractor, "__name__", extractor),
            "Use observation_scale for scaling, and move other processing into the environment.",
        )
