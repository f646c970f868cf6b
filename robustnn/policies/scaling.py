r"""The bound in the units of the task: from the raw observation to the action that the plant receives.

The deterministic predict path of a policy is a chain of maps. With diagonal scales it stays a weighted
Lipschitz bound, which is never worse than the product of the plain factors:

=====================================  ==========================================================
stage                                  effect on $\|\Delta\|$
=====================================  ==========================================================
`VecFrameStack` of k frames            an error in every frame counts $\sqrt k$ times one error
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
from robustnn.errors import UnsupportedSpaceError, invalid
from robustnn.policies.action_map import action_map
from robustnn.policies.bound import Bound, Stage
from robustnn.policies.networks import Decider, check_methods, decider_of
from robustnn.policies.normalization import is_drifting, normalization_of
from robustnn.policies.observation import is_one_hot
from robustnn.policies.wrappers import drifts_inside, environment_notes, frames_of, sensor_names

__all__ = ["Bound", "Stage", "policy_bound"]


def policy_bound(
    policy: Any, vec_env: VecEnv | None = None, *, require_frozen: bool = True, method: str = "auto"
) -> Bound:
    """Compose the bound from raw observation to action from the live objects.

    Args:
        policy: A policy or a model: of this package, or SB3's own (PPO, A2C, TRPO, MaskablePPO, SAC, TD3, DDPG, TQC,
            DQN, QRDQN).
        vec_env: The vector environment that feeds it, for its `VecNormalize` and `VecFrameStack`. A raw observation
            is what the environments inside it return; what gymnasium wrappers do before is part of the plant, and
            is noted where it can be seen.
        require_frozen: Whether to refuse statistics that still change. Without it the bound is that of this moment,
            and carries no digests.
        method: "declared" for the bound that the network's construction guarantees, "lipsdp" for the tightest one
            computed from its weights (seconds for two layers of 64, up to a minute for 400 and 300), "auto" for the
            first where there is one.

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
    owner, policy = policy, getattr(policy, "policy", policy)
    decider = decider_of(policy)
    check_methods(policy)
    drifting = is_drifting(vec_env)
    if require_frozen:
        _check_frozen(vec_env, drifting)
    space = policy.observation_space
    normalization = normalization_of(vec_env, space)
    names = sensor_names(vec_env, space)
    one_hot = is_one_hot(space)
    speaks = ~one_hot if not one_hot.all() else one_hot
    frames = frames_of(vec_env)
    input_scale = decider.scale().double().cpu().numpy()
    scale = input_scale
    stages: list[Stage] = []

    def divide(name: str, by: NDArray[np.float64], word: str) -> None:
        k = int(np.where(speaks, by, np.inf).argmin())
        stages.append(Stage(name, float(1.0 / by[k]), f"largest for {names[k]}, of {word} {by[k]:.4g}"))

    if frames > 1:
        stages.append(
            Stage(f"{frames} stacked frames", 1.0, f"{math.sqrt(frames):.4g} for an error in every frame")
        )
    if normalization is not None:
        std = normalization.std.numpy()
        scale = input_scale * std
        divide("VecNormalize", std, "std")
    if one_hot.any():
        stages.append(Stage("one-hot codes", 1.0, "discrete parts jump; the bound speaks of the others"))
    if (input_scale != 1.0).any():
        divide("observation scale", input_scale, "scale")
    gamma, inside, outside, note = _network_bound(decider, method)
    half = _half_ranges(policy.action_space, decider)
    stages.append(Stage("network", gamma * float(outside.max() / inside.min()), note))
    if decider.mean_clip is not None:
        stages.append(Stage("clipped mean", 1.0, f"to +-{decider.mean_clip:g}"))
    if decider.squash:
        stages.append(Stage("tanh, rescaled", float(half.max()), "half the action range"))
    elif decider.output == "action":
        stages.append(Stage("clipped to limits", 1.0))
    policy_map = action_map(policy, vec_env) if require_frozen else None
    observation_scale, action_scale = scale * inside, np.broadcast_to(outside * half, half.shape)
    for name, values in (("observation_scale", observation_scale), ("action_scale", action_scale)):
        if not (np.isfinite(values) & (values > 0.0)).all():
            raise invalid(name, "positive numbers", values.tolist(), "A scale or the statistics are damaged.")
    return Bound(
        gamma,
        tuple(observation_scale.tolist()),
        tuple(action_scale.tolist()),
        frames,
        decider.output,
        tuple(stages),
        tuple(one_hot.tolist()) if one_hot.any() else (),
        names,
        _notes(owner, vec_env, drifting or drifts_inside(vec_env)),
        "" if policy_map is None else policy_map.network_sha256,
        "" if policy_map is None else policy_map.statistics_sha256,
    )


