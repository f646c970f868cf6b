"""Files: what is saved comes back to the last bit, what is not ours is refused, and other programs' layouts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustnn import LBDN, MLP, ExplicitMLP, SandwichLayer
from robustnn.errors import CheckpointError, InvalidArgumentError, NonFiniteError, RobustNNError, ShapeError
from robustnn.nn import load_layout, load_network, save_network, to_onnx
from robustnn.params import read_layout
from tests.networks import ACTIVATION_NAMES, SHAPES, inputs, random_lbdn, randomised

MATRIX = [[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.1, 0.0, 1.0]]


def networks() -> dict[str, LBDN | MLP]:
    return {
        "lbdn": random_lbdn((3, (8, 5), 2), lipschitz=math.pi, activation="tanh"),
        "scaled": random_lbdn((3, (8,), 2), dtype=torch.float64, input_scale=MATRIX, output_scale=[0.1, 7.0]),
        "trained bound": LBDN(3, (8,), 2, lipschitz=math.e, trainable_lipschitz=True),
        "no bias": random_lbdn((3, (8,), 2), bias=False),
        "no hidden layer": random_lbdn((3, (), 2)),
        "half": LBDN(3, (8,), 2, dtype=torch.bfloat16),
        "mlp": randomised(MLP(3, (8, 5), 2, activation="elu", dtype=torch.float64), 1.0),  # type: ignore[dict-item]
        "mlp without bias": MLP(3, (), 2, bias=False),
    }


# safetensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", networks())
def test_there_and_back(name: str, tmp_path: Path) -> None:
    net = networks()[name].freeze()
    path = tmp_path / "net.safetensors"
    state = torch.random.get_rng_state()
    save_network(net, path)
    assert net.is_frozen
    other = load_network(str(path))
    assert torch.equal(state, torch.random.get_rng_state())
    assert type(other) is type(net) and repr(other) == repr(net) and other.lipschitz == net.lipschitz
    for (key, ours), (key_2, theirs) in zip(
        other.state_dict().items(), net.state_dict().items(), strict=True
    ):
        assert key == key_2
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
    x = inputs(3).to(next(net.parameters()).dtype)
    with torch.no_grad():
        assert torch.equal(other(x), net(x))
    assert all(p.requires_grad for p in other.parameters())


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Other programs read the tensors and the description without this package."""
    safetensors = pytest.importorskip("safetensors")
    net = random_lbdn((3, (8,), 2), lipschitz=4.0)
    save_network(net, tmp_path / "net")
    with safetensors.safe_open(tmp_path / "net", framework="np") as file:
        description = json.loads(file.metadata()["network"])
        np.testing.assert_array_equal(
            file.get_tensor("layers.0.weight"), net.layers[0].weight.detach().numpy()
        )
    assert description["lipschitz"] == 4.0 and description["hidden_features"] == [8]


