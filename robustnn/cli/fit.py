"""`robustnn fit`: a dynamics model from recorded inputs and outputs, with a certificate and a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from robustnn.cli.options import add_command, add_record_options

__all__ = ["BENCHMARK_NAMES", "MODEL_NAMES", "add_to"]

# Written out, since the parser of every command is made without loading the models.
MODEL_NAMES = ("lipschitz", "unconstrained", "residual", "continuous", "narx", "linear")
BENCHMARK_NAMES = ("cascaded_tanks", "silverbox", "wiener_hammerstein")


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "fit",
        "fit a Lipschitz-bounded dynamics model to recorded data",
        "Fit a dynamics model to inputs and outputs in a table of text or a MATLAB file, by its open-loop simulation "
        "error; keep what simulates the validation data best; certify it in the units of the data. Writes model.npz, "
        "report.json, report.md, simulated.csv, history.csv and figures into the run folder. The same command "
        "continues an interrupted fit.",
        "robustnn fit tanks.csv --u pump --y level --ts 4 --units-u V --units-y V --out runs/tanks",
        _run,
    )
    parser.add_argument(
        "data", metavar="DATA", nargs="*", type=Path,
        help="CSV or .mat files for training, one experiment each; a column 'level [V]' may be called 'level'",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark", choices=BENCHMARK_NAMES, help="public data with their official split, instead of DATA"
    )
    add_record_options(parser, ts="; of a MATLAB file the variable that holds it")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--val", metavar="FILE", nargs="+", type=Path, help="validation data")
    held.add_argument(
        "--val-fraction", type=float, default=0.25, metavar="F",
        help="else the last part of every training record (default: 0.25)",
    )  # fmt: skip
    parser.add_argument("--test", metavar="FILE", nargs="+", type=Path, help="data that only the report uses")
    _add_model_options(parser)
    _add_fit_options(parser)
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="run folder (default: one in runs/)")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=MODEL_NAMES, default="lipschitz", help="default: lipschitz")
    group.add_argument(
        "--n-x", type=int, default=3, metavar="N",
        help="number of states; of narx the number of past outputs and of past inputs (default: 3)",
    )  # fmt: skip
    group.add_argument(
        "--hidden", default="16", metavar="N,...", help="widths of the hidden layers (default: 16)"
    )
    group.add_argument(
        "--lipschitz", type=float, metavar="L",
        help="bound of the state map in the state (default: 0.99); of residual and continuous that of the nonlinear "
        "part (default: 0.5), of narx that of the next output in past ones and inputs (default: 2)",
    )  # fmt: skip
    group.add_argument("--activation", default="tanh", metavar="NAME", help="default: tanh")
    group.add_argument("--feedthrough", action="store_true", help="inputs act on outputs at once")
    group.add_argument(
        "--path", metavar="L,...",
        help="fit at each of these bounds, and take the smallest one with 1.05 times the least error",
    )  # fmt: skip


def _add_fit_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fit")
    group.add_argument(
        "--method", choices=("auto", "full", "windows"), default="auto",
        help="L-BFGS on whole records, or first Adam on windows (default: auto, by length)",
    )  # fmt: skip
    group.add_argument("--starts", type=int, default=5, metavar="N", help="number of starts (default: 5)")
    group.add_argument("--seed", type=int, default=0, help="seed of the first start (default: 0)")
    group.add_argument(
        "--time-budget", type=float, default=300.0, metavar="S",
        help="wall time for all starts in s; with --path, for each of two fits per bound (default: 300)",
    )  # fmt: skip
    group.add_argument(
        "--max-iterations", type=int, default=100_000, metavar="N",
        help="per start; a fit that this ends does not depend on the speed of the machine (default: 100000)",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=int, default=30, metavar="N",
        help="checks without a smaller validation error that end a start (default: 30)",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="processes that work on starts, each with one thread (default: 1, in this process)",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> None:
    from robustnn.cli.fitting import run_fit

    run_fit(arguments)
