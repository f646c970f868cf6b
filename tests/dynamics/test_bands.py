"""Prediction bands: the inequality behind them, their quantiles, and their coverage of held-out data."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from robustnn.dynamics import Dataset, LipschitzStateSpace, StateSpaceModel, UnconstrainedStateSpace
from robustnn.dynamics.bands import Band, band_coverage, prediction_band
from robustnn.dynamics.certificate import ModelCertificate, certify_model
from robustnn.dynamics.simulate import simulate
from robustnn.errors import CertificateError, InvalidArgumentError, ShapeError

EPS = np.finfo(np.float64).eps
WINDOW, K = 12, 6


def records(samples: int, seed: int) -> Dataset:
    """A damped oscillator with a spring that gives way, and noise in states and outputs; output in mm."""
    rng = np.random.default_rng(seed)
    u, y, x = rng.normal(size=(samples, 1)), np.empty((samples, 1)), np.zeros(2)
    for t in range(samples):
        y[t] = 50.0 + 20.0 * x[0] + 0.5 * rng.normal()
        x = np.array([0.8 * x[0] + 0.3 * x[1], -0.3 * np.tanh(x[0]) + 0.7 * x[1] + 0.5 * u[t, 0]])
        x += 0.02 * rng.normal(size=2)
    return Dataset.from_arrays(u, y, 0.1, n_init=WINDOW, y_units=["mm"])


CALIBRATION, HELD_OUT = records(2400, 2), records(6000, 3)


@cache
def fitted() -> tuple[StateSpaceModel, ModelCertificate]:
    """A model near the system; it needs no training, its errors are part of the band."""
    data = records(600, 1)
    model = LipschitzStateSpace(data, 2, (6,), lipschitz_x=0.97)
    model.start_(None, data)
    return model, certify_model(model, iterations=50)


def coefficients(rate: float, gain: float, j: int) -> np.ndarray:
    return gain * rate ** np.arange(j - 2, -1, -1.0)


def test_errors_telescope_into_one_step_defects() -> None:
    """The inequality that the certified band rests on holds for every window, without exception."""
    model, certificate = fitted()
    one = HELD_OUT.experiments[0].part(0, 120)
    explicit = model.explicit().detach()
    count = len(one) - WINDOW - K
    inside = np.arange(count + K)[:, None] + np.arange(WINDOW)
    starts = torch.from_numpy(model.initial_states(one.u[inside], one.y[inside]))
    scaled = torch.from_numpy(model.channels.scaled_u(one.u))
    with torch.no_grad():
        states = simulate(explicit, starts, scaled[torch.from_numpy(inside)]).x[:, -1]
        now = scaled[WINDOW : WINDOW + count + K]
        defects = certificate.norm((states[1:] - explicit.step(states, now)[:-1]).numpy())
        one_step = model.channels.physical_y(explicit.output(states, now).numpy())
        errors = np.abs(one.y[WINDOW : WINDOW + count + K] - one_step)[:, 0]
        ahead = np.arange(count)[:, None] + np.arange(K)
        predicted = simulate(explicit, states[:count], now[torch.from_numpy(ahead)]).y.numpy()
    found = np.abs(one.y[WINDOW + ahead] - model.channels.physical_y(predicted))[..., 0]
    gain = certificate.output_by_state[0]
    closest = 0.0
    for j in range(1, K + 1):
        drift = sum(
            (c * defects[i : i + count] for i, c in enumerate(coefficients(certificate.rate, gain, j))),
            np.zeros(count),
        )
        bound = errors[j - 1 : j - 1 + count] + drift
        assert (found[:, j - 1] <= bound * (1 + 100 * EPS) + 1e4 * EPS).all()
        closest = max(closest, float((found[:, j - 1] / bound).max()))
    assert closest > 0.9


@pytest.mark.parametrize("method", ["certified", "direct"])
def test_stated_coverage_holds_on_held_out_data(method: str) -> None:
    model, certificate = fitted()
    band = prediction_band(model, CALIBRATION, K, 0.9, method=method, certificate=certificate)
    assert band.half_width.shape == (K, 1) and band.method == method and band.stride == K
    found = band_coverage(band, model, HELD_OUT, confidence=0.99)
    assert found.n > 900
    assert (found.high >= 0.9).all()
    assert (found.low <= found.share).all() and (found.share <= found.high).all()
    if method == "direct":  # not wider than needed
        assert (found.share <= 0.95).all()
        assert (band_coverage(_narrower(band), model, HELD_OUT, confidence=0.99).high < 0.9).all()


def _narrower(band: Band) -> Band:
    return Band(0.6 * band.half_width, band.coverage, band.method, band.n_scores, band.window, band.stride)


def test_the_certified_band_grows_and_the_direct_one_is_within_it() -> None:
    model, certificate = fitted()
    certified = prediction_band(model, CALIBRATION, K, certificate=certificate)
    direct = prediction_band(model, CALIBRATION, K, method="direct")
    assert (np.diff(certified.half_width[:, 0]) > 0).all()
    ratio = certified.half_width / direct.half_width
    # One step ahead both are the quantile of the same error, of a window more or less.
    assert 0.9 < ratio[0, 0] < 1.1 and (ratio[1:] > 1.0).all() and ratio.max() < 5.0


def test_a_model_that_does_not_contract_has_a_band_too() -> None:
    data = records(600, 1)
    model = UnconstrainedStateSpace(data, 2, (4,))
    model.start_(None, data)
    with torch.no_grad():
        model.a.mul_(1.05 / np.abs(np.linalg.eigvals(model.a.numpy())).max())
    certificate = certify_model(model, iterations=25)
    assert certificate.rate > 1.0
    band = prediction_band(model, CALIBRATION, K, certificate=certificate)
    assert np.isfinite(band.half_width).all()
    assert (band_coverage(band, model, HELD_OUT, confidence=0.99).high >= 0.9).all()


def test_the_quantile_is_the_conformal_one() -> None:
    """Nineteen scores and coverage 0.9: the 18th smallest; coverage 0.95: the largest; above it: too few."""
    model, _ = fitted()
    data = CALIBRATION.window(0, WINDOW + 19)
    one = prediction_band(model, data, 1, 0.9, method="direct", stride=1, confidence=None)
    most = prediction_band(model, data, 1, 0.95, method="direct", stride=1, confidence=None)
    explicit = model.explicit().detach()
    record = data.experiments[0]
    inside = np.arange(19)[:, None] + np.arange(WINDOW)
    starts = torch.from_numpy(model.initial_states(record.u[inside], record.y[inside]))
    scaled = torch.from_numpy(model.channels.scaled_u(record.u))
    with torch.no_grad():
        states = simulate(explicit, starts, scaled[torch.from_numpy(inside)]).x[:, -1]
        found = model.channels.physical_y(explicit.output(states, scaled[WINDOW:]).numpy())
    scores = np.sort(np.abs(record.y[WINDOW:] - found)[:, 0])
    assert one.n_scores == 19
    np.testing.assert_allclose([one.half_width[0, 0], most.half_width[0, 0]], scores[[17, 18]], rtol=1e-9)
    with pytest.raises(InvalidArgumentError, match="at least 99 windows"):
        prediction_band(model, data, 1, 0.99, method="direct", stride=1, confidence=None)


def test_a_confidence_makes_room_for_the_calibration() -> None:
    """By binomial sums: the r-th smallest of n scores covers q if fewer than r of them lie below the true quantile."""
    model, _ = fitted()
    data = CALIBRATION.window(0, WINDOW + 60)
    bands = [
        prediction_band(model, data, 1, 0.9, method="direct", stride=1, confidence=one)
        for one in (None, 0.5, 0.9, 0.99)
    ]
    widths = [band.half_width[0, 0] for band in bands]
    assert widths[0] <= widths[2] <= widths[3] and widths[1] <= widths[2]
    every = [
        prediction_band(
            model, data, 1, (r - 0.5) / 61, method="direct", stride=1, confidence=None
        ).half_width[0, 0]
        for r in range(1, 61)
    ]
    for width, confidence in zip(widths[1:], (0.5, 0.9, 0.99), strict=True):
        rank = every.index(width) + 1
        assert binom.cdf(rank - 1, 60, 0.9) >= confidence > binom.cdf(rank - 2, 60, 0.9)
    with pytest.raises(InvalidArgumentError, match="at least 44 windows"):  # 0.9 ** 44 < 0.01
        prediction_band(
            model, CALIBRATION.window(0, WINDOW + 43), 1, 0.9, method="direct", stride=1, confidence=0.99
        )


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    model, certificate = fitted()
    band = prediction_band(model, CALIBRATION, 2, certificate=certificate)
    found = band_coverage(band, model, HELD_OUT, stride=40)
    count = np.rint(found.share * found.n)
    np.testing.assert_allclose(found.low, beta.ppf(0.025, count, found.n - count + 1), rtol=1e-6)
    np.testing.assert_allclose(
        found.high[count < found.n], beta.ppf(0.975, count + 1, found.n - count)[count < found.n]
    )


def test_around_and_bad_arguments() -> None:
    model, certificate = fitted()
    band = prediction_band(model, CALIBRATION, 2, certificate=certificate)
    low, high = band.around(np.ones((4, 2, 1)))
    np.testing.assert_allclose(high - low, np.broadcast_to(2.0 * band.half_width, (4, 2, 1)), rtol=1e-12)
    with pytest.raises(ShapeError, match="predicted"):
        band.around(np.ones((3, 1)))
    with pytest.raises(InvalidArgumentError, match="coverage"):
        prediction_band(model, CALIBRATION, 2, 1.0)
    with pytest.raises(InvalidArgumentError, match="method"):
        prediction_band(model, CALIBRATION, 2, method="exact")
    with pytest.raises(InvalidArgumentError, match="windows"):
        prediction_band(model, CALIBRATION.window(0, 60), 2, certificate=certificate)
    with pytest.raises(InvalidArgumentError, match="confidence"):
        prediction_band(model, CALIBRATION, 2, confidence=1.0)
    other = LipschitzStateSpace(records(600, 1), 2, (6,), lipschitz_x=0.97)
    with pytest.raises(CertificateError, match="another one"):
        prediction_band(other, CALIBRATION, 2, certificate=certificate)
    with pytest.raises(ShapeError, match="at least"):
        prediction_band(model, CALIBRATION.window(0, 14), 6, method="direct")
    with pytest.raises(InvalidArgumentError, match="window"):
        prediction_band(model, CALIBRATION.window(n_init=0), 2, certificate=certificate)
