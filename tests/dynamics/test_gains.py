"""Gains of maps with a linear part: the forms are the models, the bounds hold, and they are reached where they must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from robustnn import ExplicitMLP
from robustnn.bounds import lipsdp
from robustnn.dynamics import ExplicitStateSpace
from robustnn.dynamics.contraction import contraction
from robustnn.dynamics.gains import gain
from robustnn.dynamics.incremental import incremental_l2_gain, reachable
from robustnn.dynamics.slope_form import SlopeForm, joint_form, output_form, step_form
from robustnn.errors import NonFiniteError
from robustnn.params.activations import ACTIVATIONS

EPS = torch.finfo(torch.float64).eps
N_X, N_U, N_Y = 3, 2, 2


def network(
    n_in: int, widths: tuple[int, ...], n_out: int, activation: str, bias: bool = True
) -> ExplicitMLP:
    sizes = (n_in, *widths, n_out)
    weights = [torch.randn(m, n).double() / n**0.5 for n, m in zip(sizes, sizes[1:], strict=False)]
    biases = [torch.randn(m).double() if bias else None for m in sizes[1:]]
    return ExplicitMLP(tuple(weights), tuple(biases), activation)


def random_model(
    widths: tuple[int, ...] = (6,),
    activation: str = "tanh",
    step_size: float | None = None,
    bias: bool = True,
) -> ExplicitStateSpace:
    def matrix(m: int, n: int) -> Tensor:
        return 0.5 * torch.randn(m, n).double()

    return ExplicitStateSpace(
        matrix(N_X, N_X), matrix(N_X, N_U), matrix(N_Y, N_X), matrix(N_Y, N_U),
        network(N_X + N_U, widths, N_X, activation, bias), network(N_X + N_U, widths, N_Y, activation, bias),
        step_size=step_size,
    )  # fmt: skip


def scalar(k: float, w1: float, w0: float, activation: str) -> SlopeForm:
    """The map k x + w1 sigma(w0 x)."""
    one = torch.ones(1, 1).double()
    f = ExplicitMLP((torch.tensor([[w0, 0.0]]).double(), w1 * one), (None, None), activation)
    return step_form(ExplicitStateSpace(k * one, 0 * one, one, 0 * one, f)).inputs(0, 1)


def linear(a: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> ExplicitStateSpace:
    b = torch.zeros(len(a), 1).double() if b is None else b
    c = torch.eye(len(a)).double() if c is None else c
    return ExplicitStateSpace(a, b, c, torch.zeros(len(c), b.shape[1]).double())


def evaluate(form: SlopeForm, xi: Tensor, activation: str) -> Tensor:
    """The map without biases, unit by unit."""
    sigma = ACTIVATIONS[activation].function
    z = torch.zeros(form.n_z).double()
    for k in range(form.n_z):
        z[k] = sigma(form.v[k] @ torch.cat((xi, z)))
    return form.g @ torch.cat((xi, z))


def largest_slope(model: ExplicitStateSpace, what: str, points: int = 200) -> float:
    """Largest spectral norm of the Jacobian of a step or output at random points."""

    def function(xi: Tensor) -> Tensor:
        x, u = xi[:N_X], xi[N_X:]
        return model.step(x, u) if what == "step" else model.output(x, u)

    jacobian = torch.func.vmap(torch.func.jacrev(function))(2.0 * torch.randn(points, N_X + N_U).double())
    return float(torch.linalg.matrix_norm(jacobian, ord=2).max())


@pytest.mark.parametrize("step_size", [None, 0.3])
@pytest.mark.parametrize("widths", [(), (6,), (4, 5), (3, 4, 2)])
@pytest.mark.parametrize("activation", ["tanh", "relu", "leaky_relu", "identity"])
def test_the_form_is_the_model(activation: str, widths: tuple[int, ...], step_size: float | None) -> None:
    model = random_model(widths, activation, step_size, bias=False)
    xi = torch.randn(N_X + N_U).double()
    x, u = xi[:N_X], xi[N_X:]
    following, y = model.step(x, u), model.output(x, u)
    for form, expected in (
        (step_form(model), following),
        (output_form(model), y),
        (joint_form(model), torch.cat((following, y))),
    ):
        torch.testing.assert_close(evaluate(form, xi, activation), expected, rtol=100 * EPS, atol=100 * EPS)
    stages = 1 if step_size is None else 4
    units = 0 if activation == "identity" else sum(widths)
    assert step_form(model).n_z == stages * units and output_form(model).n_z == units


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize(("widths", "step_size"), [((6,), None), ((4, 5), None), ((4,), 0.3)])
def test_the_gain_holds(activation: str, widths: tuple[int, ...], step_size: float | None) -> None:
    model = random_model(widths, activation, step_size)
    for what, form in (("step", step_form(model)), ("output", output_form(model))):
        found = gain(form, iterations=25)
        assert found.holds(form)
        assert largest_slope(model, what) <= found.bound


@pytest.mark.parametrize(
    ("k", "w1", "activation", "exact"),
    [
        (1.0, -1.0, "tanh", 1.0),
        (1.0, 1.0, "relu", 2.0),
        (-1.0, 1.0, "leaky_relu", 0.99),
        (0.5, -2.0, "sigmoid", 0.5),
    ],
)
def test_a_linear_part_may_cancel(k: float, w1: float, activation: str, exact: float) -> None:
    """The largest |k + w1 s| over the slopes s, not the sum of two bounds."""
    found = gain(scalar(k, w1, 1.0, activation))
    assert exact * (1.0 - 4 * EPS) <= found.bound <= exact * (1.0 + 1e-8)


def test_a_linear_map_has_its_weighted_norm() -> None:
    a = torch.randn(3, 3).double()
    root_p, root_r = (
        torch.randn(3, 3).double() + 3 * torch.eye(3),
        torch.randn(3, 3).double() + 3 * torch.eye(3),
    )
    p, r = root_p.mT @ root_p, root_r.mT @ root_r
    p, r = (p + p.mT) / 2, (r + r.mT) / 2
    exact = float(torch.linalg.matrix_norm(root_p @ a @ torch.linalg.inv(root_r), ord=2))
    found = gain(step_form(linear(a)).inputs(0, 3), p, r)
    assert exact * (1 - 1e3 * EPS) <= found.bound <= exact * (1 + 1e-11)


@pytest.mark.parametrize("widths", [(10,), (8, 8)])
def test_without_a_linear_part_it_is_lipsdp(widths: tuple[int, ...]) -> None:
    f = network(3, widths, 2, "tanh")
    zero = torch.zeros(2, 2).double()
    model = ExplicitStateSpace(zero, torch.zeros(2, 1).double(), zero, torch.zeros(2, 1).double(), f)
    found, reference = gain(step_form(model)).bound, lipsdp(f).value
    assert abs(found / reference - 1.0) < 1e-3  # two searches for one optimum


def test_a_proof_is_checked() -> None:
    form = scalar(1.0, -1.0, 1.0, "tanh")
    proof = gain(form)
    assert proof.holds(form)
    assert not replace(proof, bound=proof.bound * (1 - 1e-6)).holds(form)
    assert not replace(proof, multipliers=-proof.multipliers).holds(form)
    assert not replace(proof, multipliers=1e3 * proof.multipliers).holds(form)
    assert not replace(proof, target=-proof.target).holds(form)
    assert not replace(proof, bound=float("nan")).holds(form)
    assert not replace(proof, multipliers=torch.ones(2).double()).holds(form)
    assert not proof.holds(scalar(1.001, -1.0, 1.0, "tanh"))


def test_nothing_acts() -> None:
    model = linear(0.5 * torch.eye(2).double())
    assert gain(step_form(model).inputs(2, 3)).bound == 0.0
    assert gain(output_form(model).inputs(2, 3)).holds(output_form(model).inputs(2, 3))


def test_weights_must_be_finite() -> None:
    with pytest.raises(NonFiniteError, match="finite"):
        step_form(linear(torch.tensor([[float("nan")]]).double()))


@pytest.mark.parametrize("a", [[[0.9, 0.5], [-0.1, 0.7]], [[0.5, 5.0], [0.0, 0.6]], [[1.1, 0.3], [0.0, 0.2]]])
def test_linear_contraction_is_the_spectral_radius(a: list[list[float]]) -> None:
    radius = float(np.abs(np.linalg.eigvals(np.array(a))).max())
    form = step_form(linear(torch.tensor(a).double())).inputs(0, 2)
    found = contraction(form)
    assert found.holds(form) and torch.equal(found.target, found.source)
    assert radius <= found.bound < 1.003 * radius


def test_l2_gain_of_a_linear_model_is_the_h_infinity_norm() -> None:
    a = torch.tensor([[0.9, 0.5, 0.0], [-0.1, 0.7, 0.3], [0.0, 0.0, 0.5]]).double()
    b, c = (
        torch.tensor([[0.0, 0.2], [0.0, 1.0], [1.0, 0.0]]).double(),
        torch.tensor([[1.0, 0.0, 0.5]]).double(),
    )
    model = linear(a, b, c)
    z = np.exp(1j * np.linspace(0.0, np.pi, 4001))
    response = c.numpy() @ np.linalg.solve(
        z[:, None, None] * np.eye(3) - a.numpy(), b.numpy().astype(complex)
    )
    exact = np.linalg.norm(response, 2, axis=(1, 2)).max()
    start = contraction(step_form(model).inputs(0, 3))
    found = incremental_l2_gain(joint_form(model), 3, (start,))
    assert found is not None and found.holds(joint_form(model))
    assert exact * (1 - 1e-9) <= found.bound < 1.003 * exact


def test_reachable_states_of_a_first_order_model() -> None:
    """The star norm of b / (z - a) is b / (1 - a), with lambda = a."""
    one = torch.ones(1, 1).double()
    model = linear(0.8 * one, 0.5 * one, 3.0 * one)
    proof = reachable(step_form(model), output_form(model), 1, contraction(step_form(model).inputs(0, 1)))
    assert proof is not None and proof.holds(step_form(model))
    reach = proof.bound / (1.0 - proof.decay) ** 0.5
    assert 2.5 * (1 - 10 * EPS) <= reach < 2.5 * 1.0001
    assert not replace(proof, bound=0.99 * proof.bound).holds(step_form(model))
    assert not replace(proof, decay=0.99 * proof.decay).holds(step_form(model))
