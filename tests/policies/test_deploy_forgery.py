"""Deployed policies in a folder that was changed, by accident or on purpose: it is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from robustnn.bounds import Certificate
from robustnn.errors import CertificateError, CheckpointError
from robustnn.policies import deploy_files
from robustnn.policies.deploy import DeployedPolicy
from robustnn.policies.deploy_files import load_deployed, save_deployed, verify_deployed
from tests.policies.deployable import (
    FOLDER,
    vary,
)


def resealed(folder: Path) -> None:
    """Compute the digests anew, as a forger would."""
    content = json.loads((folder / "policy.json").read_text())
    for name in content["files_sha256"]:
        content["files_sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    fields = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    (folder / "policy.json").write_text(json.dumps(content))


def refused(folder: Path) -> None:
    for read in (verify_deployed, load_deployed):
        with pytest.raises((CheckpointError, CertificateError)):
            read(folder)


def test_any_weight_or_constant_changed_in_the_model_is_refused(folder: Path) -> None:
    original = onnx.load(folder / "policy.onnx")
    names = {tensor.name for tensor in original.graph.initializer}
    assert {"weight_2", "bias_2", "mean", "mean_rest", "std", "half_range", "action_low", "one"} <= names
    count = 0
    for k, tensor in enumerate(original.graph.initializer):
        values = numpy_helper.to_array(tensor)
        for index in np.ndindex(values.shape):
            changed = values.copy()
            changed[index] = np.nextafter(changed[index], np.float32(np.inf))
            model = onnx.ModelProto()
            model.CopyFrom(original)
            model.graph.initializer[k].CopyFrom(numpy_helper.from_array(changed, tensor.name))
            (folder / "policy.onnx").write_bytes(model.SerializeToString())
            with pytest.raises(CheckpointError):
                verify_deployed(folder)
            resealed(folder)
            with pytest.raises((CheckpointError, CertificateError)):
                verify_deployed(folder)
            count += 1
    assert count > 50


def test_a_changed_graph_is_refused(folder: Path) -> None:
    def other_activation(graph: Any) -> None:
        next(node for node in graph.node if node.op_type == "Relu").op_type = "Sigmoid"

    def no_clip(graph: Any) -> None:
        node = next(node for node in graph.node if node.op_type == "Clip")
        node.op_type = "Identity"
        del node.input[1:]

    def gain(graph: Any) -> None:
        graph.node[-1].op_type = "Mul"

    def alpha(graph: Any) -> None:
        node = next(node for node in graph.node if node.op_type == "Gemm")
        node.attribute.append(onnx.helper.make_attribute("alpha", 2.0))

    def renamed(graph: Any) -> None:
        graph.input[0].name = "x"

    def without_weights(graph: Any) -> None:
        del graph.initializer[:]

    def doubled(graph: Any) -> None:
        next(t for t in graph.initializer if t.name == "weight_0").data_type = onnx.TensorProto.DOUBLE

    def external(graph: Any) -> None:
        next(t for t in graph.initializer if t.name == "weight_0").data_location = 1

    original = onnx.load(folder / "policy.onnx")
    for change in (other_activation, no_clip, gain, alpha, renamed, without_weights, doubled, external):
        model = onnx.ModelProto()
        model.CopyFrom(original)
        change(model.graph)
        (folder / "policy.onnx").write_bytes(model.SerializeToString())
        resealed(folder)
        refused(folder)
    original.opset_import[0].version = 13
    (folder / "policy.onnx").write_bytes(original.SerializeToString())
    resealed(folder)
    refused(folder)


def numbers(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all numbers, booleans included, in a JSON document."""
    if isinstance(content, (int, float)):
        return [path]
    items: Any = content.items() if isinstance(content, dict) else ()
    items = enumerate(content) if isinstance(content, list) else items
    return [found for key, value in items for found in numbers(value, (*path, key))]


def edited(content: Any, path: tuple[Any, ...]) -> Any:
    """A copy with the number at the path changed by the smallest visible amount."""
    result = json.loads(json.dumps(content))
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    value = holder[path[-1]]
    if isinstance(value, bool):
        holder[path[-1]] = not value
    elif isinstance(value, int):
        holder[path[-1]] = value + 1
    else:
        holder[path[-1]] = float(np.nextafter(value, np.inf))
    return result


@pytest.mark.parametrize("name", ["policy.json", "certificate.json"])
def test_any_number_changed_in_the_json_is_refused(folder: Path, name: str) -> None:
    content = json.loads((folder / name).read_text())
    paths = numbers(content)
    assert len(paths) > (25 if name == "policy.json" else 5)
    for path in paths:
        (folder / name).write_text(json.dumps(edited(content, path)))
        refused(folder)


