"""The regressor: its bound in the user's units, the conventions of scikit-learn, and bad calls."""

from __future__ import annotations

import copy
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robustnn import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.bounds import certify, lower_bound
from robustnn.dynamics import LipschitzRegressor
from robustnn.dynamics.static_fit import Schedule, train_regression

EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2)) * [1.0, 3.0] + [5.0, -2.0]
Y = np.stack([np.sin(X[:, 0]) + X[:, 1], X[:, 0] * 40.0], axis=1) + 100.0
FAST: dict[str, Any] = {"hidden": (16,), "steps": 150}


def gain(model: LipschitzRegressor, x: np.ndarray) -> tuple[float, float]:
    """Largest gain by gradient ascent on what `predict` computes, and that of the witness through `predict`.

    The second one counts less what the rounding of the outputs may add.
    """
    offset = torch.from_numpy(model.x_offset_)
    d_x, d_y = torch.from_numpy(model.input_scale_), torch.from_numpy(model.output_scale_)
    found = lower_bound(
        lambda points: model.network_(points - offset), torch.from_numpy(x[:64]),
        input_scale=d_x * float(x.std()), output_scale=d_y, iterations=100,
    )  # fmt: skip
    a, b = found.x.numpy(), found.x_prime.numpy()
    step = 1e-3 * x.std() * (b - a) / np.linalg.norm(b - a)
    pair = np.stack([a, a + step])
    y = model.predict(pair).reshape(2, -1) / model.output_scale_
    rounding = 64 * EPS * np.linalg.norm(y)
    witness = (np.linalg.norm(y[1] - y[0]) - rounding) / np.linalg.norm(
        (pair[1] - pair[0]) / model.input_scale_
    )
    return found.value / float(x.std()), float(witness)


def proved(model: LipschitzRegressor) -> float:
    """The bound that the weights of the network prove, in the norms of the user's scales."""
    network = model.network_
    assert network.input_scale is not None and network.output_scale is not None
    c_x, c_y = (
        np.unique(scale.numpy() / given)
        for scale, given in (
            (network.input_scale, model.input_scale_),
            (network.output_scale, model.output_scale_),
        )
    )
    assert c_x.size == c_y.size == 1
    return float(certify(network).bound * (c_y / c_x)[0])


@pytest.mark.parametrize(("x_unit", "y_unit"), [(1.0, 1.0), (1e3, 1e-2), (1e-4, 300.0)])
def test_the_bound_in_the_units_of_the_data_holds_and_is_attained(x_unit: float, y_unit: float) -> None:
    x = RNG.uniform(-1.0, 1.0, size=(200, 1)) * x_unit + 7.0 * x_unit
    y = np.where(x[:, 0] > 7.0 * x_unit, y_unit, -y_unit)  # steeper than any bound
    bound = 4.0 * y_unit / x_unit
    model = LipschitzRegressor((16, 16), bound, steps=400).fit(x, y)
    ascent, witness = gain(model, x)
    assert model.lipschitz_ == bound == model.lipschitz_raw_
    assert max(ascent, witness) <= bound * (1.0 + 64 * EPS)
    assert min(ascent, witness) >= 0.9 * bound
    assert proved(model) <= bound * (1.0 + 1e-6)


def test_the_bound_is_between_plain_norms_whatever_the_spread_of_the_channels() -> None:
    x = X * [1.0, 50.0]
    y = np.stack([30.0 * np.sign(x[:, 1]), 3.0 * np.sign(x[:, 0] - 5.0)], axis=1)
    model = LipschitzRegressor((24,), 0.05, steps=300).fit(x, y)
    ascent, witness = gain(model, x)
    assert max(ascent, witness) <= 0.05 * (1.0 + 64 * EPS) and min(ascent, witness) >= 0.9 * 0.05
    assert proved(model) <= 0.05 * (1.0 + 1e-6)


@pytest.mark.parametrize("scales", [("std", "std"), ([0.5, 20.0], None), (None, [0.5, 20.0])])
def test_weighted_norms(scales: tuple[Any, Any]) -> None:
    y = np.stack([np.sign(X[:, 0] - 5.0), 40.0 * np.sign(X[:, 1] + 2.0)], axis=1)
    model = LipschitzRegressor((24,), 1.5, steps=300, input_scale=scales[0], output_scale=scales[1]).fit(X, y)
    d_x, d_y = model.input_scale_, model.output_scale_
    for given, found, values in ((scales[0], d_x, X), (scales[1], d_y, y)):
        expected = values.std(axis=0) if isinstance(given, str) else np.ones(2) if given is None else given
        assert np.array_equal(found, expected)
    ascent, witness = gain(model, X)
    assert max(ascent, witness) <= 1.5 * (1.0 + 64 * EPS) and min(ascent, witness) >= 0.9 * 1.5
    assert proved(model) <= 1.5 * (1.0 + 1e-6)
    assert model.lipschitz_raw_ == pytest.approx(1.5 * d_y.max() / d_x.min(), rel=8 * EPS)


