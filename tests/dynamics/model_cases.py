"""One table of all dynamics models, and what the tests of their contracts share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from robustnn.bounds import lower_bound
from robustnn.dynamics import (
    ContinuousStateSpace,
    Dataset,
    LinearStateSpace,
    LipschitzNARX,
    LipschitzStateSpace,
    ResidualStateSpace,
    StateSpaceModel,
    UnconstrainedStateSpace,
)

EPS = np.finfo(np.float64).eps
# Rounding of a bound: the conversion of a network and one step of a model.
ROUNDING = 1.0 + 1e3 * EPS


def system(radius: float = 0.9) -> LinearStateSpace:
    """Three states with real and complex eigenvalues, two inputs, two outputs, offsets and units."""
    rng = np.random.default_rng(5)
    basis = np.eye(3) + 0.3 * rng.normal(size=(3, 3))
    angle = 0.4
    block = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    a = np.zeros((3, 3))
    a[:2, :2], a[2, 2] = radius * block, 0.6 * radius
    return LinearStateSpace(
        basis @ a @ np.linalg.inv(basis), rng.normal(size=(3, 2)), rng.normal(size=(2, 3)), np.zeros((2, 2)),
        np.array([1.0, -2.0]), np.array([30.0, -4.0]), 0.1,
    )  # fmt: skip


def record(steps: int = 400) -> Dataset:
    rng = np.random.default_rng(0)
    u = np.array([1.5, 0.2]) + np.array([2.0, 0.3]) * rng.normal(size=(steps, 2))
    return Dataset.from_arrays(u, system().simulate(u), 0.1, n_init=20, y_units=["K", "V"])


DATA = record()
U = DATA.experiments[0].u
Y = DATA.experiments[0].y

MADE: dict[str, Callable[[], StateSpaceModel]] = {
    "lipschitz": lambda: LipschitzStateSpace(DATA, 3, (8,), lipschitz_x=0.99),
    "lipschitz deep": lambda: LipschitzStateSpace(DATA, 3, (8, 6), lipschitz_x=1.2, activation="relu"),
    "lipschitz all": lambda: LipschitzStateSpace(
        DATA, 3, (5,), lipschitz_x=0.99, lipschitz_u=8.0, feedthrough=True, output_hidden=(4,), output_lipschitz=0.5
    ),
    "unconstrained": lambda: UnconstrainedStateSpace(DATA, 3, (8,)),
    "unconstrained deep": lambda: UnconstrainedStateSpace(
        DATA, 3, (8, 6), activation="sigmoid", feedthrough=True, output_hidden=(4,)
    ),
    "residual": lambda: ResidualStateSpace(DATA, 3, (8,), lipschitz=0.3),
    "residual deep": lambda: ResidualStateSpace(DATA, 3, (8, 6), lipschitz=0.3, output_hidden=(4, 4)),
    "continuous": lambda: ContinuousStateSpace(DATA, 3, (8,), lipschitz=0.2),
    "continuous deep": lambda: ContinuousStateSpace(DATA, 3, (8, 6), lipschitz=0.2, activation="softplus"),
    "narx": lambda: LipschitzNARX(DATA, 2, 3, (8,), lipschitz=2.5),
    "narx deep": lambda: LipschitzNARX(DATA, 2, 1, (8, 6), lipschitz=2.5),
}  # fmt: skip
BOUNDED = [name for name in MADE if not name.startswith("unconstrained")]
# Models that start from the states of a subspace model.
WITH_STATES = [name for name in MADE if not name.startswith("narx")]


def started(name: str, seed: int = 0) -> StateSpaceModel:
    model = MADE[name]()
    model.start_(None if name.startswith("narx") else system(), DATA, seed)
    return model


def moved(name: str, size: float, seed: int = 0) -> StateSpaceModel:
    """A model whose parameters are anything."""
    model = started(name, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def step_of(model: StateSpaceModel) -> Callable[[Tensor], Tensor]:
    """The state map by value, of (x, u)."""
    explicit = model.explicit().detach()
    return lambda xi: explicit.step(xi[:, : model.n_x], xi[:, model.n_x :])


def points(model: StateSpaceModel, count: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, model.n_x + model.n_u, generator=generator, dtype=torch.float64)


def gains(model: StateSpaceModel, xi: Tensor) -> tuple[float, float]:
    """Gains of the state map to the state alone and to the input alone, found by gradient ascent."""
    explicit = model.explicit().detach()
    x, u = xi.split((model.n_x, model.n_u), dim=1)
    to_x = lower_bound(lambda v: explicit.step(v, u[:1].expand(len(v), -1)), x, iterations=60, lr=0.05)
    to_u = lower_bound(lambda v: explicit.step(x[:1].expand(len(v), -1), v), u, iterations=60, lr=0.05)
    return to_x.value, to_u.value
