"""Public benchmarks of nonlinear system identification, with their official splits."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from robustnn.dynamics.data import Dataset
from robustnn.errors import CheckpointError, invalid

__all__ = ["BENCHMARKS", "Benchmark", "load_benchmark"]

Array = NDArray[np.float64]
# Name of the environment variable with the folder of local data.
DATA_VARIABLE = "ROBUSTNN_DATA"


@dataclass(frozen=True, eq=False)
class Benchmark:
    """One benchmark: what a model may be chosen by, and what it is judged by.

    Attributes:
        name: Key of `BENCHMARKS`.
        train: For training and validation.
        tests: Test records by name, of one experiment each; errors count from `n_init` on.
        unit: Unit in which errors are published.
        factor: From the unit of the data to that.
        citation: What to cite.
    """

    name: str
    train: Dataset
    tests: Mapping[str, Dataset]
    unit: str
    factor: float
    citation: str


def load_benchmark(name: str, folder: str | os.PathLike[str] | None = None) -> Benchmark:
    """Return a benchmark from a local folder, or through the package `nonlinear_benchmarks`, which downloads it.

    Args:
        name: Key of `BENCHMARKS`.
        folder: Folder with one folder per benchmark; None for that in the environment variable ROBUSTNN_DATA. What is
            not there comes through the package (extra `sysid`).

    Returns:
        The benchmark.

    Raises:
        InvalidArgumentError: The name is unknown.
        CheckpointError: There is neither a local file nor the package, or a file is not the benchmark's.

    Example:
        >>> tanks = load_benchmark("cascaded_tanks")  # doctest: +SKIP
        >>> tanks.train.n_samples, tanks.train.dt  # doctest: +SKIP
        (1024, 4.0)
    """
    if name not in BENCHMARKS:
        raise invalid("name", f"one of {', '.join(BENCHMARKS)}", repr(name), "Choose one of these.")
    root = folder if folder is not None else os.environ.get(DATA_VARIABLE)
    local = None if root is None else Path(root) / name
    if local is not None and local.is_dir():
        try:
            return BENCHMARKS[name](local)
        except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise CheckpointError(
                f"{local}: expected the files of the benchmark, got {type(error).__name__}: {error}. Restore them."
            ) from error
    return BENCHMARKS[name](None)


def _cascaded_tanks(folder: Path | None) -> Benchmark:
    if folder is None:
        train, test = _package().Cascaded_Tanks(atleast_2d=True)
        records = [(one.u, one.y) for one in (train, test)]
    else:
        content = loadmat(folder / "dataBenchmark.mat")
        records = [(content[f"u{part}"], content[f"y{part}"]) for part in ("Est", "Val")]
    first, second = (_dataset(u, y, 4.0, "pump voltage", "water level", 50) for u, y in records)
    _expect(first, 1024)
    _expect(second, 1024)
    return Benchmark(
        "cascaded_tanks", first, {"test": second}, "V", 1.0,
        "M. Schoukens, P. Mattson, T. Wigren, J.-P. Noël, Cascaded tanks benchmark combining soft and hard "
        "nonlinearities, Workshop on Nonlinear System Identification Benchmarks, 2016",
    )  # fmt: skip


def _silverbox(folder: Path | None) -> Benchmark:
    dt = 2**14 / 1e7
    if folder is None:
        train_val, tests = _package().Silverbox(atleast_2d=True)
        pieces = [(one.u, one.y) for one in (train_val, *tests)]
    else:
        content = loadmat(folder / "SNLS80mV.mat")
        u, y = content["V1"].reshape(-1), content["V2"].reshape(-1)
        _expect_length("V1", u, 131_072)
        multisine = slice(40_650, 127_400)
        cut = int(0.75 * (multisine.stop - multisine.start))
        parts = (
            slice(multisine.start, multisine.start + cut),
            slice(multisine.start + cut, multisine.stop),
            slice(100, 40_575),
            slice(100, 32_100),
        )
        pieces = [(u[part], y[part]) for part in parts]
    data = [_dataset(u, y, dt, "V1", "V2", 50) for u, y in pieces]
    for one, length in zip(data, (65_062, 21_688, 40_475, 32_000), strict=True):
        _expect(one, length)
    names = ("multisine", "arrow_full", "arrow_no_extrapolation")
    return Benchmark(
        "silverbox", data[0], dict(zip(names, data[1:], strict=True)), "mV", 1e3,
        "T. Wigren, J. Schoukens, Three free data sets for development and benchmarking in nonlinear system "
        "identification, European Control Conference, 2013",
    )  # fmt: skip


def _wiener_hammerstein(folder: Path | None) -> Benchmark:
    dt = 1.0 / 51_200.0
    if folder is None:
        train, test = _package().WienerHammerBenchMark(atleast_2d=True)
        pieces = [(one.u, one.y) for one in (train, test)]
    else:
        with np.load(folder / "whb.npz", allow_pickle=False) as content:
            u, y = content["uBenchMark"], content["yBenchMark"]
        _expect_length("uBenchMark", u, 188_000)
        pieces = [(u[part], y[part]) for part in (slice(5_200, 105_200), slice(105_200, 184_000))]
    first, second = (_dataset(u, y, dt, "u", "y", 50) for u, y in pieces)
    _expect(first, 100_000)
    _expect(second, 78_800)
    return Benchmark(
        "wiener_hammerstein", first, {"test": second}, "mV", 1e3,
        "J. Schoukens, J. Suykens, L. Ljung, Wiener-Hammerstein benchmark, IFAC Symposium on System Identification, "
        "Saint-Malo, 2009",
    )  # fmt: skip


BENCHMARKS: dict[str, Callable[[Path | None], Benchmark]] = {
    "cascaded_tanks": _cascaded_tanks,
    "silverbox": _silverbox,
    "wiener_hammerstein": _wiener_hammerstein,
}


def _dataset(u: Array, y: Array, dt: float, u_name: str, y_name: str, n_init: int) -> Dataset:
    return Dataset.from_arrays(
        np.reshape(u, (-1, 1)), np.reshape(y, (-1, 1)), dt, u_names=[u_name], y_names=[y_name], u_units=["V"],
        y_units=["V"], n_init=n_init,
    )  # fmt: skip


def _expect(data: Dataset, length: int) -> None:
    _expect_length(data.y_names[0], data.experiments[0].y, length)


def _expect_length(name: str, values: Array, length: int) -> None:
    if len(values) != length:
        raise CheckpointError(
            f"{name}: expected the {length} samples of the benchmark, got {len(values)}. Restore the file."
        )


def _package() -> Any:
    try:
        return importlib.import_module("nonlinear_benchmarks")
    except ImportError as error:
        raise CheckpointError(
            f"benchmark: expected its files in the folder named by {DATA_VARIABLE}, or the package "
            "nonlinear_benchmarks, got neither. Install robustnn[sysid], or set the variable."
        ) from error
