"""Simulation: the compiled recurrence and its adjoint against the loop, and both against other formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import dlsim
from torch import Tensor
from torch.autograd import forward_ad

import robustnn.dynamics
from robustnn import LBDN, ExplicitMLP
from robustnn.dynamics import ExplicitStateSpace, simulate
from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.params.activations import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[2]
N_X, N_U, N_Y = 3, 2, 2
WIDTHS: list[tuple[int, ...] | None] = [None, (), (16,), (5, 9), (8, 8, 3)]


@pytest.fixture(autouse=True)
def _numba(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most tests need the compiled recurrence; those of the loop alone run without numba as well."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("method") != "loop":
        pytest.importorskip("numba")
    yield


def random_model(
    widths: tuple[int, ...] | None = (6,),
    activation: str = "tanh",
    dtype: torch.dtype = torch.float64,
    *,
    bias: bool = True,
    h: bool = True,
    constant: bool = False,
    step_size: float | None = None,
) -> ExplicitStateSpace:
    """A stable random model that asks for all gradients; `widths` None is for no networks."""

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, dtype=torch.float64) * (0.5 / shape[-1] ** 0.5)
        return values.to(dtype).requires_grad_()

    def network(n_out: int) -> ExplicitMLP | None:
        if widths is None:
            return None
        sizes = (N_X + N_U, *widths, n_out)
        return ExplicitMLP(
            tuple(leaf(m, n) for n, m in zip(sizes, sizes[1:], strict=False)),
            tuple(leaf(m) if bias else None for m in sizes[1:]),
            activation,
        )

    return ExplicitStateSpace(
        leaf(N_X, N_X), leaf(N_X, N_U), leaf(N_Y, N_X), leaf(N_Y, N_U), network(N_X), network(N_Y) if h else None,
        constant=leaf(N_Y) if constant else None, step_size=step_size,
    )  # fmt: skip


def records(batch: int, steps: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Initial states and inputs that ask for gradients."""
    x0 = torch.randn(batch, N_X, dtype=dtype, requires_grad=True)
    return x0, torch.randn(batch, steps, N_U, dtype=dtype, requires_grad=True)


def leaves(model: ExplicitStateSpace) -> list[Tensor]:
    found: list[Tensor] = []
    model.map(lambda tensor: (found.append(tensor), tensor)[1])
    return found


def results(model: ExplicitStateSpace, x0: Tensor, u: Tensor, method: str) -> list[Tensor]:
    """Outputs, states, and the gradients of a loss that sees all of them, in whatever asks for one."""
    y, x = simulate(model, x0, u, method=method)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
    loss = (weights * y).sum() + x.square().sum()
    wanted = [tensor for tensor in (x0, u, *leaves(model)) if tensor.requires_grad]
    return [y, x, *torch.autograd.grad(loss, wanted)]


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference in units of rounding of the largest entry."""
    scale = expected.abs().max().item() * torch.finfo(expected.dtype).eps
    return ((found - expected).abs().max() / scale).item() if scale else float(found.abs().max())


@pytest.mark.parametrize("step_size", [None, 0.1])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_equals_the_loop(
    dtype: torch.dtype, activation: str, widths: tuple[int, ...] | None, batch: int, step_size: float | None
) -> None:
    model = random_model(
        widths, activation, dtype, bias=batch > 1, h=batch > 1, constant=batch > 1, step_size=step_size
    )
    x0, u = records(batch, 20, dtype)
    expected = results(model, x0, u, "loop")
    for found, reference in zip(results(model, x0, u, "compiled"), expected, strict=True):
        assert found.shape == reference.shape and found.dtype == dtype
        assert error(found, reference) < 100.0


def test_a_long_record() -> None:
    model = random_model((16,), h=False)
    x0, u = records(1, 3000)
    for found, reference in zip(results(model, x0, u, "auto"), results(model, x0, u, "loop"), strict=True):
        assert error(found, reference) < 1000.0


@pytest.mark.parametrize("step_size", [None, 0.1])
@pytest.mark.parametrize("widths", [None, (4,), (5, 3)])
@pytest.mark.parametrize("numbers", [1, 100])
def test_gradients_in_pieces(
    numbers: int, widths: tuple[int, ...] | None, step_size: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass goes through the record in pieces; here of one step, or of a few and a remainder."""
    model = random_model(widths, step_size=step_size)
    x0, u = records(3, 17)
    expected = results(model, x0, u, "compiled")
    monkeypatch.setattr(sys.modules["robustnn.dynamics.simulate"], "_CHUNK", numbers)
    for found, reference in zip(results(model, x0, u, "compiled"), expected, strict=True):
        assert error(found, reference) < 20.0


