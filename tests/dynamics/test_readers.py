"""Data from files, environments and public benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from scipy.io import savemat

from robustnn import CheckpointError, InvalidArgumentError, NonFiniteError, UnsupportedSpaceError
from robustnn.dynamics import BENCHMARKS, from_csv, from_env, from_mat, load_benchmark
from robustnn.dynamics import benchmarks as module

TABLE = "t,V1,V2,note\n0.0,1.0,5.0,a\n0.5,2.0,6.0,b\n1.0,3.0,8.0,c\n1.5,2.5,7.0,d\n"
DATA = Path(os.environ.get("ROBUSTNN_DATA", "missing"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "record.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_a_column_of_times(tmp_path: Path) -> None:
    data = from_csv(write(tmp_path, TABLE), ["V1"], ["V2"], time="t", y_units=["V"])
    assert data.dt == 0.5 and data.u_names == ("V1",) and data.y_units == ("V",)
    assert data.experiments[0].y[:, 0].tolist() == [5.0, 6.0, 8.0, 7.0]
    assert data.experiments[0].name == "record"
    assert (
        from_csv(write(tmp_path, TABLE.replace(",", ";")), ["V1"], ["V2"], dt=0.5, delimiter=";").n_samples
        == 4
    )


BAD_TABLES: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "missing column": (TABLE, {"u": ["V3"], "dt": 1.0}, InvalidArgumentError, "V3"),
    "neither dt nor time": (TABLE, {}, InvalidArgumentError, "dt, time"),
    "gap in time": (TABLE.replace("1.5,", "9.5,"), {"time": "t"}, InvalidArgumentError, "after sample 2"),
    "time stands still": (TABLE.replace("0.5,", "0.0,"), {"time": "t"}, InvalidArgumentError, "uniform"),
    "empty cell": (TABLE.replace("2.0,6.0", ",6.0"), {"dt": 1.0}, NonFiniteError, "sample 1"),
    "text in a cell": (TABLE.replace("2.0,6.0", "two,6.0"), {"dt": 1.0}, InvalidArgumentError, "line 3"),
    "wrong delimiter": (TABLE.replace(",", ";"), {"dt": 1.0}, InvalidArgumentError, "delimiter"),
    "a string for columns": (TABLE, {"u": "V1", "dt": 1.0}, InvalidArgumentError, "list"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_told(case: str, tmp_path: Path) -> None:
    text, more, error, words = BAD_TABLES[case]
    with pytest.raises(error, match=words):
        from_csv(write(tmp_path, text), **{"u": ["V1"], "y": ["V2"], **more})


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none.csv"):
        from_csv(tmp_path / "none.csv", ["a"], ["b"], dt=1.0)
    path = tmp_path / "foreign.mat"
    path.write_bytes(b"no such format" * 20)
    savemat(tmp_path / "cut.mat", {"u": np.ones(100), "y": np.ones(100)})
    (tmp_path / "cut.mat").write_bytes((tmp_path / "cut.mat").read_bytes()[:150])
    (tmp_path / "empty.mat").write_bytes(b"")
    for file in (path, tmp_path / "none.mat", tmp_path / "cut.mat", tmp_path / "empty.mat"):
        with pytest.raises(CheckpointError, match="MATLAB"):
            from_mat(file, ["u"], ["y"], 1.0)


def test_mat(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=(50, 2)), rng.normal(size=50)
    savemat(tmp_path / "a.mat", {"u": u, "y": y, "Ts": 0.25})
    data = from_mat(tmp_path / "a.mat", ["u"], ["y"], "Ts")
    assert data.dt == 0.25 and data.u_names == ("u1", "u2") and data.y_names == ("y",)
    assert np.array_equal(data.experiments[0].u, u) and np.array_equal(data.experiments[0].y[:, 0], y)
    with pytest.raises(InvalidArgumentError, match="'z'"):
        from_mat(tmp_path / "a.mat", ["z"], ["y"], 1.0)


def test_rollouts_pair_every_action_with_the_observation_before_it() -> None:
    env = gymnasium.make("robustnn/PendulumSwingUp-v0")
    data = from_env(env, dt=0.05, episodes=2, steps=30, seed=3)
    assert [len(e) for e in data] == [30, 30] and (data.n_u, data.n_y) == (1, 3)
    observation, _ = env.reset(seed=4)
    for t in range(30):
        assert np.array_equal(data.experiments[1].y[t], observation)
        observation, *_ = env.step(data.experiments[1].u[t].astype(np.float32))
    again = from_env(env, dt=0.05, episodes=2, steps=30, seed=3)
    assert np.array_equal(again.experiments[0].u, data.experiments[0].u)
    with pytest.raises(UnsupportedSpaceError, match="action_space"):
        from_env(gymnasium.make("CartPole-v1"), dt=0.02)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_have_the_official_splits(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip("the benchmark's data is not here")
    benchmark = load_benchmark(name)
    # Standard deviations that users of the benchmarks state, from n_init on but for Wiener-Hammerstein.
    expected = {
        "cascaded_tanks": (2.165, {"test": 2.120}, 1e-3),
        "silverbox": (
            0.05454, {"multisine": 0.05430, "arrow_full": 0.05348, "arrow_no_extrapolation": 0.04301}, 1e-5,
        ),
        "wiener_hammerstein": (0.24460, {"test": 0.24386}, 1e-5),
    }[name]  # fmt: skip
    assert benchmark.train.scaling().y_scale[0] == pytest.approx(expected[0], abs=expected[2])
    assert benchmark.tests.keys() == expected[1].keys()
    for key, std in expected[1].items():
        assert benchmark.tests[key].n_init == 50
        judged = benchmark.tests[key].window(0 if name == "wiener_hammerstein" else 50, n_init=0)
        assert judged.scaling().y_scale[0] == pytest.approx(std, abs=expected[2])


def test_benchmarks_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="silverbox"):
        load_benchmark("silver")
    (tmp_path / "silverbox").mkdir()
    with pytest.raises(CheckpointError, match="Restore"):
        load_benchmark("silverbox", tmp_path)
    savemat(tmp_path / "silverbox" / "SNLS80mV.mat", {"V1": np.zeros(10), "V2": np.zeros(10)})
    with pytest.raises(CheckpointError, match="131072"):
        load_benchmark("silverbox", tmp_path)

    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", absent)
    with pytest.raises(CheckpointError, match="nonlinear_benchmarks"):
        load_benchmark("silverbox", tmp_path / "elsewhere")
