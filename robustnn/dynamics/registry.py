"""The classes of dynamics models by name."""

from __future__ import annotations

from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.continuous import ContinuousStateSpace
from robustnn.dynamics.models import LipschitzStateSpace
from robustnn.dynamics.narx import LipschitzNARX
from robustnn.dynamics.residual import ResidualStateSpace
from robustnn.dynamics.unconstrained import UnconstrainedStateSpace

__all__ = ["MODELS", "model_name"]

# Names are written into model files: one that has been used keeps its meaning.
MODELS: dict[str, type[StateSpaceModel]] = {
    "lipschitz": LipschitzStateSpace,
    "unconstrained": UnconstrainedStateSpace,
    "residual": ResidualStateSpace,
    "continuous": ContinuousStateSpace,
    "narx": LipschitzNARX,
}


def model_name(model: StateSpaceModel) -> str | None:
    """Return the name under which a model's own class is registered, None if it is not."""
    return next((name for name, one in MODELS.items() if one is type(model)), None)
