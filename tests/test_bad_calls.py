"""Wrong input, one table: each call must fail at once, with an error that names the argument and both values.

To add rows for another module, append `Bad(id, call, exception, words)` to a list of that module's own and add
the list to `ROWS`. `words` are all looked for in the message, in any case: the argument's name, what was
expected, and what came.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustnn import LBDN, MLP, ExplicitMLP, SandwichLayer
from robustnn.bounds import lower_bound
from robustnn.bounds.upper import product_bound
from robustnn.errors import (
    CheckpointError,
    InvalidArgumentError,
    NonFiniteError,
    RobustNNError,
    ShapeError,
    UnsupportedSpaceError,
    check_finite,
    check_nonnegative,
    check_positive,
    check_positive_int,
    check_shape,
)
from robustnn.params import (
    LBDNParams,
    SandwichParams,
    lbdn_to_explicit,
    resolve_activation,
    sandwich_to_explicit,
)


class Bad(NamedTuple):
    """A call that must raise `exception` with all `words` in its message."""

    id: str
    call: Callable[[], Any]
    exception: type[Exception]
    words: tuple[str, ...]


def net(**kwargs: Any) -> LBDN:
    return LBDN(3, (8,), 2, **kwargs)


def explicit(**kwargs: Any) -> ExplicitMLP:
    with torch.no_grad():
        return net(**kwargs).explicit()


def evaluated_without_gradients(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def overwritten(name: str, value: float, **kwargs: Any) -> LBDN:
    """A network with one entry of one parameter overwritten, as a diverged run leaves it."""
    module = net(**kwargs)
    with torch.no_grad():
        dict(module.named_parameters())[name].view(-1)[0] = value
    return module


def loaded(change: Callable[[dict[str, Any]], Any], **kwargs: Any) -> None:
    module = net(**kwargs)
    state = module.state_dict()
    change(state)
    module.load_state_dict(state)


def layer(n_in: int, n_out: int, *, hidden: bool) -> SandwichParams:
    psi = torch.zeros(n_out) if hidden else None
    return SandwichParams(torch.ones(n_in + n_out, n_out), torch.tensor(1.0), psi, None)


class MyReLU(nn.ReLU):
    """Any subclass may do anything."""


class Tanh(nn.Module):
    """A class of the user with a name of torch's."""


POINTS = torch.zeros(4, 3, dtype=torch.float64)
WEIGHTS = (torch.ones(4, 3), torch.ones(2, 4))

GAMMA = [
    Bad(f"gamma {value!r}", lambda value=value: net(lipschitz=value), exception, ("lipschitz", "number", got))
    for value, exception, got in (
        (0, InvalidArgumentError, "got 0"),
        (0.0, InvalidArgumentError, "got 0.0"),
        (-1.0, InvalidArgumentError, "got -1.0"),
        (math.nan, NonFiniteError, "got nan"),
        (math.inf, NonFiniteError, "got inf"),
        (-math.inf, NonFiniteError, "got -inf"),
        (True, InvalidArgumentError, "got True"),
        (np.bool_(True), InvalidArgumentError, "True"),
        ("1.0", InvalidArgumentError, "got '1.0'"),
        (None, InvalidArgumentError, "got None"),
        ([1.0], InvalidArgumentError, "got [1.0]"),
        (1j, InvalidArgumentError, "got 1j"),
        (10**400, InvalidArgumentError, "got 1000"),
        (np.array([1.0]), InvalidArgumentError, "array([1.])"),
        (torch.ones(2), InvalidArgumentError, "tensor([1., 1.])"),
        (torch.tensor(math.nan), NonFiniteError, "nan"),
    )
]