def test_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net"
    save_network(random_lbdn((3, (8,), 2)), path)
    before = path.read_bytes()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_network(random_lbdn((3, (8,), 2), seed=5), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def rewrite(
    path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], *, seal: bool = False
) -> None:
    """Rewrite a file with another description or other tensors, with the old hash or (seal) with a new one."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from robustnn.nn.export import _digest

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    description = json.loads(metadata["network"])
    change(description, tensors)
    metadata["network"] = json.dumps(description)
    if seal:
        metadata["sha256"] = _digest(metadata["network"], tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_network(random_lbdn((3, (8,), 2), lipschitz=3.0, input_scale=[1.0, 2.0, 3.0]), path)
    return path


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Any]] = {
    "format": lambda d, t: d.update(format="other"),
    "version": lambda d, t: d.update(version=2),
    "kind": lambda d, t: d.update(kind="CNN"),
    "kind of another class": lambda d, t: d.update(kind="MLP"),
    "missing field": lambda d, t: d.pop("activation"),
    "further field": lambda d, t: d.update(extra=1),
    "type of a field": lambda d, t: d.update(lipschitz="3"),
    "bool as an int": lambda d, t: d.update(in_features=True),
    "bound": lambda d, t: d.update(lipschitz=-3.0),
    "bound NaN": lambda d, t: d.update(lipschitz=math.nan),
    "activation": lambda d, t: d.update(activation="gelu"),
    "dtype": lambda d, t: d.update(dtype="float64"),
    "unknown dtype": lambda d, t: d.update(dtype="int8"),
    "huge width": lambda d, t: d.update(in_features=10**12),
    "width zero": lambda d, t: d.update(hidden_features=[0]),
    "width no number": lambda d, t: d.update(hidden_features=["8"]),
    "missing tensor": lambda d, t: t.pop("layers.0.alpha"),
    "further tensor": lambda d, t: t.update(other=torch.zeros(2)),
    "wrong shape": lambda d, t: t.update({"layers.0.psi": torch.zeros(9)}),
    "wrong dtype": lambda d, t: t.update({"layers.0.psi": torch.zeros(8, dtype=torch.float64)}),
    "NaN": lambda d, t: t["layers.1.weight"].view(-1)[0].fill_(math.nan),
    "infinite": lambda d, t: t["layers.1.bias"][0].fill_(math.inf),
    "scale negative": lambda d, t: t["input_scale"].neg_(),
    "scale of another size": lambda d, t: t.update(input_scale=torch.ones(4)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_describes_no_network_is_refused(change: str, saved: Path) -> None:
    """Even with a hash that fits: the checks do not rest on it."""
    rewrite(saved, CHANGES[change], seal=True)
    with pytest.raises(CheckpointError, match=r"net\.safetensors"):
        load_network(saved)


def test_resealing_alone_changes_nothing(saved: Path) -> None:
    rewrite(saved, lambda d, t: None, seal=True)
    load_network(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda d, t: t["layers.0.weight"][0, 0].add_(1e-3),
        lambda d, t: d.update(lipschitz=1.0),
        lambda d, t: t.update({"layers.0.weight": t["layers.0.weight"].flip(0)}),
        lambda d, t: t.pop("input_scale"),
    ],
)
def test_a_file_that_was_changed_is_refused(change: Callable[[Any, Any], Any], saved: Path) -> None:
    """The changed file describes a network, so only the hash can tell."""
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match="hash"):
        load_network(saved)
    rewrite(saved, lambda d, t: None, seal=True)
    load_network(saved)


def test_damaged_and_foreign_files_are_refused(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    data = saved.read_bytes()
    other = tmp_path / "other"
    for cut in (0, 1, 7, 8, 50, len(data) // 2, len(data) - 1):
        other.write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            load_network(other)
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(data), 60):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(generator.integers(0, 8))
        other.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError):
            load_network(other)
    for content in (b"not a network", b"\x80\x04\x95" + data):
        other.write_bytes(content)
        with pytest.raises(CheckpointError):
            load_network(other)
    torch.save(random_lbdn((3, (8,), 2)).state_dict(), other)
    with pytest.raises(CheckpointError):
        load_network(other)
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(CheckpointError, match="description"):
        load_network(other)
    save_file({"weight": torch.zeros(2)}, other, metadata={"network": "{", "sha256": ""})
    with pytest.raises(CheckpointError, match="JSON"):
        load_network(other)
    save_file({"weight": torch.zeros(2)}, other, metadata={"network": "[]", "sha256": ""})
    with pytest.raises(CheckpointError, match="format"):
        load_network(other)
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "absent")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    for module in (SandwichLayer(3, 2), nn.Linear(3, 2)):
        with pytest.raises(InvalidArgumentError, match="net"):
            save_network(module, tmp_path / "net")  # type: ignore[arg-type]
    net = random_lbdn((3, (8,), 2))
    with torch.no_grad():
        net.layers[0].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        save_network(net, tmp_path / "net")
    with pytest.raises(FileNotFoundError):
        save_network(random_lbdn((3, (8,), 2)), tmp_path / "absent" / "net")
    assert not list(tmp_path.iterdir())


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_lbdn((3, (8,), 2))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RobustNNError, match=r"onnx.*robustnn\[export\]"):
        to_onnx(net, tmp_path / "net.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda: save_network(net, tmp_path / "net"), lambda: load_network(tmp_path / "net")):
        with pytest.raises(RobustNNError, match=r"safetensors.*robustnn\[export\]"):
            call()


# ONNX -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_onnx(activation: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Gemm and activation nodes only; where the runtime has kernels, its outputs are ours."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    net = random_lbdn(
        (3, (8, 5), 2), lipschitz=3.0, activation=activation, dtype=dtype, input_scale=[1.0, 0.5, 2.0]
    )
    path = tmp_path / "net.onnx"
    to_onnx(net, path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds[::2] == ["Gemm"] * 3 and len(kinds) == 5
    assert kinds[1].lower() == activation.replace("_", "")
    if dtype == torch.float64 and activation in ("elu", "softplus"):
        return  # onnxruntime has no float64 kernels for these
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-8 if activation == "leaky_relu" else 1e-12
    for n in (1, 7):
        x = inputs(3, n=n, size=3.0).to(dtype)
        (y,) = session.run(None, {"input": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), net(x), rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_of_all_shapes_and_kinds(shape: tuple, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    lbdn = random_lbdn(shape, bias=False)
    for net in (lbdn, MLP(*shape, activation="tanh"), lbdn.to_mlp(), lbdn.explicit()):
        to_onnx(net, tmp_path / "net.onnx")
        session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        x = inputs(shape[0]).float()
        with torch.no_grad():
            expected = net(x)
        (y,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-5, atol=1e-5)


def test_onnx_refuses(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    net = random_lbdn((3, (8,), 2))
    for bad in (
        nn.Conv1d(1, 1, 1),
        LBDN(3, (8,), 2).half(),
        ExplicitMLP.stack([net.explicit(), net.explicit()]),
    ):
        with pytest.raises(InvalidArgumentError, match="net"):
            to_onnx(bad, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_writes_nothing_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from robustnn.nn import onnx_model

    monkeypatch.setitem(onnx_model._OPERATORS, "tanh", ("Sigmoid", {}))
    with pytest.raises(CheckpointError, match="ONNX"):
        to_onnx(random_lbdn((3, (8,), 2), activation="tanh"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


# Layouts of other programs --------------------------------------------------------------------------------


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data if data[key].dtype.kind == "f"}


def test_network_of_the_torch_code(golden: Path) -> None:
    data = load(golden / "lbdn_net.npz")
    named = {f"model.{k[2:].replace('_', '.')}": v for k, v in data.items() if k.startswith("p_")}
    net = load_layout("torch", named, lipschitz=float(data["gamma"]))
    with torch.no_grad():
        y = net(torch.from_numpy(data["x"]))
    np.testing.assert_allclose(y, data["y"], rtol=1e-12, atol=1e-12)
    assert net.lipschitz == 3.0 and net.in_features == 3 and net.hidden_features == (8, 7, 8)


def test_published_policy_in_the_jax_layout(golden: Path) -> None:
    data = load(golden / "published_pendulum_lbdn_g4_s6.npz")
    flat = {k: v for k, v in data.items() if k.startswith("layer") or k == "ln_gamma"}
    nested: dict[str, Any] = {"params": {"ln_gamma": data["ln_gamma"]}}
    for key, value in flat.items():
        if key.startswith("layer"):
            layer, field = key.split("_")
            nested["params"].setdefault(f"SandwichLayer_{layer[5:]}", {})[field] = value
    x = torch.from_numpy((data["probe_obs"].astype(float) - data["obs_mean"]) / data["obs_std"])
    for given in (flat, nested):
        net = load_layout("jax", given, activation="tanh", dtype=torch.float64)
        assert net.lipschitz == pytest.approx(4.0, rel=1e-6)
        with torch.no_grad():
            np.testing.assert_allclose(net(x), data["probe_logits"], rtol=0, atol=1e-6)
    assert load_layout("jax", flat, activation="tanh").layers[0].weight.dtype == torch.float32


def julia_parameters(widths: tuple[int, ...], seed: int = 0) -> dict[str, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    pairs = list(zip(widths, widths[1:], strict=False))
    return {
        "XY": [generator.normal(size=(n_in + n_out, n_out)) for n_in, n_out in pairs],
        "\N{GREEK SMALL LETTER ALPHA}": [np.abs(generator.normal(size=1)) + 1 for _ in pairs],
        "d": [0.5 * generator.normal(size=n_out) for _, n_out in pairs[:-1]],
        "b": [generator.normal(size=n_out) for _, n_out in pairs],
    }


def julia_network(p: dict[str, list[np.ndarray]], log_gamma: float, x: np.ndarray) -> np.ndarray:
    """The formulas of that package in numpy: sqrt(gamma), A^T Psi sigma(Psi^-1 B h + b), unscaled last bias."""
    h = math.exp(0.5 * log_gamma) * x.T
    radii = p["\N{GREEK SMALL LETTER ALPHA}"]
    for k, (xy, radius, b) in enumerate(zip(p["XY"], radii, p["b"], strict=True)):
        n = xy.shape[1]
        w = radius[0] / np.linalg.norm(xy) * xy
        u, v = w[:n], w[n:]
        z = u - u.T + v.T @ v
        a_t = np.linalg.solve(np.eye(n) + z, np.eye(n) - z)
        b_mat = (-2 * v @ np.linalg.inv(np.eye(n) + z)).T
        if k == len(p["XY"]) - 1:
            return (math.exp(0.5 * log_gamma) * b_mat @ h + b[:, None]).T
        psi = np.exp(p["d"][k])
        h = (
            math.sqrt(2)
            * (a_t * psi)
            @ np.maximum(math.sqrt(2) * (b_mat / psi[:, None]) @ h + b[:, None], 0.0)
        )
    raise AssertionError("the last layer returns")


@pytest.mark.parametrize("widths", [(3, 8, 5, 2), (2, 3), (1, 1, 1)])
def test_network_in_the_julia_layout(widths: tuple[int, ...]) -> None:
    p, log_gamma = julia_parameters(widths), math.log(7.0)
    x = np.random.default_rng(1).normal(size=(9, widths[0]))
    expected = julia_network(p, log_gamma, x)
    one_based = {f"{key}_{k + 1}": v for key, values in p.items() for k, v in enumerate(values)}
    ascii_names = {
        "alpha" if key.startswith("\N{GREEK SMALL LETTER ALPHA}") else key: v for key, v in p.items()
    }
    for given in (
        {**p, "log_\N{GREEK SMALL LETTER GAMMA}": np.array([log_gamma])},
        {"direct": {**ascii_names, "log_gamma": np.array([log_gamma])}},
        {**one_based, "log_gamma": log_gamma},
    ):
        net = load_layout("julia", given)
        assert net.lipschitz == pytest.approx(7.0, rel=1e-14)
        with torch.no_grad():
            np.testing.assert_allclose(net(torch.from_numpy(x)), expected, rtol=1e-11, atol=1e-11)


def test_layouts_are_not_mistaken_for_each_other() -> None:
    """The output bias tells JAX from Julia; the axes tell torch from both."""
    p = julia_parameters((3, 8, 2))
    as_julia = read_layout("julia", p, lipschitz=4.0)
    as_jax = read_layout("jax", {"a": p.pop("\N{GREEK SMALL LETTER ALPHA}"), **p}, lipschitz=4.0)
    torch.testing.assert_close(as_jax.layers[1].bias, 2 * as_julia.layers[1].bias)
    torch.testing.assert_close(as_jax.layers[0].bias, as_julia.layers[0].bias)
    names = {"weight": p["XY"], "alpha": [np.ones(1)] * 2, "psi": p["d"], "bias": p["b"]}
    with pytest.raises(ShapeError, match="order of the axes"):
        read_layout("torch", names, lipschitz=4.0)


def test_layouts_refuse() -> None:
    def given(**changes: Any) -> dict[str, Any]:
        p: dict[str, Any] = julia_parameters((3, 8, 2))
        p["alpha"] = p.pop("\N{GREEK SMALL LETTER ALPHA}")
        flat = {f"{key}.{k}": v for key, values in p.items() for k, v in enumerate(values)}
        return {k: v for k, v in {**flat, **changes}.items() if v is not None}

    read_layout("julia", given(), lipschitz=1.0)
    read_layout("julia", given(log_gamma=0.0), lipschitz=1.0)
    nan = np.full((11, 8), np.nan)
    for tensors, options, words in (
        (given(), {}, "one bound"),
        (given(log_gamma=1.0), {"lipschitz": 1.0}, "one bound"),
        (given(**{"d.1": np.zeros(2)}), {"lipschitz": 1.0}, "output layer has no psi"),
        (given(**{"d.0": None}), {"lipschitz": 1.0}, "layer 0"),
        (given(**{"XY.1": None}), {"lipschitz": 1.0}, "layer 1"),
        (given(**{"b.1": np.zeros(3)}), {"lipschitz": 1.0}, "bias"),
        (given(**{"alpha.1": np.zeros(3)}), {"lipschitz": 1.0}, "radius"),
        (given(**{"XY.1": np.zeros((9, 2))}), {"lipschitz": 1.0}, "n_in = 8"),
        (given(**{"XY.0": nan}), {"lipschitz": 1.0}, "finite"),
        (given(obs_mean=np.zeros(3)), {"lipschitz": 1.0}, "obs_mean"),
        (given(**{"layer.0.XY": np.zeros((11, 8))}), {"lipschitz": 1.0}, "second one"),
        (given(**{"XY.7": np.zeros((11, 8))}), {"lipschitz": 1.0}, "without gaps"),
        ({}, {"lipschitz": 1.0}, "layers numbered"),
        ([1], {"lipschitz": 1.0}, "mapping"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            read_layout("julia", tensors, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="layout"):
        load_layout("matlab", given(), lipschitz=1.0)
