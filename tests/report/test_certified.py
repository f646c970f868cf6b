from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustnn import report
from robustnn.errors import CertificateError, InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.report import bootstrap_interval, performance_profile

EPS = np.array([0.0, 0.05, 0.1, 0.2])
MODELS = ("MLP", "LBDN gamma = 4")
RNG = np.random.default_rng(0)


def changes() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    upper = {m: (1.0 + k) * EPS[:, None] * RNG.uniform(0.9, 1.1, (5, 4, 30)) for k, m in enumerate(MODELS)}
    return upper, {m: v * RNG.uniform(0.3, 0.8, v.shape) for m, v in upper.items()}


def rates() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    lower = {m: np.exp(-EPS * (8 + 6 * k)) * RNG.uniform(0.9, 1.0, (5, 1)) for k, m in enumerate(MODELS)}
    return lower, {m: v**0.4 for m, v in lower.items()}


GAINS = np.array([0.2, 0.5, 1.0, 2.0])


def gains() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    found = {m: (1.0 + GAINS + k) * RNG.uniform(0.9, 1.1, (5, 4)) for k, m in enumerate(MODELS)}
    upper = {m: v * (1.5 + GAINS) for m, v in found.items()}
    upper["MLP"][2, 3] = np.nan
    return upper, found


def frontier() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    nominal = {m: RNG.normal(-160 - 5 * k, 3, (5, 20)) for k, m in enumerate((*MODELS, "SA-PPO"))}
    return nominal, {m: v - RNG.uniform(20, 90) * (3 - k) for k, (m, v) in enumerate(nominal.items())}


def all_plots(axes: list[Axes] | None = None) -> list[Axes]:
    given = axes or [None] * 5
    returns = {m: RNG.normal(-170 - 900 * EPS[:, None], 30, (5, 4, 20)) for m in MODELS}
    return [
        report.certified_action_change(EPS, *changes(), ax=given[0]),
        report.certification_against_eps(EPS, *rates(), ax=given[1]),
        report.loop_gains(GAINS, *gains(), limit=0.72, ax=given[2]),
        report.robustness_frontier(*frontier(), reference=-150.0, ax=given[3]),
        report.profile_against_eps(EPS, returns, -250.0, ax=given[4]),
    ]


def test_every_plot_has_units_a_legend_and_stays_inside_its_figure() -> None:
    for ax in all_plots():
        figure = ax.figure
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
        legend = ax.get_legend()
        assert legend is not None and ax.get_ylabel() and ax.get_xlabel()
        renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        box, page = ax.get_tightbbox(renderer), figure.bbox
        assert box is not None
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        words = [text.get_text() for text in legend.get_texts()]
        assert "MLP" in words and not any(word.startswith("_") for word in words)


def test_plots_draw_in_given_axes_and_leave_settings_alone() -> None:
    before = dict(plt.rcParams)
    axes = list(plt.subplots(1, 5)[1])
    assert all_plots(axes) == axes
    assert dict(plt.rcParams) == before


def test_lines_are_the_bootstrap_of_the_data() -> None:
    upper, lower = changes()
    ax = report.certified_action_change(EPS, upper, lower, statistic="iqm")
    for k, label in enumerate(MODELS):
        for line, data in zip(ax.lines[2 * k : 2 * k + 2], (upper[label], lower[label]), strict=True):
            expected = [bootstrap_interval(data[:, j], "iqm").estimate for j in range(4)]
            np.testing.assert_allclose(line.get_ydata(), expected)
    returns = {"a": RNG.normal(0.0, 1.0, (4, 4, 10))}
    ax = report.profile_against_eps(EPS, returns, 0.2)
    profile = performance_profile([returns["a"][:, j] for j in range(4)], EPS, 0.2)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [one.estimate for one in profile])


def test_a_violated_certificate_is_not_drawn() -> None:
    upper, lower = changes()
    lower["MLP"][3, 2, 7] = upper["MLP"][3, 2, 7] * 1.0001  # one entry, which the mean would hide
    with pytest.raises(CertificateError, match=r"found\['MLP'\]: expected no action change above"):
        report.certified_action_change(EPS, upper, lower)
    certified, unchanged = rates()
    certified[MODELS[1]][0, 0] = 1.1
    with pytest.raises(CertificateError, match="certified"):
        report.certification_against_eps(EPS, certified, unchanged)
    bounds, found = gains()
    found["MLP"][0, 0] = 1e3
    with pytest.raises(CertificateError, match="gain"):
        report.loop_gains(GAINS, bounds, found)


def test_loops_without_a_certificate_are_marked_and_leave_a_gap() -> None:
    bounds, found = gains()
    ax = report.loop_gains(GAINS, bounds, found, limit=0.7)
    assert [text.get_text() for text in ax.texts] == ["none"]
    assert len(ax.lines[1].get_xdata()) == 3 and len(ax.lines[3].get_xdata()) == 4
    np.testing.assert_allclose(np.asarray(ax.lines[4].get_ydata()), 0.7)


def test_frontier_joins_what_no_other_method_beats() -> None:
    nominal = {"a": [-150.0, -150.0], "b": [-160.0, -160.0], "c": [-170.0, -170.0]}
    attacked = {"a": [-400.0, -400.0], "b": [-500.0, -500.0], "c": [-200.0, -200.0]}
    ax = report.robustness_frontier(nominal, attacked, names=True)
    steps = next(line for line in ax.lines if line.get_linestyle() == ":")
    assert set(np.asarray(steps.get_xdata())) == {-150.0, -170.0}
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]


def test_bad_calls() -> None:
    upper, lower = changes()
    with pytest.raises(InvalidArgumentError, match="found: expected models of certified"):
        report.certified_action_change(EPS, {"MLP": upper["MLP"]}, lower)
    with pytest.raises(ShapeError, match="expected the shape of certified"):
        report.certified_action_change(EPS, upper, {m: v[..., :5] for m, v in lower.items()})
    bounds, found = gains()
    with pytest.raises(ShapeError, match="One per gain found"):
        report.loop_gains(GAINS, {"MLP": bounds["MLP"][:3]}, found)
    nominal, attacked = frontier()
    with pytest.raises(NonFiniteError, match="reference"):
        report.robustness_frontier(nominal, attacked, reference=np.nan)
    with pytest.raises(InvalidArgumentError, match="attacked"):
        report.robustness_frontier(nominal, {**attacked, "x": attacked["MLP"]})
    with pytest.raises(ShapeError, match="n_seeds >= 2"):
        report.profile_against_eps(EPS, {"a": np.zeros((1, 4, 3))}, 0.0)