WIDTHS = [
    Bad(
        "in_features 0",
        lambda: LBDN(0, (8,), 2),
        InvalidArgumentError,
        ("in_features", "integer >= 1", "got 0"),
    ),
    Bad(
        "in_features float",
        lambda: LBDN(3.0, (8,), 2),
        InvalidArgumentError,
        ("in_features", "integer", "got 3.0"),
    ),
    Bad(
        "in_features bool",
        lambda: LBDN(True, (8,), 2),
        InvalidArgumentError,
        ("in_features", "integer", "True"),
    ),
    Bad(
        "in_features float tensor",
        lambda: LBDN(torch.tensor(3.0), (8,), 2),
        InvalidArgumentError,
        ("in_features", "integer", "tensor(3.)"),
    ),
    Bad(
        "out_features -1",
        lambda: LBDN(3, (8,), -1),
        InvalidArgumentError,
        ("out_features", "integer >= 1", "-1"),
    ),
    Bad(
        "out_features None",
        lambda: LBDN(3, (8,), None),
        InvalidArgumentError,
        ("out_features", "integer", "None"),
    ),
    Bad(
        "out_features str",
        lambda: MLP(3, (8,), "2"),
        InvalidArgumentError,
        ("out_features", "integer", "'2'"),
    ),
    Bad(
        "hidden str", lambda: LBDN(3, "64", 2), InvalidArgumentError, ("hidden_features", "sequence", "'64'")
    ),
    Bad("hidden int", lambda: LBDN(3, 64, 2), InvalidArgumentError, ("hidden_features", "sequence", "64")),
    Bad(
        "hidden 0",
        lambda: LBDN(3, (8, 0), 2),
        InvalidArgumentError,
        ("hidden_features[1]", "integer", "got 0"),
    ),
    Bad(
        "hidden float",
        lambda: MLP(3, (8.5,), 2),
        InvalidArgumentError,
        ("hidden_features[0]", "integer", "8.5"),
    ),
    Bad(
        "hidden bool",
        lambda: MLP(3, (True,), 2),
        InvalidArgumentError,
        ("hidden_features[0]", "integer", "True"),
    ),
    Bad("hidden set", lambda: MLP(3, {8}, 2), InvalidArgumentError, ("hidden_features", "sequence", "{8}")),
    Bad(
        "layer width",
        lambda: SandwichLayer(3, 0),
        InvalidArgumentError,
        ("out_features", "integer >= 1", "got 0"),
    ),
    Bad(
        "layer width bool",
        lambda: SandwichLayer(True, 2),
        InvalidArgumentError,
        ("in_features", "integer", "True"),
    ),
]

ACTIVATIONS = [
    Bad(
        "activation unknown",
        lambda: net(activation="rely"),
        InvalidArgumentError,
        ("activation", "relu", "'rely'"),
    ),
    Bad(
        "activation gelu",
        lambda: net(activation="gelu"),
        InvalidArgumentError,
        ("activation", "[0, 1]", "gelu"),
    ),
    Bad(
        "activation SiLU",
        lambda: net(activation=nn.SiLU),
        InvalidArgumentError,
        ("activation", "[0, 1]", "silu"),
    ),
    Bad(
        "activation PReLU",
        lambda: net(activation=nn.PReLU),
        InvalidArgumentError,
        ("activation", "trained", "prelu"),
    ),
    Bad(
        "activation instance",
        lambda: net(activation=nn.ReLU()),
        InvalidArgumentError,
        ("activation", "instance"),
    ),
    Bad(
        "activation function",
        lambda: net(activation=torch.tanh),
        InvalidArgumentError,
        ("activation", "tanh"),
    ),
    Bad(
        "activation None",
        lambda: MLP(3, (8,), 2, activation=None),
        InvalidArgumentError,
        ("activation", "None"),
    ),
    Bad(
        "activation subclass", lambda: net(activation=MyReLU), InvalidArgumentError, ("activation", "MyReLU")
    ),
    Bad(
        "activation namesake",
        lambda: net(activation=Tanh),
        InvalidArgumentError,
        ("activation", "torch's own"),
    ),
    Bad(
        "activation of a layer",
        lambda: SandwichLayer(3, 2, activation="x"),
        InvalidArgumentError,
        ("activation", "'x'"),
    ),
    Bad(
        "activation softmax",
        lambda: resolve_activation("softmax"),
        InvalidArgumentError,
        ("softmax", "component"),
    ),
]

DTYPES = [
    Bad("dtype int", lambda: net(dtype=torch.int64), InvalidArgumentError, ("dtype", "floating", "int64")),
    Bad(
        "dtype complex",
        lambda: MLP(3, (), 2, dtype=torch.complex64),
        InvalidArgumentError,
        ("dtype", "complex64"),
    ),
    Bad(
        "dtype str",
        lambda: SandwichLayer(3, 2, dtype="float32"),
        InvalidArgumentError,
        ("dtype", "floating", "float32"),
    ),
]

