"""Deployed policies as ONNX models: the model is `predict`, with the operators promised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecNormalize

from robustnn.policies import LBDNActorCriticPolicy, LBDNDQNPolicy
from robustnn.policies.deploy_files import load_deployed, save_deployed, verify_deployed
from tests.policies.deployable import (
    ACTION_SPACES,
    BINARY,
    EVERY_ALGORITHM,
    FOLDER,
    OBSERVATION_SPACES,
    as_tensor,
    assert_same,
    contrib,
    make,
    model_for,
    predicted,
    raw_observations,
    vec_env_of,
)
from tests.policies.toy import ACTIONS, ASYMMETRIC, OBSERVATIONS

OPERATORS = {"Sub", "Div", "Clip", "Max", "Min", "Gemm", "Tanh", "Relu", "Add", "Mul", "ArgMax"}


SEVERAL = {"multidiscrete": {"Split", "Concat"}, "multibinary": {"Greater", "Cast"}}


def run_onnx(folder: Path, flat: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"observation": flat.numpy()})


def check_folder(folder: Path, model: Any, norm: Any, observations: Any) -> None:
    """ONNX and the loaded module do what `predict` does, and only with the operators promised."""
    bound = save_deployed(model, folder, norm)
    assert sorted(os.listdir(folder)) == FOLDER and list(folder.parent.iterdir()) == [folder]
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
@pytest.mark.parametrize("name", EVERY_ALGORITHM)
def test_onnx_is_predict_for_every_algorithm(name: str, normalise: bool, tmp_path: Path) -> None:
    model, norm = model_for(name, normalise, searched=True)
    check_folder(tmp_path / "controller", model, norm, raw_observations(model.observation_space))


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


def test_onnx_is_predict_for_two_logits_per_bit(tmp_path: Path) -> None:
    load = contrib("MaskablePPO", "LBDNMaskablePolicy")
    model = make(*load(), vec_env_of(OBSERVATIONS, BINARY))
    check_folder(tmp_path / "controller", model, None, raw_observations(OBSERVATIONS))
    assert load_deployed(tmp_path / "controller").pipeline.action_space == BINARY


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
