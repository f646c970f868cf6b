"""Input-output data of one or several experiments: arrays with sampling time, names and units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustnn.errors import NonFiniteError, ShapeError, check_positive, check_positive_int, invalid

__all__ = ["Dataset", "Experiment", "Scaling"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Experiment:
    """One uninterrupted record of T samples; u[t] acts between y[t] and y[t + 1].

    Attributes:
        u: Inputs, shape (T, n_u).
        y: Outputs, shape (T, n_y).
        x: Measured states, shape (T, n_x), if there are any.
        name: Shown in messages and figures.
    """

    u: Array
    y: Array
    x: Array | None = None
    name: str = ""

    def __len__(self) -> int:
        """Return the number of samples T."""
        return len(self.y)

    def part(self, start: int, stop: int) -> Experiment:
        """Return the samples from `start` up to but without `stop`, as views."""
        x = None if self.x is None else self.x[start:stop]
        return Experiment(self.u[start:stop], self.y[start:stop], x, self.name)


@dataclass(frozen=True, eq=False)
class Scaling:
    """Offsets and scales of the channels, in their units; a model keeps those of its training data.

    Attributes:
        u_offset: Shape (n_u,).
        u_scale: Shape (n_u,), positive.
        y_offset: Shape (n_y,).
        y_scale: Shape (n_y,), positive.
    """

    u_offset: Array
    u_scale: Array
    y_offset: Array
    y_scale: Array

    def to_dict(self) -> dict[str, list[float]]:
        """Return plain JSON values, exact."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: dict[str, Sequence[float]]) -> Scaling:
        """Return the scaling that `to_dict` has written."""
        return cls(*(np.array(values[name], dtype=np.float64) for name in cls.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Experiments on one system, with a common sampling time.

    Make one with `Dataset.from_arrays` or a function of `robustnn.dynamics.readers`; they check the data.

    Attributes:
        experiments: At least one, with equal channels.
        dt: Sampling time in s.
        u_names: Names of the inputs.
        y_names: Names of the outputs.
        u_units: Their units, "" where unknown.
        y_units: Their units.
        n_init: Number of samples at the start of every experiment whose outputs a model may see before it simulates;
            errors count from there on.
    """

    experiments: tuple[Experiment, ...]
    dt: float
    u_names: tuple[str, ...]
    y_names: tuple[str, ...]
    u_units: tuple[str, ...] = field(default=())
    y_units: tuple[str, ...] = field(default=())
    n_init: int = 0

    @classmethod
    def from_arrays(
        cls,
        u: ArrayLike | Sequence[ArrayLike],
        y: ArrayLike | Sequence[ArrayLike],
        dt: float,
        *,
        x: ArrayLike | Sequence[ArrayLike] | None = None,
        u_names: Sequence[str] | None = None,
        y_names: Sequence[str] | None = None,
        u_units: Sequence[str] | None = None,
        y_units: Sequence[str] | None = None,
        n_init: int = 0,
        names: Sequence[str] | None = None,
    ) -> Dataset:
        """Check arrays and make a data set of them.

        Args:
            u: Inputs of one experiment, shape (T,) or (T, n_u), or a list or tuple of such arrays, one per experiment.
            y: Outputs, shape (T,) or (T, n_y), or as many arrays.
            dt: Sampling time in s.
            x: Measured states, shape (T,) or (T, n_x), or as many arrays; None for none.
            u_names: Names of the inputs; None for u1, u2, ...
            y_names: Names of the outputs; None for y1, y2, ...
            u_units: Units of the inputs; None where unknown.
            y_units: Units of the outputs.
            n_init: See `Dataset`.
            names: Names of the experiments.

        Returns:
            The data set; arrays are copied to float64.

        Raises:
            ShapeError: Lengths or numbers of channels differ, or an experiment is too short.
            NonFiniteError: A sample is NaN or infinite.
            InvalidArgumentError: A channel is constant over all experiments, or another argument is not acceptable.

        Example:
            >>> t = np.arange(100) * 0.1
            >>> data = Dataset.from_arrays(np.sin(t), np.cos(t), 0.1, y_units=["V"])
            >>> data.n_u, data.n_y, data.n_samples
            (1, 1, 100)
        """
        inputs, outputs = _records("u", u), _records("y", y)
        states: list[Array] | list[None] = [None] * len(outputs) if x is None else _records("x", x)
        titles = [f"experiment {k}" for k in range(len(outputs))] if names is None else list(names)
        counts = {"u": len(inputs), "y": len(outputs), "x": len(states), "names": len(titles)}
        if len(set(counts.values())) > 1:
            raise ShapeError(
                f"u, y: expected as many inputs as outputs, states and names, got {counts} experiments. "
                "Give one array per experiment for each."
            )
        experiments = tuple(Experiment(*one) for one in zip(inputs, outputs, states, titles, strict=True))
        n_init = check_positive_int("n_init", n_init, minimum=0)
        for one in experiments:
            _check_experiment(one, n_init)
        first = experiments[0]
        for one in experiments:
            if (one.u.shape[1], one.y.shape[1]) != (first.u.shape[1], first.y.shape[1]):
                raise ShapeError(
                    f"{one.name}: expected {first.u.shape[1]} inputs and {first.y.shape[1]} outputs as in "
                    f"{first.name}, got {one.u.shape[1]} and {one.y.shape[1]}. Measure the same channels in all."
                )
        u_labels = _labels("u_names", u_names, "u", first.u.shape[1])
        y_labels = _labels("y_names", y_names, "y", first.y.shape[1])
        result = cls(
            experiments,
            check_positive("dt", dt),
            u_labels,
            y_labels,
            _labels("u_units", u_units, None, len(u_labels)),
            _labels("y_units", y_units, None, len(y_labels)),
            n_init,
        )
        result.check_channels()
        return result

    def __len__(self) -> int:
        """Return the number of experiments."""
        return len(self.experiments)

    def __iter__(self) -> Iterator[Experiment]:
        """Iterate over the experiments."""
        return iter(self.experiments)

    @property
    def n_u(self) -> int:
        """Number of inputs."""
        return len(self.u_names)

    @property
    def n_y(self) -> int:
        """Number of outputs."""
        return len(self.y_names)

    @property
    def n_samples(self) -> int:
        """Number of samples of all experiments."""
        return sum(len(one) for one in self.experiments)

    def window(
        self, start: int | None = None, stop: int | None = None, *, n_init: int | None = None
    ) -> Dataset:
        """Return the samples from `start` to `stop` of every experiment, with the meaning of a Python slice.

        Args:
            start: First sample; negative from the end, None for the first one.
            stop: Sample after the last one.
            n_init: New initialisation window; None to keep it.

        Raises:
            ShapeError: Too little is left of an experiment.
        """
        kept = self.n_init if n_init is None else check_positive_int("n_init", n_init, minimum=0)
        parts = []
        for one in self.experiments:
            begin, end, _ = slice(start, stop).indices(len(one))
            parts.append(one.part(begin, end))
            _check_length(parts[-1], kept)
        return replace(self, experiments=tuple(parts), n_init=kept)

    def split(self, fraction: float) -> tuple[Dataset, Dataset]:
        """Cut every experiment in time: the first part, and the rest.

        Args:
            fraction: Share of the first part, in (0, 1).

        Returns:
            Two data sets, for example for training and validation. Both keep `n_init`.
        """
        if not 0.0 < check_positive("fraction", fraction) < 1.0:
            raise invalid("fraction", "a number in (0, 1)", fraction, "Use 0.75.")
        parts: tuple[list[Experiment], list[Experiment]] = ([], [])
        for one in self.experiments:
            cut = round(fraction * len(one))
            for part, piece in zip(parts, (one.part(0, cut), one.part(cut, len(one))), strict=True):
                _check_length(piece, self.n_init)
                part.append(piece)
        first, second = (replace(self, experiments=tuple(part)) for part in parts)
        return first, second

    def experiment(self, index: int) -> Dataset:
        """Return one experiment as a data set."""
        return replace(self, experiments=(self.experiments[index],))

    def join(self, other: Dataset) -> Dataset:
        """Return the experiments of both data sets.

        Raises:
            InvalidArgumentError: If sampling times, channels or initialisation windows differ.
        """
        for name in ("dt", "u_names", "y_names", "u_units", "y_units", "n_init"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise invalid(f"other.{name}", repr(mine), repr(theirs), "Join data of one system only.")
        return replace(self, experiments=self.experiments + other.experiments)

    def scaling(self) -> Scaling:
        """Return mean and standard deviation of every channel over all samples."""
        u = np.concatenate([one.u for one in self.experiments])
        y = np.concatenate([one.y for one in self.experiments])
        return Scaling(u.mean(0), u.std(0), y.mean(0), y.std(0))

    def check_channels(self) -> None:
        """Raise an error unless every channel varies, as what is scaled by its standard deviation must.

        Data sets are made of channels that do; a part of one may have others.

        Raises:
            InvalidArgumentError: If a channel is constant over all experiments.
            ShapeError: If there are more channels than samples.
        """
        for kind, count in (("u", self.n_u), ("y", self.n_y)):
            if count > self.n_samples:
                raise ShapeError(
                    f"{kind}: expected fewer channels than samples, got {count} channels of {self.n_samples} samples "
                    "in all. Time is the first axis: transpose the arrays."
                )
        scaling = self.scaling()
        for kind, names, offsets, scales in (
            ("u", self.u_names, scaling.u_offset, scaling.u_scale),
            ("y", self.y_names, scaling.y_offset, scaling.y_scale),
        ):
            for name, offset, scale in zip(names, offsets, scales, strict=True):
                if scale <= 1e-12 * abs(offset):
                    raise invalid(
                        f"{kind}, channel {name!r}", "a signal that varies", f"the constant {offset:.6g}",
                        "Leave the channel out, or use data in which it moves.",
                    )  # fmt: skip


def _records(name: str, values: Any) -> list[Array]:
    """One float64 matrix per experiment."""
    several = isinstance(values, (list, tuple)) and len(values) > 0 and np.ndim(values[0]) > 0
    arrays = list(values) if several else [values]
    result = []
    for k, one in enumerate(arrays):
        label = f"{name}[{k}]" if several else name
        try:
            if np.iscomplexobj(one):
                raise TypeError("complex numbers")
            array = np.array(one, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise invalid(
                label, "an array of numbers", type(one).__name__, "Convert it with numpy."
            ) from error
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] == 0:
            raise ShapeError(
                f"{label}: expected shape (T,) or (T, channels), got {array.shape}. Time is the first axis."
            )
        result.append(array)
    return result


def _check_experiment(one: Experiment, n_init: int) -> None:
    parts = {"u": one.u, "y": one.y} | ({} if one.x is None else {"x": one.x})
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        raise ShapeError(
            f"{one.name}: expected equal lengths, got {lengths} samples. Cut them to the samples that belong together."
        )
    for name, part in parts.items():
        bad = ~np.isfinite(part)
        if bad.any():
            rows = np.flatnonzero(bad.any(axis=1))
            raise NonFiniteError(
                f"{one.name}, {name}: expected finite samples, got {int(bad.sum())} NaN or infinite ones, the first in "
                f"sample {rows[0]}, the last in sample {rows[-1]}. Interpolate gaps, or cut the record there into "
                "several experiments."
            )
    _check_length(one, n_init)


def _check_length(one: Experiment, n_init: int) -> None:
    if len(one) < n_init + 2:
        raise ShapeError(
            f"{one.name}: expected at least n_init + 2 = {n_init + 2} samples, got {len(one)}. "
            "Use a longer record or a smaller n_init."
        )


def _labels(name: str, given: Sequence[str] | None, letter: str | None, count: int) -> tuple[str, ...]:
    if given is None:
        return tuple("" if letter is None else f"{letter}{k + 1}" for k in range(count))
    if isinstance(given, str) or len(given) != count or not all(isinstance(one, str) for one in given):
        raise invalid(name, f"{count} strings, one per channel", repr(given), "Give a list of strings.")
    return tuple(given)
