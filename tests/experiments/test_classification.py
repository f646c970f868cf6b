"""The experiment on images: its smallest size end to end, certificates against attacks in pairs, and resuming."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments import classification
from experiments.classification_study import document
from experiments.classification_study.attack import attacked_correct, autoattack_correct, pgd_attack
from experiments.classification_study.certificate import ExactClassifier, certified_radii, exact
from experiments.classification_study.config import CERTIFIED, CIFAR, LAYERS, MNIST, SMOKE, Config, Model
from experiments.classification_study.data import load_images
from experiments.classification_study.losses import margin_cross_entropy
from experiments.classification_study.networks import build, matching_factor, n_parameters
from experiments.classification_study.report import Results
from experiments.classification_study.train import measure, train
from experiments.command import RESULTS
from robustnn.errors import CertificateError, CheckpointError, InvalidArgumentError
from robustnn.report import block_is_current
from robustnn.runs import RunFolder

EPS64 = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    classification.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "classification_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    classification.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "classification.png").stat().st_size > 10_000
    assert not list(smoke.glob("checkpoints/*"))
    assert "Certified" in document.block(smoke, "--smoke")


def test_what_is_certified_survives_the_attack(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for model in SMOKE.models:
        accuracy, certified, declared, attacked = (
            results.values(model, name)
            for name in ("accuracy", "certified", "certified_declared", "attacked")
        )
        assert certified.shape == attacked.shape == (2, len(SMOKE.eps))
        assert (declared <= certified).all() and (certified <= attacked).all()
        assert (attacked <= accuracy[:, None]).all() and (accuracy >= 0.95).all()
        assert (np.diff(certified) <= 0.0).all() and (np.diff(attacked) <= 0.0).all()
        if model.gamma is not None:
            assert (certified[:, 0] >= 0.9).all() and (attacked[:, -1] < 1.0).any()
            assert (results.values(model, "proved_bound") <= model.gamma).all()


@pytest.mark.parametrize(
    "config", [MNIST, CIFAR, CERTIFIED, SMOKE], ids=["mnist", "cifar", "certified", "smoke"]
)
def test_the_configuration_survives_the_run_folder(config: Config, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config


def test_the_document_is_current(tmp_path: Path) -> None:
    for name, content in document.blocks(RESULTS).items():
        assert block_is_current(document.DOCUMENT, name, content), name
    assert "--mnist" in document.blocks(tmp_path)["mnist"]


def linear_case(*, normalised: bool) -> tuple[ExactClassifier, Tensor, Tensor, Tensor]:
    """A classifier of two classes whose decision boundary is a plane, images, labels, and distances to the plane."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 156, (12, 1, 3, 3), generator=generator, dtype=torch.uint8)
    w = torch.randn(9, generator=generator, dtype=torch.float64)
    w -= w.mean()  # the plane through the middle of the box
    rows = torch.stack((w, -0.25 * w))
    mean = torch.zeros(1, 1, 1, dtype=torch.float64)
    shift = torch.zeros(2, dtype=torch.float64)
    if normalised:
        found = ExactClassifier(_Flat(), mean, rows, shift, 1.0, 1.0)
    else:
        norm = float(w.norm())
        found = ExactClassifier(
            _Flat(torch.stack((w, -w))), mean, None, None, math.inf, math.sqrt(2.0) * norm
        )
    pixels = images.flatten(1).double() / 255.0
    values = pixels @ w
    labels = (values < 0).long()
    return found, images, labels, values.abs() / w.norm()


class _Flat:
    """Flatten images and apply a matrix, with the interface of explicit weights."""

    def __init__(self, matrix: Tensor | None = None) -> None:
        self.matrix = matrix

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.matrix is None else x.flatten(1) @ self.matrix.T

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> _Flat:
        return _Flat(None if self.matrix is None else self.matrix.to(dtype=dtype))


@pytest.mark.parametrize("normalised", [False, True], ids=["scores", "normalised last layer"])
def test_radius_of_a_linear_classifier_is_its_distance_and_the_attack_finds_it(normalised: bool) -> None:
    found, images, labels, distance = linear_case(normalised=normalised)
    radii = certified_radii(found, images, labels)
    torch.testing.assert_close(radii, distance, rtol=1e-10, atol=0.0)
    assert (radii <= distance).all()
    fast, x = found.to(dtype=torch.float32), images.float() / 255.0
    for k in range(len(images)):
        one = slice(k, k + 1)
        beyond = pgd_attack(fast, x[one], labels[one], 1.001 * float(distance[k]), iterations=20, restarts=1)
        assert found(beyond.double()).argmax(dim=1) != labels[k]
        within = pgd_attack(fast, x[one], labels[one], 0.999 * float(distance[k]), iterations=20, restarts=2)
        assert found(within.double()).argmax(dim=1) == labels[k]
        assert (within - x[one]).norm() <= 0.999 * distance[k] * (1 + 16 * EPS32)
        assert within.min() >= 0.0 and within.max() <= 1.0


