"""Tables and figures of the experiment on identified models, from its run folder alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from experiments.identification_study.figures import bound_figure, page_figures, spread_figure
from experiments.identification_study.published import PUBLISHED
from experiments.identification_study.results import (
    CHOSEN,
    Array,
    Results,
    median_interval,
    quartiles,
    record_name,
)
from robustnn.report import Interval, Table, atomic_write_text, style
from robustnn.runs import RunFolder


def error_table(results: Results) -> Table:
    """Test errors over seeds: one row per test record, output and model class."""
    header = ("test record", "model", "median [95 %]", "quartiles", "worst", "best seed by validation")
    rows = []
    for record, k, title in results.panels():
        for label, models in results.rows().items():
            errors = results.of_row(models, lambda model: results.errors(model, record, k))  # noqa: B023
            chosen = errors[np.argmin(results.of_row(models, results.validation))]
            low, high = quartiles(errors)
            cells = (_interval(median_interval(errors)), f"{_text(low)} to {_text(high)}")
            rows.append((title, label, *cells, _text(errors.max()), _text(chosen)))
    return Table(header, tuple(rows))


def start_table(results: Results) -> Table:
    """Test errors after single starts, chosen or not, on the first test record and output."""
    record, k, _ = results.panels()[0]
    rows = []
    for model in results.config.models:
        errors = results.start_errors(model, record, k).reshape(-1)
        tenth = float(np.quantile(errors, 0.9, method="nearest"))
        cells = (_text(errors.min()), _text(_median(errors)), _text(tenth), _text(errors.max()))
        rows.append((model.label, str(len(errors)), *cells))
    return Table(("model", "starts", "best", "median", "worst tenth from", "worst"), tuple(rows))


def certificate_table(results: Results) -> Table:
    """Constants by construction, and what was proved of the fitted models, over seeds."""
    content = results.page()
    units = [sorted(set(content[name])) for name in ("y_units", "u_units")]
    known = all(len(unit) == 1 and unit[0] not in ("", "1") for unit in units)
    gain = f"l2 gain [{units[0][0]}/{units[1][0]}]" if known else "l2 gain"
    header = (
        "model", "L_x", "L_u, median", "rate, median", "rate, range", "contracting", f"{gain}, median", "largest",
    )  # fmt: skip
    rows = []
    for model in results.config.models:
        given = [fit["lipschitz_u"] for fit in results.fits(model) if fit["lipschitz_u"] is not None]
        rate, gains = results.certified(model, "rate"), results.certified(model, "l2_gain")
        proved = gains[np.isfinite(gains)]
        rows.append(
            (
                model.label,
                "-" if model.lipschitz is None else f"{model.lipschitz:g}",
                f"{float(np.median(given)):.3g}" if given else "-",
                _rate(_median(rate)),
                f"{_rate(rate.min())} to {_rate(rate.max())}",
                f"{int((rate < 1.0).sum())} of {len(rate)}",
                f"{float(np.median(proved)):.3g}" if len(proved) else "-",
                f"{proved.max():.3g}" if len(proved) else "-",
            )
        )
    return Table(header, tuple(rows))


def fact_table(results: Results) -> Table:
    """Errors on training and validation data, sizes and times, medians over seeds."""
    outputs = results.page()["outputs"]
    names = [f", {name}" for name in outputs] if len(outputs) > 1 else [""]
    header = (
        "model", "parameters", "validation [%]", *(f"training RMSE{name}" for name in names),
        "diverged", "wall time [s]", "longest [s]", "ended by",
    )  # fmt: skip
    rows = []
    for label, models in results.rows().items():
        parameters, ended = "", ""
        if label == CHOSEN:  # every bound had to be tried
            seconds = np.sum([results.seconds(model) for model in results.config.bounded], axis=0)
        else:
            fits, seconds = results.fits(models[0]), results.seconds(models[0])
            parameters = str(fits[0]["n_parameters"])
            counts = Counter(start["ended"] for fit in fits for start in fit["starts"])
            ended = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        train = [
            results.of_row(models, lambda model: results.errors(model, "train_rmse", k))  # noqa: B023
            for k in range(len(outputs))
        ]
        tests = [
            results.of_row(models, lambda model: results.errors(model, record, k))  # noqa: B023
            for record, k, _ in results.panels()
        ]
        rows.append(
            (
                label,
                parameters,
                _text(_median(100.0 * results.of_row(models, results.validation))),
                *(_text(_median(one)) for one in train),
                str(int(np.isinf(np.max(tests, axis=0)).sum())),
                f"{float(np.median(seconds)):.0f}",
                f"{seconds.max():.0f}",
                ended,
            )
        )
    return Table(header, tuple(rows))


def published_table(results: Results) -> Table:
    """Published errors on the same test records."""
    records = results.page()["records"]
    rows = tuple(
        (one.method, *(_text(one.errors[record]) for record in records), one.source)
        for one in PUBLISHED.get(results.config.task, ())
    )
    return Table(("method", *(record_name(record) for record in records), "source"), rows)


def reference_sentence(results: Results) -> str:
    """What a linear model and a perfect one reach."""
    content = results.page()
    parts = []
    for record, k, title in results.panels():
        error = content["linear"][record][k]
        text = f"{title}: linear start {'diverged' if error is None else _text(error)}"
        if content["noise"] is not None:
            text += f", noise {_text(content['noise'][k])}"
        parts.append(text)
    return f"References [{content['unit']}]: {'; '.join(parts)}."


def note(results: Results) -> str:
    """What the tables are of."""
    config, unit = results.config, results.page()["unit"]
    return (
        f"{config.title}, {len(config.training_seeds)} seeds, {config.starts} "
        f"{'start' if config.starts == 1 else 'starts'} each; {config.n_x} states, hidden widths "
        f"{', '.join(map(str, config.hidden))}. Test RMSE [{unit}] of the open-loop simulation, medians over seeds "
        "with 95 % bootstrap intervals. The last "
        f"{100.0 * config.val_share:.0f} % of the training record decided when a start ended, which start was kept, "
        f'and, in the row "{CHOSEN}", which bound; its wall time is that of all bounds together. '
        "Each fit had one thread. L_x and L_u hold by construction, in the states of the model and its scaled inputs. "
        "The rate per step is the smallest one proved afterwards, in a metric of its own, for models of all "
        "kinds alike; below one the model is contracting, and has the incremental l2 gain."
    )


def sections(results: Results) -> list[tuple[str, str]]:
    """Title and Markdown text of every part of the report."""
    unit = results.page()["unit"]
    parts = [
        (f"Test RMSE [{unit}]", error_table(results).markdown()),
        ("Certified constants", certificate_table(results).markdown()),
        ("Training, size, time", fact_table(results).markdown()),
    ]
    if results.config.starts > 1:
        title = results.panels()[0][2]
        parts.append((f"Single starts: test RMSE, {title} [{unit}]", start_table(results).markdown()))
    if results.config.task in PUBLISHED:
        parts.append((f"Published RMSE [{unit}]", published_table(results).markdown()))
    return parts


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figures of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text, and the path of the figure.
    """
    results = Results(run)
    head = f"# {run.name}\n\n{note(results)}\n\n{reference_sentence(results)}"
    text = "\n\n".join([head, *(f"## {title}\n\n{part}" for title, part in sections(results))])
    atomic_write_text(run.path / "tables.md", text + "\n")
    with style():
        figure = bound_figure(results)
        if results.config.starts > 1:
            spread_figure(results)
        page_figures(results)
    tables = (error_table(results), certificate_table(results), fact_table(results))
    return "\n\n".join(table.text() for table in tables), figure


def _median(values: Array) -> float:
    return median_interval(values).estimate


def _text(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "diverged"


def _rate(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "none"


def _interval(interval: Interval) -> str:
    return f"{_text(interval.estimate)} [{_text(interval.low)}, {_text(interval.high)}]"
