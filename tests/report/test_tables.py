from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.report import (
    Interval,
    Table,
    bootstrap_interval,
    format_interval,
    format_number,
    model_eps_table,
    score_arrays,
)


def long_form(models: tuple[str, ...] = ("MLP", "LBDN γ = 5"), n_seeds: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {"model": model, "eps": eps, "seed": seed, "episode": episode, "return": float(rng.normal(-200, 20))}
        for model, eps, seed, episode in itertools.product(models, (0.0, 0.45), range(n_seeds), range(4))
    ]
    return rows


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (-163.2, 0, "-163"),
        (-0.3, 0, "0"),
        (-0.004, 2, "0.00"),
        (-0.006, 2, "-0.01"),
        (12.345, 1, "12.3"),
        (0, 0, "0"),
    ],
)
def test_numbers(value: float, decimals: int, text: str) -> None:
    assert format_number(value, decimals) == text


def test_intervals() -> None:
    assert format_interval(Interval(-163.2, -170.4, -157.9)) == "-163 [-170, -158]"
    assert format_interval(Interval(1.25, -0.01, 3.0), 1) == "1.2 [0.0, 3.0]"


def test_text_columns_are_aligned() -> None:
    lines = Table(("model", "return"), (("MLP", "-163"), ("LBDN γ = 5", "-9"))).text().splitlines()
    assert lines == ["model       return", "----------  ------", "MLP           -163", "LBDN γ = 5      -9"]


def test_markdown_is_aligned_and_escapes_bars() -> None:
    lines = Table(("m", "x"), (("a|b", "1"), ("c", "-20000"))).markdown().splitlines()
    assert lines == [
        "| m    |      x |",
        "| ---- | -----: |",
        r"| a\|b |      1 |",
        "| c    | -20000 |",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert Table(("a", "b"), ()).markdown().splitlines()[1] == "| --- | --: |"
    with pytest.raises(ShapeError, match=r"rows\[0\]"):
        Table(("a", "b"), (("1",),))


def test_score_arrays_sort_seeds_and_episodes() -> None:
    rows = long_form()
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    arrays = score_arrays(shuffled)
    assert set(arrays) == set(itertools.product(("MLP", "LBDN γ = 5"), (0.0, 0.45)))
    for row in rows:
        assert arrays[row["model"], row["eps"]][row["seed"], row["episode"]] == row["return"]


def test_model_eps_table_holds_the_bootstrap_intervals() -> None:
    rows = long_form()
    table = model_eps_table(reversed(rows), statistic="iqm", decimals=1)
    assert table.header == ("model", "eps 0", "eps 0.45")
    assert [row[0] for row in table.rows] == ["LBDN γ = 5", "MLP"]
    scores = [row["return"] for row in rows if row["model"] == "MLP" and row["eps"] == 0.45]
    expected = bootstrap_interval(np.reshape(scores, (3, 4)), "iqm")
    assert table.rows[1][2] == format_interval(expected, 1)


def test_gaps_and_single_seeds_are_shown_as_such() -> None:
    rows = [row for row in long_form(n_seeds=1) if row["model"] == "MLP" or row["eps"] == 0.0]
    table = model_eps_table(rows)
    assert table.rows[1][2] == "n/a"
    assert table.rows[0][1] == format_number(float(np.mean([r["return"] for r in rows[:4]])))


def test_seeds_sort_by_value_not_by_alphabet() -> None:
    rows = [{"model": "MLP", "eps": 0.1, "seed": seed, "return": float(seed)} for seed in (10, 2, 1)]
    np.testing.assert_array_equal(score_arrays(rows)["MLP", 0.1], [[1.0], [2.0], [10.0]])


def test_bad_rows_are_refused() -> None:
    rows = long_form()
    with pytest.raises(InvalidArgumentError, match="twice"):
        score_arrays([*rows, rows[0]])
    with pytest.raises(ShapeError, match="same episodes for every seed"):
        score_arrays(rows[1:])
    with pytest.raises(InvalidArgumentError, match=r"rows\[0\]: expected the columns \['score'\]"):
        score_arrays(rows, value="score")
    with pytest.raises(InvalidArgumentError, match="at least one row"):
        model_eps_table([])
