r"""The bound in the units of the task: from the raw observation to the action that the plant receives.

The deterministic predict path of a policy is a chain of maps. With diagonal scales it stays a weighted
Lipschitz bound, which is never worse than the product of the plain factors:

=====================================  ==========================================================
stage                                  effect on $\|\Delta\|$
=====================================  ==========================================================
`VecFrameStack` of k frames            an error in every frame counts $\sqrt k$ times one error
images                                 every pixel multiplied by 1/255
`VecNormalize` (frozen statistics)     component i multiplied by $1/\sqrt{var_i + \epsilon}$; clipping <= 1
one-hot code of a discrete quantity    a jump of $\sqrt2$ (binary: 1); no small change exists
observation scale D                    component i multiplied by $1/d_i$
network                                at most gamma
clipping to [low, high]                at most 1
tanh and rescaling to [low, high]      component i multiplied by at most $(high_i - low_i)/2$
=====================================  ==========================================================

The network stands for the weights as they are rounded to float32: an LBDN keeps its gamma after rounding, and LipSDP
is applied to the rounded weights. Rounding in the evaluation comes on top, see `Bound`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from robustnn.bounds import lipsdp
from robustnn.errors import invalid
from robustnn.policies.action_map import action_map
from robustnn.policies.action_range import half_range
from robustnn.policies.bound import Bound, Stage
from robustnn.policies.networks import Decider, check_methods, decider_of, image_policy
from robustnn.policies.normalization import (
    check_frozen,
    feeding_env,
    image_env,
    is_drifting,
    normalization_of,
)
from robustnn.policies.observation import is_one_hot
from robustnn.policies.stages import Chain
from robustnn.policies.wrappers import drifts_inside, environment_notes, frames_of, sensor_names

__all__ = ["Bound", "Stage", "policy_bound"]


def policy_bound(
    policy: Any, vec_env: VecEnv | None = None, *, require_frozen: bool = True, method: str = "auto"
) -> Bound:
    """Compose the bound from raw observation to action from the live objects.

    Args:
        policy: A policy or a model: of this package, or SB3's own (PPO, A2C, TRPO, MaskablePPO, SAC, TD3, DDPG, TQC,
            DQN, QRDQN). A policy of images is one of this package.
        vec_env: The vector environment that feeds it, for its `VecNormalize` and `VecFrameStack`; None for the model's
            own. A raw observation is what the environments inside it return; what gymnasium wrappers do before is part
            of the plant, and is noted where it can be seen. For a policy, and for a model that was loaded without an
            environment, None means that a raw observation is what `predict` receives.
        require_frozen: Whether to refuse statistics that still change. Without it the bound is that of this moment,
            and carries no digests.
        method: "declared" for the bound that the network's construction guarantees, "lipsdp" for the tightest one
            computed from its weights (seconds for two layers of 64, up to a minute for 400 and 300; not for images),
            "auto" for the first where there is one.

    Returns:
        The bound with its stages.

    Raises:
        InvalidArgumentError: If the statistics of a normalisation still change, or a stage is of unknown gain.
        UnsupportedSpaceError: If a space is not supported, or an action has no range to be rescaled to.

    Example:
        >>> from stable_baselines3 import TD3
        >>> model = TD3("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), device="cpu")
        >>> [stage.name for stage in policy_bound(model).stages]
        ['network', 'tanh, rescaled']
    """
    if method not in ("auto", "declared", "lipsdp"):
        raise invalid("method", "'auto', 'declared' or 'lipsdp'", repr(method), "Choose one of these.")
    images = image_policy(policy)
    if images is not None:
        if method == "lipsdp":
            raise invalid(
                "method", "'auto' or 'declared' for a policy of images", "'lipsdp'",
                "LipSDP is for dense networks; deploy(model).certificate() proves the bound from the weights.",
            )  # fmt: skip
        found: Bound = images.bound(image_env(policy, vec_env), require_frozen=require_frozen)
        return found
    decider = decider_of(policy)
    vec_env = feeding_env(policy, vec_env)
    policy = getattr(policy, "policy", policy)
    check_methods(policy)
    space = policy.observation_space
    one_hot = is_one_hot(space)
    if require_frozen:
        check_frozen(vec_env)
    normalization = normalization_of(vec_env, space)
    input_scale = decider.scale().double().cpu().numpy()
    squashed = decider.squash and isinstance(policy.action_space, spaces.Box)
    chain = Chain(
        sensor_names(vec_env, space),
        one_hot,
        half_range(policy.action_space) if squashed else np.ones(decider.n_outputs),
        decider.output,
        frames_of(vec_env),
        None if normalization is None else normalization.std.numpy(),
        input_scale,
        decider.mean_clip,
        decider.squash,
    )
    scale = input_scale if chain.std is None else input_scale * chain.std
    gamma, inside, outside, note = _network_bound(decider, method)
    policy_map = action_map(policy, vec_env) if require_frozen else None
    observation_scale, action_scale = scale * inside, outside * chain.half_range
    for name, values in (("observation_scale", observation_scale), ("action_scale", action_scale)):
        if not (np.isfinite(values) & (values > 0.0)).all():
            raise invalid(name, "positive numbers", values.tolist(), "A scale or the statistics are damaged.")
    return Bound(
        gamma,
        tuple(observation_scale.tolist()),
        tuple(action_scale.tolist()),
        chain.frames,
        chain.output,
        chain.stages(Stage("network", gamma * float(outside.max() / inside.min()), note)),
        tuple(one_hot.tolist()) if one_hot.any() else (),
        chain.names,
        _notes(vec_env, is_drifting(vec_env) or drifts_inside(vec_env)),
        "" if policy_map is None else policy_map.network_sha256,
        "" if policy_map is None else policy_map.statistics_sha256,
    )


def _notes(vec_env: VecEnv | None, drifting: bool) -> tuple[str, ...]:
    moment = "The statistics of the normalisation still change: this is the bound of the moment."
    return (*([moment] if drifting else []), *environment_notes(vec_env))


def _network_bound(
    decider: Decider, method: str
) -> tuple[float, NDArray[np.float64], NDArray[np.float64], str]:
    """Gamma, diagonal of the input and of the output scale, and where the bound comes from."""
    one = np.ones(1)
    net = decider.bounded
    scales = [getattr(net, name, None) for name in ("input_scale", "output_scale")]
    if net is None or any(scale is not None and scale.ndim != 1 for scale in scales):
        if method == "declared":
            raise invalid(
                "method", "'lipsdp' or 'auto' for a network without a bound of its own", "'declared'",
                "Use method='auto'.",
            )  # fmt: skip
        return lipsdp(decider.explicit()).value, one, one, "LipSDP bound of the weights"
    inside, outside = (one if scale is None else scale.detach().double().cpu().numpy() for scale in scales)
    if decider.n_quantiles:
        # Averaging N quantiles has the norm 1 / sqrt(N).
        outside = outside.max(keepdims=True) / math.sqrt(decider.n_quantiles)
    if method == "lipsdp":
        if decider.n_quantiles:
            value = lipsdp(decider.explicit(), input_scale=scales[0]).value
            return value, inside, one, "LipSDP bound of the weights"
        value = lipsdp(net, input_scale=scales[0], output_scale=scales[1]).value
        return value, inside, outside, "LipSDP bound of the weights"
    return net.lipschitz, inside, outside, "by construction"
