"""Convolutional LBDNs as policies of images: PPO, A2C and DQN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from robustnn.errors import check_finite, invalid
from robustnn.nn.conv_baselines import ConvCNN
from robustnn.nn.conv_lbdn import ConvLBDN
from robustnn.policies.cnn_base import LipschitzImagePolicy
from robustnn.policies.distributions import CheckedGaussian, without_graph
from robustnn.policies.observation import TOO_LARGE

__all__ = ["LBDNCnnDQNPolicy", "LBDNCnnPolicy", "LipschitzImagePolicy"]


class LBDNCnnPolicy(LipschitzImagePolicy, ActorCriticPolicy):
    r"""Policy of PPO and A2C whose deterministic action is Lipschitz in the raw pixels of an image.

    $$\|\pi(o) - \pi(o')\|_2 \le \frac{\gamma}{255} \|o - o'\|_2$$

    Actor and critic are separate networks of the same layers; the critic is an ordinary one unless `lipschitz_critic`
    is given. There is no gSDE, and no squashing.

    Args:
        *args: See `LipschitzImagePolicy`: `net_arch` (a list, or dict(pi=[...], vf=[...])) and `activation_fn`.
        **kwargs: See `LipschitzImagePolicy`: `lipschitz` (required), `conv`, `padding`, `outer`, `lipschitz_critic`;
            and the arguments of SB3's `ActorCriticPolicy`.

    Example:
        >>> import numpy as np
        >>> images = spaces.Box(0, 255, (1, 12, 12), np.uint8)
        >>> layers = dict(conv=[(8, 3, 2)], net_arch=[16])
        >>> policy = LBDNCnnPolicy(images, spaces.Discrete(2), lambda _: 1e-3, lipschitz=51.0, **layers)
        >>> policy.bound().plain
        0.2
    """

    _roles: ClassVar[tuple[str, ...]] = ("pi", "vf")
    # Set by SB3's class.
    action_dist: Any
    action_net: Any
    value_net: Any

    @staticmethod
    def _adam_kwargs() -> dict[str, Any]:
        return {"eps": 1e-5}  # as in SB3

    def _build_mlp_extractor(self) -> None:
        # No trunk: both networks start at the pixels.
        self.mlp_extractor = MlpExtractor(
            self.features_dim,
            net_arch={"pi": [], "vf": []},
            activation_fn=self.activation_fn,
            device=self.device,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        if type(self.action_dist) is DiagGaussianDistribution:
            self.action_dist = CheckedGaussian(self.action_dist.action_dim)
        super()._build(lr_schedule)
        self.action_net = self._actor("pi", small_output=self.ortho_init)
        if self._critic is not None:
            self.value_net = self._bounded("vf", 1, self._critic)
        else:
            net = ConvCNN(
                self._image_shape, self._conv, self._widths("vf"), 1, activation=self.activation_fn,
                padding=self._padding,
            )  # fmt: skip
            self.value_net = nn.Sequential(nn.Unflatten(1, self._image_shape), net).to(self.device)
        rate = lr_schedule(1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _parts(self) -> tuple[Any, list[Any]]:
        trunk = self.mlp_extractor
        passing = type(trunk) is MlpExtractor and type(trunk.policy_net) is nn.Sequential
        if not passing or len(trunk.policy_net):
            raise invalid("policy", "no trunk in front of the network", trunk, "Build the policy anew.")
        return self.action_net, [self.pi_features_extractor]

    def bounded_networks(self) -> Iterator[ConvLBDN]:
        """Yield the bounded network of the actor."""
        yield self.action_net[1]

    def __getstate__(self) -> dict[str, Any]:
        # SB3 keeps the last distribution, with the graph of the last batch: no copy can be made of that.
        state: dict[str, Any] = super().__getstate__()
        state["action_dist"] = without_graph(self.action_dist)
        return state


class LBDNCnnDQNPolicy(LipschitzImagePolicy, DQNPolicy):
    r"""Policy of DQN whose vector of Q-values is Lipschitz in the raw pixels of an image.

    $$\|q(o) - q(o')\|_2 \le \frac{\gamma}{255} \|o - o'\|_2$$

    so that the greedy action stands while $\|\Delta o\|_2 < 255 (q_1 - q_2)/(\sqrt2\,\gamma)$.

    Args:
        *args: See `LipschitzImagePolicy`; `net_arch` is a list.
        **kwargs: See `LipschitzImagePolicy`: `lipschitz` (required), `conv`, `padding`, `outer`; and the arguments of
            SB3's `DQNPolicy`.
    """

    _actions: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Discrete,)
    _output: ClassVar[str] = "Q-values"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("lipschitz_critic") is not None:
            raise invalid("lipschitz_critic", "None for DQN", kwargs["lipschitz_critic"], "Remove it.")
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> QNetwork:
        """Return SB3's Q-network with the bounded network inside."""
        q_net = super().make_q_net()
        q_net.q_net = self._actor("", small_output=True)
        return q_net.to(self.device)

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        values = self.q_net(obs)
        check_finite("Q-values", values, TOO_LARGE)  # the largest of NaNs would be some action
        return values.argmax(dim=1).reshape(-1)

    def _parts(self) -> tuple[Any, list[Any]]:
        if self.q_net.normalize_images != self.normalize_images:
            raise invalid(
                "policy.q_net.normalize_images", str(self.normalize_images), self.q_net.normalize_images,
                "Set both alike.",
            )  # fmt: skip
        return self.q_net.q_net, [self.q_net.features_extractor]

    def bounded_networks(self) -> Iterator[ConvLBDN]:
        """Yield the network of the Q-values and that of its target."""
        yield cast(Any, self.q_net.q_net)[1]
        yield cast(Any, self.q_net_target.q_net)[1]
