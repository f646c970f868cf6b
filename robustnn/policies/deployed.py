"""The whole way from the raw observation to the action as one plain feed-forward module."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustnn.bounds import Certificate, UpperBound, certify
from robustnn.errors import (
    CertificateError,
    InvalidArgumentError,
    ShapeError,
    UnsupportedSpaceError,
    check_finite,
    invalid,
)
from robustnn.nn.convert import as_explicit
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap
from robustnn.policies.bound import Bound
from robustnn.policies.observation import TOO_LARGE, check_observation, flatten_observation, size_of
from robustnn.policies.pipeline import Pipeline

__all__ = ["DeployedPolicy", "Proof"]


@dataclass(frozen=True, eq=False)
class Proof:
    """Where the certificate of a deployed network comes from.

    Attributes:
        input_scale: Diagonal of D_x, one entry per network input, float64.
        output_scale: Diagonal of D_y, one entry per network output, float64.
        multipliers: Those that prove the bound of the network, or None where they are searched for.
    """

    input_scale: Tensor
    output_scale: Tensor
    multipliers: tuple[Tensor, ...] | None = None


class DeployedPolicy(nn.Module):
    r"""The deterministic action of a policy as a plain module: `nn.Linear`, activations and elementwise operations.

    It takes the flat raw observation (`robustnn.policies.flatten_observation`), shape (..., n_obs), and returns the
    action in the units of the action space, shape (..., n_act), or the greedy discrete action (integers of shape
    (...) for Discrete, (..., k) for MultiDiscrete and MultiBinary). Every step of the way is inside:
    normalisation by frozen statistics (of float64 observations in float64), observation scale, network, clipping or
    tanh and rescaling. It knows nothing of Stable-Baselines3 and works with `torch.export`, `state_dict` and `pickle`.
    NaN is not refused, but by `predict`.

    Args:
        network: The weights, with the observation scale in the first one.
        pipeline: What surrounds the network.
        proof: Where the certificate comes from; see `certificate`.

    Raises:
        ShapeError: If the network has other numbers of inputs and outputs than the spaces ask for.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from robustnn.policies import deploy
        >>> deployed = deploy(PPO("MlpPolicy", "Pendulum-v1", device="cpu"))
        >>> deployed(torch.zeros(7, 3)).shape
        torch.Size([7, 1])
    """

    mean: Tensor | None
    mean_rest: Tensor | None
    std: Tensor | None
    clip: Tensor | None
    low: Tensor | None
    high: Tensor | None
    half_range: Tensor | None

    def __init__(self, network: ExplicitMLP, pipeline: Pipeline, proof: Proof) -> None:
        super().__init__()
        n_obs, n_out = size_of(pipeline.observation_space), pipeline.n_outputs
        if (network.in_features, network.out_features) != (n_obs, n_out):
            raise ShapeError(
                f"network: expected {n_obs} inputs and {n_out} outputs, got {network.in_features} and "
                f"{network.out_features}. Pass the network of a policy for these spaces."
            )
        self.pipeline = pipeline
        self.proof = proof
        self.network = network.to(device="cpu", dtype=torch.float32).to_sequential()
        for name, constant in pipeline.constants().items():
            self.register_buffer(name, constant)
        self.requires_grad_(False)
        self.eval()

    def scores(self, observation: Tensor) -> Tensor:
        """Return the network's output: the mean action before clipping or tanh, logits or Q-values.

        Args:
            observation: Flat raw observations, shape (..., n_obs).

        Returns:
            Shape (..., n_out).
        """
        x = observation
        if self.mean is not None and self.mean_rest is not None and self.std is not None:
            x = ((x - self.mean) - self.mean_rest) / self.std
            if self.clip is not None:
                x = torch.minimum(torch.maximum(x, -self.clip), self.clip)
            x = x.to(self.std.dtype)  # of float64 observations, after the difference to the mean
        output: Tensor = self.network(x)
        if self.pipeline.mean_clip is not None:
            output = output.clamp(-self.pipeline.mean_clip, self.pipeline.mean_clip)
        return output

    def forward(self, observation: Tensor) -> Tensor:
        """Return the deterministic actions of flat raw observations of shape (..., n_obs); see the class."""
        return self._decide(self.scores(observation))

    def _decide(self, output: Tensor) -> Tensor:
        """Return the actions of the network's outputs."""
        if self.low is not None and self.high is not None and self.half_range is not None:
            if self.pipeline.squash:
                return self.low + (output.tanh() + 1.0) * self.half_range
            return torch.minimum(torch.maximum(output, self.low), self.high)
        if self.pipeline.kind == "multibinary":
            return (output > 0.0).long()
        picked = [group.argmax(-1) for group in output.split(self.pipeline.choices, dim=-1)]
        return picked[0] if self.pipeline.kind == "discrete" else torch.stack(picked, dim=-1)

    def logits(self, observation: Tensor) -> Tensor:
        """Return the logits of a policy with discrete actions, shape (..., n_out).

        Raises:
            UnsupportedSpaceError: If the network computes something else.
        """
        return self._scores_if("logits", ("logits",), observation)

    def values(self, observation: Tensor) -> Tensor:
        """Return the Q-values (for QR-DQN the mean quantiles) of the discrete actions, shape (..., n_out).

        Raises:
            UnsupportedSpaceError: If the network computes something else.
        """
        return self._scores_if("values", ("Q-values", "mean quantiles"), observation)

    def _scores_if(self, name: str, outputs: tuple[str, ...], observation: Tensor) -> Tensor:
        if self.pipeline.output not in outputs:
            raise UnsupportedSpaceError(
                f"{name}: expected a policy whose network computes {' or '.join(outputs)}, got one that computes "
                f"{self.pipeline.output}. Use scores()."
            )
        return self.scores(observation)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[Any], Any]:
        """Return actions as SB3's `predict` does, but of raw observations, for example in `evaluate_policy`.

        Args:
            observation: What the environment returns, one or a batch.
            state: Passed on.
            episode_start: Not used.
            deterministic: Must be true.

        Returns:
            Actions of the shape of the action space, and `state`.

        Raises:
            InvalidArgumentError: If the observation is not one of the space, or `deterministic` is false.
            NonFiniteError: If the observation contains NaN or infinity, or the network overflows.
        """
        if not deterministic:
            raise invalid(
                "deterministic", "True", deterministic, "A deployed policy draws no random actions."
            )
        check_observation(observation)
        flat = flatten_observation(self.pipeline.observation_space, observation)
        weight: Tensor = self.network[0].weight  # type: ignore[assignment]
        x = torch.from_numpy(flat).to(weight.device)
        narrow = x.to(weight.dtype)
        # VecNormalize takes the difference to the mean in float64, which matters to numbers that float32 cannot hold.
        wide = self.mean is not None and not torch.equal(narrow.to(x.dtype), x)
        with torch.no_grad():
            scores = self.scores(x if wide else narrow)
            decided = self._decide(scores)
            check_finite("action", decided if self.pipeline.kind == "box" else scores, TOO_LARGE)
        action = decided.cpu().numpy()
        return action.reshape((*flat.shape[:-1], *(self.pipeline.action_space.shape or ()))), state

    def explicit(self) -> ExplicitMLP:
        """Return the weights of the network by value, with the observation scale in the first one."""
        return as_explicit(self.network)

    def action_map(self, *, dtype: torch.dtype = torch.float64) -> ActionMap:
        """Return what is shipped as a differentiable map by value, for attacks and certificates.

        Args:
            dtype: Dtype of the result.

        Returns:
            Flat raw observation -> action, or the scores of discrete actions.
        """
        pipeline = self.pipeline
        limits = pipeline.limits()
        low, high = (None, None) if limits is None else limits[:2]
        if limits is not None and pipeline.squash:
            low = limits[0].double()
            high = low + 2.0 * limits[2].double()
        return ActionMap(
            self.explicit().to(device="cpu"),
            pipeline.normalization,
            low,
            high,
            pipeline.squash,
            mean_clip=pipeline.mean_clip,
            kind=pipeline.kind,
            choices=pipeline.choices,
        ).to(dtype=dtype)

    def certificate(self, *, search: bool = False) -> Certificate:
        """Certify the network as it is, from its normalised observation to its output; see `robustnn.bounds`.

        Args:
            search: Whether to search for the tightest bound that LipSDP proves, which takes seconds to minutes.
                Otherwise the multipliers that the construction of the policy gives are used where they prove a bound;
                a policy without them is searched for in any case.

        Returns:
            The certificate.
        """
        network, proof = self.explicit().to(device="cpu"), self.proof
        d_x, d_y = proof.input_scale, proof.output_scale
        own: Certificate | None = None
        if proof.multipliers is not None:
            with contextlib.suppress(CertificateError, InvalidArgumentError):  # the weights are others now
                bound = UpperBound(0.0, proof.multipliers, 0.0)
                own = certify(network, bound=bound, input_scale=d_x, output_scale=d_y)
        if own is not None and not search:
            return own
        found = certify(network, input_scale=d_x, output_scale=d_y)
        return found if own is None or found.bound < own.bound else own

    def bound(self, certificate: Certificate | None = None) -> Bound:
        """Compose the bound from raw observation to action out of a certificate of the network.

        Args:
            certificate: That of this network, from `certificate`; made anew if None.

        Returns:
            The bound with its stages; its digests are those of `action_map`.
        """
        policy_map = self.action_map()
        proved = self.certificate() if certificate is None else certificate
        return self.pipeline.bound(proved, policy_map.network_sha256, policy_map.statistics_sha256)

    def extra_repr(self) -> str:
        """Summarise the pipeline for `repr`."""
        return f"output={self.pipeline.output}, action_space={self.pipeline.action_space}"
