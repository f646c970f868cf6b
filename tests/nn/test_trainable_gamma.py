"""A bound that is trained or scheduled: it is a parameter like any other, and a guarantee at every value."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from robustnn import LBDN
from robustnn.bounds import lower_bound
from robustnn.errors import CheckpointError, InvalidArgumentError
from robustnn.nn import LipschitzSchedule, lipschitz_penalty
from tests.networks import SHAPES, exported, inputs, random_lbdn

EPS = torch.finfo(torch.float64).eps


def trained_lbdn(shape: tuple = (3, (8, 5), 2), gamma: float = 3.0, **kwargs: object) -> LBDN:
    """Random parameters, the bound as given."""
    net = random_lbdn(shape, lipschitz=gamma, trainable_lipschitz=True, **kwargs)
    net.set_lipschitz(gamma)
    return net


@pytest.mark.parametrize("shape", SHAPES)
def test_same_function_as_with_a_fixed_bound(shape: tuple) -> None:
    net = trained_lbdn(shape, dtype=torch.float64)
    fixed = LBDN(*shape, lipschitz=3.0, dtype=torch.float64)
    fixed.load_state_dict(net.state_dict())
    x = inputs(shape[0])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(net(x), fixed(x), rtol=1e-12, atol=1e-12)
    assert net.lipschitz == pytest.approx(3.0, rel=1e-15)


@pytest.mark.parametrize("shape", [(1, (1,), 1), (3, (), 2), (2, (3, 1), 2)])
@pytest.mark.parametrize("scaled", [True, False])
def test_derivatives(shape: tuple, scaled: bool) -> None:
    """First and second derivatives in all parameters, the bound included, by differences."""
    n = shape[0]
    scale = (torch.eye(n) + 0.2 * torch.ones(n, n)).double() if scaled else None
    net = trained_lbdn(shape, activation="tanh", dtype=torch.float64, input_scale=scale)
    x = inputs(n, n=3)
    names = [name for name, _ in net.named_parameters()]
    assert "log_lipschitz" in names

    def function(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(function, tuple(net.parameters()))
    assert torch.autograd.gradgradcheck(function, tuple(net.parameters()))


def test_training_finds_the_bound_that_the_data_need() -> None:
    """The target has slope 5; started from 1 the bound grows to it, and a penalty keeps it from growing on."""
    torch.manual_seed(0)
    net = LBDN(1, (8,), 1, lipschitz=1.0, trainable_lipschitz=True, dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    x = inputs(1, n=64)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (net(x) - 5 * x).square().mean() + 1e-3 * lipschitz_penalty(net)
        loss.backward()
        optimizer.step()
    assert 4.9 < net.lipschitz < 6.0
    assert lower_bound(exported(net), inputs(1, n=8), iterations=20).value <= net.lipschitz * (1 + 4 * EPS)


@pytest.mark.parametrize("value", [-1e9, -300.0, 0.3, 300.0, 1e9])
def test_no_value_of_the_parameter_breaks_the_bound(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        net = trained_lbdn(dtype=dtype)
        with torch.no_grad():
            net.log_lipschitz.fill_(value)
        assert 0.0 < net.lipschitz < math.inf
        weights = exported(net).weights
        assert all(bool(w.isfinite().all()) for w in weights)
        product = math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in weights)
        assert product > 0.0
        if abs(value) < 1:
            found = lower_bound(exported(net), inputs(3), iterations=20).value
            assert found <= net.lipschitz * (1 + 4 * torch.finfo(dtype).eps)


def test_penalty() -> None:
    nets = nn.ModuleList([trained_lbdn(gamma=2.0), LBDN(3, (8,), 2), trained_lbdn(gamma=5.0)])
    penalty = lipschitz_penalty(nets)
    assert float(penalty.detach()) == pytest.approx(7.0, rel=1e-6)
    penalty.backward()
    assert float(nets[0].log_lipschitz.grad) == pytest.approx(2.0, rel=1e-6)  # d gamma / d log gamma = gamma
    with pytest.raises(InvalidArgumentError, match="trainable_lipschitz"):
        lipschitz_penalty(LBDN(3, (8,), 2))


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle", "torch_save", "double"])
def test_copies(way: str) -> None:
    net = trained_lbdn(gamma=math.pi).freeze()
    if way == "state_dict":
        twin = LBDN(3, (8, 5), 2, trainable_lipschitz=True)
        twin.load_state_dict(net.state_dict())
    elif way == "deepcopy":
        twin = copy.deepcopy(net)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    elif way == "torch_save":
        buffer = io.BytesIO()
        torch.save(net.state_dict(), buffer)
        buffer.seek(0)
        twin = LBDN(3, (8, 5), 2, trainable_lipschitz=True)
        twin.load_state_dict(torch.load(buffer, weights_only=True))
    else:
        twin = copy.deepcopy(net).double()
    assert twin.lipschitz == net.lipschitz and not twin.is_frozen
    assert twin.log_lipschitz is not net.log_lipschitz and twin.log_lipschitz.requires_grad
    ours, theirs = exported(twin), exported(net)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if way != "double" else 1e-5)


def test_a_trained_bound_loads_as_a_fixed_one_and_the_reverse() -> None:
    trained, fixed = trained_lbdn(gamma=7.0), random_lbdn((3, (8, 5), 2), lipschitz=2.0)
    other = LBDN(3, (8, 5), 2)
    other.load_state_dict(trained.state_dict())
    assert other.lipschitz == trained.lipschitz
    other = LBDN(3, (8, 5), 2, trainable_lipschitz=True)
    other.load_state_dict(fixed.state_dict())
    assert other.lipschitz == pytest.approx(2.0, rel=1e-6)
    policy = nn.Sequential(LBDN(3, (8, 5), 2))
    policy.load_state_dict(nn.Sequential(trained).state_dict())
    assert policy[0].lipschitz == trained.lipschitz
    bad = fixed.state_dict()
    bad["_extra_state"] = {"lipschitz": -1.0}
    with pytest.raises(CheckpointError, match="lipschitz"):
        LBDN(3, (8, 5), 2, trainable_lipschitz=True).load_state_dict(bad)


def test_frozen_weights_and_the_bound() -> None:
    for net in (trained_lbdn(), random_lbdn((3, (8, 5), 2), lipschitz=3.0)):
        x = inputs(3).float()
        net.freeze()
        with torch.no_grad():
            before = net(x)
            net.set_lipschitz(12.0)
            assert not net.is_frozen and net.lipschitz == pytest.approx(12.0, rel=1e-6)
            after = net(x)
        assert not torch.equal(before, after)
        ratio = exported(net).weights[0].norm()
        net.set_lipschitz(3.0)
        assert float(ratio / exported(net).weights[0].norm()) == pytest.approx(2.0, rel=1e-6)


def test_functional_call_and_vmap_over_bounds() -> None:
    nets = [trained_lbdn(gamma=g, dtype=torch.float64) for g in (1.0, 2.0, 3.0)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = inputs(3)
    stacked = torch.func.vmap(lambda p, b: torch.func.functional_call(nets[0], (p, b), x))(
        parameters, buffers
    )
    expected = torch.stack([net(x) for net in nets])
    torch.testing.assert_close(stacked, expected, rtol=0, atol=500 * EPS * 10)


def test_schedule() -> None:
    net = random_lbdn((3, (8,), 2), lipschitz=16.0).freeze()
    schedule = LipschitzSchedule(net, final=1.0, steps=4)
    assert [schedule.step() for _ in range(3)] == pytest.approx([8.0, 4.0, 2.0])
    assert not net.is_frozen
    state = schedule.state_dict()
    assert (schedule.step(), schedule.step(), net.lipschitz) == (1.0, 1.0, 1.0)
    linear = LipschitzSchedule(random_lbdn((3, (8,), 2), lipschitz=5.0), final=1.0, steps=4, kind="linear")
    assert [linear.step() for _ in range(5)] == pytest.approx([4.0, 3.0, 2.0, 1.0, 1.0])
    again = LipschitzSchedule(random_lbdn((3, (8,), 2), lipschitz=99.0), final=3.0, steps=2)
    again.load_state_dict(state)
    assert again.net.lipschitz == pytest.approx(2.0) and again.step() == 1.0
    assert again.value(0) == 16.0


def test_wrong_arguments() -> None:
    net = random_lbdn((3, (8,), 2))
    with pytest.raises(InvalidArgumentError, match="fixed bound"):
        LipschitzSchedule(trained_lbdn(), 1.0, 4)
    with pytest.raises(InvalidArgumentError, match="kind"):
        LipschitzSchedule(net, 1.0, 4, kind="cosine")
    with pytest.raises(InvalidArgumentError, match="final"):
        LipschitzSchedule(net, 0.0, 4)
    with pytest.raises(InvalidArgumentError, match="steps"):
        LipschitzSchedule(net, 1.0, 0)
    with pytest.raises(InvalidArgumentError, match="state"):
        LipschitzSchedule(net, 1.0, 4).load_state_dict({"count": 1})
    with pytest.raises(InvalidArgumentError, match="lipschitz"):
        net.set_lipschitz(-1.0)
    with pytest.raises(InvalidArgumentError, match="lipschitz"):
        trained_lbdn().set_lipschitz(1e30)
    assert "(trained)" in repr(trained_lbdn()) and "(trained)" not in repr(net)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_compile() -> None:
    torch._dynamo.reset()
    net = trained_lbdn(dtype=torch.float64)
    compiled = torch.compile(net, backend="eager")
    x = inputs(3)
    torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=1e3 * EPS)
    with torch.no_grad():
        net.log_lipschitz.add_(1.0)
        torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=1e4 * EPS)


def test_a_copy_from_direct_parameters_of_a_trained_bound() -> None:
    net = LBDN(3, (4,), 1, lipschitz=2.5, trainable_lipschitz=True)
    copied = LBDN.from_direct(net.direct(), net.activation, trainable_lipschitz=True)
    assert copied.lipschitz == pytest.approx(net.lipschitz, rel=1e-6)
    assert torch.equal(copied(torch.ones(3)), net(torch.ones(3)))
