"""Readers of image data sets in the layouts they are distributed in; no reader unpickles anything."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustnn.errors import CheckpointError, RobustNNError

# Training images, their labels, test images, their labels.
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]
Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def bars(n_train: int = 400, n_test: int = 200, seed: int = 0) -> Arrays:
    """Return images of 8 x 8 pixels made on the spot: a vertical bar in one of four places on noise."""
    rng = np.random.default_rng(seed)
    found: list[Any] = []
    for n in (n_train, n_test):
        labels = np.arange(n, dtype=np.int64) % 4
        images = rng.integers(0, 110, (n, 1, 8, 8))
        for k, label in enumerate(labels):
            images[k, 0, :, 2 * label : 2 * label + 2] += 120
        found += [images.astype(np.uint8), labels]
    return found[0], found[1], found[2], found[3]


def digits() -> Arrays:
    """Return the 1,797 digits of 8 x 8 pixels of scikit-learn, the first 80 % of every class for training.

    Raises:
        RobustNNError: If scikit-learn is not installed.
    """
    bunch = _module("sklearn.datasets", "scikit-learn").load_digits()
    images = np.rint(np.asarray(bunch.images) * (255.0 / 16.0)).astype(np.uint8)
    return _first_part(images[:, None], np.asarray(bunch.target, dtype=np.int64))


def mnist10k(folder: Path) -> Arrays:
    """Return 10,000 digits of MNIST, the first 80 % of every class in the order of the file for training.

    Raises:
        CheckpointError: If the file is missing or another one.
    """
    content = _arrays(folder / "mnist10k.npz", ("images", "labels"))
    return _first_part(content["images"][:, None], content["labels"].astype(np.int64))


def cifar10_jpeg(folder: Path) -> Arrays:
    """Return CIFAR-10 from JPEG files of about quality 75, which are not the original pixels.

    Raises:
        CheckpointError: If the file is missing or another one.
        RobustNNError: If Pillow is not installed.
    """
    names = [f"{part}_{what}" for part in ("train", "test") for what in ("jpeg", "offsets", "labels")]
    content = _arrays(folder / "cifar10_jpeg.npz", names)
    found: list[Any] = []
    for part in ("train", "test"):
        stream, offsets = content[f"{part}_jpeg"].tobytes(), content[f"{part}_offsets"]
        pieces = [stream[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
        found += [decoded(pieces), content[f"{part}_labels"].astype(np.int64)]
    return found[0], found[1], found[2], found[3]


def cifar10(folder: Path) -> Arrays:
    """Return CIFAR-10 from its binary version, the folder `cifar-10-batches-bin`."""
    train = [folder / f"data_batch_{k}.bin" for k in range(1, 6)]
    return *_records(train, 1), *_records([folder / "test_batch.bin"], 1)


def cifar100(folder: Path) -> Arrays:
    """Return CIFAR-100 with its fine labels from its binary version, the folder `cifar-100-binary`."""
    return *_records([folder / "train.bin"], 2), *_records([folder / "test.bin"], 2)


def tiny_imagenet(folder: Path) -> Arrays:
    """Return Tiny-ImageNet, 200 classes of 64 x 64 pixels, from its folder `tiny-imagenet-200`; tests are `val`.

    Raises:
        CheckpointError: If files are missing.
        RobustNNError: If Pillow is not installed.
    """

    def read() -> Arrays:
        names = (folder / "wnids.txt").read_text(encoding="utf-8").split()
        train = [(file, k) for k, name in enumerate(names)
                 for file in sorted((folder / "train" / name / "images").glob("*.JPEG"))]  # fmt: skip
        lines = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
        test = [
            (folder / "val" / "images" / line.split("\t")[0], names.index(line.split("\t")[1]))
            for line in lines
        ]
        found: list[Any] = []
        for part in (train, test):
            found += [
                decoded([file.read_bytes() for file, _ in part]),
                np.array([k for _, k in part], dtype=np.int64),
            ]
        return found[0], found[1], found[2], found[3]

    return _reading(folder, read)


def decoded(files: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return JPEG files of equal size as an array (n, 3, height, width).

    Raises:
        RobustNNError: If Pillow is not installed.
    """
    pillow = _module("PIL.Image", "Pillow")
    if not files:
        raise CheckpointError("images: expected at least one, got none. Restore the files.")
    images: list[NDArray[np.uint8]] = []
    for content in files:
        with pillow.open(io.BytesIO(content)) as picture:
            images.append(np.asarray(picture.convert("RGB"), dtype=np.uint8))
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _records(files: Sequence[Path], label_bytes: int) -> Labelled:
    """Read records of labels, the last of which counts, and 3 x 32 x 32 pixels."""
    size = label_bytes + 3 * 32 * 32
    parts = []
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{file}: expected the binary version of CIFAR, got no such file. Only it is read: the version for "
                "Python is a pickle, which may run code."
            )
        content = np.fromfile(file, dtype=np.uint8)
        if len(content) == 0 or len(content) % size:
            raise CheckpointError(
                f"{file}: expected records of {size} bytes, got {len(content)} bytes. Restore it."
            )
        parts.append(content.reshape(-1, size))
    table = np.concatenate(parts)
    images = np.ascontiguousarray(table[:, label_bytes:]).reshape(-1, 3, 32, 32)
    return images, table[:, label_bytes - 1].astype(np.int64)


def _first_part(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Arrays:
    """Split every class, in the order given: 80 % for training, rounded down."""
    train = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        train[mine[: (8 * len(mine)) // 10]] = True
    return images[train], labels[train], images[~train], labels[~train]


def _arrays(file: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    def read() -> dict[str, NDArray[Any]]:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in names}

    return _reading(file, read)


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path}: expected the files of the data set, got {type(error).__name__}: {error}. Restore them."
        ) from error


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RobustNNError(
            f"{package}: expected it to be installed, got no module {error.name!r}. Install robustnn[images], or "
            "choose another data set."
        ) from error
