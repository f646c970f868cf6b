"""The benchmark scripts run at their smallest size and end with one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "name", ["conv", "env_throughput", "evaluate", "lipsdp", "ppo_throughput", "sandwich", "simulate"]
)
def test_smoke(name: str) -> None:
    if name == "lipsdp":
        pytest.importorskip("cvxpy")
        pytest.importorskip("clarabel")
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["benchmark"] == name
    assert figures["machine"]["torch"]


@pytest.mark.parametrize(
    "name, limit", [("env_throughput", 30.0), ("evaluate", 20.0), ("ppo_throughput", 1 / 1.2)]
)
def test_committed_figures_meet_the_target(name: str, limit: float) -> None:
    """The result files that the README quotes: a rate at least `limit` times that of the reference."""
    figures = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    ratio = figures["ratio"] if name != "ppo_throughput" else 1.0 / figures["ratio"]["lbdn_frozen"]
    assert ratio >= limit


def test_committed_figures_of_the_convolutions_meet_their_targets() -> None:
    """Times as ratios to an ordinary convolution and to the published Fourier layer: at most those of the benchmark."""
    figures = json.loads((ROOT / "benchmarks" / "results" / "conv.json").read_text(encoding="utf-8"))
    assert len(figures["targets"]) == 3
    assert all(figures[name] <= target for name, target in figures["targets"].items())
