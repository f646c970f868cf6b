"""What `robustnn simulate` does: read inputs, simulate, write a table and a figure, print the errors."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from robustnn.cli.records import (
    check_delimiter,
    column_header,
    read_columns,
    read_record,
    sample_rows,
    sampling_option,
    write_rows,
)
from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.data import Dataset, Experiment
from robustnn.dynamics.model_file import load_model
from robustnn.dynamics.readers import sampling_time
from robustnn.dynamics.validate import check_dt, finite_rmse, simulate_data
from robustnn.errors import ShapeError, check_positive_int, invalid
from robustnn.report.identification import simulated_output
from robustnn.report.plots import save_figure
from robustnn.report.style import style
from robustnn.report.tables import Table

__all__ = ["run_simulate"]

Array = NDArray[np.float64]


def run_simulate(arguments: argparse.Namespace) -> None:
    """Simulate a stored model with inputs from a file."""
    model = load_model(arguments.model)
    if arguments.figure is not None and arguments.figure.suffix.lower() != ".png":
        raise invalid("--figure", "a name ending in .png", str(arguments.figure), "Write simulated.png.")
    data, measured, time = _read(model, arguments)
    check_dt(model, data)
    if not measured and arguments.x0 == "window":
        raise invalid(
            "--x0", "zero, where the file has no outputs", "window",
            f"Leave it out, or name the columns of {', '.join(model.channels.y_names)} with --y.",
        )  # fmt: skip
    from_window = measured and arguments.x0 != "zero" and data.n_init > 0
    n_init = data.n_init if from_window else 0
    data = replace(data, n_init=n_init)
    if len(data.experiments[0]) < n_init + 1:
        raise ShapeError(
            f"DATA: expected at least --n-init + 1 = {n_init + 1} samples, got {len(data.experiments[0])}. Use a "
            "smaller --n-init, or --x0 zero."
        )
    simulated = simulate_data(model, data)[0]
    write_rows(arguments.out, sample_rows(data, 0, simulated, measured=measured, time=time))
    start = f"from the first {n_init} samples" if from_window else "zero"
    print(f"{len(simulated)} samples, sampling time {data.dt:g} s, initial state {start}")
    if not np.isfinite(simulated).all():
        print("the simulation diverges")
    if measured:
        print(_errors(data, simulated).text())
    written = [str(arguments.out)]
    if arguments.figure is not None:
        _draw(arguments.figure, data, simulated, measured, time)
        written.append(str(arguments.figure))
    print(f"written to {', '.join(written)}")


def _read(model: StateSpaceModel, arguments: argparse.Namespace) -> tuple[Dataset, bool, Array | None]:
    """Return the record, whether it has measured outputs, and its times if there is a column of them."""
    channels = model.channels
    u, y = list(arguments.u or channels.u_names), list(arguments.y or channels.y_names)
    for option, names, given in (("--u", channels.u_names, u), ("--y", channels.y_names, y)):
        if len(given) != len(names):
            raise invalid(
                option, f"columns for {', '.join(names)}", given, "Name one for each channel of the model."
            )
    for option in ("units_u", "units_y"):
        if getattr(arguments, option) is not None:
            raise invalid(
                f"--{option.replace('_', '-')}", "no value", getattr(arguments, option),
                "The units are those of the model; convert the columns where theirs are others.",
            )  # fmt: skip
    if arguments.ts is not None and arguments.time is not None:
        raise invalid(
            "--ts, --time", "one of the two at most", f"{arguments.ts}, {arguments.time}", "Leave one out."
        )
    n_init = check_positive_int("--n-init", arguments.n_init, minimum=0)
    labels = (channels.u_names, channels.y_names, channels.u_units, channels.y_units, n_init)
    if arguments.data.suffix.lower() == ".mat":
        arguments.u, arguments.y, arguments.ts = u, y, arguments.ts or repr(channels.dt)
        record = read_record(arguments.data, arguments)
        return Dataset(record.experiments, record.dt, *labels), True, None
    times = [] if arguments.time is None else [arguments.time]
    wanted, optional = ([*u, *y], []) if arguments.y else (u, y)
    values = read_columns(
        arguments.data, check_delimiter(arguments.delimiter), [*times, *wanted], optional,
    )  # fmt: skip
    measured = all(name in values for name in y)
    inputs = np.stack([values[name] for name in u], axis=1)
    outputs = np.stack([values[name] for name in y], axis=1) if measured else np.zeros((len(inputs), len(y)))
    time = values[times[0]] if times else None
    dt = sampling_option(arguments.ts) if time is None else sampling_time(time)
    one = Experiment(inputs, outputs, None, arguments.data.stem)
    return Dataset((one,), channels.dt if dt is None else dt, *labels), measured, time


def _errors(data: Dataset, simulated: Array) -> Table:
    n = data.n_init
    y = data.experiments[0].y[n:]
    rmse, std = finite_rmse(y, simulated[n:]), y.std(axis=0)
    with np.errstate(all="ignore"):
        nrmse = np.where(std > 0.0, rmse / std, np.nan)
    rows = tuple(
        (
            name, f"{error:.4g} {unit}".rstrip(), f"{ratio:.3g}" if np.isfinite(ratio) else "-",
            f"{100.0 * (1.0 - ratio):.2f}" if np.isfinite(ratio) else "-",
        )
        for name, unit, error, ratio in zip(data.y_names, data.y_units, rmse, nrmse, strict=True)
    )  # fmt: skip
    return Table(("output", "RMSE", "NRMSE", "fit [%]"), rows)


def _draw(path: Path, data: Dataset, simulated: Array, measured: bool, time: Array | None) -> None:
    one = data.experiments[0]
    t = data.dt * np.arange(len(one)) if time is None else time
    with style():
        figure, grid = plt.subplots(
            data.n_y, 1, figsize=(8.0, 1.0 + 2.6 * data.n_y), sharex=True, squeeze=False
        )
        axes: Any = grid[:, 0]
        for k, ax in enumerate(axes):
            label = column_header(data.y_names[k], data.y_units[k])
            last = k == data.n_y - 1
            xlabel = "time [s]" if last else ""
            if measured:
                shown = {"simulated": simulated[:, k]}
                simulated_output(t, one.y[:, k], shown, ax=ax, legend=last, xlabel=xlabel, ylabel=label)
            else:
                ax.plot(t, simulated[:, k], color="black", label="simulated")
                ax.set(xlabel=xlabel, ylabel=label)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
        plt.close(figure)
