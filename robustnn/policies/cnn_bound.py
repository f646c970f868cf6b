"""The bound of a policy of images, in the units of raw uint8 pixels."""

from __future__ import annotations

import hashlib
import math

import torch
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from robustnn.errors import ShapeError, invalid
from robustnn.nn.conv_lbdn import ConvLBDN
from robustnn.policies.bound import Bound, Stage
from robustnn.policies.wrappers import drifts_inside, environment_notes

__all__ = ["image_bound"]

# Wrappers that pass images on unchanged, or with their axes in another order.
_PASSING = (VecCheckNan, VecMonitor, VecTransposeImage, VecVideoRecorder)
_ORDER = "Components are those of the image with its channels first, frames one after the other."


def image_bound(
    net: ConvLBDN, factor: float, output: str, vec_env: VecEnv | None = None, *, require_frozen: bool = True
) -> Bound:
    r"""Return the bound from raw images to outputs, $\gamma/255$ in plain l2 norms, with its stages.

    Args:
        net: The network, from pixels divided by `factor` to outputs.
        factor: What raw pixels are divided by, 255.
        output: "action", "logits" or "Q-values".
        vec_env: The vector environment, for its `VecFrameStack`; None for one frame.
        require_frozen: Whether to refuse environments that normalise by statistics that still change.

    Returns:
        The bound.

    Raises:
        InvalidArgumentError: If a wrapper changes images in another way.
        ShapeError: If the environment returns images of another size.
    """
    channels, height, width = net.input_shape
    frames = _frames(vec_env)
    if require_frozen and drifts_inside(vec_env):
        raise invalid(
            "vec_env", "environments with frozen statistics", "gymnasium's NormalizeObservation that updates them",
            "Leave it out: images are divided by 255.",
        )  # fmt: skip
    if vec_env is not None:
        shape = vec_env.observation_space.shape
        size = 0 if shape is None else math.prod(shape)
        if size != math.prod(net.input_shape) or channels % frames:
            raise ShapeError(
                f"vec_env: expected images of {net.input_shape} in {frames} frames, got {shape}. Pass the vector "
                "environment that the policy was trained with, and all wrappers outside it."
            )
    single = channels // frames
    names = tuple(
        f"o[{c % single},{y},{x}]" for c in range(channels) for y in range(height) for x in range(width)
    )
    stages = []
    if frames > 1:
        stages.append(
            Stage(f"{frames} stacked frames", 1.0, f"{math.sqrt(frames):.4g} for an error in every frame")
        )
    if factor != 1.0:
        stages.append(Stage("pixels in [0, 1]", 1.0 / factor, f"uint8 divided by {factor:g}"))
    stages.append(Stage("network", net.lipschitz, "by construction"))
    if output == "action":
        stages.append(Stage("clipped to limits", 1.0))
    return Bound(
        net.lipschitz, (factor,) * len(names), (1.0,) * net.out_features, frames, output, tuple(stages),
        names=names, notes=(_ORDER, *environment_notes(vec_env)), network_sha256=_digest(net),
    )  # fmt: skip


def _frames(vec_env: VecEnv | None) -> int:
    """Number of frames that an observation stacks."""
    found = 1
    while isinstance(vec_env, VecEnvWrapper):
        if type(vec_env) is VecFrameStack:
            if found > 1:
                raise invalid("vec_env", "at most one VecFrameStack", "2 nested", "Stack once.")
            found = int(vec_env.stacked_obs.n_stack)
        elif type(vec_env) is VecNormalize and vec_env.norm_obs:
            raise invalid(
                "vec_env", "images that are not normalised", "VecNormalize with norm_obs=True",
                "Pass norm_obs=False: images are divided by 255.",
            )  # fmt: skip
        elif type(vec_env) not in (*_PASSING, VecNormalize) and not getattr(
            type(vec_env), "adds_errors", False
        ):
            raise invalid(
                "vec_env", "wrappers whose effect on images is known", type(vec_env).__name__,
                "Pass None for the map from what predict receives.",
            )  # fmt: skip
        vec_env = vec_env.venv
    return found


@torch.no_grad()
def _digest(net: ConvLBDN) -> str:
    """Digest of the explicit weights, in float64."""
    found = hashlib.sha256(b"robustnn image network 1")
    for stage in net.explicit().stages:
        found.update(type(stage).__name__.encode())
        for name, tensor in stage.tensors().items():
            found.update(f"{name} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().double().contiguous().numpy().astype("<f8").tobytes())
    return found.hexdigest()
