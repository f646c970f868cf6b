"""The network that decides: explicit weights of the deterministic path of any SB3 policy, by value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from torch import nn

from robustnn.errors import InvalidArgumentError, UnsupportedSpaceError, invalid
from robustnn.nn.bounded import BoundedNet
from robustnn.nn.convert import as_explicit
from robustnn.nn.lbdn import LBDN
from robustnn.nn.module import ExplicitModule
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.extractors import ObservationScale
from robustnn.policies.observation import size_of

__all__ = ["Decider", "check_methods", "decider_of", "image_policy"]

# What the deterministic action passes through. A method of another package may do anything to it.
_PACKAGES = ("stable_baselines3", "sb3_contrib", "robustnn")
_OF_POLICY = (
    "predict", "_predict", "obs_to_tensor", "unscale_action", "extract_features", "get_distribution",
    "_get_action_dist_from_latent",
)  # fmt: skip
_OF_NETWORK = ("forward", "_predict", "extract_features", "get_action_dist_params")


@dataclass(frozen=True, eq=False)
class Decider:
    """The parts of a policy between observation and action.

    Attributes:
        body: The modules of the network from features to output, in order.
        extractor: The features extractor in front.
        output: What the network computes: "action", "logits", "Q-values" or "mean quantiles".
        squash: Whether tanh and rescaling to the action limits follow; otherwise actions are clipped.
        mean_clip: Limit of the network's output before tanh (gSDE of SAC), or None.
        n_quantiles: How many quantiles per action the network computes, 0 for none.
    """

    body: tuple[nn.Module, ...]
    extractor: nn.Module
    output: str
    squash: bool = False
    mean_clip: float | None = None
    n_quantiles: int = 0

    @property
    def lbdn(self) -> LBDN | None:
        """The bounded network, if the whole body is one."""
        return self.body[0] if len(self.body) == 1 and isinstance(self.body[0], LBDN) else None

    @property
    def bounded(self) -> LBDN | BoundedNet | None:
        """The network with a bound of its own, an LBDN or another one, if the whole body is one."""
        return self.body[0] if len(self.body) == 1 and isinstance(self.body[0], (LBDN, BoundedNet)) else None

    @property
    def n_outputs(self) -> int:
        """Number of action components, logits or values that the network computes, quantiles averaged."""
        widths = [int(part.out_features) for part in self.body if hasattr(part, "out_features")]  # type: ignore[arg-type]
        return widths[-1] // (self.n_quantiles or 1)

    def explicit(self) -> ExplicitMLP:
        """Return the map from features to output by value, quantiles averaged.

        Raises:
            InvalidArgumentError: If the body is no plain feed-forward network.
        """
        with torch.no_grad():
            if len(self.body) == 1 and isinstance(self.body[0], ExplicitModule):
                network = self.body[0].explicit().detach()
            else:
                _check_static(self.body)
                network = as_explicit(nn.Sequential(*self.body))
        return _mean_over_quantiles(network, self.n_quantiles) if self.n_quantiles else network

    def scale(self) -> torch.Tensor:
        """Return the numbers by which the extractor divides the flat observation, shape (n_obs,).

        Raises:
            InvalidArgumentError: If the extractor does something else.
        """
        if type(self.extractor) is ObservationScale:
            return self.extractor.scale.detach()
        flat = type(self.extractor) is FlattenExtractor
        if not flat and type(self.extractor) is CombinedExtractor:
            flat = all(type(part) is nn.Flatten for part in self.extractor.extractors.values())
        if not flat:
            raise invalid(
                "policy.features_extractor",
                "FlattenExtractor, CombinedExtractor without images, or ObservationScale",
                type(self.extractor).__name__,
                "The gain of other extractors is unknown; move what they do into the environment.",
            )
        return torch.ones(size_of(self.extractor._observation_space))  # type: ignore[arg-type]


def decider_of(policy: Any) -> Decider:
    """Return the parts of a policy that its deterministic action passes through.

    Args:
        policy: The policy of PPO, A2C, SAC, TD3, DDPG or DQN, or of TRPO, MaskablePPO, TQC, CrossQ or QR-DQN of
            sb3-contrib; or a model of one of them.

    Returns:
        The parts, as live modules.

    Raises:
        InvalidArgumentError: If the policy is of another kind; a recurrent one has no static bound.
        UnsupportedSpaceError: If it is one of images.
    """
    images = image_policy(policy)
    if images is not None:
        raise UnsupportedSpaceError(
            f"policy: expected one of vectors, got {type(images).__name__}, one of images. What there is for images: "
            "policy_bound, action_map, deploy, decision_radius() of the policy, LogLipschitz and ScheduleLipschitz."
        )
    policy = _inner(policy)
    if hasattr(policy, "lstm_actor"):
        raise invalid(
            "policy", "a policy without memory", type(policy).__name__,
            "The action of a recurrent policy depends on all past observations, so no bound from the present one to "
            "the action exists; use PPO, perhaps with VecFrameStack.",
        )  # fmt: skip
    if isinstance(policy, BasePolicy):
        return _of_policy(policy)
    raise _unknown(policy)


def image_policy(policy: Any) -> Any | None:
    """Return the policy of images (`LipschitzImagePolicy`) of a model, or None if it is one of vectors.

    Args:
        policy: A policy or a model, perhaps compiled.

    Returns:
        The policy itself, or None.
    """
    policy = _inner(policy)
    return policy if getattr(type(policy), "of_images", False) else None


def _inner(policy: Any) -> Any:
    policy = getattr(policy, "policy", policy)
    return getattr(policy, "_orig_mod", policy)  # of torch.compile


def check_methods(policy: Any) -> None:
    """Raise unless the deterministic action passes through the methods of SB3 and of this package only.

    Args:
        policy: The policy or the model.

    Raises:
        InvalidArgumentError: If a class of another package has a method of its own on the way.
    """
    policy = getattr(policy, "policy", policy)
    parts = [getattr(policy, name, None) for name in ("actor", "q_net", "quantile_net")]
    for owner, names in ((policy, _OF_POLICY), *((part, _OF_NETWORK) for part in parts)):
        for name in names:
            method = getattr(type(owner), name, None)
            if method is not None and method.__module__.split(".")[0] not in _PACKAGES:
                raise invalid(
                    "policy", f"a policy with the {name}() of its library", f"{type(owner).__name__}.{name}()",
                    "What a method of your own does to observations or actions is not known: move it into the "
                    "environment.",
                )  # fmt: skip


def _of_policy(policy: Any) -> Decider:
    if hasattr(policy, "mlp_extractor"):
        if type(policy.mlp_extractor) is not MlpExtractor:
            raise invalid(
                "policy.mlp_extractor", "SB3's MlpExtractor", type(policy.mlp_extractor).__name__,
                "What another one computes is not known; set widths by net_arch.",
            )  # fmt: skip
        body = (*_flat(policy.mlp_extractor.policy_net), *_flat(policy.action_net))
        output = "action" if isinstance(policy.action_space, spaces.Box) else "logits"
        return Decider(body, policy.pi_features_extractor, output, bool(policy.squash_output))
    actor = getattr(policy, "actor", None)
    if actor is not None and hasattr(actor, "mu"):
        return _of_actor(actor)
    if hasattr(policy, "q_net"):
        return Decider(tuple(_flat(policy.q_net.q_net)), policy.q_net.features_extractor, "Q-values")
    if hasattr(policy, "quantile_net"):
        net = policy.quantile_net
        body = tuple(_flat(net.quantile_net))
        return Decider(body, net.features_extractor, "mean quantiles", n_quantiles=net.n_quantiles)
    raise _unknown(policy)


def _unknown(policy: Any) -> InvalidArgumentError:
    return invalid(
        "policy",
        "the policy of PPO, A2C, TRPO, MaskablePPO, SAC, TD3, DDPG, TQC, CrossQ, DQN or QRDQN",
        type(policy).__name__,
        "Pass model.policy.",
    )


def _check_static(body: tuple[nn.Module, ...]) -> None:
    for module in body:
        name = type(module).__name__
        if "Norm" in name or "Renorm" in name:
            raise invalid(
                "policy", "an actor of linear layers and activations", name,
                "The gain of a normalisation changes with its statistics and has no bound: use a policy class of this "
                "package, or of sb3-contrib without batch normalisation (`policy_kwargs=dict(batch_norm=False)`).",
            )  # fmt: skip


def _of_actor(actor: Any) -> Decider:
    trunk = list(_flat(actor.latent_pi)) if hasattr(actor, "latent_pi") else []
    head = list(_flat(actor.mu))
    mean_clip = None
    if isinstance(head[-1], nn.Hardtanh):
        mean_clip = float(head.pop().max_val)  # type: ignore[arg-type]
    elif not trunk and not hasattr(actor, "latent_pi") and isinstance(head[-1], nn.Tanh):
        head.pop()  # TD3: the squashing itself
    return Decider((*trunk, *head), actor.features_extractor, "action", True, mean_clip)


def _flat(module: nn.Module) -> list[nn.Module]:
    if type(module) is nn.Sequential:
        return [inner for child in module for inner in _flat(child)]
    return [] if type(module) is nn.Identity else [module]


def _mean_over_quantiles(network: ExplicitMLP, n_quantiles: int) -> ExplicitMLP:
    """Average the last layer over its first axis of (n_quantiles, n_actions)."""
    *weights, last = network.weights
    *biases, bias = network.biases
    mean = last.double().unflatten(0, (n_quantiles, -1)).mean(0).to(last.dtype)
    mean_bias = None if bias is None else bias.double().unflatten(0, (n_quantiles, -1)).mean(0).to(bias.dtype)
    return replace(network, weights=(*weights, mean), biases=(*biases, mean_bias))