def test_a_model_without_inputs() -> None:
    weights = tuple(torch.randn(m, n, dtype=torch.float64).requires_grad_() for n, m in ((2, 5), (5, 2)))
    matrix = 0.5 * torch.eye(2, dtype=torch.float64)
    model = ExplicitStateSpace(
        matrix, matrix[:, :0], matrix, matrix[:, :0], ExplicitMLP(weights, (None, None), "tanh")
    )
    x0, u = torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 8, 0, dtype=torch.float64)
    for found, reference in zip(
        results(model, x0, u, "compiled"), results(model, x0, u, "loop"), strict=True
    ):
        assert error(found, reference) < 100.0


@pytest.mark.parametrize("batch", [2, 4, 5, 11])
def test_batches_are_the_records_one_by_one(batch: int) -> None:
    model = random_model((7, 9)).detach()
    x0, u = (tensor.detach() for tensor in records(batch, 6))
    y, x = simulate(model, x0, u, method="compiled")
    for k in range(batch):
        one = simulate(model, x0[k : k + 1], u[k : k + 1], method="loop")
        assert error(y[k : k + 1], one.y) < 50.0 and error(x[k : k + 1], one.x) < 50.0


@pytest.mark.parametrize("method", ["loop", "compiled"])
def test_linear_model_against_scipy(method: str) -> None:
    model = random_model(None).detach()
    x0, u = (tensor.detach() for tensor in records(1, 50))
    system = tuple(matrix.numpy() for matrix in (model.a, model.b, model.c, model.d))
    _, y, x = dlsim((*system, 1.0), u[0].numpy(), x0=x0[0].numpy())
    found = simulate(model, x0, u, method=method)
    assert error(found.y[0], torch.from_numpy(y)) < 50.0
    assert error(found.x[0, :-1], torch.from_numpy(x)) < 50.0


