r"""Prediction bands with a stated probability, by split conformal prediction on calibration data.

A window of n measured samples gives the state $X_s$ at the sample after it. From consecutive windows of calibration
data come the one-step defects $w_s = \|X_{s+1} - F(X_s, u_{s+n})\|_P$ of the states and the one-step errors
$v_s = |y_{s+n} - G(X_s, u_{s+n})|$ of the outputs. By the certified constants of the model, without any assumption on
the system, the error j samples after the window satisfies

$$|e_j| \le v_{s+j-1} + L_{yx} \sum_{i=0}^{j-2} \rho^{\,j-2-i}\, w_{s+i}.$$

"certified" bounds each of these j terms by its quantile at level $1 - (1 - c) / j$ (Bonferroni), so the band for all
horizons needs nothing but one-step statistics; "direct" takes the quantile of $|e_j|$ itself.

The quantile of N scores at level q is the $\lceil (N + 1) q \rceil$-th smallest, with which a new score is covered with
probability at least q if it is exchangeable with those of the calibration (Vovk, Gammerman & Shafer, *Algorithmic
Learning in a Random World*). That probability is one over calibrations, too: given one calibration, the coverage of the
r-th smallest of independent scores has the distribution Beta(r, N + 1 - r). With a confidence, r is the smallest for
which that coverage is at least q with this probability (Vovk, *Conditional validity of inductive conformal predictors*,
ACML 2012). Scores of neighbouring windows of a time series are dependent, so only every `stride`-th counts; neither the
dependence that is left nor a drift is covered by the stated probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, binomtest

from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.certificate import ModelCertificate, certify_model
from robustnn.dynamics.data import Dataset, Experiment
from robustnn.dynamics.simulate import simulate
from robustnn.dynamics.state_space import ExplicitStateSpace
from robustnn.dynamics.validate import check_dt
from robustnn.errors import ShapeError, check_positive, check_positive_int, invalid

__all__ = ["Band", "BandCoverage", "band_coverage", "prediction_band"]

Array = NDArray[np.float64]
_METHODS = ("certified", "direct")


@dataclass(frozen=True, eq=False)
class Band:
    """Half-widths around the prediction from a window of measured samples.

    Attributes:
        half_width: Shape (k, n_y), in the units of the outputs; row j - 1 is for j samples after the window.
        coverage: Stated probability, of every horizon and output by itself.
        method: "certified" or "direct".
        n_scores: Number of calibration windows.
        window: Samples from which a state is estimated.
        stride: Samples between calibration windows.
    """

    half_width: Array
    coverage: float
    method: str
    n_scores: int
    window: int
    stride: int

    def around(self, predicted: ArrayLike) -> tuple[Array, Array]:
        """Return lower and upper edges.

        Args:
            predicted: Predictions 1 ... k samples after the window, shape (..., k, n_y).

        Raises:
            ShapeError: If the shape is another one.
        """
        centre = np.asarray(predicted, dtype=np.float64)
        if centre.shape[-2:] != self.half_width.shape:
            raise ShapeError(
                f"predicted: expected shape (..., {', '.join(map(str, self.half_width.shape))}), got {centre.shape}. "
                "Give all horizons of the band."
            )
        return centre - self.half_width, centre + self.half_width


class BandCoverage(NamedTuple):
    """How often measured outputs lie inside a band.

    Attributes:
        share: Shape (k, n_y), of every horizon and output.
        low: Lower end of the Clopper-Pearson interval of the share, shape (k, n_y).
        high: Upper end.
        n: Number of windows.
    """

    share: Array
    low: Array
    high: Array
    n: int


def prediction_band(
    model: StateSpaceModel,
    calibration: Dataset,
    k: int,
    coverage: float = 0.9,
    *,
    method: str = "certified",
    certificate: ModelCertificate | None = None,
    window: int | None = None,
    stride: int | None = None,
    confidence: float | None = 0.9,
) -> Band:
    """Return a band that contains each of the next k outputs with a stated probability.

    Args:
        model: The model.
        calibration: Data that no decision about the model has used.
        k: Largest number of samples ahead.
        coverage: Probability for every horizon and output by itself, in (0, 1).
        method: "certified" or "direct"; see the head of this file.
        certificate: Of the model, for "certified"; made if None.
        window: Samples from which the state is estimated; None for `calibration.n_init`.
        stride: Samples between calibration windows; None for k, so that predicted samples do not overlap.
        confidence: Probability over calibrations with which the coverage is at least the stated one; None for the
            coverage on average over calibrations, a slightly narrower band.

    Returns:
        The band.

    Raises:
        InvalidArgumentError: If an argument is not acceptable, or there are too few windows for the probability.
        CertificateError: If the certificate is that of another model.
        ShapeError: If an experiment is too short.

    Example:
        >>> band = prediction_band(model, data, 10, window=20)          # doctest: +SKIP
        >>> band_coverage(band, model, held_out).share.shape            # doctest: +SKIP
        (10, 1)
    """
    k = check_positive_int("k", k)
    if not 0.0 < check_positive("coverage", coverage) < 1.0:
        raise invalid("coverage", "a probability in (0, 1)", coverage, "Use 0.9.")
    if method not in _METHODS:
        raise invalid("method", f"one of {', '.join(_METHODS)}", repr(method), "Choose one of these.")
    if confidence is not None and not 0.0 < check_positive("confidence", confidence) < 1.0:
        raise invalid("confidence", "a probability in (0, 1), or None", confidence, "Use 0.9.")
    check_dt(model, calibration)
    n = _window_length(calibration, window)
    stride = k if stride is None else check_positive_int("stride", stride)
    if method == "direct":
        scores = np.concatenate([np.abs(_errors(model, one, n, k, stride)) for one in calibration])
        half = _quantile(scores, coverage, confidence)
        return Band(half, coverage, method, len(scores), n, stride)
    if certificate is None:
        certificate = certify_model(model)
    certificate.check_model(model)
    found = [_one_step(model, one, n, stride, certificate) for one in calibration]
    defects, errors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    half = np.empty((k, len(certificate.output_scale)))
    for j in reversed(range(1, k + 1)):
        level = 1.0 - (1.0 - coverage) / j
        # Two quantiles have to be right at once where defects enter.
        sure = None if confidence is None else 1.0 - (1.0 - confidence) / min(j, 2)
        half[j - 1] = _quantile(errors, level, sure)
        if j > 1:
            powers = np.power(certificate.rate, np.arange(j - 1)).sum()
            half[j - 1] += certificate.output_by_state * (powers * _quantile(defects, level, sure))
    return Band(half, coverage, method, len(errors), n, stride)


def band_coverage(
    band: Band, model: StateSpaceModel, data: Dataset, *, stride: int | None = None, confidence: float = 0.95
) -> BandCoverage:
    """Return how often held-out outputs lie inside a band, with the binomial uncertainty of that share.

    Args:
        band: From `prediction_band`.
        model: Its model.
        data: Data used neither for the model nor for the calibration.
        stride: Samples between windows; None for that of the band. Only independent windows have a binomial count.
        confidence: Of the interval.

    Returns:
        The shares and their intervals.
    """
    check_dt(model, data)
    stride = band.stride if stride is None else check_positive_int("stride", stride)
    k = len(band.half_width)
    errors = np.concatenate([np.abs(_errors(model, one, band.window, k, stride)) for one in data])
    inside = (errors <= band.half_width).sum(axis=0)
    low, high = np.empty(inside.shape), np.empty(inside.shape)
    for index, count in np.ndenumerate(inside):
        interval = binomtest(int(count), len(errors)).proportion_ci(confidence)
        low[index], high[index] = interval.low, interval.high
    return BandCoverage(inside / len(errors), low, high, len(errors))


def _errors(model: StateSpaceModel, one: Experiment, n: int, k: int, stride: int) -> Array:
    """Measured less predicted outputs after windows of n samples, shape (windows, k, n_y)."""
    starts = _starts(one, n, k, stride)
    explicit = _explicit(model)
    states = _states_after(model, explicit, one, starts, n)
    ahead = starts[:, None] + n + np.arange(k)
    inputs = torch.from_numpy(model.channels.scaled_u(one.u[ahead]))
    with torch.no_grad():
        predicted = simulate(explicit, states, inputs).y.numpy()
    return one.y[ahead] - model.channels.physical_y(predicted)


def _one_step(
    model: StateSpaceModel, one: Experiment, n: int, stride: int, certificate: ModelCertificate
) -> tuple[Array, Array]:
    """State defects in the metric, shape (windows,), and absolute output errors, shape (windows, n_y)."""
    starts = _starts(one, n, 1, stride)
    explicit = _explicit(model)
    first = _states_after(model, explicit, one, starts, n)
    second = _states_after(model, explicit, one, starts + 1, n)
    inputs = torch.from_numpy(model.channels.scaled_u(one.u[starts + n]))
    with torch.no_grad():
        following = explicit.step(first, inputs)
        predicted = explicit.output(first, inputs).numpy()
    errors = np.abs(one.y[starts + n] - model.channels.physical_y(predicted))
    return certificate.norm((second - following).numpy()), errors


def _states_after(
    model: StateSpaceModel,
    explicit: ExplicitStateSpace,
    one: Experiment,
    starts: NDArray[np.int64],
    n: int,
) -> torch.Tensor:
    """States at the samples after windows of n samples, shape (windows, n_x)."""
    inside = starts[:, None] + np.arange(n)
    u, y = one.u[inside], one.y[inside]
    states = model.initial_states(u, y)
    inputs = torch.from_numpy(model.channels.scaled_u(u))
    with torch.no_grad():
        return simulate(explicit, torch.from_numpy(states), inputs).x[:, -1]


def _explicit(model: StateSpaceModel) -> ExplicitStateSpace:
    with torch.no_grad():
        return model.explicit()


def _starts(one: Experiment, n: int, k: int, stride: int) -> NDArray[np.int64]:
    if len(one) < n + k:
        raise ShapeError(
            f"{one.name}: expected at least {n + k} samples for a window of {n} and {k} steps ahead, got {len(one)}. "
            "Use a shorter window or horizon."
        )
    return np.arange(0, len(one) - n - k + 1, stride)


def _window_length(data: Dataset, window: int | None) -> int:
    n = data.n_init if window is None else check_positive_int("window", window)
    if n == 0:
        raise invalid(
            "window", "a window of measured outputs, since calibration.n_init = 0", window, "Pass window=20."
        )
    return n


def _quantile(scores: Array, level: float, confidence: float | None) -> Array:
    """Conformal quantile along the first axis; NaN counts as infinite."""
    n = len(scores)
    if confidence is None:
        rank = math.ceil((n + 1) * level * (1.0 - 1e-12))
    else:
        ranks = np.arange(1, n + 1)
        enough = np.flatnonzero(beta.sf(level, ranks, n + 1 - ranks) >= confidence)
        rank = int(ranks[enough[0]]) if len(enough) else n + 1
    if rank > n:
        needed = level / (1.0 - level) if confidence is None else math.log1p(-confidence) / math.log(level)
        raise invalid(
            "calibration", f"at least {math.ceil(needed * (1.0 - 1e-12))} windows for a quantile at {level:.4g}",
            f"{n}", "Use more data, a smaller stride, a lower coverage or fewer steps.",
        )  # fmt: skip
    ordered = np.sort(np.where(np.isnan(scores), np.inf, scores), axis=0)
    return np.asarray(ordered[rank - 1])