SCALES = [
    Bad("scale length", lambda: net(input_scale=[1.0, 2.0]), ShapeError, ("input_scale", "(3,)", "(2,)")),
    Bad("scale number", lambda: net(output_scale=2.0), ShapeError, ("output_scale", "(2,)", "()")),
    Bad(
        "scale negative",
        lambda: net(input_scale=[1, -2, 3]),
        InvalidArgumentError,
        ("input_scale", "positive", "-2"),
    ),
    Bad(
        "scale zero",
        lambda: net(output_scale=[0.0, 1.0]),
        InvalidArgumentError,
        ("output_scale", "positive", "0.0"),
    ),
    Bad(
        "scale nan",
        lambda: net(output_scale=[math.nan, 1]),
        NonFiniteError,
        ("output_scale", "finite", "1 of 2"),
    ),
    Bad(
        "scale inf",
        lambda: net(input_scale=torch.tensor([1, math.inf, 1])),
        NonFiniteError,
        ("input_scale", "finite"),
    ),
    Bad(
        "scale text",
        lambda: net(input_scale="abc"),
        InvalidArgumentError,
        ("input_scale", "positive", "'abc'"),
    ),
    Bad(
        "scale ragged",
        lambda: net(input_scale=[[1], [2, 3]]),
        InvalidArgumentError,
        ("input_scale", "3 positive"),
    ),
    Bad(
        "scale complex",
        lambda: net(input_scale=[1j, 1j, 1j]),
        InvalidArgumentError,
        ("input_scale", "positive", "1j"),
    ),
    Bad(
        "scale bool",
        lambda: net(output_scale=[True, True]),
        InvalidArgumentError,
        ("output_scale", "positive", "True"),
    ),
    Bad(
        "scale below float32",
        lambda: evaluated_without_gradients(net(input_scale=[1e-40, 1.0, 1.0]), torch.zeros(1, 3)),
        NonFiniteError,
        ("explicit weight W_0", "finite", "float32", "scale"),
    ),
]

INPUTS = [
    Bad("input width", lambda: net()(torch.zeros(5, 4)), ShapeError, ("input", "(..., 3)", "(5, 4)")),
    Bad(
        "input transposed",
        lambda: MLP(3, (8,), 2)(torch.zeros(3, 5)),
        ShapeError,
        ("input", "(..., 3)", "(3, 5)"),
    ),
    Bad("input scalar", lambda: net()(torch.tensor(1.0)), ShapeError, ("input", "(..., 3)", "()")),
    Bad("input empty", lambda: net()(torch.zeros(0)), ShapeError, ("input", "(..., 3)", "(0,)")),
    Bad(
        "input integer",
        lambda: net()(torch.zeros(5, 3).long()),
        InvalidArgumentError,
        ("input", "float32", "int64"),
    ),
    Bad(
        "input double",
        lambda: net()(torch.zeros(5, 3).double()),
        InvalidArgumentError,
        ("input", "float32", "float64"),
    ),
    Bad(
        "input array",
        lambda: net()(np.zeros((5, 3))),
        InvalidArgumentError,
        ("input", "torch.Tensor", "ndarray"),
    ),
    Bad(
        "input list",
        lambda: explicit()([0.0, 0.0, 0.0]),
        InvalidArgumentError,
        ("input", "torch.Tensor", "list"),
    ),
    Bad(
        "input of a layer",
        lambda: SandwichLayer(3, 2)(torch.zeros(4)),
        ShapeError,
        ("input", "(..., 3)", "(4,)"),
    ),
]

PARAMETERS = [
    Bad(
        f"parameter {value} in {name}",
        lambda name=name, value=value: evaluated_without_gradients(
            overwritten(name, value), torch.zeros(1, 3)
        ),
        NonFiniteError,
        (f"parameter {name}", "finite", "NaN or infinity"),
    )
    for name, value in (
        ("layers.0.weight", math.nan),
        ("layers.0.psi", math.inf),
        ("layers.1.alpha", -math.inf),
        ("layers.1.bias", math.nan),
    )
]
PARAMETERS += [
    Bad(
        "freeze nan",
        lambda: overwritten("layers.0.psi", math.nan).freeze(),
        NonFiniteError,
        ("layers.0.psi", "finite"),
    ),
    Bad(
        "export nan",
        lambda: overwritten("layers.0.psi", math.nan).to_mlp(),
        NonFiniteError,
        ("layers.0.psi", "finite"),
    ),
    Bad(
        "gamma too large for float32",
        lambda: net(lipschitz=1e90).freeze(),
        NonFiniteError,
        ("W_0", "float32", "bound"),
    ),
]

