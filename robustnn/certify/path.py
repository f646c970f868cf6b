"""The predict path of a policy by value, with everything that a certificate needs to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.bounds import constructive_multipliers
from robustnn.errors import ShapeError, check_finite
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies import ActionMap, Bound, action_map, flatten_observation, policy_bound
from robustnn.policies.networks import Decider, decider_of
from robustnn.policies.normalization import feeding_env
from robustnn.policies.observation import check_observation
from robustnn.policies.rounding import evaluation_error, evaluation_growth, overflow_radius

__all__ = ["PredictPath", "predict_path"]

_EPS = torch.finfo(torch.float64).eps
_EPS32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class PredictPath:
    """What `predict(..., deterministic=True)` computes, by value and in float64, and how it rounds.

    Attributes:
        observation_space: Space of the raw observation.
        action_map: From the flat raw observation to the action, or to the logits or Q-values.
        bound: The bound that the policy declares or that LipSDP gives; see `policy_bound`.
        evaluated: The network as it is evaluated: that of `action_map`, but with all quantiles.
        n_quantiles: Quantiles per action that are averaged after it, 0 for none.
        eps: Unit of rounding of the evaluation.
        multipliers: Multipliers by which an LBDN keeps its bound; None for another network.
        input_gain: What the policy multiplies the inputs of `network` by in a step of its own, shape (n_obs,).
        largest: Largest number that the evaluation can hold.
    """

    observation_space: spaces.Space
    action_map: ActionMap
    bound: Bound
    evaluated: ExplicitMLP
    n_quantiles: int
    eps: float
    multipliers: tuple[Tensor, ...] | None
    input_gain: Tensor
    largest: float

    @property
    def network(self) -> ExplicitMLP:
        """From the network's input, which is the normalised observation, to the output that decides."""
        return self.action_map.network

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.network.weights[0].device

    @property
    def std(self) -> Tensor:
        """Raw units per unit of the network's input, shape (n_obs,)."""
        normalization = self.action_map.normalization
        weight = self.network.weights[0]
        return weight.new_ones(weight.shape[-1]) if normalization is None else normalization.std

    def half_range(self) -> Tensor:
        """What squashing multiplies a small change of each output by at most, shape (n_out,)."""
        policy_map = self.action_map
        if not policy_map.squash or policy_map.low is None or policy_map.high is None:
            return self.network.weights[-1].new_ones(self.network.out_features)
        return 0.5 * (policy_map.high - policy_map.low)

    def flat(self, observation: Any) -> Tensor:
        """Return raw observations as a float64 tensor on the device of the weights.

        Args:
            observation: What the environments return, with or without a batch axis, or a tensor of flat raw
                observations (`robustnn.policies.flatten_observation`), shape (..., n_obs).

        Returns:
            Shape (..., n_obs).

        Raises:
            ShapeError: If the shape is another.
            NonFiniteError: If an entry is NaN or infinite.
        """
        if isinstance(observation, Tensor):
            n_obs = self.network.in_features
            if observation.ndim == 0 or observation.shape[-1] != n_obs:
                raise ShapeError(
                    f"observation: expected shape (..., {n_obs}), got {tuple(observation.shape)}. "
                    "Pass flat raw observations, or what the environments return."
                )
            check_finite("observation", observation, "Check the sensors or the environment's reset.")
            return observation.detach().to(self.device, torch.float64)
        check_observation(observation, self.observation_space)
        flat = flatten_observation(self.observation_space, observation)
        return torch.as_tensor(flat).to(self.device, torch.float64)

    def features(self, observation: Any) -> Tensor:
        """Return the inputs of the network for raw observations; see `flat`."""
        flat = self.flat(observation)
        normalization = self.action_map.normalization
        return flat if normalization is None else normalization(flat)

    def output_error(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Bound what rounding adds to the outputs for given inputs of the network.

        Args:
            inputs: Shape (..., n_obs).

        Returns:
            Magnitudes and largest errors of the outputs, shape (..., n_out).
        """
        error = 3.0 * self.input_eps * inputs.abs()
        normalization = self.action_map.normalization
        if normalization is not None:
            # The difference of two float64 numbers of the size of the observation.
            level = (normalization.mean / normalization.std).abs()
            error = error + 8.0 * _EPS * (inputs.abs() + 2.0 * level)
        return self._averaged(*evaluation_error(self.evaluated, inputs, self.eps, error=error))

    def output_growth(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Bound what `output_error` grows by when no input moves by more than `unit`, shape (n_obs,)."""
        return self._averaged(
            *evaluation_growth(self.evaluated, unit, 1.001 * self.eps, input_eps=1.001 * self.input_eps)
        )

    @property
    def input_eps(self) -> float:
        """Unit of rounding of the observation, which SB3 turns into float32 whatever the policy computes in."""
        return max(self.eps, _EPS32)

    def overflow_radius(self, inputs: Tensor, unit: Tensor) -> Tensor:
        """Radius of the ball of inputs in which no number of the evaluation overflows, shape (...).

        Args:
            inputs: Shape (..., n_obs).
            unit: Largest change of every input per unit of the radius, shape (n_obs,).
        """
        # The comparison of logits and the average of quantiles add some up.
        limit = self.largest / (4.0 * max(1, self.n_quantiles))
        return overflow_radius(self.evaluated, inputs, self.input_gain, unit, limit)

    def _averaged(self, size: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        if not self.n_quantiles:
            return size, error
        size, error = (t.unflatten(-1, (self.n_quantiles, -1)).mean(-2) for t in (size, error))
        return size, error + (0.5 * self.n_quantiles + 2.0) * self.eps * size


def predict_path(policy: Any, vec_env: VecEnv | None = None) -> PredictPath:
    """Return the deterministic predict path of a policy or model by value.

    Args:
        policy: A policy or model that `policy_bound` accepts.
        vec_env: The vector environment whose `VecNormalize`, if any, feeds it; None for the model's own.

    Returns:
        The path, on the device of the policy.

    Raises:
        InvalidArgumentError: If a part of the policy or of the wrappers is of unknown gain, or statistics still change.
    """
    vec_env = feeding_env(policy, vec_env)
    bound = policy_bound(policy, vec_env)
    policy = getattr(policy, "policy", policy)
    decider = decider_of(policy)
    policy_map = action_map(policy, vec_env)
    evaluated = policy_map.network
    dtype = next(decider.body[0].parameters()).dtype
    if decider.n_quantiles:
        evaluated = _all_quantiles(decider)
        policy_map = replace(policy_map, network=_averaged(evaluated, decider.n_quantiles))
    net = decider.lbdn
    multipliers = (
        None if net is None else tuple(t.to(evaluated.weights[0]) for t in constructive_multipliers(net))
    )
    return PredictPath(
        policy.observation_space,
        policy_map,
        bound,
        evaluated,
        decider.n_quantiles,
        _unit_of_rounding(dtype),
        multipliers,
        1.0 / decider.scale().to(evaluated.weights[0]),
        min(torch.finfo(dtype).max, torch.finfo(torch.float32).max),
    )


def _all_quantiles(decider: Decider) -> ExplicitMLP:
    """The network without the averaging, with the input scale folded in."""
    whole = replace(decider, n_quantiles=0).explicit().to(dtype=torch.float64)
    first, *others = whole.weights
    return replace(whole, weights=(first / decider.scale().to(first), *others))


def _averaged(network: ExplicitMLP, n_quantiles: int) -> ExplicitMLP:
    """Average the last layer over the quantiles in float64, without rounding the result to float32."""
    *weights, last = network.weights
    *biases, bias = network.biases
    mean = last.unflatten(0, (n_quantiles, -1)).mean(0)
    mean_bias = None if bias is None else bias.unflatten(0, (n_quantiles, -1)).mean(0)
    return replace(network, weights=(*weights, mean), biases=(*biases, mean_bias))


def _unit_of_rounding(dtype: torch.dtype) -> float:
    """Unit of rounding in a dtype with the present settings of torch, and what float64 certificates round."""
    eps = torch.finfo(dtype).eps
    if dtype == torch.float32:
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:  # set by the newer interface to something this one has no word for
            precision = "medium"
        # TensorFloat32 has 10 bits after the point, bfloat16 has 7.
        eps = max(eps, {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}.get(precision, math.inf))
    return eps + 8.0 * _EPS
