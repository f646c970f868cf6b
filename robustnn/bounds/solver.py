"""The multipliers from an interior-point solver, as a check of the solver-free method."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from robustnn.bounds.network import Chain
from robustnn.errors import RobustNNError, invalid

__all__ = ["solve_multipliers"]

# cvxpy's name of each solver of semidefinite programs that may be asked for.
_SOLVERS = {"clarabel": "CLARABEL", "scs": "SCS"}


def solve_multipliers(chain: Chain, solver: str) -> tuple[Tensor, ...]:
    r"""Minimise $\gamma^2$ subject to the LipSDP condition by cvxpy.

    Slopes and weights enter as in `robustnn.bounds.lmi`, with the output eliminated. The solver's
    answer is no proof: its multipliers must be put through `certified_bound`.

    Args:
        chain: The network, without a batch of regions.
        solver: "clarabel" or "scs".

    Returns:
        One tensor (n_k,) of positive numbers per hidden layer.

    Raises:
        InvalidArgumentError: If the solver is another one.
        RobustNNError: If cvxpy is not installed, or the solver found no answer.
    """
    if solver not in _SOLVERS:
        raise invalid(
            "solver", f"one of {', '.join(_SOLVERS)}, or None", repr(solver), "None needs no solver."
        )
    cvxpy = _import_cvxpy(solver)
    weights = [weight.cpu().numpy() for weight in chain.weights]
    if len(weights) == 1:
        return ()
    # The optimum is of the order of the product of the norms; a solver wants it near one.
    norms = [max(float(np.linalg.norm(weight, 2)), 1e-100) for weight in weights]
    weights = [weight / norm for weight, norm in zip(weights, norms, strict=True)]
    size = weights[0].shape[1] + sum(chain.widths)
    unknowns = cvxpy.Variable(1 + sum(chain.widths), nonneg=True)
    terms, constant = _condition(chain, weights)
    matrix = cvxpy.reshape(terms @ unknowns + constant, (size, size), order="C")
    problem = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), [matrix >> 0])
    try:
        problem.solve(solver=_SOLVERS[solver])
    except cvxpy.SolverError as error:
        raise RobustNNError(
            f"solver: expected {solver} to find an optimum, got: {error}. Use solver=None."
        ) from error
    if unknowns.value is None:
        raise RobustNNError(
            f"solver: expected {solver} to find an optimum, got {problem.status}. Use solver=None."
        )
    values = np.split(unknowns.value[1:], np.cumsum(chain.widths)[:-1])
    result = []
    for k, value in enumerate(values):
        scale = float(np.prod(np.square(norms[k + 1 :])))
        t = torch.as_tensor(np.maximum(value, 1e-9 * max(float(value.max()), 1e-100))).to(chain.weights[0])
        result.append(scale * t * (chain.beta[k] - chain.alpha[k]))
    return tuple(result)


def _condition(
    chain: Chain, weights: Sequence[NDArray[np.float64]]
) -> tuple[sparse.csc_array, NDArray[np.float64]]:
    """Coefficients of gamma^2 and every multiplier, and the constant, of the flattened symmetric matrix."""
    sizes = [weights[0].shape[1], *chain.widths]
    places = [slice(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]
    select = np.eye(sum(sizes))
    output = weights[-1] @ select[places[-1]]
    columns = [sparse.csc_array((select[places[0]].T @ select[places[0]]).reshape(-1, 1))]
    for k in range(len(chain.widths)):
        alpha, beta = (slopes[k].cpu().numpy()[:, None] for slopes in (chain.alpha, chain.beta))
        z, v = select[places[k + 1]], weights[k] @ select[places[k]]
        for below, above in zip(z - alpha * v, beta * v - z, strict=True):
            cross = np.outer(below, above)
            columns.append(sparse.csc_array(-(cross + cross.T).reshape(-1, 1)))
    return sparse.hstack(columns, format="csc"), -(output.T @ output).reshape(-1)


def _import_cvxpy(solver: str) -> ModuleType:
    try:
        importlib.import_module(solver)
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise RobustNNError(
            f"solver: expected cvxpy and {solver} to be installed, got: {error}. "
            "Install the extra: pip install 'robustnn[certify]', or use solver=None, which needs neither."
        ) from error
