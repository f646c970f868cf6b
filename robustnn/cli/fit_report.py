"""What `robustnn fit` leaves in its folder: report.json, report.md, simulated.csv, history.csv and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustnn.cli.options import file_word
from robustnn.cli.records import sample_rows, write_rows
from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.validate import Validation, page_arrays, validate
from robustnn.files import atomic_write_text
from robustnn.report.identification_page import validation_page
from robustnn.report.plots import save_figure
from robustnn.report.style import Appearance, style
from robustnn.report.tables import Table
from robustnn.runs import RunFolder

__all__ = ["certificate_text", "write_report"]

_OWN, _LOOKS = Appearance("black", "o", "-"), {"linear": Appearance("#d95f02", "s", "--")}
_HISTORY = ("iteration", "evaluations", "train", "validation", "seconds")


def write_report(run: RunFolder, model: StateSpaceModel, of_linear: Mapping[str, Validation]) -> str:
    """Write all files of the report and return what is printed of it.

    Args:
        run: The folder, with the cells "fit" and "certificate".
        model: The fitted model.
        of_linear: The data, "train", "val" and the tests, as the linear model simulates them that the fit starts from.

    Returns:
        The table of errors and the certificate.
    """
    fitted, certificate = run.cell("fit"), run.cell("certificate")
    data = {part: one.data for part, one in of_linear.items()}
    found = {part: validate(model, one) for part, one in data.items()}
    kind = run.config["model"]
    rows = {part: one.rows(kind) for part, one in found.items()}
    linear_rows = {part: one.rows("linear") for part, one in of_linear.items()}
    content = {
        "model": kind,
        "settings": model.settings(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "channels": model.channels.to_dict(),
        "data": {
            part: {"experiments": [e.name for e in one], "samples": one.n_samples, "n_init": one.n_init}
            for part, one in data.items()
        },
        "errors": rows,
        "errors_of_linear": linear_rows,
        "certificate": certificate,
        "fit": {**fitted, "starts": [_without_history(start) for start in fitted["starts"]]},
        "config": run.config,
    }
    atomic_write_text(run.path / "report.json", json.dumps(_plain(content), indent=2) + "\n")
    table = _errors(rows, linear_rows, kind)
    starts = _starts(fitted)
    path = _path_table(fitted["path"])
    proofs = certificate_text(certificate)
    atomic_write_text(
        run.path / "report.md", _markdown(kind, table, certificate, proofs, starts, path, model)
    )
    write_rows(
        run.path / "simulated.csv",
        [
            {"part": part, "experiment": data[part].experiments[k].name, **row}
            for part, one in found.items()
            for k, simulated in enumerate(one.simulated)
            for row in sample_rows(data[part], k, simulated)
        ],
    )
    if fitted["starts"]:
        write_rows(run.path / "history.csv", _history(fitted["starts"]))
        _save(run, "convergence.png", _convergence(fitted["starts"]))
    if fitted["path"] is not None:
        _save(run, "path.png", _path_figure(fitted["path"]))
    _pages(run, found, of_linear, kind)
    return "\n".join(
        part.text() if isinstance(part, Table) else part for part in (path, table, proofs) if part
    )


def certificate_text(certificate: Mapping[str, Any]) -> str:
    """Return the lines of a stored certificate, or why there is none."""
    if "none" in certificate:
        return f"no certificate: {certificate['none']}"
    return str(certificate["text"])


def _errors(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    linear: Mapping[str, Sequence[Mapping[str, Any]]],
    kind: str,
) -> Table:
    """Errors of every part and output, and beside them that of the linear model."""
    compared = kind != "linear"
    header = ("data", "output", "RMSE", "NRMSE", "fit [%]", "R^2")
    body = []
    for part, some in rows.items():
        for row, other in zip(some, linear[part], strict=True):
            cells = (
                part, row["output"], _with_unit(row["rmse"], row["unit"]), f"{row['nrmse']:.3g}",
                _fixed(row["fit"], 2), _fixed(row["r_squared"], 4),
            )  # fmt: skip
            body.append((*cells, _with_unit(other["rmse"], row["unit"])) if compared else cells)
    return Table((*header, "linear: RMSE") if compared else header, tuple(body))


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if abs(value) < 1e4 else f"{value:.2e}"


def _starts(fitted: Mapping[str, Any]) -> Table | None:
    if not fitted["starts"]:
        return None
    rows = tuple(
        (
            str(one["seed"]) + (" (taken)" if k == fitted["best"] else ""), f"{one['validation']:.4g}",
            str(one["iteration"]), str(one["iterations"]), f"{one['seconds']:.1f}", one["ended"],
        )
        for k, one in enumerate(fitted["starts"])
    )  # fmt: skip
    return Table(("seed", "validation NRMSE", "found at", "iterations", "seconds", "ended by"), rows)


def _path_table(path: Mapping[str, Any] | None) -> Table | None:
    if path is None:
        return None
    rows = tuple(
        (f"{bound:g}", f"{error:.4g}", "taken" if k == path["elbow"] else "")
        for k, (bound, error) in enumerate(zip(path["bounds"], path["errors"], strict=True))
    )
    return Table(("bound", "validation NRMSE", ""), rows)


def _markdown(
    kind: str,
    table: Table,
    certificate: Mapping[str, Any],
    proofs: str,
    starts: Table | None,
    path: Table | None,
    model: StateSpaceModel,
) -> str:
    settings = ", ".join(f"{name} = {value}" for name, value in model.settings().items())
    parts = [
        f"# Model of {', '.join(model.channels.y_names)}",
        f"Class: {kind}. {settings}. Sampling time {model.dt:g} s.",
        "## Errors of the open-loop simulation",
        table.markdown(),
        "## Certificate" if "none" not in certificate else "## No certificate",
        f"```text\n{proofs}\n```",
    ]
    if path is not None:
        parts += ["## Error against the bound", path.markdown()]
    if starts is not None:
        parts += ["## Starts", starts.markdown()]
    return "\n\n".join(parts) + "\n"


def _history(starts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"seed": one["seed"], **dict(zip(_HISTORY, row, strict=True))}
        for one in starts
        for row in one["history"]
    ]


def _without_history(start: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in start.items() if name != "history"}


def _convergence(starts: Sequence[Mapping[str, Any]]) -> Figure:
    """Training and validation error of every start against the iterations."""
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), sharey=True)
    for one in starts:
        values = np.array([row[:4] for row in one["history"]], dtype=float).reshape(-1, 4)
        for ax, column in zip(axes, (2, 3), strict=True):
            ax.plot(values[:, 0], values[:, column], ".-", label=f"seed {one['seed']}")
    for ax, title in zip(axes, ("training", "validation"), strict=True):
        ax.set(yscale="log", xlabel="iterations", title=title)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("error in scaled outputs")
    if len(starts) <= 10:
        axes[1].legend()
    return figure


def _path_figure(path: Mapping[str, Any]) -> Figure:
    with style():
        figure, ax = plt.subplots()
    ax.plot(path["bounds"], path["errors"], "o-", color="black")
    ax.plot(path["bounds"][path["elbow"]], path["errors"][path["elbow"]], "o", color="C3", label="taken")
    ax.set(xlabel="bound of the state map", ylabel="validation NRMSE")
    ax.legend()
    return figure


def _pages(
    run: RunFolder, found: Mapping[str, Validation], of_linear: Mapping[str, Validation], kind: str
) -> None:
    """One page per output, for all data that no parameter was fitted to."""
    for part, one in found.items():
        if part == "train":
            continue
        shown = {kind: one} if kind == "linear" else {kind: one, "linear": of_linear[part]}
        for k, name in enumerate(one.data.y_names):
            figure = validation_page(
                **page_arrays(shown, output=k), looks={**_LOOKS, kind: _OWN}, title=f"{part}: {name}"
            )
            _save(run, f"{file_word(f'{part}_{name}')}.png", figure)


def _save(run: RunFolder, name: str, figure: Figure) -> None:
    save_figure(figure, run.figure(name))
    plt.close(figure)


def _plain(value: Any) -> Any:
    """Return JSON values with None in the place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
