"""The few array operations of the hand-written passes, on torch tensors or on numpy views of them.

Small networks on the CPU spend most of their time on the overhead of single operations, of which numpy has a third
of torch's. The arithmetic of `fused` and `apply` is written once and takes one of the two namespaces below; both work
on the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from robustnn.linalg import accretive_inverse, lapack_inverse
from robustnn.params.activations import ACTIVATIONS

__all__ = ["LARGEST_PRODUCT", "TORCH", "Array", "Namespace", "namespace_for"]

Array = Any  # a Tensor or an np.ndarray

# OpenBLAS, which numpy calls, runs products of up to so many multiplications on one thread.
LARGEST_PRODUCT = 64**3
# From this width on, Y^T Y is computed by blocks: five eighths of the work at twice this width.
_GRAM_SPLIT = 512


@runtime_checkable
class Namespace(Protocol):
    """What the passes need beside operators, slices, `.T` and methods that tensors and arrays share."""

    def of(self, tensor: Tensor, dtype: torch.dtype) -> Array:
        """The array of a tensor without graph, on its memory if it has the dtype."""

    def tensor(self, array: Array) -> Tensor:
        """The tensor on the memory of an array."""

    def mm(self, a: Array, b: Array) -> Array:
        """A B."""

    def addmm_(self, c: Array, a: Array, b: Array) -> Array:
        """Add A B to C in place, and return it."""

    def submm(self, c: Array, a: Array, b: Array) -> Array:
        """C - A B; C is not used again."""

    def transposed(self, a: Array) -> Array:
        """A contiguous copy of the transpose."""

    def subtract(self, a: Array, b: Array, *, out: Array) -> Array:
        """A - B, written to an array that may be B."""

    def add_gram_(self, s: Array, y: Array) -> None:
        """Add Y^T Y to S in place."""

    def add_to_diagonal_(self, a: Array, values: Array) -> None:
        """Add a number or a vector to the diagonal in place."""

    def inverse(self, s: Array) -> Array:
        """Inverse of a matrix with S + S^T >= 2I."""

    def less_half(self, a: Array, b: Array) -> Array:
        """A - B / 2."""

    def affine(self, a: Array, row: Array, bias: Array) -> Array:
        """A diag(row) + bias in every row."""

    def difference(self, a: Array, b: Array, c: Array, d: Array) -> Array:
        """A * B - C * D, entry by entry."""

    def stack_rows(self, a: Array, b: Array) -> Array:
        """A on top of B."""

    def column_sums(self, a: Array) -> Array:
        """Sums over the first axis."""

    def row_sums(self, a: Array) -> Array:
        """Sums over the last axis."""

    def exp(self, a: Array) -> Array:
        """Exponential."""

    def norms(self, weights: Sequence[Array]) -> Array:
        """Frobenius norm of each matrix, shape (L,)."""

    def inner(self, a: Sequence[Array], b: Sequence[Array]) -> Array:
        """Sum of the entries of A * B for each pair, shape (L,)."""

    def scale_add_(self, a: Array, factor: Array, b: Array, c: Array) -> None:
        """Replace A by factor A + c B."""

    def quiet(self) -> AbstractContextManager[Any]:
        """A context in which overflow and NaN give no warning, as in torch."""

    def activation(self, name: str) -> Callable[[Array], Array]:
        """Function of the table of activations."""

    def pull_back(self, name: str) -> Callable[[Array, Array], Array]:
        """Cotangent of the activation's input, from that of its output and the output itself."""


