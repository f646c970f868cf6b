"""The data of a task: a public benchmark, or a record of one of the project's own plants with noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustnn.dynamics import BENCHMARKS, Benchmark, Dataset, load_benchmark
from robustnn.envs import TwoLinkArm, VanDerPol
from robustnn.errors import invalid

__all__ = ["SYSTEMS", "load_system", "noise_of", "two_link_arm", "van_der_pol"]

Array = NDArray[np.float64]
# Standard deviation of the measurement noise, as a share of that of the true output.
NOISE = 0.01
_N_INIT = 50
# Joint control of the arm: torque per angle, N m/rad, and per rate, N m s/rad.
_STIFFNESS = np.array([8.0, 4.0])
_DAMPING = np.array([4.0, 1.5])
# Largest references of the joint angles, rad.
_REACH = np.array([1.2, 1.5])


@dataclass(frozen=True)
class Record:
    """Inputs and true outputs of one experiment, (T, n_u) and (T, n_y)."""

    u: Array
    y: Array


def load_system(task: str, record: Mapping[str, int] | None = None) -> Benchmark:
    """Return the data of a task.

    Args:
        task: Key of `robustnn.dynamics.BENCHMARKS` or of `SYSTEMS`.
        record: Arguments of the function in `SYSTEMS`.

    Raises:
        InvalidArgumentError: If there is no such task.
        CheckpointError: If the files of a benchmark are missing.
    """
    if task in BENCHMARKS:
        return load_benchmark(task)
    if task not in SYSTEMS:
        raise invalid("task", f"one of {', '.join((*BENCHMARKS, *SYSTEMS))}", repr(task), "Choose one.")
    return SYSTEMS[task](**(record or {}))


def noise_of(task: str, record: Mapping[str, int] | None = None) -> tuple[float, ...] | None:
    """Return the error of a perfect model on the test record, in the published unit, for each output.

    Args:
        task: As in `load_system`.
        record: As there.

    Returns:
        Root mean square of the noise of the last test record from its sample `n_init` on; None where it is unknown.
    """
    if task not in SYSTEMS:
        return None
    noisy, true = (SYSTEMS[task](**(record or {}), noise=share) for share in (NOISE, 0.0))
    (measured,), (clean,) = (tuple(one.tests.values()) for one in (noisy, true))
    error = measured.experiments[0].y - clean.experiments[0].y
    rms: Array = noisy.factor * np.sqrt(np.square(error[measured.n_init :]).mean(axis=0))
    return tuple(rms.tolist())


def van_der_pol(
    train: int = 2000, test: int = 1000, seed: int = 0, noise: float = NOISE, n_init: int = _N_INIT
) -> Benchmark:
    """Return records of the position of `robustnn.envs.VanDerPol` under piecewise constant inputs and multisines.

    Args:
        train: Samples of the training record.
        test: Samples of the test record.
        seed: Of inputs and noise.
        noise: Standard deviation of the noise, as a share of that of the true output.
        n_init: Samples whose outputs a model may see.
    """
    plant = VanDerPol()

    def make(rng: np.random.Generator, length: int) -> Record:
        action = _excitation(rng, length, 1, (5, 40))
        states = _trajectory(plant, np.zeros(2), action)
        return Record(plant.max_input * action, states[:, :1])

    data = _records(
        make, (train, test), seed, noise, n_init, plant.dt, u=(("input", "1"),), y=(("position", "1"),)
    )
    return Benchmark(
        "van_der_pol", data[0], {"test": data[1]}, "1", 1.0, "robustnn.envs.VanDerPol, simulated"
    )


def two_link_arm(
    train: int = 2000, test: int = 1000, seed: int = 0, noise: float = NOISE, n_init: int = _N_INIT
) -> Benchmark:
    """Return records of both joint angles of `robustnn.envs.TwoLinkArm` under joint control.

    Without control the angles would drift off, since nothing holds them. The inputs are the references of
    proportional-derivative controllers, tau = K (r - q) - D dq/dt, whose torques saturate at the limits of the motors.

    Args:
        train: Samples of the training record.
        test: Samples of the test record.
        seed: Of references and noise.
        noise: Standard deviation of the noise, as a share of that of the true output.
        n_init: Samples whose outputs a model may see.
    """
    plant = TwoLinkArm()
    limits = np.array([plant.max_torque_1, plant.max_torque_2])

    def make(rng: np.random.Generator, length: int) -> Record:
        reference = _REACH * _excitation(rng, length, 2, (10, 50))
        states = np.zeros((length, plant.n_x))
        for t in range(length - 1):
            torque = _STIFFNESS * (reference[t] - states[t, :2]) - _DAMPING * states[t, 2:]
            states[t + 1] = plant.transition(states[t], torque / limits)
        return Record(reference, states[:, :2])

    data = _records(
        make, (train, test), seed, noise, n_init, plant.dt,
        u=(("reference 1", "rad"), ("reference 2", "rad")), y=(("angle 1", "rad"), ("angle 2", "rad")),
    )  # fmt: skip
    return Benchmark(
        "two_link_arm", data[0], {"test": data[1]}, "mrad", 1e3, "robustnn.envs.TwoLinkArm, simulated"
    )


SYSTEMS: dict[str, Callable[..., Benchmark]] = {"van_der_pol": van_der_pol, "two_link_arm": two_link_arm}


def _excitation(rng: np.random.Generator, length: int, channels: int, hold: tuple[int, int]) -> Array:
    """Inputs in [-1, 1], (length, channels): levels held for random times, plus a random-phase multisine."""
    result = np.zeros((length, channels))
    for k in range(channels):
        levels, at = np.zeros(length), 0
        while at < length:
            until = at + int(rng.integers(*hold, endpoint=True))
            levels[at:until] = rng.uniform(-1.0, 1.0)
            at = until
        frequencies = np.arange(1, 21) / (8.0 * hold[1])  # cycles per sample
        phases = rng.uniform(0.0, 2.0 * np.pi, len(frequencies))
        sine = np.sin(2.0 * np.pi * np.outer(np.arange(length), frequencies) + phases).sum(axis=1)
        result[:, k] = np.clip(0.7 * levels + 0.3 * sine / np.sqrt(len(frequencies)), -1.0, 1.0)
    return result


def _trajectory(plant: VanDerPol, state: Array, action: Array) -> Array:
    states = np.zeros((len(action), plant.n_x))
    states[0] = state
    for t in range(len(action) - 1):
        states[t + 1] = plant.transition(states[t], action[t])
    return states


def _records(
    make: Callable[[np.random.Generator, int], Record],
    lengths: tuple[int, int],
    seed: int,
    noise: float,
    n_init: int,
    dt: float,
    *,
    u: tuple[tuple[str, str], ...],
    y: tuple[tuple[str, str], ...],
) -> tuple[Dataset, Dataset]:
    """Training and test data, with inputs and noise from generators of their own; channels as (name, unit)."""
    result = []
    for length, stream in zip(lengths, np.random.SeedSequence(seed).spawn(2), strict=True):
        signals, errors = (np.random.default_rng(one) for one in stream.spawn(2))
        record = make(signals, length)
        measured = record.y + noise * record.y.std(axis=0) * errors.normal(size=record.y.shape)
        (u_names, u_units), (y_names, y_units) = zip(*u, strict=True), zip(*y, strict=True)
        result.append(
            Dataset.from_arrays(
                record.u, measured, dt, u_names=u_names, u_units=u_units, y_names=y_names, y_units=y_units,
                n_init=n_init,
            )
        )  # fmt: skip
    return result[0], result[1]
