"""Contracts of all dynamics models: simulation, start, gradients, and what survives every copy."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from robustnn.dynamics import (
    MODELS,
    LipschitzStateSpace,
    StateSpaceModel,
    load_model,
    save_model,
    simulate,
)
from robustnn.dynamics.registry import model_name
from robustnn.errors import CheckpointError, InvalidArgumentError, NonFiniteError, ShapeError
from tests.dynamics.model_cases import (
    BOUNDED,
    DATA,
    EPS,
    MADE,
    WITH_STATES,
    U,
    Y,
    moved,
    points,
    started,
    system,
)


@pytest.mark.parametrize("name", MADE)
def test_simulation_is_the_explicit_model_step_by_step(name: str) -> None:
    model = moved(name, 0.1)
    explicit, scaling = model.explicit().detach(), model.channels.scaling
    x0 = np.random.default_rng(1).normal(size=model.n_x)
    x, outputs = torch.from_numpy(x0), []
    for one in torch.from_numpy((U[:40] - scaling.u_offset) / scaling.u_scale):
        outputs.append(explicit.output(x, one))
        x = explicit.step(x, one)
    expected = scaling.y_offset + scaling.y_scale * torch.stack(outputs).numpy()
    size = np.abs(expected).max()
    np.testing.assert_allclose(model.simulate(U[:40], x0), expected, atol=1e4 * EPS * size, rtol=0)
    states = model.states(U[:40], x0)
    np.testing.assert_allclose(states[-1], x.numpy(), atol=1e4 * EPS * np.abs(states).max(), rtol=0)
    batch = model.simulate_batch(U[None, :40], x0[None])
    np.testing.assert_allclose(batch[0], expected, atol=1e4 * EPS * size, rtol=0)


@pytest.mark.parametrize(
    "name", ["residual", "residual deep", "unconstrained", "unconstrained deep", "continuous"]
)
def test_the_rate_is_the_linear_part_and_the_network(name: str) -> None:
    model: Any = moved(name, 0.1)
    x, u = points(model).split((3, 2), dim=1)
    with torch.no_grad():
        expected = x @ model.a.T + u @ model.b.T + model.network(torch.cat((x, u), dim=1))
        torch.testing.assert_close(model.explicit().rate(x, u), expected, atol=1e2 * EPS, rtol=1e2 * EPS)


@pytest.mark.parametrize("name", WITH_STATES)
def test_the_start_is_the_linear_model_but_for_random_units(name: str) -> None:
    model, linear = started(name), system()
    expected = linear.simulate(U)
    scaled = model.channels.scaled_u(U)
    explicit = model.explicit().detach()
    assert explicit.f is not None
    if "lipschitz deep" != name:  # that one has no linear part of its own
        last = torch.zeros_like(explicit.f.weights[-1])
        bare = replace(explicit, f=replace(explicit.f, weights=(*explicit.f.weights[:-1], last)), h=None)
        zero = torch.zeros(1, 3, dtype=torch.float64)
        y = simulate(bare, zero, torch.from_numpy(scaled)[None]).y[0].numpy()
        np.testing.assert_allclose(model.channels.physical_y(y), expected, atol=1e-8 * np.abs(expected).max())
        assert not (explicit.f.weights[-1] == 0.0).all()
    error = model.simulate(U) - expected
    assert (error.std(axis=0) < 0.3 * Y.std(axis=0)).all()
    assert np.abs(error).max() > 0.0


@pytest.mark.parametrize("name", MADE)
def test_the_start_depends_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = started(name, 3)
    torch.manual_seed(2)
    second, other = started(name, 3), started(name, 4)
    one, two, three = (
        torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in (first, second, other)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_the_twin_has_as_many_units() -> None:
    ours, twin = MADE["lipschitz"]().explicit(), MADE["unconstrained"]().explicit()
    assert ours.f is not None and twin.f is not None
    assert [w.shape for w in ours.f.weights] == [w.shape for w in twin.f.weights]


@pytest.mark.parametrize("name", MADE)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = moved(name, 0.05)
    x0 = torch.zeros(2, model.n_x, dtype=torch.float64)
    u = torch.randn(2, 20, 2, dtype=torch.float64)
    simulate(model.explicit(), x0, u).y.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key
        assert bool(parameter.grad.any()) or key.endswith("alpha"), key


def copies(model: StateSpaceModel, path: Any) -> dict[str, StateSpaceModel]:
    rebuilt = type(model)(model.channels, **json.loads(json.dumps(model.settings())))
    rebuilt.load_state_dict(model.state_dict())
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "state dict": rebuilt,
        "file": load_model(save_model(model, path / "model.npz")),
    }


@pytest.mark.parametrize("name", MADE)
def test_copies_are_equal_to_the_last_bit(name: str, tmp_path: Any) -> None:
    model: Any = moved(name, 0.3)
    expected = model.simulate(U)
    for kind, one in copies(model, tmp_path).items():
        other: Any = one
        assert type(other) is type(model) and other.settings() == model.settings(), kind
        assert other.channels.to_dict() == model.channels.to_dict(), kind
        assert np.array_equal(other.simulate(U), expected, equal_nan=True), kind
        assert (other.lipschitz_x, other.lipschitz_u) == (model.lipschitz_x, model.lipschitz_u), kind


@pytest.mark.parametrize("name", BOUNDED)
def test_a_state_dict_brings_its_bounds_along(name: str) -> None:
    model: Any = moved(name, 0.3)
    settings = model.settings()
    changed = {
        key: 2.0 * value for key, value in settings.items() if "lipschitz" in key and value is not None
    }
    other: Any = type(model)(model.channels, **{**settings, **changed})
    other.load_state_dict(model.state_dict())
    if settings.get("output_hidden") is None:
        settings.pop("output_lipschitz", None)  # without a network there is nothing to bound
    assert other.settings() | settings == other.settings()
    assert (other.lipschitz_x, other.lipschitz_u) == (model.lipschitz_x, model.lipschitz_u)
    assert np.array_equal(other.simulate(U), model.simulate(U))


def test_a_state_dict_of_another_class_is_refused() -> None:
    model = MADE["lipschitz"]()
    state = {**model.state_dict(), "_extra_state": {"lipschitz_x": -1.0}}
    with pytest.raises(CheckpointError, match="lipschitz_x"):
        model.load_state_dict(state)


def test_the_registry_names_every_class() -> None:
    assert list(MODELS) == ["lipschitz", "unconstrained", "residual", "continuous", "narx"]
    for name in MADE:
        assert model_name(MADE[name]()) == name.split()[0]
    assert model_name(StateSpaceModel(
        DATA, 2, feedthrough=False, output_hidden=None, output_lipschitz=1.0, activation="tanh"
    )) is None  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_bad_calls(name: str) -> None:
    model = started(name)
    with pytest.raises(ShapeError, match="u: expected"):
        model.simulate(U[:, :1])
    with pytest.raises(ShapeError, match="Time is the first axis"):
        model.simulate(U[None])
    with pytest.raises(NonFiniteError, match="u"):
        model.simulate(np.full((5, 2), np.nan))
    with pytest.raises(ShapeError, match="x0"):
        model.simulate(U, np.zeros(model.n_x + 1))
    with pytest.raises(ShapeError, match="Cut both alike"):
        model.initial_state(U[:10], Y[:9])
    with pytest.raises(InvalidArgumentError, match="linear"):
        model.start_(replace(system(), b=np.zeros((3, 1)), d=np.zeros((2, 1)), u_offset=np.zeros(1)), DATA)
    settings = model.settings()
    for key, value in (
        ("hidden", ()),
        ("hidden", (0,)),
        ("activation", "gelu"),
        ("n_x", 0),
        ("n_a", 0),
        ("n_b", 0),
    ):
        if key in settings:
            with pytest.raises(InvalidArgumentError, match=key):
                type(model)(DATA, **{**settings, key: value})
    for key in ("lipschitz", "lipschitz_x", "lipschitz_u", "output_lipschitz"):
        if key in settings:
            with pytest.raises(InvalidArgumentError, match=key):
                type(model)(DATA, **{**settings, key: -1.0})


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("convert", ["float", "half", "bfloat16"])
def test_another_dtype_is_refused_and_changes_nothing(name: str, convert: str) -> None:
    model = started(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    with pytest.raises(InvalidArgumentError, match="float64"):
        getattr(model, convert)()
    with pytest.raises(InvalidArgumentError, match="float64"):
        model.to(torch.float32)
    assert model.double().to("cpu") is model
    assert all(
        torch.equal(before[key], value) and value.dtype == torch.float64
        for key, value in model.named_parameters()
    )


HELD = replace(DATA, experiments=(replace(DATA.experiments[0], u=np.ones_like(U)),))


@pytest.mark.parametrize("data", [(U, Y), HELD], ids=["arrays", "constant"])
def test_a_model_needs_a_data_set_that_varies(data: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a Dataset or Channels|a signal that varies"):
        LipschitzStateSpace(data, 2, (4,), lipschitz_x=0.9)


def test_a_state_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="x0"):
        started("lipschitz").simulate(U[:5], np.array([0.0, np.nan, 0.0]))