STATE = [
    Bad(
        "state key missing",
        lambda: loaded(lambda s: s.pop("layers.0.psi")),
        RuntimeError,
        ("layers.0.psi", "Missing"),
    ),
    Bad(
        "state key too many",
        lambda: loaded(lambda s: s.update(x=torch.ones(1))),
        RuntimeError,
        ("Unexpected", '"x"'),
    ),
    Bad(
        "state wrong shape",
        lambda: loaded(lambda s: s.update({"layers.0.bias": torch.ones(9)})),
        RuntimeError,
        ("layers.0.bias", "[9]", "[8]"),
    ),
    Bad(
        "state no bound",
        lambda: loaded(lambda s: s.pop("_extra_state")),
        RuntimeError,
        ("_extra_state", "Missing"),
    ),
    *(
        Bad(
            f"state bound {value!r}",
            lambda value=value: loaded(lambda s: s.update(_extra_state=value)),
            CheckpointError,
            ("state dict", "lipschitz", "gamma > 0", str(value)[:10]),
        )
        for value in (
            {"lipschitz": -1.0},
            {"lipschitz": math.nan},
            {"lipschitz": "2"},
            {},
            None,
            torch.ones(3),
        )
    ),
    Bad(
        "state scale negative",
        lambda: loaded(lambda s: s["input_scale"].neg_(), input_scale=[1.0, 2.0, 3.0]),
        CheckpointError,
        ("input_scale", "positive", "-1.0"),
    ),
    Bad(
        "state scale nan",
        lambda: loaded(lambda s: s["output_scale"].fill_(math.nan), output_scale=[1.0, 2.0]),
        CheckpointError,
        ("output_scale", "positive", "nan"),
    ),
]

EXPLICIT = [
    Bad(
        "stack nothing",
        lambda: ExplicitMLP.stack([]),
        InvalidArgumentError,
        ("networks", "at least one", "[]"),
    ),
    Bad(
        "stack modules",
        lambda: ExplicitMLP.stack([net()]),
        InvalidArgumentError,
        ("networks", "ExplicitMLP", "LBDN"),
    ),
    Bad(
        "stack widths",
        lambda: ExplicitMLP.stack([explicit(), LBDN(3, (9,), 2).explicit()]),
        InvalidArgumentError,
        ("networks", "index 1", "(8, 3)", "(9, 3)"),
    ),
    Bad(
        "stack activations",
        lambda: ExplicitMLP.stack([explicit(), explicit(activation="tanh")]),
        InvalidArgumentError,
        ("networks", "index 1", "relu", "tanh"),
    ),
    Bad(
        "stack biases",
        lambda: ExplicitMLP.stack([explicit(), explicit(bias=False)]),
        InvalidArgumentError,
        ("networks", "index 1", "False"),
    ),
    Bad(
        "stack dtypes",
        lambda: ExplicitMLP.stack([explicit(), explicit(dtype=torch.float64)]),
        InvalidArgumentError,
        ("networks", "index 1", "float32", "float64"),
    ),
    Bad(
        "stack of stacks",
        lambda: ExplicitMLP.stack([ExplicitMLP.stack([explicit(), explicit()])]),
        InvalidArgumentError,
        ("networks", "stack"),
    ),
    Bad(
        "stack export",
        lambda: ExplicitMLP.stack([explicit(), explicit()]).to_sequential(),
        InvalidArgumentError,
        ("network", "single", "stack"),
    ),
    Bad(
        "stack bound",
        lambda: product_bound(ExplicitMLP.stack([explicit(), explicit()])),
        InvalidArgumentError,
        ("network", "single", "stack"),
    ),
    Bad(
        "stack input",
        lambda: ExplicitMLP.stack([explicit(), explicit()])(torch.zeros(5, 3)),
        ShapeError,
        ("input", "(2, E, 3)", "(5, 3)"),
    ),
    Bad(
        "weights none",
        lambda: ExplicitMLP((), (), "relu"),
        InvalidArgumentError,
        ("weights", "same length", "0"),
    ),
    Bad(
        "biases missing",
        lambda: ExplicitMLP(WEIGHTS, (None,), "relu"),
        InvalidArgumentError,
        ("biases", "2 weights", "1"),
    ),
    Bad(
        "weights chain",
        lambda: ExplicitMLP(WEIGHTS[::-1], (None, None), "relu"),
        ShapeError,
        ("weights", "(2, 4)"),
    ),
    Bad(
        "weights 1-D",
        lambda: ExplicitMLP((torch.ones(3),), (None,), "relu"),
        ShapeError,
        ("weights", "(out, in)", "(3,)"),
    ),
    Bad(
        "bias length",
        lambda: ExplicitMLP(WEIGHTS, (torch.ones(3), None), "relu"),
        ShapeError,
        ("biases[0]", "(4,)", "(3,)"),
    ),
    Bad(
        "explicit activation",
        lambda: ExplicitMLP(WEIGHTS, (None, None), "gelu"),
        InvalidArgumentError,
        ("activation", "gelu"),
    ),
]

