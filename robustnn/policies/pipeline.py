"""What surrounds the network of a deployed policy: normalisation, action limits, and the bound of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robustnn.bounds import Certificate
from robustnn.policies.action_range import half_range
from robustnn.policies.bound import Bound, Stage
from robustnn.policies.normalization import Normalization
from robustnn.policies.observation import is_one_hot
from robustnn.policies.options import n_outputs
from robustnn.policies.stages import Chain

__all__ = ["Pipeline", "has_two_scores", "in_two_parts"]


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
        paired: Whether each of several binary actions is the greater of two scores, as in MaskablePPO, which is a
            choice of a MultiDiscrete of twos.
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
    paired: bool = False

    @property
    def choices(self) -> tuple[int, ...]:
        """Numbers of scores that belong together, ones or twos for MultiBinary; empty for continuous actions."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return (int(space.n),)
        if isinstance(space, spaces.MultiDiscrete):
            return tuple(int(n) for n in space.nvec)
        return (2 if self.paired else 1,) * n_outputs(space) if isinstance(space, spaces.MultiBinary) else ()

    @property
    def n_outputs(self) -> int:
        """Number of outputs of the network: action components, or scores."""
        return sum(self.choices) or n_outputs(self.action_space)

    @property
    def kind(self) -> str:
        """Kind of the action: "box", "discrete", "multidiscrete" or "multibinary"; see `paired`."""
        if self.paired:
            return "multidiscrete"
        kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        return next(kind.__name__.lower() for kind in kinds if isinstance(self.action_space, kind))

    def limits(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Lower limit, upper limit and half range of every action component in float32; None if discrete.

        The half range is that of squashed actions, and ones for others.
        Limits that float32 cannot hold are rounded inwards where actions are clipped.

        Raises:
            UnsupportedSpaceError: If actions are squashed to no range; see `half_range`.
        """
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return None
        low, high = (np.asarray(limit).reshape(-1).astype(np.float64) for limit in (space.low, space.high))
        half = half_range(space) if self.squash else np.ones_like(low)
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
        limits = self.limits()
        chain = Chain(
            self.names,
            is_one_hot(self.observation_space),
            limits[2].double().numpy() if limits is not None and self.squash else np.ones(len(outside)),
            self.output,
            self.frames,
            None if self.normalization is None else self.normalization.std.numpy(),
            None,
            self.mean_clip,
            self.squash,
        )
        gain = certificate.bound * float(outside.max() / inside[chain.speaks_of].min())
        return Bound(
            certificate.bound,
            tuple((inside if chain.std is None else inside * chain.std).tolist()),
            tuple((outside * chain.half_range).tolist()),
            self.frames,
            self.output,
            chain.stages(Stage("network", gain, "certified, with the observation scale")),
            tuple(chain.one_hot.tolist()) if chain.one_hot.any() else (),
            self.names,
            self.notes,
            network_sha256,
            statistics_sha256,
        )


def has_two_scores(space: spaces.Space, n_out: int) -> bool:
    """Whether a network of as many outputs has two scores for each of several binary actions; see `Pipeline`."""
    return isinstance(space, spaces.MultiBinary) and n_out == 2 * n_outputs(space)


def in_two_parts(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float32 tensors whose sum is a float64 tensor, to about 48 binary digits."""
    first = mean.float()
    return first, (mean - first.double()).float()
