"""Certificates: true of the exported weights, checked from weights and multipliers alone, and hard to fool."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robustnn import LBDN, MLP, ExplicitMLP
from robustnn.bounds import (
    Certificate,
    UpperBound,
    certify,
    constructive_multipliers,
    lipsdp,
    lower_bound,
    network_sha256,
    tighten,
)
from robustnn.errors import CertificateError, CheckpointError, InvalidArgumentError, RobustNNError
from tests.networks import ACTIVATION_NAMES, SHAPES, inputs, random_lbdn, randomised, tight_lbdn


@pytest.mark.parametrize("size", [1e-3, 1e-1, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_exported_float32_weights_keep_the_bound(size: float, activation: str) -> None:
    for k, shape in enumerate((*SHAPES, (5, (20,) * 8, 3))):
        gamma = 10.0 ** (k % 5 - 2)
        net = random_lbdn(shape, size, seed=k, activation=activation, lipschitz=gamma)
        certificate = certify(net)
        assert certificate.bound <= gamma * (1 + 1e-6)
        assert certificate.verify(net) == certificate.bound


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
def test_a_tight_network_is_certified_at_its_bound(activation: str) -> None:
    net = tight_lbdn(4, 3, activation, lipschitz=2.0)
    assert 2.0 * (1 - 1e-6) <= certify(net).bound <= 2.0 * (1 + 1e-6)


@pytest.mark.parametrize("matrices", [False, True])
def test_the_norms_of_the_network_are_used(matrices: bool) -> None:
    d_x, d_y = torch.tensor([1e-3, 1.0, 50.0]), torch.tensor([0.1, 8.0])
    if matrices:
        d_x, d_y = torch.diag(d_x.sqrt()) + 0.01, torch.diag(d_y) + 0.02
    net = random_lbdn((3, (8, 8), 2), 1.0, lipschitz=2.0, input_scale=d_x, output_scale=d_y)
    certificate = certify(net)
    assert certificate.verify(net) <= 2.0 * (1 + 1e-6)
    assert torch.equal(certificate.input_scale, d_x.double())
    plain = certify(net.explicit())
    assert plain.bound != pytest.approx(certificate.bound)
    assert torch.equal(plain.output_scale, torch.ones(2).double())


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_other_norms_than_its_own_get_the_bound_of_a_search(size: float) -> None:
    # Its own multipliers prove nothing of use there.
    net = random_lbdn((3, (8, 8), 2), 1.0, seed=1, lipschitz=2.0)
    scales = ([size, 2 * size, size / 3], [size, size / 5])
    certificate = certify(net, input_scale=scales[0], output_scale=scales[1])
    found = lipsdp(net.to_mlp(), input_scale=scales[0], output_scale=scales[1])
    assert certificate.bound == pytest.approx(found.value, rel=1e-6)
    assert certificate.bound < 100.0
    assert certificate.verify(net) == certificate.bound


def test_tighten_is_a_proof_below_gamma() -> None:
    net = random_lbdn((3, (16, 16), 2), 1.0, lipschitz=3.0)
    tight = tighten(net, iterations=200)
    assert tight.verify(net) < 0.97 * certify(net).bound
    witness = lower_bound(net.explicit().detach().to(dtype=torch.float64), inputs(3, n=32), iterations=100)
    assert witness.value <= tight.bound
    assert tighten(net, iterations=1).bound <= certify(net).bound


def test_other_networks() -> None:
    mlp = randomised(MLP(3, (8, 8), 2, activation="sigmoid"), 1.0)
    certificate = certify(mlp, iterations=50)
    for same in (mlp, mlp.explicit(), mlp.to_mlp(), copy.deepcopy(mlp).double()):
        assert certificate.verify(same) == certificate.bound
    given = lipsdp(mlp, iterations=50)
    assert certify(mlp, bound=given).bound == pytest.approx(given.value, rel=1e-9)
    assert certify(mlp, bound=given, input_scale=[1.0, 2.0, 3.0]).verify(mlp) > given.value
    with pytest.raises(InvalidArgumentError, match="multipliers"):
        certify(mlp, bound=UpperBound(1.0, given.multipliers[:1], 0.0))
    useless = UpperBound(1.0, tuple(1e-9 * t for t in given.multipliers), 0.0)
    with pytest.raises(CertificateError, match="multipliers"):
        certify(mlp, bound=useless)


def test_constructive_multipliers_prove_the_bound_without_a_search() -> None:
    net = random_lbdn((3, (8, 8), 2), 1.0, lipschitz=2.0)
    multipliers = constructive_multipliers(net)
    psi = net.layers[0].psi.detach().double()
    assert torch.allclose(multipliers[0], 2.0 * (2 * psi).exp())
    certificate = certify(net)
    assert all(
        torch.allclose(a, b, rtol=1e-6) for a, b in zip(multipliers, certificate.multipliers, strict=True)
    )
    assert certificate.precision == "float64" and certificate.widths == (3, 8, 8, 2)
    with pytest.raises(FrozenInstanceError):
        certificate.bound = 0.1  # type: ignore[misc]


def test_any_changed_number_is_another_network() -> None:
    net = random_lbdn((2, (3,), 2), 1.0).to_mlp()
    certificate = certify(net)
    for parameter in net.parameters():
        for i in range(parameter.numel()):
            with torch.no_grad():
                entry = parameter.view(-1)[i].item()
                parameter.view(-1)[i] += 1e-3 * abs(entry)
                with pytest.raises(CertificateError, match="certified network"):
                    certificate.verify(net)
                parameter.view(-1)[i] = entry
    assert certificate.verify(net) == certificate.bound


def test_other_architectures_are_other_networks() -> None:
    eye = torch.eye(2)
    nets = [
        ExplicitMLP((eye, eye), (None, None), "relu"),
        ExplicitMLP((eye, eye), (None, None), "tanh"),
        ExplicitMLP((eye, eye), (torch.zeros(2), None), "relu"),
        ExplicitMLP((eye,), (None,), "relu"),
        ExplicitMLP((eye.reshape(4, 1).reshape(2, 2), 2 * eye), (None, None), "relu"),
    ]
    assert len({network_sha256(net) for net in nets}) == len(nets)
    assert network_sha256(nets[0].to(dtype=torch.float64)) == network_sha256(nets[0])


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
def test_a_forged_digest_does_not_help(activation: str) -> None:
    """Any weight raised by 1e-3 along the worst direction of a tight network breaks the proof itself."""
    net = tight_lbdn(3, 2, activation, lipschitz=2.0, bias=False)
    with torch.no_grad():
        network = net.explicit()
    certificate = certify(net)
    assert certificate.verify(network) == certificate.bound
    caught = 0
    for k, weight in enumerate(network.weights):
        for i, j in ((i, j) for i in range(3) for j in range(3) if abs(float(weight[i, j])) > 0.1):
            changed = weight.clone()
            changed[i, j] *= 1 + 1e-3
            forged = ExplicitMLP(
                (*network.weights[:k], changed, *network.weights[k + 1 :]), network.biases, activation
            )
            lie = replace(certificate, network_sha256=network_sha256(forged))
            with pytest.raises(CertificateError, match="positive definite"):
                lie.verify(forged)
            caught += 1
    assert caught >= 9


def test_lies_are_found() -> None:
    net = tight_lbdn(3, 2, "relu", lipschitz=2.0)
    certificate = certify(net)
    multipliers = certificate.multipliers
    for lie in (
        {"bound": certificate.bound * (1 - 1e-6)},
        {"bound": 0.0},
        {"bound": -1.0},
        {"bound": math.nan},
        {"bound": math.inf},
        {"multipliers": multipliers[:1]},
        {"multipliers": (*multipliers[:-1], -multipliers[-1])},
        {"multipliers": (*multipliers[:-1], multipliers[-1] * math.nan)},
        {"multipliers": tuple(0.4 * t for t in multipliers)},
        {"input_scale": certificate.input_scale * 1.001},
        {"input_scale": torch.ones(2).double()},
        {"output_scale": certificate.output_scale * 0.999},
        {"output_scale": -certificate.output_scale},
        {"network_sha256": "0" * 64},
        {"activation": "tanh"},
        {"widths": (3, 3, 3)},
    ):
        with pytest.raises(CertificateError):
            replace(certificate, **lie).verify(net)
    assert replace(certificate, bound=certificate.bound * 1.5).verify(net) == certificate.bound * 1.5


def test_a_constant_network_has_bound_zero() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    nn.init.zeros_(net[2].weight)
    certificate = certify(net)
    assert certificate.bound == certificate.verify(net) == 0.0


@pytest.mark.parametrize("hidden", [(), (4,), (6, 5)])
def test_files_round_trip(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    net = random_lbdn((3, hidden, 2), 1.0, input_scale=[1.0, 2.0, 3.0])
    certificate = certify(net)
    paths = certificate.save(tmp_path / "new" / "policy.v1")
    assert [p.name for p in paths] == ["policy.v1.json", "policy.v1.safetensors"]
    for path in (tmp_path / "new" / "policy.v1", *paths):
        loaded = Certificate.load(path)
        assert loaded.verify(net) == certificate.bound
        assert (loaded.residual, loaded.widths) == (certificate.residual, certificate.widths)
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.multipliers, certificate.multipliers, strict=True)
        )
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(p.name for p in paths)


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    description, storage = certify(random_lbdn((2, (3,), 1), 1.0)).save(tmp_path / "c")
    for path in (description, storage):
        data = path.read_bytes()
        for i in range(0, len(data), 7):
            path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
            with pytest.raises(CheckpointError):
                Certificate.load(tmp_path / "c")
        for part in (data[:-1], data[: len(data) // 2], b"", data + b"x"):
            path.write_bytes(part)
            if part == data + b"x" or path == storage or len(part) < len(data) - 1:
                with pytest.raises(CheckpointError):
                    Certificate.load(tmp_path / "c")
        path.write_bytes(data)
        path.rename(path.with_suffix(".away"))
        with pytest.raises(CheckpointError):
            Certificate.load(tmp_path / "c")
        path.with_suffix(".away").rename(path)
    Certificate.load(tmp_path / "c")


def resealed(description: Path, **changes: object) -> None:
    """Change fields and compute the digest anew, as a forger would."""
    content = json.loads(description.read_text()) | changes
    fields = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    description.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"format": "other"}, {"precision": "float32"}, {"bound": "many"}, {"widths": None},
     {"tensors_sha256": "0" * 64}, {"residual": None}],
)  # fmt: skip
def test_foreign_files_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    description, _ = certify(random_lbdn((2, (3,), 1), 1.0)).save(tmp_path / "c")
    resealed(description, **changes)
    with pytest.raises(CheckpointError, match=r"c(\.json|\.safetensors)?: expected"):
        Certificate.load(description)


def test_a_resealed_lie_loads_but_does_not_verify(tmp_path: Path) -> None:
    net = tight_lbdn(3, 2, "relu", lipschitz=2.0)
    description, _ = certify(net).save(tmp_path / "c")
    resealed(description, bound=1.9)
    with pytest.raises(CertificateError, match="1.9"):
        Certificate.load(description).verify(net)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "[" * 100_000, '{"format": "robustnn certificate"}']
)
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    description, _ = certify(random_lbdn((2, (3,), 1), 1.0)).save(tmp_path / "c")
    description.write_text(text)
    with pytest.raises(CheckpointError):
        Certificate.load(description)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = certify(random_lbdn((2, (3,), 1), 1.0))
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(RobustNNError, match=r"robustnn\[export\]"):
        certificate.save(tmp_path / "c")


def test_a_trained_network_keeps_its_certificate_until_it_changes() -> None:
    torch.manual_seed(0)
    net = LBDN(2, (16, 16), 1, lipschitz=4.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x = inputs(2, n=64).float()
    for _ in range(30):
        optimizer.zero_grad()
        (net(x) - torch.sin(3 * x[:, :1])).square().mean().backward()
        optimizer.step()
    certificate = tighten(net, iterations=50)
    assert certificate.verify(copy.deepcopy(net)) <= 4.0 * (1 + 1e-6)
    optimizer.step()
    with pytest.raises(CertificateError, match="certified network"):
        certificate.verify(net)
