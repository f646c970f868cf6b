"""The LBDN as the policy class of PPO, A2C and TRPO."""

from __future__ import annotations

from typing import Any, ClassVar

from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import Schedule

from robustnn.nn.lbdn import LBDN
from robustnn.policies.base import LipschitzPolicy
from robustnn.policies.distributions import CheckedGaussian, without_graph

__all__ = ["LBDNActorCriticPolicy", "LipschitzActorCritic"]


class LipschitzActorCritic(LipschitzPolicy):
    """The actor and the critic of on-policy algorithms; see `LipschitzPolicy` for the arguments.

    The actor has no trunk: `action_net` is the whole map from features to actions. With `ortho_init` (default) the
    value network starts as in SB3, and the actor with outputs near zero. With `use_sde` the exploration noise is
    linear in the scaled observation.
    """

    _optional_roles: ClassVar[tuple[str, ...]] = ("pi", "vf")
    # Set by SB3's classes.
    action_dist: Any
    action_net: Any
    features_dim: int
    net_arch: Any
    ortho_init: bool
    share_features_extractor: bool
    value_net: Any

    @staticmethod
    def _adam_kwargs() -> dict[str, Any]:
        return {"eps": 1e-5}  # as in SB3

    def _widths(self, role: str) -> list[int]:
        arch = self.net_arch
        return list(arch.get(role, [])) if isinstance(arch, dict) else list(arch)

    def _build_mlp_extractor(self) -> None:
        # The critic is SB3's, unless it has a bound of its own.
        self.mlp_extractor = MlpExtractor(
            self.features_dim,
            net_arch={"pi": [], "vf": self._widths("vf") if self._options.critic is None else []},
            activation_fn=self.activation_fn,
            device=self.device,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        if type(self.action_dist) is DiagGaussianDistribution:
            self.action_dist = CheckedGaussian(self.action_dist.action_dim)
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = self._new_network(
            self.features_dim,
            self._widths("pi"),
            small_output=self.ortho_init,
        )
        if self._options.critic is not None:
            self.value_net = LBDN(
                self.features_dim,
                self._widths("vf"),
                1,
                lipschitz=self._options.critic,
                activation=self.activation_fn,
                device=self.device,
            )
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def __getstate__(self) -> dict[str, Any]:
        # SB3 keeps the last distribution, with the graph of the last batch: no copy can be made of that.
        state: dict[str, Any] = super().__getstate__()
        state["action_dist"] = without_graph(self.action_dist)
        return state

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data["share_features_extractor"] = self.share_features_extractor
        return data


class LBDNActorCriticPolicy(LipschitzActorCritic, ActorCriticPolicy):
    r"""Policy of PPO, A2C and TRPO whose deterministic action is Lipschitz in the raw observation.

    $$\|D_a^{-1}(\pi(o) - \pi(o'))\|_2 \le \gamma \, \|D_o^{-1}(o - o')\|_2$$

    where $\pi(o)$ is what `model.predict(o, deterministic=True)` returns, in the units of the action space
    (after clipping, or tanh and rescaling), and o is what predict receives. For discrete actions $\pi$ stands
    for the logits; `robustnn.certify.certified_radius` tells how far an observation may move without changing
    the action. The whole actor is one LBDN; the value network is an ordinary MLP unless `lipschitz_critic` is
    given. With `VecNormalize` in front, `bound(vec_env)` gives the bound in the raw observations of the plant.

    Args:
        observation_space: Box that is no image, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        lr_schedule: Learning-rate schedule, given by the algorithm.
        *args: See `LipschitzPolicy`: `net_arch` (a list, or dict(pi=[...], vf=[...]); default 64, 64) and
            `activation_fn` (default Tanh).
        **kwargs: See `LipschitzPolicy`: `lipschitz` (required), `observation_scale`, `action_scale`,
            `trainable_lipschitz`, `lipschitz_penalty`, `lipschitz_critic`; and the arguments of SB3's
            `ActorCriticPolicy` (`use_sde`, `squash_output`, `log_std_init`, `optimizer_class`, ...).

    Raises:
        UnsupportedSpaceError: If a space is not supported.
        InvalidArgumentError: If gamma, a scale, the activation or a feature extractor is not acceptable.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO(LBDNActorCriticPolicy, "Pendulum-v1", policy_kwargs=dict(lipschitz=10.0), device="cpu")
        >>> model.policy.bound().plain
        10.0
    """
