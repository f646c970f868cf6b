r"""Sensitivity tubes: how far two simulations of a model can drift apart, from above and from below.

With the constants of a `ModelCertificate`,

$$\|\delta x_t\|_P \le \rho^t\, \|\delta x_0\|_P
    + \min\Bigl( L_u \sum_{s<t} \rho^{t-1-s}\, \|\delta u_s\|,
                 \bigl( \mu \sum_{s<t} \lambda^{t-1-s}\, \|\delta u_s\|^2 \bigr)^{1/2} \Bigr), \qquad
  |\delta y_{t,i}| \le L_{yx,i} \|\delta x_t\|_P + L_{yu,i} \|\delta u_t\|,$$

for all pairs of states and inputs: first the initial state is changed, then the inputs. For input changes of constant
size d the sums are $d\, (1 - \rho^t) / (1 - \rho)$ and $d^2 (1 - \lambda^t) / (1 - \lambda)$. The lower bounds are
pairs of simulations found by gradient ascent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustnn.dynamics.certificate import ModelCertificate, certify_model
from robustnn.dynamics.certified_maps import CertifiableModel, by_value
from robustnn.dynamics.simulate import simulate
from robustnn.errors import ShapeError, check_finite, check_nonnegative, check_positive_int, invalid

__all__ = ["AttackedTube", "Tube", "attack_tube", "sensitivity_tube"]

Array = NDArray[np.float64]
# Pairs stay inside the admissible set by this share of its size, for the rounding of sums.
_INSIDE = 1e-9


@dataclass(frozen=True, eq=False)
class Tube:
    """Certified upper bounds of the difference of two simulations, for t = 0 ... k.

    Attributes:
        x: Of the states, in the metric of the certificate, shape (k + 1,).
        y: Of every output, in its unit, shape (k + 1, n_y).
        dx0: Largest difference of the initial states, in the metric.
        du: Largest difference of the inputs at every sample, l2 in the certificate's `input_scale`, shape (k + 1,).
        certificate: Of the model.
    """

    x: Array
    y: Array
    dx0: float
    du: Array
    certificate: ModelCertificate

    def __len__(self) -> int:
        """Return the number of samples, k + 1."""
        return len(self.x)


@dataclass(frozen=True, eq=False)
class AttackedTube:
    """Largest differences of simulations that were found, for t = 0 ... k: lower bounds of any tube.

    Attributes:
        x: Of the states, in the metric, shape (k + 1,).
        y: Of every output, in its unit, shape (k + 1, n_y).
        pairs: Number of pairs of simulations at the end of the search.
    """

    x: Array
    y: Array
    pairs: int


def sensitivity_tube(
    model: CertifiableModel | ModelCertificate, k: int, *, dx0: float = 0.0, du: ArrayLike = 0.0
) -> Tube:
    """Return how far two simulations can be apart after each of k steps, whatever the states and inputs.

    Args:
        model: The model, or its certificate.
        k: Number of steps.
        dx0: Largest difference of the initial states, in the metric of the certificate (`certificate.norm`).
        du: Largest difference of the inputs at a sample, l2 in the certificate's `input_scale` (the units of the
            inputs by default); a number, or one per sample, shape (k + 1,).

    Returns:
        The tube.

    Raises:
        InvalidArgumentError: If a size is negative.
        ShapeError: If du has another number of samples.

    Example:
        >>> sensitivity_tube(certificate, 50, du=0.1).y.shape  # doctest: +SKIP
        (51, 1)
    """
    certificate = model if isinstance(model, ModelCertificate) else certify_model(model)
    k = check_positive_int("k", k, minimum=0)
    dx0 = check_nonnegative("dx0", dx0)
    sizes = np.array(du, dtype=np.float64)
    check_finite("du", sizes)
    if sizes.ndim and sizes.shape != (k + 1,):
        raise ShapeError(
            f"du: expected a number or shape ({k + 1},), got {sizes.shape}. Give one per sample."
        )
    sizes = np.broadcast_to(sizes, (k + 1,)).copy()
    if (sizes < 0.0).any():
        raise invalid("du", "numbers >= 0", float(sizes.min()), "Give the sizes of changes.")
    free, forced, squared = np.empty(k + 1), np.zeros(k + 1), np.zeros(k + 1)
    free[0] = dx0
    reach = certificate.proofs.get("reach")
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(k):
            free[t + 1] = _above(certificate.rate, free[t], 0.0, 0.0)
            forced[t + 1] = _above(certificate.rate, forced[t], certificate.lipschitz_u, sizes[t])
            if reach is not None:
                drive = np.nextafter(reach.bound * sizes[t], np.inf) if sizes[t] else 0.0
                squared[t + 1] = _above(reach.decay, squared[t], drive, drive)
        if reach is not None:
            forced = np.minimum(forced, np.where(squared > 0.0, np.nextafter(np.sqrt(squared), np.inf), 0.0))
        x = np.where((free > 0.0) & (forced > 0.0), np.nextafter(free + forced, np.inf), free + forced)
        y = np.array(
            [
                [_above(a, x[t], b, sizes[t]) for a, b in zip(*_output_constants(certificate), strict=True)]
                for t in range(k + 1)
            ]
        )
    return Tube(x, y, dx0, sizes, certificate)


def attack_tube(
    model: CertifiableModel,
    tube: Tube,
    *,
    pairs: int = 256,
    iterations: int = 30,
    u: ArrayLike | None = None,
    x0: ArrayLike | None = None,
    seed: int = 0,
) -> AttackedTube:
    """Search pairs of simulations that drift as far apart as possible within the changes that a tube allows.

    Every pair has a time and an output of its own (or the states) at which its difference is driven up: the changes by
    steps to the boundary of what is allowed along the gradient, the common states and inputs by normalised ascent.

    Args:
        model: The model of the tube.
        tube: From `sensitivity_tube`.
        pairs: Number of pairs.
        iterations: Steps of the search.
        u: Inputs around which all pairs lie at first, shape (k + 1, n_u), in the units of the data; random if None.
        x0: States at which all pairs start at first, shape (n_x,); random if None.
        seed: Of the random choices.

    Returns:
        The largest differences found at every time, of all pairs and all steps of the search.

    Raises:
        CertificateError: If the tube is that of another model.
        ShapeError: If u or x0 has another shape.
    """
    check_positive_int("pairs", pairs)
    check_positive_int("iterations", iterations, minimum=0)
    tube.certificate.check_model(model)
    explicit, _ = by_value(model)
    certificate, n = tube.certificate, len(tube)
    scale_u = torch.from_numpy(model.channels.scaling.u_scale)
    unit = torch.from_numpy(certificate.input_scale) / scale_u  # changes in input_scale to scaled inputs
    y_scale = torch.from_numpy(model.channels.scaling.y_scale)
    factor = torch.linalg.cholesky(torch.from_numpy(certificate.metric))
    sizes = torch.from_numpy(tube.du).unsqueeze(-1) * (1.0 - _INSIDE)
    radius = tube.dx0 * (1.0 - _INSIDE)
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    centre_u, centre_x = random(pairs, n, explicit.n_u), random(pairs, explicit.n_x)
    if u is not None:
        given = torch.from_numpy(model.channels.scaled_u(u))
        if given.shape != centre_u.shape[1:]:
            raise ShapeError(f"u: expected shape {tuple(centre_u.shape[1:])}, got {tuple(given.shape)}.")
        centre_u = given.expand_as(centre_u).clone()
    if x0 is not None:
        start = torch.as_tensor(np.asarray(x0, dtype=np.float64))
        if start.shape != (explicit.n_x,):
            raise ShapeError(f"x0: expected shape ({explicit.n_x},), got {tuple(start.shape)}.")
        centre_x = start.expand_as(centre_x).clone()
    change_u, change_x = random(pairs, n, explicit.n_u), random(pairs, explicit.n_x)
    best_x, best_y = np.zeros(n), np.zeros((n, explicit.n_y))
    which = torch.arange(pairs)
    goal = which % (explicit.n_y + 1)
    when = n - 1 - (which // (explicit.n_y + 1)) % n
    for step in range(iterations + 1):
        leaves = [
            tensor.detach().requires_grad_()
            for tensor in (
                centre_x,
                centre_u,
                _to_ball(change_x, radius),
                _to_spheres(change_u, sizes),
            )
        ]
        x, v, dx, dv = leaves
        one = simulate(explicit, x, v)
        # Row vectors: dx in whitened coordinates, |dx L^-1| the Euclidean norm of L^T times the state difference.
        other = simulate(explicit, x + _unwhiten(dx, factor), v + dv * unit)
        by_state = ((other.x[:, :-1] - one.x[:, :-1]) @ factor).norm(dim=-1)
        by_output = ((other.y - one.y) * y_scale).abs()
        with np.errstate(invalid="ignore"):
            best_x = np.maximum(best_x, np.nan_to_num(by_state.detach().amax(0).numpy(), nan=0.0))
            best_y = np.maximum(best_y, np.nan_to_num(by_output.detach().amax(0).numpy(), nan=0.0))
        if step == iterations:
            break
        reached = torch.cat((by_output, by_state.unsqueeze(-1)), dim=-1)[which, when, goal]
        gradients = torch.autograd.grad(reached.sum(), leaves)
        pull_x, pull_u, push_x, push_u = (torch.nan_to_num(one, 0.0, 0.0, 0.0) for one in gradients)
        length = 0.5 * 0.9**step
        centre_x = x.detach() + length * _directions(pull_x)
        centre_u = v.detach() + length * math.sqrt(n) * _directions(pull_u.flatten(1)).view_as(pull_u)
        change_x, change_u = _kept(push_x, change_x), _kept(push_u, change_u)
    return AttackedTube(best_x, best_y, pairs)


def _output_constants(certificate: ModelCertificate) -> tuple[list[float], list[float]]:
    return certificate.output_by_state.tolist(), certificate.output_by_input.tolist()


def _above(a: float, x: float, b: float, u: float) -> float:
    """Return a x + b u rounded upwards; zero times infinity is zero."""
    first = 0.0 if a == 0.0 or x == 0.0 else np.nextafter(a * x, np.inf)
    second = 0.0 if b == 0.0 or u == 0.0 else np.nextafter(b * u, np.inf)
    total = first + second
    return float(total if first == 0.0 or second == 0.0 else np.nextafter(total, np.inf))


def _directions(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def _kept(push: Tensor, before: Tensor) -> Tensor:
    """The gradient as the new direction; the old one where the change has no effect."""
    return torch.where(push.abs().sum(-1, keepdim=True) > 0.0, push, before)


def _to_ball(change: Tensor, radius: float) -> Tensor:
    """Changes of the state in whitened coordinates, of the norm that is allowed."""
    return radius * _directions(change)


def _to_spheres(change: Tensor, sizes: Tensor) -> Tensor:
    return sizes * _directions(change)


def _unwhiten(whitened: Tensor, factor: Tensor) -> Tensor:
    """State differences d with L^T d as given."""
    return torch.linalg.solve_triangular(factor.mT, whitened.mT, upper=True).mT
