"""Faults by name: one registry and one format for configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustnn.closedloop.faults.channel import Fault
from robustnn.closedloop.faults.loss import Dropout, Gain, Jitter, SignalDelay, Stuck
from robustnn.closedloop.faults.noise import Bias, ColouredNoise, Drift, Outliers, Quantisation, WhiteNoise
from robustnn.closedloop.named import built

__all__ = ["FAULTS", "fault_from_config"]

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        WhiteNoise, ColouredNoise, Bias, Drift, Dropout, Stuck, Quantisation, Outliers, SignalDelay, Jitter, Gain,
    )
}  # fmt: skip


def fault_from_config(config: Mapping[str, Any]) -> Fault:
    """Build a fault from plain values, as `describe` returns them and YAML or JSON hold them.

    Args:
        config: `{"name": ..., parameter: value, ...}`.

    Returns:
        The fault.

    Raises:
        InvalidArgumentError: If the name or a parameter is unknown, or a value not acceptable.

    Example:
        >>> fault_from_config({"name": "delay", "steps": 2})
        SignalDelay(steps=2, fill='first')
    """
    return built("fault", FAULTS, config)
