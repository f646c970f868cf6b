"""Deployed policies in a folder: what is in it, how it is replaced, and what is not written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from gymnasium import spaces
from onnx import numpy_helper
from stable_baselines3.common.vec_env import VecNormalize

from robustnn.bounds import Certificate
from robustnn.errors import CheckpointError, InvalidArgumentError, RobustNNError
from robustnn.policies.deploy import DeployedPolicy, deploy
from robustnn.policies.deploy_files import load_deployed, save_deployed, verify_deployed
from robustnn.policies.space_json import space_from_json, space_to_json
from tests.policies.deployable import (
    ACTION_SPACES,
    DICT,
    WIDE,
    as_tensor,
    raw_observations,
    vary,
)
from tests.policies.toy import ASYMMETRIC


def test_the_certificate_is_one_of_the_weights_in_the_file(folder: Path) -> None:
    """Read by other means: the tensors of the ONNX file, and the pair of files by `Certificate.load`."""
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "policy.onnx").graph.initializer}
    linears = []
    for k in range(3):
        layer = torch.nn.Linear(*tensors[f"weight_{k}"].shape[::-1])
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(tensors[f"weight_{k}"]))
            layer.bias.copy_(torch.tensor(tensors[f"bias_{k}"]))
        linears += [layer, torch.nn.ReLU()]
    certificate = Certificate.load(folder / "certificate")
    bound = verify_deployed(folder)
    assert certificate.verify(torch.nn.Sequential(*linears[:-1])) == bound.lipschitz <= 6.0 * (1 + 1e-6)
    content = json.loads((folder / "policy.json").read_text())
    half = 0.5 * (ASYMMETRIC.high - ASYMMETRIC.low)
    np.testing.assert_allclose(bound.action_scale, certificate.output_scale.numpy() * half, rtol=1e-6)
    np.testing.assert_allclose(bound.observation_scale, content["normalization"]["std"], rtol=1e-12)


def test_a_search_tightens_the_certificate(model: Any, norm: VecNormalize, tmp_path: Path) -> None:
    plain = save_deployed(model, tmp_path / "a", norm).lipschitz
    assert save_deployed(model, tmp_path / "b", norm, search=True).lipschitz < plain
    verify_deployed(tmp_path / "b")


@pytest.mark.parametrize("stop", range(12))
def test_an_interrupted_write_loses_nothing(
    folder: Path, model: Any, norm: Any, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt at any renaming: the earlier deployment is whole, or the new one is, and nothing else is left."""
    before = load_deployed(folder)
    vary(model.policy, seed=3)
    new = deploy(model, norm)
    calls = 0

    def interrupting(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == stop // 2 + 1 and stop % 2 == 0:
                raise KeyboardInterrupt
            function(*args)
            if calls == stop // 2 + 1 and stop % 2 == 1:
                raise KeyboardInterrupt

        return call

    monkeypatch.setattr("os.rename", interrupting(os.rename))
    monkeypatch.setattr("os.replace", interrupting(os.replace))
    with pytest.raises(KeyboardInterrupt):
        save_deployed(new, folder)
    flat = as_tensor(WIDE, raw_observations(WIDE))
    after = load_deployed(folder)(flat)
    is_old, is_new = torch.equal(after, before(flat)), torch.equal(after, new(flat))
    assert is_old != is_new and is_new == (stop == 11)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_deployment_replaces_an_earlier_one_and_nothing_else(
    folder: Path, model: Any, norm: Any, tmp_path: Path
) -> None:
    vary(model.policy, seed=3)
    bound = save_deployed(model, folder, norm)
    assert verify_deployed(folder) == bound and list(tmp_path.iterdir()) == [folder]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="folder: expected"):
        save_deployed(model, folder, norm)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="folder: expected"):
        save_deployed(model, tmp_path / "file", norm)
    assert (folder / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_deployed(model, tmp_path / "empty", norm)
    save_deployed(model, tmp_path / "deep" / "er", norm)
    verify_deployed(tmp_path / "deep" / "er")


def test_what_was_changed_besides_the_weights_is_not_saved(model: Any, norm: Any, tmp_path: Path) -> None:
    deployed = deploy(model, norm)
    with torch.no_grad():
        deployed.network[0].weight.mul_(0.5)  # type: ignore[operator, union-attr]
    save_deployed(deployed, tmp_path / "a")
    flat = as_tensor(WIDE, raw_observations(WIDE))
    assert torch.equal(load_deployed(tmp_path / "a")(flat), deployed(flat))
    with pytest.raises(InvalidArgumentError, match="vec_env"):
        save_deployed(deployed, tmp_path / "b", norm)
    deployed.mean += 1.0  # type: ignore[operator]
    with pytest.raises(InvalidArgumentError, match="others in mean"):
        save_deployed(deployed, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_loaded_policy_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    loaded = load_deployed(folder)
    assert isinstance(loaded, DeployedPolicy)
    assert save_deployed(loaded, tmp_path / "again") == verify_deployed(folder)
    assert (tmp_path / "again" / "policy.onnx").read_bytes() == (folder / "policy.onnx").read_bytes()


def test_a_model_that_computes_something_else_is_not_written(
    model: Any, norm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustnn.nn import onnx_model

    monkeypatch.setitem(onnx_model._OPERATORS, "relu", ("Sigmoid", {}))
    with pytest.raises(CheckpointError, match="onnxruntime"):
        save_deployed(model, tmp_path / "c", norm)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["onnx", "safetensors.torch"])
def test_a_missing_library_is_named(
    model: Any, norm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(RobustNNError, match=r"robustnn\[export\]"):
        save_deployed(model, tmp_path / "c", norm)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "space",
    [
        *ACTION_SPACES.values(),
        DICT,
        spaces.Box(-np.inf, np.inf, (2, 1), np.float64),
        spaces.Box(0, 255, (3,), np.uint8),
        spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.MultiBinary([2, 2]))]),
        spaces.Discrete(3, start=-1),
    ],
    ids=str,
)
def test_spaces_come_back_from_json(space: spaces.Space) -> None:
    again = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    assert again == space and again.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)  # type: ignore[attr-defined]
