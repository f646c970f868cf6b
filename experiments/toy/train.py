"""Train one network on the toy data, and measure how much of its bound it uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.toy.config import Config, Model
from experiments.toy.exact import linear_pieces
from robustnn import LBDN, ExplicitMLP
from robustnn.bounds import lipsdp, lower_bound
from robustnn.nn.baselines import AOLNet, CayleyNet
from robustnn.nn.init import balanced_
from robustnn.nn.module import ExplicitModule
from robustnn.nn.sll import SLLNet

# Streams of random numbers of one seed.
_INPUTS, _BATCHES, _WEIGHTS, _PAIRS = range(4)


def target(x: Tensor) -> Tensor:
    """Return the function to be learned: 1 for x <= -1 and for 0 < x <= 1, else 0."""
    return ((x <= -1.0) | ((x > 0.0) & (x <= 1.0))).to(x)


def test_grid(config: Config) -> Tensor:
    """Return the test inputs, shape (n_test, 1)."""
    return torch.linspace(-2.0, 2.0, config.n_test).unsqueeze(-1)


def learning_rate(config: Config, progress: float) -> float:
    """Return the learning rate after a share of training, progress in [0, 1]: up, down to a twentieth, to zero."""
    return float(np.interp(progress, (0.0, 0.4, 0.8, 1.0), (0.0, config.max_lr, config.max_lr / 20.0, 0.0)))


def build(config: Config, model: Model) -> ExplicitModule:
    """Return an untrained network, drawn from torch's global generator."""
    if model.layer == "sandwich":
        net = LBDN(1, (config.sandwich_width,) * config.hidden_layers, 1, lipschitz=model.gamma)
        return initialised(net, model.init)
    hidden = (config.baseline_width,) * config.hidden_layers
    if model.layer == "sll":  # its first layer only pads
        return SLLNet(1, hidden[1:], 1, lipschitz=model.gamma)
    return {"aol": AOLNet, "cayley": CayleyNet}[model.layer](1, hidden, 1, lipschitz=model.gamma)


def initialised(net: LBDN, init: str) -> LBDN:
    """Return a freshly made network after one of the initialisations of `INITS`."""
    if init == "default":
        return net
    return balanced_(net, bias=0.5 if init == "balanced-bias" else 0.0)


def train_and_measure(config: Config, model: Model, seed: int) -> dict[str, Any]:
    """Train a network and return its errors, its Lipschitz constant with bounds from both sides, and its outputs.

    What is measured are the exported float32 weights, in float64: the largest gain that the search finds, the
    constant itself, and the LipSDP bound (none for SLL networks, whose shortcuts it cannot see).
    """
    start = time.perf_counter()
    x = training_inputs(config, seed)
    torch.manual_seed(int(_generator(seed, _WEIGHTS).integers(2**31)))
    net = build(config, model)
    trained = layer_by_layer(net) if model.layerwise and isinstance(net, LBDN) else net
    fit(trained, net.parameters(), x, config, _generator(seed, _BATCHES))
    seconds = time.perf_counter() - start
    grid = test_grid(config)
    with torch.no_grad():
        prediction = net(grid)
        function = net.residual() if isinstance(net, SLLNet) else net.explicit()
        train_mse = functional.mse_loss(net(x), target(x))
    exact = function.map(torch.Tensor.double)
    starts = _generator(seed, _PAIRS).uniform(-2.0, 2.0, (config.pairs * config.restarts, 1))
    witness = lower_bound(exact, torch.from_numpy(starts), iterations=config.ascent_steps)
    pieces = linear_pieces(exact if isinstance(exact, ExplicitMLP) else exact.to_mlp())
    return {
        "train_mse": float(train_mse),
        "test_mse": float(functional.mse_loss(prediction, target(grid))),
        "gain": witness.value,
        "gain_history": [round(value, 5) for value in witness.history[:: max(1, config.ascent_steps // 10)]],
        "constant": pieces.constant,
        "pieces": len(pieces.slopes),
        "lipsdp": None if isinstance(net, SLLNet) else lipsdp(net, iterations=config.lipsdp_steps).value,
        "prediction": [round(value, 5) for value in prediction.squeeze(-1).tolist()],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "seconds": round(seconds, 2),
    }


def training_inputs(config: Config, seed: int) -> Tensor:
    """Return the training inputs of one seed, shape (n_train, 1)."""
    if config.data_seed is None:
        drawn = _generator(seed, _INPUTS).uniform(-2.0, 2.0, (config.n_train, 1))
        return torch.from_numpy(drawn).float()
    generator = torch.Generator().manual_seed(config.data_seed)
    return 2.0 * (2.0 * torch.rand(config.n_train, 1, generator=generator) - 1.0)


def layer_by_layer(net: LBDN) -> Callable[[Tensor], Tensor]:
    """Return the function of a sandwich network as it was published: one layer after the other.

    It differs from `net` in rounding only.
    """

    def function(x: Tensor) -> Tensor:
        root = net.lipschitz**0.5
        *hidden, last = net.layers
        state = root * x
        for layer in hidden:
            state = layer(state)
        output: Tensor = last(root * state)
        return output

    return function


def fit(
    function: Callable[[Tensor], Tensor],
    parameters: Iterable[Tensor],
    x: Tensor,
    config: Config,
    generator: np.random.Generator,
) -> None:
    """Minimise the mean squared error by Adam; the learning rate changes with every batch."""
    y = target(x)
    optimizer = torch.optim.Adam(parameters, lr=config.max_lr)
    batches = -(-len(x) // config.batch_size)
    for epoch in range(config.epochs):
        order = torch.from_numpy(generator.permutation(len(x)))
        for k, chosen in enumerate(order.split(config.batch_size)):
            progress = (epoch + (k + 1) / batches) / config.epochs
            optimizer.param_groups[0]["lr"] = learning_rate(config, progress)
            optimizer.zero_grad()
            functional.mse_loss(function(x[chosen]), y[chosen]).backward()
            optimizer.step()


def gradient_factor(config: Config, init: str, seed: int) -> dict[str, float]:
    r"""Return what one hidden layer multiplies a backpropagated gradient by, before training.

    In a sandwich network with L = `init_depth` hidden layers and states h_1 ... h_L on the test grid, the factor is
    $(\mathrm{rms}\|\partial y/\partial h_1\| \,/\, \mathrm{rms}\|\partial y/\partial h_L\|)^{1/(L-1)}$.
    """
    torch.manual_seed(int(_generator(seed, _WEIGHTS).integers(2**31)))
    widths = (config.sandwich_width,) * config.init_depth
    net = initialised(LBDN(1, widths, 1, lipschitz=config.init_gamma, dtype=torch.float64), init)
    state = config.init_gamma**0.5 * test_grid(config).double()
    states = []
    for layer in net.layers:
        state = layer(state)
        states.append(state)
    first, last = torch.autograd.grad(state.sum(), (states[0], states[-2]))
    return {"factor": float((first.norm() / last.norm()) ** (1.0 / (config.init_depth - 1)))}


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])
