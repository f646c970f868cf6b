"""Deployed policies in a folder: the ONNX model is `predict`, its weights are the certified ones, forgeries fail."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from onnx import numpy_helper
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecNormalize

from robustnn.bounds import Certificate
from robustnn.errors import CertificateError, CheckpointError, InvalidArgumentError, RobustNNError
from robustnn.policies import LBDNActorCriticPolicy, LBDNDQNPolicy, LBDNSACPolicy, deploy_files
from robustnn.policies.deploy import DeployedPolicy, deploy
from robustnn.policies.deploy_files import load_deployed, save_deployed, verify_deployed
from robustnn.policies.space_json import space_from_json, space_to_json
from tests.policies.test_deploy import (
    ACTION_SPACES,
    CONTINUOUS,
    DICT,
    DISCRETE,
    OBSERVATION_SPACES,
    WIDE,
    as_tensor,
    assert_same,
    frozen,
    make,
    predicted,
    raw_observations,
    vary,
    vec_env_of,
)
from tests.policies.toy import ACTIONS, ASYMMETRIC, OBSERVATIONS

FILES = ["certificate.json", "certificate.safetensors", "policy.json", "policy.onnx"]
OPERATORS = {"Sub", "Div", "Clip", "Max", "Min", "Gemm", "Tanh", "Relu", "Add", "Mul", "ArgMax"}
SEVERAL = {"multidiscrete": {"Split", "Concat"}, "multibinary": {"Greater", "Cast"}}


def run_onnx(folder: Path, flat: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"observation": flat.numpy()})


def check_folder(folder: Path, model: Any, norm: Any, observations: Any) -> None:
    """ONNX and the loaded module do what `predict` does, and only with the operators promised."""
    bound = save_deployed(model, folder, norm)
    assert sorted(os.listdir(folder)) == FILES and list(folder.parent.iterdir()) == [folder]
    assert verify_deployed(folder) == bound
    deployed = load_deployed(folder)
    flat = as_tensor(model.observation_space, observations)
    expected = predicted(model, norm, observations)
    outputs = run_onnx(folder, flat)
    assert outputs[0].shape == tuple(deployed(flat).shape)
    shape = outputs[0].shape
    assert_same(deployed, deployed(flat).numpy(), expected.reshape(shape), flat)
    if deployed.pipeline.kind == "box":
        np.testing.assert_allclose(outputs[0], expected.reshape(shape), rtol=1e-5, atol=1e-5)
    else:
        assert_same(deployed, outputs[0], expected.reshape(shape), flat)
        np.testing.assert_allclose(outputs[1], deployed.scores(flat).numpy(), rtol=1e-5, atol=1e-5)
    operators = {node.op_type for node in onnx.load(folder / "policy.onnx").graph.node}
    assert operators <= OPERATORS | SEVERAL.get(deployed.pipeline.kind, set())


@pytest.mark.parametrize("normalise", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize("name", [*CONTINUOUS, *(f"discrete {name}" for name in DISCRETE)])
def test_onnx_is_predict_for_every_algorithm(name: str, normalise: bool, tmp_path: Path) -> None:
    discrete = name.startswith("discrete ")
    load, settings = (DISCRETE if discrete else CONTINUOUS)[name.removeprefix("discrete ")]
    algorithm, policy = load()
    space = WIDE if normalise else OBSERVATIONS
    env = vec_env_of(space, spaces.Discrete(4) if discrete else ASYMMETRIC)
    norm = frozen(env) if normalise else None
    kwargs = dict(settings.get("policy_kwargs", {}))
    if policy == "MlpPolicy":
        kwargs["net_arch"] = [4]  # its certificate is searched for
    elif not normalise:
        kwargs["observation_scale"] = (0.5, 2.0, 7.0)
    model = make(algorithm, policy, norm or env, **{**settings, "policy_kwargs": kwargs})
    check_folder(tmp_path / "controller", model, norm, raw_observations(space))


@pytest.mark.parametrize("name", [name for name in OBSERVATION_SPACES if name != "double"])
def test_onnx_is_predict_for_every_observation_space(name: str, tmp_path: Path) -> None:
    space, normalise = OBSERVATION_SPACES[name]
    env = vec_env_of(space, ASYMMETRIC)
    norm = None
    if normalise:
        norm = VecNormalize(env, norm_obs_keys=["a", "b"] if isinstance(space, spaces.Dict) else None)
        norm.reset()
        norm.step(np.stack([ASYMMETRIC.sample()] * 2))
        norm.training = False
    model = make(PPO, LBDNActorCriticPolicy, norm or env)
    check_folder(tmp_path / "controller", model, norm, raw_observations(space))


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_onnx_is_predict_for_every_action_space(name: str, tmp_path: Path) -> None:
    model = make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, ACTION_SPACES[name]))
    check_folder(tmp_path / "controller", model, None, raw_observations(OBSERVATIONS))


@pytest.mark.parametrize("activation", ["ReLU", "Tanh", "ELU", "LeakyReLU", "Sigmoid", "Softplus"])
def test_every_activation(activation: str, tmp_path: Path) -> None:
    kwargs = {"activation_fn": getattr(torch.nn, activation)}
    model = make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, ACTIONS), policy_kwargs=kwargs)
    bound = save_deployed(model, tmp_path / "c")
    flat = as_tensor(OBSERVATIONS, raw_observations(OBSERVATIONS))
    np.testing.assert_allclose(
        run_onnx(tmp_path / "c", flat)[0], predicted(model, None, flat.numpy()), rtol=1e-5, atol=1e-5
    )
    assert bound.lipschitz <= 6.0 * (1 + 1e-6)


@pytest.fixture
def norm() -> VecNormalize:
    return frozen(vec_env_of(WIDE, ASYMMETRIC))


@pytest.fixture
def model(norm: VecNormalize) -> Any:
    return make(SAC, LBDNSACPolicy, norm, policy_kwargs={"net_arch": [4, 3]})


@pytest.fixture
def folder(model: Any, norm: VecNormalize, tmp_path: Path) -> Path:
    save_deployed(model, tmp_path / "controller", norm)
    return tmp_path / "controller"


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
    for names in (["policy.onnx"], ["certificate.json"], ["policy.json"], FILES[:2], FILES[2:]):
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
    for name in FILES:
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


def test_values_of_a_q_network_come_with_the_action(tmp_path: Path) -> None:
    model = make(DQN, LBDNDQNPolicy, vec_env_of(OBSERVATIONS, spaces.Discrete(3)))
    save_deployed(model, tmp_path / "c")
    session = onnxruntime.InferenceSession(tmp_path / "c" / "policy.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["action", "values"]
    flat = as_tensor(OBSERVATIONS, raw_observations(OBSERVATIONS))
    with torch.no_grad():
        expected = model.q_net(flat).numpy()
    (values,) = session.run(["values"], {"observation": flat.numpy()})
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
