"""What certified decisions are computed from: a policy by value, the ball of observation errors, and its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.certify.change import OutputChange, output_change
from robustnn.certify.noise import Noise, noise_of
from robustnn.certify.path import PredictPath, predict_path
from robustnn.errors import (
    ShapeError,
    UnsupportedSpaceError,
    check_nonnegative,
    check_positive_int,
    invalid,
)
from robustnn.policies.observation import is_one_hot, parts, size_of

__all__ = ["PolicyCertificate", "certify_policy"]


@dataclass(frozen=True, eq=False)
class PolicyCertificate:
    r"""Bounds of a policy over errors of the raw observation $\|\delta / d\| \le r$, for any observation and any r.

    A certificate is about the weights and statistics it was made from, by value; make it anew after training on.

    Attributes:
        path: The predict path of the policy.
        norm: "l2" or "linf", over all components of the flat raw observation, stacked frames included.
        scale: d, one number per component in its unit; a component with 0 is taken as exact.
        unit: D: largest change of every input of the network per unit of r, shape (n_obs,).
        change: How far the outputs of the network can move per unit of r, for all observations.
        noise: The distribution around the deterministic action, if the policy has one of a known kind.
    """

    path: PredictPath
    norm: str
    scale: tuple[float, ...]
    unit: Tensor
    change: OutputChange
    noise: Noise

    @property
    def kind(self) -> str:
        """Kind of action: "box", "discrete", "multidiscrete" or "multibinary"."""
        return self.path.action_map.kind

    @property
    def growth(self) -> tuple[Tensor, Tensor]:
        """What a unit of r adds to the largest magnitude and to the rounding of the outputs, each (n_out,)."""
        return self.path.output_growth(self.unit)


def certify_policy(
    policy: Any,
    vec_env: VecEnv | None = None,
    *,
    norm: str = "l2",
    scale: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    method: str = "auto",
    iterations: int = 300,
) -> PolicyCertificate:
    r"""Certify a policy against errors $\delta$ of its raw observation with $\|\delta / d\| \le r$, for every r.

    What is certified is what `predict(..., deterministic=True)` returns, the rounding of float32 included (with
    torch's precision of matrix products as it is set now, and without autocast). With a `VecNormalize` in `vec_env`
    the raw observation is that of the plant. With a `VecFrameStack` it is the whole stack: for "linf" an error of at
    most r in every frame is one of at most r, for "l2" an error of size r in each of k frames is one of size
    $\sqrt k\,r$.

    Args:
        policy: A policy or model: of this package, or SB3's own, as for `policy_bound`.
        vec_env: The vector environment that feeds it; None for the model's own, as in `policy_bound`.
        norm: "l2" or "linf".
        scale: d, in the units of the flat raw observation (for a Dict by key): the error of every sensor that counts as
            one. A component with 0 is taken as exact. Ones if None, and 0 for one-hot coded discrete quantities.
        method: "declared" for what follows from the bound of `policy_bound` alone; "auto" for bounds of all
            directions of the output from the multipliers of that bound; "lipsdp" for a search for every pair of
            choices and every action component (about a second each).
        iterations: Steps of LipSDP, where it is used.

    Returns:
        The certificate, on the device of the policy.

    Raises:
        InvalidArgumentError: If an argument is not acceptable, a part of the policy is of unknown gain, or the
            statistics of a normalisation still change.
        UnsupportedSpaceError: If no component of the observation has a positive scale.

    Example:
        >>> from stable_baselines3 import DQN
        >>> from robustnn.policies import LBDNDQNPolicy
        >>> model = DQN(LBDNDQNPolicy, "CartPole-v1", policy_kwargs=dict(lipschitz=50.0), device="cpu")
        >>> certificate = certify_policy(model, norm="linf", scale=(0.1, 0.5, 0.05, 0.5))
        >>> certificate.kind
        'discrete'
    """
    if norm not in ("l2", "linf"):
        raise invalid("norm", "'l2' or 'linf'", repr(norm), "Choose one of these.")
    if method not in ("declared", "auto", "lipsdp"):
        raise invalid("method", "'declared', 'auto' or 'lipsdp'", repr(method), "Choose one of these.")
    check_positive_int("iterations", iterations)
    path = predict_path(policy, vec_env)
    checked = _checked_scale(scale, path.observation_space)
    unit = path.std.new_tensor(checked) / path.std
    outside = unit.new_tensor(path.bound.action_scale) / path.half_range()
    relative = unit * path.std / unit.new_tensor(path.bound.observation_scale)
    gain = path.bound.lipschitz * (relative.amax() if norm == "l2" else relative.norm()) * (1.0 + 1e-12)
    change = output_change(
        path.network,
        unit,
        norm,
        declared=torch.diag(gain * outside),
        output_scale=outside,
        multipliers=path.multipliers,
        groups=path.action_map.choices or (1,) * path.network.out_features,
        method=method,
        iterations=iterations,
    )
    return PolicyCertificate(path, norm, checked, unit, change, noise_of(policy))


def _checked_scale(
    scale: Sequence[float] | Mapping[str, Sequence[float]] | None, space: spaces.Space
) -> tuple[float, ...]:
    values = [0.0 if jumps else 1.0 for jumps in is_one_hot(space)]
    if isinstance(scale, Mapping):
        keys = [key for key, _ in parts(space) if key]
        unknown = [key for key in scale if key not in keys]
        if unknown or not keys:
            raise invalid(
                "scale", f"keys of the observation space, {keys}" if keys else "a sequence of numbers",
                unknown or dict(scale), "Name the entries of a Dict space.",
            )  # fmt: skip
        start = 0
        for key, part in parts(space):
            size = size_of(part)
            if key in scale:
                values[start : start + size] = _numbers(f"scale[{key!r}]", scale[key], size)
            start += size
    elif scale is not None:
        values = _numbers("scale", scale, len(values))
    if not any(values):
        raise UnsupportedSpaceError(
            "scale: expected a component that can be in error, got zeros only (discrete observations have none by "
            "default). No small change of a one-hot code exists; see Bound.action_change for jumps."
        )
    return tuple(values)


def _numbers(name: str, values: Sequence[float], size: int) -> list[float]:
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise invalid(name, f"a sequence of {size} numbers >= 0", repr(values), "One number per component.")
    if len(values) != size:
        raise ShapeError(
            f"{name}: expected {size} numbers, one per component, got {len(values)}. Count them."
        )
    return [check_nonnegative(f"{name}[{k}]", value) for k, value in enumerate(values)]
