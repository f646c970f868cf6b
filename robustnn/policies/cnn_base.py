"""What policies of images share: spaces, the bounded convolutional network, its bound from raw pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.optim import Adam

from robustnn.errors import ShapeError, UnsupportedSpaceError, check_finite, check_positive, invalid
from robustnn.nn.conv_lbdn import ConvLBDN
from robustnn.nn.conv_net import Spec
from robustnn.policies.bound import Bound
from robustnn.policies.cnn_bound import ImageChain, image_chain
from robustnn.policies.image_map import ImageMap, image_map
from robustnn.policies.networks import check_methods
from robustnn.policies.observation import TOO_LARGE, check_observation
from robustnn.policies.options import as_net_arch, check_activation, n_outputs

__all__ = ["LipschitzImagePolicy"]

# The convolutions and the dense layer of SB3's NatureCNN.
_CONV: tuple[Spec, ...] = ((32, 8, 4), (64, 4, 2), (64, 3))
_DENSE = [512]
# As in `LipschitzPolicy`: first outputs near zero, whatever gamma is.
_OUTPUT_RADIUS = 0.01
_LARGE_GAMMA = 20.0
# Of a radius, for the rounding of its own arithmetic in float64.
_SLACK = 1e-13


class LipschitzImagePolicy(BasePolicy):
    r"""Base of SB3 policies whose deterministic action is Lipschitz in the raw pixels of an image.

    $$\|\pi(o) - \pi(o')\|_2 \le \frac{\gamma}{255} \|o - o'\|_2$$

    where o is the uint8 image that the environment returns, with all its channels and frames, and $\pi(o)$ the action
    that `predict(o, deterministic=True)` returns, or for discrete actions the logits or Q-values that it compares. The
    whole map from pixels to outputs is one `ConvLBDN`; images may have their channels first or last, as SB3 moves them.
    With `VecFrameStack` of k frames an error of norm e in every frame has the norm $\sqrt k\, e$.

    Args:
        observation_space: Box of uint8 from 0 to 255 with three axes.
        action_space: As the algorithm allows.
        lr_schedule: Learning-rate schedule, given by the algorithm.
        net_arch: Widths of the dense hidden layers as in SB3; default 512.
        activation_fn: torch.nn class with slopes in [0, 1], for all networks; default ReLU.
        lipschitz: The bound gamma > 0, in action units (logits, Q-values) per pixel from black to white. Required.
        conv: Convolutions and poolings as in `ConvLBDN`; default those of SB3's NatureCNN.
        padding: As in `SandwichConv2d`.
        outer: As in `SandwichConv2d`; "pointwise" is the cheapest.
        lipschitz_critic: Bound of the value per pixel from black to white; None for an ordinary network of the same
            layers.
        **kwargs: Further arguments of SB3's policy class.

    Raises:
        UnsupportedSpaceError: If a space is not supported.
        InvalidArgumentError: If gamma, a layer, the activation or a feature extractor is not acceptable.
    """

    features_dim: int
    net_arch: Any
    activation_fn: Any
    of_images: ClassVar[bool] = True
    _roles: ClassVar[tuple[str, ...]] = ()
    _actions: ClassVar[tuple[type[spaces.Space], ...]] = (
        spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary,
    )  # fmt: skip
    _output: ClassVar[str] = "logits"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        *,
        lipschitz: float | None = None,
        conv: Sequence[Spec] = _CONV,
        padding: str | None = None,
        outer: str = "pointwise",
        lipschitz_critic: float | None = None,
        **kwargs: Any,
    ) -> None:
        if lipschitz is None:
            raise invalid("lipschitz", "a bound > 0", None, "State it: policy_kwargs=dict(lipschitz=10.0).")
        self._lipschitz = check_positive("lipschitz", lipschitz)
        self._critic = (
            None if lipschitz_critic is None else check_positive("lipschitz_critic", lipschitz_critic)
        )
        shape = observation_space.shape or ()
        if len(shape) != 3 or not is_image_space(observation_space, check_channels=False):
            raise UnsupportedSpaceError(
                f"observation_space: expected an image, a Box of uint8 from 0 to 255 with three axes, got "
                f"{observation_space}. Use a policy for vectors, or make the image one of uint8."
            )
        if not isinstance(action_space, self._actions):
            names = " or ".join(kind.__name__ for kind in self._actions)
            raise UnsupportedSpaceError(
                f"action_space: expected {names} for {type(self).__name__}, got {action_space}. "
                "Use the policy of an algorithm for these actions."
            )
        self._n_outputs = n_outputs(action_space)
        for name in ("use_sde", "squash_output"):
            if kwargs.get(name):
                raise invalid(name, f"False for {type(self).__name__}", True, "Remove it.")
        extractor = kwargs.get("features_extractor_class", FlattenExtractor)
        if extractor is not FlattenExtractor or kwargs.get("features_extractor_kwargs"):
            raise invalid(
                "features_extractor_class", "none: the bound starts at the pixels",
                getattr(extractor, "__name__", extractor), "Give the layers by conv and net_arch.",
            )  # fmt: skip
        self._image_shape = tuple(int(n) for n in shape)
        self._conv = tuple(tuple(layer) for layer in conv)  # comparable, as SB3 compares policy_kwargs
        self._padding, self._outer = padding, outer
        check_activation(activation_fn)
        arch = as_net_arch(_DENSE if net_arch is None else net_arch, (), self._roles)
        if kwargs.get("optimizer_class", Adam) is Adam and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {**self._adam_kwargs(), "fused": True}
        kwargs["features_extractor_class"], kwargs["features_extractor_kwargs"] = FlattenExtractor, {}
        super().__init__(
            observation_space, action_space, lr_schedule, net_arch=arch, activation_fn=activation_fn, **kwargs
        )

    @staticmethod
    def _adam_kwargs() -> dict[str, Any]:
        """Settings that the algorithm's own policy gives to Adam."""
        return {}

    def _widths(self, role: str) -> list[int]:
        return list(self.net_arch.get(role, []) if isinstance(self.net_arch, dict) else self.net_arch)

    def _bounded(self, role: str, n_out: int, lipschitz: float) -> nn.Sequential:
        """Return a bounded network from flat pixels to outputs."""
        net = ConvLBDN(
            self._image_shape, self._conv, self._widths(role), n_out, lipschitz=lipschitz,
            activation=self.activation_fn, padding=self._padding, outer=self._outer,
        )  # fmt: skip
        return nn.Sequential(nn.Unflatten(1, self._image_shape), net).to(self.device)

    def _actor(self, role: str, *, small_output: bool) -> nn.Sequential:
        actor = self._bounded(role, self._n_outputs, self._lipschitz)
        if small_output:
            radius = _OUTPUT_RADIUS * min(1.0, _LARGE_GAMMA / self._lipschitz)
            with torch.no_grad():
                cast(Any, actor[1]).layers[-1].alpha.fill_(radius)
        return actor

    @property
    def lbdn(self) -> ConvLBDN:
        """The bounded network, from pixels in [0, 1] to mean action (before clipping), logits or Q-values."""
        return next(self.bounded_networks())

    def bounded_networks(self) -> Iterator[ConvLBDN]:
        """Yield the bounded network and its copies in target networks."""
        raise NotImplementedError

    @property
    def lipschitz(self) -> float:
        """The bound gamma, per pixel from black to white."""
        return self.lbdn.lipschitz

    def set_lipschitz(self, lipschitz: float) -> None:
        """Change the bound of the network and of its target; the function changes with it.

        Args:
            lipschitz: The new gamma > 0.

        Raises:
            InvalidArgumentError: If it is not positive.
        """
        for net in self.bounded_networks():
            net.set_lipschitz(lipschitz)

    def chain(self, vec_env: VecEnv | None = None, *, require_frozen: bool = True) -> ImageChain:
        """Return what stands around the network; see `image_chain`.

        Raises:
            InvalidArgumentError: If a part of the policy was replaced, or a wrapper changes images in another way.
            ShapeError: If the environment returns images of another size.
        """
        check_methods(self)
        self._check_parts()
        output = "action" if isinstance(self.action_space, spaces.Box) else self._output
        white = 255.0 if self.normalize_images else 1.0
        return image_chain(self.lbdn.input_shape, white, output, vec_env, require_frozen=require_frozen)

    def _parts(self) -> tuple[Any, list[Any]]:
        """Return what holds the bounded network, and the modules that must pass images on as they are."""
        raise NotImplementedError

    def _check_parts(self) -> None:
        head, passing = self._parts()
        found = [
            type(module).__name__ for module in (head, *(head if isinstance(head, nn.Sequential) else ()))
        ]
        found += [type(module).__name__ for module in passing]
        expected = ["Sequential", "Unflatten", "ConvLBDN", *("FlattenExtractor" for _ in passing)]
        if found != expected:
            raise invalid(
                "policy", f"the modules {expected}", found, "Build the policy anew; others have no bound."
            )

    def bound(self, vec_env: VecEnv | None = None, *, require_frozen: bool = True) -> Bound:
        """Return the bound from raw image to deterministic action, per unit of a uint8 pixel.

        Args:
            vec_env: The vector environment, for its `VecFrameStack`; None for one frame.
            require_frozen: Whether to refuse environments that normalise by statistics that still change. Without it
                the bound carries no digest.

        Returns:
            The bound with its stages.

        Raises:
            InvalidArgumentError: If a wrapper changes images in another way.
            ShapeError: If the environment returns images of another size.
        """
        chain = self.chain(vec_env, require_frozen=require_frozen)
        digest = image_map(self).network_sha256 if require_frozen else ""
        return chain.bound(self.lipschitz, self.lbdn.out_features, "by construction", digest)

    def action_map(self, vec_env: VecEnv | None = None, *, dtype: torch.dtype = torch.float64) -> ImageMap:
        """Return the deterministic predict path by value, from raw images with their channels first.

        Args:
            vec_env: The vector environment, whose wrappers are checked; None for the map from what `predict` receives.
            dtype: Dtype of the result; float64 evaluates the float32 weights without further rounding.

        Returns:
            The map, without graph.
        """
        self.chain(vec_env, require_frozen=False)
        return image_map(self, dtype=dtype)

    def images(self, observation: Any) -> Tensor:
        """Return images as `predict` takes them as a batch with channels first, uint8, on the policy's device.

        Args:
            observation: Images of the environment, one or a batch, channels as the environment or `predict` has them.

        Returns:
            Shape (batch, channels, height, width).

        Raises:
            ShapeError: If the images have another shape.
            NonFiniteError: If there are NaNs or infinities.
        """
        check_observation(observation)
        try:
            return cast(Tensor, self.obs_to_tensor(observation)[0])
        except ValueError as error:
            raise ShapeError(
                f"observation: expected images of shape {self._image_shape}, got {np.shape(observation)}. "
                "Pass what the environment returns."
            ) from error

    @torch.no_grad()
    def decision_radius(self, observation: NDArray[Any]) -> NDArray[Any]:
        r"""Return how far images may move in l2 while the greedy action stands: $255 (z_1 - z_2)/(\sqrt2 \gamma)$.

        Scores are evaluated in float64, so the number speaks of the function that the float32 weights define; it is 0
        where the scores of `predict`, in float32 (on a GPU perhaps in TF32), pick another action. Near a tie of scores
        that are large beside their difference `predict` may differ for other images, too.

        Args:
            observation: Images of the environment, one or a batch, channels as the environment or `predict` has them.

        Returns:
            Shape (batch,), in units of a uint8 pixel.

        Raises:
            UnsupportedSpaceError: If actions are not Discrete.
            InvalidArgumentError: If a part of the policy was replaced.
            ShapeError: If the images have another shape.
        """
        self.chain(require_frozen=False)
        if not isinstance(self.action_space, spaces.Discrete):
            raise UnsupportedSpaceError(
                f"action_space: expected Discrete, got {self.action_space}. Use bound() for what an action may move."
            )
        policy_map, images = image_map(self), self.images(observation)
        best = policy_map(images.double()).topk(2, dim=1)
        margin = best.values[:, 0] - best.values[:, 1]
        radius = policy_map.white * margin / (math.sqrt(2.0) * self.lipschitz) * (1.0 - _SLACK)
        radius = radius.where(self._predict(images, deterministic=True) == best.indices[:, 0], 0.0)
        found: NDArray[Any] = radius.cpu().numpy()
        return found

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[NDArray[Any], Any]:
        """Return actions as SB3's `predict` does.

        Raises:
            InvalidArgumentError: If the observation is not an array of numbers.
            NonFiniteError: If it or the action contains NaN or infinity.
        """
        if not isinstance(observation, tuple):  # SB3 has a message for the result of reset()
            check_observation(observation)
        try:
            actions, state = super().predict(observation, *args, **kwargs)
        except ValueError as error:
            if isinstance(observation, tuple) or np.shape(observation)[-3:] == self._image_shape:
                raise
            raise ShapeError(
                f"observation: expected images of shape {self._image_shape}, got {np.shape(observation)}. "
                "Pass what the environment returns."
            ) from error
        if isinstance(self.action_space, spaces.Box):
            check_finite("action", actions, TOO_LARGE)
        return actions, state

    def _get_constructor_parameters(self) -> dict[str, Any]:
        given_by_us = ("features_extractor_class", "features_extractor_kwargs")
        stored = super()._get_constructor_parameters().items()
        # SB3 stores None for settings of gSDE where there is none.
        data = {name: value for name, value in stored if name not in given_by_us and value is not None}
        data.update(
            lipschitz=self.lipschitz, conv=self._conv, padding=self._padding, outer=self._outer,
            lipschitz_critic=self._critic, normalize_images=self.normalize_images,
        )  # fmt: skip
        return data
