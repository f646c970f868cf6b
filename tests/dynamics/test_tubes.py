"""Sensitivity tubes: they contain what an attack finds, and a first-order model fills its tube."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from robustnn.dynamics import Dataset, LipschitzStateSpace, StateSpaceModel, UnconstrainedStateSpace
from robustnn.dynamics.certificate import ModelCertificate, certify_model
from robustnn.dynamics.tubes import attack_tube, sensitivity_tube
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError

EPS = np.finfo(np.float64).eps
# What the attack leaves free for rounding.
INSIDE = 1e-8


def records(samples: int = 400) -> Dataset:
    """A damped oscillator with a spring that gives way, in units far from one."""
    rng = np.random.default_rng(0)
    u, y, x = rng.normal(size=(samples, 1)), np.empty((samples, 2)), np.zeros(2)
    for t in range(samples):
        y[t] = [30.0 * x[0] + 200.0, 0.02 * x[1]]
        x = np.array([0.8 * x[0] + 0.3 * x[1], -0.3 * np.tanh(x[0]) + 0.7 * x[1] + 0.5 * u[t, 0]])
    return Dataset.from_arrays(4.0 * u + 1.0, y, 0.1, n_init=10, u_units=["V"], y_units=["mm", "A"])


def first_order(rate: float = 0.8) -> StateSpaceModel:
    model = UnconstrainedStateSpace(records(), 1, (2,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.a.fill_(rate)
        model.b.fill_(0.5)
        model.c.copy_(torch.tensor([[2.0], [-3.0]], dtype=torch.float64))
    return model


@cache
def nonlinear(kind: str) -> tuple[StateSpaceModel, ModelCertificate]:
    data = records()
    bounded = LipschitzStateSpace(data, 2, (6,), lipschitz_x=0.97, output_hidden=(4,), feedthrough=True)
    model = bounded if kind == "lipschitz" else UnconstrainedStateSpace(data, 2, (6,), output_hidden=(4,))
    model.start_(None, data)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model, certify_model(model, iterations=50)


@pytest.mark.parametrize("rate", [0.8, 1.1])
def test_a_first_order_model_fills_its_tube(rate: float) -> None:
    model = first_order(rate)
    scaling = model.channels.scaling
    k, dx0, du = 15, 0.7, 0.3
    tube = sensitivity_tube(model, k, dx0=dx0, du=du)
    powers = rate ** np.arange(k + 1)
    exact = powers * dx0 + 0.5 / scaling.u_scale[0] * du * (1.0 - powers) / (1.0 - rate)
    np.testing.assert_allclose(tube.x, exact, rtol=1e-10)
    outputs = exact[:, None] * np.array([2.0, 3.0]) * scaling.y_scale
    np.testing.assert_allclose(tube.y, outputs, rtol=1e-10)
    assert (tube.x >= exact * (1 - 30 * EPS)).all() and (tube.y >= outputs * (1 - 30 * EPS)).all()
    found = attack_tube(model, tube, pairs=64, iterations=10)
    assert (found.x <= tube.x).all() and (found.y <= tube.y).all()
    assert (found.x[-1] >= tube.x[-1] * (1 - INSIDE)) and (found.y[-1] >= tube.y[-1] * (1 - INSIDE)).all()


@pytest.mark.parametrize("kind", ["lipschitz", "unconstrained"])
def test_tubes_contain_ten_thousand_attacked_pairs(kind: str) -> None:
    model, certificate = nonlinear(kind)
    tube = sensitivity_tube(certificate, 12, dx0=0.2, du=0.5)
    found = attack_tube(model, tube, pairs=10_000, iterations=4)
    assert found.pairs == 10_000
    assert (found.x <= tube.x).all() and (found.y <= tube.y).all()


@pytest.mark.parametrize("kind", ["lipschitz", "unconstrained"])
@pytest.mark.parametrize(("dx0", "du"), [(0.3, 0.0), (0.0, 0.4), (1e-6, 1e-6), (50.0, 50.0)])
def test_attacks_come_near_but_not_beyond(kind: str, dx0: float, du: float) -> None:
    model, certificate = nonlinear(kind)
    tube = sensitivity_tube(certificate, 15, dx0=dx0, du=du)
    found = attack_tube(model, tube, pairs=150, iterations=25)
    assert (found.x <= tube.x).all() and (found.y <= tube.y).all()
    if dx0:  # the initial change is attained exactly
        assert found.x[0] >= dx0 * (1 - INSIDE)
    if dx0 < 1.0 and du < 1.0:
        assert found.y.max(axis=0).min() > 0 and (found.y[:3] > 0.2 * tube.y[:3]).any()


def test_the_public_functions_stay_inside() -> None:
    """Random pairs through `simulate` and `states`, in the units of the data."""
    model, certificate = nonlinear("lipschitz")
    rng = np.random.default_rng(1)
    k, dx0, du = 10, 0.5, 2.0
    tube = sensitivity_tube(certificate, k, dx0=dx0, du=du)
    inverse = np.linalg.inv(np.linalg.cholesky(certificate.metric).T)
    for _ in range(50):
        x, direction = rng.normal(size=2), rng.normal(size=2)
        other = x + inverse @ direction * (dx0 * (1 - INSIDE) / np.linalg.norm(direction))
        u = 1.0 + 8.0 * rng.normal(size=(k + 1, 1))
        v = u + du * rng.choice([-1.0, 1.0], size=u.shape) * (1 - INSIDE)
        assert (certificate.norm(model.states(u, x) - model.states(v, other))[:-1] <= tube.x).all()
        assert (np.abs(model.simulate(u, x) - model.simulate(v, other)) <= tube.y).all()


def test_input_changes_may_vary_in_time() -> None:
    model, certificate = nonlinear("lipschitz")
    sizes = np.zeros(31)
    sizes[:5] = 0.3
    pulse, steady = sensitivity_tube(certificate, 30, du=sizes), sensitivity_tube(certificate, 30, du=0.3)
    assert (pulse.x[:6] == steady.x[:6]).all() and (pulse.x <= steady.x).all()
    assert (np.diff(pulse.x[6:]) < 0).all()
    found = attack_tube(model, pulse, pairs=100, iterations=10)
    assert (found.x <= pulse.x).all() and (found.y <= pulse.y).all()
    zero = sensitivity_tube(certificate, 3)
    assert (zero.x == 0.0).all() and (zero.y == 0.0).all()


def test_the_tube_stays_below_the_peak_gain() -> None:
    _, certificate = nonlinear("lipschitz")
    assert certificate.rate < 1.0
    tube = sensitivity_tube(certificate, 400, du=0.3)
    assert (tube.y <= 0.3 * certificate.peak_gains * (1 + 1e-12)).all()
    assert (tube.y[-1] >= 0.3 * certificate.peak_gains * (1 - 1e-9)).all()


def test_the_attack_is_seeded_and_takes_a_nominal_record() -> None:
    model, certificate = nonlinear("lipschitz")
    tube = sensitivity_tube(certificate, 6, dx0=0.1, du=0.1)
    u = np.linspace(-1.0, 3.0, 7)[:, None]
    first, second = (
        attack_tube(model, tube, pairs=9, iterations=3, u=u, x0=np.zeros(2), seed=3) for _ in "ab"
    )
    assert (first.y == second.y).all() and (first.x == second.x).all()


def test_bad_arguments() -> None:
    model, certificate = nonlinear("lipschitz")
    with pytest.raises(InvalidArgumentError, match="dx0"):
        sensitivity_tube(certificate, 3, dx0=-1.0)
    with pytest.raises(InvalidArgumentError, match="du"):
        sensitivity_tube(certificate, 3, du=-1.0)
    with pytest.raises(NonFiniteError, match="du"):
        sensitivity_tube(certificate, 3, du=np.inf)
    with pytest.raises(ShapeError, match="du"):
        sensitivity_tube(certificate, 3, du=np.ones(3))
    tube = sensitivity_tube(certificate, 3)
    with pytest.raises(ShapeError, match="u: expected"):
        attack_tube(model, tube, u=np.ones((3, 1)))
    with pytest.raises(ShapeError, match="x0: expected"):
        attack_tube(model, tube, x0=np.ones(3))
