"""Labelled images by name, and what training does to them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from experiments.classification_study import readers
from robustnn.errors import CheckpointError, check_positive_int, invalid

# Name of the environment variable with the folder of local data.
DATA_VARIABLE = "ROBUSTNN_DATA"
_CROP = 4


@dataclass(frozen=True, eq=False)
class Images:
    """Images and labels of one data set.

    Attributes:
        name: Key of `DATASETS`.
        train: Shape (n, channels, height, width), uint8; 255 counts as one.
        train_labels: Shape (n,), int64.
        test: As `train`.
        test_labels: As `train_labels`.
        n_classes: Number of classes.
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    n_classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width


def load_images(
    name: str,
    image_size: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Images:
    """Return a data set, perhaps a part of it, perhaps of smaller images.

    Args:
        name: Key of `DATASETS`.
        image_size: Height and width that blocks of pixels are averaged to; None for the images as they are. The
            average halves the norm of a constant perturbation per factor of two: eps means something else then.
        train_images: Number of training images, taken from the classes in turns; None for all.
        test_images: The same for test images.
        folder: Folder with one folder per data set; None for that in the environment variable ROBUSTNN_DATA.

    Returns:
        The images, on the CPU.

    Raises:
        InvalidArgumentError: The name is unknown, the size does not fit, or there is no folder.
        CheckpointError: Files are missing or not those of the data set.
        RobustNNError: A library that reads the files is missing.
    """
    if name not in DATASETS:
        raise invalid("dataset", f"one of {', '.join(DATASETS)}", repr(name), "Choose one of these.")
    read, directory = DATASETS[name]
    path = Path()
    if directory is not None:
        root = folder if folder is not None else os.environ.get(DATA_VARIABLE)
        if root is None:
            raise invalid(
                DATA_VARIABLE, f"a folder that contains {directory}", "none", f"Set it to read {name!r}."
            )
        path = Path(root) / directory
    train, train_labels, test, test_labels = read(path)
    parts = []
    for images, labels, count in ((train, train_labels, train_images), (test, test_labels, test_images)):
        _check(name, images, labels)
        if count is not None:
            chosen = _in_turns(labels)[: check_positive_int("images", count)]
            images, labels = images[chosen], labels[chosen]
        parts.append((torch.from_numpy(_averaged(images, image_size)), torch.from_numpy(labels)))
    n_classes = int(max(train_labels.max(), test_labels.max())) + 1
    return Images(name, *parts[0], *parts[1], n_classes)


DATASETS: dict[str, tuple[Callable[[Path], readers.Arrays], str | None]] = {
    "bars": (lambda _: readers.bars(), None),
    "digits": (lambda _: readers.digits(), None),
    "mnist10k": (readers.mnist10k, "mnist10k"),
    "cifar10_jpeg": (readers.cifar10_jpeg, "cifar10_jpeg"),
    "cifar10": (readers.cifar10, "cifar-10-batches-bin"),
    "cifar100": (readers.cifar100, "cifar-100-binary"),
    "tiny_imagenet": (readers.tiny_imagenet, "tiny-imagenet-200"),
}


def as_pixels(images: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return uint8 images as float32 pixels in [0, 1] on a device."""
    return images.to(device).float() / 255.0


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to four pixels, continued by reflection, and mirror every other one.

    Args:
        images: Shape (b, channels, height, width), of more than four pixels in both directions.
        generator: Source of the shifts, on the CPU.

    Returns:
        The same shape.
    """
    n, _, height, width = images.shape
    padded = functional.pad(images, (_CROP,) * 4, mode="reflect")
    shifts = torch.randint(0, 2 * _CROP + 1, (2, n), generator=generator).to(images.device)
    mirror = (torch.rand(n, generator=generator) < 0.5).to(images.device)
    rows = shifts[0][:, None] + torch.arange(height, device=images.device)
    columns = shifts[1][:, None] + torch.arange(width, device=images.device)
    columns = torch.where(mirror[:, None], columns.flip(-1), columns)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.movedim(1, -1)[index, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _check(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    good = images.ndim == 4 and images.dtype == np.uint8 and labels.dtype == np.int64
    if not good or labels.shape != images.shape[:1] or len(labels) == 0 or labels.min() < 0:
        raise CheckpointError(
            f"{name}: expected uint8 images and as many labels, got shapes {images.shape} and {labels.shape}. "
            "Restore the files."
        )


def _in_turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the first image of every class, then of the second ones, and so on."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        rank[mine] = np.arange(len(mine))
    return np.lexsort((labels, rank))


def _averaged(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    if size is None or images.shape[-2:] == (size, size):
        return np.ascontiguousarray(images)
    n, channels, height, width = images.shape
    if size < 1 or height % size or width % size:
        raise invalid("image_size", f"a divisor of {height} and of {width}", size, "Choose another size.")
    blocks = images.reshape(n, channels, size, height // size, size, width // size)
    return np.rint(blocks.mean(axis=(3, 5))).astype(np.uint8)
