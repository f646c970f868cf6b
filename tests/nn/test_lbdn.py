"""Contract of the LBDN: the bound in pairs (it holds; it is attained where it must be), and use by value."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustnn import LBDN, ExplicitMLP, SandwichLayer
from robustnn.bounds import lower_bound
from robustnn.errors import NonFiniteError, RobustNNError
from robustnn.linalg import spectral_norm
from robustnn.params import ACTIVATIONS
from tests.networks import (
    ACTIVATION_NAMES,
    SHAPES,
    SIZES,
    exported,
    inputs,
    random_lbdn,
    randomised,
    tight_lbdn,
)

EPS = torch.finfo(torch.float64).eps
GAMMA = 3.0
DTYPES = (torch.float32, torch.float64)


def gain(net: LBDN, *, size: float = 1.0, iterations: int = 10, n: int = 6) -> float:
    """Largest gain found on the shipped weights, in the network's weighted norms and in units of its bound."""
    found = lower_bound(
        exported(net),
        inputs(net.in_features, n=n, size=size),
        input_scale=net.input_scale,
        output_scale=net.output_scale,
        iterations=iterations,
    )
    return found.value / net.lipschitz


def same(ours: ExplicitMLP, theirs: ExplicitMLP) -> bool:
    pairs = zip(ours.weights + ours.biases, theirs.weights + theirs.biases, strict=True)
    return all(a is b or torch.equal(a, b) for a, b in pairs)


def disturb(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5)


# The bound holds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bound_holds(shape: tuple, activation: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        net = random_lbdn(shape, size, lipschitz=GAMMA, activation=activation, dtype=dtype)
        assert gain(net, size=min(size, 1e3), iterations=3) <= 1 + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, (64, 64), 1), (1, (80,), 1), (2, (1, 1, 1), 2)])
def test_bound_holds_after_a_search(shape: tuple, dtype: torch.dtype) -> None:
    for size in (0.1, 1.0, 10.0):
        net = random_lbdn(shape, size, lipschitz=GAMMA, activation="tanh", dtype=dtype)
        assert gain(net, iterations=60, n=16) <= 1 + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("lipschitz", [1e-8, 0.3, 1e8])
def test_bound_holds_in_weighted_norms(lipschitz: float) -> None:
    net = random_lbdn(
        (3, (8, 8), 2), lipschitz=lipschitz, input_scale=[1e-3, 1.0, 40.0], output_scale=[0.2, 9.0]
    )
    assert gain(net, iterations=30) <= 1 + 4 * torch.finfo(torch.float32).eps
    # In other norms than its own it may exceed the number, so the scales are no decoration.
    plain = lower_bound(exported(net), inputs(3), iterations=30).value
    assert plain > lipschitz


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_network_is_below_the_bound_to_the_last_bit(dtype: torch.dtype) -> None:
    """gamma is lowered by a few eps before rounding, so that an affine map at the bound stays on its right side."""
    for width in (1, 2, 5, 16):
        for seed in range(20):
            net = random_lbdn((width, (), width), seed=seed, lipschitz=GAMMA, dtype=dtype)
            with torch.no_grad():
                # W = G with A = 0: the gain is gamma in every direction.
                skew = torch.randn(width, width, dtype=torch.float64)
                rotation = torch.linalg.matrix_exp(skew - skew.mT)
                net.layers[0].weight.copy_(torch.cat((torch.zeros_like(skew), rotation)))
                net.layers[0].alpha.fill_(math.sqrt(width))
            norm = float(spectral_norm(exported(net).weights[0]))
            assert norm <= GAMMA
            # The margin of one layer, and the rounding of the entries.
            margin = 8 if dtype == torch.float64 else 2
            assert norm >= GAMMA * (1 - (margin + 6) * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "move", ["state_dict", "deepcopy", "pickle", "torch_save", "to_float64", "to_float32", "half"]
)
def test_bound_holds_after_a_move(move: str) -> None:
    net = random_lbdn((3, (8, 8), 2), 0.5, lipschitz=GAMMA, activation="tanh", input_scale=[1.0, 2.0, 3.0])
    net.freeze()
    if move == "state_dict":
        moved = LBDN(3, (8, 8), 2, lipschitz=99.0, activation="tanh", input_scale=[1.0, 1.0, 1.0])
        moved.load_state_dict(net.state_dict())
    elif move == "deepcopy":
        moved = copy.deepcopy(net)
    elif move == "pickle":
        moved = pickle.loads(pickle.dumps(net))
    elif move == "torch_save":
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        moved = torch.load(buffer, weights_only=False)
    else:
        moved = copy.deepcopy(net).to(
            {"half": torch.float16}.get(move) or getattr(torch, move.removeprefix("to_"))
        )
    assert moved.lipschitz == GAMMA and not moved.is_frozen
    eps = torch.finfo(moved.layers[0].weight.dtype).eps
    assert gain(moved, iterations=20) <= 1 + 4 * eps
    if moved.layers[0].weight.dtype == torch.float32:
        assert same(exported(moved), exported(net))
        assert not {p.data_ptr() for p in moved.parameters()} & {p.data_ptr() for p in net.parameters()}
    disturb(moved)
    assert not same(exported(moved).to(dtype=torch.float32), exported(net).to(dtype=torch.float32))
    assert gain(moved, iterations=20) <= 1 + 4 * eps


