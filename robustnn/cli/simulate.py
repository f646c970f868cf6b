"""`robustnn simulate`: the open-loop simulation of a fitted dynamics model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from robustnn.cli.options import add_command, add_record_options

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "simulate",
        "simulate a fitted dynamics model in open loop",
        "Simulate a model of 'robustnn fit' with the inputs in a table of text, in open loop. Writes time, inputs, "
        "measured outputs if the table has them, and simulated outputs as CSV with the units in the header; prints the "
        "errors. Columns are called as the model's channels if --u and --y do not name them.",
        "robustnn simulate runs/tanks/model.npz record.csv --out simulated.csv --figure simulated.png",
        _run,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="model.npz that 'robustnn fit' has written")
    parser.add_argument(
        "data", metavar="DATA", type=Path, help="CSV file, or a .mat file that also has outputs"
    )
    add_record_options(parser, ts=" (default: the model's)")
    parser.add_argument(
        "--x0", choices=("window", "zero"),
        help="initial state: from the first N samples of --n-init, or zero, in which case all samples count for the "
        "errors (default: window if DATA has the outputs)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("simulated.csv"),
        help="table to write (default: simulated.csv)",
    )  # fmt: skip
    parser.add_argument("--figure", metavar="FILE", type=Path, help="PNG of the simulated outputs")


def _run(arguments: argparse.Namespace) -> None:
    from robustnn.cli.simulating import run_simulate

    run_simulate(arguments)
