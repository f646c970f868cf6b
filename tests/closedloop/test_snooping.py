from __future__ import annotations

import pytest
import torch

from robustnn.closedloop import MaximalActionDifference, UniformBall, evaluate, rollout, start_states
from robustnn.closedloop.critic import CriticAttack
from robustnn.closedloop.snooping import imitate
from robustnn.closedloop.transitions import Transitions, watch
from robustnn.errors import InvalidArgumentError, ShapeError
from tests.closedloop.plants import LinearPlant


class SeenPlant(LinearPlant):
    """The state is observed as it is: of sensors that always move together, nobody who watches can tell one's gain."""

    n_y = 2

    def observation(self, state):
        return state


PLANT = SeenPlant(horizon=8)
GAIN = torch.tensor([[-2.0, -1.0]])
GAINS = torch.tensor([0.3, 1.0]).reshape(2, 1, 1)


def stack(y):
    return torch.tanh(GAINS.to(y) * (y @ GAIN.to(y).T))


def single(y):
    return torch.tanh(y @ GAIN.to(y).T)


def data(**options):
    return watch(single, PLANT, **({"episodes": 128} | options))


def test_the_substitute_predicts_actions_it_was_not_fitted_to():
    substitute, error = imitate(data(), iterations=400, hidden=(32,))
    fresh = data(seeds=range(50))
    found = substitute(fresh.observations)
    spread = fresh.actions.std()
    assert error.shape == () and error < 0.05
    # The held-out error is an honest one: fresh episodes give about the same.
    assert (found - fresh.actions).square().mean().sqrt() / spread < 0.1
    assert found.abs().max() <= data().actions.abs().max()
    untrained, bad = imitate(data(), iterations=1, lr=1e-9, hidden=(32,))
    assert bad > 0.5


def test_a_probe_shows_the_gain_of_sensors_that_always_move_together():
    """y_2 = y_0 / 2 - y_1 on every true observation: only noise tells what the policy makes of each."""
    plant = LinearPlant(horizon=8)
    gain = torch.tensor([[-0.5, 0.2, 0.6]])

    def policy(y):
        return 0.3 * (y @ gain.to(y).T)

    slopes = {}
    for name, probe in (("silent", None), ("probed", UniformBall(0.5))):
        steps = watch(policy, plant, episodes=128, probe=probe)
        together = steps.observations @ torch.tensor([0.5, -1.0, -1.0])
        assert (together.abs().max() < 1e-5) == (probe is None)
        torch.testing.assert_close(steps.actions, policy(steps.observations).clamp(-1.0, 1.0))
        imitation = imitate(steps, iterations=400, hidden=(32,)).policy
        y = torch.zeros(1, 3, requires_grad=True)
        (slopes[name],) = torch.autograd.grad(imitation(y).sum(), y)
    errors = {name: float((slope / 0.3 - gain).norm() / gain.norm()) for name, slope in slopes.items()}
    assert errors["probed"] < 0.2 < errors["silent"]


def test_discrete_choices_are_learned():
    steps = data()
    third = (steps.observations[:, :1] > 0.0).float() + (steps.observations[:, 1:2] > 0.5).float()
    labelled = Transitions(**(vars(steps) | {"actions": third}))
    substitute, error = imitate(labelled, n_choices=3, iterations=400, hidden=(32,))
    assert error < 0.1
    decided = substitute.decide(steps.observations)
    assert (decided == third.squeeze(-1).long()).double().mean() > 0.9
    assert set(decided.unique().tolist()) == {0, 1, 2}


def test_every_policy_of_a_stack_is_imitated():
    steps = watch(stack, PLANT, episodes=64, policies=2)
    imitation = imitate(steps, iterations=400, hidden=(32,))
    assert imitation.error.shape == (2,) and (imitation.error < 0.1).all()
    found = imitation.policy(steps.observations)
    errors = (found - steps.actions).square().mean((-2, -1)).sqrt()
    swapped = (found.flip(0) - steps.actions).square().mean((-2, -1)).sqrt()
    assert (errors < 0.5 * swapped).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_snooping_changes_actions_almost_as_much_as_the_attack_with_the_weights(dtype):
    surrogate = imitate(data(), iterations=400, hidden=(32,)).policy

    def change(perturbation):
        state0 = start_states(PLANT, range(64), dtype=dtype)
        run = rollout(PLANT, single, state0, perturbation=perturbation)
        return float((run.actions - single(run.observations)).norm(dim=-1).mean())

    white = change(MaximalActionDifference(0.4))
    grey = change(MaximalActionDifference(0.4, surrogate=surrogate))
    blind = change(MaximalActionDifference(0.4, surrogate=lambda y: y[..., :1] - 2.0 * y[..., 1:]))
    random = change(UniformBall(0.4))
    assert white * (1 + 1e-6) >= grey > 0.9 * white
    assert grey > 2 * random and grey > 2 * blind


def test_the_critic_attack_takes_a_surrogate_and_never_asks_the_policy_for_gradients():
    asked = []

    def secretive(y):
        asked.append(y.requires_grad)
        return single(y)

    surrogate = imitate(data(), iterations=300, hidden=(32,)).policy
    attack = CriticAttack(0.3, lambda y, a: a.squeeze(-1), takes="action", surrogate=surrogate)
    evaluate(secretive, PLANT, attack, episodes=4)
    evaluate(secretive, PLANT, MaximalActionDifference(0.3, surrogate=surrogate), episodes=4)
    assert len(asked) == 2 * (PLANT.horizon + 1) and not any(asked)


def test_descriptions_name_the_surrogate():
    surrogate = imitate(data(), iterations=2).policy
    other = imitate(data(), iterations=2, seed=1).policy
    named = [
        MaximalActionDifference(0.1, surrogate=s).describe()["surrogate"]
        for s in (surrogate, surrogate, other)
    ]
    assert named[0] == named[1] != named[2]
    assert "surrogate" not in MaximalActionDifference(0.1).describe()


def test_bad_arguments_are_told():
    steps = data(episodes=2)
    for wrong in ({"iterations": 0}, {"batch": 0}, {"lr": 0.0}, {"hidden": (0,)}, {"n_choices": 1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            imitate(steps, **wrong)
    with pytest.raises(InvalidArgumentError, match="data"):
        imitate(watch(single, PLANT, episodes=1, steps=4))
    with pytest.raises(ShapeError, match=r"data\.actions"):
        imitate(Transitions(**(vars(steps) | {"actions": steps.observations})), n_choices=3)
    with pytest.raises(InvalidArgumentError, match="surrogate"):
        MaximalActionDifference(0.1, surrogate=7)