def test_attacked_accuracy_is_the_share_beyond_the_distance() -> None:
    found, images, labels, distance = linear_case(normalised=False)
    eps = tuple(float(value) for value in distance.sort().values[[3, 7]] * 1.001)
    radii = certified_radii(found, images, labels)
    correct = attacked_correct(
        found, found.to(dtype=torch.float32), images, labels, eps, radii, iterations=20
    )
    assert torch.equal(correct, torch.stack([distance > size for size in eps]))


def test_a_wrong_bound_is_found_out() -> None:
    found, images, labels, distance = linear_case(normalised=False)
    wrong = replace(found, proved=0.5 * found.proved)
    radii = certified_radii(wrong, images, labels)
    size = (1.5 * float(distance.min()),)
    with pytest.raises(CertificateError, match="do not use it"):
        attacked_correct(wrong, wrong.to(dtype=torch.float32), images, labels, size, radii, iterations=20)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("normalise", [False, True], ids=["scores", "normalised"])
def test_every_classifier_is_certified_as_it_is_used(layer: str, normalise: bool) -> None:
    data = load_images("bars", train_images=32, test_images=8)
    gamma = None if layer == "plain" else 3.0
    config = replace(SMOKE, normalise_last=normalise)
    classifier = build(config, Model(layer, gamma), data.shape, data.n_classes, torch.tensor([0.4])).eval()
    found = exact(classifier)
    pixels = data.test.float() / 255.0
    with torch.no_grad():
        z = classifier(pixels)
    expected = found(data.test.double() / 255.0)
    torch.testing.assert_close(
        z.double(), expected, rtol=0.0, atol=200 * EPS32 * max(1.0, float(expected.abs().max()))
    )
    assert found.proved <= found.declared * (1 + 64 * EPS64) or layer == "sll"
    if normalise:
        norms = torch.linalg.vector_norm(found.rows, dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=8 * EPS32, atol=0.0)


def test_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    config = replace(SMOKE, augment=True, epochs=3)
    data = load_images("bars", train_images=96, test_images=8)
    model, file = Model("sandwich", 2.0), tmp_path / "state.pt"
    whole, losses = train(config, model, 0, data)
    train(config, model, 0, data, file, epochs=1)
    resumed, again = train(config, model, 0, data, file)
    assert losses == again and len(losses) == 3
    for name, tensor in whole.state_dict().items():
        other = resumed.state_dict()[name]
        assert torch.equal(tensor, other) if isinstance(tensor, Tensor) else tensor == other
    with pytest.raises(CheckpointError, match="another one"):
        train(config, model, 1, data, file)
    file.write_bytes(b"no state")
    with pytest.raises(CheckpointError, match="Delete the file"):
        train(config, model, 0, data, file)


@pytest.mark.slow
def test_two_processes_share_a_training(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "experiments.classification", "--smoke", "--root", str(tmp_path)]
    root = Path(classification.__file__).parents[1]
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = Results(RunFolder.open(tmp_path / "classification_smoke"))
    for model in SMOKE.models:
        assert (results.values(model, "accuracy") >= 0.95).all()
        assert (results.values(model, "certified") <= results.values(model, "attacked")).all()


def test_two_hundred_steps_of_mixed_precision_learn_digits() -> None:
    if not (Path(os.environ.get("ROBUSTNN_DATA", "missing")) / "mnist10k").is_dir():
        pytest.skip("no digits of MNIST in ROBUSTNN_DATA")
    data = load_images("mnist10k", 14, 1600, 200)
    config = replace(
        CIFAR, network="small", epochs=8, batch=64, augment=False, attack_iterations=5, attack_restarts=1
    )
    classifier, losses = train(config, Model("sandwich", 4.0), 0, data)
    result = measure(config, classifier, data, 0)
    assert losses[-1] < 0.5 * losses[0]
    assert result["accuracy"] > 0.8 and result["certified"][0] > 0.5
    assert all(c <= a for c, a in zip(result["certified"], result["attacked"], strict=True))