MAPS = [
    Bad(
        "params empty",
        lambda: lbdn_to_explicit(LBDNParams((), 1.0), "relu"),
        InvalidArgumentError,
        ("params", "0 layers"),
    ),
    Bad(
        "params without output layer",
        lambda: lbdn_to_explicit(
            LBDNParams((layer(3, 4, hidden=True), layer(4, 2, hidden=True)), 1.0), "relu"
        ),
        InvalidArgumentError,
        ("params", "output layer", "[True, True]"),
    ),
    Bad(
        "params without psi",
        lambda: lbdn_to_explicit(
            LBDNParams((layer(3, 4, hidden=False), layer(4, 2, hidden=False)), 1.0), "relu"
        ),
        InvalidArgumentError,
        ("params", "psi", "[False, False]"),
    ),
    Bad(
        "params bound",
        lambda: lbdn_to_explicit(LBDNParams((layer(3, 2, hidden=False),), math.nan), "relu"),
        NonFiniteError,
        ("lipschitz", "finite", "nan"),
    ),
    Bad(
        "params activation",
        lambda: sandwich_to_explicit(layer(3, 2, hidden=True), "gelu"),
        InvalidArgumentError,
        ("activation", "gelu"),
    ),
]

BOUNDS = [
    Bad(
        "starts vector",
        lambda: lower_bound(torch.sin, POINTS[0]),
        ShapeError,
        ("starts", "(n, n_in)", "(3,)"),
    ),
    Bad(
        "starts empty", lambda: lower_bound(torch.sin, POINTS[:0]), ShapeError, ("starts", "n >= 1", "(0, 3)")
    ),
    Bad(
        "starts float32",
        lambda: lower_bound(torch.sin, POINTS.float()),
        InvalidArgumentError,
        ("starts", "float64", "float32"),
    ),
    Bad(
        "starts nan",
        lambda: lower_bound(torch.sin, POINTS + math.nan),
        NonFiniteError,
        ("starts", "finite", "12 of 12"),
    ),
    Bad(
        "starts array",
        lambda: lower_bound(torch.sin, POINTS.numpy()),
        InvalidArgumentError,
        ("starts", "Tensor", "ndarray"),
    ),
    Bad(
        "iterations 0",
        lambda: lower_bound(torch.sin, POINTS, iterations=0),
        InvalidArgumentError,
        ("iterations", ">= 1", "0"),
    ),
    Bad(
        "iterations 1.5",
        lambda: lower_bound(torch.sin, POINTS, iterations=1.5),
        InvalidArgumentError,
        ("iterations", "1.5"),
    ),
    Bad("lr", lambda: lower_bound(torch.sin, POINTS, lr=-0.1), InvalidArgumentError, ("lr", "> 0", "-0.1")),
    Bad(
        "radius",
        lambda: lower_bound(torch.sin, POINTS, radius=math.inf),
        NonFiniteError,
        ("radius", "finite", "inf"),
    ),
    Bad(
        "function reduces",
        lambda: lower_bound(lambda x: x.sum(-1), POINTS),
        ShapeError,
        ("function", "(4, n_out)", "(4,)"),
    ),
    Bad(
        "function mean",
        lambda: lower_bound(lambda x: x.mean(0, keepdim=True), POINTS),
        ShapeError,
        ("function", "(1, 3)"),
    ),
    Bad(
        "function nan",
        lambda: lower_bound(lambda x: x.log() - math.inf, POINTS),
        NonFiniteError,
        ("function", "finite"),
    ),
    Bad(
        "function detached",
        lambda: lower_bound(lambda x: x.detach(), POINTS),
        InvalidArgumentError,
        ("function", "graph"),
    ),
    Bad(
        "function float32",
        lambda: lower_bound(lambda x: x.float(), POINTS),
        InvalidArgumentError,
        ("function", "float64", "float32"),
    ),
    Bad(
        "function numpy",
        lambda: lower_bound(lambda x: x.detach().numpy(), POINTS),
        InvalidArgumentError,
        ("function", "ndarray"),
    ),
    Bad(
        "lower bound scale",
        lambda: lower_bound(torch.sin, POINTS, input_scale=torch.ones(2)),
        ShapeError,
        ("input_scale", "(3,)", "(2,)"),
    ),
    Bad(
        "lower bound scale sign",
        lambda: lower_bound(torch.sin, POINTS, output_scale=-torch.ones(3)),
        InvalidArgumentError,
        ("output_scale", "positive", "-1.0"),
    ),
]

