"""What a result was computed with: versions, platform, commit and command, fit to be published."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "robustnn",
    "torch",
    "numpy",
    "scipy",
    "gymnasium",
    "stable-baselines3",
    "matplotlib",
    "array-api-compat",
    "jaxtyping",
)


def environment(*, repository: str | os.PathLike[str] = ".", packages: Iterable[str] = ()) -> dict[str, Any]:
    """Describe what this program runs on, without anything that names the machine.

    Args:
        repository: a folder in the git checkout whose commit is recorded.
        packages: further distributions whose versions are recorded, besides the dependencies.

    Returns:
        Versions of the installed packages and of Python, the platform, ``git`` (commit, and whether tracked
        files differ from it, or None outside a checkout), and the command line with relative paths.
    """
    versions = {}
    for package in (*_PACKAGES, *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": versions,
        "git": _git(repository),
        "command": [relative_paths(argument) for argument in sys.argv],
    }


def _git(repository: str | os.PathLike[str]) -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(repository), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return result.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def relative_paths(text: str) -> str:
    """Return a text in which absolute paths are relative to the working directory, or just their last part.

    A path is the whole text, or what stands between ``=``, ``,`` and ``;``.

    Args:
        text: a command-line argument or an option.

    Example:
        >>> relative_paths("--out=/somewhere/else/table.csv")
        '--out=.../table.csv'
    """
    return "".join(_relative(part) for part in re.split("([=,;])", text))


def _relative(part: str) -> str:
    if not os.path.isabs(part):
        return part
    try:
        return Path(part).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return f".../{Path(part).name}"
