"""What a model keeps of the data it was made for: scaling, sampling time, names and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustnn.dynamics.data import Dataset, Scaling
from robustnn.errors import ShapeError, check_finite, check_positive, invalid

__all__ = ["Channels"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Channels:
    """Inputs and outputs of a model.

    Attributes:
        scaling: Offsets and scales; inside, the model works with (u - u_offset) / u_scale and the like.
        dt: Sampling time in s.
        u_names: Names of the inputs.
        y_names: Names of the outputs.
        u_units: Their units.
        y_units: Their units.
    """

    scaling: Scaling
    dt: float
    u_names: tuple[str, ...]
    y_names: tuple[str, ...]
    u_units: tuple[str, ...]
    y_units: tuple[str, ...]

    @classmethod
    def of(cls, data: Dataset | Channels) -> Channels:
        """Return the channels of a data set, scaled by their mean and standard deviation in it.

        Raises:
            InvalidArgumentError: If it is no data set, or a channel is constant in it.
        """
        if isinstance(data, Channels):
            return data
        if not isinstance(data, Dataset):
            raise invalid(
                "data", "a Dataset or Channels", type(data).__name__, "Make one with Dataset.from_arrays."
            )
        data.check_channels()
        labels = (data.u_names, data.y_names, data.u_units, data.y_units)
        return cls(data.scaling(), data.dt, *labels)

    @property
    def n_u(self) -> int:
        """Number of inputs."""
        return len(self.u_names)

    @property
    def n_y(self) -> int:
        """Number of outputs."""
        return len(self.y_names)

    def scaled_u(self, u: ArrayLike) -> Array:
        """Return inputs (..., n_u) in scaled units.

        Raises:
            ShapeError: If the last axis is another one.
            NonFiniteError: If a value is NaN or infinite.
        """
        return (_checked("u", u, self.n_u) - self.scaling.u_offset) / self.scaling.u_scale

    def scaled_y(self, y: ArrayLike) -> Array:
        """Return outputs (..., n_y) in scaled units; errors as in `scaled_u`."""
        return (_checked("y", y, self.n_y) - self.scaling.y_offset) / self.scaling.y_scale

    def physical_y(self, y: Array) -> Array:
        """Return scaled outputs (..., n_y) in the units of the data."""
        return self.scaling.y_offset + self.scaling.y_scale * y

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, exact."""
        labels = {name: list(getattr(self, name)) for name in ("u_names", "y_names", "u_units", "y_units")}
        return {"scaling": self.scaling.to_dict(), "dt": self.dt, **labels}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Channels:
        """Return the channels that `to_dict` has written."""
        labels = (tuple(values[name]) for name in ("u_names", "y_names", "u_units", "y_units"))
        return cls(Scaling.from_dict(values["scaling"]), check_positive("dt", values["dt"]), *labels)


def _checked(name: str, values: ArrayLike, size: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 1 or array.shape[-1] != size:
        raise ShapeError(
            f"{name}: expected shape (..., {size}), got {array.shape}. Channels are the last axis."
        )
    check_finite(name, array)
    return array
