"""Input-output data: what is accepted, refused, cut and scaled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from robustnn import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.dynamics import Dataset, Scaling

RNG = np.random.default_rng(0)
U, Y = RNG.normal(size=(100, 2)), RNG.normal(size=(100, 1))


def broken(index: int, value: float) -> np.ndarray:
    u = U.copy()
    u[index, 1] = value
    return u


def test_arrays_of_one_and_several_experiments() -> None:
    one = Dataset.from_arrays(U, Y[:, 0], 0.1)
    assert (len(one), one.n_u, one.n_y, one.n_samples, one.dt) == (1, 2, 1, 100, 0.1)
    assert one.u_names == ("u1", "u2") and one.y_units == ("",)
    assert np.array_equal(one.experiments[0].y, Y)
    two = Dataset.from_arrays(
        [U, U[:40]], [Y, Y[:40]], 0.1, x=[U, U[:40]], y_names=["level"], names=["a", "b"]
    )
    assert [len(e) for e in two] == [100, 40] and two.experiments[1].name == "b"
    assert two.experiments[1].x is not None and two.experiments[1].x.shape == (40, 2)


def test_a_data_set_keeps_its_own_copy() -> None:
    u = U.copy()
    data = Dataset.from_arrays(u, Y, 0.1)
    u[:] = 0.0
    assert np.array_equal(data.experiments[0].u, U)


BAD: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], str]] = {
    "unequal lengths": (U, Y[:-1], {}, ShapeError, "equal lengths"),
    "nan": (broken(7, np.nan), Y, {}, NonFiniteError, "sample 7"),
    "infinity": (broken(99, np.inf), Y, {}, NonFiniteError, "sample 99"),
    "constant output": (U, np.full(100, 3.5), {}, InvalidArgumentError, "constant 3.5"),
    "constant input": (np.zeros(100), Y, {}, InvalidArgumentError, "constant 0"),
    "too short": (U[:3], Y[:3], {"n_init": 2}, ShapeError, "at least n_init"),
    "three axes": (U[None, :, :, None], Y, {}, ShapeError, "Time is the first axis"),
    "text": (["a", "b"], Y, {}, InvalidArgumentError, "array of numbers"),
    "complex": (U + 0j, Y, {}, InvalidArgumentError, "array of numbers"),
    "gradients": (torch.ones(100, requires_grad=True), Y, {}, InvalidArgumentError, "array of numbers"),
    "time last": (U.T, U.T, {}, ShapeError, "transpose"),
    "numbers of experiments": ([U, U], [Y], {}, ShapeError, "as many"),
    "channels differ": ([U, U[:, :1]], [Y, Y], {}, ShapeError, "same channels"),
    "dt zero": (U, Y, {"dt": 0.0}, InvalidArgumentError, "dt"),
    "names": (U, Y, {"u_names": ["one"]}, InvalidArgumentError, "u_names"),
    "negative n_init": (U, Y, {"n_init": -1}, InvalidArgumentError, "n_init"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_told(case: str) -> None:
    u, y, more, error, words = BAD[case]
    arguments = {"dt": 0.1, **more}
    with pytest.raises(error, match=words):
        Dataset.from_arrays(u, y, **arguments)


def test_split_and_window_cut_in_time() -> None:
    data = Dataset.from_arrays([U, U[:40]], [Y, Y[:40]], 0.1, n_init=5)
    first, second = data.split(0.75)
    assert [len(e) for e in first] == [75, 30] and [len(e) for e in second] == [25, 10]
    assert np.array_equal(np.concatenate([first.experiments[0].y, second.experiments[0].y]), Y)
    part = data.window(10, -10)
    assert [len(e) for e in part] == [80, 20] and np.array_equal(part.experiments[0].u, U[10:-10])
    assert part.n_init == 5 and data.window(n_init=0).n_init == 0
    with pytest.raises(ShapeError, match="samples"):
        data.window(0, 6)
    for fraction in (0.0, 1.0, 1.5):
        with pytest.raises(InvalidArgumentError, match="fraction"):
            data.split(fraction)


def test_join_and_take_experiments() -> None:
    data = Dataset.from_arrays([U, U[:40]], [Y, Y[:40]], 0.1)
    again = data.experiment(0).join(data.experiment(1))
    assert [len(e) for e in again] == [100, 40]
    with pytest.raises(InvalidArgumentError, match="dt"):
        data.join(Dataset.from_arrays(U, Y, 0.2))


def test_the_scaling_covers_all_experiments_and_survives_json() -> None:
    data = Dataset.from_arrays([U, U[:40] + 1.0], [Y, Y[:40]], 0.1)
    scaling = data.scaling()
    stacked = np.concatenate([U, U[:40] + 1.0])
    np.testing.assert_allclose(scaling.u_offset, stacked.mean(0), rtol=1e-14)
    np.testing.assert_allclose(scaling.u_scale, stacked.std(0), rtol=1e-14)
    restored = Scaling.from_dict(json.loads(json.dumps(scaling.to_dict())))
    assert np.array_equal(restored.y_scale, scaling.y_scale) and np.array_equal(
        restored.u_offset, scaling.u_offset
    )