def _check_frozen(vec_env: VecEnv | None, drifting: bool) -> None:
    if drifting:
        raise invalid(
            "vec_env", "VecNormalize with frozen statistics", "training=True",
            "Its next observation changes the bound: set vec_env.training = False.",
        )  # fmt: skip
    if drifts_inside(vec_env):
        raise invalid(
            "vec_env", "environments with frozen statistics", "gymnasium's NormalizeObservation that updates them",
            "What a sensor's error amounts to changes with every step: use VecNormalize, which the bound accounts for, "
            "or set update_running_mean = False on the wrapper of every environment.",
        )  # fmt: skip


def _notes(owner: Any, vec_env: VecEnv | None, drifting: bool) -> tuple[str, ...]:
    notes = []
    if drifting:
        notes.append("The statistics of the normalisation still change: this is the bound of the moment.")
    find = getattr(owner, "get_vec_normalize_env", None) if vec_env is None else None
    wrapper = None if find is None else find()
    if wrapper is not None and wrapper.norm_obs:
        notes.append(
            "An observation is what predict receives, normalised: pass vec_env for that of the plant."
        )
    return (*notes, *environment_notes(vec_env))


def _network_bound(
    decider: Decider, method: str
) -> tuple[float, NDArray[np.float64], NDArray[np.float64], str]:
    """Gamma, diagonal of the input and of the output scale, and where the bound comes from."""
    one = np.ones(1)
    net = decider.lbdn
    diagonal = net is not None and all(
        scale is None or scale.ndim == 1 for scale in (net.input_scale, net.output_scale)
    )
    if net is None or not diagonal:
        if method == "declared":
            raise invalid(
                "method", "'lipsdp' or 'auto' for a network without a bound of its own", "'declared'",
                "Use method='auto'.",
            )  # fmt: skip
        return lipsdp(decider.explicit()).value, one, one, "LipSDP bound of the weights"
    inside, outside = (
        one if scale is None else scale.detach().double().cpu().numpy()
        for scale in (net.input_scale, net.output_scale)
    )
    if decider.n_quantiles:
        # Averaging N quantiles has the norm 1 / sqrt(N).
        outside = outside.max(keepdims=True) / math.sqrt(decider.n_quantiles)
    if method == "lipsdp":
        if decider.n_quantiles:
            value = lipsdp(decider.explicit(), input_scale=net.input_scale).value
            return value, inside, one, "LipSDP bound of the weights"
        value = lipsdp(net, input_scale=net.input_scale, output_scale=net.output_scale).value
        return value, inside, outside, "LipSDP bound of the weights"
    return net.lipschitz, inside, outside, "by construction"


def _half_ranges(space: spaces.Space, decider: Decider) -> NDArray[np.float64]:
    """Half range of each action component if actions are squashed, else ones; one entry per output."""
    if not isinstance(space, spaces.Box) or not decider.squash:
        return np.ones(decider.n_outputs)
    low, high = (np.asarray(limit).reshape(-1) for limit in (space.low, space.high))
    with np.errstate(over="ignore", invalid="ignore"):
        half = 0.5 * (high - low).astype(
            np.float64
        )  # the difference in the dtype of the space, as SB3 takes it
    if np.issubdtype(space.dtype, np.integer) and (2.0 * half != high.astype(np.float64) - low).any():
        raise UnsupportedSpaceError(
            f"action_space: expected a range that its dtype can hold where actions are squashed, got {space}. SB3 "
            "rescales in this dtype, and integers overflow: use float32."
        )
    if not (np.isfinite(half) & (half > 0.0)).all():
        raise UnsupportedSpaceError(
            f"action_space: expected a Box with finite limits low < high where actions are squashed, got {space}. "
            "Bound the actions, and leave out components that cannot move."
        )
    return half
