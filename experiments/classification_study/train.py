"""Train one classifier, certify it, and attack it."""

from __future__ import annotations

import io
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.classification_study import distributed
from experiments.classification_study.attack import attacked_correct, autoattack_correct
from experiments.classification_study.certificate import certified_radii, exact
from experiments.classification_study.config import Config, Model
from experiments.classification_study.data import Images, as_pixels, augmented, load_images
from experiments.classification_study.jitter import jittered
from experiments.classification_study.losses import LOSSES
from experiments.classification_study.networks import Classifier, build, is_spectral, n_parameters
from robustnn.errors import CheckpointError, invalid
from robustnn.files import atomic_write_bytes

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_AUTOATTACK_IMAGES = 1000


def train_and_measure(config: Config, model: Model, seed: int, checkpoints: str) -> dict[str, Any]:
    """Train a classifier and return its accuracy, what is certified of it, and what is left after attacks.

    Args:
        config: Settings.
        model: Which network.
        seed: Seed of its initial weights and batches.
        checkpoints: Folder in which an interrupted training finds its state; removed at the end.

    Returns:
        JSON values: bounds, number of parameters, shares of the test images at every eps, the loss of every epoch.
    """
    data = load_images(config.dataset, config.image_size, config.train_images, config.test_images)
    file = Path(checkpoints) / f"{model.key}_seed={seed}.pt"
    start = time.perf_counter()
    distributed.announce((config, model, seed, file))
    classifier, losses = train(config, model, seed, data, file)
    seconds = time.perf_counter() - start
    result = measure(config, classifier, data, seed)
    file.unlink(missing_ok=True)
    return {
        **result,
        "losses": [round(value, 6) for value in losses],
        "parameters": n_parameters(classifier),
        "seconds": round(seconds, 2),
    }


def train_along(config: Config, model: Model, seed: int, file: Path) -> None:
    """Take part in a training that another process announced."""
    data = load_images(config.dataset, config.image_size, config.train_images, config.test_images)
    train(config, model, seed, data, file)


def train(
    config: Config,
    model: Model,
    seed: int,
    data: Images,
    file: Path | None = None,
    *,
    epochs: int | None = None,
) -> tuple[Classifier, list[float]]:
    """Train a classifier, from the state in a file if there is one.

    Args:
        config: Settings.
        model: Which network.
        seed: Seed.
        data: The images.
        file: Where the state is kept after every epoch; None for nowhere.
        epochs: Epoch after which to stop, as an interrupt would; None for all.

    Returns:
        The classifier, and the mean loss of every epoch.

    Raises:
        CheckpointError: If the file holds another training.
    """
    if config.precision not in _PRECISIONS:
        raise invalid("precision", f"one of {', '.join(_PRECISIONS)}", repr(config.precision), "Choose one.")
    if config.loss not in LOSSES:
        raise invalid("loss", f"one of {', '.join(LOSSES)}", repr(config.loss), "Choose one of these.")
    device = device_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean = as_pixels(data.train).mean(dim=(0, 2, 3))
        classifier = build(config, model, data.shape, data.n_classes, mean).to(device)
    state = _State(config, model, seed, classifier, device)
    if file is not None and file.exists():
        state.load(file)
    for epoch in range(state.epoch, config.epochs if epochs is None else min(epochs, config.epochs)):
        state.losses.append(_one_epoch(config, state, data, epoch))
        state.epoch = epoch + 1
        if file is not None and distributed.is_first():
            state.save(file)
        if device.type != "cpu" and distributed.is_first():
            print(
                f"{model.key} seed {seed} epoch {epoch + 1}/{config.epochs} loss {state.losses[-1]:.4f}",
                file=sys.stderr,
            )
    distributed.check_equal(classifier)
    return classifier.eval(), state.losses


