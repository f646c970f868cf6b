"""The import graph: who may import whom, read from the source by `ast`, nothing executed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Robustnn's parts, each with the parts it may import besides itself. Imports only point to the left:
# {errors, files} <- linalg <- params <- nn <- bounds <- {dynamics, policies} <- closedloop
# <- {certify, training} <- report <- cli.
# Parts in one pair of braces do not import each other.
LAYERS: list[set[str]] = [
    {"errors", "files"},
    {"linalg"},
    {"params"},
    {"nn"},
    {"bounds"},
    {"dynamics", "policies"},
    {"closedloop"},
    {"certify", "training"},
    {"report"},
    {"cli"},
]
ALLOWED: dict[str, set[str]] = {
    part: set().union(*LAYERS[:rank]) for rank, layer in enumerate(LAYERS) for part in layer
}
ALLOWED["envs"] = set()
ALLOWED["runs"] = {"errors", "files", "report"}
ALLOWED["workers"] = {"errors"}
ALLOWED["sweep"] = {"errors", "runs", "workers"}
ALLOWED["dynamics"] |= {"workers"}
ALLOWED["cli"] |= {"envs", "robustnn", "runs", "sweep", "workers"}

# Third parties of the parts that must stay light, besides the standard library.
THIRD_PARTIES: dict[str, set[str]] = {
    "envs": {"numpy", "gymnasium", "array_api_compat"},
    "files": set(),
    "runs": {"numpy"},
    "sweep": {"distributed", "joblib", "ray", "tqdm"},
    "workers": set(),
}
FORBIDDEN: dict[str, set[str]] = {"report": {"torch", "stable_baselines3"}}

# What a plant is may be named anywhere below cli (in annotations); which plant it is, nowhere.
PLANT_INTERFACE = "robustnn.envs.plant"

# An optional library, loaded when a window opens and never when the module is imported.
OPTIONAL = {("robustnn.envs.rendering", "pygame")}


class Import(NamedTuple):
    """One imported module, its line, and whether the import stands inside a function."""

    target: str
    line: int
    inside_function: bool


def imports_of(source: str, modules: set[str]) -> Iterator[Import]:
    """All imports of a source text; `from package import module` counts as an import of that module."""

    def visit(node: ast.AST, inside_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, inside_function)
            elif isinstance(child, ast.ImportFrom):
                base = "." * child.level + (child.module or "")
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    yield Import(full if full in modules else base, child.lineno, inside_function)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, inside_function or is_function)

    yield from visit(ast.parse(source), False)


def violations(module: str, source: str, modules: set[str]) -> list[str]:
    """Sentences on every import of a module of robustnn that breaks a rule."""
    part = module.split(".")[1] if "." in module else "robustnn"
    found = []
    for target, line, inside_function in dict.fromkeys(imports_of(source, modules)):
        where = f"{module}:{line}"
        top = target.split(".")[0]
        if target.startswith("."):
            found.append(f"{where} imports '{target}' relatively: write the full name")
        elif top in {"envs", "experiments", "tests", "benchmarks"}:
            found.append(f"{where} imports {target}, which no installation has")
        elif top == "robustnn":
            other = target.split(".")[1] if "." in target else "robustnn"
            if part == "robustnn":
                allowed = other not in {"cli", "robustnn"}
            else:
                allowed = other == part or other in ALLOWED[part]
                allowed |= target == PLANT_INTERFACE and part not in {"envs", "runs"}
            if not allowed:
                found.append(f"{where} imports {target}, which '{part}' may not")
        elif top not in sys.stdlib_module_names:
            optional = inside_function and (module, top) in OPTIONAL
            light = part in THIRD_PARTIES and top not in THIRD_PARTIES[part]
            if (light and not optional) or top in FORBIDDEN.get(part, set()):
                found.append(f"{where} imports {target}, which '{part}' may not")
    return found


def sources() -> dict[str, Path]:
    """Module name -> file, for every file of robustnn; the link robustnn/envs is replaced by its target."""
    link = ROOT / "robustnn" / "envs"
    files = [path for path in sorted((ROOT / "robustnn").rglob("*.py")) if link not in path.parents]
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in files}
    for path in sorted((ROOT / "envs").rglob("*.py")):
        names[path] = ("robustnn", *path.relative_to(ROOT).with_suffix("").parts)
    return {".".join(part for part in parts if part != "__init__"): path for path, parts in names.items()}


SOURCES = sources()


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_to_the_left(module: str) -> None:
    found = violations(module, SOURCES[module].read_text(encoding="utf-8"), set(SOURCES))
    assert not found, "\n".join(found)


def test_every_part_has_a_place_in_the_order() -> None:
    parts = {module.split(".")[1] for module in SOURCES if "." in module}
    assert parts <= set(ALLOWED), f"add to ALLOWED: {sorted(parts - set(ALLOWED))}"
    assert {"errors", "params", "nn", "envs"} <= parts


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("robustnn.errors", "from robustnn.linalg import cayley"),
        ("robustnn.nn.lbdn", "import robustnn.policies.scaling"),
        ("robustnn.nn.lbdn", "def f():\n    from robustnn.bounds import lower"),
        ("robustnn.nn.lbdn", "if TYPE_CHECKING:\n    from robustnn.closedloop.rollout import rollout"),
        ("robustnn.bounds.lower", "from robustnn.policies import scaling"),
        ("robustnn.policies.scaling", "from robustnn.dynamics.models import Model"),
        ("robustnn.closedloop.rollout", "from robustnn.envs.pendulum import Pendulum"),
        ("robustnn.closedloop.rollout", "from robustnn.envs import plant, pendulum"),
        ("robustnn.closedloop.rollout", "from robustnn import LBDN"),
        ("robustnn.closedloop.rollout", "from ..nn import LBDN"),
        ("robustnn.closedloop.rollout", "import envs"),
        ("robustnn.closedloop.rollout", "from experiments.pendulum_robustness import Config"),
        ("robustnn.closedloop.rollout", "from robustnn.runs import RunFolder"),
        ("robustnn.envs.pendulum", "import torch"),
        ("robustnn.envs.pendulum", "from robustnn.errors import ShapeError"),
        ("robustnn.envs.rendering", "import pygame"),
        ("robustnn.envs.pendulum", "def f():\n    import pygame"),
        ("robustnn.report.tables", "import torch.nn"),
        ("robustnn.report.tables", "from robustnn.cli import main"),
        ("robustnn.runs", "import torch"),
        ("robustnn", "from robustnn.cli import main"),
    ],
)
def test_the_check_finds(module: str, statement: str) -> None:
    assert len(violations(module, statement, {"robustnn.envs.plant", "robustnn.envs.pendulum"})) == 1


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("robustnn.linalg", "import torch\nfrom robustnn.errors import ShapeError"),
        ("robustnn.bounds.lower", "from robustnn import errors"),
        ("robustnn.closedloop.rollout", "from robustnn.policies.scaling import ActionMap"),
        ("robustnn.closedloop.rollout", "from robustnn.closedloop.perturb import Perturbation"),
        ("robustnn.closedloop.rollout", "from robustnn.envs.plant import Plant"),
        ("robustnn.envs.pendulum", "import math, numpy\nfrom robustnn.envs.plant import Plant"),
        ("robustnn.envs.rendering", "def f():\n    import pygame"),
        ("robustnn.report.plots", "import matplotlib.pyplot as plt"),
        ("robustnn.runs", "import json, numpy as np"),
        ("robustnn", "from robustnn.envs import register"),
    ],
)
def test_the_check_accepts(module: str, statement: str) -> None:
    assert violations(module, statement, {"robustnn.errors", "robustnn.envs.plant"}) == []
