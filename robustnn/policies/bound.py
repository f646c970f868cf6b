"""A bound from raw observation to action: what it says of errors of the sensors, how it prints and is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustnn.errors import (
    CertificateError,
    CheckpointError,
    ShapeError,
    UnsupportedSpaceError,
    check_positive,
)

__all__ = ["Bound", "Stage"]

_HEADER = {"format": "robustnn bound", "version": 1}

# A sensor whose errors count this many times more than those of the median sensor is pointed out.
_DOMINANT = 10.0


@dataclass(frozen=True)
class Stage:
    """One map of the chain from observation to action.

    Attributes:
        name: What it is.
        factor: Largest gain in plain l2 norms, over all continuous components.
        note: Where the factor comes from.
    """

    name: str
    factor: float
    note: str = ""


@dataclass(frozen=True)
class Bound:
    r"""A weighted l2 Lipschitz bound of the map from raw observation to deterministic action.

    $$\|D_a^{-1}(a - a')\|_2 \le \gamma \, \|D_o^{-1}(o - o')\|_2$$

    For discrete actions the map is the one to the logits or Q-values. `print(bound)` shows every factor.

    The bound is about the function that the weights define, as they are rounded to float32. `predict` evaluates it
    in float32, so each of two actions may be off by what rounding adds: a few 1e-7 of $\gamma$ times the size of the
    scaled observation, of the biases and of the action. That is no gain, and does not grow with the error, but it is
    what is seen of very small errors. Where TF32 is switched on, which keeps 10 binary digits, it is about 1e-3.

    Attributes:
        lipschitz: gamma.
        observation_scale: Diagonal of D_o, one entry per flat raw observation component, in its unit.
        action_scale: Diagonal of D_a, one entry per action component, in its unit.
        frames: Number k of frames that the observation stacks.
        output: What the bound speaks of: "action", "logits", "Q-values" or "mean quantiles".
        stages: The chain, from the observation to the action.
        one_hot: For every observation component whether it codes a discrete quantity; such a component jumps, so
            the bound speaks of small changes of the others only. Empty for none.
        names: The sensor that every observation component comes from; in a stack of frames a name occurs once per
            frame. Empty for o[0], o[1], ...
        notes: What else there is to know.
        network_sha256: Digest of the weights that the bound is about (`ActionMap.network_sha256`), or "".
        statistics_sha256: Digest of the normalisation that the bound is about, or "" (`ActionMap`).

    Example:
        >>> bound = Bound(10.0, (1.0, 0.5), (2.0,))
        >>> bound.plain, bound.component_gain.tolist(), bound.error_budget(0.1)
        (40.0, [[20.0, 40.0]], {'o[0]': 0.005, 'o[1]': 0.0025})
    """

    lipschitz: float
    observation_scale: tuple[float, ...]
    action_scale: tuple[float, ...]
    frames: int = 1
    output: str = "action"
    stages: tuple[Stage, ...] = ()
    one_hot: tuple[bool, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    network_sha256: str = ""
    statistics_sha256: str = ""

    @property
    def plain(self) -> float:
        r"""Bound in unweighted l2 norms: $\gamma \max(D_a) / \min(D_o)$."""
        return self.lipschitz * max(self.action_scale) / float(self._continuous_scale().min())

    @property
    def plain_linf(self) -> float:
        r"""Bound of $\|\Delta a\|_2$ per $\|\Delta o\|_\infty$: $\gamma \max(D_a) \|D_o^{-1} 1\|_2$."""
        return self.lipschitz * max(self.action_scale) * float(np.linalg.norm(1.0 / self._continuous_scale()))

    @property
    def product(self) -> float:
        """Product of the plain factors of all stages: what composing unweighted bounds would give."""
        return math.prod(stage.factor for stage in self.stages) if self.stages else self.plain

    @property
    def per_frame(self) -> float:
        r"""Plain l2 bound per error of every frame: $\gamma \max(D_a) \sqrt{\sum_f 1 / \min_j D_{o,fj}^2}$.

        It covers an error that stays for all k frames, and one of the same size that differs from frame to frame.
        With the same scale in all frames it is $\sqrt k$ times `plain`.
        """
        continuous = self._is_continuous()
        frame, scale = self._frame_of()[continuous], np.asarray(self.observation_scale)[continuous]
        smallest = [scale[frame == f].min() for f in np.unique(frame)]
        if len(smallest) != self.frames:  # the layout is not known
            return math.sqrt(self.frames) * self.plain
        return self.lipschitz * max(self.action_scale) * float(np.linalg.norm(1.0 / np.asarray(smallest)))

    @property
    def component_gain(self) -> NDArray[np.float64]:
        r"""Bound of $|\Delta a_i|$ per unit of error in one raw observation component j, shape (n_act, n_obs).

        $G_{ij} = \gamma D_{a,i} / D_{o,j}$, in action units per observation unit.
        """
        return self.lipschitz * np.outer(self.action_scale, 1.0 / np.asarray(self.observation_scale))

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of the continuous sensors; one that is stacked over frames counts once."""
        names = np.asarray(self._names(), dtype=object)[self._is_continuous()]
        return tuple(dict.fromkeys(names.tolist()))

    def action_change(self, observation_change: ArrayLike) -> NDArray[np.float64]:
        r"""Largest $\|D_a^{-1} \Delta a\|_2$ that a given observation error can cause.

        Args:
            observation_change: Observation errors, shape (..., n_obs), in raw units.

        Returns:
            Shape (...).

        Raises:
            ShapeError: If the last axis is not n_obs.
        """
        change = np.asarray(observation_change, dtype=np.float64)
        if change.ndim == 0 or change.shape[-1] != len(self.observation_scale):
            raise ShapeError(
                f"observation_change: expected shape (..., {len(self.observation_scale)}), got {change.shape}. "
                "Give one error per observation component."
            )
        return self.lipschitz * np.linalg.norm(change / np.asarray(self.observation_scale), axis=-1)

    def error_budget(self, tolerance: ArrayLike, *, together: bool = False) -> dict[str, float]:
        r"""Size of the error of each sensor up to which no action component moves by more than a tolerance.

        $\delta_j = \min_i (tol_i / D_{a,i}) / (\gamma \sqrt{\sum_f D_{o,fj}^{-2}})$, with the error in all frames.

        Args:
            tolerance: Change allowed of every action component, in its unit: a number or shape (n_act,).
            together: Whether all sensors may err at once; every budget is then $1/\sqrt{n}$ of the one alone.

        Returns:
            Budget of every continuous sensor, in its unit.

        Raises:
            ShapeError: If there is neither one tolerance nor one per action component.
            InvalidArgumentError: If a tolerance is not positive.
        """
        scale = np.asarray(self.action_scale)
        allowed = np.asarray(tolerance, dtype=np.float64)
        if allowed.shape not in ((), scale.shape):
            raise ShapeError(
                f"tolerance: expected a number or shape {scale.shape}, got {allowed.shape}. "
                "Give one tolerance per action component."
            )
        for value in allowed.reshape(-1):
            check_positive("tolerance", value)
        weight = self._sensor_weight()
        share = math.sqrt(len(weight)) if together else 1.0
        whole = float((allowed / scale).min()) / self.lipschitz / share if self.lipschitz else math.inf
        return {name: whole / value for name, value in weight.items()}

    def check(self, other: Bound) -> None:
        """Raise unless this bound, from a file perhaps, is true of a policy whose present bound is given.

        Args:
            other: The bound of the policy as it is now, from `policy_bound`.

        Raises:
            CertificateError: If the weights or statistics are others or not known, or this bound claims less change.
        """
        for name, what in (("network_sha256", "weights"), ("statistics_sha256", "normalisation statistics")):
            mine, found = getattr(self, name), getattr(other, name)
            missing = name == "network_sha256" and not mine
            if missing or mine != found:
                raise CertificateError(
                    f"bound: expected one of these {what} (sha256 {found[:12] or 'none'}), got "
                    f"{mine[:12] or 'none'}. They changed since the bound was made: make it anew with policy_bound."
                )
        claimed, proved = self.component_gain, other.component_gain
        if claimed.shape != proved.shape or (proved > claimed * (1.0 + 1e-12)).any():
            raise CertificateError(
                f"bound: expected gains of at least those of the policy (plain bound {other.plain:.6g}), got smaller "
                f"ones (plain bound {self.plain:.6g}). Make it anew with policy_bound."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the bound as numbers, strings and lists, ready for JSON; `from_dict` reads it back exactly."""
        content = {name: _plain(value) for name, value in asdict(self).items()}
        return {**_HEADER, **content}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Bound:
        """Return the bound that `to_dict` wrote.

        Args:
            content: The dictionary, from JSON or not.

        Returns:
            A bound equal to the one written.

        Raises:
            CheckpointError: If it is something else, or an entry is missing or impossible.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(content, Mapping) or {k: content.get(k) for k in _HEADER} != _HEADER:
            raise _damaged("a dictionary of Bound.to_dict, version 1", type(content).__name__)
        if set(content) != known | set(_HEADER):
            raise _damaged("the entries of Bound.to_dict", sorted(set(content) ^ (known | set(_HEADER))))
        try:
            bound = cls(
                float(content["lipschitz"]),
                tuple(float(value) for value in content["observation_scale"]),
                tuple(float(value) for value in content["action_scale"]),
                int(content["frames"]),
                str(content["output"]),
                tuple(Stage(str(s["name"]), float(s["factor"]), str(s["note"])) for s in content["stages"]),
                tuple(bool(value) for value in content["one_hot"]),
                tuple(str(value) for value in content["names"]),
                tuple(str(value) for value in content["notes"]),
                str(content["network_sha256"]),
                str(content["statistics_sha256"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged("the entries of Bound.to_dict", repr(error)) from error
        n_obs = len(bound.observation_scale)
        numbers = (bound.lipschitz, *bound.observation_scale, *bound.action_scale)
        if not (
            all(math.isfinite(value) and value > 0.0 for value in numbers[1:])
            and 0.0 <= bound.lipschitz < math.inf
            and n_obs > 0
            and bound.action_scale
            and bound.frames >= 1
            and len(bound.one_hot) in (0, n_obs)
            and len(bound.names) in (0, n_obs)
        ):
            raise _damaged("positive numbers, one per component", content)
        return bound

    def _is_continuous(self) -> NDArray[np.bool_]:
        if not self.one_hot:
            return np.ones(len(self.observation_scale), dtype=np.bool_)
        return ~np.asarray(self.one_hot, dtype=np.bool_)

    def _continuous_scale(self) -> NDArray[np.float64]:
        continuous = np.asarray(self.observation_scale)[self._is_continuous()]
        if continuous.size == 0:
            raise UnsupportedSpaceError(
                "observation_space: expected a continuous component, got discrete ones only. A bound per unit of "
                "observation has no meaning; use action_change for a jump between two observations."
            )
        return continuous

    def _names(self) -> tuple[str, ...]:
        return self.names or tuple(f"o[{k}]" for k in range(len(self.observation_scale)))

    def _frame_of(self) -> NDArray[np.int64]:
        """Frame of every component: how often its sensor occurs before it."""
        seen: dict[str, int] = {}
        frame = []
        for name in self._names():
            frame.append(seen.get(name, 0))
            seen[name] = frame[-1] + 1
        return np.asarray(frame, dtype=np.int64)

    def _sensor_weight(self) -> dict[str, float]:
        r"""$\sqrt{\sum_f D_{o,fj}^{-2}}$ of every continuous sensor."""
        squares: dict[str, float] = {}
        for name, scale, continuous in zip(
            self._names(), self.observation_scale, self._is_continuous(), strict=True
        ):
            if continuous:
                squares[name] = squares.get(name, 0.0) + scale**-2.0
        return {name: math.sqrt(value) for name, value in squares.items()}

    def __str__(self) -> str:
        """Return a table of the stages and what they amount to."""
        width = max([len(stage.name) for stage in self.stages] + [8])
        lines = [
            f"{stage.name:<{width}}  x {stage.factor:<10.4g} {stage.note}".rstrip() for stage in self.stages
        ]
        if not self._is_continuous().any():
            lines.append("discrete observations only: see action_change for jumps")
            return "\n".join([*lines, *self.notes])
        rows = [
            ("product", self.product, "of the largest factors of all stages"),
            ("bound", self.plain, f"{self.output} per unit of raw observation, l2"),
            ("", self.plain_linf, "per unit of the largest component of an error, l_inf"),
        ]
        if self.frames > 1:
            rows.append(("", self.per_frame, f"per unit of an error in each of the {self.frames} frames, l2"))
        rows.append(("", self.lipschitz, "in the norms weighted by observation_scale and action_scale"))
        lines += [f"{name:<{width}}  = {value:<10.4g} {text}" for name, value, text in rows]
        return "\n".join([*lines, *self._advice(), *self.notes])

    def _advice(self) -> list[str]:
        """Which sensors make the bound what it is, and what it would be without them."""
        smallest: dict[str, float] = {}
        for name, scale, continuous in zip(
            self._names(), self.observation_scale, self._is_continuous(), strict=True
        ):
            if continuous:
                smallest[name] = min(scale, smallest.get(name, math.inf))
        typical = float(np.median(list(smallest.values())))
        small = sorted((n for n in smallest if _DOMINANT * smallest[n] < typical), key=smallest.__getitem__)
        if not small:
            return []
        shown = ", ".join(small[:3]) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
        size = smallest[small[0]]
        rest = self.lipschitz * max(self.action_scale) / min(s for n, s in smallest.items() if n not in small)
        verb = "dominates" if len(small) == 1 else "dominate"
        more = ", and so on," if len(small) > 1 else ","
        return [
            f"{shown} {verb}: an error of {size:.4g} in {small[0]} counts as much as one of {typical:.4g} in a "
            "typical sensor.",
            f"With observation_scale {typical / size:.4g} times as large for {small[0]}{more} a policy of the same "
            f"gamma has the bound {rest:.4g}.",
        ]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _damaged(expected: str, got: Any) -> CheckpointError:
    return CheckpointError(
        f"bound: expected {expected}, got {got}. The file is damaged or of another kind; make the bound anew."
    )