def test_a_trained_bound_is_reported_and_holds() -> None:
    model = LipschitzRegressor((16, 16), steps=800).fit(X, Y)
    ascent, witness = gain(model, X)
    assert 20.0 < max(ascent, witness) <= model.lipschitz_ * (1.0 + 64 * EPS)
    assert model.network_.log_lipschitz is None and model.score(X, Y) > 0.95


def test_units_of_powers_of_two_change_nothing_but_the_units() -> None:
    model = LipschitzRegressor(lipschitz=30.0, **FAST).fit(X, Y)
    other = LipschitzRegressor(lipschitz=30.0 * 8.0 / 1024.0, **FAST).fit(1024.0 * X, 8.0 * Y)
    assert np.array_equal(other.predict(1024.0 * X), 8.0 * model.predict(X))
    assert other.history_ == model.history_ and other.score(1024.0 * X, 8.0 * Y) == model.score(X, Y)


def test_shapes_of_outputs_follow_those_of_fit() -> None:
    one, column = (LipschitzRegressor(**FAST).fit(X, y) for y in (Y[:, 0], Y[:, :1]))
    assert one.predict(X).shape == (200,) and column.predict(X).shape == (200, 1)
    assert np.array_equal(one.predict(X), column.predict(X)[:, 0])
    assert (one.n_features_in_, one.n_outputs_) == (2, 1)
    assert LipschitzRegressor(**FAST).fit(X.tolist(), Y.tolist()).predict(X[:3]).shape == (3, 2)
    assert one.predict(np.zeros((0, 2))).shape == (0,)


def test_score_is_the_mean_coefficient_of_determination() -> None:
    model = LipschitzRegressor(**FAST).fit(X, Y)
    error = np.square(Y - model.predict(X)).sum(0)
    expected = (1.0 - error / np.square(Y - Y.mean(0)).sum(0)).mean()
    assert model.score(X, Y) == pytest.approx(expected, rel=8 * EPS)
    assert model.score(X, model.predict(X)) == 1.0
    flat = LipschitzRegressor(**FAST).fit(X, np.full(200, 2.0))
    assert flat.score(X, np.full(200, 3.0)) == 0.0


def test_parameters_are_stored_as_given_and_travel_to_a_clone() -> None:
    given = {"hidden": [8], "lipschitz": 3, "input_scale": np.ones(2), "steps": 7, "random_state": 4}
    model = LipschitzRegressor(**given)
    params = model.get_params(deep=True)
    assert all(params[name] is value for name, value in given.items())
    clone = type(model)(**params)
    assert all(clone.get_params()[name] is params[name] for name in params)
    assert model.set_params(steps=9, activation="tanh") is model and model.steps == 9
    assert repr(LipschitzRegressor(steps=9, lipschitz=2.0)) == "LipschitzRegressor(lipschitz=2.0, steps=9)"
    with pytest.raises(InvalidArgumentError, match="params: expected names among hidden"):
        model.set_params(steps=3, epochs=5)
    assert model.steps == 9
    assert not [name for name in vars(model) if name.endswith("_")]


def test_scikit_learn_is_told_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = SimpleNamespace(
        Tags=dict, TargetTags=dict, RegressorTags=dict
    )  # of the signatures of version 1.9
    monkeypatch.setitem(sys.modules, "sklearn.utils", utils)
    tags = LipschitzRegressor().__sklearn_tags__()
    assert tags["estimator_type"] == "regressor" and tags["classifier_tags"] is None
    assert tags["target_tags"] == {"required": True, "multi_output": True}


def test_a_seed_gives_the_same_network_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = (LipschitzRegressor(**FAST, random_state=seed).fit(X, Y).predict(X) for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.isfinite(LipschitzRegressor(**FAST, random_state=None).fit(X, Y).predict(X)).all()


def test_copies_predict_the_same() -> None:
    model = LipschitzRegressor(**FAST).fit(X, Y)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict(X), model.predict(X)) and other.lipschitz_ == model.lipschitz_


