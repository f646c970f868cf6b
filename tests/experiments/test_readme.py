"""The README's numbers are those of the committed result files, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments import readme
from experiments.command import RESULTS
from experiments.robustness_study import document, further
from robustnn.report import block_is_current

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name, block",
    [
        ("robustness", readme.robustness_block),
        ("identification", readme.identification_block),
        ("pendulum", readme.pendulum_block),
        ("algorithms", readme.algorithms_block),
        ("speed", readme.speed_block),
    ],
)
def test_numbers_are_up_to_date(name: str, block) -> None:
    assert block_is_current(ROOT / "README.md", name, block())


def test_code_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    assert code.count("import") >= 5
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("100_000", "256"), "README.md", "exec"), {})
    assert (tmp_path / "returns.csv").stat().st_size > 1000


@pytest.mark.parametrize("page", [document, further], ids=["main", "further"])
def test_the_pages_on_robustness_are_up_to_date(page: Any) -> None:
    for name, content in page.blocks(RESULTS).items():
        assert block_is_current(page.DOCUMENT, name, content), name
