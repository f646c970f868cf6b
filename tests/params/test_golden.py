"""Parity with other programs: outputs, explicit weights and gradients on fixed parameters, float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnn.linalg import cayley
from robustnn.params import (
    LBDNParams,
    lbdn_to_explicit,
    sandwich_factors,
    sandwich_from_jax,
    sandwich_from_torch,
    sandwich_to_explicit,
)

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
    checked = 0
    for key, leaf in given.items():
        expected = data["grad_x"] if key == "x" else data["g_" + key.removeprefix("p_")]
        torch.testing.assert_close(leaf.grad, expected, **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}")
        checked += 1
    assert checked == len(given) >= 4


@pytest.mark.parametrize("kind", ["tall", "wide", "square", "batchc"])
def test_cayley(golden: Path, kind: str) -> None:
    data = load(golden / "lbdn_cayley.npz")
    w, q = data[f"{kind}_W"], data[f"{kind}_Q"]
    wide = w.shape[-2] < w.shape[-1]
    w = w.mT if wide else w
    n = w.shape[-1]
    result = torch.cat(cayley(w[..., :n, :], w[..., n:, :]), dim=-2)
    torch.testing.assert_close(result.mT if wide else result, q, **TOLERANCE)


def test_hidden_layer_of_the_torch_code(golden: Path) -> None:
    data = load(golden / "lbdn_sandwich_fc_a.npz")
    given = leaves(data)
    params = sandwich_from_torch(given["p_weight"], given["p_alpha"], given["p_psi"], given["p_bias"])
    torch.testing.assert_close(torch.cat(sandwich_factors(params)).mT, data["Q"], **TOLERANCE)
    check_gradients(data, given, sandwich_to_explicit(params, "relu")(given["x"]))


def test_output_layer_of_the_torch_code(golden: Path) -> None:
    data = load(golden / "lbdn_sandwich_lin_a.npz")
    given = leaves(data)
    params = sandwich_from_torch(given["p_weight"], given["p_alpha"], None, given["p_bias"])
    check_gradients(data, given, sandwich_to_explicit(params, "relu")(given["x"]))


def test_network_of_the_torch_code(golden: Path) -> None:
    data = load(golden / "lbdn_net.npz")
    given = leaves(data)
    layers = tuple(
        sandwich_from_torch(*(given.get(f"p_{k}_{name}") for name in ("weight", "alpha", "psi", "bias")))
        for k in range(4)
    )
    network = lbdn_to_explicit(LBDNParams(layers, float(data["gamma"])), "relu")
    check_gradients(data, given, network(given["x"]))


@pytest.mark.parametrize("file", ["r2dn_sandwich_hidden_tanh", "r2dn_sandwich_output"])
def test_layers_of_the_jax_code(golden: Path, file: str) -> None:
    data = load(golden / f"{file}.npz")
    given = leaves(data)
    hidden = "hidden" in file
    if not hidden:
        # That file's layer ignores d; the loader knows an output layer by its absence.
        given.pop("p_d", None)
    params = sandwich_from_jax(given["p_XY"], given["p_a"], given.get("p_d"), given["p_b"])
    a_t, b_t = sandwich_factors(params)
    torch.testing.assert_close(a_t, data["e_A_T"], **TOLERANCE)
    torch.testing.assert_close(b_t.mT, data["e_B"], **TOLERANCE)
    check_gradients(data, given, sandwich_to_explicit(params, "tanh")(given["x"]))


def test_published_policy_in_the_jax_layout(golden: Path) -> None:
    """The output bias is multiplied by sqrt(gamma) in that layout, and 256 probes match to 1e-6."""
    data = load(golden / "published_pendulum_lbdn_g4_s6.npz")
    gamma = math.exp(float(data["ln_gamma"]))
    layers = tuple(
        sandwich_from_jax(
            *(
                None if (t := data.get(f"layer{k}_{name}")) is None else t.double()
                for name in ("XY", "a", "d", "b")
            ),
            lipschitz=gamma,
        )
        for k in range(5)
    )
    network = lbdn_to_explicit(LBDNParams(layers, gamma), "tanh")
    normalised = (data["probe_obs"].double() - data["obs_mean"].double()) / data["obs_std"].double()
    logits = network(normalised)
    torch.testing.assert_close(logits, data["probe_logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits[:, :1].tanh(), data["probe_action"], rtol=0, atol=1e-6)
