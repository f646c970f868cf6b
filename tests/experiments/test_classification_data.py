"""Readers of image data sets, smaller images, and augmentation."""

from __future__ import annotations

import colorsys
import importlib.util
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.classification_study.config import CERTIFIED, CIFAR, CIFAR100, MNIST, SMOKE, Config
from experiments.classification_study.data import augmented, load_images
from experiments.classification_study.jitter import jittered
from experiments.classification_study.train import train
from robustnn.errors import CheckpointError, InvalidArgumentError, RobustNNError, ShapeError

DATA = Path(os.environ.get("ROBUSTNN_DATA", "missing"))


def records(n: int, label_bytes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 256, (n, label_bytes + 3072), dtype=np.uint8)
    table[:, :label_bytes] = np.arange(n * label_bytes).reshape(n, label_bytes) % 10
    return table


def test_binary_cifar_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    tables = [records(4, 1, k) for k in range(6)]
    for k, table in enumerate(tables[:5]):
        table.tofile(folder / f"data_batch_{k + 1}.bin")
    tables[5].tofile(folder / "test_batch.bin")
    data = load_images("cifar10", folder=tmp_path)
    assert data.train.shape == (20, 3, 32, 32) and data.test.shape == (4, 3, 32, 32)
    # Record 2 of the second file: red first, row by row.
    assert (
        data.train[6, 0, 1, 5] == tables[1][2, 1 + 32 + 5]
        and data.train[6, 2, 0, 0] == tables[1][2, 1 + 2048]
    )
    assert data.train_labels[6] == tables[1][2, 0]
    (folder / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="3073 bytes"):
        load_images("cifar10", folder=tmp_path)


def test_fine_labels_of_cifar100_and_pickles(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    table = records(5, 2, 0)
    table.tofile(folder / "train.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        load_images("cifar100", folder=tmp_path)
    table.tofile(folder / "test.bin")
    data = load_images("cifar100", folder=tmp_path)
    assert data.test_labels.tolist() == table[:, 1].tolist()


def jpeg(value: int, size: int = 64) -> bytes:
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(stream, "JPEG", quality=100)
    return stream.getvalue()


def test_tiny_imagenet_is_read(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n02\nn01\n")
    for name, value in (("n01", 10), ("n02", 200)):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / "images" / f"{name}_0.JPEG").write_bytes(jpeg(value))
    (root / "val" / "images" / "val_0.JPEG").write_bytes(jpeg(90))
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t1\t1\n")
    data = load_images("tiny_imagenet", folder=tmp_path)
    assert data.train.shape == (2, 3, 64, 64)
    assert [(int(x.float().mean()), int(y)) for x, y in zip(data.train, data.train_labels, strict=True)] == [
        (200, 0),
        (10, 1),
    ]
    assert data.test_labels.tolist() == [1]
    (root / "wnids.txt").unlink()
    with pytest.raises(CheckpointError, match="files of the data set"):
        load_images("tiny_imagenet", folder=tmp_path)


def test_jpeg_streams_are_read(tmp_path: Path) -> None:
    (tmp_path / "cifar10_jpeg").mkdir()
    pieces = [jpeg(value, 32) for value in (0, 255, 100)]
    stream = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, pieces)])
    content = {"jpeg": stream, "offsets": offsets, "labels": np.array([1, 0, 2], dtype=np.uint8)}
    arrays = {f"{part}_{name}": value for part in ("train", "test") for name, value in content.items()}
    np.savez(tmp_path / "cifar10_jpeg" / "cifar10_jpeg.npz", **arrays)
    data = load_images("cifar10_jpeg", folder=tmp_path)
    assert data.train.flatten(1).float().mean(1).tolist() == [0.0, 255.0, 100.0]
    assert data.test_labels.tolist() == [1, 0, 2] and data.n_classes == 3


