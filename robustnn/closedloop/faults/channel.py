"""The signal that a fault acts on, and the interface of faults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from robustnn.closedloop.perturb import EpisodeRandom, Loop, Perturbation, Process
from robustnn.errors import ShapeError, check_finite, check_nonnegative, check_positive, invalid

__all__ = ["Channel", "Fault", "FaultProcess", "Size", "check_probability", "check_size"]

Size = float | Sequence[float]
# Streams of the random numbers of the episodes, apart from those of `perturb`.
_FIRST_STREAM, _STREAMS_PER_FAULT = 16, 2


@dataclass(frozen=True, eq=False)
class Channel:
    """A signal that faults act on.

    Attributes:
        width: Number of components n.
        shape: Leading axes of the signal, (E,) or (S, E).
        seeds: E episode seeds.
        index: Number of the fault among all of the loop; different ones have independent random numbers.
        dtype: Floating-point type of the signal.
        device: Its device.
    """

    width: int
    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    index: int = 0
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"

    def random(self, which: int = 0) -> EpisodeRandom:
        """Return one of the streams of random numbers that belong to this fault."""
        return EpisodeRandom(
            self.seeds, _FIRST_STREAM + _STREAMS_PER_FAULT * self.index + which, self.dtype, self.device
        )

    def spread(self, draws: Tensor) -> Tensor:
        """Give all policies the same draws: (E, k) to (*shape, k)."""
        return draws.expand(*self.shape, draws.shape[-1])

    def size(self, name: str, size: Size) -> Tensor:
        """Return a size as a tensor, () or (n,)."""
        values = torch.tensor(size, dtype=self.dtype, device=self.device)
        if values.ndim and values.shape != (self.width,):
            raise ShapeError(
                f"{name}: expected one number or {self.width}, one per component, got {tuple(values.shape)}. "
                "Give a number for all components or one for each."
            )
        return values


class FaultProcess(ABC):
    """A fault in the course of one batch of episodes; called once per sampling time."""

    @abstractmethod
    def __call__(self, signal: Tensor) -> Tensor:
        """Map the signal (*shape, n) of this sampling time to what comes through."""


class _OnObservation(Process):
    def __init__(self, process: FaultProcess) -> None:
        self._process = process

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        return self._process(observation)


class Fault(Perturbation):
    """A fault of one signal; on its own a perturbation of the observations."""

    @abstractmethod
    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""

    def start(self, loop: Loop) -> Process:
        """Return the process on the observations of a loop."""
        return _OnObservation(
            self.on(Channel(loop.plant.n_y, loop.shape, loop.seeds, 0, loop.dtype, loop.device))
        )

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values, the format of `fault_from_config`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def check_size(fault: Fault, name: str, *, signed: bool = False, positive: bool = False) -> None:
    """Store a size as a float or a tuple of floats after checking it."""
    value = getattr(fault, name)
    check = check_positive if positive else check_nonnegative

    def number(label: str, v: Any) -> float:
        if not signed:
            return check(label, v)
        check_finite(label, v)
        return float(v)

    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        object.__setattr__(fault, name, number(name, value))
    else:
        object.__setattr__(fault, name, tuple(number(f"{name}[{k}]", v) for k, v in enumerate(value)))


def check_probability(fault: Fault, name: str) -> None:
    """Store a probability as a float after checking it."""
    value = check_nonnegative(name, getattr(fault, name))
    if value > 1.0:
        raise invalid(name, "a probability from 0 to 1", value, "Give the fraction of sampling times.")
    object.__setattr__(fault, name, value)
