"""The look of all figures: sizes, and one colour, marker and line style per model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

_RC: dict[str, Any] = {
    "figure.figsize": (6.4, 4.2),
    "figure.constrained_layout.use": True,
    "figure.titlesize": 13,
    "savefig.dpi": 150,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 9.5,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "0.85",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}

_GREYS = ("#000000", "#7a7a7a", "#b0b0b0")
_BASELINE_MARKERS = ("s", "D", "X", "P", "*")
_BOUNDED_MARKERS = ("o", "^", "v", "<", ">", "p", "h", "d")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2)))
_GAMMA = re.compile(r"(?:gamma|γ)[^\d]*(\d+\.?\d*(?:e[+-]?\d+)?)", re.IGNORECASE)
_LBDN = re.compile(r"LBDN[^\d]*(\d+\.?\d*(?:e[+-]?\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Appearance:
    """How a model is drawn in every figure.

    Args:
        color: hexadecimal colour.
        marker: matplotlib marker.
        linestyle: matplotlib line style.
    """

    color: str
    marker: str
    linestyle: Any = "-"


@contextmanager
def style(overrides: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draw in the style of the project within a ``with`` block; settings outside it are left alone.

    Args:
        overrides: matplotlib rc parameters that replace those of the style.

    Example:
        >>> with style({"font.size": 14}):
        ...     fig, ax = plt.subplots()
    """
    settings: Any = {**_RC, **(overrides or {})}
    with matplotlib.rc_context(settings):
        yield


@contextmanager
def axes_or_new(ax: Axes | None, figsize: tuple[float, float] | None = None) -> Iterator[Axes]:
    """Give the axes to draw in: the caller's, in the caller's settings, or those of a new styled figure.

    Args:
        ax: axes to draw in, or None.
        figsize: size of a new figure, inches.
    """
    if ax is not None:
        yield ax
        return
    with style():
        _, new = plt.subplots(figsize=figsize)
        yield new


def gamma_of(label: str) -> float | None:
    """Return the Lipschitz bound a label names (``gamma = 5``, ``LBDN 5``), or None for an unbounded model.

    Args:
        label: name of a model as it stands in a legend.

    Example:
        >>> gamma_of("LBDN gamma = 5, 4M steps"), gamma_of("MLP 4 x 32")
        (5.0, None)
    """
    match = _GAMMA.search(label) or _LBDN.search(label)
    return float(match.group(1)) if match else None


def appearances(labels: Iterable[str]) -> dict[str, Appearance]:
    """Assign a colour, marker and line style to each model, the same for the same set of labels in any order.

    Unbounded models are black, then grey. Lipschitz-bounded ones run through a sequential colour-blind-safe
    map in the order of gamma, dark for the smallest; models with the same gamma share the colour and differ
    in the line. Give all labels of a report once, and hand the result to each figure that shows some of them.

    Args:
        labels: names of the models; `gamma_of` reads their bound.
    """
    names = sorted(set(labels))
    bounds = {name: gamma_of(name) for name in names}
    gammas = sorted({gamma for gamma in bounds.values() if gamma is not None})
    cmap = matplotlib.colormaps["plasma"]
    used: dict[float | None, int] = {}
    result = {}
    for name in names:
        gamma = bounds[name]
        count = used.get(gamma, 0)
        used[gamma] = count + 1
        line = _LINES[count % len(_LINES)]
        if gamma is None:
            marker = _BASELINE_MARKERS[count % len(_BASELINE_MARKERS)]
            result[name] = Appearance(_GREYS[count % len(_GREYS)], marker, line)
        else:
            rank = gammas.index(gamma)
            color = to_hex(cmap(0.08 + 0.74 * rank / max(len(gammas) - 1, 1)))
            result[name] = Appearance(color, _BOUNDED_MARKERS[rank % len(_BOUNDED_MARKERS)], line)
    return result
