from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from robustnn import report
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.report import bootstrap_interval

EPS = np.array([0.0, 0.11, 0.2, 0.45])
MODELS = ("MLP", "LBDN γ = 5", "LBDN γ = 20")


def returns(*trailing: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {m: -200.0 - 50.0 * rng.random((5, len(EPS), *trailing)) for m in MODELS}


def bands(ax: Axes) -> list[np.ndarray]:
    return [c.get_paths()[0].vertices for c in ax.collections]


@pytest.mark.parametrize("trailing", [(), (7,)])
def test_return_curves_and_bands_are_the_bootstrap(trailing: tuple[int, ...]) -> None:
    data = returns(*trailing)
    ax = report.return_against_eps(EPS, data, statistic="iqm")
    assert [line.get_label() for line in ax.lines] == list(MODELS)
    for line, band, scores in zip(ax.lines, bands(ax), data.values(), strict=True):
        intervals = [bootstrap_interval(scores[:, j], "iqm") for j in range(len(EPS))]
        np.testing.assert_allclose(line.get_ydata(), [i.estimate for i in intervals])
        for eps, interval in zip(EPS, intervals, strict=True):
            edge = band[band[:, 0] == eps, 1]
            np.testing.assert_allclose([edge.min(), edge.max()], interval[1:])


def all_plots() -> list[Axes]:
    data = returns()
    positive = {m: -v[:, 0] for m, v in data.items()}
    changes = {m: 0.001 * EPS * -v for m, v in data.items()}
    t = np.linspace(0.0, 9.0, 40)
    return [
        report.return_against_eps(EPS, data),
        report.attack_convergence(data, noise={"MLP": data["MLP"][:, 0]}),
        report.lipschitz_bars(positive, {"MLP": 400.0}),
        report.action_sensitivity(EPS, changes, {"MLP": 5.0}, action_span=2.0),
        report.phase_portrait(t + np.zeros((3, 1)), np.cos(t) + np.zeros((3, 1)), dt=0.05),
    ]


def test_every_plot_has_labels_a_legend_and_stays_inside_its_figure() -> None:
    for ax in all_plots():
        figure = ax.figure
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
        legend = ax.get_legend()
        assert legend is not None and ax.get_ylabel()
        assert ax.get_xlabel() or [tick.get_text() for tick in ax.get_xticklabels()]
        renderer = figure.canvas.get_renderer()
        box, page = ax.get_tightbbox(renderer), figure.bbox
        assert box is not None
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert legend.get_window_extent(renderer).y1 <= ax.xaxis.get_tightbbox(renderer).y0


def test_plots_draw_in_given_axes_and_leave_settings_alone() -> None:
    before = dict(plt.rcParams)
    figure, ax = plt.subplots()
    assert report.return_against_eps(EPS, returns(), ax=ax, legend=False) is ax
    assert ax.get_legend() is None
    all_plots()
    assert dict(plt.rcParams) == before
    assert len(plt.get_fignums()) == 6


def test_appearance_follows_gamma_and_not_the_order_of_the_call() -> None:
    labels = ["LBDN γ = 20", "MLP", "LBDN γ = 5", "LBDN gamma=8.5", "MLP, early stop", "LBDN γ = 5, 4M steps"]
    looks = report.appearances(labels)
    assert looks == report.appearances(labels[::-1])
    assert looks["MLP"].color == "#000000"
    ordered = ("LBDN γ = 5", "LBDN gamma=8.5", "LBDN γ = 20")
    lightness = [float(np.dot(to_rgb(looks[label].color), (0.2126, 0.7152, 0.0722))) for label in ordered]
    assert lightness == sorted(lightness)
    assert looks["LBDN γ = 5"].color == looks["LBDN γ = 5, 4M steps"].color
    assert looks["LBDN γ = 5"].linestyle != looks["LBDN γ = 5, 4M steps"].linestyle
    assert len({(look.color, look.linestyle) for look in looks.values()}) == len(labels)
    ax = report.return_against_eps(EPS, {"LBDN γ = 5": returns()["MLP"]}, looks=looks)
    assert ax.lines[0].get_color() == looks["LBDN γ = 5"].color


def test_lipschitz_bars_show_every_seed_and_certificate() -> None:
    empirical = {"MLP": np.array([14.0, 15.0, 13.0]), "LBDN γ = 5": np.array([4.0, 4.5, 4.9])}
    ax = report.lipschitz_bars(empirical, {"MLP": [250.0, 260.0, 270.0], "LBDN γ = 5": 5.0})
    seeds = [line.get_ydata() for line in ax.lines if line.get_marker() == "."]
    np.testing.assert_array_equal(seeds, list(empirical.values()))
    bars = [c.get_segments() for c in ax.collections if isinstance(c, LineCollection)]
    assert [sorted({float(segment[0, 1]) for segment in c}) for c in bars] == [[250.0, 260.0, 270.0], [5.0]]
    assert ax.get_yscale() == "log"
    assert report.lipschitz_bars(empirical, {}, log=False).get_ylim()[0] == 0.0


def test_action_sensitivity_takes_the_largest_and_draws_gamma_eps() -> None:
    changes = np.random.default_rng(0).random((4, len(EPS), 30)) * EPS[:, None]
    ax = report.action_sensitivity(EPS, {"LBDN γ = 5": changes}, {"LBDN γ = 5": 5.0})
    found, certified = ax.lines
    np.testing.assert_allclose(found.get_ydata(), changes.max(axis=2).mean(axis=0))
    x, y = certified.get_data()
    np.testing.assert_allclose(y, 5.0 * np.asarray(x))
    assert np.max(x) == EPS[-1]
    edge = bands(ax)[0]
    assert edge[:, 1].max() == changes.max()


@pytest.mark.parametrize("turns", [2.3, -2.3])
def test_phase_portrait_never_jumps_and_covers_the_whole_path(turns: float) -> None:
    angle = np.linspace(1.0, 1.0 + 2 * np.pi * turns, 61)
    wrapped = np.angle(np.exp(1j * angle))
    rate = np.linspace(0.0, 6.0, 61)
    ax = report.phase_portrait(wrapped[None], rate[None])
    lines = next(c for c in ax.collections if isinstance(c, LineCollection))
    segments = np.array(lines.get_segments())
    steps = np.diff(segments[:, :, 0], axis=1)
    np.testing.assert_allclose(steps, angle[1] - angle[0], rtol=1e-9)
    visible = np.clip(segments[:, :, 0], -np.pi, np.pi)
    assert np.abs(np.diff(visible, axis=1)).sum() == pytest.approx(2 * np.pi * abs(turns), rel=1e-9)
    assert ax.get_xlim() == pytest.approx((-np.pi, np.pi))
    plain = report.phase_portrait(angle[None], rate[None], period=None)
    assert plain.get_xlim()[1 if turns > 0 else 0] * np.sign(turns) > np.abs(angle).max() - 2.0


def test_phase_portrait_collects_conditions() -> None:
    t = np.linspace(0.0, 1.0, 5)
    ax = report.phase_portrait(t, t, color="k", label="no attack")
    report.phase_portrait(t, -t, color="r", label="attack", ax=ax)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["no attack", "attack", "start", "end"]


def test_figures_are_saved_reproducibly(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        with report.style():
            figure, ax = plt.subplots(figsize=(2, 2))
        ax.plot([0, 1])
        report.save_figure(figure, tmp_path / name, pdf=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert plt.imread(tmp_path / "a.png").shape == (300, 300, 4)
    with pytest.raises(InvalidArgumentError, match="path: expected"):
        report.save_figure(figure, tmp_path / "a.jpg")


DATA = {"MLP": np.ones((3, 4))}
BAD_CALLS = [
    (
        lambda: report.return_against_eps(EPS, {}),
        InvalidArgumentError,
        "returns: expected at least one model",
    ),
    (lambda: report.return_against_eps(EPS, {"MLP": np.ones((1, 4))}), ShapeError, r"returns\['MLP'\]"),
    (lambda: report.return_against_eps(EPS[:3], DATA), ShapeError, r"returns\['MLP'\]: expected shape"),
    (lambda: report.return_against_eps(EPS[::-1], DATA), InvalidArgumentError, "eps: expected ascending"),
    (lambda: report.return_against_eps([[0.0]], DATA), ShapeError, "eps: expected shape"),
    (lambda: report.return_against_eps(EPS, {"MLP": DATA["MLP"] * np.nan}), NonFiniteError, "12 NaN"),
    (lambda: report.return_against_eps(EPS, DATA, looks={}), InvalidArgumentError, "looks: expected"),
    (lambda: report.attack_convergence(DATA, noise={"LBDN": [1.0]}), InvalidArgumentError, "noise: expected"),
    (lambda: report.lipschitz_bars({"MLP": [0.0, 1.0]}, {}), InvalidArgumentError, r"empirical\['MLP'\]"),
    (lambda: report.lipschitz_bars({"MLP": [1.0, 1.0]}, {"MLP": -1.0}), InvalidArgumentError, "certified"),
    (lambda: report.action_sensitivity(EPS, DATA, {"A": 1.0}), InvalidArgumentError, "certified: expected"),
    (lambda: report.phase_portrait(np.ones(4), np.ones(5)), ShapeError, "angle and rate"),
    (
        lambda: report.phase_portrait(np.ones(4), np.ones(4), label="a"),
        InvalidArgumentError,
        "color: expected",
    ),
    (lambda: report.phase_portrait(np.ones(4), np.ones(4), dt=0.0), InvalidArgumentError, "dt: expected"),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD_CALLS)
def test_bad_calls_name_the_argument(call, error, match) -> None:
    with pytest.raises(error, match=match):
        call()
