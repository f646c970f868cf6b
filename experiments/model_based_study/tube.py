r"""How far two trajectories of a learned loop, or of model and plant, can drift apart: proved step by step.

A model $F$ with constants $L_x, L_u, L$ (`models.constants`), a policy with constant $\gamma$ and actions that
saturate at a width of $w$ in all: an observation error of size $\epsilon$ and a difference $e_k$ of the observations
give actions that differ by

$$a_k = \min(\gamma (e_k + \epsilon), w), \qquad
  e_{k+1} \le \min\left(L_x e_k + L_u a_k,\; L \sqrt{e_k^2 + (a_k / s)^2}\right) + d,$$

with d the largest error of one step of the model. Without saturation and with the first of the two bounds it is
$e_{k+1} \le (L_x + L_u \gamma) e_k + L_u \gamma \epsilon + d$.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["drift"]

# Each step is a few operations in float64; this rounds it upwards.
_UP = 1.0 + 16.0 * float(np.finfo(np.float64).eps)


def drift(
    constants: Mapping[str, float],
    steps: int,
    *,
    input_scale: float,
    policy: float = 0.0,
    width: float = math.inf,
    eps: float = 0.0,
    model_error: float = 0.0,
) -> NDArray[np.float64]:
    r"""Return a proved bound of the distance of two trajectories after each step, from equal starts.

    Args:
        constants: "x", "u" and "joint" of the model.
        steps: Number of steps.
        input_scale: s, of the joint constant, in action units.
        policy: $\gamma$, action per scaled observation; zero where both trajectories have the same actions.
        width: w, largest difference of two actions.
        eps: Size of the error of the observation that one of the policies sees, scaled.
        model_error: d, scaled.

    Returns:
        Shape (steps + 1,), scaled observations; the first one is zero.
    """
    found = np.zeros(steps + 1)
    for k in range(steps):
        apart = found[k]
        action = min(policy * (apart + eps) * _UP, width)
        sums = constants["x"] * apart + constants["u"] * action
        together = constants["joint"] * math.hypot(apart, action / input_scale)
        found[k + 1] = (min(sums, together) + model_error) * _UP
    return found
