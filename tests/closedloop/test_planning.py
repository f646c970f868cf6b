"""The trajectory attack with a model or a surrogate: it re-plans from what was really reached."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from robustnn.closedloop import TrajectoryAttack, UniformBall, evaluate, rollout, start_states
from robustnn.closedloop.transitions import watch
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError, ShapeError
from tests.closedloop.plants import LinearPlant, curved_policy, error_gradients, linear_policy

PLANT = LinearPlant()
WINDOWS = TrajectoryAttack(0.2, horizon=5, replan=3, iterations=8, method="steepest", restarts=2)


def run(attack, policy=curved_policy, count=4, plant=PLANT, **options):
    state0 = start_states(plant, range(count), dtype=torch.float64)
    return rollout(plant, policy, state0, perturbation=attack, **options)


def upright(y):
    """Hold the pendulum upright, with torques of a few N m per rad over the 2 N m of action one."""
    return (-(8.0 * y[..., 1:2] + 2.0 * y[..., 2:3]) / 2.0).clamp(-1.0, 1.0)


class NumpyPlant(LinearPlant):
    """A plant through which no gradient passes."""

    def transition(self, state, action):
        moved = super().transition(state.detach(), action.detach()).numpy()
        return torch.from_numpy(moved.copy())


@dataclass(frozen=True)
class LearnedLinear:
    """y+ = M (y, u) by least squares, reward by least squares; its state is the observation."""

    dynamics: torch.Tensor
    payoff: torch.Tensor
    n_x = 3

    @classmethod
    def fit(cls, data):
        x = torch.cat((data.observations, data.actions), -1)
        pair = (torch.linalg.lstsq(x, t, driver="gelsd").solution.T
                for t in (data.next_observations, data.rewards.unsqueeze(-1)))  # fmt: skip
        return cls(*pair)

    def state_of(self, observation):
        return observation

    def observation(self, state):
        return state

    def transition(self, state, action):
        return torch.cat((state, action), -1) @ self.dynamics.T

    def reward(self, state, action, next_state):
        return (torch.cat((state, action), -1) @ self.payoff.T).squeeze(-1)

    def terminal(self, state):
        return torch.zeros_like(state[..., 0], dtype=torch.bool)


def test_planning_as_one_goes_with_the_true_plant_is_planning_ahead():
    ahead = run(replace(WINDOWS, keep_best=False))
    online = run(replace(WINDOWS, keep_best=False, model=PLANT))
    torch.testing.assert_close(online.perturbed, ahead.perturbed, rtol=1e-9, atol=1e-9)
    (a,), (b,) = ahead.convergence, online.convergence
    assert a.values.shape == b.values.shape and (a.counts == b.counts).all()


def test_a_plant_without_gradients_is_attacked_through_a_model():
    plant = NumpyPlant()
    with_model = run(replace(WINDOWS, model=PLANT), plant=plant)
    true = run(replace(WINDOWS, model=PLANT))
    torch.testing.assert_close(with_model.perturbed, true.perturbed, rtol=1e-9, atol=1e-9)
    blind = run(replace(WINDOWS, model=plant), plant=plant)
    assert with_model.returns.mean() < blind.returns.mean()


def test_a_learned_model_of_observations_reaches_the_closed_form():
    data = watch(linear_policy, PLANT, episodes=40, exploration=0.5, dtype=torch.float64)
    model = LearnedLinear.fit(data)
    eps = 0.2
    attack = TrajectoryAttack(eps, horizon=12, replan=4, iterations=60, method="steepest", model=model)
    nominal, attacked = run(None, linear_policy).returns, run(attack, linear_policy).returns
    most = eps * error_gradients(PLANT.horizon).norm(dim=-1).sum()
    damage = nominal - attacked
    assert (damage <= most * (1 + 1e-12)).all() and (damage >= 0.99 * most).all()


def test_a_wrong_pendulum_does_most_of_the_damage_of_the_right_one():
    plant = Pendulum(max_start_angle=0.2, max_start_speed=0.1, horizon=60)
    attack = TrajectoryAttack(0.05, horizon=30, replan=10, iterations=10, method="steepest")
    wrong = Pendulum(mass=1.2, length=0.9, max_start_angle=0.2)
    results = {
        name: evaluate(upright, plant, perturbation, episodes=8, dtype=torch.float64).mean
        for name, perturbation in (
            ("nothing", None),
            ("floor", UniformBall(0.05)),
            ("right", attack),
            ("online", replace(attack, model=plant)),
            ("wrong", replace(attack, model=wrong)),
            ("surrogate", replace(attack, surrogate=lambda y: 0.8 * upright(y))),
        )
    }
    lost = {name: float(results["nothing"] - mean) for name, mean in results.items()}
    assert lost["right"] > lost["floor"] > 0.0
    assert lost["online"] > 0.9 * lost["right"]
    assert lost["wrong"] > 0.7 * lost["right"] and lost["wrong"] > 2 * lost["floor"]
    assert lost["surrogate"] > 0.5 * lost["right"]


@pytest.mark.parametrize("replan", [3, None])
def test_every_window_begins_with_what_was_really_observed(replan):
    asked = []

    class Wrong(LinearPlant):
        def transition(self, state, action):
            return 0.5 * super().transition(state, 1.5 * action)

        def state_of(self, observation):
            asked.append(observation.clone())
            return observation[..., :2]

    trajectory = run(replace(WINDOWS, model=Wrong(), replan=replan))
    begins = [0, 3, 6, 9] if replan else [0, 5, 10]
    assert len(asked) == len(begins)
    for begin, seen in zip(begins, asked, strict=True):
        assert torch.equal(seen, trajectory.observations[begin])


def test_the_policy_is_not_differentiated_where_a_surrogate_is():
    asked = []

    def secretive(y):
        asked.append(y.requires_grad)
        return curved_policy(y)

    with_surrogate = run(replace(WINDOWS, surrogate=curved_policy), secretive)
    assert not any(asked) and len(asked) == PLANT.horizon + 1
    direct = run(replace(WINDOWS, model=PLANT))
    torch.testing.assert_close(with_surrogate.perturbed, direct.perturbed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "attack",
    [
        WINDOWS,
        replace(WINDOWS, model=PLANT),
        TrajectoryAttack(0.1, horizon=5, replan=2, iterations=6, warm_iterations=2, refine=3),
        TrajectoryAttack(0.1, horizon=50, iterations=4, restarts=3, keep_best=False),
        TrajectoryAttack(0.1, horizon=4, iterations=4, warm_iterations=1),
        TrajectoryAttack(0.0, horizon=4, iterations=4, refine=3),
    ],
    ids=["windows", "model", "refined", "one", "cold", "nothing"],
)
def test_budget_is_what_is_differentiated(attack):
    calls = []

    def counted(y):
        calls.append(y.shape[-2] if y.requires_grad else 0)
        return linear_policy(y)

    run(attack, counted)
    budget = attack.budget(PLANT.horizon)
    assert sum(calls) == 4 * budget.policy and budget.plant == budget.policy


def test_descriptions_name_model_and_surrogate():
    described = replace(WINDOWS, model=Pendulum(mass=1.2), surrogate=upright).describe()
    assert described["model"]["type"] == "Pendulum" and described["model"]["mass"] == 1.2
    assert described["surrogate"] == {"type": "upright"}
    assert not {"model", "surrogate"} & set(WINDOWS.describe())


def test_bad_models_are_told():
    for wrong in (3, LinearPlant, linear_policy):
        with pytest.raises(InvalidArgumentError, match="model"):
            replace(WINDOWS, model=wrong)
    with pytest.raises(InvalidArgumentError, match="surrogate"):
        replace(WINDOWS, surrogate=3)
    with pytest.raises(InvalidArgumentError, match="refine"):
        TrajectoryAttack(0.1, refine=3, model=PLANT)

    class OfThreeStates(LinearPlant):
        n_x = 3

    with pytest.raises(ShapeError, match="state_of"):
        run(replace(WINDOWS, model=OfThreeStates()))