def test_numbers_that_matter_are_refused_even_when_the_digests_are_made_anew(folder: Path) -> None:
    content = json.loads((folder / "policy.json").read_text())
    # The limits of the observation space and the frames say how the bound is read, not what the function is.
    free = ("observation_space",)
    for path in numbers(content):
        if path[0] in free:
            continue
        (folder / "policy.json").write_text(json.dumps(edited(content, path)))
        resealed(folder)
        refused(folder)


def test_a_bound_that_is_consistently_too_small_is_refused(folder: Path) -> None:
    """All digests made anew, in both JSON files, and the bound in both: only the proof can tell."""
    certificate = json.loads((folder / "certificate.json").read_text())
    certificate["bound"] *= 0.5
    fields = {key: value for key, value in certificate.items() if key != "sha256"}
    certificate["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    (folder / "certificate.json").write_text(json.dumps(certificate))
    content = json.loads((folder / "policy.json").read_text())
    content["bound"]["lipschitz"] *= 0.5
    content["bound"]["stages"][1]["factor"] *= 0.5
    (folder / "policy.json").write_text(json.dumps(content))
    resealed(folder)
    with pytest.raises(CertificateError, match="positive definite"):
        verify_deployed(folder)


def test_statistics_that_only_float64_can_hold_are_none_of_the_model(folder: Path) -> None:
    """A forger with this library: deviations larger by less than float32 shows, and a bound that fits them."""
    honest = load_deployed(folder)
    norm = honest.pipeline.normalization
    assert norm is not None
    larger = replace(honest.pipeline, normalization=replace(norm, std=norm.std * (1 + 1e-9)))
    forged = DeployedPolicy(honest.explicit(), larger, honest.proof)
    certificate = Certificate.load(folder / "certificate")
    content = deploy_files._described(forged, certificate, deploy_files._digests(folder))
    (folder / "policy.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="none of the ONNX model"):
        verify_deployed(folder)


def test_a_description_that_was_edited_by_hand_is_refused(folder: Path) -> None:
    text = (folder / "policy.json").read_text()
    content = json.loads(text)
    content["observation_space"]["low"][0] -= 1.0  # nothing but the digest knows
    (folder / "policy.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="a changed one"):
        verify_deployed(folder)
    (folder / "policy.json").write_text(text.replace("\n", " "))  # the same numbers
    verify_deployed(folder)


def test_files_of_another_policy_are_refused(folder: Path, model: Any, norm: Any, tmp_path: Path) -> None:
    vary(model.policy, seed=7)
    save_deployed(model, tmp_path / "other", norm)
    for names in (["policy.onnx"], ["certificate.json"], ["policy.json"], FOLDER[:2], FOLDER[2:]):
        kept = {name: (folder / name).read_bytes() for name in names}
        for name in names:
            (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
        refused(folder)
        if "policy.json" not in names:
            description = (folder / "policy.json").read_bytes()
            resealed(folder)
            refused(folder)
            (folder / "policy.json").write_bytes(description)
        for name, data in kept.items():
            (folder / name).write_bytes(data)
        verify_deployed(folder)


def test_truncated_missing_and_foreign_files_are_refused(folder: Path) -> None:
    for name in FOLDER:
        path = folder / name
        data = path.read_bytes()
        for part in (
            b"",
            data[: len(data) // 2],
            data[:-2],
            b"\x00" + data,
            b"{}",
            b"[]",
            b"\xff\xfe",
            b"[" * 10_000,
        ):
            path.write_bytes(part)
            refused(folder)
            if name != "policy.json":
                description = (folder / "policy.json").read_bytes()
                resealed(folder)
                refused(folder)
                (folder / "policy.json").write_bytes(description)
        path.unlink()
        refused(folder)
        path.write_bytes(data)
    verify_deployed(folder)
    with pytest.raises(CheckpointError, match="readable files"):
        verify_deployed(folder / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"observation_space": {"kind": "Discrete", "n": 7, "start": 0, "dtype": "int64"}},
        {"observation_space": None},
        {"observation_space": {"kind": "Tree"}},
        {"action_space": {"kind": "Discrete", "n": 2, "start": 0, "dtype": "int64"}},
        {"normalization": None},
        {"squash": False},
        {"mean_clip": 2.0},
        {"output": "logits"},
        {"components": ["o[0]"]},
        {"frames": 0},
        {"frames": "many"},
        {"bound": {}},
        {"bound": None},
        {"version": 2},
        {"format": "other"},
        {"more": 1},
    ],
    ids=str,
)
def test_an_edited_description_is_refused(folder: Path, change: dict[str, Any]) -> None:
    content = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**content, **change}))
    resealed(folder)
    refused(folder)
    for key in change:
        (folder / "policy.json").write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        if key in content:
            resealed(folder)
            refused(folder)