@pytest.mark.parametrize("method", ["loop", "compiled"])
def test_runge_kutta_step_against_the_exponential_series(method: str) -> None:
    """On a linear model, one step is the exponential series up to the fourth power."""
    h = 0.3
    model = random_model(None, step_size=h).detach()
    a, b = h * model.a.numpy(), h * model.b.numpy()
    powers = [np.linalg.matrix_power(a, k) for k in range(5)]
    state = powers[0] + powers[1] + powers[2] / 2 + powers[3] / 6 + powers[4] / 24
    inputs = (powers[0] + powers[1] / 2 + powers[2] / 6 + powers[3] / 24) @ b
    x0, u = (tensor.detach() for tensor in records(1, 5))
    expected = [x0[0].numpy()]
    for value in u[0].numpy():
        expected.append(state @ expected[-1] + inputs @ value)
    assert error(simulate(model, x0, u, method=method).x[0], torch.from_numpy(np.array(expected))) < 50.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_and_slopes_to_a_few_roundings(activation: str, dtype: torch.dtype) -> None:
    """x1 = sigma(u) with everything else zero: relative error of the values, absolute error of the slopes."""
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    f = ExplicitMLP((torch.cat((zero, one), dim=1), one), (None, None), activation)
    model = ExplicitStateSpace(zero, zero, zero, zero, f)
    size = torch.logspace(-8, 2.2, 2000, dtype=torch.float64)
    values = torch.cat(
        (-size, size, torch.tensor([0.0, 1e4, -1e4, 1e30, -1e30]), torch.linspace(-3, 3, 1000))
    )
    u = values.to(dtype).view(-1, 1, 1).requires_grad_()
    x = simulate(model, torch.zeros(len(u), 1, dtype=dtype), u, method="compiled").x[:, 1, 0]
    exact = u.detach().double().flatten().requires_grad_()
    reference = ACTIVATIONS[activation].function(exact)
    normal = reference.abs() > 2 * torch.finfo(dtype).tiny
    eps = torch.finfo(dtype).eps
    assert ((x - reference) / reference)[normal].abs().max() <= 4 * eps
    assert (x - reference)[~normal].abs().max() <= 2 * torch.finfo(dtype).tiny
    (slope,) = torch.autograd.grad(x.sum(), u)
    (expected,) = torch.autograd.grad(reference.sum(), exact)
    assert (slope.flatten() - expected).abs().max() <= 8 * eps


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize("step_size", [None, 0.2])
@pytest.mark.parametrize("widths", [(4,), (3, 5)])
def test_gradients_against_finite_differences(
    widths: tuple[int, ...], step_size: float | None, activation: str
) -> None:
    model = random_model(widths, activation, step_size=step_size)
    x0, u = records(2, 3)

    def outputs(x0: Tensor, u: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        return simulate(model.map(lambda _: next(given)), x0, u, method="compiled")

    assert torch.autograd.gradcheck(outputs, (x0, u, *leaves(model)), fast_mode=True)


@pytest.mark.parametrize("part", ["x0", "u", "a", "b", "first", "inner", "last bias"])
def test_one_gradient_alone(part: str) -> None:
    model = random_model((4, 5)).detach()
    x0, u = (tensor.detach() for tensor in records(3, 6))
    assert model.f is not None and model.f.biases[-1] is not None
    tensors = {
        "x0": x0, "u": u, "a": model.a, "b": model.b, "first": model.f.weights[0], "inner": model.f.weights[1],
        "last bias": model.f.biases[-1],
    }  # fmt: skip
    tensors[part].requires_grad_()
    found, expected = (results(model, x0, u, method) for method in ("compiled", "loop"))
    assert error(found[2], expected[2]) < 100.0


def test_the_graph_may_be_used_twice() -> None:
    model = random_model()
    x0, u = records(2, 5)
    loss = simulate(model, x0, u, method="compiled").y.square().sum()
    first = torch.autograd.grad(loss, (x0, u, model.a), retain_graph=True)
    second = torch.autograd.grad(loss, (x0, u, model.a))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_strided_arguments() -> None:
    model = random_model((5,)).detach()
    assert model.f is not None
    strided = model.map(lambda t: torch.stack((t, t), dim=-1)[..., 0].requires_grad_())
    x0, u = (torch.stack((t.detach(), t.detach()), dim=-1)[..., 1] for t in records(4, 6))
    for found, reference in zip(
        results(strided, x0, u, "compiled"), results(strided, x0, u, "loop"), strict=True
    ):
        assert error(found, reference) < 100.0


def test_gradients_reach_the_parameters_of_an_lbdn() -> None:
    net = LBDN(N_X + N_U, (6, 5), N_X, lipschitz=0.9, activation="tanh", dtype=torch.float64)
    base = random_model(None).detach()
    x0, u = (tensor.detach() for tensor in records(2, 10))
    grads = []
    for method in ("compiled", "loop"):
        model = ExplicitStateSpace(base.a, base.b, base.c, base.d, net.explicit())
        loss = simulate(model, x0, u, method=method).y.square().sum()
        grads.append(torch.autograd.grad(loss, list(net.parameters())))
    assert all(error(a, b) < 1000.0 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diverging_models_overflow_as_the_loop_does(dtype: torch.dtype, activation: str, batch: int) -> None:
    model = random_model((6,), activation, dtype, h=False)
    with torch.no_grad():
        model.a.copy_(torch.diag(torch.tensor([8.0, -9.0, 0.5])))
    x0, u = records(batch, 500, dtype)
    found, expected = (results(model, x0, u, method) for method in ("compiled", "loop"))
    assert not expected[1].isfinite().all()
    assert torch.equal(found[1].isfinite(), expected[1].isfinite())
    finite = expected[1].isfinite().all(-1).all(0)
    assert 0 < int(finite.sum()) < len(finite)
    growth = found[1][:, finite] / expected[1][:, finite] - 1.0
    assert growth[..., :2].abs().max() < 1e4 * torch.finfo(dtype).eps
    assert not found[2].isfinite().all()  # the gradient in x0


def test_nan_passes_through() -> None:
    model = random_model((6,)).detach()
    x0, u = (tensor.detach().clone() for tensor in records(5, 10))
    u[2, 4, 0] = torch.nan
    found, expected = (simulate(model, x0, u, method=method) for method in ("compiled", "loop"))
    assert torch.equal(found.x.isnan(), expected.x.isnan())
    assert torch.equal(found.y.isnan(), expected.y.isnan())
    assert expected.x.isnan().any() and not expected.x[[0, 1, 3, 4]].isnan().any()


def test_double_backward() -> None:
    model = random_model()
    x0, u = records(2, 4)
    first = torch.autograd.grad(simulate(model, x0, u, method="loop").y.sum(), x0, create_graph=True)[0]
    assert torch.autograd.grad(first.sum(), u)[0].isfinite().all()
    y = simulate(model, x0, u, method="compiled").y
    with pytest.raises(InvalidArgumentError, match=r"differentiated again .* Pass method='loop' to simulate"):
        torch.autograd.grad(y.sum(), x0, create_graph=True)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch's own, in jvp
def test_transforms_take_the_loop() -> None:
    model = random_model().detach()
    x0, u = (tensor.detach() for tensor in records(3, 4))
    direction = torch.randn_like(u)

    def outputs(u: Tensor, method: str = "auto") -> Tensor:
        return simulate(model, x0, u, method=method).y

    _, tangent = torch.func.jvp(outputs, (u,), (direction,))
    step = 1e-6
    difference = (outputs(u + step * direction) - outputs(u - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-7, atol=1e-8)
    many = torch.func.vmap(outputs)(torch.stack((u, 2 * u)))
    assert error(many[1], outputs(2 * u, "loop")) < 10.0
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(u, direction)
        assert error(forward_ad.unpack_dual(outputs(dual)).tangent, tangent) < 10.0
        with pytest.raises(InvalidArgumentError, match="forward-mode"):
            outputs(dual, "compiled")
    with pytest.raises(InvalidArgumentError, match=r"torch\.func"):
        torch.func.vmap(lambda v: outputs(v, "compiled"))(torch.stack((u, u)))


def test_batched_gradients_are_refused() -> None:
    model = random_model().detach()
    x0, u = records(1, 2)
    y = simulate(model, x0, u, method="compiled").y
    cotangents = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    with pytest.raises(InvalidArgumentError, match="Pass method='loop'"):
        torch.autograd.grad(y, u, cotangents, is_grads_batched=True)


def test_overwritten_states_are_noticed() -> None:
    x0, u = records(2, 4)
    y, x = simulate(random_model(), x0, u, method="compiled")
    with torch.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if numba had never been installed."""
    codes = sys.modules["robustnn.dynamics.simulate"]._codes
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "robustnn.dynamics.kernels", raising=False)
    monkeypatch.delattr(robustnn.dynamics, "kernels", raising=False)
    codes.cache_clear()
    yield
    codes.cache_clear()


def test_without_numba(without_numba: None) -> None:
    model = random_model().detach()
    x0, u = records(2, 4)
    assert torch.equal(simulate(model, x0, u).y, simulate(model, x0, u, method="loop").y)
    with pytest.raises(
        InvalidArgumentError, match=r"without numba, got 'compiled'\. Install robustnn\[sysid\]"
    ):
        simulate(model, x0, u, method="compiled")


def test_numba_is_loaded_when_it_is_needed() -> None:
    script = "import sys, robustnn.dynamics; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_compiles_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustnn.dynamics import kernels

    genuine = kernels.njit

    def refusing(*, cache: bool = False, **options: object) -> Callable[..., object]:
        if cache:
            raise RuntimeError("no locator available")
        return genuine(**options)

    monkeypatch.setattr(kernels, "njit", refusing)
    assert kernels._jit(cache=True)(lambda x: x + 1)(2) == 3


@pytest.mark.parametrize("method", ["loop", "auto"])
@pytest.mark.parametrize("batch, steps", [(2, 0), (0, 3)])
def test_nothing_to_simulate(batch: int, steps: int, method: str) -> None:
    x0, u = records(batch, steps)
    y, x = simulate(random_model(), x0, u, method=method)
    assert y.shape == (batch, steps, N_Y) and x.shape == (batch, steps + 1, N_X)
    with pytest.raises(InvalidArgumentError, match="nothing to simulate"):
        simulate(random_model(), x0, u, method="compiled")


def test_half_precision_takes_the_loop() -> None:
    model = random_model().detach().to(dtype=torch.bfloat16)
    x0, u = (tensor.detach().bfloat16() for tensor in records(2, 3))
    assert simulate(model, x0, u).y.dtype == torch.bfloat16
    with pytest.raises(InvalidArgumentError, match="for other dtypes than float32 or float64"):
        simulate(model, x0, u, method="compiled")


def test_other_devices_take_the_loop() -> None:
    model = random_model().detach().to(device="meta")
    x0, u = (tensor.detach().to("meta") for tensor in records(2, 3))
    assert simulate(model, x0, u).y.shape == (2, 3, N_Y)
    with pytest.raises(InvalidArgumentError, match="on other devices than the CPU"):
        simulate(model, x0, u, method="compiled")


def test_autocast_takes_the_loop() -> None:
    model = random_model(dtype=torch.float32).detach()
    x0, u = (tensor.detach() for tensor in records(2, 3, torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(simulate(model, x0, u).y, simulate(model, x0, u, method="loop").y)
        with pytest.raises(InvalidArgumentError, match="under autocast"):
            simulate(model, x0, u, method="compiled")


def test_bad_arguments() -> None:
    model = random_model()
    x0, u = records(2, 4)
    with pytest.raises(
        InvalidArgumentError, match="method: expected one of auto, loop, compiled, got 'fast'"
    ):
        simulate(model, x0, u, method="fast")
    with pytest.raises(ShapeError, match=r"x0: expected shape \(B, 3\), got \(2, 2\)"):
        simulate(model, x0[:, :2], u)
    with pytest.raises(ShapeError, match=r"x0: expected shape \(B, 3\), got \(3,\)"):
        simulate(model, x0[0], u)
    with pytest.raises(ShapeError, match=r"u: expected shape \(2, T, 2\), records first, got \(2, 4, 1\)"):
        simulate(model, x0, u[..., :1])
    with pytest.raises(ShapeError, match=r"u: expected shape \(2, T, 2\), records first, got \(4, 2\)"):
        simulate(model, x0, u[0])
    with pytest.raises(ShapeError, match=r"u: expected shape \(2, T, 2\), records first, got \(1, 4, 2\)"):
        simulate(model, x0, u[:1])
    with pytest.raises(InvalidArgumentError, match=r"u: expected dtype torch\.float64.*got torch\.float32"):
        simulate(model, x0, u.float())
    with pytest.raises(InvalidArgumentError, match=r"x0: expected a torch\.Tensor, got list"):
        simulate(model, x0.tolist(), u)


def test_a_stack_of_networks_is_refused() -> None:
    model = random_model()
    assert model.f is not None
    stacked = ExplicitStateSpace(model.a, model.b, model.c, model.d, ExplicitMLP.stack([model.f, model.f]))
    with pytest.raises(InvalidArgumentError, match="for a stack of networks"):
        simulate(stacked, *records(2, 4), method="compiled")


def test_committed_figures_meet_the_targets() -> None:
    """The result file of `benchmarks.simulate`, which the README quotes."""
    figures = json.loads((ROOT / "benchmarks" / "results" / "simulate.json").read_text(encoding="utf-8"))
    assert len(figures["settings"]) == 12
    assert all(row["ratio"] >= row["target"] for row in figures["settings"])
