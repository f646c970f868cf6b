"""The chain from raw observation to action as a bound lists it: one stage for every map, with its largest gain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustnn.policies.bound import Stage

__all__ = ["Chain"]


@dataclass(frozen=True, eq=False)
class Chain:
    """What stands around the network of a policy.

    Attributes:
        names: The sensor that every observation component comes from.
        one_hot: For every observation component whether it codes a discrete quantity, shape (n_obs,).
        half_range: What squashing multiplies every action component by, shape (n_out,); ones where nothing is squashed.
        output: What the network computes.
        frames: Number of frames that the observation stacks.
        std: Standard deviations that the raw observation is divided by, shape (n_obs,); None for none.
        input_scale: Scale that the observation is divided by afterwards, shape (n_obs,); None if it is in the network.
        mean_clip: Limit of the network's output before tanh, or None.
        squash: Whether tanh and rescaling follow.
    """

    names: tuple[str, ...]
    one_hot: NDArray[np.bool_]
    half_range: NDArray[np.float64]
    output: str
    frames: int = 1
    std: NDArray[np.float64] | None = None
    input_scale: NDArray[np.float64] | None = None
    mean_clip: float | None = None
    squash: bool = False

    @property
    def speaks_of(self) -> NDArray[np.bool_]:
        """The components whose gain counts: the continuous ones, or all of them if there are none."""
        return self.one_hot if self.one_hot.all() else ~self.one_hot

    def stages(self, network: Stage) -> tuple[Stage, ...]:
        """Return the stages in order, from the observation to the action.

        Args:
            network: That of the network.
        """
        stages = []
        if self.frames > 1:
            stacked = f"{math.sqrt(self.frames):.4g} for an error in every frame"
            stages.append(Stage(f"{self.frames} stacked frames", 1.0, stacked))
        if self.std is not None:
            stages.append(self._divided("VecNormalize", self.std, "std"))
        if self.one_hot.any():
            stages.append(Stage("one-hot codes", 1.0, "discrete parts jump; the bound speaks of the others"))
        if self.input_scale is not None and (self.input_scale != 1.0).any():
            stages.append(self._divided("observation scale", self.input_scale, "scale"))
        stages.append(network)
        if self.mean_clip is not None:
            stages.append(Stage("clipped mean", 1.0, f"to +-{self.mean_clip:g}"))
        if self.squash:
            stages.append(Stage("tanh, rescaled", float(self.half_range.max()), "half the action range"))
        elif self.output == "action":
            stages.append(Stage("clipped to limits", 1.0))
        return tuple(stages)

    def _divided(self, name: str, by: NDArray[np.float64], word: str) -> Stage:
        k = int(np.where(self.speaks_of, by, np.inf).argmin())
        return Stage(name, float(1.0 / by[k]), f"largest for {self.names[k]}, of {word} {by[k]:.4g}")
