"""Validation error against the bound: how much of a guarantee do the data allow?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustnn.dynamics.data import Dataset
from robustnn.dynamics.fit import FitResult, fit
from robustnn.dynamics.models import LipschitzStateSpace
from robustnn.errors import check_nonnegative, check_positive, invalid

__all__ = ["GammaPath", "gamma_path"]


@dataclass(frozen=True, eq=False)
class GammaPath:
    """Fits at rising bounds.

    Attributes:
        bounds: $L_x$ of every fit, rising.
        errors: Their validation errors, as in `validation_error`.
        models: The models.
        results: What `fit` returned, of the better start.
        elbow: Index of the smallest bound whose error is within the tolerance of the least one.
    """

    bounds: tuple[float, ...]
    errors: tuple[float, ...]
    models: tuple[LipschitzStateSpace, ...]
    results: tuple[FitResult, ...]
    elbow: int


def gamma_path(
    model: LipschitzStateSpace,
    train: Dataset,
    val: Dataset | None = None,
    *,
    bounds: Sequence[float],
    tolerance: float = 0.05,
    **options: Any,
) -> GammaPath:
    """Fit a model at several bounds of its state map, each anew and from where the one below ended.

    A model that has one bound has any larger one, so the function is kept when the bound is raised, and the validation
    error falls along the path, or stays. A fit from there alone would not do: a model at the edge of its bound has
    small gradients.

    Args:
        model: Gives everything but the bound; it is not changed.
        train: Training data.
        val: Validation data; None as in `fit`.
        bounds: Values of $L_x$, in any order.
        tolerance: By how much, relative to the least error, the error at the elbow may be larger.
        **options: Arguments of `fit` but `checkpoint`; `time_budget` is that of each of the two fits at a bound.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If there are no bounds, one is repeated, or as in `fit`.

    Example:
        >>> path = gamma_path(model, train, bounds=[0.9, 0.95, 0.99])  # doctest: +SKIP
        >>> path.bounds[path.elbow]  # doctest: +SKIP
        0.95
    """
    values = sorted(check_positive("bounds", bound) for bound in bounds)
    if not values or len(set(values)) < len(values):
        raise invalid("bounds", "at least one value, each once", values, "List the values of L_x to try.")
    allowed = check_nonnegative("tolerance", tolerance)
    for name in ("warm", "checkpoint"):
        if options.get(name):
            raise invalid(name, "no value", options[name], "The path makes its own starts, of several fits.")
    models: list[LipschitzStateSpace] = []
    results: list[FitResult] = []
    for value in values:
        one = copy.deepcopy(model)
        one.set_lipschitz_x(value)
        found = [fit(one, train, val, **options)]
        if models:
            raised = copy.deepcopy(models[-1])
            raised.raise_lipschitz_x(value)
            found.append(fit(raised, train, val, **{**options, "starts": 1, "warm": True}))
        best = min(found, key=lambda result: result.validation)
        assert isinstance(best.model, LipschitzStateSpace)
        models.append(best.model)
        results.append(best)
    errors = [result.validation for result in results]
    limit = min(errors) * (1.0 + allowed)
    elbow = next(k for k, error in enumerate(errors) if error <= limit)
    return GammaPath(tuple(values), tuple(errors), tuple(models), tuple(results), elbow)
