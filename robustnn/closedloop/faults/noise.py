"""Faults that add to a signal or change its value: noise, bias, drift, spikes, rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustnn.closedloop.faults.channel import (
    Channel,
    Fault,
    FaultProcess,
    Size,
    check_probability,
    check_size,
)
from robustnn.errors import check_positive, invalid

__all__ = ["Bias", "ColouredNoise", "Drift", "Outliers", "Quantisation", "WhiteNoise"]


class _White(FaultProcess):
    def __init__(self, std: Tensor, channel: Channel) -> None:
        self._std, self._channel, self._random = std, channel, channel.random()

    def __call__(self, signal: Tensor) -> Tensor:
        return signal + self._std * self._random.normal(1, self._channel.width)[0]


@dataclass(frozen=True)
class WhiteNoise(Fault):
    """White Gaussian noise, independent over times and components.

    Args:
        std: Standard deviation, a number or one per component, in the unit of the signal.

    Raises:
        InvalidArgumentError: If a standard deviation is negative.

    Example:
        >>> WhiteNoise(0.1).describe()
        {'name': 'white', 'std': 0.1}
    """

    std: Size
    name: ClassVar[str] = "white"

    def __post_init__(self) -> None:
        """Check the argument."""
        check_size(self, "std")

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _White(channel.size("std", self.std), channel)


class _Coloured(FaultProcess):
    def __init__(self, std: Tensor, memory: float, channel: Channel) -> None:
        self._std, self._memory, self._channel = std, memory, channel
        self._random = channel.random()
        self._noise: Tensor | None = None

    def __call__(self, signal: Tensor) -> Tensor:
        fresh = self._std * self._random.normal(1, self._channel.width)[0]
        if self._noise is None:
            self._noise = fresh
        else:
            self._noise = self._memory * self._noise + math.sqrt(1.0 - self._memory**2) * fresh
        return signal + self._noise


@dataclass(frozen=True)
class ColouredNoise(Fault):
    r"""Stationary Gaussian noise of first order with autocorrelation $e^{-k/\tau}$.

    Args:
        std: Standard deviation, a number or one per component, in the unit of the signal.
        correlation: tau, in sampling times, > 0.

    Raises:
        InvalidArgumentError: If a standard deviation is negative, or tau is not positive.
    """

    std: Size
    correlation: float
    name: ClassVar[str] = "coloured"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_size(self, "std")
        object.__setattr__(self, "correlation", check_positive("correlation", self.correlation))

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _Coloured(channel.size("std", self.std), math.exp(-1.0 / self.correlation), channel)


class _Offset(FaultProcess):
    def __init__(self, offset: Tensor) -> None:
        self._offset = offset

    def __call__(self, signal: Tensor) -> Tensor:
        return signal + self._offset


@dataclass(frozen=True)
class Bias(Fault):
    """A constant offset.

    Args:
        size: The offset, or with `random` the largest one, a number or one per component, in the unit of the signal.
        random: Whether each episode and component draws its offset uniformly from [-size, size).

    Raises:
        InvalidArgumentError: If a size is not finite.
    """

    size: Size
    random: bool = False
    name: ClassVar[str] = "bias"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_size(self, "size", signed=True)

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        size = channel.size("size", self.size)
        if not self.random:
            return _Offset(size)
        return _Offset(size * (2.0 * channel.random().uniform(1, channel.width)[0] - 1.0))


class _Ramp(FaultProcess):
    def __init__(self, rate: Tensor) -> None:
        self._rate, self._time = rate, 0

    def __call__(self, signal: Tensor) -> Tensor:
        drifted = signal + self._time * self._rate
        self._time += 1
        return drifted


class _Walk(FaultProcess):
    def __init__(self, rate: Tensor, channel: Channel) -> None:
        self._rate, self._channel, self._random = rate, channel, channel.random()
        self._offset: Tensor | float = 0.0

    def __call__(self, signal: Tensor) -> Tensor:
        self._offset = self._offset + self._rate * self._random.normal(1, self._channel.width)[0]
        return signal + self._offset


@dataclass(frozen=True)
class Drift(Fault):
    """An offset that grows: a ramp of random sign and slope, or a random walk.

    Args:
        rate: Largest slope of the ramp (each episode and component draws its own uniformly from [-rate, rate)), or
            standard deviation of the steps of the walk; per sampling time, a number or one per component.
        kind: "ramp" or "walk".

    Raises:
        InvalidArgumentError: If a rate is negative or the kind unknown.
    """

    rate: Size
    kind: str = "ramp"
    name: ClassVar[str] = "drift"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_size(self, "rate")
        if self.kind not in ("ramp", "walk"):
            raise invalid("kind", "'ramp' or 'walk'", repr(self.kind), "Choose one of these.")

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        rate = channel.size("rate", self.rate)
        if self.kind == "walk":
            return _Walk(rate, channel)
        return _Ramp(rate * (2.0 * channel.random().uniform(1, channel.width)[0] - 1.0))


class _Rounding(FaultProcess):
    def __init__(self, step: Tensor) -> None:
        self._step = step

    def __call__(self, signal: Tensor) -> Tensor:
        return torch.round(signal / self._step) * self._step


@dataclass(frozen=True)
class Quantisation(Fault):
    """Values rounded to multiples of a step.

    Args:
        step: > 0, a number or one per component, in the unit of the signal.

    Raises:
        InvalidArgumentError: If a step is not positive.
    """

    step: Size
    name: ClassVar[str] = "quantisation"

    def __post_init__(self) -> None:
        """Check the argument."""
        check_size(self, "step", positive=True)

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _Rounding(channel.size("step", self.step))


class _Spikes(FaultProcess):
    def __init__(self, probability: float, size: Tensor, channel: Channel) -> None:
        self._probability, self._size, self._channel = probability, size, channel
        self._when, self._sign = channel.random(0), channel.random(1)

    def __call__(self, signal: Tensor) -> Tensor:
        hit = self._when.uniform(1, self._channel.width)[0] < self._probability
        sign = torch.where(self._sign.uniform(1, self._channel.width)[0] < 0.5, -1.0, 1.0).to(signal.dtype)
        return signal + hit * sign * self._size


@dataclass(frozen=True)
class Outliers(Fault):
    """Spikes of a fixed size and random sign, independent over times and components.

    Args:
        probability: Of a spike.
        size: Its size, a number or one per component, in the unit of the signal.

    Raises:
        InvalidArgumentError: If the probability is not in [0, 1] or a size is negative.
    """

    probability: float
    size: Size
    name: ClassVar[str] = "outliers"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_probability(self, "probability")
        check_size(self, "size")

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _Spikes(self.probability, channel.size("size", self.size), channel)
