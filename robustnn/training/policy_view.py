"""What an adversary sees of a policy in training: its present deterministic action, by value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from robustnn.closedloop.perturb import CLIP_LEAK
from robustnn.errors import UnsupportedSpaceError, invalid
from robustnn.nn.module import ExplicitModule
from robustnn.policies.action_map import ActionMap, action_map
from robustnn.policies.freeze import KeptWeights
from robustnn.policies.networks import decider_of
from robustnn.policies.normalization import normalization_of
from robustnn.policies.wrappers import frames_of

__all__ = ["PolicyView"]


class PolicyView:
    """The action map of a model from the observations of one wrapper, anew whenever its parameters have changed.

    Args:
        model: The model, with Box actions.
        wrapper: A wrapper of the environment; its observations are what the map takes.
        vec_env: The outermost vector environment, which feeds the policy; None for the model's own.

    Raises:
        UnsupportedSpaceError: If actions are discrete.
        InvalidArgumentError: If the wrapper does not feed the model, a frame stack stands between them, or a part of
            the policy is not a plain feed-forward network.
    """

    def __init__(self, model: Any, wrapper: VecEnvWrapper, vec_env: VecEnv | None = None) -> None:
        """Check the model."""
        vec_env = model.get_env() if vec_env is None else vec_env
        inside: VecEnv | None = vec_env
        while inside is not wrapper and isinstance(inside, VecEnvWrapper):
            inside = inside.venv
        if inside is not wrapper:
            raise invalid(
                "model", "one whose environment contains this wrapper", "another environment",
                "Build the model with it, or pass vec_env, the outermost wrapper around it.",
            )  # fmt: skip
        if frames_of(vec_env) > 1:
            raise invalid(
                "vec_env", "no VecFrameStack for an attack by gradients", "stacked frames",
                "Use method='uniform', or stack frames inside the environment.",
            )  # fmt: skip
        self._model, self._env = model, vec_env
        self._template = replace(action_map(model.policy), clip_leak=CLIP_LEAK)
        if self._template.low is None:
            raise UnsupportedSpaceError(
                f"action_space: expected Box for an attack by gradients, got {model.action_space}. "
                "Use method='uniform' or 'gaussian'."
            )
        normalization_of(vec_env, model.observation_space)
        self._kept: KeptWeights | None = None

    def __call__(self, device: torch.device | str, dtype: torch.dtype) -> ActionMap:
        """Return the present map, without graph to the parameters, with a leak where actions are clipped."""
        decider = decider_of(self._model)
        first = decider.body[0]
        with torch.no_grad():
            if len(decider.body) == 1 and isinstance(first, ExplicitModule):
                self._kept = self._kept or KeptWeights()
                network = self._kept(first)
            else:
                network = decider.explicit()
            network = network.to(device, dtype)
            scale = decider.scale().to(device, dtype)
        network = replace(network, weights=(network.weights[0] / scale, *network.weights[1:]))
        normalization = normalization_of(self._env, self._model.observation_space)
        return replace(self._template, network=network, normalization=normalization).to(device, dtype)
