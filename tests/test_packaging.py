"""What is shipped: package list, wheel (in an environment of its own), source archive, version."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# What a builder needs of a checkout; environments, caches and results stay behind.
BUILD_INPUTS = [
    ".ci",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "benchmarks",
    "constraints.txt",
    "envs",
    "experiments",
    "pyproject.toml",
    "robustnn",
    "tests",
]


class Built(NamedTuple):
    """The two archives of one build."""

    wheel: Path
    sdist: Path


def version() -> str:
    """The literal assigned to `robustnn.__version__`, read without an import."""
    tree = ast.parse((ROOT / "robustnn" / "__init__.py").read_text(encoding="utf-8"))
    values = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__version__"]
    ]
    assert len(values) == 1, "robustnn/__init__.py assigns __version__ once, a string literal"
    return values[0]


def modules_in_tree() -> set[str]:
    """Archive names of all modules: robustnn's own, and those of envs below robustnn/envs."""
    own = {p.relative_to(ROOT) for p in (ROOT / "robustnn").rglob("*.py")}
    own = {p for p in own if p.parts[:2] != ("robustnn", "envs")}
    plants = {Path("robustnn") / p.relative_to(ROOT) for p in (ROOT / "envs").rglob("*.py")}
    return {p.as_posix() for p in own | plants}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command outside the checkout; on failure the test shows everything it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | variables,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Source archive, and from it the wheel: built offline, from a copy, so that nothing stale gets in."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "checkout"
    copy.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "results", "runs")
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skip)
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy]
    run(*command, cwd=folder, PIP_NO_INDEX="1")
    return Built(next(folder.glob("*.whl")), next(folder.glob("*.tar.gz")))


@pytest.fixture(scope="module")
def other_python(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel in it; the dependencies are borrowed from this one.

    They come through a .pth file: a folder named there is searched, but .pth files inside it are not read, so
    the editable installation of this checkout stays invisible.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    python = Path(sysconfig.get_path("scripts", "venv", scheme)) / Path(sys.executable).name
    if not python.exists():
        python = python.with_name("python" + python.suffix)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    run(*pip, built.wheel, cwd=folder)
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    borrowed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    return python


def test_package_list_equals_the_tree() -> None:
    packages = PYPROJECT["tool"]["setuptools"]["packages"]
    found = {str(Path(name).parent).replace(os.sep, ".") for name in modules_in_tree()}
    assert set(packages) == found
    assert packages == sorted(packages)
    missing = [name for name in packages if f"{name.replace('.', '/')}/__init__.py" not in modules_in_tree()]
    assert not missing, f"packages without __init__.py: {missing}"


def test_envs_is_a_link_inside_the_package() -> None:
    link = ROOT / "robustnn" / "envs"
    assert link.is_symlink()
    assert os.readlink(link) == os.path.join("..", "envs")


def test_wheel_holds_each_module_once_and_nothing_else(built: Built) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    assert len(names) == len(set(names))
    assert {name.split("/")[0] for name in names} == {"robustnn", f"robustnn-{version()}.dist-info"}
    assert {name for name in names if name.endswith(".py")} == modules_in_tree()
    assert "robustnn/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_sdist_holds_what_a_reader_needs(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    trees = ("envs", "experiments", "tests", "benchmarks")
    expected = {p.relative_to(ROOT).as_posix() for tree in trees for p in (ROOT / tree).rglob("*.py")}
    expected |= {name for name in modules_in_tree() if not name.startswith("robustnn/envs/")}
    expected |= {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt"}
    expected |= {"pyproject.toml", ".ci/run", "robustnn/py.typed"}
    assert expected <= names, f"missing: {sorted(expected - names)}"
    assert not [name for name in names if name.startswith("robustnn/envs/") or "__pycache__" in name]
    assert {"envs", "experiments", "tests"} <= {name.split("/")[0] for name in names}


def test_installed_wheel_imports_outside_the_checkout(other_python: Path, tmp_path: Path) -> None:
    packages = PYPROJECT["tool"]["setuptools"]["packages"]
    script = f"""
import importlib, json, sys
files = {{name: importlib.import_module(name).__file__ for name in {packages}}}
import gymnasium, robustnn
from importlib import metadata, util
env = gymnasium.make("robustnn.envs:robustnn/PendulumSwingUp-v0")
env.reset(seed=0)
print(json.dumps({{
    "files": files,
    "attribute": robustnn.__version__,
    "metadata": metadata.version("robustnn"),
    "envs": util.find_spec("envs") is not None,
    "prefix": sys.prefix,
}}))
"""
    seen = json.loads(run(other_python, "-c", script, cwd=tmp_path).splitlines()[-1])
    prefix = Path(seen["prefix"])
    outside = {name: file for name, file in seen["files"].items() if prefix not in Path(file).parents}
    assert not outside, f"imported from elsewhere than the new environment: {outside}"
    assert seen["attribute"] == seen["metadata"] == version()
    assert not seen["envs"]


def test_the_checkout_is_what_the_suite_runs() -> None:
    spec = importlib.util.find_spec("robustnn")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin) == ROOT / "robustnn" / "__init__.py"


def test_one_version_everywhere() -> None:
    literal = version()
    assert re.fullmatch(r"\d+\.\d+\.\d+(a\d+|b\d+|rc\d+)?", literal)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [literal]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## Release (\S+)", changelog, flags=re.MULTILINE)[0] == literal


def test_every_release_has_the_headings_of_the_changelog() -> None:
    releases = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    headings = ["Breaking Changes", "New Features", "Bug Fixes", "Deprecations", "Others", "Documentation"]
    for release in releases:
        assert re.findall(r"^### (.+)$", release, flags=re.MULTILINE) == headings


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_constraints_pin_every_dependency_within_its_floor(python: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, str] = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = requirement.name.lower().replace("_", "-")
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{requirement} is no pin"
            pins[name] = specifier.version
    assert pins["torch"] == "2.13.0"
    project = PYPROJECT["project"]
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_dependencies_have_floors_and_no_caps() -> None:
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in map(Requirement, itertools.chain.from_iterable(lists)):
        assert [specifier.operator for specifier in requirement.specifier] == [">="], requirement
    assert project["requires-python"] == ">=3.10"
