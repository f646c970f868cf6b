"""Exceptions of robustnn and the checks that raise them.

Every message has four parts: what was checked, what was expected, what came instead, and the fix.
The argument is always named, so that a caller of a long call knows which one to change.
"""

from __future__ import annotations

import math
import operator
from typing import Any

__all__ = [
    "CertificateError",
    "CheckpointError",
    "InvalidArgumentError",
    "NonFiniteError",
    "RobustNNError",
    "ShapeError",
    "UnsupportedSpaceError",
    "check_finite",
    "check_positive",
    "check_positive_int",
    "check_shape",
]


class RobustNNError(Exception):
    """Base class of every error that robustnn raises on purpose."""


class InvalidArgumentError(RobustNNError, ValueError):
    """An argument has a value that the called function cannot accept."""


class ShapeError(InvalidArgumentError):
    """A tensor or array has the wrong shape."""


class NonFiniteError(InvalidArgumentError):
    """A tensor, array or number contains NaN or infinity."""


class UnsupportedSpaceError(InvalidArgumentError):
    """An observation or action space has no Lipschitz guarantee here."""


class CheckpointError(RobustNNError, RuntimeError):
    """A file or folder is corrupted, incomplete, or not one of ours."""


class CertificateError(RobustNNError, RuntimeError):
    """A certificate does not prove what it claims of the network it was checked against."""


def invalid(name: str, expected: str, got: Any, fix: str) -> InvalidArgumentError:
    """Return an `InvalidArgumentError` in the package's four-part form."""
    return InvalidArgumentError(_message(name, expected, got, fix))


def _message(name: str, expected: str, got: Any, fix: str) -> str:
    return f"{name}: expected {expected}, got {got}. {fix}"


def check_positive(name: str, value: Any, fix: str = "Pass a finite number greater than zero.") -> float:
    """Return `value` as a float after checking that it is a finite number greater than zero.

    Args:
        name: Name of the argument, for the message.
        value: A Python or numpy number (booleans are refused).
        fix: Last sentence of the message.

    Returns:
        The value as a Python float.

    Raises:
        InvalidArgumentError: If it is not a number or not greater than zero.
        NonFiniteError: If it is NaN or infinite.
    """
    number = _as_float(name, value, fix)
    if not math.isfinite(number):
        raise NonFiniteError(_message(name, "a finite number > 0", value, fix))
    if number <= 0.0:
        raise InvalidArgumentError(_message(name, "a finite number > 0", value, fix))
    return number


def check_nonnegative(
    name: str, value: Any, fix: str = "Pass a finite number that is zero or greater."
) -> float:
    """Return `value` as a float after checking that it is finite and at least zero.

    Args:
        name: Name of the argument, for the message.
        value: A Python or numpy number (booleans are refused).
        fix: Last sentence of the message.

    Returns:
        The value as a Python float.

    Raises:
        InvalidArgumentError: If it is not a number or below zero.
        NonFiniteError: If it is NaN or infinite.
    """
    number = _as_float(name, value, fix)
    if not math.isfinite(number):
        raise NonFiniteError(_message(name, "a finite number >= 0", value, fix))
    if number < 0.0:
        raise InvalidArgumentError(_message(name, "a finite number >= 0", value, fix))
    return number


def _as_float(name: str, value: Any, fix: str) -> float:
    if isinstance(value, (str, bytes)) or _is_bool(value) or getattr(value, "ndim", 0) != 0:
        raise InvalidArgumentError(_message(name, "a number", repr(value), fix))
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidArgumentError(_message(name, "a number", repr(value), fix)) from error


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def check_positive_int(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int after checking that it is a whole number of at least `minimum`.

    Args:
        name: Name of the argument, for the message.
        value: An integer (booleans and floats are refused).
        minimum: Smallest value accepted.

    Returns:
        The value as a Python int.

    Raises:
        InvalidArgumentError: If it is not an integer or too small.
    """
    fix = f"Pass an integer of at least {minimum}."
    try:
        if _is_bool(value):
            raise TypeError("a boolean is no count")
        number = operator.index(value)
    except TypeError as error:
        raise InvalidArgumentError(_message(name, f"an integer >= {minimum}", repr(value), fix)) from error
    if number < minimum:
        raise InvalidArgumentError(_message(name, f"an integer >= {minimum}", number, fix))
    return number


def check_finite(name: str, value: Any, fix: str = "Remove NaN and infinite entries first.") -> None:
    """Raise `NonFiniteError` if an array or tensor contains NaN or infinity.

    Args:
        name: Name of the argument, for the message.
        value: A numpy array or torch tensor of any shape.
        fix: Last sentence of the message.

    Raises:
        NonFiniteError: If any entry is NaN or infinite.
    """
    if hasattr(value, "isfinite"):  # torch.Tensor
        finite = value.detach().isfinite()
    else:
        import numpy as np

        finite = np.isfinite(value)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        total = math.prod(finite.shape)
        raise NonFiniteError(_message(name, "finite entries only", f"{bad} of {total} NaN or infinite", fix))


def check_shape(name: str, value: Any, expected: str, ok: bool, fix: str = "") -> None:
    """Raise `ShapeError` unless `ok`, saying which shape was expected and which one came.

    Args:
        name: Name of the argument, for the message.
        value: Anything with a `.shape`.
        expected: The expected shape in words, for example `"(..., 3)"`.
        ok: Result of the caller's test.
        fix: Last sentence of the message.

    Raises:
        ShapeError: If `ok` is false.
    """
    if not ok:
        fix = fix or f"Reshape or slice {name} to {expected}."
        raise ShapeError(_message(name, f"shape {expected}", tuple(value.shape), fix))
