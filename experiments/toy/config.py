"""What the toy tightness experiment does: layers, bounds, initialisations, training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LAYERS = ("aol", "cayley", "sll", "sandwich")
TITLES = {"aol": "AOL", "cayley": "Orthogonal (Cayley)", "sll": "SLL", "sandwich": "Sandwich"}
INITS = {
    "default": "published",
    "balanced": "balanced",
    "balanced-bias": "balanced, bias 0.5",
}


class Model(NamedTuple):
    """One network of the comparison; `layerwise` says that it is trained layer by layer, without merged weights."""

    layer: str
    gamma: float
    init: str = "default"
    layerwise: bool = False

    @property
    def key(self) -> str:
        """Name in file names."""
        return f"{self.layer}_gamma={self.gamma:g}_init={self.init}" + "_layerwise" * self.layerwise


@dataclass(frozen=True)
class Config:
    """Settings of one run; x and y have no unit.

    Attributes:
        layers: Keys of `TITLES`.
        gammas: Lipschitz bounds.
        seeds: One data set and one network per model and seed.
        inits: Keys of `INITS`, for the sandwich network.
        layerwise: Whether the sandwich network is trained layer by layer as well.
        init_gamma: Bound at which the initialisations and both ways of training the sandwich network are compared.
        init_depth: Number of hidden layers in which the gradient factor is measured.
        hidden_layers: Number of hidden layers, the padding of the SLL network included.
        sandwich_width: Width of the sandwich layers: as many parameters as the others.
        baseline_width: Width of the other layers.
        n_train: Training samples, x ~ U(-2, 2).
        n_test: Test points, an even grid on [-2, 2].
        epochs: Passes over the training samples.
        batch_size: Samples per step of Adam.
        max_lr: Peak of the learning rate.
        pairs: Pairs of inputs per restart of the search for the largest gain.
        restarts: Restarts of that search.
        ascent_steps: Adam steps per restart.
        lipsdp_steps: L-BFGS steps of the LipSDP bound of a trained network.
        data_seed: None for training samples of their own for every seed. A number for one set of samples for all
            seeds: what torch draws after this seed; the published code does so, by default with 123.
    """

    layers: tuple[str, ...] = LAYERS
    gammas: tuple[float, ...] = (1.0, 5.0, 10.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    inits: tuple[str, ...] = tuple(INITS)
    layerwise: bool = False
    init_gamma: float = 10.0
    init_depth: int = 10
    hidden_layers: int = 9
    sandwich_width: int = 86
    baseline_width: int = 128
    n_train: int = 300
    n_test: int = 200
    epochs: int = 200
    batch_size: int = 50
    max_lr: float = 0.01
    pairs: int = 64
    restarts: int = 10
    ascent_steps: int = 50
    lipsdp_steps: int = 1000
    data_seed: int | None = None

    @property
    def models(self) -> tuple[Model, ...]:
        """All networks: every layer at every bound, and the variants of the sandwich network."""
        table = [Model(layer, gamma) for layer in self.layers for gamma in self.gammas]
        others = [Model("sandwich", self.init_gamma, init) for init in self.inits]
        others += [Model("sandwich", self.init_gamma, layerwise=True)] * self.layerwise
        return tuple(dict.fromkeys([*table, *others]))


# Twice the published training, where that is not enough for the sandwich network to use its bound.
LONG = Config(layers=("sandwich",), gammas=(10.0,), inits=("default",), epochs=400)
# More seeds, to see the spread of single runs, with both ways of evaluating the network in training.
SPREAD = Config(
    layers=("sandwich",), gammas=(10.0,), inits=("default",), layerwise=True, seeds=tuple(range(8))
)
# The training samples of the published code, the same for all seeds.
PUBLISHED_DATA = Config(layers=("sandwich",), inits=("default",), data_seed=123)
SMOKE = Config(
    gammas=(10.0,), seeds=(0, 1), layerwise=True, init_depth=3, hidden_layers=3, sandwich_width=8,
    baseline_width=12, n_train=60, n_test=40, epochs=10, batch_size=20, pairs=8, restarts=2, ascent_steps=10,
    lipsdp_steps=20,
)  # fmt: skip
