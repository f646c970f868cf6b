r"""Simulation of a state-space model: all states and outputs, differentiable in everything it depends on.

Only the recurrence is sequential. Inputs enter it through one matrix product over all times before it, weight gradients
are matrix products over all times after its adjoint, and the outputs are evaluated for all times at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from robustnn.dynamics.state_space import ExplicitStateSpace
from robustnn.errors import check_shape, invalid
from robustnn.params.fused import is_watched

__all__ = ["Simulation", "simulate"]

# Numbers of the adjoints that a piece of the backward pass keeps, so that they fit into a cache of one or two MB.
_CHUNK = 2**18
_METHODS = ("auto", "loop", "compiled")


class Simulation(NamedTuple):
    """What a simulation returns.

    Attributes:
        y: Outputs, shape (B, T, n_y); y[:, t] belongs to x[:, t] and u[:, t].
        x: States, shape (B, T + 1, n_x), from the initial one to that after the last input.
    """

    y: Tensor
    x: Tensor


def simulate(model: ExplicitStateSpace, x0: Tensor, u: Tensor, *, method: str = "auto") -> Simulation:
    r"""Simulate B records of T samples: $x_{t+1} = F(x_t, u_t)$, $y_t = G(x_t, u_t)$.

    Results of the methods differ by rounding. States that overflow become infinite or NaN, without an error.

    Args:
        model: The model, in any units, in which x0 and u are then given.
        x0: Initial states, shape (B, n_x).
        u: Inputs, shape (B, T, n_u).
        method: "loop" is a loop of torch operations, on any device, differentiable any number of times and under
            transforms. "compiled" runs the recurrence and its adjoint through numba (extra `sysid`) on one CPU thread,
            for float32 and float64, differentiable once; the first call of a dtype compiles, forward and backward,
            for some five seconds where the machine code is not on disk yet. "auto" is "compiled" wherever that serves.

    Returns:
        Outputs and states.

    Raises:
        ShapeError: If x0 or u does not fit the model.
        InvalidArgumentError: If a dtype differs, the method is unknown, or "compiled" cannot serve here.

    Example:
        >>> one = torch.ones(1, 1)
        >>> simulate(ExplicitStateSpace(0.5 * one, one, one, 0 * one), torch.zeros(1, 1), torch.ones(1, 3, 1)).y
        tensor([[[0.0000],
                 [1.0000],
                 [1.5000]]])
    """
    if method not in _METHODS:
        raise invalid("method", f"one of {', '.join(_METHODS)}", repr(method), "Choose one of these.")
    _check(model, x0, u)
    if method != "loop":
        obstacle = _obstacle(model, x0, u)
        if obstacle is None:
            return _compiled(model, x0, u)
        if method == "compiled":
            raise invalid("method", f"'auto' or 'loop' {obstacle[0]}", "'compiled'", obstacle[1])
    states = [x0]
    for inputs in u.unbind(1):
        states.append(model.step(states[-1], inputs))
    x = torch.stack(states, dim=1)
    return Simulation(model.output(x[:, :-1], u), x)


def _check(model: ExplicitStateSpace, x0: Tensor, u: Tensor) -> None:
    for name, value in (("x0", x0), ("u", u)):
        if not isinstance(value, Tensor):
            raise invalid(
                name, "a torch.Tensor", type(value).__name__, "Convert it with torch.as_tensor(...)."
            )
        if value.dtype != model.a.dtype:
            raise invalid(
                name, f"dtype {model.a.dtype}, that of the model", value.dtype, "Convert it with .to(...)."
            )
    check_shape("x0", x0, f"(B, {model.n_x})", x0.ndim == 2 and x0.shape[1] == model.n_x)
    fits = u.ndim == 3 and u.shape[2] == model.n_u and u.shape[0] == x0.shape[0]
    check_shape("u", u, f"({len(x0)}, T, {model.n_u}), records first", fits)


def _obstacle(model: ExplicitStateSpace, x0: Tensor, u: Tensor) -> tuple[str, str] | None:
    """Where the compiled recurrence cannot serve, and what to do about it; None where it can."""
    if is_watched() or _forward_mode():
        return (
            "under torch.func, forward-mode differentiation, torch.compile and tracing",
            "Pass method='loop'.",
        )
    tensors = [x0, u, model.a, model.b]
    if model.f is not None:
        tensors += [*model.f.weights, *(bias for bias in model.f.biases if bias is not None)]
        if model.f.weights[0].ndim != 2:
            return "for a stack of networks", "Simulate its members one by one."
    if any(type(tensor) not in (Tensor, Parameter) for tensor in tensors):
        return "for subclasses of torch.Tensor", "Pass method='loop'."
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "on other devices than the CPU", "Pass method='loop', or move model, x0 and u."
    if x0.dtype not in (torch.float32, torch.float64) or any(tensor.dtype != x0.dtype for tensor in tensors):
        return "for other dtypes than float32 or float64 throughout", "Convert model, x0 and u."
    if torch.is_autocast_enabled("cpu"):
        return "under autocast", "Pass method='loop', or switch autocast off."
    if min(x0.numel(), u.shape[1]) == 0:
        return "where there is nothing to simulate", "Pass method='auto'."
    codes = _codes()
    if codes is None:
        return "without numba", "Install robustnn[sysid], or pass method='loop'."
    if model.f is not None and model.f.activation not in codes:
        return f"with the activation {model.f.activation}", f"Pass method='loop', or use {', '.join(codes)}."
    return None


@lru_cache(maxsize=1)
def _codes() -> dict[str, int] | None:
    """The activations that are compiled; None where numba is not installed."""
    try:
        from robustnn.dynamics.kernels import CODES
    except ImportError:
        return None
    return CODES


def _forward_mode() -> bool:
    return getattr(forward_ad, "_current_level", -1) >= 0


def _compiled(model: ExplicitStateSpace, x0: Tensor, u: Tensor) -> Simulation:
    a, b, bias = model.a, model.b, None
    network: tuple[Tensor | None, ...] = ()
    activation = "identity"
    if model.f is not None:
        activation, bias = model.f.activation, model.f.biases[-1]
        network = (*model.f.weights, *model.f.biases[:-1])
        if len(model.f.weights) == 1:  # a linear network is part of A and B
            weight = model.f.weights[0]
            a, b, network = a + weight[:, : model.n_x], b + weight[:, model.n_x :], ()
    inputs = u.transpose(0, 1).contiguous()
    x = _Recurrence.apply(activation, model.step_size, x0, inputs, a, b, bias, *network)
    return Simulation(model.output(x[:-1], inputs).transpose(0, 1), x.transpose(0, 1))


class _Recurrence(torch.autograd.Function):
    """The states, as one node with a hand-written adjoint."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: str,
        step_size: float | None,
        x0: Tensor,
        u: Tensor,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        *network: Tensor | None,
    ) -> Tensor:
        """Return the states, shape (T + 1, B, n_x).

        Args:
            ctx: Context of the node.
            activation: Key of the activation table.
            step_size: As in the model.
            x0: Shape (B, n_x).
            u: Shape (T, B, n_u), contiguous.
            a: Shape (n_x, n_x).
            b: Shape (n_x, n_u).
            bias: Constant part of the rate, shape (n_x,), or None.
            *network: Nothing, or W_0 ... W_L and b_0 ... b_{L-1} with L > 0.
        """
        from robustnn.dynamics import kernels

        (n_steps, n_batch, _), n_x = u.shape, x0.shape[1]
        net, scheme = _Packed.of(network, n_x, x0), _scheme(step_size, x0)
        code, n_stages, m = kernels.CODES[activation], len(scheme[0]), net.last.shape[-1]
        x = x0.new_empty(n_steps + 1, n_batch, n_x)
        x[0] = x0
        z = x0.new_empty(len(net.widths), n_steps, n_stages, n_batch, m)
        if n_stages == 1:  # what the inputs contribute lies where the result will be
            stages, r = x[:-1].unsqueeze(1), x[1:]
        else:
            stages, r = x0.new_empty(n_steps, n_stages, n_batch, n_x), x0.new_empty(n_steps, n_batch, n_x)
        v = z[0, :, 0] if n_stages == 1 and network else x0.new_empty(n_steps, n_batch, m)
        _affine(u, b, bias, r)
        if network:
            _affine(u, net.weights[0][:, n_x:], net.biases[0], v[..., : net.widths[0]])
        inner_t = net.inner.mT.contiguous()
        arrays = (x, stages, z, r, v, a.contiguous(), net.first, inner_t, net.inner_bias, net.last)
        kernels.forward(*map(_array, arrays), net.widths, code, *scheme)
        ctx.save_for_backward(u, a, b, x, stages if n_stages > 1 else None, z, *network)
        ctx.settings = net, code, scheme
        return x

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what `forward` was given."""
        from robustnn.dynamics import kernels

        if torch.is_grad_enabled() or is_watched() or _is_batched(grad_x):
            raise invalid(
                "method", "'loop' where gradients are differentiated again (create_graph=True) or batched",
                "the compiled method, which 'auto' takes", "Pass method='loop' to simulate.",
            )  # fmt: skip
        u, a, b, x, stages, z, *network = ctx.saved_tensors
        net, code, scheme = ctx.settings
        stages = x[:-1].unsqueeze(1) if stages is None else stages
        (n_steps, n_stages, _, n_x), widths, at_biases = stages.shape, net.widths, 5 + len(net.weights)
        g = grad_x.clone(memory_format=torch.contiguous_format)
        rates = g[1:].unsqueeze(1) if n_stages == 1 else torch.empty_like(stages)
        needed = ctx.needs_input_grad[2:]
        grads: list[Any] = [None, torch.empty_like(u), None, None, None]
        grads += [torch.zeros_like(t) if need else None for t, need in zip(network, needed[5:], strict=True)]

        # Some steps at a time, so that their adjoints are still in the processor's cache when they are multiplied.
        chunk = min(n_steps, max(1, _CHUNK // max(1, z[:, 0].numel())))
        d = z.new_empty(len(z), chunk, *z.shape[2:])
        arrays = (g, rates, d, z, a.mT.contiguous(), net.first, net.inner, net.last)
        arguments = (*map(_array, arrays), widths, code, *scheme)
        for stop in range(n_steps, 0, -chunk):
            start = max(0, stop - chunk)
            kernels.backward(*arguments, start, stop)
            part = slice(start, stop)
            layers = [_rows(d[k, : stop - start])[:, :width] for k, width in enumerate(widths)]
            if layers:
                per_step = layers[0] if n_stages == 1 else _rows(d[0, : stop - start].sum(1))[:, : widths[0]]
            if layers and needed[1]:
                torch.mm(per_step, network[0][:, n_x:], out=_rows(grads[1][part]))
            if layers and needed[5]:
                # Transposed: BLAS is several times slower with a few columns than with a few rows.
                grads[5][:, :n_x] += (_rows(stages[part]).mT @ layers[0]).mT
                grads[5][:, n_x:] += (_rows(u[part]).mT @ per_step).mT
            for k, layer in enumerate(layers):
                if k > 0 and needed[5 + k]:
                    grads[5 + k].addmm_(layer.mT, _rows(z[k - 1, part])[:, : widths[k - 1]])
                if needed[at_biases + k]:
                    grads[at_biases + k] += layer.sum(0)

        by_stage = _rows(rates)
        by_step = by_stage if n_stages == 1 else _rows(rates.sum(1))
        if needed[0]:
            grads[0] = g[0]
        if needed[1]:
            grads[1] = torch.addmm(_rows(grads[1]), by_step, b, beta=1 if network else 0).view_as(u)
        if needed[2]:
            grads[2] = by_stage.mT @ _rows(stages)
        if needed[3]:
            grads[3] = by_step.mT @ _rows(u)
        if needed[4]:
            grads[4] = by_stage.sum(0)
        if network and needed[at_biases - 1]:
            grads[at_biases - 1] = by_stage.mT @ _rows(z[-1])[:, : widths[-1]]
        return (None, None, *(grad if need else None for grad, need in zip(grads, needed, strict=True)))


class _Packed(NamedTuple):
    """A network as the kernels read it, widths padded to the largest one, m.

    Attributes:
        weights: W_0 ... W_L, or nothing.
        biases: b_0 ... b_{L-1}.
        widths: Of the L hidden layers.
        first: Transposed part of W_0 that states are multiplied by, shape (n_x, m).
        inner: W_1 ... W_{L-1}, shape (L - 1, m, m).
        inner_bias: Shape (L - 1, m).
        last: W_L, shape (n_x, m).
    """

    weights: Sequence[Any]
    biases: Sequence[Any]
    widths: np.ndarray
    first: Tensor
    inner: Tensor
    inner_bias: Tensor
    last: Tensor

    @classmethod
    def of(cls, network: Sequence[Tensor | None], n_x: int, like: Tensor) -> _Packed:
        """Return the network of n_x states with tensors like a given one."""
        n_weights = (len(network) + 1) // 2
        weights: Sequence[Any] = network[:n_weights]
        biases: Sequence[Any] = network[n_weights:]
        widths = np.array([len(weight) for weight in weights[:-1]], dtype=np.int64)
        m = int(widths.max(initial=0))
        ends = like.new_zeros(2, n_x, m)
        inner = like.new_zeros(max(len(widths) - 1, 0), m, m)
        inner_bias = like.new_zeros(len(inner), m)
        if n_weights:
            ends[0, :, : widths[0]] = weights[0][:, :n_x].mT
            ends[1, :, : widths[-1]] = weights[-1]
        for k, (weight, bias) in enumerate(zip(weights[1:-1], biases[1:], strict=True)):
            inner[k, : weight.shape[0], : weight.shape[1]] = weight
            if bias is not None:
                inner_bias[k, : len(bias)] = bias
        return cls(weights, biases, widths, ends[0], inner, inner_bias, ends[1])


def _scheme(step_size: float | None, like: Tensor) -> tuple[np.ndarray, np.ndarray, bool]:
    """Weights of the rates in the stages' states and in the next state, and whether the state is part of that."""
    dtype = _array(like).dtype
    if step_size is None:
        return np.zeros(1, dtype), np.ones(1, dtype), False
    h = step_size
    return np.array([0.0, 0.5 * h, 0.5 * h, h], dtype), np.array([h / 6, h / 3, h / 3, h / 6], dtype), True


def _affine(u: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write u @ weight.T + bias, row by row of the last axes, into the memory of `out`."""
    into = out.view(-1, out.shape[-1])
    if bias is None:
        torch.mm(_rows(u), weight.mT, out=into)
    else:
        torch.addmm(bias, _rows(u), weight.mT, out=into)


def _rows(values: Tensor) -> Tensor:
    return values.flatten(0, -2)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().numpy()


# Private in torch: whether a tensor is that of the older kind of vmap, which `is_grads_batched=True` uses.
_is_batched: Callable[[Tensor], bool] = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", lambda _: False
)
