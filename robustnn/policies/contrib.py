"""The LBDN as the policy class of the algorithms of sb3-contrib (extra `rl`).

TRPO takes `LBDNActorCriticPolicy`. RecurrentPPO cannot have such a policy: its action depends on all past observations
through a recurrent state, for which a bound from the present observation to the action says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from robustnn.errors import check_finite
from robustnn.nn.lbdn import LBDN
from robustnn.policies.actor_critic import LipschitzActorCritic
from robustnn.policies.base import LipschitzPolicy
from robustnn.policies.extractors import rounded
from robustnn.policies.observation import TOO_LARGE
from robustnn.policies.off_policy import LipschitzActor

__all__ = ["LBDNCrossQPolicy", "LBDNMaskablePolicy", "LBDNQRDQNPolicy", "LBDNTQCPolicy"]


class LBDNMaskablePolicy(LipschitzActorCritic, MaskableActorCriticPolicy):
    """Policy of MaskablePPO whose logits are Lipschitz in the raw observation, whatever the mask.

    For MultiBinary actions sb3-contrib compares two logits per component, so there are twice as many as components.

    Args:
        *args: See `LipschitzPolicy`.
        **kwargs: See `LipschitzPolicy` and sb3-contrib's `MaskableActorCriticPolicy`.
    """

    _actions: ClassVar[tuple[type[spaces.Space], ...]] = (
        spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary,
    )  # fmt: skip

    def _n_outputs(self) -> int:
        return super()._n_outputs() * (2 if isinstance(self.action_space, spaces.MultiBinary) else 1)


class LBDNTQCPolicy(LipschitzActor, TQCPolicy):
    """Policy of TQC whose deterministic action is Lipschitz in the raw observation, as in `LBDNSACPolicy`.

    `lipschitz_critic` is the bound of the value of each critic, which is the mean of its quantiles.

    Args:
        *args: See `LipschitzPolicy`.
        **kwargs: See `LipschitzPolicy` and sb3-contrib's `TQCPolicy`.
    """

    _optional_roles: ClassVar[tuple[str, ...]] = ("std",)

    def _bounded_critic(self, network: nn.Module, n_quantiles: int = 1) -> LBDN:
        return super()._bounded_critic(network, self.critic_kwargs["n_quantiles"])  # type: ignore[arg-type]


class LBDNCrossQPolicy(LipschitzActor, CrossQPolicy):
    """Policy of CrossQ whose deterministic action is Lipschitz in the raw observation, as in `LBDNSACPolicy`.

    The actor has no batch renormalisation, whose gain drifts with its statistics; the critics keep theirs, and have no
    bound. The algorithm takes no Dict observations.

    Args:
        *args: See `LipschitzPolicy`.
        **kwargs: See `LipschitzPolicy` and sb3-contrib's `CrossQPolicy`.
    """

    _optional_roles: ClassVar[tuple[str, ...]] = ("std",)
    _takes_dict: ClassVar[bool] = False
    _has_critic: ClassVar[bool] = False

    @staticmethod
    def _adam_kwargs() -> dict[str, Any]:
        return {"betas": (0.5, 0.999)}  # as in sb3-contrib


class LBDNQRDQNPolicy(LipschitzPolicy, QRDQNPolicy):
    r"""Policy of QR-DQN whose mean quantiles, which are what it compares, are Lipschitz in the raw observation.

    $$\|\bar q(o) - \bar q(o')\|_2 \le \gamma \, \|D_o^{-1}(o - o')\|_2$$

    Averaging N quantiles per action has the norm $1/\sqrt N$, so the network of all quantiles has $\sqrt N\,\gamma$.

    Args:
        *args: See `LipschitzPolicy`.
        **kwargs: See `LipschitzPolicy` and sb3-contrib's `QRDQNPolicy` (`n_quantiles`, ...).
    """

    _actions: ClassVar[tuple[type[spaces.Space], ...]] = (spaces.Discrete,)
    _has_critic: ClassVar[bool] = False
    _switched: ClassVar[tuple[str, ...]] = ("quantile_net",)

    def make_quantile_net(self) -> QuantileNetwork:
        """Return sb3-contrib's quantile network with the bounded network inside."""
        net = super().make_quantile_net()
        n_out = net.n_quantiles * int(net.action_space.n)
        network = LBDN(
            net.features_dim,
            net.net_arch,
            n_out,
            lipschitz=self._options.lipschitz,
            activation=self.activation_fn,
            output_scale=rounded(np.full(n_out, math.sqrt(net.n_quantiles)), up=False),
            trainable_lipschitz=self._options.trainable,
            device=self.device,
        )
        self._shrink_output(network)
        net.quantile_net = network  # type: ignore[assignment]
        return net.to(self.device)

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        values = self.quantile_net(obs).mean(dim=1)
        check_finite("mean quantiles", values, TOO_LARGE)  # the largest of NaNs would be some action
        return values.argmax(dim=1).reshape(-1)

    def bounded_networks(self) -> Iterator[LBDN]:
        """Yield the network of the quantiles and that of its target."""
        yield self.quantile_net.quantile_net  # type: ignore[misc]
        yield self.quantile_net_target.quantile_net  # type: ignore[misc]
