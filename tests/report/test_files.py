from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from robustnn.errors import CheckpointError, InvalidArgumentError
from robustnn.report import atomic_write_bytes, atomic_write_text, read_csv, write_csv


def test_floats_round_trip_bit_for_bit(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**63 - 1, size=500, dtype=np.uint64)
    values = [v for v in bits.view(np.float64).tolist() if math.isfinite(v)]
    values += [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1.0, math.inf, -math.inf]
    write_csv(tmp_path / "t.csv", [{"x": v} for v in values])
    back = [row["x"] for row in read_csv(tmp_path / "t.csv")]
    assert [v.hex() for v in back] == [v.hex() for v in values]


def test_types_and_text_round_trip(tmp_path: Path) -> None:
    rows = [
        {"model": 'a, "b" | γ', "n": 3, "ok": True, "x": 1.0, "label": "5"},
        {"model": "", "n": -7, "ok": False, "x": math.nan, "label": "8"},
    ]
    write_csv(tmp_path / "t.csv", rows)
    back = read_csv(tmp_path / "t.csv", types={"label": str})
    assert [type(v) for v in back[0].values()] == [str, int, bool, float, str]
    assert back[0] == rows[0]
    assert math.isnan(back[1].pop("x")) and rows[1].pop("x")
    assert back[1] == rows[1]


def test_numpy_scalars_are_written_exactly(tmp_path: Path) -> None:
    row = {"a": np.float32(0.1), "b": np.int64(4), "c": np.array(0.3)}
    write_csv(tmp_path / "t.csv", [row])
    assert read_csv(tmp_path / "t.csv") == [{"a": float(np.float32(0.1)), "b": 4, "c": 0.3}]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "rows: expected at least one row"),
        ([{"a": 1}, {"b": 1}], "row: expected the columns"),
        ([{"a": None}], r"row\['a'\]: expected a bool, int, float or str"),
        ([{"a": [1, 2]}], r"row\['a'\]"),
        ([{"a": "x\ny"}], "one line of text"),
        ([{"": 1}], "columns: expected"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path: Path, rows: list[dict], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        write_csv(tmp_path / "t.csv", rows)
    assert not list(tmp_path.iterdir())


def test_bad_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    with pytest.raises(CheckpointError, match=r"t\.csv"):
        read_csv(file)
    for content in (b"", b"a,a\n1,2\n", b"a,b\n1\n", b"\xff\xfe\n"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"t\.csv"):
            read_csv(file)
    file.write_text("a\n1\n")
    with pytest.raises(InvalidArgumentError, match="types: expected columns"):
        read_csv(file, types={"b": str})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "t.txt"
    atomic_write_text(file, "old\n")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write_bytes(file, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]
    assert file.read_text() == "old\n"


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    atomic_write_text(tmp_path / "ours", "γ")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "ours").read_bytes() == "γ".encode()