def measure(config: Config, classifier: Classifier, data: Images, seed: int) -> dict[str, Any]:
    """Certify and attack a trained classifier, without mixed precision.

    Args:
        config: Settings.
        classifier: The classifier.
        data: The images; the test images count.
        seed: Of the attack.

    Returns:
        Bounds, and shares of the test images: `accuracy`, and at every eps `certified` (by the smaller of the declared
        and the proved bound), `certified_declared`, `attacked` and, where it ran, `autoattack`.
    """
    device = device_of(config)
    found = exact(classifier, device)
    fast = found.to(dtype=torch.float32)
    images, labels = data.test, data.test_labels
    radii = certified_radii(found, images, labels)
    declared = certified_radii(found, images, labels, proved=False)
    attacked = attacked_correct(
        found, fast, images, labels, config.eps, radii, iterations=config.attack_iterations,
        restarts=config.attack_restarts, seed=seed,
    )  # fmt: skip
    automatic = None
    if config.autoattack and _installed("autoattack"):
        some = slice(0, _AUTOATTACK_IMAGES)
        pixels, few = as_pixels(images[some], device), labels[some].to(device)
        automatic = [_share(autoattack_correct(fast, pixels, few, eps)) for eps in config.eps]
    return {
        "declared_bound": found.declared if np.isfinite(found.declared) else None,
        "proved_bound": found.proved,
        "accuracy": _share(radii > 0.0),
        "certified": [_share(radii > eps) for eps in config.eps],
        "certified_declared": [_share(declared > eps) for eps in config.eps],
        "attacked": [_share(row) for row in attacked],
        "autoattack": automatic,
    }


def device_of(config: Config) -> torch.device:
    """Return the device of training: that of the settings, or for "auto" a GPU where there is one."""
    if config.device != "auto":
        return torch.device(config.device)
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def learning_rate(config: Config, progress: float) -> float:
    """Return the learning rate after a share of training, progress in [0, 1]: up, down to a twentieth, to zero."""
    return float(np.interp(progress, (0.0, 0.4, 0.8, 1.0), (0.0, config.max_lr, config.max_lr / 20.0, 0.0)))


def _one_epoch(config: Config, state: _State, data: Images, epoch: int) -> float:
    device, loss_of, total = state.device, LOSSES[config.loss], 0.0
    batches = torch.randperm(len(data.train), generator=state.generator).split(config.batch)
    parameters: list[nn.Parameter] = list(state.classifier.parameters())
    state.classifier.train()
    for k, index in enumerate(batches):
        if not distributed.enough(index):
            continue
        rate = learning_rate(config, (epoch + (k + 0.5) / len(batches)) / config.epochs)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        images, labels = as_pixels(data.train[index], device), data.train_labels[index].to(device)
        if config.augment:
            images = augmented(images, state.generator)  # as a whole, so that all processes draw the same
        if config.jitter:
            images = jittered(images, state.generator, config.jitter)
        images, labels = distributed.share(images), distributed.share(labels)
        state.optimizer.zero_grad(set_to_none=True)
        with state.autocast():
            z = state.function(images)
        loss = loss_of(z.float(), labels)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        total += float(loss.detach()) * len(index)
    if not np.isfinite(total) or not all(bool(p.isfinite().all()) for p in parameters):
        raise invalid("max_lr", "a rate at which training converges", config.max_lr, "Lower it.")
    return distributed.mean_of(total, device) / len(data.train)


class _State:
    """All that a training goes on from."""

    def __init__(
        self, config: Config, model: Model, seed: int, classifier: Classifier, device: torch.device
    ) -> None:
        self.who = f"{config} {model.key} {seed}"
        self.classifier, self.device = classifier, device
        self.function = distributed.averaged(classifier)
        self.optimizer = torch.optim.Adam(classifier.parameters(), lr=config.max_lr)
        self.generator = torch.Generator().manual_seed(seed)
        dtype = None if is_spectral(model.layer) else _PRECISIONS[config.precision]
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.epoch = 0
        self.losses: list[float] = []

    def autocast(self) -> Any:
        """Return the context of a forward pass; conversions leave it on their own."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def save(self, file: Path) -> None:
        """Write the state in one step."""
        buffer = io.BytesIO()
        torch.save(
            {
                "who": self.who,
                "classifier": self.classifier.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "generator": self.generator.get_state(),
                "epoch": self.epoch,
                "losses": self.losses,
            },
            buffer,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, buffer.getvalue())

    def load(self, file: Path) -> None:
        """Read the state; errors as in `train`."""
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{file}: expected the state of a training, got {type(error).__name__}: {error}. Delete the file."
            ) from error
        if not isinstance(content, dict) or content.get("who") != self.who:
            raise CheckpointError(
                f"{file}: expected the state of this training, got another one. Delete the file."
            )
        self.classifier.load_state_dict(content["classifier"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.generator.set_state(content["generator"])
        self.epoch, self.losses = content["epoch"], content["losses"]


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