# The bound is attained where it must be -------------------------------------------------------------------


@pytest.mark.parametrize("activation", [a for a in ACTIVATION_NAMES if ACTIVATIONS[a].slope_max == 1.0])
@pytest.mark.parametrize("width, depth", [(1, 1), (1, 3), (4, 0), (4, 2)])
def test_isometries_attain_the_bound(width: int, depth: int, activation: str) -> None:
    """Far on the side of slope one every layer is an isometry, and a single Jacobian reaches gamma."""
    net = tight_lbdn(width, depth, activation, lipschitz=GAMMA)
    offset = 0.0 if activation in ("identity", "tanh") else 60.0
    found = lower_bound(
        exported(net), torch.full((2, width), offset, dtype=torch.float64), iterations=1, radius=1e-4
    )
    assert 1 - 1e-8 <= found.value / GAMMA <= 1 + 4 * EPS


def test_sigmoid_attains_a_quarter_of_the_bound() -> None:
    """Its slope ends at 1/4; the bound is stated for slopes up to one."""
    found = lower_bound(
        exported(tight_lbdn(3, 1, "sigmoid")), inputs(3, size=1e-6), iterations=1, radius=1e-4
    )
    assert math.isclose(found.value, 0.25, rel_tol=1e-6)


@pytest.mark.parametrize(
    "shape, activation", [((1, (1,), 1), "tanh"), ((1, (8,), 1), "relu"), ((2, (8, 8), 1), "tanh")]
)
def test_training_on_a_steep_target_attains_the_bound(shape: tuple, activation: str) -> None:
    torch.manual_seed(1)
    net = LBDN(*shape, lipschitz=GAMMA, activation=activation, dtype=torch.float64)
    x = inputs(shape[0], n=128, size=0.1)
    target = 40.0 * x.sum(-1, keepdim=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(250):
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        optimizer.step()
    found = lower_bound(exported(net), 0.1 * inputs(shape[0], n=32), iterations=60).value / GAMMA
    assert 0.97 <= found <= 1 + 4 * EPS


def test_bound_holds_in_float32_after_training_against_it() -> None:
    """Ascent on the gain itself is the hardest training there is for a bound."""
    net = LBDN(3, (16, 16), 2, lipschitz=GAMMA, activation="relu")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    x, d = inputs(3, n=64).float(), 0.05 * inputs(3, n=64, seed=2).float()
    for _ in range(150):
        optimizer.zero_grad()
        loss = -((net(x + d) - net(x)).norm(dim=-1) / d.norm(dim=-1)).log().mean()
        loss.backward()
        optimizer.step()
    found = gain(net, iterations=50, n=16)
    assert 0.9 <= found <= 1.0


# Shapes, and one set of weights by every route ------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 7), (0,), (2, 0), (2, 3, 4)])
def test_leading_axes(shape: tuple, leading: tuple[int, ...]) -> None:
    net = random_lbdn(shape, dtype=torch.float64)
    x = torch.randn(*leading, shape[0], dtype=torch.float64)
    y = net(x)
    assert y.shape == (*leading, shape[2])
    flat = x.reshape(-1, shape[0])
    rows = [net(row) for row in flat]
    expected = torch.stack(rows) if rows else y.new_zeros(0, shape[2])
    torch.testing.assert_close(y.reshape(-1, shape[2]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_route_without_gradients_is_bit_identical(
    shape: tuple, activation: str, dtype: torch.dtype
) -> None:
    net = random_lbdn(shape, lipschitz=GAMMA, activation=activation, dtype=dtype)
    x = torch.randn(5, shape[0], dtype=dtype)
    plain = net.to_mlp()
    with torch.no_grad():
        y = net(x)
        assert torch.equal(net.explicit()(x), y)
        assert torch.equal(plain(x), y)
        with net.frozen():
            assert torch.equal(net(x), y)
    with torch.inference_mode(), net.frozen():
        assert torch.equal(net(x), y)
    torch.testing.assert_close(
        net(x).detach(), y, rtol=0, atol=1e4 * torch.finfo(dtype).eps * (1 + float(y.abs().max()))
    )


def test_to_mlp_is_an_ordinary_independent_network() -> None:
    net = random_lbdn((3, (8, 4), 2), activation="leaky_relu")
    plain = net.to_mlp()
    assert [type(m) for m in plain] == [nn.Linear, nn.LeakyReLU, nn.Linear, nn.LeakyReLU, nn.Linear]
    assert all(p.requires_grad for p in plain.parameters())
    x = torch.randn(5, 3)
    before = plain(x)
    disturb(net)
    assert torch.equal(plain(x), before)


def test_to_mlp_of_a_hidden_sandwich_layer() -> None:
    layer = SandwichLayer(3, 4, activation="tanh")
    x = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.equal(layer.to_mlp()(x), layer(x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_explicit_weights_are_values_and_no_aliases(dtype: torch.dtype, grad: bool) -> None:
    """Without copies the biases of a float64 network would move under its old weights."""
    net = random_lbdn((3, (8,), 2), dtype=dtype)
    x = torch.randn(5, 3, dtype=dtype)
    with torch.set_grad_enabled(grad):
        network = net.explicit()
    before = network(x).detach().clone()
    disturb(net)
    assert torch.equal(network(x).detach(), before)


def test_stack_is_the_loop() -> None:
    nets = [random_lbdn((3, (8, 5), 2), seed=s, lipschitz=1.0 + s, dtype=torch.float64) for s in range(4)]
    stack = ExplicitMLP.stack([net.explicit() for net in nets])
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    expected = torch.stack([net(x[s]) for s, net in enumerate(nets)])
    torch.testing.assert_close(stack(x), expected, rtol=0, atol=500 * EPS)
    stack(x).square().sum().backward()
    assert all(p.grad is not None for net in nets for p in net.parameters())


# Freezing -------------------------------------------------------------------------------------------------


def test_frozen_weights_hold_values() -> None:
    """A step inside the block is a mistake of the caller; what is served is the old network, not a mixture."""
    for dtype in DTYPES:
        net = random_lbdn((3, (8,), 2), dtype=dtype)
        x = torch.randn(5, 3, dtype=dtype)
        with torch.no_grad(), net.frozen():
            before = net(x)
            disturb(net)
            assert torch.equal(net(x), before)
        with torch.no_grad():
            assert not torch.equal(net(x), before)


def test_frozen_weights_never_serve_with_gradients() -> None:
    net = random_lbdn((3, (8,), 2), dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    net(x).sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with net.frozen():
        net(x).sum().backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), expected, strict=True))
        disturb(net)
        with torch.no_grad():
            stale = net(x)
        assert not torch.allclose(net(x), stale), "with gradients the present parameters count"


def dropping_actions() -> dict[str, object]:
    return {
        "train": lambda net: net.train(),
        "train inside a parent": lambda net: nn.Sequential(net).train(True),
        "load_state_dict": lambda net: net.load_state_dict(random_lbdn((3, (8,), 2), seed=9).state_dict()),
        "load inside a parent": lambda net: nn.Sequential(net).load_state_dict(
            nn.Sequential(random_lbdn((3, (8,), 2), seed=9)).state_dict()
        ),
        "assign": lambda net: net.load_state_dict(
            random_lbdn((3, (8,), 2), seed=9).state_dict(), assign=True
        ),
        "to": lambda net: net.to(torch.float32),
        "double": lambda net: net.double(),
        "apply to": lambda net: nn.Sequential(net).cpu(),
        "unfreeze": lambda net: net.unfreeze(),
    }


@pytest.mark.parametrize("action", dropping_actions())
def test_frozen_weights_are_dropped(action: str) -> None:
    net = random_lbdn((3, (8,), 2)).eval().freeze()
    assert net.is_frozen
    dropping_actions()[action](net)
    assert not net.is_frozen
    x = torch.randn(5, 3, dtype=net.layers[0].weight.dtype)
    with torch.no_grad():
        assert torch.equal(net(x), net.explicit()(x))


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_of_a_frozen_network_are_not_frozen(copier: object) -> None:
    net = random_lbdn((3, (8,), 2)).freeze()
    twin = copier(net)
    assert net.is_frozen and not twin.is_frozen
    assert same(exported(twin), exported(net))


def test_deepcopy_after_a_forward_pass_with_gradients() -> None:
    """A cached non-leaf tensor would make deepcopy raise."""
    net = random_lbdn((3, (8,), 2))
    net(torch.randn(5, 3)).sum()
    copy.deepcopy(net)
    copy.deepcopy(nn.Sequential(net, nn.Tanh()))


def test_eval_keeps_frozen_weights() -> None:
    """SB3 calls set_training_mode(False) before every prediction."""
    assert random_lbdn((3, (8,), 2)).freeze().eval().is_frozen


def test_nested_and_repeated_blocks() -> None:
    net = random_lbdn((3, (8,), 2))
    with net.frozen():
        with net.frozen() as inner:
            assert inner is net and net.is_frozen
        assert net.is_frozen
        with net.frozen():
            disturb(net)
            net.load_state_dict(net.state_dict())
        assert not net.is_frozen, "dropped inside the inner block: stays dropped"
    assert not net.is_frozen
    disturb(net)
    with net.frozen(), torch.no_grad():
        x = torch.randn(5, 3)
        assert torch.equal(net(x), net.explicit()(x))


def test_an_exception_leaves_the_network_unfrozen() -> None:
    net = random_lbdn((3, (8,), 2))
    with pytest.raises(KeyError), net.frozen():
        raise KeyError
    assert not net.is_frozen
    with torch.no_grad():
        net.layers[0].psi[0] = math.nan
    with pytest.raises(NonFiniteError), net.frozen():
        pass
    assert not net.is_frozen


def test_a_failed_freeze_drops_the_old_weights() -> None:
    net = random_lbdn((3, (8,), 2)).freeze()
    with torch.no_grad():
        net.layers[0].psi[0] = math.nan
    with pytest.raises(NonFiniteError):
        net.freeze()
    assert not net.is_frozen


def test_functional_call_is_not_answered_by_frozen_weights() -> None:
    net, other = random_lbdn((3, (8,), 2)), random_lbdn((3, (8,), 2), seed=1)
    x = torch.randn(5, 3)
    with torch.no_grad(), net.frozen():
        parameters = {k: v.detach() for k, v in other.named_parameters()}
        assert torch.equal(torch.func.functional_call(net, parameters, x), other(x))
        last = {"layers.1.bias": parameters["layers.1.bias"]}
        changed = net(x) - net.layers[1].bias + last["layers.1.bias"]
        torch.testing.assert_close(torch.func.functional_call(net, last, x), changed)
        stacked, _ = torch.func.stack_module_state([net, other])
        outputs = torch.func.vmap(lambda p: torch.func.functional_call(net, p, x))(stacked)
        torch.testing.assert_close(outputs, torch.stack([net(x), other(x)]), rtol=0, atol=1e-5)
        assert net.is_frozen and torch.equal(net(x), net.explicit()(x))


def test_writes_through_data_are_seen() -> None:
    """SB3's polyak_update writes through .data, which raises no version counter."""
    net = random_lbdn((3, (8,), 2)).eval()
    x = torch.randn(5, 3)
    with torch.no_grad():
        before = net(x)
        for parameter in net.parameters():
            parameter.data.mul_(0.5)
        assert not torch.equal(net(x), before)


# Saving, loading, tools of torch --------------------------------------------------------------------------


def test_state_dict_file_carries_the_bound(tmp_path: Path) -> None:
    net = random_lbdn((3, (8,), 2), lipschitz=GAMMA, output_scale=[2.0, 3.0])
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    other = LBDN(3, (8,), 2, lipschitz=100.0, output_scale=[1.0, 1.0])
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert other.lipschitz == GAMMA and same(exported(other), exported(net))


@pytest.mark.parametrize("name", ["input_scale", "output_scale", "_extra_state"])
def test_a_refused_state_dict_leaves_the_bound_alone(name: str) -> None:
    net = random_lbdn((2, (4,), 2), lipschitz=GAMMA, input_scale=[1.0, 2.0], output_scale=[1.0, 2.0])
    state = net.state_dict()
    state[name] = {"lipschitz": -1.0} if name == "_extra_state" else torch.tensor([1.0, -2.0])
    with pytest.raises(RobustNNError):
        net.load_state_dict(state)
    assert net.lipschitz == GAMMA and gain(net) <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_parameters_train(dtype: torch.dtype) -> None:
    net = LBDN(3, (8,), 2, dtype=dtype)
    net(torch.randn(5, 3, dtype=dtype)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) and p.grad.dtype == dtype for p in net.parameters())


def test_autocast_leaves_the_weights_in_full_precision() -> None:
    net = random_lbdn((3, (16, 16), 2), lipschitz=GAMMA)
    exact = net.explicit()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            assert same(net.explicit(), net.to("cpu").explicit())
        inside = net.explicit()
        output = net(torch.randn(5, 3))
    assert all(w.dtype == torch.float32 for w in inside.weights) and same(inside, exact)
    assert output.dtype == torch.bfloat16  # the evaluation itself obeys autocast
    for p, w in zip(exported(net).weights, inside.weights, strict=True):
        torch.testing.assert_close(p.float(), w.detach(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_compile(backend: str) -> None:
    torch._dynamo.reset()
    net = random_lbdn((3, (8,), 2), dtype=torch.float64)
    compiled = torch.compile(net, backend=backend)
    x = torch.randn(5, 3, dtype=torch.float64)
    y = compiled(x)
    torch.testing.assert_close(y, net(x), rtol=0, atol=100 * EPS)
    y.sum().backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    for p, g in zip(net.parameters(), ours, strict=True):
        torch.testing.assert_close(g, p.grad, rtol=0, atol=1e4 * EPS)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=100 * EPS)
        disturb(net)
        torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=100 * EPS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_export() -> None:
    net = random_lbdn((3, (8,), 2), dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=100 * EPS)


def test_all_parameters_exist_after_construction_and_get_gradients() -> None:
    net = LBDN(3, (8,), 2, input_scale=[1.0, 2.0, 3.0])
    names = {name for name, _ in net.named_parameters()}
    net(torch.randn(5, 3)).square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == names
    assert [name for name, _ in net.named_buffers()] == ["input_scale"]


def test_no_submodule_is_a_linear_layer() -> None:
    """SB3's orthogonal initialisation overwrites every nn.Linear and nn.Conv2d inside a policy."""
    assert not any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in LBDN(3, (8,), 2).modules())


def test_initialisation_is_the_published_one() -> None:
    net = LBDN(30, (40,), 20, dtype=torch.float64)
    for layer, n_in in zip(net.layers, (30, 40), strict=True):
        bound = 1 / math.sqrt(n_in + layer.out_features)
        for values in (layer.weight.detach(), layer.bias.detach()):
            assert 0.8 * bound < float(values.abs().max()) <= bound
        torch.testing.assert_close(layer.alpha, layer.weight.norm(), rtol=1e-14, atol=0)
    assert bool((net.layers[0].psi == 0).all()) and net.layers[1].psi is None


def test_the_scales_given_are_copied() -> None:
    scale = torch.ones(3)
    net = LBDN(3, (8,), 2, input_scale=scale)
    scale.fill_(-5.0)
    assert bool((net.input_scale == 1).all())


def test_repr_names_the_bound() -> None:
    assert "lipschitz=3" in repr(random_lbdn((3, (8,), 2), lipschitz=GAMMA))


def test_a_network_inside_a_module_of_the_user() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = LBDN(3, (8,), 2, lipschitz=GAMMA)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).tanh()

    policy = Policy()
    randomised(policy, 2.0)
    twin = Policy()
    twin.load_state_dict(policy.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(twin(x), policy(x)) and twin.net.lipschitz == GAMMA


def test_frozen_weights_are_passed_over_when_a_buffer_or_a_layer_is_replaced() -> None:
    net = random_lbdn((3, (8,), 2), output_scale=[1.0, 3.0], dtype=torch.float64)
    other = random_lbdn((3, (8,), 2), seed=5, dtype=torch.float64)
    x = inputs(3)
    swap = {"output_scale": torch.ones(2, dtype=torch.float64)}
    with torch.no_grad():
        expected = torch.func.functional_call(net, swap, (x,))
    with torch.no_grad(), net.frozen():
        assert torch.equal(torch.func.functional_call(net, swap, (x,)), expected)
        assert not torch.equal(net(x), expected)
        net.output_scale = torch.tensor([2.0, 6.0], dtype=torch.float64)
        assert torch.equal(net(x), net.explicit()(x))
        net.layers[0] = other.layers[0]
        assert torch.equal(net(x), net.explicit()(x))
        assert not net._replicate_for_data_parallel().is_frozen
