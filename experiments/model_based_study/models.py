"""Data from the pendulum, models of its observations, and their constants."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace
from numpy.typing import NDArray

from experiments.model_based_study.config import Config, Source
from experiments.model_based_study.twin import ObservationTwin
from robustnn.closedloop import LearnedPlant, ObservedTask
from robustnn.dynamics import (
    Channels,
    Dataset,
    LipschitzNARX,
    Scaling,
    StateSpaceModel,
    fit,
    horizon_errors,
)
from robustnn.dynamics.gains import gain
from robustnn.dynamics.slope_form import step_form
from robustnn.dynamics.state_space import ExplicitStateSpace
from robustnn.envs import Pendulum
from robustnn.params import ExplicitMLP
from robustnn.runs import atomic_write_bytes

Array = NDArray[np.float64]
_NAMES, _UNITS = ("cos", "sin", "omega"), ("", "", "rad/s")
# Streams of random numbers of one seed.
_TRAINING, _VALIDATION = 0, 1


def angle_and_speed(observation: Any) -> Any:
    """Map observations (cos, sin, omega) to states (theta, omega), rad and rad/s."""
    xp = array_namespace(observation)
    theta = xp.atan2(observation[..., 1], observation[..., 0])
    return xp.stack((theta, observation[..., 2]), axis=-1)


def into_disc(observation: torch.Tensor) -> torch.Tensor:
    """Project (cos, sin) on the disc of radius one.

    The disc is convex, and cos and sin have equal weights in the norm: no two observations move apart.
    """
    direction, omega = observation.split((2, 1), dim=-1)
    # Not the norm itself, whose derivative at zero does not exist.
    square = direction.square().sum(-1, keepdim=True)
    return torch.cat((direction * square.clamp_min(1.0).rsqrt(), omega), dim=-1)


def task(plant: Pendulum | None = None) -> ObservedTask:
    """Return reward and start of the pendulum as functions of observations."""
    return ObservedTask(Pendulum() if plant is None else plant, angle_and_speed)


def record_data(config: Config, seed: int, stream: int) -> Dataset:
    """Record the pendulum from its random starts under torques that are held for random times.

    Args:
        config: Settings.
        seed: Seed.
        stream: One of the random streams of the seed.

    Returns:
        Records of `record_steps` + 1 samples: actions, and (cos, sin, omega in rad/s).
    """
    plant, steps = Pendulum(), config.record_steps + 1
    count = config.records if stream == _TRAINING else config.validation_records
    rng = np.random.default_rng([seed, stream])
    state = plant.initial(rng.random((count, plant.n_x)))
    u, y = np.zeros((count, steps, 1)), np.zeros((count, steps, plant.n_y))
    for one in u:
        begin = 0
        while begin < steps:
            length = int(rng.integers(1, config.hold + 1))
            one[begin : begin + length] = rng.uniform(-1.0, 1.0)
            begin += length
    for t in range(steps):
        y[:, t] = plant.observation(state)
        state = plant.transition(state, u[:, t])
    return Dataset.from_arrays(
        list(u), list(y), plant.dt, n_init=1, u_names=("torque / max",), y_names=_NAMES, y_units=_UNITS
    )


def pieces(data: Dataset, steps: int) -> Dataset:
    """Cut records into pieces of so many steps; a piece begins where the one before ends."""
    starts = [(one, begin) for one in data for begin in range(0, len(one) - steps, steps)]
    parts = [one.part(begin, begin + steps + 1) for one, begin in starts]
    return Dataset.from_arrays(
        [one.u for one in parts], [one.y for one in parts], data.dt, n_init=1, u_names=data.u_names,
        y_names=data.y_names, y_units=data.y_units,
    )  # fmt: skip


def fit_cell(config: Config, folder: Path, source: Source, seed: int) -> dict[str, Any]:
    """Fit one model, store it by value, and state its errors and constants.

    Returns:
        JSON values: root mean square errors on the validation data, (n_horizons x n_y), in the units of observations;
        constants as `constants` gives them; the largest gain of the Jacobian at the data, from observation to next
        observation, scaled; seconds.
    """
    start = time.perf_counter()
    train, val = record_data(config, seed, _TRAINING), record_data(config, seed, _VALIDATION)
    model = _fresh(config, source, train)
    for number, (steps, iterations) in enumerate(config.stages):
        fit(
            model, pieces(train, steps), pieces(val, steps), method="full", seed=seed, warm=number > 0,
            max_iterations=iterations, check_every=min(20, iterations), patience=max(iterations // 20, 1),
            time_budget=3600.0,
        )  # fmt: skip
    learned = LearnedPlant.of(model, task(), into_disc)
    save_model(model_path(folder, source, seed), learned.explicit)
    errors = horizon_errors(model, val, config.horizons)
    return {
        "errors": errors.tolist(),
        "constants": constants(config, learned.explicit),
        "found": _largest_slope(config, learned.explicit, train),
        "seconds": round(time.perf_counter() - start, 2),
    }


def _fresh(config: Config, source: Source, train: Dataset) -> StateSpaceModel:
    found = train.scaling()
    scale = np.array(config.observation_scale)
    scaling = Scaling(found.u_offset, np.array([config.input_scale]), found.y_offset, scale)
    channels = Channels(scaling, train.dt, train.u_names, train.y_names, train.u_units, train.y_units)
    if source.bound is None:
        return ObservationTwin(channels, config.hidden)
    return LipschitzNARX(channels, 1, 1, config.hidden, lipschitz=source.bound)


def constants(config: Config, model: ExplicitStateSpace) -> dict[str, float]:
    r"""Prove constants of a map of observations in data units.

    $$\|F(y, u) - F(y', u')\| \le L_x \|y - y'\| + L_u |u - u'|, \qquad
      \|F(y, u) - F(y', u')\|^2 \le L^2 (\|y - y'\|^2 + |(u - u') / s|^2)$$

    with norms of observations over `observation_scale`, and s the `input_scale`. They are proved from the weights, in
    the same way for models with and without a bound.

    Returns:
        "x", "u" and "joint": $L_x$; $L_u$ per unit of action; L.
    """
    scale = torch.tensor(config.observation_scale, dtype=torch.float64)
    form = step_form(model)
    n_x, n = model.n_x, model.n_x + model.n_u
    joint = form.scaled(torch.cat((scale, scale.new_full((model.n_u,), config.input_scale))), 1.0 / scale)
    alone = form.scaled(torch.cat((scale, scale.new_ones(model.n_u))), 1.0 / scale)
    parts = {"x": alone.inputs(0, n_x), "u": alone.inputs(n_x, n), "joint": joint}
    return {name: gain(part).bound for name, part in parts.items()}


def _largest_slope(config: Config, model: ExplicitStateSpace, data: Dataset) -> float:
    scale = torch.tensor(config.observation_scale, dtype=torch.float64)
    y = torch.from_numpy(np.concatenate([one.y for one in data])[::4])
    u = torch.from_numpy(np.concatenate([one.u for one in data])[::4])
    slopes = torch.func.vmap(torch.func.jacrev(lambda a, b: model.step(a, b)))(y, u)
    return float(torch.linalg.matrix_norm(slopes * scale / scale[:, None], 2).max())


def model_path(folder: Path, source: Source, seed: int) -> Path:
    """Return the file of one model in a run folder."""
    return folder / "models" / f"{source.key}_seed={seed}.npz"


def save_model(path: Path, model: ExplicitStateSpace) -> None:
    """Write a map of observations by value, in one step."""
    assert model.f is not None
    arrays = {"a": model.a.numpy(), "b": model.b.numpy(), "activation": np.array(model.f.activation)}
    for k, (weight, bias) in enumerate(zip(model.f.weights, model.f.biases, strict=True)):
        assert bias is not None
        arrays |= {f"weight_{k}": weight.numpy(), f"bias_{k}": bias.numpy()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())


def load_model(path: Path, plant: Pendulum | None = None) -> LearnedPlant:
    """Read a model as a plant in float64, with the reward of a pendulum (None for the default one)."""
    with np.load(path, allow_pickle=False) as data:
        n = sum(key.startswith("weight_") for key in data)
        weights, biases = (
            tuple(torch.from_numpy(data[f"{name}_{k}"]) for k in range(n)) for name in ("weight", "bias")
        )
        f = ExplicitMLP(weights, biases, str(data["activation"]))
        a, b = torch.from_numpy(data["a"]), torch.from_numpy(data["b"])
    n_x, n_u = b.shape
    explicit = ExplicitStateSpace(
        a, b, torch.eye(n_x, dtype=a.dtype), torch.zeros(n_x, n_u, dtype=a.dtype), f
    )
    limit = torch.ones(n_u, dtype=a.dtype)
    return LearnedPlant(explicit, task(plant), -limit, limit, into_disc)
