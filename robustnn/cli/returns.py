"""What a sweep of returns leaves: a table, a CSV file of all episodes, a JSON summary and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from robustnn.cli.perturbations import Condition
from robustnn.files import atomic_write_text
from robustnn.report.files import write_csv
from robustnn.report.plots import return_against_eps, save_figure
from robustnn.report.statistics import bootstrap_interval
from robustnn.report.style import Appearance, style
from robustnn.report.tables import Table
from robustnn.runs import RunFolder

__all__ = ["STRONGEST", "strongest", "write"]

STRONGEST = "strongest"

Scores = NDArray[np.float64]


def write(
    run: RunFolder,
    labels: Sequence[str],
    conditions: Sequence[Condition],
    values: Sequence[dict[str, Any]],
    seeds: Sequence[int],
) -> str:
    """Write the files of a sweep and return its table.

    Args:
        run: The folder.
        labels: Of the models.
        conditions: The perturbations; the first one is none.
        values: What was measured, for every condition and in it for every model.
        seeds: Of the episodes.

    Returns:
        The table as text.
    """
    cells = [list(values[k : k + len(labels)]) for k in range(0, len(values), len(labels))]
    scores = [np.array([value["returns"] for value in row]) for row in cells]
    write_csv(run.path / "returns.csv", _episodes(labels, conditions, cells, seeds))
    lines = list(zip(conditions, scores, strict=True))
    if run.config["command"] == "attack":
        lines += strongest(conditions, scores)
    summary = [_summary(condition, score, labels) for condition, score in lines]
    atomic_write_text(run.path / "summary.json", json.dumps(summary, indent=2) + "\n")
    _figure(run, lines)
    return _table(summary, len(labels)).text()


def strongest(conditions: Sequence[Condition], scores: Sequence[Scores]) -> list[tuple[Condition, Scores]]:
    """Return for every size the least return of every episode under any attack of at most that size.

    An attacker that may err by eps may also err by less, or not at all, and choose the attack for every start state.

    Args:
        conditions: The perturbations; those without a size count at every size.
        scores: Returns, shape (models, episodes) each.

    Returns:
        A condition "strongest" and its returns for every size, ascending.
    """
    result = []
    for size in sorted({c.size for c in conditions if c.size is not None}):
        allowed = [s for c, s in zip(conditions, scores, strict=True) if c.size is None or c.size <= size]
        condition = Condition({"name": STRONGEST, "eps": size}, STRONGEST, size)
        result.append((condition, np.min(allowed, axis=0)))
    return result


def _episodes(
    labels: Sequence[str],
    conditions: Sequence[Condition],
    cells: Sequence[Sequence[dict[str, Any]]],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    return [
        {
            "model": label,
            "perturbation": condition.label,
            "size": float("nan") if condition.size is None else condition.size,
            "seed": seed,
            "return": value["returns"][e],
            "length": value["lengths"][e],
            "terminated": "" if value["terminated"] is None else str(value["terminated"][e]),
            "parameters": json.dumps(value["perturbation"], sort_keys=True),
        }
        for condition, row in zip(conditions, cells, strict=True)
        for label, value in zip(labels, row, strict=True)
        for e, seed in enumerate(seeds)
    ]


def _summary(condition: Condition, scores: Scores, labels: Sequence[str]) -> dict[str, Any]:
    # The spread is that over models where there are several, else that over episodes.
    rows = scores if len(scores) > 1 else scores.T
    interval = bootstrap_interval(rows) if len(rows) > 1 else None
    return {
        "perturbation": condition.label,
        "size": condition.size,
        "config": condition.config,
        "mean": float(scores.mean()),
        "interval": None if interval is None else [interval.low, interval.high],
        "worst": float(scores.min()),
        "models": {label: float(score.mean()) for label, score in zip(labels, scores, strict=True)},
    }


def _table(summary: Sequence[dict[str, Any]], models: int) -> Table:
    over = f"{models} models" if models > 1 else "episodes"
    header = ("perturbation", "size", "mean return", f"95 % over {over}", "worst episode")
    rows = tuple(
        (
            row["perturbation"],
            "" if row["size"] is None else f"{row['size']:g}",
            f"{row['mean']:.4g}",
            "" if row["interval"] is None else f"[{row['interval'][0]:.4g}, {row['interval'][1]:.4g}]",
            f"{row['worst']:.4g}",
        )
        for row in summary
    )
    return Table(header, rows)


def _looks(count: int) -> list[tuple[str, str]]:
    """Colours and markers, one per curve."""
    colors = colormaps["viridis"](np.linspace(0.0, 0.85, count))
    return [(to_hex(color), "osD^vPX*"[k % 8]) for k, color in enumerate(colors)]


def _figure(run: RunFolder, lines: Sequence[tuple[Condition, Scores]]) -> None:
    """Draw the return of each kind against its size, which begins at zero: no perturbation."""
    kinds = dict.fromkeys(condition.label for condition, _ in lines if condition.size is not None)
    nothing = lines[0][1]
    curves = {}
    for kind in kinds or ["none"]:
        points = {c.size: s for c, s in lines if c.label == kind and c.size is not None}
        sizes = sorted({0.0} | set(points)) if kinds else [0.0]
        curves[kind] = (sizes, np.stack([points.get(size, nothing) for size in sizes], axis=1))
    looks = {
        kind: Appearance(color, marker)
        for kind, (color, marker) in zip(curves, _looks(len(curves)), strict=True)
    }
    with style():
        figure, axes = plt.subplots()
        for kind, (sizes, scores) in curves.items():
            shown = scores if len(scores) > 1 else scores[0].T  # one model: the spread is that over episodes
            if len(shown) > 1:
                return_against_eps(
                    sizes, {kind: shown}, ax=axes, looks={kind: looks[kind]}, legend=False,
                    xlabel="size of the perturbation",
                )  # fmt: skip
            else:
                look = looks[kind]
                axes.plot(sizes, shown[0], look.linestyle, color=look.color, marker=look.marker, label=kind)
                axes.set(xlabel="size of the perturbation", ylabel="return per episode")
        axes.legend()
        save_figure(figure, run.figure("returns.png"))
        plt.close(figure)
