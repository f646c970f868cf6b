"""AOL, orthogonal and SLL networks: the bound holds and is nearly attained, and the interface is that of LBDN."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from robustnn import CheckpointError, InvalidArgumentError, ShapeError
from robustnn.bounds import lower_bound
from robustnn.linalg import spectral_norm
from robustnn.nn import AOLNet, CayleyNet, SLLNet
from robustnn.nn.baselines import AOLLinear, CayleyLinear
from robustnn.nn.module import ExplicitModule
from robustnn.nn.sll import SLLBlock
from tests.networks import exported, inputs, randomised

NETS = (AOLNet, CayleyNet, SLLNet)
LAYERS = (AOLLinear, CayleyLinear)
DTYPES = (torch.float32, torch.float64)
SHAPES = ((1, (1,), 1), (3, (8, 8), 2), (2, (5, 1, 7), 3), (6, (16, 16), 1))
SIZES = (1e-6, 1.0, 30.0, 1e3)


@pytest.mark.parametrize("size", [1e-20, *SIZES, 1e15])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", LAYERS)
def test_a_layer_has_norm_at_most_one(cls: type[ExplicitModule], dtype: torch.dtype, size: float) -> None:
    for n_in, n_out in ((1, 1), (1, 7), (7, 1), (5, 5), (9, 4), (4, 9)):
        layer = randomised(cls(n_in, n_out, dtype=dtype), size)
        assert float(spectral_norm(exported(layer).weights[0])) <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_orthogonal_layer_preserves_norms(dtype: torch.dtype) -> None:
    for n_in, n_out in ((1, 7), (7, 1), (5, 5), (9, 4), (4, 9)):
        layer = randomised(CayleyLinear(n_in, n_out, dtype=dtype), 1.0)
        values = torch.linalg.svdvals(exported(layer).weights[0])
        assert values == pytest.approx(torch.ones(min(n_in, n_out)).tolist(), abs=20 * torch.finfo(dtype).eps)


def test_a_square_orthogonal_layer_is_the_cayley_map_of_torch() -> None:
    layer = randomised(CayleyLinear(6, 6, bias=False, dtype=torch.float64), 0.4)
    theirs = orthogonal(
        nn.Linear(6, 6, bias=False, dtype=torch.float64), orthogonal_map="cayley", use_trivialization=False
    )
    with torch.no_grad():
        free = layer.alpha * layer.weight / layer.weight.norm()
        skew = 2 * (free.mT - free)  # torch maps L - L^T, L lower triangular, by (I + S/2)(I - S/2)^{-1}
        theirs.parametrizations.weight.original.copy_(skew.tril(-1))
        assert torch.allclose(theirs.weight, layer.matrix(), rtol=0.0, atol=1e-14)


def test_an_aol_layer_of_orthogonal_columns_attains_its_bound() -> None:
    layer = AOLLinear(3, 5, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.zero_()[:3, :3] = torch.diag(torch.tensor([1e-3, 1.0, 40.0]))
        values = torch.linalg.svdvals(layer.matrix())
    assert values.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-15)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", NETS)
def test_the_bound_holds(
    cls: type[ExplicitModule], dtype: torch.dtype, shape: tuple[int, tuple[int, ...], int], size: float
) -> None:
    net = randomised(cls(*shape, lipschitz=3.0, dtype=dtype), size)
    found = lower_bound(exported(net), inputs(shape[0], n=16, size=2.0), iterations=25)
    assert found.value <= 3.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", NETS)
def test_the_bound_is_attained(cls: type[ExplicitModule], dtype: torch.dtype) -> None:
    """Square layers that are isometries where all units are active (no unit is, in an SLL network)."""
    net = cls(4, (4, 4), 4, lipschitz=3.0, dtype=dtype)
    with torch.no_grad():
        for layer in net.layers:
            if cls is AOLNet:
                layer.weight.copy_(torch.eye(4))
            layer.bias.fill_(-50.0 if cls is SLLNet else 50.0)
    found = lower_bound(exported(net), inputs(4, n=8), iterations=5)
    assert 3.0 * (1.0 - 50 * torch.finfo(dtype).eps) <= found.value <= 3.0


def test_the_bound_of_an_sll_block_is_attained_by_a_reflection() -> None:
    """With orthonormal columns W and all units active, I - 2 W W^T is a reflection: norm one, and no identity."""
    net = SLLNet(4, (2,), 4, dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.eye(4)[:2])
        net.layers[0].bias.fill_(50.0)
    jacobian = torch.func.jacrev(exported(net))(inputs(4, n=1)[0])
    assert torch.allclose(jacobian, torch.diag(torch.tensor([-1.0, -1, 1, 1]).double()), rtol=0.0, atol=1e-13)


def test_the_diagonal_of_an_sll_block_dominates() -> None:
    block = randomised(SLLBlock(5, 7, dtype=torch.float64), 3.0)
    with torch.no_grad():
        inner, outer, _ = block.factors()
        t = 2.0 * inner.square().sum(-1) / (outer.T * inner).sum(-1)
        assert torch.linalg.eigvalsh(torch.diag(t) - inner @ inner.mT).min() >= -1e-9 * t.max()


def test_an_sll_network_is_the_published_recursion() -> None:
    net = randomised(SLLNet(2, (6, 4), 3, lipschitz=2.5, dtype=torch.float64), 1.0)
    x = inputs(2, n=5)
    state = torch.zeros(5, 6, dtype=torch.float64)
    state[:, :2] = math.sqrt(2.5) * x
    for block in net.layers:
        w, q = block.weight.detach().mT, block.log_q.detach().exp()
        gram = (w.mT @ w).abs()
        t = torch.stack([sum(gram[i, j] * q[j] / q[i] for j in range(len(q))) for i in range(len(q))])
        state = state - 2.0 * torch.relu(state @ w + block.bias.detach()) / t @ w.mT
    expected = math.sqrt(2.5) * state[:, :3]
    assert torch.allclose(net(x), expected, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        assert torch.allclose(net(x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", NETS)
def test_all_forms_agree(cls: type[ExplicitModule], dtype: torch.dtype) -> None:
    net = randomised(cls(3, (8, 5), 2, lipschitz=4.0, dtype=dtype), 0.7)
    x = inputs(3, n=20).to(dtype)
    live = net(x).detach()
    with torch.no_grad():
        plain = net(x)
        forms = [
            net.explicit()(x),
            net.to_mlp()(x),
            pickle.loads(pickle.dumps(net))(x),
            copy.deepcopy(net)(x),
        ]
        with net.frozen():
            forms.append(net(x))
    assert all(torch.equal(form, plain) for form in forms)
    assert torch.allclose(live, plain, rtol=0.0, atol=400 * torch.finfo(dtype).eps)
    assert not any(isinstance(module, SLLBlock) for module in net.to_mlp().modules())


@pytest.mark.parametrize("cls", NETS)
def test_the_bound_travels_with_the_state_dict(cls: type[ExplicitModule], tmp_path: Path) -> None:
    saved = randomised(cls(2, (5, 4), 3, lipschitz=7.5, dtype=torch.float64), 0.7)
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    net = cls(2, (5, 4), 3, lipschitz=0.1, dtype=torch.float64)
    net.freeze()
    net.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert net.lipschitz == 7.5 and not net.is_frozen
    x = inputs(2, n=20)
    with torch.no_grad():
        assert torch.equal(net(x), saved(x))
        wider = nn.Sequential(cls(2, (5, 4), 3), nn.Tanh())
        wider.load_state_dict({f"0.{key}": value for key, value in saved.state_dict().items()})
        assert wider[0].lipschitz == 7.5


@pytest.mark.parametrize(
    "state", [None, {}, {"lipschitz": -1.0}, {"lipschitz": math.inf}, {"lipschitz": "x"}, 3.0]
)
def test_a_state_dict_without_a_valid_bound_is_refused(state: object) -> None:
    for cls in NETS:
        net = cls(2, (4,), 1, lipschitz=2.0)
        with pytest.raises(CheckpointError, match=f"written by a {cls.__name__}"):
            net.load_state_dict({**net.state_dict(), "_extra_state": state})
        assert net.lipschitz == 2.0
        with pytest.raises(RuntimeError, match="_extra_state"):
            net.load_state_dict({k: v for k, v in net.state_dict().items() if k != "_extra_state"})


@pytest.mark.parametrize("cls", NETS)
def test_the_bound_can_be_changed(cls: type[ExplicitModule]) -> None:
    """Without biases a relu network is homogeneous: a bound four times as large gives four times the output."""
    net = cls(2, (4,), 1, lipschitz=2.0, bias=False, dtype=torch.float64).freeze()
    x = inputs(2, n=5)
    with torch.no_grad():
        before = net(x)
        net.set_lipschitz(8.0)
        assert net.lipschitz == 8.0 and not net.is_frozen
        torch.testing.assert_close(net(x), 4.0 * before, rtol=1e-14, atol=0.0)
    with pytest.raises(InvalidArgumentError, match="lipschitz"):
        net.set_lipschitz(0.0)
    assert net.lipschitz == 8.0


@pytest.mark.parametrize("cls", NETS)
def test_gradients_are_those_of_finite_differences(cls: type[ExplicitModule]) -> None:
    net = randomised(cls(2, (4, 3), 2, lipschitz=2.0, dtype=torch.float64), 0.8)
    names, values = zip(*net.named_parameters(), strict=True)
    x = inputs(2, n=3)

    def output(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, tensors, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, tuple(v.detach().clone().requires_grad_() for v in values))


@pytest.mark.parametrize("cls", NETS)
def test_a_zero_weight_is_harmless(cls: type[ExplicitModule]) -> None:
    net = randomised(cls(2, (4,), 2), 0.0)
    net(torch.ones(3, 2)).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())
    assert bool(net(torch.ones(3, 2)).isfinite().all())


@pytest.mark.parametrize("cls", NETS)
def test_settings_are_checked(cls: type[ExplicitModule]) -> None:
    for arguments, settings in (
        ((0, (4,), 1), {}),
        ((2, (4, 0), 1), {}),
        ((2, (4,), -1), {}),
        ((2, (4,), 1), {"lipschitz": 0.0}),
        ((2, (4,), 1), {"dtype": torch.int32}),
    ):
        with pytest.raises(InvalidArgumentError):
            cls(*arguments, **settings)
    net = cls(2, (4,), 1, lipschitz=6.0)
    assert net.lipschitz == 6.0 and "lipschitz=6" in repr(net)
    with pytest.raises(ShapeError):
        net(torch.zeros(5, 3))


def test_activations_and_blocks_are_checked() -> None:
    assert CayleyNet(2, (4,), 1, activation=nn.Tanh).activation == "tanh"
    with pytest.raises(InvalidArgumentError, match="slopes"):
        AOLNet(2, (4,), 1, activation="gelu")
    with pytest.raises(InvalidArgumentError, match="at least one width"):
        SLLNet(2, (), 1)
