"""Settings of the whole suite: one thread, no window, one seed, where the data lies."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# Set before numpy, torch and matplotlib are imported; worker processes inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
if (SHARED / "data").is_dir():
    os.environ.setdefault("ROBUSTNN_DATA", str(SHARED / "data"))

# ROBUSTNN_TYPECHECK=1 checks every annotated call in robustnn: types by beartype, shapes by jaxtyping. Off by
# default, because it refuses a bad argument before robustnn's own check can, and the tests of error messages
# need the latter. The hook sees only modules that are imported after it.
if os.environ.get("ROBUSTNN_TYPECHECK", "0") == "1":
    from jaxtyping import install_import_hook

    install_import_hook("robustnn", "beartype.beartype")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# A shared machine makes the time of one example meaningless; the examples are the same in every run.
hypothesis.settings.register_profile("robustnn", deadline=None, derandomize=True)
hypothesis.settings.load_profile("robustnn")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where torch finds no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from one state of torch's generator, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the parity vectors, computed by other programs; it lies beside the checkout."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"no parity vectors: {folder} is absent")
    return folder