def test_two_hundred_steps_of_the_cifar_run() -> None:
    """The settings of the run for a GPU, its network and its images, on the CPU: 200 steps of 8 images."""
    if not (Path(os.environ.get("ROBUSTNN_DATA", "missing")) / "cifar10_jpeg").is_dir():
        pytest.skip("no images of CIFAR-10 in ROBUSTNN_DATA")
    data = load_images("cifar10_jpeg", None, 800, 40)
    config = replace(CIFAR, epochs=2, batch=8, attack_iterations=2, attack_restarts=1, autoattack=False)
    classifier, losses = train(config, Model("sandwich", 10.0), 0, data)
    assert losses[1] < losses[0]
    result = measure(config, classifier, data, 0)
    assert result["proved_bound"] <= 10.0
    assert all(c <= a for c, a in zip(result["certified"], result["attacked"], strict=True))


def test_mixed_precision_stays_in_training() -> None:
    data = load_images("bars", train_images=64, test_images=40)
    full, mixed = (
        train(replace(SMOKE, epochs=2, precision=precision), Model("sandwich", 2.0), 0, data)[0]
        for precision in ("float32", "bfloat16")
    )
    weights = [dict(one.named_parameters())["net.layers.0.weight"] for one in (full, mixed)]
    assert weights[1].dtype == torch.float32 and not torch.equal(*weights)
    found = exact(mixed)
    assert found.rows is None and found.proved <= 2.0
    result = measure(replace(SMOKE, precision="bfloat16"), mixed, data, 0)
    assert result == measure(SMOKE, mixed, data, 0)
    assert all(c <= a for c, a in zip(result["certified"], result["attacked"], strict=True))


def test_diverged_training_and_unknown_names_are_refused() -> None:
    data = load_images("bars", train_images=32, test_images=8)
    model = Model("plain", None)
    with pytest.raises(InvalidArgumentError, match="converges"):
        train(replace(SMOKE, max_lr=1e30), model, 0, data)
    for name in ("loss", "precision", "network"):
        with pytest.raises(InvalidArgumentError, match=name):
            train(replace(SMOKE, **{name: "unknown"}), model, 0, data)


def test_loss_is_the_published_one() -> None:
    z = torch.tensor([[1.0, -0.5, 0.25]], dtype=torch.float64)
    asked = np.array([1.0 - 1.5 * math.sqrt(2.0), -0.5, 0.25]) / 0.25
    expected = 0.25 * (np.log(np.exp(asked).sum()) - asked[0])
    assert abs(float(margin_cross_entropy(z, torch.tensor([0]))) - expected) <= 16 * EPS64 * expected


def test_networks_have_equally_many_parameters() -> None:
    def count(factor: float) -> torch.nn.Module:
        width = round(100 * factor)
        return torch.nn.Linear(width, width, bias=False)

    assert round(100 * matching_factor(130**2 + 5, count)) == 130
    sizes = {
        model.layer: n_parameters(build(MNIST, model, (1, 28, 28), 10, torch.zeros(1)))
        for model in MNIST.models
        if model.gamma in (None, 1.0)
    }
    # One unit of the dense layer has about 1,600 parameters, one channel of the second convolution about 4,900 in it.
    assert max(sizes.values()) - min(sizes.values()) < 2 * 6500


def test_autoattack_is_called_as_its_authors_document(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class AutoAttack:
        def __init__(self, function: object, **kwargs: object) -> None:
            calls.append(kwargs)

        def run_standard_evaluation(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
            return torch.full_like(x, 0.5 + 1e-3)

    found, images, labels, _ = linear_case(normalised=False)
    module = type("Module", (), {"AutoAttack": AutoAttack})
    monkeypatch.setitem(sys.modules, "autoattack", module)
    fast = found.to(dtype=torch.float32)
    pixels = images.float() / 255.0
    correct = autoattack_correct(fast, pixels, labels, 0.5)
    assert calls[0]["norm"] == "L2" and calls[0]["eps"] == 0.5 and calls[0]["version"] == "standard"
    assert torch.equal(correct, fast(torch.full_like(pixels, 0.5 + 1e-3)).argmax(dim=1) == labels)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    blocks = re.findall(
        r"```python\n(.*?)```", document.DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), "classification.md", "exec"), names)
    assert names["bound"] <= 2.0 and bool((names["radius"] >= 0.0).all())
    images = names["images"]
    with torch.no_grad():
        torch.testing.assert_close(names["plain"](images), names["net"](images), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "net.onnx").stat().st_size > 1000
    assert names["model"].policy.lipschitz == 10.0
