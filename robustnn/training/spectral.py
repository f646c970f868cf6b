r"""Policies whose layers have a bounded spectral norm each: the simplest way to a bound, to compare others with.

$$f(x) = D_y \hat W_L\,\sigma(\dots\sigma(\hat W_0 x + b_0)) + b_L, \qquad
  \hat W_k = \frac{W_k}{\max(1, \|W_k\|_2 / c)}, \qquad c = \gamma^{1/(L+1)}$$

so that the product of the norms is at most $\gamma$ (Miyato et al., ICLR 2018, with the exact norm in the place of
power iteration, and as a constraint: a layer inside its bound is left alone, Gouk et al., Machine Learning 2021).
The norm comes from a singular value decomposition in float64 at every conversion, so the bound holds after every
step of an optimiser, with gradients and without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustnn.errors import NonFiniteError, ShapeError, invalid
from robustnn.nn.bounded import BoundedNet, add_affine_parameters
from robustnn.nn.module import CountedModule
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import is_watched
from robustnn.policies.actor_critic import LBDNActorCriticPolicy
from robustnn.policies.base import LipschitzPolicy
from robustnn.policies.networks import decider_of
from robustnn.policies.off_policy import LBDNSACPolicy, LBDNTD3Policy

__all__ = ["SpectralActorCriticPolicy", "SpectralNet", "SpectralSACPolicy", "SpectralTD3Policy"]

# Gain of the last layer at the start, as SB3 gives it to its actors.
_OUTPUT_GAIN = 0.01


class _Affine(CountedModule):
    """The free parameters of a layer."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, n_in: int, n_out: int, bias: bool, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        add_affine_parameters(self, n_in, n_out, bias, device, dtype)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5.0))  # as nn.Linear does it


class SpectralNet(BoundedNet):
    r"""An ordinary MLP whose layers have spectral norms of at most $c = \gamma^{1/(L+1)}$, hence $\gamma$-Lipschitz.

    Weights inside the bound are used as they are; others are divided by their norm over c. Parameters start as in
    `torch.nn.Linear`.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Widths of the L hidden layers; may be empty.
        out_features: Number of outputs n_out.
        lipschitz: The bound gamma > 0, in units of (output / output_scale) per input.
        activation: Name or torch.nn class from the activation table.
        bias: Whether the layers have biases.
        output_scale: D_y, n_out positive numbers in the units of the outputs; None for ones.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If gamma, a width or the activation is not acceptable.
        ShapeError: If the scale has another number of entries than there are outputs.

    Example:
        >>> round(SpectralNet(3, (32, 32), 1, lipschitz=8.0, activation="tanh").layer_bound, 9)
        2.0
    """

    output_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        lipschitz: float = 1.0,
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        output_scale: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, hidden_features, out_features, lipschitz, activation)
        widths = (self.in_features, *self.hidden_features, self.out_features)
        self.layers = nn.ModuleList(
            _Affine(n_in, n_out, bias, device, dtype) for n_in, n_out in zip(widths, widths[1:], strict=False)
        )
        if output_scale is not None:
            if output_scale.shape != (self.out_features,):
                raise ShapeError(
                    f"output_scale: expected shape ({self.out_features},), got {tuple(output_scale.shape)}. "
                    "Give one positive number per output."
                )
            output_scale = output_scale.to(device=device, dtype=next(self.parameters()).dtype)
        self.register_buffer("output_scale", output_scale)

    @property
    def layer_bound(self) -> float:
        """The bound c of every layer's spectral norm."""
        return self._lipschitz ** (1.0 / len(self.layers))

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        bound = self.layer_bound
        layers = cast(list[_Affine], list(self.layers))
        weights = [_limited(layer.weight, bound, dtype) for layer in layers]
        biases = [None if layer.bias is None else layer.bias.to(dtype) for layer in layers]
        if self.output_scale is not None:
            weights[-1] = weights[-1] * self.output_scale.to(weights[-1].dtype).unsqueeze(-1)
        return ExplicitMLP(tuple(weights), tuple(biases), self.activation)

    @torch.no_grad()
    def spectral_norms(self) -> tuple[float, ...]:
        """Return the spectral norm of every layer as it is used, without the output scale, in float64."""
        explicit = self.explicit()
        weights = [weight.double() for weight in explicit.weights]
        if self.output_scale is not None:
            weights[-1] = weights[-1] / self.output_scale.double().unsqueeze(-1)
        return tuple(float(torch.linalg.matrix_norm(weight, 2)) for weight in weights)

    @torch.no_grad()
    def orthogonalise(self, output_gain: float = _OUTPUT_GAIN) -> None:
        """Start as SB3's actors do: orthogonal matrices of gain sqrt(2), a small last one, zero biases.

        Args:
            output_gain: Norm of the last matrix.
        """
        for k, layer in enumerate(cast(list[_Affine], list(self.layers))):
            last = k == len(self.layers) - 1
            nn.init.orthogonal_(layer.weight, gain=output_gain if last else math.sqrt(2.0))
            if layer.bias is not None:
                layer.bias.zero_()
        self.unfreeze()


