"""Faults by name: one registry and one format for configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from robustnn.closedloop.faults.channel import Fault
from robustnn.closedloop.faults.loss import Dropout, Gain, Jitter, SignalDelay, Stuck
from robustnn.closedloop.faults.noise import Bias, ColouredNoise, Drift, Outliers, Quantisation, WhiteNoise
from robustnn.errors import invalid

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
    if not isinstance(config, Mapping) or config.get("name") not in FAULTS:
        got = config.get("name") if isinstance(config, Mapping) else type(config).__name__
        raise invalid(
            "fault", f"a mapping with a name of {', '.join(FAULTS)}", repr(got), "Choose one of these."
        )
    kind = FAULTS[config["name"]]
    values = {key: value for key, value in config.items() if key != "name"}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not set(values) <= set(known):
        raise invalid(
            f"fault {kind.name!r}",
            f"parameters {known}",
            sorted(set(values) - set(known)),
            "Correct the names.",
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise invalid(
            f"fault {kind.name!r}", f"parameters {known}", sorted(values), "Give those missing."
        ) from error
