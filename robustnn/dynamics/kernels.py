r"""Compiled recurrences of a state-space model on the CPU, one thread; needs numba (extra `sysid`).

`forward` runs $x_{t+1} = x_t\,[\text{carry}] + \sum_s \beta_s k_s$ with the stages
$k_s = A X_s + r_t + W_L \sigma(\dots \sigma(W_0 X_s + v_t))$, $X_s = x_t + \alpha_s k_{s-1}$: one stage in discrete
time, four in the classical Runge-Kutta method. `backward` runs its adjoint and keeps the adjoints of all
pre-activations, from which weight gradients are matrix products over all times.

Widths are padded to the largest one, m, in arrays only: what lies beyond a layer's width is never read. Reductions
may be reordered and multiplications fused with additions; nothing assumes that numbers are finite.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

__all__ = ["CODES", "backward", "forward"]


def _jit(*flags: str, cache: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles at the first call, with the given liberties in arithmetic."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        # A division by zero gives infinity, as in numpy: a check would keep loops from being vectorised.
        options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": set(flags)}
        plain = inspect.unwrap(function)  # a run-time type checker may have wrapped it
        try:
            return njit(cache=cache, **options)(plain)
        except RuntimeError:  # neither the package's folder nor the user's cache may be written
            return njit(**options)(plain)

    return decorate


# Nothing but fused multiply-adds: the argument reduction of exp relies on the order of its operations.
_exact = _jit("contract")
_reordered = _jit("contract", "reassoc", "nsz")
# The two that Python calls; their machine code, that of all they call included, is kept on disk where it can be.
_kept = _jit("contract", "reassoc", "nsz", cache=True)

# Activations by number, so that one compiled kernel serves all of them.
CODES = {
    name: code
    for code, name in enumerate(("identity", "tanh", "relu", "leaky_relu", "sigmoid", "elu", "softplus"))
}
_IDENTITY, _TANH, _RELU, _LEAKY_RELU, _SIGMOID, _ELU, _SOFTPLUS = range(7)


def _split_exp(r):
    """Return 2^k and exp(f) - 1 with r = k log 2 + f, |f| <= log(2) / 2; for |r| <= 87.3 (float64: 708)."""
    raise NotImplementedError


# Adding 1.5 * 2^52 rounds to an integer and leaves it in the lowest bits, also of NaN without undefined conversion.
_ROUND_64, _INVERSE_64 = np.float64(6755399441055744.0), np.float64(1.0 / math.log(2.0))
_HIGH_64, _LOW_64 = np.float64(6.93147180369123816490e-01), np.float64(1.90821492927058770002e-10)
_TAYLOR_64 = [np.float64(1.0 / math.factorial(k)) for k in range(14)]
_P2, _P3, _P4, _P5, _P6, _P7, _P8, _P9, _P10, _P11, _P12, _P13 = _TAYLOR_64[2:]
_ROUND_32, _INVERSE_32 = np.float32(12582912.0), np.float32(1.0 / math.log(2.0))
_HIGH_32, _LOW_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
_Q2, _Q3, _Q4, _Q5, _Q6, _Q7 = (np.float32(1.0 / math.factorial(k)) for k in range(2, 8))


@_exact
def _split_exp_64(r):
    shifted = np.float64(r * _INVERSE_64 + _ROUND_64)
    k = shifted - _ROUND_64
    f = (r - k * _HIGH_64) - k * _LOW_64
    scale = np.int64((shifted.view(np.int64) << 52) + (1023 << 52)).view(np.float64)
    p = ((((_P13 * f + _P12) * f + _P11) * f + _P10) * f + _P9) * f + _P8
    p = (((((p * f + _P7) * f + _P6) * f + _P5) * f + _P4) * f + _P3) * f + _P2
    return scale, f + f * f * p


@_exact
def _split_exp_32(r):
    shifted = np.float32(r * _INVERSE_32 + _ROUND_32)
    k = shifted - _ROUND_32
    f = (r - k * _HIGH_32) - k * _LOW_32
    scale = np.int32((shifted.view(np.int32) << 23) + (127 << 23)).view(np.float32)
    p = ((((_Q7 * f + _Q6) * f + _Q5) * f + _Q4) * f + _Q3) * f + _Q2
    return scale, f + f * f * p


@overload(_split_exp)
def _choose_split_exp(r):
    if r == types.float64:
        return lambda r: _split_exp_64(r)
    return lambda r: _split_exp_32(r)


@_exact
def _activate(code, z):
    """Apply the activation in place, shape (n,)."""
    real = z.dtype.type
    zero, one, two, limit = real(0), real(1), real(2), real(44)
    if code == _TANH:
        for i in range(len(z)):
            r = two * abs(z[i])
            scale, p = _split_exp(limit if r > limit else r)
            e = scale * p + (scale - one)
            z[i] = math.copysign(e / (e + two), z[i])
    elif code == _RELU:
        for i in range(len(z)):
            z[i] = zero if z[i] < zero else z[i]
    elif code == _LEAKY_RELU:
        slope = real(0.01)
        for i in range(len(z)):
            z[i] = slope * z[i] if z[i] < zero else z[i]
    elif code == _SIGMOID:
        limit = real(-0.6931 * np.finfo(z.dtype).minexp)
        for i in range(len(z)):
            r = -abs(z[i])
            scale, p = _split_exp(-limit if r < -limit else r)
            e = scale * p + scale
            z[i] = (e if z[i] < zero else one) / (one + e)
    elif code == _ELU:
        for i in range(len(z)):
            r = zero if z[i] > zero else z[i]
            scale, p = _split_exp(-limit if r < -limit else r)
            e = scale * p + (scale - one)
            z[i] = z[i] if z[i] > zero else e
    elif code == _SOFTPLUS:
        for i in range(len(z)):
            z[i] = (z[i] if z[i] > zero else zero) + math.log1p(math.exp(-abs(z[i])))


@_exact
def _times_slope(code, d, z):
    """Multiply d in place by the activation's slope where its value is z, both of shape (n,)."""
    real = z.dtype.type
    zero, one = real(0), real(1)
    if code == _TANH:
        for i in range(len(z)):
            d[i] *= one - z[i] * z[i]
    elif code == _RELU:
        for i in range(len(z)):
            d[i] = zero if z[i] <= zero else d[i]
    elif code == _LEAKY_RELU:
        slope = real(0.01)
        for i in range(len(z)):
            d[i] = d[i] if z[i] > zero else slope * d[i]
    elif code == _SIGMOID:
        for i in range(len(z)):
            d[i] *= z[i] * (one - z[i])
    elif code == _ELU:
        for i in range(len(z)):
            d[i] *= one if z[i] > zero else one + z[i]
    elif code == _SOFTPLUS:
        limit = real(44)
        for i in range(len(z)):
            scale, p = _split_exp(-limit if z[i] > limit else -z[i])
            d[i] *= -(scale * p + (scale - one))


