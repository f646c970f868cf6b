"""What the experiment on images does: data set, networks, bounds, training, attack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

LAYERS = {
    "sandwich": "Sandwich, kernel, pointwise outer",
    "sandwich-kernel": "Sandwich, kernel",
    "sandwich-fft": "Sandwich, FFT",
    "aol": "AOL",
    "cayley": "Orthogonal (Cayley)",
    "sll": "SLL",
    "plain": "no bound",
    "lipkernel": "LipKernel",
}


class Model(NamedTuple):
    """One network of the comparison; gamma is None for the network without a bound."""

    layer: str
    gamma: float | None

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return LAYERS[self.layer] if self.gamma is None else f"{LAYERS[self.layer]}, γ={self.gamma:g}"

    @property
    def key(self) -> str:
        """Name in file names."""
        return self.layer if self.gamma is None else f"{self.layer}-{self.gamma:g}"


@dataclass(frozen=True)
class Config:
    """Settings of one run. Pixels are in [0, 1] throughout, and eps is an l2 norm over all pixels and channels.

    Attributes:
        dataset: Key of `data.DATASETS`.
        network: Key of `networks.NETWORKS`.
        layers: Keys of `LAYERS`.
        gammas: Bounds from pixels to scores (to the last normalised layer, if there is one).
        training_seeds: One training per network and seed.
        epochs: Passes over the training images.
        image_size: Height and width that images are averaged down to, a divisor of theirs; None for their own.
        train_images: Number of training images, the first of every class in turns; None for all.
        test_images: The same for test images.
        batch: Images per step.
        max_lr: Largest learning rate; the schedule is that of the paper, up, down to a twentieth, to zero.
        loss: Key of `losses.LOSSES`.
        augment: Whether training images are shifted and mirrored.
        jitter: Strength of the colour jitter of training images: 0 for none, 1 for the ranges of the paper.
        normalise_last: Whether the last layer is linear with rows of norm one, outside of the bound.
        equal_parameters: Whether widths are scaled so that all networks have as many parameters as the one without
            a bound.
        precision: Of the products in training: "float32", "bfloat16" or "float16". Nothing else depends on it.
        device: Of training and attack; "auto" for a GPU where there is one.
        eps: Sizes of the perturbation.
        attack_iterations: Gradient steps of every attack.
        attack_restarts: Attacks on images that are not certified; a certified one is attacked once, as a check.
        autoattack: Whether to run AutoAttack as well, if it is installed.
    """

    dataset: str
    network: str
    layers: tuple[str, ...]
    gammas: tuple[float, ...]
    training_seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 20
    image_size: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    batch: int = 256
    max_lr: float = 0.01
    loss: str = "margin-cross-entropy"
    augment: bool = False
    jitter: float = 0.0
    normalise_last: bool = False
    equal_parameters: bool = False
    precision: str = "float32"
    device: str = "auto"
    eps: tuple[float, ...] = (36 / 255, 72 / 255, 108 / 255, 255 / 255)
    attack_iterations: int = 40
    attack_restarts: int = 4
    autoattack: bool = False

    @property
    def models(self) -> tuple[Model, ...]:
        """The networks that are compared, by bound, the one without a bound last."""
        bounded = [layer for layer in self.layers if layer != "plain"]
        models = [Model(layer, gamma) for gamma in self.gammas for layer in bounded]
        return (*models, *(Model(layer, None) for layer in self.layers if layer == "plain"))

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**fields)


_ALL = ("sandwich", "sandwich-kernel", "aol", "cayley", "sll", "plain")

# 8,000 images of 28 x 28, 640 steps: 10 s of training for the plain network to 80 s for the Fourier layer on one core.
MNIST = Config(
    "mnist10k", "2C2F", ("sandwich-fft", *_ALL), (1.0, 2.0), equal_parameters=True,
)  # fmt: skip
# The layer of which those images are the published benchmark, by itself, as it came later.
LIPKERNEL = replace(MNIST, layers=("lipkernel",))
# For a GPU. Published numbers are of 100 epochs on the original images.
CIFAR = Config(
    "cifar10_jpeg", "KWL-S", _ALL, (1.0, 10.0), training_seeds=(0,), augment=True, jitter=1.0, precision="bfloat16",
    autoattack=True,
)  # fmt: skip
CIFAR100 = Config(
    "cifar100", "KWL-S", _ALL, (1.0, 10.0), training_seeds=(0,), epochs=100, augment=True, jitter=1.0,
    precision="bfloat16", autoattack=True,
)  # fmt: skip
CERTIFIED = Config(
    "cifar100", "certified", ("sandwich", "sandwich-kernel"), (1.0,), training_seeds=(0,), epochs=400,
    augment=True, jitter=1.0, normalise_last=True, precision="bfloat16",
)  # fmt: skip
DIGITS = Config("digits", "small", _ALL, (1.0, 2.0), epochs=30, batch=64)
SMOKE = Config(
    "bars", "small", ("sandwich", "sandwich-fft", "plain"), (2.0,), (0, 1), epochs=4, train_images=160,
    test_images=60, batch=32, max_lr=0.02, attack_iterations=8, attack_restarts=2,
)  # fmt: skip
