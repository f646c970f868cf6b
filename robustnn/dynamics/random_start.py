"""Networks as they are before training: random units of small effect, on top of a linear model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from robustnn.linalg import spectral_norm
from robustnn.nn.lbdn import LBDN
from robustnn.nn.mlp import MLP
from robustnn.params.explicit import ExplicitMLP

__all__ = ["random_lbdn_", "random_mlp_", "random_units"]

Array = NDArray[np.float64]
# Share of its bound that a bounded network may use at the start.
_SHARE = 0.9


def random_units(
    n_in: int,
    widths: tuple[int, ...],
    offset: Array,
    rng: np.random.Generator,
    activation: str,
    *,
    effect: float = 0.03,
) -> ExplicitMLP:
    """Return a network in float64 with random units for inputs of about unit variance.

    Args:
        n_in: Number of inputs.
        widths: Of the hidden layers.
        offset: Last bias, shape (n_out,).
        rng: Draws all else.
        activation: Key of the activation table.
        effect: Standard deviation of what all units together add to an output, roughly.
    """
    sizes, last = (n_in, *widths, len(offset)), len(widths)
    weights, biases = [], []
    for k, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        gain = effect if k == last else (0.3 if k == 0 else 1.0)
        weights.append(torch.from_numpy(gain * rng.normal(size=(after, before)) / np.sqrt(before)))
        biases.append(torch.from_numpy(np.array(offset) if k == last else rng.normal(size=after)))
    return ExplicitMLP(tuple(weights), tuple(biases), activation)


def random_mlp_(network: MLP, offset: Array, rng: np.random.Generator, *, effect: float = 0.03) -> None:
    """Set an ordinary network to `random_units`, in place; arguments as there."""
    units = random_units(
        network.in_features, network.hidden_features, offset, rng, network.activation, effect=effect
    )
    with torch.no_grad():
        for ours, weight, bias in zip(network.layers, units.weights, units.biases, strict=True):
            for parameter, value in zip(ours.parameters(), (weight, bias), strict=True):
                assert value is not None
                parameter.copy_(value)


def random_lbdn_(network: LBDN, offset: Array, rng: np.random.Generator, *, effect: float = 0.03) -> None:
    """Set a bounded network to `random_units`, in place, with less effect where its bound demands that."""
    units = random_units(
        network.in_features, network.hidden_features, offset, rng, network.activation, effect=effect
    )
    product = float(torch.stack([spectral_norm(weight) for weight in units.weights]).prod())
    last = units.weights[-1] * min(1.0, _SHARE * network.lipschitz / product)
    units = ExplicitMLP((*units.weights[:-1], last), units.biases, units.activation)
    found = LBDN.from_mlp(units, network.lipschitz)
    with torch.no_grad():
        for ours, theirs in zip(network.parameters(), found.parameters(), strict=True):
            ours.copy_(theirs)
