"""Linear models from data: exact on linear systems, stable, and as good as published on benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from robustnn import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.dynamics import (
    Dataset,
    LinearStateSpace,
    fit_index,
    load_benchmark,
    nrmse,
    r_squared,
    rmse,
    stable_projection,
    subspace,
)

DATA = Path(os.environ.get("ROBUSTNN_DATA", "missing"))


def random_system(n_x: int, n_u: int, n_y: int, seed: int, radius: float = 0.9) -> LinearStateSpace:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n_x, n_x))
    a *= radius / np.abs(np.linalg.eigvals(a)).max()
    return LinearStateSpace(
        a, rng.normal(size=(n_x, n_u)), rng.normal(size=(n_y, n_x)), rng.normal(size=(n_y, n_u)),
        rng.normal(size=n_u), rng.normal(size=n_y), 0.1,
    )  # fmt: skip


def markov(model: LinearStateSpace, count: int = 20) -> np.ndarray:
    parts, power = [model.d], model.b
    for _ in range(count):
        parts.append(model.c @ power)
        power = model.a @ power
    return np.stack(parts)


@pytest.mark.parametrize(("n_x", "n_u", "n_y"), [(1, 1, 1), (3, 1, 2), (4, 2, 1), (5, 3, 3)])
def test_a_linear_system_is_found_exactly_from_two_experiments(n_x: int, n_u: int, n_y: int) -> None:
    system = random_system(n_x, n_u, n_y, seed=n_x)
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(length, n_u)) for length in (700, 500)]
    starts = [rng.normal(size=n_x) for _ in inputs]
    outputs = [system.simulate(u, x0) for u, x0 in zip(inputs, starts, strict=True)]
    model = subspace(Dataset.from_arrays(inputs, outputs, 0.1), n_x)
    scale = np.abs(markov(system)).max()
    np.testing.assert_allclose(markov(model), markov(system), atol=1e-9 * scale)
    for u, y in zip(inputs, outputs, strict=True):
        x0 = model.initial_state(u[:50], y[:50])
        np.testing.assert_allclose(model.simulate(u, x0), y, atol=1e-8 * np.abs(y).max())


def test_without_feedthrough_there_is_none() -> None:
    system = random_system(2, 1, 1, seed=0)
    u = np.random.default_rng(0).normal(size=(600, 1))
    data = Dataset.from_arrays(u, system.simulate(u), 0.1)
    assert not subspace(data, 2, feedthrough=False).d.any()
    assert subspace(data, 2).d[0, 0] == pytest.approx(system.d[0, 0], rel=1e-6)


def test_models_are_stable_even_of_data_that_grow() -> None:
    grow = random_system(2, 1, 1, seed=3, radius=1.01)
    u = np.random.default_rng(0).normal(size=(300, 1))
    data = Dataset.from_arrays(u, grow.simulate(u), 0.1)
    assert subspace(data, 2, radius=10.0).spectral_radius > 1.0
    assert subspace(data, 2).spectral_radius < 1.0
    assert subspace(data, 2, radius=0.95).spectral_radius <= 0.95 * (1 + 1e-12)


def test_the_stable_projection_keeps_what_is_stable() -> None:
    a = random_system(4, 1, 1, seed=5).a
    assert np.array_equal(stable_projection(a), a)
    unstable = np.diag([0.5, 2.0, -3.0]) + np.triu(np.ones((3, 3)), 1)
    projected = stable_projection(unstable, 0.8)
    assert np.sort(np.linalg.eigvals(projected).real).tolist() == pytest.approx([-0.8, 0.5, 0.8], abs=1e-12)
    rotation = 1.5 * np.array([[0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(stable_projection(rotation, 1.0), rotation / 1.5, atol=1e-12)


def test_bad_calls() -> None:
    u = np.random.default_rng(0).normal(size=(60, 1))
    data = Dataset.from_arrays(u, u, 0.1)
    with pytest.raises(ShapeError, match="longer records"):
        subspace(data, 2, horizon=20)
    with pytest.raises(InvalidArgumentError, match="horizon"):
        subspace(data, 5, horizon=4)
    with pytest.raises(InvalidArgumentError, match="n_x"):
        subspace(data, 0)
    model = random_system(2, 1, 1, 0)
    with pytest.raises(ShapeError, match="u:"):
        model.simulate(np.zeros((5, 2)))
    with pytest.raises(NonFiniteError, match="u"):
        model.simulate(np.full((5, 1), np.nan))
    with pytest.raises(NonFiniteError, match="a"):
        stable_projection(np.full((2, 2), np.inf))


# Published errors of linear state-space models of these orders (Champneys et al., arXiv 2405.10779), in mV.
PUBLISHED = {
    "silverbox": (2, {"multisine": 6.96, "arrow_full": 14.4, "arrow_no_extrapolation": 6.58}),
    "wiener_hammerstein": (6, {"test": 43.4}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_benchmarks_reach_the_published_errors_of_linear_models(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip("the benchmark's data is not here")
    benchmark = load_benchmark(name)
    n_x, published = PUBLISHED[name]
    model = subspace(benchmark.train, n_x, horizon=10)
    for key, data in benchmark.tests.items():
        one, n = data.experiments[0], data.n_init
        x0 = model.initial_state(one.u[:n], one.y[:n])
        error = benchmark.factor * rmse(one.y[n:], model.simulate(one.u, x0)[n:])[0]
        assert error <= 1.01 * published[key]


def test_metrics_of_known_errors() -> None:
    y = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 8.0]])
    assert rmse(y, y + [[1.0, -2.0]]).tolist() == [1.0, 2.0]
    assert nrmse(y, np.tile(y.mean(0), (3, 1))).tolist() == pytest.approx([1.0, 1.0])
    assert fit_index(y, y).tolist() == [100.0, 100.0]
    assert r_squared(y, np.tile(y.mean(0), (3, 1))).tolist() == pytest.approx([0.0, 0.0], abs=1e-15)
    with pytest.raises(ShapeError, match="shape"):
        rmse(y, y[:2])
    with pytest.raises(InvalidArgumentError, match="vary"):
        nrmse(np.ones((3, 1)), np.zeros((3, 1)))


@pytest.mark.parametrize("radius", [0.9, 1.0 - 1e-6])
def test_stable_projection_of_matrices_with_complex_eigenvalues(radius: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a = rng.normal(size=(5, 5)) * rng.uniform(0.3, 1.0)
        before, after = (np.linalg.eigvals(one) for one in (a, stable_projection(a, radius)))
        wanted = before * np.minimum(1.0, radius / np.abs(before))
        # Of eigenvalues that coincide afterwards, only the polynomial is known to all digits.
        np.testing.assert_allclose(np.poly(after), np.poly(wanted), rtol=0, atol=1e-10)