class TorchArrays:
    """Tensors themselves, on any device."""

    mm = staticmethod(torch.mm)
    subtract = staticmethod(lambda a, b, *, out: torch.sub(a, b, out=out))
    exp = staticmethod(torch.exp)
    less_half = staticmethod(lambda a, b: torch.sub(a, b, alpha=0.5))
    stack_rows = staticmethod(lambda a, b: torch.cat((a, b)))
    column_sums = staticmethod(lambda a: a.sum(0))
    row_sums = staticmethod(lambda a: a.sum(-1))
    quiet = staticmethod(nullcontext)
    activation = staticmethod(lambda name: ACTIVATIONS[name].function)
    pull_back = staticmethod(lambda name: _PULL_BACK[name])

    @staticmethod
    def of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype)

    @staticmethod
    def tensor(array: Tensor) -> Tensor:
        return array

    @staticmethod
    def addmm_(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return c.addmm_(a, b)

    @staticmethod
    def submm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(c, a, b, alpha=-1.0)

    @staticmethod
    def transposed(a: Tensor) -> Tensor:
        # To copy a transposed matrix first is four times as fast as to subtract it.
        return a.mT.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def add_gram_(s: Tensor, y: Tensor) -> None:
        """In blocks, of which those above the diagonal are copied."""
        n = y.shape[-1]
        if n < _GRAM_SPLIT:
            s.addmm_(y.mT, y)
            return
        left, right = y[:, : n // 2], y[:, n // 2 :]
        TorchArrays.add_gram_(s[: n // 2, : n // 2], left)
        TorchArrays.add_gram_(s[n // 2 :, n // 2 :], right)
        off_diagonal = right.mT @ left
        s[n // 2 :, : n // 2] += off_diagonal
        s[: n // 2, n // 2 :] += off_diagonal.mT.contiguous()

    @staticmethod
    def add_to_diagonal_(a: Tensor, values: Tensor | float) -> None:
        a.diagonal().add_(values)

    @staticmethod
    def affine(a: Tensor, row: Tensor, bias: Tensor) -> Tensor:
        return torch.addcmul(bias, a, row)

    @staticmethod
    def difference(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return (a * b).addcmul_(c, d, value=-1.0)

    @staticmethod
    def inverse(s: Tensor) -> Tensor:
        return accretive_inverse(s, use_lapack=s.device.type == "cpu")

    @staticmethod
    def norms(weights: Sequence[Tensor]) -> Tensor:
        # By rows first: one sum of a million float32 squares is off by 4e-5.
        rows = (torch.linalg.vector_norm(weight, dim=-1) for weight in weights)
        return torch.stack([torch.linalg.vector_norm(row) for row in rows])

    @staticmethod
    def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        return torch.stack([(g * w).sum() for g, w in zip(a, b, strict=True)])

    @staticmethod
    def scale_add_(a: Tensor, factor: Tensor, b: Tensor, c: Tensor) -> None:
        a.mul_(factor).addcmul_(b, c)


class NumpyArrays:
    """Views of small tensors in the main memory, float32 or float64."""

    mm = staticmethod(np.dot)
    subtract = staticmethod(lambda a, b, *, out: np.subtract(a, b, out=out))
    exp = staticmethod(np.exp)
    tensor = staticmethod(torch.from_numpy)
    transposed = staticmethod(lambda a: a.T.copy())
    stack_rows = staticmethod(lambda a, b: np.concatenate((a, b)))
    inverse = staticmethod(lapack_inverse)
    quiet = staticmethod(lambda: np.errstate(all="ignore"))
    activation = staticmethod(
        lambda name: np.tanh if name == "tanh" else _on_views(ACTIVATIONS[name].function)
    )
    pull_back = staticmethod(lambda name: _tanh_back if name == "tanh" else _on_views(_PULL_BACK[name]))

    @staticmethod
    def of(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
        array = tensor.numpy(force=True)
        return array if tensor.dtype is dtype else array.astype(_DTYPES[dtype])

    @staticmethod
    def addmm_(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        c += np.dot(a, b)
        return c

    @staticmethod
    def submm(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        c -= np.dot(a, b)
        return c

    @staticmethod
    def add_gram_(s: np.ndarray, y: np.ndarray) -> None:
        s += np.dot(y.T, y)

    @staticmethod
    def add_to_diagonal_(a: np.ndarray, values: np.ndarray | float) -> None:
        a.reshape(-1)[:: len(a) + 1] += values

    @staticmethod
    def affine(a: np.ndarray, row: np.ndarray, bias: np.ndarray) -> np.ndarray:
        result = a * row
        result += bias
        return result

    @staticmethod
    def difference(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
        result = a * b
        result -= c * d
        return result

    @staticmethod
    def less_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        half = b * -0.5
        half += a
        return half

    @staticmethod
    def column_sums(a: np.ndarray) -> np.ndarray:
        return np.dot(_ones(len(a), a.dtype.char), a)  # a sixth of the time of a.sum(0)

    @staticmethod
    def row_sums(a: np.ndarray) -> np.ndarray:
        return np.dot(a, _ones(a.shape[1], a.dtype.char))

    @staticmethod
    def norms(weights: Sequence[np.ndarray]) -> np.ndarray:
        flat = [weight.reshape(-1) for weight in weights]
        return np.array([math.sqrt(np.dot(w, w)) for w in flat], weights[0].dtype)

    @staticmethod
    def inner(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(a, b, strict=True)
        return np.array([np.dot(g.reshape(-1), w.reshape(-1)) for g, w in pairs], a[0].dtype)

    @staticmethod
    def scale_add_(a: np.ndarray, factor: Any, b: np.ndarray, c: Any) -> None:
        a *= factor
        a += b * c


def namespace_for(tensors: Sequence[Tensor], largest_product: int) -> Namespace:
    """Return the faster namespace for tensors of one dtype.

    Args:
        tensors: All that the arithmetic starts from.
        largest_product: Multiplications in the largest product of two matrices.

    Returns:
        `NumpyArrays` for small products of plain tensors on the CPU, else `TorchArrays`.
    """
    if largest_product > LARGEST_PRODUCT or tensors[0].dtype not in _DTYPES:
        return TORCH
    plain = all(type(t) in _PLAIN and t.is_cpu and t.is_contiguous() for t in tensors)
    return _NUMPY if plain else TORCH


TORCH: Namespace = TorchArrays()
_NUMPY: Namespace = NumpyArrays()
_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
_PLAIN = (Tensor, nn.Parameter)

# The cotangent of the activation's input, from that of its output and the output itself.
_PULL_BACK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elu": lambda g, z: g * (z.clamp(max=0.0) + 1.0),
    "identity": lambda g, z: g,
    "leaky_relu": lambda g, z: torch.ops.aten.leaky_relu_backward(g, z, 0.01, True),
    "relu": lambda g, z: torch.ops.aten.threshold_backward(g, z, 0.0),
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "softplus": lambda g, z: g * -torch.expm1(-z),
    "tanh": torch.ops.aten.tanh_backward,
}


@lru_cache(maxsize=64)
def _ones(n: int, kind: str) -> np.ndarray:
    ones = np.ones(n, kind)
    ones.flags.writeable = False
    return ones


def _on_views(function: Callable[..., Tensor]) -> Callable[..., np.ndarray]:
    """A function of tensors as one of arrays."""
    return lambda *arrays: function(*map(torch.from_numpy, arrays)).numpy()


def _tanh_back(g: np.ndarray, z: np.ndarray) -> np.ndarray:
    slope = z * z
    np.subtract(1.0, slope, out=slope)
    slope *= g
    return slope


# The usual ones, where numpy is faster than torch on a view.
_NUMPY_ACTIVATION: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda v: np.maximum(v, np.zeros_like(v)),
    "tanh": np.tanh,
}
_NUMPY_PULL_BACK: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "relu": lambda g, z: g * (z > 0.0),
    "tanh": _tanh_back,
}