def _limited(weight: Tensor, bound: float, dtype: torch.dtype | None) -> Tensor:
    """Return a matrix divided by max(1, sigma / bound), a little less so that rounding does not exceed the bound."""
    exact = weight.double()
    with torch.no_grad():
        if not is_watched() and not math.isfinite(float(exact.sum())) and not bool(exact.isfinite().all()):
            raise NonFiniteError(
                "weight: expected finite entries, got NaN or infinity. Training diverged; load an earlier checkpoint "
                "or lower the learning rate."
            )
        u, _, v_t = torch.linalg.svd(exact, full_matrices=False)
    sigma = u[:, 0] @ exact @ v_t[0]  # its gradient is that of the norm
    # Rounding entry by entry is at most eps/2 times the Frobenius norm, which is at most sqrt(rank) times sigma.
    narrow, wide = min(weight.shape), max(weight.shape)
    margin = torch.finfo(weight.dtype).eps * (2.0 + math.sqrt(narrow))
    margin += torch.finfo(torch.float64).eps * (8.0 + 4.0 * wide)
    factor = (bound * (1.0 - margin) / sigma.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    return (exact * factor).to(dtype or weight.dtype)


class _Spectral(LipschitzPolicy):
    """Puts a `SpectralNet` in the place of the LBDN of a policy class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("trainable_lipschitz"):
            raise invalid(
                "trainable_lipschitz", f"False for {type(self).__name__}", True,
                "Only an LBDN trains its bound: remove it.",
            )  # fmt: skip
        super().__init__(*args, **kwargs)

    def _new_network(self, in_features: int, widths: Sequence[int], *, small_output: bool) -> Any:
        net = SpectralNet(
            in_features,
            tuple(widths),
            self._n_outputs(),
            lipschitz=self._options.lipschitz,
            activation=self.activation_fn,
            output_scale=self._output_scale(),
            device=self.device,
        )
        if small_output:
            scale = 1.0 if net.output_scale is None else float(net.output_scale.max())
            net.orthogonalise(_OUTPUT_GAIN / max(1.0, scale))
        return net

    @property
    def lbdn(self) -> Any:
        """The `SpectralNet` from features to mean action (before clipping or tanh), or logits."""
        return decider_of(self).bounded

    def _attach_penalty(self) -> None:
        """There is no bound to be trained."""


class SpectralActorCriticPolicy(_Spectral, LBDNActorCriticPolicy):
    """Policy of PPO and A2C whose actor is an MLP with spectral norms of at most gamma^(1/layers).

    A control for comparisons with `LBDNActorCriticPolicy`: the same guarantee in the same units, the same options
    (except a trained bound), initial weights as in SB3's MlpPolicy.

    Args:
        *args: See `LBDNActorCriticPolicy`.
        **kwargs: See `LBDNActorCriticPolicy`: `lipschitz` (required), `observation_scale`, `action_scale`,
            `lipschitz_critic`; and the arguments of SB3's `ActorCriticPolicy`.

    Raises:
        InvalidArgumentError: If the bound is to be trained, or an option is not acceptable.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO(SpectralActorCriticPolicy, "Pendulum-v1", policy_kwargs=dict(lipschitz=10.0), device="cpu")
        >>> model.policy.bound().plain
        10.0
    """


class SpectralSACPolicy(_Spectral, LBDNSACPolicy):
    """Policy of SAC whose mean path is an MLP with bounded spectral norms; see `SpectralActorCriticPolicy`."""


class SpectralTD3Policy(_Spectral, LBDNTD3Policy):
    """Policy of TD3 and DDPG whose actor is an MLP with bounded spectral norms; see `SpectralActorCriticPolicy`."""

    def bounded_networks(self) -> Iterator[Any]:
        """Yield the network of the actor and that of its target."""
        yield self.actor.mu[0]
        yield self.actor_target.mu[0]
