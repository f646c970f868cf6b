"""The Lipschitz-bounded deep network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustnn.errors import CheckpointError, check_positive, check_positive_int, invalid
from robustnn.nn.convert import as_explicit, linear_to_direct, mlp_to_direct
from robustnn.nn.init import INITIALISATIONS
from robustnn.nn.module import ExplicitModule, check_floating
from robustnn.nn.sandwich import SandwichLayer
from robustnn.nn.scales import Scale, as_scale, is_valid_scale
from robustnn.params.activations import resolve_activation
from robustnn.params.apply import lbdn_apply
from robustnn.params.direct import LBDNParams
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import psi_limit
from robustnn.params.maps import lbdn_to_explicit

__all__ = ["LBDN"]

Self = TypeVar("Self", bound="LBDN")


class LBDN(ExplicitModule):
    r"""A feed-forward network with a guaranteed Lipschitz bound, for any value of its parameters.

    $$\|D_y^{-1}(f(x) - f(x'))\|_2 \le \gamma \, \|D_x^{-1}(x - x')\|_2 \quad\text{for all } x, x'$$

    with $\gamma$ = `lipschitz` and scales $D_x$, $D_y$ (ones by default), diagonal or invertible matrices. The
    network is a stack of sandwich layers (Wang & Manchester, *Direct Parameterization of Lipschitz-Bounded Deep
    Networks*, ICML 2023), equal in function to an ordinary MLP whose weights satisfy the LipSDP condition; see
    `to_mlp()`. All parameters are free, so any optimiser trains it.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Widths of the hidden layers; an empty sequence gives an affine map.
        out_features: Number of outputs n_out.
        lipschitz: The bound gamma > 0, in units of (output / output_scale) per (input / input_scale).
        activation: Name or torch.nn class, one of `robustnn.params.activations.ACTIVATIONS`.
        bias: Whether the layers have biases.
        input_scale: D_x: n_in positive numbers in the units of the inputs, how large a change of each component
            counts as one; or an invertible matrix (n_in, n_in), which measures inputs as $\|D_x^{-1} x\|_2$. The norm
            $\sqrt{x^T Q x}$ of a positive definite Q is the scale $Q^{-1/2}$, for example
            `torch.linalg.inv(torch.linalg.cholesky(Q).mT)`.
        output_scale: D_y: n_out positive numbers in the units of the outputs, or an invertible matrix.
        trainable_lipschitz: Whether gamma is trained; its logarithm is then the parameter `log_lipschitz`, and
            `lipschitz` is where it starts. See `robustnn.nn.lipschitz_penalty`.
        init: "default" (as published), "balanced" (nearly norm-preserving layers) or "zero_output" (y = 0); see
            `robustnn.nn.init`.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters; torch's default dtype if None.

    Raises:
        InvalidArgumentError: If gamma, a width, a scale or the activation is not acceptable.

    Example:
        >>> net = LBDN(3, (32, 32), 1, lipschitz=5.0, activation="tanh")
        >>> net(torch.zeros(7, 3)).shape, net.lipschitz
        (torch.Size([7, 1]), 5.0)
    """

    input_scale: Tensor | None
    output_scale: Tensor | None
    log_lipschitz: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        lipschitz: float = 1.0,
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        input_scale: Scale | None = None,
        output_scale: Scale | None = None,
        trainable_lipschitz: bool = False,
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.hidden_features = check_widths("hidden_features", hidden_features)
        self.out_features = check_positive_int("out_features", out_features)
        self._lipschitz = check_positive("lipschitz", lipschitz)
        self.activation = resolve_activation(activation).name
        check_floating("dtype", dtype)
        if init not in INITIALISATIONS:
            raise invalid("init", f"one of {', '.join(INITIALISATIONS)}", repr(init), "Choose one of these.")
        widths = (self.in_features, *self.hidden_features, self.out_features)
        self.layers = nn.ModuleList(
            SandwichLayer(
                n_in, n_out, activation=self.activation, output=k == len(widths) - 2,
                bias=bias, device=device, dtype=dtype,
            )
            for k, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False))
        )  # fmt: skip
        for name, scale, size in (
            ("input_scale", input_scale, self.in_features),
            ("output_scale", output_scale, self.out_features),
        ):
            self.register_buffer(name, None if scale is None else as_scale(name, scale, size, device, dtype))
        self.register_parameter("log_lipschitz", None)
        if trainable_lipschitz:
            self.log_lipschitz = nn.Parameter(torch.zeros((), device=device, dtype=dtype))
            self.set_lipschitz(self._lipschitz)
        INITIALISATIONS[init](self)

    @classmethod
    def from_direct(
        cls: type[Self],
        params: LBDNParams,
        activation: str | type[nn.Module] = "relu",
        *,
        trainable_lipschitz: bool = False,
    ) -> Self:
        """Build a network from direct parameters, on their device and in their dtype.

        Args:
            params: Hidden layers and an output layer. If only some layers have a bias, the others get zeros.
            activation: Name or torch.nn class.
            trainable_lipschitz: Whether the bound is trained.

        Returns:
            A network with copies of the parameters.

        Raises:
            InvalidArgumentError: If the layers form no network.
        """
        like = params.layers[-1].weight
        bound = params.lipschitz
        lipschitz = float(bound.detach() if isinstance(bound, Tensor) else bound)
        widths = [layer.weight.shape[-1] for layer in params.layers]
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten at once
            net = cls(
                params.layers[0].weight.shape[0] - widths[0], widths[:-1], widths[-1],
                lipschitz=lipschitz, activation=activation,
                bias=any(layer.bias is not None for layer in params.layers),
                input_scale=params.input_scale, output_scale=params.output_scale,
                trainable_lipschitz=trainable_lipschitz, dtype=like.dtype,
            )  # fmt: skip
        for module, layer in zip(net.layers, params.layers, strict=True):
            for name, parameter in module.named_parameters():
                value = getattr(layer, name)
                if value is None and name == "bias":
                    value = torch.zeros_like(parameter)
                if value is None or value.shape != parameter.shape:
                    got = None if value is None else tuple(value.shape)
                    raise invalid(
                        f"params.layers: {name}",
                        f"shape {tuple(parameter.shape)}",
                        got,
                        "The layers form no network.",
                    )
                with torch.no_grad():
                    parameter.copy_(value)
        return net.to(like.device)

    @classmethod
    def from_mlp(
        cls: type[Self],
        mlp: nn.Module | ExplicitMLP,
        lipschitz: float | None = None,
        *,
        multipliers: Sequence[Tensor] | None = None,
        slack: float = 1.05,
        input_scale: Scale | None = None,
        output_scale: Scale | None = None,
        trainable_lipschitz: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Self:
        r"""Return an LBDN with the function of any ordinary network, ready to be trained on with its bound.

        Without multipliers the bound is the product of the spectral norms, times `slack`; a smaller one needs the
        multipliers that prove it, for example those of a LipSDP computation.

        Args:
            mlp: An `nn.Sequential` of `nn.Linear` and activations, an `MLP`, an `ExplicitMLP`, or an LBDN.
            lipschitz: The bound gamma wanted; the smallest one proved, times `slack`, if None.
            multipliers: Diagonals of $T_0 \dots T_{L-1}$ of a LipSDP certificate for slopes in [0, 1], in the
                form of `robustnn.params.inverse`.
            slack: Factor >= 1; leaves the layers away from the edge, where their gradients are small.
            input_scale: D_x, as in the class; the multipliers are then those of the scaled network.
            output_scale: D_y, as in the class.
            trainable_lipschitz: Whether the bound is trained.
            dtype: Dtype of the parameters; that of the network if None. In float32 the function is reproduced to
                the accuracy of float32.

        Returns:
            The network, on the device of the given one.

        Raises:
            InvalidArgumentError: If the network is of another kind, or the bound is not proved; the message has
                the smallest one that is.

        Example:
            >>> net = LBDN.from_mlp(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
            >>> net.hidden_features, net.activation
            ((8,), 'tanh')
        """
        network = as_explicit(mlp)
        params = mlp_to_direct(network, lipschitz, multipliers, slack, input_scale, output_scale, dtype)
        return cls.from_direct(params, network.activation, trainable_lipschitz=trainable_lipschitz)

    @classmethod
    def from_linear(
        cls: type[Self],
        gain: Sequence[Sequence[float]] | Tensor,
        hidden_features: Sequence[int],
        *,
        lipschitz: float,
        activation: str | type[nn.Module] = "relu",
        region: float = 1.0,
        tolerance: float = 1e-3,
        input_scale: Scale | None = None,
        output_scale: Scale | None = None,
        trainable_lipschitz: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        r"""Return a network that starts as a linear map, for example the gain of a linear-quadratic regulator.

        For relu, leaky_relu, elu, softplus and identity y = K x exactly, up to rounding, while
        $\|D_x^{-1} x\|_2 \le$ `region`; for tanh and sigmoid it holds there with the relative error `tolerance`
        (`robustnn.params.linear`). Units beyond the rank of K start random and without effect on the output.

        Args:
            gain: K, shape (n_out, n_in), in output units per input unit.
            hidden_features: Widths of the hidden layers, each at least the rank of K.
            lipschitz: The bound gamma, at least the norm of K in the weighted norms (times 4 per hidden layer for
                sigmoid).
            activation: Name or torch.nn class.
            region: Radius of the region, in the units of the scaled input.
            tolerance: Relative error allowed in the region for tanh and sigmoid.
            input_scale: D_x, as in the class.
            output_scale: D_y, as in the class.
            trainable_lipschitz: Whether the bound is trained.
            device: Device of the parameters.
            dtype: Floating dtype of the parameters; torch's default dtype if None.

        Returns:
            The network.

        Raises:
            InvalidArgumentError: If the norm of K exceeds the bound, or its rank a hidden width.

        Example:
            >>> net = LBDN.from_linear([[-1.0, -1.7]], (16, 16), lipschitz=5.0, region=2.0, dtype=torch.float64)
            >>> net(torch.tensor([1.0, 0.5], dtype=torch.float64)).detach()
            tensor([-1.8500], dtype=torch.float64)
        """
        params = linear_to_direct(
            gain, check_widths("hidden_features", hidden_features), lipschitz, resolve_activation(activation).name,
            region, tolerance, input_scale, output_scale, dtype,
        )  # fmt: skip
        return cls.from_direct(params, activation, trainable_lipschitz=trainable_lipschitz).to(device)

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound gamma in the weighted norms of the class docstring."""
        if self.log_lipschitz is None:
            return self._lipschitz
        limit = psi_limit(self.log_lipschitz.dtype)
        return math.exp(min(limit, max(-limit, self.log_lipschitz.detach().item())))

    def set_lipschitz(self, lipschitz: float) -> None:
        """Change the bound, or where its training continues; frozen weights are dropped.

        The function changes with the bound: the first and last weight are multiplied by the root of the ratio.

        Args:
            lipschitz: The new bound gamma > 0.

        Raises:
            InvalidArgumentError: If it is not positive, or too large or small for the dtype of a trained bound.
        """
        bound = check_positive("lipschitz", lipschitz)
        self.unfreeze()
        if self.log_lipschitz is None:
            self._lipschitz = bound
            return
        dtype = self.log_lipschitz.dtype
        if abs(math.log(bound)) > psi_limit(dtype):
            limit = math.exp(psi_limit(dtype))
            raise invalid(
                "lipschitz",
                f"a bound within {1 / limit:.0e} and {limit:.0e} in {dtype}",
                bound,
                "Use other units.",
            )
        with torch.no_grad():
            self.log_lipschitz.fill_(math.log(bound))

    def direct(self, dtype: torch.dtype | None = None) -> LBDNParams:
        """Return the free parameters, the bound and the scales by value.

        Args:
            dtype: Cast to this dtype first, if given.

        Returns:
            Tensors that share memory with the module's parameters unless they are cast.
        """

        def cast(scale: Tensor | None) -> Tensor | None:
            return scale if scale is None or dtype is None else scale.to(dtype)

        layers = tuple(layer.direct(dtype) for layer in self.layers)  # type: ignore[operator]
        return LBDNParams(layers, self._bound(dtype), cast(self.input_scale), cast(self.output_scale))

    def _bound(self, dtype: torch.dtype | None) -> float | Tensor:
        """The bound as a number, or, if it is trained, as a function of its parameter."""
        if self.log_lipschitz is None:
            return self._lipschitz
        limit = psi_limit(self.log_lipschitz.dtype)
        return self.log_lipschitz.to(dtype).clamp(-limit, limit).exp()

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        params = self.direct()._replace(lipschitz=self._bound(dtype))
        return lbdn_to_explicit(params, self.activation, dtype=dtype)

    def _evaluate(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            params = self.direct()
            weight = params.layers[0].weight
            if weight.dtype.itemsize >= 4 and not torch.is_autocast_enabled(weight.device.type):
                return lbdn_apply(params, self.activation, x)
        return super()._evaluate(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("input_scale", "output_scale"):
            scale = state_dict.get(prefix + name)
            if isinstance(scale, Tensor) and not is_valid_scale(scale):
                raise CheckpointError(
                    f"state dict: expected positive, finite numbers (or an invertible matrix) in {prefix + name}, got "
                    f"{scale.tolist()}. The checkpoint is damaged or was not written by an LBDN."
                )
        # The extra state has the bound in any case, so a trained bound loads as a fixed one and the reverse.
        key, extra = prefix + "log_lipschitz", prefix + "_extra_state"
        if self.log_lipschitz is None:
            state_dict.pop(key, None)
        elif key not in state_dict and extra in state_dict:
            state_dict[key] = torch.full_like(self.log_lipschitz, math.log(_stored_bound(state_dict[extra])))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_extra_state(self) -> dict[str, float]:
        """Return the bound, so that it travels with the state dict."""
        return {"lipschitz": self.lipschitz}

    def set_extra_state(self, state: Any) -> None:
        """Restore a fixed bound from a state dict (a trained one is a parameter)."""
        bound = _stored_bound(state)
        if self.log_lipschitz is None:
            self._lipschitz = bound

    def extra_repr(self) -> str:
        """Summarise the bound for `repr`."""
        trained = " (trained)" if self.log_lipschitz is not None else ""
        return f"lipschitz={self.lipschitz:g}{trained}, activation={self.activation}"


def _stored_bound(state: Any) -> float:
    try:
        return check_positive("lipschitz", dict(state)["lipschitz"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"state dict: expected the extra state {{'lipschitz': gamma > 0}}, got {state!r}. "
            "The checkpoint is damaged or was not written by an LBDN."
        ) from error


def check_widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    """Return hidden widths as a tuple of positive ints.

    Args:
        name: Name of the argument, for the message.
        widths: A sequence of positive integers.

    Returns:
        The widths.

    Raises:
        InvalidArgumentError: If it is not a sequence of positive integers.
    """
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Sequence):
        raise invalid(name, "a sequence of positive integers", repr(widths), "Pass for example (64, 64).")
    return tuple(check_positive_int(f"{name}[{k}]", width) for k, width in enumerate(widths))
