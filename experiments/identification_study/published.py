"""Errors of other methods on the benchmarks, typed from where they were published."""

from __future__ import annotations

from typing import NamedTuple

_SURVEY = "Champneys et al., arXiv 2405.10779"


class Published(NamedTuple):
    """RMSE of a method, in the unit of `robustnn.dynamics.Benchmark.unit`.

    Attributes:
        method: Its name.
        errors: Error by test record.
        source: Where it stands.
    """

    method: str
    errors: dict[str, float]
    source: str = _SURVEY


def _silverbox(method: str, multisine: float, full: float, inside: float) -> Published:
    return Published(method, {"multisine": multisine, "arrow_full": full, "arrow_no_extrapolation": inside})


def _one(method: str, error: float) -> Published:
    return Published(method, {"test": error})


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cascaded_tanks": (
        _one("LTI state space", 0.588),
        _one("polynomial NARX", 0.413),
        _one("RNN", 0.543),
        _one("GRU", 0.396),
        _one("LSTM", 0.490),
        _one("SUBNET", 0.37),
        _one("SUBNET, continuous time", 0.306),
        _one("grey box", 0.191),
    ),
    "silverbox": (
        _silverbox("LTI state space", 6.96, 14.4, 6.58),
        _silverbox("polynomial NARX", 0.640, 2.25, 0.571),
        _silverbox("RNN", 1.64, 4.88, 1.73),
        _silverbox("GRU", 1.49, 2.80, 0.947),
        _silverbox("LSTM", 1.50, 2.68, 0.960),
        _silverbox("SUBNET", 0.36, 1.4, 0.32),
    ),
    "wiener_hammerstein": (
        _one("LTI state space", 43.4),
        _one("polynomial NARX", 27.3),
        _one("RNN", 6.87),
        _one("GRU", 3.97),
        _one("LSTM", 4.45),
        _one("SUBNET", 0.241),
    ),
}