CHECKS = [
    Bad("check_positive", lambda: check_positive("mass", -1), InvalidArgumentError, ("mass", "> 0", "-1")),
    Bad(
        "check_positive bytes",
        lambda: check_positive("mass", b"1"),
        InvalidArgumentError,
        ("mass", "number", "b'1'"),
    ),
    Bad(
        "check_nonnegative",
        lambda: check_nonnegative("eps", -1e-9),
        InvalidArgumentError,
        ("eps", ">= 0", "-1e-09"),
    ),
    Bad("check_nonnegative nan", lambda: check_nonnegative("eps", math.nan), NonFiniteError, ("eps", "nan")),
    Bad(
        "check_positive_int",
        lambda: check_positive_int("n", 1, minimum=2),
        InvalidArgumentError,
        ("n", ">= 2", "got 1"),
    ),
    Bad(
        "check_finite",
        lambda: check_finite("obs", np.array([1, math.nan])),
        NonFiniteError,
        ("obs", "1 of 2"),
    ),
    Bad(
        "check_shape",
        lambda: check_shape("obs", np.ones(2), "(3,)", False),
        ShapeError,
        ("obs", "(3,)", "(2,)", "Reshape"),
    ),
]

ROWS = [
    *GAMMA, *WIDTHS, *ACTIVATIONS, *DTYPES, *SCALES, *INPUTS, *PARAMETERS, *STATE, *EXPLICIT, *MAPS, *BOUNDS, *CHECKS,
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_bad_call(row: Bad) -> None:
    with pytest.raises(row.exception) as caught:
        row.call()
    message = str(caught.value)
    missing = [word for word in row.words if word.lower() not in message.lower()]
    assert not missing, f"{missing} not in: {message}"
    if isinstance(caught.value, RobustNNError):
        assert ("expected" in message) and ("got" in message), message
        assert message.rstrip().endswith((".", ")")), f"no fix at the end of: {message}"


def test_ids_are_unique() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS) >= 35


def test_errors_are_also_the_builtin_kind() -> None:
    """Callers that know nothing of robustnn catch ValueError and RuntimeError."""
    for kind in (InvalidArgumentError, ShapeError, NonFiniteError, UnsupportedSpaceError):
        assert issubclass(kind, RobustNNError) and issubclass(kind, ValueError)
    assert issubclass(CheckpointError, RobustNNError) and issubclass(CheckpointError, RuntimeError)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1.0), np.int64(1), np.array(1.0), torch.tensor(1.0)])
def test_good_numbers_are_accepted(value: Any) -> None:
    number = check_positive("gamma", value)
    assert type(number) is float and number == 1.0


@pytest.mark.parametrize("value", [3, np.int32(3), torch.tensor(3)])
def test_good_integers_are_accepted(value: Any) -> None:
    number = check_positive_int("n", value)
    assert type(number) is int and number == 3


def test_good_calls_next_to_the_bad_ones() -> None:
    """The checks refuse nothing that is meant to work."""
    LBDN(
        np.int64(3),
        [8, np.int64(4)],
        2,
        lipschitz=np.float32(2.0),
        input_scale=np.ones(3),
        output_scale=(1, 2),
    )
    LBDN(3, torch.Size([8]), 2, activation=nn.LeakyReLU)
    LBDN(3, range(2, 4), 2, activation="Linear")
    MLP(3, (), 2, dtype=torch.bfloat16)
    lower_bound(torch.sin, POINTS, input_scale=torch.ones(3), iterations=np.int64(1))
