"""Options that commands share, and their values."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustnn.errors import RobustNNError, check_positive_int, invalid
from robustnn.sweep import BACKENDS

__all__ = [
    "add_command", "add_model_options", "add_record_options", "add_sweep_options", "check_device", "file_word",
    "numbers", "read_config",
]  # fmt: skip


def add_command(
    commands: Any, name: str, short: str, text: str, example: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a command with its description and example, and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=textwrap.fill(text, 100),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add what names trained models: MODEL, --algo, --vecnormalize, --env, --device."""
    text = "zip file of Stable-Baselines3"
    if several:
        text += "; several are training seeds of one model"
    parser.add_argument("model", metavar="MODEL", nargs="+" if several else None, type=Path, help=text)
    parser.add_argument("--algo", help="algorithm of the model (told from the file if left out)")
    parser.add_argument(
        "--vecnormalize", type=Path, metavar="FILE",
        help="saved VecNormalize of the model (default: vecnormalize.pkl beside it, if there is one)",
    )  # fmt: skip
    parser.add_argument("--env", metavar="ID", help="gymnasium id, or robustnn/... for a plant")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how the cells of a sweep are computed: --workers, --backend."""
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N",
        help="worker processes, each with one thread (default: 0, in this process)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=BACKENDS, default="processes",
        help="where workers run: this machine, or a cluster of dask or ray (default: processes)",
    )  # fmt: skip


def add_record_options(parser: argparse.ArgumentParser, *, ts: str) -> None:
    """Add what names the channels of records: --u, --y, --ts, --time, --units-u, --units-y, --n-init, --delimiter.

    Args:
        parser: Gets the options.
        ts: What the sampling time is where it is not given.
    """
    parser.add_argument("--u", nargs="+", metavar="COL", help="columns of the inputs")
    parser.add_argument("--y", nargs="+", metavar="COL", help="columns of the outputs")
    parser.add_argument("--ts", metavar="SECONDS", help=f"sampling time{ts}")
    parser.add_argument(
        "--time", metavar="COL", help="column of times in s, sampled uniformly, instead of --ts"
    )
    parser.add_argument("--units-u", nargs="+", metavar="UNIT", help="units of the inputs")
    parser.add_argument("--units-y", nargs="+", metavar="UNIT", help="units of the outputs")
    parser.add_argument(
        "--n-init", type=int, default=50, metavar="N",
        help="first samples, from whose outputs the initial state comes; errors count after them (default: 50)",
    )  # fmt: skip
    parser.add_argument(
        "--delimiter", default=",", metavar="C", help="character between two cells, or tab (default: ,)"
    )


def file_word(text: str) -> str:
    """Return what of a text can be part of a file name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._=+,-") else "_" for c in text)
    return kept.lstrip("._=+,-")[:60] or "model"


def check_device(name: str) -> str:
    """Return the name of a device after checking that torch can use it."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise invalid("--device", "a device that torch can use", repr(name), "Use cpu.") from error
    return name


def numbers(name: str, text: str) -> tuple[float, ...]:
    """Return the numbers in a text such as "0.05,0.1"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise invalid(name, "numbers with commas between them", repr(text), "Write 0.05,0.1.") from error


def seeds(name: str, text: str) -> tuple[int, ...]:
    """Return the integers in a text such as "0,1,2"."""
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise invalid(name, "integers >= 0 with commas between them", repr(text), "Write 0,1,2.")
    return tuple(check_positive_int(name, int(part), minimum=0) for part in text.split(","))


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a YAML or JSON file that holds a mapping.

    Args:
        path: The file; JSON by its ending ``.json``, YAML otherwise.

    Raises:
        InvalidArgumentError: If it cannot be read or holds something else.
        RobustNNError: If it is a YAML file and PyYAML is not installed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            content = json.loads(text)
        else:
            content = _yaml(text)
    except (OSError, ValueError) as error:
        raise invalid(
            "CONFIG", "a readable YAML or JSON file", f"{path} ({error})", "Check the path and the file."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise invalid("CONFIG", "a mapping of names", type(content).__name__, f"Correct {path}.")
    return content


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise RobustNNError(
            "CONFIG: expected PyYAML for a YAML file, got none installed. Install it with 'pip install pyyaml', or "
            "write the configuration as a .json file."
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
