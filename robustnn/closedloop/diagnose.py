"""Can an attack be trusted? Convergence, random floor, growth with its size, and comparison at equal cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robustnn.closedloop.ball import Ball
from robustnn.closedloop.evaluate import EvaluationResult, evaluate
from robustnn.closedloop.perturb import Convergence, Perturbation, Policy, UniformBall
from robustnn.errors import check_positive, check_positive_int, invalid

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["at_budget", "diagnose"]

_LONGEST_STEP = 2.0  # over eps: the diameter of the ball


def diagnose(
    policy: Policy,
    plant: Plant,
    attacks: Mapping[str, Callable[[float], Perturbation]],
    eps: Sequence[float],
    *,
    equal_budget: int | None = None,
    confidence: float = 1.96,
    steps: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    r"""Check every attack at every size: four questions, one row of plain values each.

    1. *Convergence*: `tail` is the share of the objective's whole improvement that came in the last fifth of the
       iterations. An attack whose tail is 0.2 or more still improves as fast as at its start: give it more iterations.
    2. *Random floor*: `below_floor` is the return under `UniformBall` noise of the same ball minus that under the
       attack. "no" says that noise does more damage.
    3. *Growth*: `fall` is the return at the next smaller size (at first, without perturbation) minus this one. "no"
       says that a larger ball, which holds the smaller one, did less damage: the attack fails to find it.
    4. *Equal cost*: with `equal_budget`, the return with as many iterations as that number of differentiated
       evaluations per episode allows.

    A verdict on a difference :math:`d_e`, paired by episode and averaged over the policies, is given against its
    noise floor :math:`c\, s / \sqrt{E}`, with s the standard deviation over the E episodes and c the `confidence`:
    "yes" above it, "no" below minus it, "unclear" within. The noise is that of the episodes drawn; policies are taken
    as they are.

    Args:
        policy: The policy, or a stack of S.
        plant: The plant.
        attacks: By name, what makes each attack of a size, for example `MaximalActionDifference`.
        eps: Sizes, each greater than zero.
        equal_budget: Differentiated evaluations per episode, see `Budget.gradients`; None to leave question 4 out.
        confidence: c of the noise floor, in standard errors.
        steps: Length of the episodes; None for the plant's horizon.
        **options: Of `evaluate`: `episodes` or `seeds`, at least two, `policies`, `dtype`, `device`, `batch`.

    Returns:
        One row per attack and size, by ascending size, with the keys attack, eps, return, nominal, floor, damage,
        below_floor, below_floor_noise, beats_floor, fall, fall_noise, grows, objective, tail, gradients, collected,
        and equal_return, equal_gradients, equal_damage (None where there are none).

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from robustnn.closedloop import MaximalActionDifference
        >>> from robustnn.envs import Pendulum
        >>> rows = diagnose(
        ...     lambda y: -y[..., 1:2], Pendulum(), {"mad": MaximalActionDifference}, [0.1], episodes=4, steps=5
        ... )
        >>> rows[0]["attack"], rows[0]["gradients"]
        ('mad', 200)
    """
    sizes = sorted(check_positive(f"eps[{k}]", size) for k, size in enumerate(eps))
    if not sizes or len(set(sizes)) != len(sizes):
        raise invalid("eps", "different sizes > 0, at least one", list(eps), "Pass the sizes to look at.")
    if not attacks or not all(callable(make) for make in attacks.values()):
        raise invalid(
            "attacks", "functions of eps by name", repr(attacks), "Pass {'mad': MaximalActionDifference}."
        )
    check_positive("confidence", confidence)
    if equal_budget is not None:
        check_positive_int("equal_budget", equal_budget)
    length = plant.horizon if steps is None else check_positive_int("steps", steps)

    def measure(perturbation: Perturbation | None) -> EvaluationResult:
        return evaluate(policy, plant, perturbation, steps=length, **options)

    nominal = measure(None)
    if nominal.returns.shape[-1] < 2:
        raise invalid("episodes", "at least 2", nominal.returns.shape[-1], "One episode has no noise floor.")
    floors: dict[Ball, EvaluationResult] = {}
    rows = []
    for name, make in attacks.items():
        before = nominal
        for size in sizes:
            attack = make(size)
            ball = _ball(name, attack, size)
            if ball not in floors:
                floors[ball] = measure(UniformBall(ball.eps, ball.norm, ball.scale))
            result = measure(attack)
            row = {"attack": name, "eps": size, "return": _mean(result), "nominal": _mean(nominal)}
            row |= {"floor": _mean(floors[ball]), "damage": _mean(nominal) - _mean(result)}
            row |= _compare("below_floor", "beats_floor", floors[ball], result, confidence)
            row |= _compare("fall", "grows", before, result, confidence)
            row |= _tail(result.convergence)
            budget = attack.budget(length)
            row |= {"gradients": budget.gradients, "collected": budget.collected}
            row |= _at_equal_cost(attack, length, equal_budget, nominal, measure)
            rows.append(row)
            before = result
    return sorted(rows, key=lambda row: row["eps"])


def at_budget(attack: Perturbation, steps: int, gradients: int) -> Perturbation | None:
    """Return the attack with as many iterations as a number of differentiated evaluations per episode allows.

    All its numbers of iterations are scaled alike, and its steps the other way, so that the distance travelled stays
    the same (but no step becomes longer than the diameter of the ball).

    Args:
        attack: An attack with the fields `iterations` and `step_fraction`.
        steps: Length of the episode.
        gradients: Differentiated evaluations per episode that are allowed.

    Returns:
        The attack; None if it has no iterations, or one of them costs more than is allowed.

    Example:
        >>> from robustnn.closedloop import MaximalActionDifference
        >>> at_budget(MaximalActionDifference(0.1), 200, 4000).iterations
        10
    """
    if not is_dataclass(attack) or not {"iterations", "step_fraction"} <= {f.name for f in fields(attack)}:
        return None
    least, most = 0, 1
    while _cost(_scaled(attack, most), steps) <= gradients and most < 2**30:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (
            (middle, most) if _cost(_scaled(attack, middle), steps) <= gradients else (least, middle)
        )
    return _scaled(attack, least) if least else None


def _cost(attack: Perturbation, steps: int) -> float:
    """Differentiated evaluations; infinite where iterations cost nothing, as in a ball of radius zero."""
    return attack.budget(steps).gradients or float("inf")


def _scaled(attack: Any, iterations: int) -> Perturbation:
    ratio = iterations / attack.iterations
    longest = max(_LONGEST_STEP, attack.step_fraction)
    changed: dict[str, Any] = {
        "iterations": iterations, "step_fraction": min(attack.step_fraction / ratio, longest)
    }  # fmt: skip
    if hasattr(attack, "lr"):
        changed["lr"] = attack.lr / ratio
    if getattr(attack, "warm_iterations", None) is not None:
        changed["warm_iterations"] = max(1, round(attack.warm_iterations * ratio))
    if getattr(attack, "refine", 0):
        changed["refine"] = round(attack.refine * ratio)
    scaled: Perturbation = replace(attack, **changed)
    return scaled


def _at_equal_cost(
    attack: Perturbation,
    steps: int,
    gradients: int | None,
    nominal: EvaluationResult,
    measure: Callable[[Perturbation], EvaluationResult],
) -> dict[str, Any]:
    none = {"equal_return": None, "equal_gradients": None, "equal_damage": None}
    same = None if gradients is None else at_budget(attack, steps, gradients)
    if same is None:
        return none
    mean = _mean(measure(same))
    spent = same.budget(steps).gradients
    return {"equal_return": mean, "equal_gradients": spent, "equal_damage": _mean(nominal) - mean}


def _ball(name: str, attack: Any, size: float) -> Ball:
    ball = getattr(attack, "ball", None)
    if not isinstance(ball, Ball) or ball.eps != size:
        got = "none" if not isinstance(ball, Ball) else f"size {ball.eps} for eps = {size}"
        raise invalid(
            f"attacks[{name!r}]", "an attack with a `ball` of the size given", got, "Use eps as it is."
        )
    return ball


def _mean(result: EvaluationResult) -> float:
    return float(result.returns.mean())


def _compare(
    name: str, verdict: str, weaker: EvaluationResult, stronger: EvaluationResult, confidence: float
) -> dict[str, Any]:
    """How much lower the second return is, the noise of that, and whether it is."""
    paired = np.atleast_2d(weaker.returns - stronger.returns).mean(axis=0)
    difference = float(paired.mean())
    noise = float(confidence * paired.std(ddof=1) / np.sqrt(len(paired)))
    word = "yes" if difference > noise else "no" if difference < -noise else "unclear"
    return {name: difference, f"{name}_noise": noise, verdict: word}


def _tail(convergence: Sequence[Convergence]) -> dict[str, Any]:
    """Share of the improvement in the last fifth of the iterations, of what the attack did last; None for none."""
    if not convergence:
        return {"objective": None, "tail": None}
    last = convergence[-1]
    gained, late = 0.0, 0.0
    for values, count in zip(last.values, last.counts, strict=True):
        means = values[: count + 1].reshape(count + 1, -1).mean(axis=1)
        gained += abs(means[-1] - means[0])
        late += abs(means[-1] - means[count - max(1, count // 5)]) if count else 0.0
    return {"objective": last.objective, "tail": float(late / gained) if gained > 0.0 else 0.0}
