"""Deployment: the whole way from the raw observation to the action as one plain module."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv

from robustnn.bounds import constructive_multipliers
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import action_map
from robustnn.policies.deploy_images import DeployedImagePolicy, deploy_images
from robustnn.policies.deployed import DeployedPolicy, Proof
from robustnn.policies.networks import Decider, decider_of, image_policy
from robustnn.policies.normalization import Normalization, check_frozen, feeding_env, image_env
from robustnn.policies.pipeline import Pipeline, has_two_scores, in_two_parts
from robustnn.policies.wrappers import environment_notes, frames_of, sensor_names

__all__ = ["DeployedImagePolicy", "DeployedPolicy", "Proof", "deploy"]


def deploy(policy: Any, vec_env: VecEnv | None = None) -> DeployedPolicy:
    """Return the deterministic action of a policy as a plain module from raw observation to action.

    The observation scale is folded into the first weight, which is rounded to float32 once; the normalisation of a
    `VecNormalize` stands in front of it.

    Args:
        policy: A policy or a model: of this package, or SB3's own, of any algorithm that `policy_bound` knows. Pass
            `model.policy` to deploy the map from what `predict` receives, normalised observations for example.
        vec_env: The vector environment that feeds the policy, with frozen statistics; None for the model's own, as in
            `policy_bound`.

    Returns:
        The module in float32 on the CPU; a `DeployedImagePolicy` for a policy of images.

    Raises:
        InvalidArgumentError: If statistics still change or are missing, or a part of the policy is no plain
            feed-forward network.
        UnsupportedSpaceError: If a space is not supported.

    Example:
        >>> from stable_baselines3 import DQN
        >>> from robustnn.policies import LBDNDQNPolicy
        >>> model = DQN(LBDNDQNPolicy, "CartPole-v1", policy_kwargs=dict(lipschitz=50.0), device="cpu")
        >>> deploy(model)(torch.zeros(4)).dtype
        torch.int64
    """
    images = image_policy(policy)
    if images is not None:
        return deploy_images(images, image_env(policy, vec_env))
    decider = decider_of(policy)
    vec_env = feeding_env(policy, vec_env)
    policy = getattr(policy, "policy", policy)
    check_frozen(vec_env)
    policy_map = action_map(policy, vec_env)
    space = policy.observation_space
    normalization = policy_map.normalization
    if normalization is not None:
        # What is shipped in float32, by value; the mean is shipped in two parts.
        clip = torch.as_tensor(normalization.clip, dtype=torch.float64).float().double()
        std = normalization.std.float().double().cpu()
        first, rest = in_two_parts(normalization.mean.cpu())
        mean = first.double() + rest.double()
        normalization = Normalization(mean, std, clip.cpu().expand_as(std).clone())
    pipeline = Pipeline(
        space,
        policy.action_space,
        decider.output,
        normalization,
        decider.squash,
        decider.mean_clip,
        frames_of(vec_env),
        sensor_names(vec_env, space),
        environment_notes(vec_env),
        paired=has_two_scores(policy.action_space, policy_map.network.out_features),
    )
    return DeployedPolicy(policy_map.network, pipeline, _proof(decider, policy_map.network))


def _proof(decider: Decider, network: ExplicitMLP) -> Proof:
    """The norms of the network's bound, and the multipliers if it has some by construction."""
    inside = decider.scale().double().cpu()
    outside = torch.ones(network.out_features, dtype=torch.float64)
    net = decider.lbdn
    if net is None or any(s is not None and s.ndim != 1 for s in (net.input_scale, net.output_scale)):
        return Proof(inside, outside)
    if net.input_scale is not None:
        inside = inside * net.input_scale.detach().double().cpu()
    if net.output_scale is not None:
        own = net.output_scale.detach().double().cpu()
        # Averaging N quantiles has the norm 1 / sqrt(N).
        outside = own if not decider.n_quantiles else outside * own.max() / decider.n_quantiles**0.5
    return Proof(inside, outside, tuple(t.cpu() for t in constructive_multipliers(net)))
