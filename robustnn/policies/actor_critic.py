"""The LBDN as the policy class of PPO and A2C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.optim import Adam

from robustnn.errors import (
    CheckpointError,
    UnsupportedSpaceError,
    check_finite,
    check_positive,
    invalid,
)
from robustnn.nn.lbdn import LBDN, check_widths
from robustnn.nn.sandwich import SandwichLayer
from robustnn.params.activations import resolve_activation
from robustnn.policies.distributions import CheckedGaussian, without_graph
from robustnn.policies.extractors import ObservationScale, as_scale
from robustnn.policies.normalization import normalization_of
from robustnn.policies.scaling import ActionMap, Bound, action_map, greedy_radius

__all__ = ["LBDNActorCriticPolicy"]

Self = TypeVar("Self", bound="LBDNActorCriticPolicy")

# With [X; Y] of this Frobenius norm the output layer's B has about twice this norm. A larger gamma makes it
# smaller, so that first actions are near zero whatever gamma is.
_OUTPUT_RADIUS = 0.01
_LARGE_GAMMA = 20.0


class LBDNActorCriticPolicy(ActorCriticPolicy):
    r"""Actor-critic policy whose deterministic action is Lipschitz in the raw observation.

    $$\|D_a^{-1}(\pi(o) - \pi(o'))\|_2 \le \gamma \, \|D_o^{-1}(o - o')\|_2$$

    where $\pi(o)$ is what `model.predict(o, deterministic=True)` returns, in the units of the action space
    (after clipping, or tanh and rescaling), and o is what predict receives. For Discrete actions $\pi$ stands
    for the logits, and `certified_radius` tells how far an observation may move without changing the action.
    The whole actor is one LBDN; the value network is an ordinary MLP without a bound. With `VecNormalize` in
    front, `bound(vec_env)` gives the bound in the raw observations of the plant.

    Args:
        observation_space: Box that is not an image; any shape, flattened.
        action_space: Box or Discrete.
        lr_schedule: Learning-rate schedule, given by the algorithm.
        net_arch: Hidden widths as in SB3: a list, or dict(pi=[...], vf=[...]); default 64, 64 for both.
        activation_fn: torch.nn class with slopes in [0, 1], for both networks.
        lipschitz: The bound gamma > 0 in the norms above. Required.
        observation_scale: Diagonal of D_o, a positive number per observation component in its unit: the change
            that counts as one. Observations are divided by it before both networks. Default ones.
        action_scale: Diagonal of D_a, a positive number per action component in its unit (Box only).
            Default ones.
        **kwargs: With `ortho_init` (default) the value network starts as in SB3 and the actor's output layer
            starts small. Further arguments of SB3's `ActorCriticPolicy` (`use_sde`, `squash_output`, `log_std_init`,
            `optimizer_class`, ...). With `use_sde` the exploration noise is linear in the scaled observation.

    Raises:
        UnsupportedSpaceError: If a space is not supported.
        InvalidArgumentError: If gamma, a scale, the activation or a feature extractor is not acceptable.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO(LBDNActorCriticPolicy, "Pendulum-v1", policy_kwargs=dict(lipschitz=10.0), device="cpu")
        >>> model.policy.bound().plain
        10.0
    """

    action_net: LBDN

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        *,
        lipschitz: float | None = None,
        observation_scale: Sequence[float] | None = None,
        action_scale: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if lipschitz is None:
            raise invalid("lipschitz", "a bound > 0", None, "State it: policy_kwargs=dict(lipschitz=10.0).")
        self._stated_lipschitz = check_positive("lipschitz", lipschitz)
        squash = bool(kwargs.get("squash_output", False))
        _check_spaces(observation_space, action_space, squash, action_scale)
        _check_extractor(kwargs)
        _check_net_arch(net_arch)
        resolve_activation(activation_fn)
        n_obs = spaces.flatdim(observation_space)
        self.observation_scale = (
            None if observation_scale is None else as_scale("observation_scale", observation_scale, n_obs)
        )
        self.action_scale = (
            None
            if action_scale is None
            else as_scale("action_scale", action_scale, spaces.flatdim(action_space))
        )
        if kwargs.get("optimizer_kwargs") is None and kwargs.get("optimizer_class", Adam) is Adam:
            # SB3's epsilon; one fused step serves the many small parameters of sandwich layers.
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        kwargs["features_extractor_class"] = ObservationScale
        kwargs["features_extractor_kwargs"] = {"scale": self.observation_scale}
        super().__init__(observation_space, action_space, lr_schedule, net_arch, activation_fn, **kwargs)

    @property
    def lipschitz(self) -> float:
        """The bound gamma in the scaled observation and action units of the class docstring."""
        return self.action_net.lipschitz

    def _widths(self, role: str) -> list[int]:
        return list(self.net_arch.get(role, [])) if isinstance(self.net_arch, dict) else list(self.net_arch)

    def _build_mlp_extractor(self) -> None:
        # The actor has no trunk: action_net is the whole map from features to actions. The critic is SB3's.
        self.mlp_extractor = MlpExtractor(
            self.features_dim,
            net_arch={"pi": [], "vf": self._widths("vf")},
            activation_fn=self.activation_fn,
            device=self.device,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        if type(self.action_dist) is DiagGaussianDistribution:
            self.action_dist = CheckedGaussian(self.action_dist.action_dim)
        super()._build(lr_schedule)
        self.action_net = LBDN(
            self.features_dim,
            self._widths("pi"),
            self._n_outputs(),
            lipschitz=self._stated_lipschitz,
            activation=self.activation_fn,
            output_scale=self._output_scale(),
            device=self.device,
        )
        if self.ortho_init:
            # The counterpart of SB3's small last layer.
            with torch.no_grad():
                cast(SandwichLayer, self.action_net.layers[-1]).alpha.fill_(
                    _OUTPUT_RADIUS * min(1.0, _LARGE_GAMMA / self._stated_lipschitz)
                )
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _n_outputs(self) -> int:
        space = self.action_space
        return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (1,)))

    def _output_scale(self) -> Tensor | None:
        """D_a, divided by the half range that unsquashing multiplies by, so that gamma is that of the action."""
        if self.action_scale is None and not self.squash_output:
            return None
        scale = np.ones(self._n_outputs()) if self.action_scale is None else np.asarray(self.action_scale)
        return torch.as_tensor(scale / self._unsquashing(), dtype=torch.get_default_dtype())

    def _unsquashing(self) -> np.ndarray:
        """Half range of each action component if actions are squashed, else ones."""
        space = self.action_space
        if not self.squash_output or not isinstance(space, spaces.Box):
            return np.ones(self._n_outputs())
        low, high = (limit.reshape(-1).astype(np.float64) for limit in (space.low, space.high))
        half: np.ndarray = 0.5 * (high - low)
        return half

    def bound(self, vec_env: VecEnv | None = None) -> Bound:
        """Return the bound from raw observation to deterministic action (logits for Discrete actions).

        Args:
            vec_env: Vector environment whose `VecNormalize` feeds the policy, with the statistics that will
                be used from now on (set `training=False`); None when observations are not normalised.

        Returns:
            The weighted bound; `.plain` is the unweighted one.
        """
        scale = cast(ObservationScale, self.features_extractor).scale.detach().cpu().double()
        normalization = normalization_of(vec_env, self.features_dim)
        if normalization is not None:
            scale = scale * normalization.std
        action_scale = np.ones(self._n_outputs())
        if self.action_net.output_scale is not None:
            action_scale = self.action_net.output_scale.detach().cpu().double().numpy() * self._unsquashing()
        return Bound(self.lipschitz, tuple(scale.tolist()), tuple(action_scale.tolist()))

    def action_map(self, vec_env: VecEnv | None = None, *, dtype: torch.dtype = torch.float64) -> ActionMap:
        """Return the deterministic predict path by value; see `robustnn.policies.action_map`."""
        return action_map(self, vec_env, dtype=dtype)

    def certified_radius(self, observation: np.ndarray) -> np.ndarray:
        r"""Distance within which the greedy discrete action cannot change: margin / ($\sqrt2\,\gamma$).

        What rounding can add to the logits is taken off the margin. With `VecNormalize` in front, observations
        and radius are normalised ones, as for `predict`.

        Args:
            observation: Shape (n_obs,) or (batch, n_obs), as given to `predict`.

        Returns:
            Shape () or (batch,): radius in the norm $\|D_o^{-1} \Delta o\|_2$ (plain l2 without a scale).

        Raises:
            UnsupportedSpaceError: If actions are not Discrete.
            NonFiniteError: If the observation contains NaN or infinity.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise UnsupportedSpaceError(
                f"action_space: expected Discrete, got {self.action_space}. Use bound() for continuous actions."
            )
        _check_observation(observation)
        tensor, batched = self.obs_to_tensor(observation)
        with torch.no_grad():
            network = self.action_net.explicit()
            eps = torch.finfo(network.weights[0].dtype).eps
            scale = cast(ObservationScale, self.pi_features_extractor).scale.double()
            features = cast(torch.Tensor, tensor).flatten(start_dim=1).double() / scale
            radius = greedy_radius(network.to(dtype=torch.float64), features, self.lipschitz, eps)
        result: np.ndarray = radius.cpu().numpy()
        return result if batched else result.squeeze(0)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions as SB3's `predict` does, after refusing NaN and infinite observations.

        Raises:
            InvalidArgumentError: If the observation is not an array of numbers.
            NonFiniteError: If the observation contains NaN or infinity, or does in float32.
        """
        reset_result = (
            isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict)
        )
        if not reset_result:  # SB3 has a message for this mistake
            _check_observation(observation)
        return super().predict(observation, state, episode_start, deterministic)

    def __getstate__(self) -> dict[str, Any]:
        # SB3 keeps the last distribution, with the graph of the last batch: no copy can be made of that.
        state = self.__dict__.copy()
        state["action_dist"] = without_graph(self.action_dist)
        return state

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
        data = super()._get_constructor_parameters()
        del data["features_extractor_class"], data["features_extractor_kwargs"]
        data["squash_output"] = self.squash_output
        data["share_features_extractor"] = self.share_features_extractor
        data["lipschitz"] = self.lipschitz
        data["observation_scale"] = self.observation_scale
        data["action_scale"] = self.action_scale
        return data


def _check_spaces(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    squash: bool,
    action_scale: Sequence[float] | None,
) -> None:
    is_vector = isinstance(observation_space, spaces.Box) and observation_space.shape != ()
    if not is_vector or is_image_space(observation_space):
        raise UnsupportedSpaceError(
            f"observation_space: expected a Box with at least one axis that is not an image, got {observation_space}. "
            "Flatten or encode the observation in the environment."
        )
    if isinstance(action_space, spaces.Discrete):
        if action_scale is not None:
            raise invalid("action_scale", "None for Discrete actions", action_scale, "Remove it.")
        if action_space.n < 2:
            raise UnsupportedSpaceError(
                f"action_space: expected at least two choices, got {action_space}. A single action needs no policy."
            )
    elif not isinstance(action_space, spaces.Box):
        raise UnsupportedSpaceError(
            f"action_space: expected Box or Discrete, got {action_space}. Choose one of these action spaces."
        )
    elif squash and not (action_space.is_bounded() and (action_space.low < action_space.high).all()):
        raise UnsupportedSpaceError(
            f"action_space: expected finite limits low < high with squash_output=True, got {action_space}. "
            "Bound the actions or use squash_output=False."
        )


def _check_net_arch(net_arch: Any) -> None:
    if isinstance(net_arch, list) and len(net_arch) == 1 and isinstance(net_arch[0], dict):
        net_arch = net_arch[0]  # an older form, about which SB3 warns
    if net_arch is None:
        return
    if not isinstance(net_arch, dict):
        check_widths("net_arch", net_arch)
        return
    for role, widths in net_arch.items():
        if role not in ("pi", "vf"):
            raise invalid("net_arch", "keys 'pi' and 'vf' only", repr(role), "Pass dict(pi=[64], vf=[64]).")
        check_widths(f"net_arch[{role!r}]", widths)


def _check_observation(observation: Any) -> None:
    try:
        with np.errstate(over="ignore"):
            values = np.asarray(observation, dtype=np.float32)  # what the network receives
    except (TypeError, ValueError) as error:
        raise invalid(
            "observation",
            "an array of numbers",
            type(observation).__name__,
            "Pass what the environment returned, without its info.",
        ) from error
    check_finite("observation", values, "Check the sensors or the environment's reset.")


def _check_extractor(kwargs: dict[str, Any]) -> None:
    extractor = kwargs.get("features_extractor_class", FlattenExtractor)
    if extractor is not FlattenExtractor or kwargs.get("features_extractor_kwargs"):
        raise invalid(
            "features_extractor_class",
            "none: the bound starts at the observation",
            getattr(extractor, "__name__", extractor),
            "Use observation_scale for scaling, and move other processing into the environment.",
        )
