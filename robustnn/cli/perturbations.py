"""Perturbations as they are written on a command line, and what makes a name for each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustnn.cli.options import numbers
from robustnn.closedloop.named import parameters_of
from robustnn.closedloop.registry import ATTACKS, PERTURBATIONS, size_parameter
from robustnn.errors import check_nonnegative, invalid

__all__ = ["Condition", "attack_conditions", "conditions", "sized"]


# Characters of parameters that a table shows; longer ones have a digest there, and stand in summary.json.
_LONGEST = 32


@dataclass(frozen=True)
class Condition:
    """A perturbation of a sweep, as plain values.

    Attributes:
        config: `{"name": ..., parameter: value, ...}`.
        label: What a table calls it, without its size.
        size: Its size, or None where it has none.
    """

    config: dict[str, Any]
    label: str
    size: float | None

    @property
    def key(self) -> str:
        """Name of its cells: readable, and different for different configurations."""
        digest = _digest(self.config)
        readable = re.sub(r"[^A-Za-z0-9._=+,-]", "_", self.label)
        return f"{readable}_{digest}" if self.size is None else f"{readable}={self.size:g}_{digest}"

    @property
    def title(self) -> str:
        """Label and size."""
        return self.label if self.size is None else f"{self.label} {self.size:g}"


NOTHING = Condition({"name": "none"}, "none", None)


def sized(name: str, size: float, norm: str | None, scale: Sequence[float] | None) -> Condition:
    """Return a perturbation of a size, with norm and scale of the observation where its kind has them."""
    if name not in PERTURBATIONS:
        raise invalid(
            "--perturbation", f"one of {', '.join(PERTURBATIONS)}", repr(name), "Choose one of these."
        )
    parameter = size_parameter(name)
    if parameter is None:
        raise invalid("--perturbation", f"{name} without a size", f"{name}:{size:g}", "Leave the size out.")
    number: float = check_nonnegative(f"size of {name}", size)
    if parameter == "steps" and number.is_integer():
        number = int(number)
    config: dict[str, Any] = {"name": name, parameter: number}
    known = parameters_of(PERTURBATIONS[name])
    if norm is not None and "norm" in known:
        config["norm"] = norm
    if scale is not None and "scale" in known:
        config["scale"] = list(scale)
    return Condition(config, name if parameter == "eps" else f"{name} {parameter}", float(size))


def conditions(
    texts: Sequence[str], norm: str | None = None, scale: Sequence[float] | None = None
) -> list[Condition]:
    """Return the perturbations of texts such as "uniform:0.05,0.1", "none", or a JSON mapping.

    Args:
        texts: One per perturbation.
        norm: "l2" or "linf", for kinds that have a norm, or None for their default.
        scale: Scale of the observation, for kinds that have one, or None for ones.

    Raises:
        InvalidArgumentError: If a name or a size is not acceptable, or a text is no mapping.
    """
    found = [NOTHING]
    for text in texts:
        if text.lstrip().startswith("{"):
            found.append(_from_json(text))
            continue
        name, colon, sizes = text.partition(":")
        if colon:
            found += [sized(name, size, norm, scale) for size in numbers("--perturbation", sizes)]
        else:
            if name in PERTURBATIONS and size_parameter(name) is not None:
                raise invalid("--perturbation", f"a size of {name}", repr(text), f"Write {name}:0.1.")
            found.append(Condition({"name": name}, name, None))
    return list({condition.key: condition for condition in found}.values())


def attack_conditions(
    names: Sequence[str], eps: Sequence[float], norm: str, scale: Sequence[float] | None
) -> list[Condition]:
    """Return no perturbation and every attack at every size, the sizes ascending.

    Raises:
        InvalidArgumentError: If a name is not one of an attack, or a size is negative.
    """
    for name in names:
        if name not in ATTACKS:
            raise invalid("--attacks", f"names of {', '.join(ATTACKS)}", repr(name), "Choose of these.")
    sizes = sorted({check_nonnegative("--eps", size) for size in eps} - {0.0})
    if not sizes:
        raise invalid("--eps", "a size > 0", list(eps), "Write 0.05,0.1.")
    unique = dict.fromkeys(names)
    return [NOTHING, *(sized(name, size, norm, scale) for name in unique for size in sizes)]


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def _from_json(text: str) -> Condition:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise invalid("--perturbation", "JSON", repr(text), f"It is none: {error}.") from error
    name = config.get("name")
    parameter = size_parameter(name) if isinstance(name, str) and name in PERTURBATIONS else None
    size = config.get(parameter) if parameter is not None else None
    number = float(size) if isinstance(size, (int, float)) and not isinstance(size, bool) else None
    rest = {key: value for key, value in config.items() if key not in ("name", parameter)}
    text = json.dumps(rest, sort_keys=True)
    short = text if len(text) <= _LONGEST else f"#{_digest(config)}"
    more = f" {short}" if rest else ""
    shown = "" if parameter in (None, "eps") else f" {parameter}"
    return Condition(config, f"{name}{shown}{more}", number)
