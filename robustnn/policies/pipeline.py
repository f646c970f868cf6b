"""What surrounds the network of a deployed policy: normalisation, action limits, and the bound of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from robustnn.bounds import Certificate
from robustnn.errors import UnsupportedSpaceError
from robustnn.policies.bound import Bound, Stage
from robustnn.policies.normalization import Normalization
from robustnn.policies.observation import is_one_hot
from robustnn.policies.options import n_outputs

__all__ = ["Pipeline", "in_two_parts"]


@dataclass(frozen=True, eq=False)
class Pipeline:
    """What surrounds the network of a deployed policy, in the numbers that are shipped.

    Attributes:
        observation_space: Space of the raw observation.
        action_space: Space of the action.
        output: What the network computes: "action", "logits", "Q-values" or "mean quantiles".
        normalization: Applied to the flat raw observation first, float64; None for none.
        squash: Whether tanh and rescaling to the action limits follow; otherwise actions are clipped.
        mean_clip: Limit of the network's output before tanh, or None.
        frames: Number of frames that the observation stacks.
        names: The sensor that every observation component comes from.
        notes: What else there is to know of the observation.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    output: str
    normalization: Normalization | None = None
    squash: bool = False
    mean_clip: float | None = None
    frames: int = 1
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def choices(self) -> tuple[int, ...]:
        """Numbers of scores that belong together, ones for MultiBinary; empty for continuous actions."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return (int(space.n),)
        if isinstance(space, spaces.MultiDiscrete):
            return tuple(int(n) for n in space.nvec)
        return (1,) * n_outputs(space) if isinstance(space, spaces.MultiBinary) else ()

    @property
    def kind(self) -> str:
        """Kind of the action: "box", "discrete", "multidiscrete" or "multibinary"."""
        kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        return next(kind.__name__.lower() for kind in kinds if isinstance(self.action_space, kind))

    def limits(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Lower limit, upper limit and half range of every action component in float32; None if discrete.

        Limits that float32 cannot hold are rounded inwards where actions are clipped.

        Raises:
            UnsupportedSpaceError: If actions are squashed to limits that are not finite, or that are one.
        """
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return None
        low, high = (np.asarray(limit).reshape(-1).astype(np.float64) for limit in (space.low, space.high))
        half = 0.5 * (high - low)
        if self.squash and not (np.isfinite(half) & (half > 0.0)).all():
            raise UnsupportedSpaceError(
                f"action_space: expected a Box with finite limits low < high where actions are squashed, got {space}. "
                "Bound the actions, and leave out components that cannot move."
            )
        low32, high32, half32 = (values.astype(np.float32) for values in (low, high, half))
        if not self.squash:
            low32 = np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32)
            high32 = np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32)
        return torch.from_numpy(low32), torch.from_numpy(high32), torch.from_numpy(half32)

    def constants(self) -> dict[str, Tensor | None]:
        """Return the constants of the module in float32 by name; None where there is no such step.

        The mean of the normalisation comes in two parts, which keep its digits where it is large beside the
        deviation.
        """
        constants: dict[str, Tensor | None] = dict.fromkeys(("mean", "mean_rest", "std", "clip"))
        if self.normalization is not None:
            mean, rest = in_two_parts(self.normalization.mean)
            clip = torch.as_tensor(self.normalization.clip, dtype=torch.float32).expand_as(mean).clone()
            std = self.normalization.std.float()
            constants = {
                "mean": mean,
                "mean_rest": rest,
                "std": std,
                "clip": clip if clip.isfinite().any() else None,
            }
        limits = self.limits() or (None, None, None)
        return {**constants, **dict(zip(("low", "high", "half_range"), limits, strict=True))}

    def bound(self, certificate: Certificate, network_sha256: str, statistics_sha256: str) -> Bound:
        """Compose the bound from raw observation to action.

        Args:
            certificate: That of the network, with diagonal scales.
            network_sha256: Digest of `ActionMap` for the bound.
            statistics_sha256: Digest of `ActionMap` for the bound.

        Returns:
            The bound with its stages.
        """
        inside, outside = certificate.input_scale.numpy(), certificate.output_scale.numpy()
        std = np.ones(len(inside)) if self.normalization is None else self.normalization.std.numpy()
        limits = self.limits()
        half = np.ones(len(outside))
        if limits is not None and self.squash:
            half = limits[2].numpy().astype(np.float64)
        one_hot = is_one_hot(self.observation_space)
        speaks = ~one_hot if not one_hot.all() else one_hot
        gain = certificate.bound * float(outside.max() / inside[speaks].min())
        return Bound(
            certificate.bound,
            tuple((inside * std).tolist()),
            tuple((outside * half).tolist()),
            self.frames,
            self.output,
            self._stages(gain, std, half, speaks),
            tuple(one_hot.tolist()) if one_hot.any() else (),
            self.names,
            self.notes,
            network_sha256,
            statistics_sha256,
        )

    def _stages(
        self, gain: float, std: NDArray[np.float64], half: NDArray[np.float64], speaks: NDArray[np.bool_]
    ) -> tuple[Stage, ...]:
        stages = []
        if self.frames > 1:
            stages.append(Stage(f"{self.frames} stacked frames", 1.0))
        if self.normalization is not None:
            k = int(np.where(speaks, std, np.inf).argmin())
            note = f"largest for {self.names[k]}, of std {std[k]:.4g}"
            stages.append(Stage("VecNormalize", float(1.0 / std[k]), note))
        if is_one_hot(self.observation_space).any():
            stages.append(Stage("one-hot codes", 1.0, "discrete parts jump; the bound speaks of the others"))
        stages.append(Stage("network", gain, "certified, with the observation scale"))
        if self.mean_clip is not None:
            stages.append(Stage("clipped mean", 1.0, f"to +-{self.mean_clip:g}"))
        if self.squash:
            stages.append(Stage("tanh, rescaled", float(half.max()), "half the action range"))
        elif self.output == "action":
            stages.append(Stage("clipped to limits", 1.0))
        return tuple(stages)


def in_two_parts(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float32 tensors whose sum is a float64 tensor, to about 48 binary digits."""
    first = mean.float()
    return first, (mean - first.double()).float()
