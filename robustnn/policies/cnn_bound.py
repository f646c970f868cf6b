"""The bound of a policy of images, in the units of raw uint8 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
from robustnn.policies.bound import Bound, Stage
from robustnn.policies.wrappers import drifts_inside, environment_notes

__all__ = ["ImageChain", "image_chain"]

# Wrappers that pass images on unchanged, or with their axes in another order.
_PASSING = (VecCheckNan, VecMonitor, VecTransposeImage, VecVideoRecorder)
_ORDER = "Components are those of the image with its channels first, frames one after the other."


@dataclass(frozen=True)
class ImageChain:
    """What stands around the network of a policy of images.

    Attributes:
        shape: Channels of all frames, height and width of the images.
        frames: Number of frames that an observation stacks.
        white: What raw pixels are divided by.
        output: "action", "logits" or "Q-values".
        notes: What else there is to know.
    """

    shape: tuple[int, int, int]
    frames: int
    white: float
    output: str
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The pixel of a single frame that every component comes from, `o[channel,row,column]`."""
        channels, height, width = self.shape
        single = channels // self.frames
        frame = tuple(f"o[{c},{y},{x}]" for c in range(single) for y in range(height) for x in range(width))
        return frame * self.frames

    def bound(self, gamma: float, n_out: int, note: str, network_sha256: str = "") -> Bound:
        r"""Return the bound from raw images to outputs, $\gamma/255$ in plain l2 norms, with its stages.

        Args:
            gamma: Bound of the network, per pixel from black to white.
            n_out: Number of outputs.
            note: Where gamma comes from.
            network_sha256: Digest of the `ImageMap` that the bound is about, or "".

        Returns:
            The bound.
        """
        stages = []
        if self.frames > 1:
            stacked = f"{math.sqrt(self.frames):.4g} for an error in every frame"
            stages.append(Stage(f"{self.frames} stacked frames", 1.0, stacked))
        if self.white != 1.0:
            stages.append(Stage("pixels in [0, 1]", 1.0 / self.white, f"uint8 divided by {self.white:g}"))
        stages.append(Stage("network", gamma, note))
        if self.output == "action":
            stages.append(Stage("clipped to limits", 1.0))
        return Bound(
            gamma, (self.white,) * math.prod(self.shape), (1.0,) * n_out, self.frames, self.output, tuple(stages),
            names=self.names, notes=(_ORDER, *self.notes), network_sha256=network_sha256,
        )  # fmt: skip


def image_chain(
    shape: tuple[int, int, int],
    white: float,
    output: str,
    vec_env: VecEnv | None = None,
    *,
    require_frozen: bool = True,
) -> ImageChain:
    """Return what stands around the network of a policy of images.

    Args:
        shape: Channels, height and width of the images that the network takes.
        white: What raw pixels are divided by, 255.
        output: "action", "logits" or "Q-values".
        vec_env: The vector environment, for its `VecFrameStack`; None for one frame.
        require_frozen: Whether to refuse environments that normalise by statistics that still change.

    Returns:
        The chain.

    Raises:
        InvalidArgumentError: If a wrapper changes images in another way.
        ShapeError: If the environment returns images of another size.
    """
    if vec_env is not None and not isinstance(vec_env, VecEnv):
        raise invalid("vec_env", "a VecEnv or None", type(vec_env).__name__, "Pass model.get_env().")
    frames, axis = _frames(vec_env)
    if require_frozen and drifts_inside(vec_env):
        raise invalid(
            "vec_env", "environments with frozen statistics", "gymnasium's NormalizeObservation that updates them",
            "Leave it out: images are divided by 255.",
        )  # fmt: skip
    if vec_env is not None:
        found = vec_env.observation_space.shape
        size = 0 if found is None else math.prod(found)
        if size != math.prod(shape) or shape[0] % frames:
            raise ShapeError(
                f"vec_env: expected images of {shape} in {frames} frames, got {found}. Pass the vector "
                "environment that the policy was trained with, and all wrappers outside it."
            )
        channels = [k for k, order in ((0, shape), (-1, (*shape[1:], shape[0]))) if found == order]
        if frames > 1 and axis not in channels:
            raise invalid(
                "vec_env", "frames stacked along the channels", f"VecFrameStack along axis {axis} of images {found}",
                'Pass channels_order="first" or "last" to VecFrameStack as the images have them.',
            )  # fmt: skip
    return ImageChain(shape, frames, white, output, environment_notes(vec_env))


def _frames(vec_env: VecEnv | None) -> tuple[int, int]:
    """Number of frames that an observation stacks, and along which axis of what the outermost wrapper returns."""
    found, axis, turned = 1, 0, False
    while isinstance(vec_env, VecEnvWrapper):
        if type(vec_env) is VecFrameStack:
            if found > 1:
                raise invalid("vec_env", "at most one VecFrameStack", "2 nested", "Stack once.")
            found = int(vec_env.stacked_obs.n_stack)
            last = vec_env.stacked_obs.repeat_axis != 0
            axis = 0 if turned == last else 1 if turned else -1
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
        turned = turned or (type(vec_env) is VecTransposeImage and not vec_env.skip)
        vec_env = vec_env.venv
    return found, axis
