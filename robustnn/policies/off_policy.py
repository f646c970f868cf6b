"""The LBDN as the policy class of SAC, TD3, DDPG and DQN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn
from torch.optim import Optimizer

from robustnn.errors import check_finite
from robustnn.nn.lbdn import LBDN
from robustnn.policies.base import LipschitzPolicy
from robustnn.policies.distributions import copyable
from robustnn.policies.extractors import rounded
from robustnn.policies.observation import TOO_LARGE

__all__ = ["LBDNDQNPolicy", "LBDNSACPolicy", "LBDNTD3Policy", "LipschitzActor"]


class LipschitzActor(LipschitzPolicy):
    """Actor and critics of off-policy algorithms with squashed actions; see `LipschitzPolicy` for the arguments."""

    _roles: ClassVar[tuple[str, ...]] = ("pi", "qf")
    _actions: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Box,)
    _always_squashed: ClassVar[bool] = True
    _switched: ClassVar[tuple[str, ...]] = ("actor", "critic")
    # Set by SB3's classes.
    actor: Any
    net_arch: Any
    share_features_extractor: bool

    def _actor_optimizer(self) -> Optimizer:
        optimizer: Optimizer = self.actor.optimizer
        return optimizer

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Return SB3's actor with the bounded network in the place of its mean path."""
        actor = super().make_actor(features_extractor)  # type: ignore[misc]
        net = self._new_network(actor.features_dim, actor.net_arch, small_output=True)
        if not hasattr(actor, "latent_pi"):
            actor.mu = nn.Sequential(net, nn.Tanh())
            return actor.to(self.device)
        # The mean has no trunk in common with the standard deviation, which stays free.
        actor.latent_pi = nn.Identity()
        actor.action_dist = copyable(actor.action_dist)
        actor.mu = net
        if actor.use_sde:
            distribution: StateDependentNoiseDistribution = actor.action_dist
            _, actor.log_std = distribution.proba_distribution_net(
                latent_dim=actor.features_dim,
                latent_sde_dim=actor.features_dim,
                log_std_init=actor.log_std_init,
            )
            if actor.clip_mean > 0.0:
                actor.mu = nn.Sequential(net, nn.Hardtanh(-actor.clip_mean, actor.clip_mean))
        else:
            actor.log_std = nn.Sequential(
                *create_mlp(actor.features_dim, net.out_features, self._std_widths(), actor.activation_fn)
            )
        return actor.to(self.device)

    def _std_widths(self) -> list[int]:
        return list(self.net_arch.get("std", [])) if isinstance(self.net_arch, dict) else []

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Return SB3's critic, with bounded networks if `lipschitz_critic` asks for them."""
        critic = super().make_critic(features_extractor)  # type: ignore[misc]
        if self._options.critic is not None:
            critic.q_networks = [self._bounded_critic(network) for network in critic.q_networks]
            for k, network in enumerate(critic.q_networks):
                setattr(critic, f"qf{k}", network)
        return critic

    def _bounded_critic(self, network: nn.Module, n_quantiles: int = 1) -> LBDN:
        """Return a bounded network of the widths of a critic, whose mean output has the bound."""
        linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
        # The mean of N outputs has the norm 1 / sqrt(N).
        scale = rounded(np.full(n_quantiles, math.sqrt(n_quantiles)), up=False) if n_quantiles > 1 else None
        return LBDN(
            linears[0].in_features,
            [layer.out_features for layer in linears[:-1]],
            linears[-1].out_features,
            lipschitz=cast(float, self._options.critic),
            activation=self.activation_fn,
            output_scale=scale,
            device=linears[0].weight.device,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data["share_features_extractor"] = self.share_features_extractor
        return data


class LBDNSACPolicy(LipschitzActor, SACPolicy):
    r"""Policy of SAC whose deterministic action is Lipschitz in the raw observation.

    The mean, before and after tanh and rescaling, is one LBDN with the bound of `LipschitzPolicy`; the standard
    deviation is a free function of the scaled observation, linear unless `net_arch=dict(pi=[...], qf=[...],
    std=[...])` gives it hidden layers. With `use_sde` the exploration noise is linear in the scaled observation.

    Args:
        *args: See `LipschitzPolicy`; `net_arch` defaults to 256, 256, `activation_fn` to ReLU.
        **kwargs: See `LipschitzPolicy`: `lipschitz` (required), `observation_scale`, `action_scale`,
            `trainable_lipschitz`, `lipschitz_penalty`, `lipschitz_critic`; and the arguments of SB3's `SACPolicy`.

    Example:
        >>> from stable_baselines3 import SAC
        >>> model = SAC(LBDNSACPolicy, "Pendulum-v1", policy_kwargs=dict(lipschitz=10.0), device="cpu")
        >>> round(model.policy.bound().plain, 9)
        10.0
    """

    _optional_roles: ClassVar[tuple[str, ...]] = ("std",)


class LBDNTD3Policy(LipschitzActor, TD3Policy):
    """Policy of TD3 and DDPG whose action is Lipschitz in the raw observation, in the actor and its target.

    Args:
        *args: See `LipschitzPolicy`; `net_arch` defaults to 400, 300, `activation_fn` to ReLU.
        **kwargs: See `LipschitzPolicy`: `lipschitz` (required), `observation_scale`, `action_scale`,
            `trainable_lipschitz`, `lipschitz_penalty`, `lipschitz_critic`; and the arguments of SB3's `TD3Policy`.

    Example:
        >>> from stable_baselines3 import TD3
        >>> model = TD3(LBDNTD3Policy, "Pendulum-v1", policy_kwargs=dict(lipschitz=10.0), device="cpu")
        >>> round(model.policy.bound().plain, 9)
        10.0
    """

    def bounded_networks(self) -> Iterator[LBDN]:
        """Yield the network of the actor and that of its target."""
        yield self.actor.mu[0]
        yield self.actor_target.mu[0]  # type: ignore[misc]


class LBDNDQNPolicy(LipschitzPolicy, DQNPolicy):
    r"""Policy of DQN whose vector of Q-values is Lipschitz in the raw observation.

    $$\|q(o) - q(o')\|_2 \le \gamma \, \|D_o^{-1}(o - o')\|_2$$

    so that the greedy action stands while $\|D_o^{-1} \Delta o\|_2 < (q_1 - q_2)/(\sqrt2\,\gamma)$. Q-values grow like
    the reward over (1 - discount), and gamma must leave room for that.

    Args:
        *args: See `LipschitzPolicy`; `net_arch` is a list, 64, 64 by default, `activation_fn` ReLU.
        **kwargs: See `LipschitzPolicy`: `lipschitz` (required), `observation_scale`, `trainable_lipschitz`,
            `lipschitz_penalty`; and the arguments of SB3's `DQNPolicy`.

    Example:
        >>> from stable_baselines3 import DQN
        >>> model = DQN(LBDNDQNPolicy, "CartPole-v1", policy_kwargs=dict(lipschitz=50.0), device="cpu")
        >>> model.policy.bound().plain
        50.0
    """

    _actions: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Discrete,)
    _has_critic: ClassVar[bool] = False
    _switched: ClassVar[tuple[str, ...]] = ("q_net",)

    def make_q_net(self) -> QNetwork:
        """Return SB3's Q-network with the bounded network inside."""
        q_net = super().make_q_net()
        q_net.q_net = self._new_network(q_net.features_dim, q_net.net_arch, small_output=True)  # type: ignore[assignment]
        return q_net.to(self.device)

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        values = self.q_net(obs)
        check_finite("Q-values", values, TOO_LARGE)  # the largest of NaNs would be some action
        return values.argmax(dim=1).reshape(-1)

    def bounded_networks(self) -> Iterator[LBDN]:
        """Yield the network of the Q-values and that of its target."""
        yield self.q_net.q_net  # type: ignore[misc]
        yield self.q_net_target.q_net  # type: ignore[misc]
