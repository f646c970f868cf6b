"""Faults that lose, hold, delay or scale a signal."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustnn.closedloop.faults.channel import (
    Channel,
    Fault,
    FaultProcess,
    check_probability,
    check_size,
)
from robustnn.errors import check_finite, check_positive_int, invalid

__all__ = ["Dropout", "Gain", "Jitter", "SignalDelay", "Stuck"]


class _Dropping(FaultProcess):
    def __init__(self, probability: float, hold: bool, channel: Channel) -> None:
        self._probability, self._hold, self._channel = probability, hold, channel
        self._random = channel.random()
        self._last: Tensor | None = None

    def __call__(self, signal: Tensor) -> Tensor:
        lost = self._random.uniform(1, self._channel.width)[0] < self._probability
        if self._last is None:
            self._last = signal if self._hold else torch.zeros_like(signal)
        received = torch.where(lost, self._last, signal)
        if self._hold:
            self._last = received
        return received


@dataclass(frozen=True)
class Dropout(Fault):
    """Values that do not arrive, independently over times and components.

    Args:
        probability: Of a value to be lost.
        mode: "hold" repeats the last value that arrived (the first one always arrives), "zero" shows zero.

    Raises:
        InvalidArgumentError: If the probability is not in [0, 1] or the mode unknown.
    """

    probability: float
    mode: str = "hold"
    name: ClassVar[str] = "dropout"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_probability(self, "probability")
        if self.mode not in ("hold", "zero"):
            raise invalid("mode", "'hold' or 'zero'", repr(self.mode), "Choose one of these.")

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _Dropping(self.probability, self.mode == "hold", channel)


class _Sticking(FaultProcess):
    def __init__(self, probability: float, channel: Channel) -> None:
        self._probability, self._channel, self._random = probability, channel, channel.random()
        self._stuck: Tensor | None = None
        self._value: Tensor | None = None

    def __call__(self, signal: Tensor) -> Tensor:
        fails = self._random.uniform(1, self._channel.width)[0] < self._probability
        if self._value is None or self._stuck is None:
            self._stuck = torch.zeros_like(signal, dtype=torch.bool)
            self._value = signal
        self._value = torch.where(self._stuck, self._value, signal)
        self._stuck = self._stuck | fails
        return self._value


@dataclass(frozen=True)
class Stuck(Fault):
    """Components that stay at one value for the rest of the episode, from a random moment on.

    Args:
        probability: That a working component fails in one sampling time; the moment is distributed geometrically.

    Raises:
        InvalidArgumentError: If the probability is not in [0, 1].
    """

    probability: float
    name: ClassVar[str] = "stuck"

    def __post_init__(self) -> None:
        """Check the argument."""
        check_probability(self, "probability")

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _Sticking(self.probability, channel)


class _Buffer(FaultProcess):
    def __init__(self, steps: int, zero: bool, channel: Channel | None = None) -> None:
        self._past: deque[Tensor] = deque(maxlen=steps + 1)
        self._zero = zero
        self._random = None if channel is None else channel.random()
        self._shape = () if channel is None else channel.shape

    def __call__(self, signal: Tensor) -> Tensor:
        if not self._past:
            first = torch.zeros_like(signal) if self._zero else signal
            self._past.extend([first] * (self._past.maxlen or 1))
        self._past.append(signal)
        if self._random is None:
            return self._past[0]
        # One draw per episode and time: the whole message is late.
        late = (self._random.uniform(1, 1)[0] * len(self._past)).long().clamp_max(len(self._past) - 1)
        newest_first = torch.stack(tuple(reversed(self._past)))  # (k + 1, *shape, n)
        index = late.expand(*self._shape, 1).expand(signal.shape).unsqueeze(0)
        return newest_first.gather(0, index).squeeze(0)


@dataclass(frozen=True)
class SignalDelay(Fault):
    """A delay by a whole number of sampling times.

    Args:
        steps: The delay k, zero or greater.
        fill: What comes through before: "first", the first value, or "zero".

    Raises:
        InvalidArgumentError: If steps is not a non-negative integer or the fill unknown.
    """

    steps: int
    fill: str = "first"
    name: ClassVar[str] = "delay"

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "steps", check_positive_int("steps", self.steps, minimum=0))
        if self.fill not in ("first", "zero"):
            raise invalid("fill", "'first' or 'zero'", repr(self.fill), "Choose one of these.")

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _Buffer(self.steps, self.fill == "zero")


@dataclass(frozen=True)
class Jitter(Fault):
    """A delay that is drawn anew at every sampling time; messages may overtake each other.

    Args:
        steps: Largest delay, zero or greater; each of 0 ... steps has the same probability.

    Raises:
        InvalidArgumentError: If steps is not a non-negative integer.
    """

    steps: int
    name: ClassVar[str] = "jitter"

    def __post_init__(self) -> None:
        """Check the argument."""
        object.__setattr__(self, "steps", check_positive_int("steps", self.steps, minimum=0))

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        return _Buffer(self.steps, False, channel)


class _Factor(FaultProcess):
    def __init__(self, factor: Tensor) -> None:
        self._factor = factor

    def __call__(self, signal: Tensor) -> Tensor:
        return signal * self._factor


@dataclass(frozen=True)
class Gain(Fault):
    """A wrong gain, drawn once per episode and component.

    Args:
        low: Smallest factor.
        high: Largest factor; None for `low`, one fixed factor.

    Raises:
        InvalidArgumentError: If a factor is not finite or the interval is empty.
    """

    low: float
    high: float | None = None
    name: ClassVar[str] = "gain"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_size(self, "low", signed=True)
        high = self.low if self.high is None else self.high
        check_finite("high", high)
        if isinstance(self.low, tuple) or float(high) < self.low:
            raise invalid("high", "a number not below low", high, "Give low <= high.")
        object.__setattr__(self, "high", float(high))

    def on(self, channel: Channel) -> FaultProcess:
        """Return the process of one batch of episodes on a signal."""
        high = self.low if self.high is None else self.high
        return _Factor(self.low + (high - self.low) * channel.random().uniform(1, channel.width)[0])
