"""The page on an identified model, and the table that compares several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from robustnn.errors import invalid
from robustnn.report import _draw as draw
from robustnn.report.identification import (
    BAND,
    MEASURED,
    Looks,
    error_against_horizon,
    residual_correlation,
    signals,
    simulated_output,
    simulation_error,
    tenth_around,
)
from robustnn.report.style import style
from robustnn.report.tables import Table


def validation_page(
    time: ArrayLike,
    measured: ArrayLike,
    simulated: Mapping[str, ArrayLike],
    *,
    auto_lags: ArrayLike,
    auto: Mapping[str, ArrayLike],
    cross_lags: ArrayLike,
    cross: Mapping[str, ArrayLike],
    band: float,
    horizons: ArrayLike | None = None,
    errors: Mapping[str, ArrayLike] | None = None,
    start: float | None = None,
    zoom: tuple[float, float] | None = None,
    output: str = "y",
    unit: str = "",
    input_name: str = "u",
    looks: Looks | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the page on one output: simulation, error, zoom, error against the horizon, and both correlations.

    `robustnn.dynamics.page_arrays` makes the arrays of validations. Models with several seeds have shape (n_seeds, ...)
    throughout; the median is drawn and the range shaded.

    Args:
        time: (T,) ascending, seconds.
        measured: (T,) output, in its unit.
        simulated: for each model (T,) or (n_seeds, T).
        auto_lags: (n_lags,) lags of the auto-correlation, samples.
        auto: for each model (n_lags,) or (n_seeds, n_lags).
        cross_lags: (m,) lags of the cross-correlation with the input, samples; positive where the input came before.
        cross: for each model (m,) or (n_seeds, m).
        band: half width of the 99 % band of both correlations.
        horizons: (n_horizons,) prediction horizons, samples; None to leave that panel out.
        errors: for each model (n_horizons,) or (n_seeds, n_horizons), in the unit of the output.
        start: time from which errors count, seconds; marked by a dotted line.
        zoom: part of the time for the zoom, seconds; the tenth around the largest error of the first model if None.
        output: name of the output.
        unit: its unit; "" if unknown.
        input_name: name of the input.
        looks: appearance of each model; by default that of the models given.
        title: title of the page.

    Returns:
        The figure.

    Raises:
        ShapeError: arrays do not fit each other.
        InvalidArgumentError: only one of ``horizons`` and ``errors`` is given, or a correlation or error is of a model
            that is not in ``simulated``.
    """
    if (horizons is None) != (errors is None):
        raise invalid("horizons, errors", "both or neither", "one", "Pass both, or leave both out.")
    for name, data in (("auto", auto), ("cross", cross), ("errors", errors or {})):
        draw.same_models("simulated", simulated, name, data)
    t, y, runs, shown = signals(time, measured, simulated, looks)
    if zoom is None:
        zoom = tenth_around(t, y, next(iter(runs.values())), start)
    of_output = f"{output} [{unit}]" if unit else output
    with style():
        figure = plt.figure(figsize=(10.0, 11.0))
        cells = figure.add_gridspec(4, 2, height_ratios=(1.15, 0.8, 1.0, 1.0))
        top = figure.add_subplot(cells[0, :])
        below = figure.add_subplot(cells[1, :], sharex=top)
        middle = figure.add_subplot(cells[2, : 1 if horizons is not None else 2])
        common: dict[str, Any] = {"looks": shown, "legend": False}
        simulated_output(t, y, simulated, ax=top, xlabel="", ylabel=of_output, **common)
        top.axvspan(*zoom, color="0.5", alpha=0.12, linewidth=0, zorder=0.5)
        top.tick_params(labelbottom=False)
        unit_text = f" [{unit}]" if unit else ""
        simulation_error(t, y, simulated, ax=below, ylabel=f"error of {output}{unit_text}", **common)
        for ax in (top, below):
            if start is not None:
                ax.axvline(start, color="0.3", linestyle=":", linewidth=1.2)
        simulated_output(t, y, simulated, ax=middle, span=zoom, ylabel=of_output, **common)
        middle.set_title("zoom on the shaded part")
        if horizons is not None and errors is not None:
            right = figure.add_subplot(cells[2, 1])
            error_against_horizon(horizons, errors, ax=right, ylabel=f"RMSE of {output}{unit_text}", **common)
            right.set_title("error of predictions")
        for column, (lags, values, name) in enumerate(
            (
                (auto_lags, auto, "auto-correlation"),
                (cross_lags, cross, f"cross-correlation with {input_name}"),
            )
        ):
            ax = figure.add_subplot(cells[3, column])
            residual_correlation(lags, values, band, ax=ax, ylabel="correlation", **common)
            ax.set_title(f"residual {name}")
        handles = [Line2D([], [], color=MEASURED, linewidth=3.2, label="measured")]
        for label in simulated:
            look = shown[label]
            handles.append(
                Line2D([], [], color=look.color, linestyle=look.linestyle, marker=look.marker, label=label)
            )
        handles.append(Line2D([], [], color=BAND, linewidth=6, label="99 % band"))
        if start is not None:
            handles.append(
                Line2D([], [], color="0.3", linestyle=":", linewidth=1.2, label="errors count from here")
            )
        longest = max(len(str(one.get_label())) for one in handles)
        columns = max(1, min(len(handles), 150 // (longest + 10)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        if title:
            figure.suptitle(title)
        figure.align_ylabels([top, below, middle])
    return figure


def comparison_table(rows: Sequence[Mapping[str, Any]], *, digits: int = 3) -> Table:
    """Return the table of the rows of `robustnn.dynamics.compare`.

    Args:
        rows: one mapping per model and output.
        digits: significant digits of the errors.

    Returns:
        One row per model and output, with text() and markdown().

    Raises:
        InvalidArgumentError: there is no row, or one lacks a column.
    """
    columns = {
        "model": "model", "n_x": "states", "output": "output", "rmse": "RMSE", "nrmse": "NRMSE", "fit": "fit [%]",
        "r_squared": "R^2", "auto_inside": "auto inside", "cross_inside": "cross inside",
    }  # fmt: skip
    if not rows:
        raise invalid("rows", "at least one row", "none", "Pass the result of compare().")
    body = []
    for number, row in enumerate(rows):
        missing = [name for name in (*columns, "unit") if name not in row]
        if missing:
            raise invalid(
                f"rows[{number}]", f"the columns {missing}", list(row), "Pass the result of compare()."
            )
        unit = f" {row['unit']}" if row["unit"] else ""
        body.append(
            (
                str(row["model"]),
                str(row["n_x"]),
                str(row["output"]),
                f"{row['rmse']:.{digits}g}{unit}",
                f"{row['nrmse']:.{digits}g}",
                _fixed(row["fit"], 2),
                _fixed(row["r_squared"], 4),
                f"{100.0 * row['auto_inside']:.0f} %",
                f"{100.0 * row['cross_inside']:.0f} %",
            )
        )
    return Table(tuple(columns.values()), tuple(body))


def _fixed(value: float, decimals: int) -> str:
    """A number with fixed decimals, or with an exponent if it is huge, as that of a simulation that diverges."""
    return f"{value:.{decimals}f}" if abs(value) < 1e4 else f"{value:.2e}"
