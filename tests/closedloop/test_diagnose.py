from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from robustnn.closedloop import MaximalActionDifference, Perturbation, TrajectoryAttack, UniformBall
from robustnn.closedloop.ball import Ball
from robustnn.closedloop.critic import CriticAttack
from robustnn.closedloop.diagnose import at_budget, diagnose
from robustnn.closedloop.perturb import Process
from robustnn.errors import InvalidArgumentError
from tests.closedloop.plants import K, LinearPlant, curved_policy, error_gradients, linear_policy

PLANT = LinearPlant()
EXACT = {"episodes": 16, "dtype": torch.float64}


def trajectory(eps):
    return TrajectoryAttack(eps, horizon=12, iterations=30, method="steepest")


@dataclass(frozen=True)
class Constant(Perturbation):
    """Adds a constant along the worst direction of the action, of a length that need not grow with eps."""

    eps: float
    sign: float = 1.0
    lengths: tuple[tuple[float, float], ...] = ()
    name: ClassVar[str] = "constant"

    @property
    def ball(self):
        return Ball(self.eps)

    def start(self, loop):
        length = dict(self.lengths).get(self.eps, self.eps)

        class Adding(Process):
            def __call__(self, step, state, observation):
                return observation + length * K[0] / K[0].norm() * sign

        sign = self.sign
        return Adding()

    def describe(self):
        return {"name": self.name}


def rows_of(**attacks):
    rows = diagnose(linear_policy, PLANT, attacks, [0.1, 0.3], **EXACT)
    return {(row["attack"], row["eps"]): row for row in rows}


def test_numbers_of_a_linear_loop_are_those_of_the_closed_form():
    rows = diagnose(linear_policy, PLANT, {"trajectory": trajectory}, [0.3, 0.1], **EXACT)
    assert [row["eps"] for row in rows] == [0.1, 0.3]
    most = float(error_gradients(PLANT.horizon).norm(dim=-1).sum())
    for row in rows:
        np.testing.assert_allclose(row["damage"], row["eps"] * most, rtol=1e-2)
        assert row["beats_floor"] == row["grows"] == "yes"
        assert row["below_floor"] == pytest.approx(row["floor"] - row["return"])
        assert row["gradients"] == 2 * 30 * PLANT.horizon and row["collected"] == 0
        assert row["equal_return"] is None
    np.testing.assert_allclose(rows[1]["fall"], rows[0]["return"] - rows[1]["return"], rtol=1e-12)
    np.testing.assert_allclose(rows[0]["fall"], rows[0]["damage"], rtol=1e-12)


def test_a_helpful_attack_and_one_that_shrinks_are_found_out():
    harm = -float((error_gradients(PLANT.horizon) @ K[0]).sum().sign())
    found = rows_of(
        harmful=lambda eps: Constant(eps, harm),
        helpful=lambda eps: Constant(eps, -harm),
        shrinking=lambda eps: Constant(eps, harm, lengths=((0.3, 0.01),)),
        noise=BallNoise,
    )
    assert all(found["harmful", eps][key] == "yes" for eps in (0.1, 0.3) for key in ("beats_floor", "grows"))
    assert all(found["helpful", eps][key] == "no" for eps in (0.1, 0.3) for key in ("beats_floor", "grows"))
    assert found["helpful", 0.3]["damage"] < 0.0 < found["harmful", 0.3]["damage"]
    assert found["shrinking", 0.1]["grows"] == "yes" and found["shrinking", 0.3]["grows"] == "no"
    assert found["noise", 0.1]["beats_floor"] == "unclear"
    assert found["noise", 0.1]["below_floor"] == 0.0 == found["noise", 0.1]["below_floor_noise"]


@dataclass(frozen=True)
class BallNoise(UniformBall):
    """The floor itself as an attack."""

    @property
    def ball(self):
        return Ball(self.eps)


def test_the_tail_tells_an_attack_that_was_stopped_too_early():
    def slow(eps):
        return MaximalActionDifference(eps, iterations=10, step_fraction=0.02)

    def long(eps):
        return MaximalActionDifference(eps, iterations=60, step_fraction=0.25)

    rows = diagnose(linear_policy, PLANT, {"slow": slow, "long": long}, [0.2], **EXACT)
    tails = {row["attack"]: row["tail"] for row in rows}
    assert tails["slow"] > 0.15 and tails["long"] < 0.01
    assert rows[0]["objective"] == "squared action change"


def test_a_stack_and_other_norms_work():
    gains = torch.tensor([0.5, 1.0], dtype=torch.float64).reshape(2, 1, 1)
    rows = diagnose(
        lambda y: gains * linear_policy(y),
        PLANT,
        {"mad": lambda eps: MaximalActionDifference(eps, "linf", (1.0, 2.0, 1.0))},
        [0.2],
        policies=2,
        equal_budget=240,
        **EXACT,
    )
    (row,) = rows
    assert row["equal_gradients"] == 240 and row["gradients"] == 480
    assert all(isinstance(value, (str, float, int)) for value in row.values())


ATTACKS = [
    MaximalActionDifference(0.1),
    CriticAttack(0.1, lambda y, a: a.sum(-1), takes="action", restarts=1),
    CriticAttack(0.1, lambda y: y.sum(-1), takes="observation"),
    TrajectoryAttack.strong(0.1),
    TrajectoryAttack.strongest(0.1),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.name}-{a.restarts}")
@pytest.mark.parametrize("gradients", [5_000, 50_000])
def test_equal_budgets_are_used_up_but_not_exceeded(attack, gradients):
    same = at_budget(attack, 200, gradients)
    spent = same.budget(200).gradients
    more = at_budget(attack, 200, 2 * gradients)
    assert spent <= gradients < replace(same, iterations=same.iterations + 1).budget(200).gradients * 1.3
    assert spent < more.budget(200).gradients <= 2 * gradients
    if attack.name != "trajectory" and same.step_fraction < 2.0:
        travelled = same.iterations * same.step_fraction
        assert travelled == pytest.approx(attack.iterations * attack.step_fraction)


def test_no_budget_and_no_iterations_give_none():
    assert at_budget(UniformBall(0.1), 200, 1000) is None
    assert at_budget(MaximalActionDifference(0.1), 200, 10) is None
    assert at_budget(TrajectoryAttack(0.0), 200, 1000) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"eps": []}, "eps"),
        ({"eps": [0.0]}, "eps"),
        ({"eps": [0.1, 0.1]}, "eps"),
        ({"attacks": {}}, "attacks"),
        ({"attacks": {"a": 3}}, "attacks"),
        ({"attacks": {"a": lambda eps: MaximalActionDifference(2 * eps)}}, "ball"),
        ({"attacks": {"a": lambda eps: Perturbation}}, "ball"),
        ({"confidence": 0.0}, "confidence"),
        ({"equal_budget": 0}, "equal_budget"),
        ({"episodes": 1}, "episodes"),
    ],
)
def test_bad_arguments_are_told(wrong, words):
    good = {"attacks": {"mad": MaximalActionDifference}, "eps": [0.1], "episodes": 2}
    with pytest.raises(InvalidArgumentError, match=words):
        diagnose(curved_policy, PLANT, **(good | wrong))
