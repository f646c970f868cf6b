"""Parity of convolutional layers with the authors' torch code: outputs, spectra and gradients, float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from robustnn.nn import SandwichConv2d
from robustnn.params.conv_direct import SpectralParams
from robustnn.params.conv_spectral import conv_from_torch, spectral_factors, spectral_to_stage
from robustnn.params.direct import SandwichParams
from robustnn.params.maps import sandwich_factors

TOLERANCE = dict(rtol=1e-12, atol=1e-12)


def load(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as data:
        return {key: torch.as_tensor(data[key]) for key in data if data[key].dtype.kind in "fc"}


def leaves(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        key: value.clone().requires_grad_()
        for key, value in data.items()
        if key.startswith("p_") or key == "x"
    }


def check_gradients(data: dict[str, torch.Tensor], given: dict[str, torch.Tensor], y: torch.Tensor) -> None:
    torch.testing.assert_close(y, data["y"], **TOLERANCE)
    (y * data["cot"]).sum().backward()
    for key, leaf in given.items():
        expected = data["grad_x"] if key == "x" else data["g_" + key.removeprefix("p_")]
        torch.testing.assert_close(leaf.grad, expected, **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}")


def test_circular_layer(golden: Path) -> None:
    data = load(golden / "lbdn_sandwichconv_s1.npz")
    given = leaves(data)
    assert set(given) == {"x", "p_weight", "p_alpha", "p_psi", "p_bias"}
    size = tuple(data["x"].shape[-2:])
    params = conv_from_torch(*(given[f"p_{name}"] for name in ("weight", "alpha", "psi", "bias")), size)
    factors = torch.cat(spectral_factors(params.weight, params.alpha, size), dim=-2).mT
    torch.testing.assert_close(factors, data["Qfft"], **TOLERANCE)
    stage = spectral_to_stage(params, "relu", (1, 1), size)
    check_gradients(data, given, stage(data["scale"] * given["x"]))


def test_radius_of_the_first_call(golden: Path) -> None:
    """That code takes the radius from the first image; ours is fixed at construction and is the same layer."""
    data = load(golden / "lbdn_sandwichconv_s1.npz")
    weight = data["p_weight"]
    params = conv_from_torch(weight, data["alpha_lazy"], data["p_psi"], None, (6, 6))
    torch.testing.assert_close(params.alpha, weight.norm(), **TOLERANCE)


def test_module_with_the_parameters(golden: Path) -> None:
    data = load(golden / "lbdn_sandwichconv_s1.npz")
    params = conv_from_torch(*(data[f"p_{name}"] for name in ("weight", "alpha", "psi", "bias")), (6, 6))
    layer = SandwichConv2d(2, 3, 3, parametrization="fft", dtype=torch.float64)
    with torch.no_grad():
        for name, value in params._asdict().items():
            getattr(layer, name).copy_(value)
    torch.testing.assert_close(layer(data["x"]), data["y"], **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(layer(data["x"]), data["y_eval"], **TOLERANCE)


def test_pointwise_layer(golden: Path) -> None:
    """relu(2 A^T B x + b) there; the product is our 1 x 1 layer with the identity as activation."""
    data = load(golden / "lbdn_sandwichconv1.npz")
    given = leaves(data)
    kernel, alpha = given["p_kernel"], given["p_alpha"]
    a_t, b_t = sandwich_factors(SandwichParams(kernel.mT, alpha, None, None))
    torch.testing.assert_close(2 * a_t @ b_t.mT, data["Q"], **TOLERANCE)
    layer = SandwichConv2d(
        3, 5, 1, parametrization="fft", activation="identity", bias=False, dtype=torch.float64
    )
    params = SpectralParams(kernel[..., None, None], alpha, torch.zeros(5, dtype=torch.float64), None)
    values = {name: value for name, value in params._asdict().items() if value is not None}
    y = torch.func.functional_call(layer, values, (data["scale"] * given["x"],))
    check_gradients(data, given, torch.relu(y + given["p_bias"][:, None, None]))
