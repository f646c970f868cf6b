"""Figures on identified models: what is drawn, what is left out, and that no text overlaps."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.report import (
    comparison_table,
    error_against_horizon,
    residual_correlation,
    save_figure,
    simulated_output,
    simulation_error,
    validation_page,
)

RNG = np.random.default_rng(0)
TIME = 0.1 * np.arange(400)
MEASURED = np.sin(TIME) + 0.02 * RNG.normal(size=400)
ONE = np.sin(TIME + 0.1)
SEEDS = np.stack([np.sin(TIME + shift) for shift in (0.0, 0.05, -0.2)])
MODELS = {"linear": ONE, "LBDN gamma = 5": SEEDS}
LAGS = np.arange(1, 26)
CROSS_LAGS = np.arange(-25, 26)
HORIZONS = [1, 2, 5, 10, 50]
ROW = {
    "model": "linear", "n_x": 2, "output": "level", "unit": "V", "rmse": 0.6632, "nrmse": 0.3126, "fit": 68.741,
    "r_squared": 0.90229, "auto_inside": 0.04, "cross_inside": 0.961,
}  # fmt: skip


def page(**changes: Any) -> Figure:
    arguments: dict[str, Any] = {
        "time": TIME, "measured": MEASURED, "simulated": MODELS,
        "auto_lags": LAGS, "auto": {"linear": 0.9**LAGS, "LBDN gamma = 5": RNG.normal(size=(3, 25)) * 0.1},
        "cross_lags": CROSS_LAGS, "cross": {k: RNG.normal(size=51) * 0.05 for k in MODELS}, "band": 0.13,
        "horizons": HORIZONS, "errors": {k: np.linspace(0.1, 0.5, 5) for k in MODELS},
        "start": 5.0, "output": "water level", "unit": "V", "input_name": "pump voltage", "title": "Tanks, test record",
    }  # fmt: skip
    return validation_page(**{**arguments, **changes})


def line(ax: Axes, label: str) -> np.ndarray:
    (found,) = [one for one in ax.get_lines() if one.get_label() == label]
    return np.asarray(found.get_ydata(), dtype=np.float64)


def test_outputs_and_errors_show_median_and_range_over_seeds() -> None:
    ax = simulated_output(TIME, MEASURED, MODELS, ylabel="level [V]")
    np.testing.assert_array_equal(line(ax, "measured"), MEASURED)
    np.testing.assert_array_equal(line(ax, "linear"), ONE)
    np.testing.assert_array_equal(line(ax, "LBDN gamma = 5"), np.median(SEEDS, axis=0))
    (band,) = [one for one in ax.collections if isinstance(one, PolyCollection)]
    height = band.get_paths()[0].vertices
    assert height[:, 1].min() == SEEDS.min() and height[:, 1].max() == SEEDS.max()
    assert ax.get_xlabel() == "time [s]" and ax.get_ylabel() == "level [V]"
    error = simulation_error(TIME, MEASURED, MODELS)
    np.testing.assert_array_equal(line(error, "linear"), MEASURED - ONE)
    np.testing.assert_array_equal(line(error, "LBDN gamma = 5"), np.median(MEASURED - SEEDS, axis=0))
    bottom, top = error.get_ylim()
    assert bottom < (MEASURED - SEEDS).min() and (MEASURED - SEEDS).max() < top


def test_a_simulation_that_diverges_leaves_the_measured_range_readable() -> None:
    worse = np.where(TIME < 20.0, ONE, 10.0 ** np.minimum(8.0 * (TIME - 20.0), 300.0))
    for bad in (worse, np.where(TIME < 20.0, ONE, np.inf), np.full(400, np.nan)):
        ax = simulated_output(TIME, MEASURED, {"bad": bad, "seeds": np.stack([ONE, bad])})
        bottom, top = ax.get_ylim()
        assert bottom <= MEASURED.min() and MEASURED.max() <= top and top - bottom <= 4.0 * np.ptp(MEASURED)
        simulation_error(TIME, MEASURED, {"bad": bad}).figure.canvas.draw()
    figure = page(
        simulated={"linear": worse, "LBDN gamma = 5": ONE},
        auto={"linear": np.full(25, np.nan)}, cross={"linear": np.full(51, np.nan)},
        errors={"linear": [0.1, 0.2, 0.5, np.inf, np.inf]},
    )  # fmt: skip
    low, high = figure.axes[2].get_xlim()
    assert low < 20.0 < high  # the zoom is where it begins


def test_the_zoom_shows_its_part_at_its_scale() -> None:
    ax = simulated_output(TIME, MEASURED * (1.0 + (TIME > 20.0)), {"linear": ONE}, span=(2.0, 8.0))
    assert ax.get_xlim() == (2.0, 8.0) and ax.get_ylim()[1] < 1.5
    with pytest.raises(InvalidArgumentError, match="span: expected a part of 0"):
        simulated_output(TIME, MEASURED, MODELS, span=(50.0, 60.0))
    spike = ONE + 3.0 * (np.abs(TIME - 30.0) < 0.2)
    low, high = page(simulated={**MODELS, "linear": spike}).axes[2].get_xlim()
    assert low < 30.0 < high and high - low == pytest.approx(0.1 * TIME[-1])


def test_correlations_and_their_band() -> None:
    values = {"a": 0.9**LAGS, "b": np.stack([0.5**LAGS, 0.7**LAGS])}
    ax = residual_correlation(LAGS, values, 0.13)
    np.testing.assert_array_equal(line(ax, "a"), values["a"])
    np.testing.assert_allclose(line(ax, "b"), values["b"].mean(axis=0))
    span = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (span.y0, span.y1) == pytest.approx((-0.13, 0.13))
    stems = [one for one in ax.collections if isinstance(one, LineCollection)]
    assert len(stems) == 3  # one per model, and the range over seeds
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "99 % band"]


def test_errors_against_the_horizon_leave_out_infinite_ones() -> None:
    ax = error_against_horizon(HORIZONS, {"a": [0.1, 0.2, 0.3, 0.4, np.inf]}, ylabel="RMSE [V]")
    np.testing.assert_array_equal(line(ax, "a"), [0.1, 0.2, 0.3, 0.4, np.nan])
    assert ax.get_xscale() == "log" and ax.get_ylim()[0] == 0.0
    assert [text.get_text() for text in ax.get_xticklabels()] == [str(k) for k in HORIZONS]
    assert error_against_horizon([1, 2, 3], {"a": [1, 2, 3]}).get_xscale() == "linear"


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of a drawn figure that lie over each other."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    hidden = set()  # labels of ticks outside of the limits exist and are not drawn
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high:
                hidden |= {id(tick.label1), id(tick.label2)}
    texts = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    boxes = []
    for text in (one for one in texts if id(one) not in hidden):
        box = text.get_window_extent(renderer)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, f"{text.get_text()!r} leaves the figure"
        boxes.append((text.get_text(), box))
    return [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)]


@pytest.mark.parametrize(
    "changes", [{}, {"horizons": None, "errors": None, "title": None, "unit": "", "start": None}]
)
def test_the_page_has_all_panels_with_units_and_no_text_over_another(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    figure = page(**changes)
    assert len(figure.axes) == (6 if not changes else 5)
    labels = [ax.get_ylabel() for ax in figure.axes]
    unit = "" if changes else " [V]"
    assert labels[:3] == [f"water level{unit}", f"error of water level{unit}", f"water level{unit}"]
    assert figure.axes[-1].get_title() == "residual cross-correlation with pump voltage"
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:4] == ["measured", "linear", "LBDN gamma = 5", "99 % band"]
    assert ("errors count from here" in names) is not bool(changes)
    assert overlapping(figure) == []
    save_figure(figure, tmp_path / "page.png", dpi=50)
    assert imread(tmp_path / "page.png").shape[:2] == (550, 500)


def test_long_names_fit_under_the_page() -> None:
    names = [f"a model with a rather long name, number {k}" for k in range(6)]
    every = {name: ONE for name in names}
    auto, cross = ({name: lags / 30 for name in names} for lags in (LAGS, CROSS_LAGS))
    figure = page(simulated=every, auto=auto, cross=cross, horizons=None, errors=None)
    assert overlapping(figure) == []


def test_the_check_of_texts_can_fail() -> None:
    figure = page()
    figure.text(0.5, figure.axes[0].get_position().y1, "Tanks, test record")
    figure.axes[0].set_title("Tanks, test record")
    figure.axes[0].text(0.5, 0.5, "here", transform=figure.axes[0].transAxes)
    figure.axes[0].text(0.5, 0.5, "there", transform=figure.axes[0].transAxes)
    assert ("here", "there") in overlapping(figure)


def test_the_table_of_a_comparison() -> None:
    rows = [
        ROW,
        {**ROW, "model": "bad", "rmse": np.inf, "nrmse": np.inf, "fit": -np.inf, "r_squared": -np.inf},
    ]
    table = comparison_table(rows)
    assert table.rows[0] == ("linear", "2", "level", "0.663 V", "0.313", "68.74", "0.9023", "4 %", "96 %")
    assert table.rows[1][3:7] == ("inf V", "inf", "-inf", "-inf")
    assert "| linear |" in table.markdown() and "RMSE" in table.text()
    assert comparison_table([{**ROW, "unit": "", "fit": -4.6e93}]).rows[0][3:6] == (
        "0.663",
        "0.313",
        "-4.60e+93",
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: simulated_output(TIME, MEASURED[:-1], MODELS),
            ShapeError,
            r"measured: expected shape \(400,\)",
        ),
        (
            lambda: simulated_output(TIME, MEASURED, {"a": ONE[:-1]}),
            ShapeError,
            r"simulated\['a'\]: expected",
        ),
        (lambda: simulated_output(TIME, MEASURED * np.nan, MODELS), NonFiniteError, "measured"),
        (lambda: simulated_output(TIME, MEASURED, {}), InvalidArgumentError, "at least one model"),
        (
            lambda: simulated_output(TIME[::-1], MEASURED, MODELS),
            InvalidArgumentError,
            "time: expected ascending",
        ),
        (lambda: residual_correlation(LAGS, {"a": LAGS[:3]}, 0.1), ShapeError, "correlation"),
        (lambda: residual_correlation(LAGS, {"a": LAGS}, 0.0), InvalidArgumentError, "band"),
        (lambda: error_against_horizon(HORIZONS, {"a": [1.0]}), ShapeError, "errors"),
        (lambda: page(errors=None), InvalidArgumentError, "horizons, errors: expected both or neither"),
        (lambda: page(auto={"other": LAGS}), InvalidArgumentError, "auto: expected models of simulated"),
        (lambda: comparison_table([]), InvalidArgumentError, "rows: expected at least one row"),
        (
            lambda: comparison_table([{"model": "a"}]),
            InvalidArgumentError,
            r"rows\[0\]: expected the columns",
        ),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
