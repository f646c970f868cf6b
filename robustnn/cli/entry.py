"""The parser of all commands, and what becomes of errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from robustnn import __version__
from robustnn.cli import certify as certify_command
from robustnn.cli import evaluate as evaluate_command
from robustnn.cli import export as export_command
from robustnn.cli import fit as fit_command
from robustnn.cli import simulate as simulate_command
from robustnn.cli import train as train_command
from robustnn.errors import RobustNNError

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="robustnn",
        description="Train, attack, evaluate, certify and export Lipschitz-bounded policies; fit and simulate models.",
        epilog="'robustnn COMMAND --help' explains a command and gives an example.",
    )
    top.add_argument("--version", action="version", version=f"robustnn {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    train_command.add_to(commands)
    evaluate_command.add_to(commands)
    evaluate_command.add_attack_to(commands)
    certify_command.add_to(commands)
    export_command.add_to(commands)
    fit_command.add_to(commands)
    simulate_command.add_to(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of this process if None.

    Returns:
        Exit code: 0, 2 for what the user can mend, with one line about it, and 130 after Ctrl-C.
    """
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except RobustNNError as error:
        print(f"robustnn: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"robustnn: error: {error}. Check the path and its permissions.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robustnn: interrupted; the same command goes on with what is left", file=sys.stderr)
        return 130
    return 0