@_reordered
def _add_product(out, rows, weight, n_in, n_out):
    """Add rows @ weight to out: shapes (B, n_in), (n_in, n_out), (B, n_out). Fast where n_out is large."""
    blocks = n_in // 4
    for q in range(len(rows) // 4):  # four rows at a time share what is read of the weight
        a, b, c, d = rows[4 * q], rows[4 * q + 1], rows[4 * q + 2], rows[4 * q + 3]
        to_a, to_b, to_c, to_d = out[4 * q], out[4 * q + 1], out[4 * q + 2], out[4 * q + 3]
        for block in range(blocks):
            j = 4 * block
            a0, a1, a2, a3 = a[j], a[j + 1], a[j + 2], a[j + 3]
            b0, b1, b2, b3 = b[j], b[j + 1], b[j + 2], b[j + 3]
            c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
            d0, d1, d2, d3 = d[j], d[j + 1], d[j + 2], d[j + 3]
            row0, row1, row2, row3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
            for i in range(n_out):
                w0, w1, w2, w3 = row0[i], row1[i], row2[i], row3[i]
                to_a[i] += (a0 * w0 + a1 * w1) + (a2 * w2 + a3 * w3)
                to_b[i] += (b0 * w0 + b1 * w1) + (b2 * w2 + b3 * w3)
                to_c[i] += (c0 * w0 + c1 * w1) + (c2 * w2 + c3 * w3)
                to_d[i] += (d0 * w0 + d1 * w1) + (d2 * w2 + d3 * w3)
        for j in range(4 * blocks, n_in):
            row, a0, b0, c0, d0 = weight[j], a[j], b[j], c[j], d[j]
            for i in range(n_out):
                to_a[i] += a0 * row[i]
                to_b[i] += b0 * row[i]
                to_c[i] += c0 * row[i]
                to_d[i] += d0 * row[i]
    for q in range(len(rows) - len(rows) % 4, len(rows)):
        a, to_a = rows[q], out[q]
        for block in range(blocks):
            j = 4 * block
            a0, a1, a2, a3 = a[j], a[j + 1], a[j + 2], a[j + 3]
            row0, row1, row2, row3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
            for i in range(n_out):
                to_a[i] += (a0 * row0[i] + a1 * row1[i]) + (a2 * row2[i] + a3 * row3[i])
        for j in range(4 * blocks, n_in):
            row, a0 = weight[j], a[j]
            for i in range(n_out):
                to_a[i] += a0 * row[i]


@_reordered
def _add_product_narrow(out, rows, weight, n_in, n_out):
    """Add rows @ weight.T to out: shapes (B, n_in), (n_out, n_in), (B, n_out). Fast where n_out is small."""
    for q in range(len(rows)):
        row, to = rows[q], out[q]
        for block in range(n_out // 4):
            i = 4 * block
            row0, row1, row2, row3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
            s0, s1, s2, s3 = to[i], to[i + 1], to[i + 2], to[i + 3]
            for j in range(n_in):
                value = row[j]
                s0 += value * row0[j]
                s1 += value * row1[j]
                s2 += value * row2[j]
                s3 += value * row3[j]
            to[i], to[i + 1], to[i + 2], to[i + 3] = s0, s1, s2, s3
        for i in range(n_out - n_out % 4, n_out):
            row0, s0 = weight[i], to[i]
            for j in range(n_in):
                s0 += row[j] * row0[j]
            to[i] = s0


@_kept
def forward(x, stages, z, r, v, a, first, inner_t, inner_bias, last, widths, code, alpha, beta, carry):
    """Fill the states, and what the adjoint needs, from x[0].

    Args:
        x: States, shape (T + 1, B, n_x); x[1:] may be the memory of r if there is one stage.
        stages: States of the stages, shape (T, S, B, n_x); may be the memory of x[:-1] if there is one stage.
        z: Activations, shape (L, T, S, B, m); z[0] may be the memory of v if there is one stage.
        r: What inputs add to the rate, shape (T, B, n_x).
        v: What inputs and bias add in the first layer, shape (T, B, m).
        a: Shape (n_x, n_x).
        first: Transposed first weight, states only, shape (n_x, m).
        inner_t: Transposed weights between hidden layers, shape (L - 1, m, m).
        inner_bias: Shape (L - 1, m).
        last: Shape (n_x, m).
        widths: Of the L hidden layers, integers.
        code: Of the activation.
        alpha: Weight of the last rate in the state of each stage, shape (S,).
        beta: Weight of each rate in the next state, shape (S,).
        carry: Whether the state itself is part of the next one.
    """
    n_steps, n_batch, n_x = r.shape
    n_layers = len(widths)
    rate = np.empty((n_batch, n_x), x.dtype)
    for t in range(n_steps):
        for s in range(len(alpha)):
            state = stages[t, s]
            for b in range(n_batch):
                for i in range(n_x):
                    value = x[t, b, i]
                    state[b, i] = value + alpha[s] * rate[b, i] if s > 0 else value
            for b in range(n_batch):
                for i in range(n_x):
                    rate[b, i] = r[t, b, i]
            _add_product_narrow(rate, state, a, n_x, n_x)
            for k in range(n_layers):
                layer, width = z[k, t, s], widths[k]
                for b in range(n_batch):
                    offset = v[t, b] if k == 0 else inner_bias[k - 1]
                    row = layer[b]
                    for i in range(width):
                        row[i] = offset[i]
                if k == 0:
                    _add_product(layer, state, first, n_x, width)
                else:
                    _add_product(layer, z[k - 1, t, s], inner_t[k - 1], widths[k - 1], width)
                if width == layer.shape[1]:
                    _activate(code, layer.reshape(layer.size))
                else:
                    for b in range(n_batch):
                        _activate(code, layer[b][:width])
            if n_layers > 0:
                _add_product_narrow(rate, z[n_layers - 1, t, s], last, widths[n_layers - 1], n_x)
            for b in range(n_batch):
                for i in range(n_x):
                    value = beta[s] * rate[b, i]
                    if s > 0:
                        value += x[t + 1, b, i]
                    elif carry:
                        value += x[t, b, i]
                    x[t + 1, b, i] = value


@_kept
def backward(g, rates, d, z, a_t, first, inner, last, widths, code, alpha, beta, carry, start, stop):
    """Turn the cotangents of the states into their adjoints, in place, with those of rates and layers; from the end.

    Args:
        g: Shape (T + 1, B, n_x).
        rates: Adjoints of the rates, shape (T, S, B, n_x); may be the memory of g[1:] if there is one stage.
        d: Adjoints of what the activations act on from `start` on, shape (L, at least stop - start, S, B, m).
        z: Activations, as `forward` left them.
        a_t: A transposed.
        first: As in `forward`.
        inner: Weights between hidden layers, shape (L - 1, m, m).
        last: As in `forward`.
        widths: As in `forward`.
        code: As in `forward`.
        alpha: As in `forward`.
        beta: As in `forward`.
        carry: As in `forward`.
        start: First of the times that are done, in reverse.
        stop: The time after the last of them.
    """
    _, n_stages, n_batch, n_x = rates.shape
    n_layers = len(widths)
    state = np.empty((n_batch, n_x), g.dtype)  # adjoint of a stage's state
    zero = g.dtype.type(0)
    for t in range(stop - 1, start - 1, -1):
        for s in range(n_stages - 1, -1, -1):
            rate = rates[t, s]
            for b in range(n_batch):
                for i in range(n_x):
                    value = beta[s] * g[t + 1, b, i]
                    if s < n_stages - 1:
                        value += alpha[s + 1] * state[b, i]
                    rate[b, i] = value
            for b in range(n_batch):
                for i in range(n_x):
                    state[b, i] = zero
            _add_product_narrow(state, rate, a_t, n_x, n_x)
            for k in range(n_layers - 1, -1, -1):
                layer, width = d[k, t - start, s], widths[k]
                for b in range(n_batch):
                    row = layer[b]
                    for i in range(width):
                        row[i] = zero
                if k == n_layers - 1:
                    _add_product(layer, rate, last, n_x, width)
                else:
                    _add_product(layer, d[k + 1, t - start, s], inner[k], widths[k + 1], width)
                activation = z[k, t, s]
                if width == layer.shape[1]:
                    _times_slope(code, layer.reshape(layer.size), activation.reshape(layer.size))
                else:
                    for b in range(n_batch):
                        _times_slope(code, layer[b][:width], activation[b][:width])
            if n_layers > 0:
                _add_product_narrow(state, d[0, t - start, s], first, widths[0], n_x)
            for b in range(n_batch):
                for i in range(n_x):
                    value = state[b, i]
                    if s == n_stages - 1 and carry:
                        value += g[t + 1, b, i]
                    g[t, b, i] += value