def test_a_new_fit_replaces_the_old_one() -> None:
    model = LipschitzRegressor(**FAST).fit(X, Y)
    model.fit(X[:, :1], Y[:, 0])
    fresh = LipschitzRegressor(**FAST).fit(X[:, :1], Y[:, 0])
    assert np.array_equal(model.predict(X[:, :1]), fresh.predict(X[:, :1])) and model.n_features_in_ == 1


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    x = torch.from_numpy(RNG.normal(size=(60, 1)))
    y = torch.from_numpy(RNG.normal(size=(60, 1)))  # nothing to learn but noise
    net = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).double()
    history, steps = train_regression(net, x, y, torch.ones(1), Schedule(1000, 20, 0.05, 0.3, 0.1), seed=5)
    assert steps < 1000 and len(history) == steps // 10
    held_out = torch.randperm(60, generator=torch.Generator().manual_seed(5))[:18]
    error = (net(x[held_out]) - y[held_out]).square().mean().item()
    assert error == pytest.approx(min(history), rel=64 * EPS) and history[-1] > min(history)


def test_without_held_out_samples_all_steps_are_taken() -> None:
    model = LipschitzRegressor((8,), steps=60, validation_fraction=0).fit(X, Y)
    assert model.n_iter_ == 60 and len(model.history_) == 60
    assert LipschitzRegressor((8,), steps=5).fit(X[:2], Y[:2]).n_iter_ == 5


@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        (X[:, 0], Y, ShapeError, r"X: expected shape \(n, channels\), got \(200,\)"),
        (X[None], Y, ShapeError, "X: expected shape"),
        (X, Y[:-1], ShapeError, "got 200 and 199 samples"),
        (X[:1], Y[:1], ShapeError, "at least two"),
        (X, Y[:, :0], ShapeError, "y: expected shape"),
        (np.where(X == X[3, 1], np.nan, X), Y, NonFiniteError, "X: expected finite"),
        (X, np.where(Y == Y[3, 1], np.inf, Y), NonFiniteError, "y: expected finite"),
        (X + 1j, Y, InvalidArgumentError, "X: expected real numbers"),
        ([["a", "b"]] * 2, Y[:2], InvalidArgumentError, "X: expected real numbers"),
    ],
)
def test_bad_samples(X: Any, y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LipschitzRegressor(**FAST).fit(X, y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lipschitz": 0.0}, "lipschitz: expected a finite number > 0"),
        ({"lipschitz": np.inf}, "lipschitz"),
        ({"hidden": 5}, "hidden_features: expected a sequence"),
        ({"activation": "sine"}, "activation"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"patience": 0.0}, "patience"),
        ({"input_scale": "range"}, "input_scale"),
        ({"input_scale": [1.0]}, "input_scale"),
        ({"output_scale": [1.0, -1.0]}, "output_scale"),
        ({"output_scale": np.eye(2)}, "output_scale: expected 2 numbers"),
        ({"random_state": 1.5}, "random_state"),
    ],
)
def test_bad_parameters_are_found_by_fit(params: dict[str, Any], message: str) -> None:
    model = LipschitzRegressor(**{**FAST, **params})
    with pytest.raises(InvalidArgumentError, match=message):
        model.fit(X, Y)


def test_bad_calls_of_predict() -> None:
    model = LipschitzRegressor(**FAST)
    for call in (lambda: model.predict(X), lambda: model.score(X, Y)):
        with pytest.raises(InvalidArgumentError, match=r"Call fit\(X, y\) first"):
            call()
    model.fit(X, Y)
    with pytest.raises(ShapeError, match="X: expected 2 inputs as in fit, got 3"):
        model.predict(np.zeros((4, 3)))
    with pytest.raises(NonFiniteError, match="X"):
        model.predict([[0.0, np.nan]])
    with pytest.raises(ShapeError, match=r"y: expected shape \(200, 2\)"):
        model.score(X, Y[:, 0])
    with pytest.raises(InvalidArgumentError, match="channels that vary"):
        LipschitzRegressor(**FAST, input_scale="std").fit(X * [0.0, 1.0], Y)


@pytest.mark.parametrize(
    "x", [1e200 * np.arange(5.0)[:, None], torch.ones(5, 1, requires_grad=True)], ids=["huge", "gradients"]
)
def test_samples_without_a_finite_variance_or_with_a_graph(x: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="finite variance|real numbers"):
        LipschitzRegressor((4,), lipschitz=1.0, steps=1).fit(x, np.arange(5.0))