@pytest.mark.skipif(not (DATA / "mnist10k").is_dir(), reason="no digits of MNIST in ROBUSTNN_DATA")
def test_digits_are_split_by_class() -> None:
    data = load_images("mnist10k", image_size=14, test_images=50)
    with np.load(DATA / "mnist10k" / "mnist10k.npz") as content:
        images, labels = content["images"], content["labels"]
    first = images[np.flatnonzero(labels == 0)[0]].reshape(14, 2, 14, 2).mean(axis=(1, 3))
    assert torch.equal(data.train[0, 0], torch.from_numpy(np.rint(first).astype(np.uint8)))
    counts = np.bincount(labels)
    assert torch.bincount(data.train_labels).tolist() == [8 * n // 10 for n in counts]
    assert torch.bincount(data.test_labels).tolist() == [5] * 10


def test_digits_of_scikit_learn_or_a_clear_error() -> None:
    if importlib.util.find_spec("sklearn") is None:
        with pytest.raises(RobustNNError, match=r"robustnn\[images\]"):
            load_images("digits")
    else:
        data = load_images("digits")
        assert (
            data.shape == (1, 8, 8) and len(data.train) + len(data.test) == 1797 and data.train.max() == 255
        )


def test_bad_requests_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ROBUSTNN_DATA", raising=False)
    for arguments, match in (
        (("mnist10k",), "ROBUSTNN_DATA"),
        (("unknown",), "dataset"),
        (("bars", 3), "divisor"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            load_images(*arguments)
    with pytest.raises(CheckpointError, match="Restore"):
        load_images("mnist10k", folder=tmp_path)


def test_augmentation_is_a_shift_and_a_mirror() -> None:
    images = torch.rand(6, 2, 9, 7)
    found = augmented(images, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    shifts = torch.randint(0, 9, (2, 6), generator=generator)
    mirror = torch.rand(6, generator=generator) < 0.5
    assert mirror.any() and not mirror.all()
    for k, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        part = padded[:, shifts[0, k] : shifts[0, k] + 9, shifts[1, k] : shifts[1, k] + 7]
        expected = part[..., ::-1] if mirror[k] else part
        assert np.array_equal(found[k].numpy(), expected)


def changed_once(image: np.ndarray, kind: int, amount: float) -> np.ndarray:
    """One operation of the jitter on one image, written pixel by pixel."""
    if kind == 0:
        found = amount * image
    elif kind in (1, 2):
        grey = 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        found = amount * image + (1.0 - amount) * (grey.mean() if kind == 1 else grey)
    else:
        found = np.empty_like(image)
        for y, x in np.ndindex(*image.shape[1:]):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x])
            found[:, y, x] = colorsys.hsv_to_rgb((hue + amount) % 1.0, saturation, value)
    return np.clip(found, 0.0, 1.0)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_jitter_is_four_changes_in_random_order(strength: float) -> None:
    images = torch.rand(12, 3, 4, 3, dtype=torch.float64)
    images[0, :, 0, 0] = 0.4  # grey: it has no hue
    images[1] = images[1, 0]
    found = jittered(images, torch.Generator().manual_seed(5), strength)
    generator = torch.Generator().manual_seed(5)
    drawn, order = (
        torch.rand(4, 12, generator=generator),
        torch.rand(4, 12, generator=generator).argsort(dim=0),
    )
    limits = [(0.9, 1.1), (0.5, 2.0), (0.3, 2.0), (1.0 - 0.02, 1.0 + 0.02)]
    assert len({tuple(column.tolist()) for column in order.T}) > 6
    for k, image in enumerate(images.numpy()):
        expected = image
        for kind in order[:, k].tolist():
            low, high = (1.0 + strength * (limit - 1.0) for limit in limits[kind])
            amount = low + (high - low) * float(drawn[kind, k]) - (1.0 if kind == 3 else 0.0)
            expected = changed_once(expected, kind, amount)
        # Amounts are drawn in float32.
        np.testing.assert_allclose(
            found[k].numpy(), expected, rtol=0.0, atol=64 * torch.finfo(torch.float32).eps
        )
    assert not torch.allclose(found, images, atol=0.01) and 0.0 <= found.min() and found.max() <= 1.0


def test_jitter_of_grey_images_strength_and_seed() -> None:
    images = torch.rand(5, 1, 6, 6)
    generator = torch.Generator().manual_seed(0)
    found = jittered(images, generator)
    assert found.shape == images.shape and not torch.equal(found, images)
    assert torch.equal(found, jittered(images, torch.Generator().manual_seed(0)))
    colour = torch.rand(5, 3, 6, 6)
    unchanged = jittered(colour, generator, 0.0)
    torch.testing.assert_close(unchanged, colour, rtol=0.0, atol=16 * torch.finfo(torch.float32).eps)
    with pytest.raises(ShapeError, match="1 or 3 channels"):
        jittered(torch.rand(5, 2, 6, 6), generator)
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(RobustNNError, match="jitter"):
            jittered(images, generator, strength)


def test_jitter_is_off_unless_asked_for_and_trained_with() -> None:
    assert all(config.jitter == 1.0 for config in (CIFAR, CIFAR100, CERTIFIED))
    assert all(config.jitter == 0.0 for config in (MNIST, SMOKE))
    values = {name: value for name, value in vars(CIFAR).items() if name != "jitter"}
    assert Config.of(values) == replace(CIFAR, jitter=0.0)  # as stored before there was any
    config = replace(SMOKE, epochs=1, train_images=32)
    data = load_images(config.dataset, config.image_size, 32, 8)
    model = config.models[0]
    losses = [train(replace(config, jitter=jitter), model, 0, data)[1] for jitter in (0.0, 1.0, 1.0)]
    assert losses[0] != losses[1] == losses[2]
