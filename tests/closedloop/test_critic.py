from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from robustnn.closedloop import MaximalActionDifference, evaluate_env, rollout, start_states
from robustnn.closedloop.critic import CriticAttack
from robustnn.closedloop.critics import Critic, critic_of
from robustnn.envs import PendulumSwingUpEnv
from robustnn.errors import InvalidArgumentError
from robustnn.params import ExplicitMLP
from robustnn.policies import LBDNActorCriticPolicy, LBDNSACPolicy, action_map
from tests.closedloop.plants import K, LinearPlant, curved_policy, linear_policy

PLANT = LinearPlant()
SCALE = (0.5, 2.0, 1.0)
EPS64 = torch.finfo(torch.float64).eps


def starts(count=4, dtype=torch.float64):
    return start_states(PLANT, range(count), dtype=dtype)


def run(attack, policy=linear_policy, count=4, plant=PLANT, **options):
    return rollout(plant, policy, starts(count), perturbation=attack, **options)


def dual(gradient, norm):
    return float(gradient.norm() if norm == "l2" else gradient.abs().sum())


def random_network(n_in, n_out, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return ExplicitMLP((draw(8, n_in), draw(n_out, 8)), (draw(8), draw(n_out)), "tanh")


@pytest.mark.parametrize("scale", [None, SCALE])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_value_of_the_state_reaches_its_least_value(norm, scale):
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    attack = CriticAttack(0.3, lambda y: y @ slope, norm, scale, step_fraction=0.5, takes="observation")
    trajectory = run(attack)
    drop = (trajectory.perturbed - trajectory.observations) @ slope
    best = -0.3 * dual(slope * torch.tensor(scale or (1.0, 1.0, 1.0)), norm)
    assert drop.min() >= best * (1 + 64 * EPS64)
    assert drop.max() <= best * (1 - 1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_value_of_the_action_is_lowered_through_the_policy(sign):
    attack = CriticAttack(0.3, lambda y, a: sign * a.squeeze(-1), step_fraction=0.5, takes="action")
    trajectory = run(attack)
    change = sign * (trajectory.actions - linear_policy(trajectory.observations))
    best = -0.3 * dual(K[0], "l2")
    assert change.min() >= best * (1 + 64 * EPS64) and change.max() <= best * (1 - 1e-6)


def test_the_state_in_q_is_the_true_one_and_both_sides_are_tried():
    """The farthest action from tanh(y_0): on one side or the other, in closed form for a linear policy."""

    def critic(y, a):
        return -((a - torch.tanh(y[..., :1])) ** 2).squeeze(-1) + 100.0 * y[..., 1]

    trajectory = run(CriticAttack(0.4, critic, step_fraction=0.5, takes="action"), count=16)
    y = trajectory.observations
    reach = 0.4 * dual(K[0], "l2")
    best = -(((linear_policy(y) - torch.tanh(y[..., :1])).abs() + reach) ** 2).squeeze(-1) + 100.0 * y[..., 1]
    found = critic(y, trajectory.actions)
    assert (found >= best - 64 * EPS64 * best.abs().amax()).all()
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("show", "sign"), [("worst", 1.0), ("best", -1.0)])
def test_a_critic_of_states_can_show_either_end(show, sign):
    attack = CriticAttack(0.3, lambda y: y[..., 0], takes="observation", show=show, step_fraction=0.5)
    trajectory = run(attack)
    shift = (trajectory.perturbed - trajectory.observations)[..., 0]
    torch.testing.assert_close(shift, torch.full_like(shift, -0.3 * sign), rtol=1e-6, atol=0)
    (convergence,) = trajectory.convergence
    seen = trajectory.perturbed[..., 0].mean(-1).numpy()
    np.testing.assert_allclose(convergence.values[:, -1], seen, rtol=1e-12)


@pytest.mark.parametrize("own_states", [False, True])
def test_with_a_model_the_value_of_the_next_observation_is_lowered(own_states):
    """V = -w'x one step on, through the action: linear in the error, so the optimum is known."""

    class Observing(LinearPlant):
        def state_of(self, observation):
            return observation[..., :2]

    model = Observing() if own_states else PLANT
    attack = CriticAttack(
        0.3, lambda y: y[..., 1], takes="observation", model=model, step_fraction=0.5, restarts=3
    )
    trajectory = run(attack)
    change = trajectory.actions - linear_policy(trajectory.observations)
    best = -0.3 * dual(K[0], "l2")  # the second state grows with the action
    torch.testing.assert_close(change, torch.full_like(change, best), rtol=1e-6, atol=0)
    (convergence,) = trajectory.convergence
    after = trajectory.states[1:, :, 1].mean(-1).numpy()
    np.testing.assert_allclose(convergence.values[:, -1], after, rtol=1e-9, atol=1e-12)
    budget = attack.budget(PLANT.horizon)
    assert budget.policy == budget.plant == budget.critic == PLANT.horizon * 20 * 3


def test_the_choice_with_the_least_value_is_reached():
    """Three logits of which every one can be made the largest, and values that fall from choice to choice."""
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([2.0, 1.0, -5.0], dtype=torch.float64)

    class ThreeLogits(LinearPlant):
        n_u = 3

        def transition(self, state, action):
            return 0.5 * state

    attack = CriticAttack(5.0, lambda y: values.expand(*y.shape[:-1], 3), takes="choice", step_fraction=0.5)
    trajectory = run(attack, lambda y: 1e3 * y @ directions.T, plant=ThreeLogits(), count=8)
    assert (trajectory.actions.argmax(-1) == 2).all()
    (convergence,) = trajectory.convergence
    np.testing.assert_array_equal(convergence.values[:, -1], -5.0)


@pytest.mark.parametrize("takes", ["observation", "action"])
def test_perturbations_stay_in_the_ball_and_convergence_falls(takes):
    critic = Critic((random_network(3 + (takes == "action"), 1),), takes)
    trajectory = run(CriticAttack(0.2, critic, iterations=8), curved_policy)
    errors = (trajectory.perturbed - trajectory.observations).norm(dim=-1)
    assert errors.max() <= 0.2 * (1 + 64 * EPS64)
    (convergence,) = trajectory.convergence
    assert convergence.values.shape == (PLANT.horizon, 9)
    assert (np.diff(convergence.values, axis=1) <= 0.0).all()
    assert (convergence.values[:, -1] < convergence.values[:, 0]).any()


def test_a_stack_does_to_each_policy_what_a_single_attack_does():
    critics = [
        Critic((random_network(4, 1, seed), random_network(4, 1, seed + 9)), "action") for seed in (0, 1)
    ]
    options = {"policy": linear_policy, "steps": 3}
    attack = CriticAttack(0.2, Critic.stack(critics))
    stacked = rollout(PLANT, state0=starts().expand(2, 4, 2), perturbation=attack, **options)
    for k, critic in enumerate(critics):
        single = run(CriticAttack(0.2, critic), **options)
        torch.testing.assert_close(stacked.perturbed[:, k], single.perturbed, rtol=1e-9, atol=1e-9)


def test_a_critic_follows_the_dtype_of_the_loop():
    critic = Critic((random_network(3, 1),), "observation")
    state0 = starts(dtype=torch.float32)
    trajectory = rollout(PLANT, linear_policy, state0, perturbation=CriticAttack(0.1, critic))
    assert trajectory.perturbed.dtype == torch.float32


def vec_env():
    env = VecNormalize(DummyVecEnv([PendulumSwingUpEnv]), clip_obs=2.0)
    env.seed(0)
    env.reset()
    for _ in range(20):
        env.step(np.ones((1, 1), dtype=np.float32))
    env.training = False
    return env


def observations(count=32):
    generator = torch.Generator().manual_seed(3)
    return 3.0 * torch.randn(count, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("policy", ["MlpPolicy", LBDNActorCriticPolicy])
def test_value_network_of_ppo(policy):
    kwargs = {"net_arch": [16, 16]}
    if policy != "MlpPolicy":
        kwargs |= {"lipschitz": 5.0, "lipschitz_critic": 7.0, "observation_scale": (1.0, 1.0, 4.0)}
    env = vec_env()
    model = PPO(policy, env, policy_kwargs=kwargs, device="cpu", n_steps=8, batch_size=8, seed=0)
    raw = observations()
    seen = torch.as_tensor(env.normalize_obs(raw.numpy()), dtype=torch.float32)
    with torch.no_grad():
        expected = model.policy.predict_values(seen).squeeze(-1).double()
    torch.testing.assert_close(critic_of(model, env)(raw), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "policy"), [(SAC, "MlpPolicy"), (TD3, "MlpPolicy"), (SAC, LBDNSACPolicy)]
)
def test_q_networks_of_sac_and_td3(algorithm, policy):
    kwargs = {"net_arch": [16, 16]} | (
        {} if policy == "MlpPolicy" else {"lipschitz": 5.0, "lipschitz_critic": 3.0}
    )

    class Wide(PendulumSwingUpEnv):
        """Actions from -1 to 3: the networks see them scaled."""

        action_space = spaces.Box(-1.0, 3.0, (1,), np.float32)

        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-1.0, 3.0, (1,), np.float32)

    model = algorithm(policy, Wide(), policy_kwargs=kwargs, device="cpu", buffer_size=10, seed=0)
    raw = observations()
    actions = torch.linspace(-1.0, 3.0, len(raw), dtype=torch.float64).unsqueeze(-1)
    scaled = torch.as_tensor(model.policy.scale_action(actions.numpy()), dtype=torch.float32)
    with torch.no_grad():
        expected = torch.cat(model.policy.critic(raw.float(), scaled), dim=-1).amin(-1).double()
    torch.testing.assert_close(critic_of(model)(raw, actions), expected, rtol=1e-5, atol=1e-6)


def test_q_networks_of_dqn():
    model = DQN(
        "MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu", buffer_size=10, seed=0
    )
    critic = critic_of(model)
    raw = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert critic.takes == "choice"
    torch.testing.assert_close(critic(raw), action_map(model.policy)(raw), rtol=0, atol=64 * EPS64)


@pytest.mark.parametrize("discrete", [False, True])
def test_it_runs_in_gymnasium_environments_without_a_plant(discrete):
    if discrete:
        env, kwargs = "CartPole-v1", {"net_arch": [8]}
        model = DQN("MlpPolicy", env, policy_kwargs=kwargs, device="cpu", buffer_size=10, seed=0)
        expected = {"policy": 5 * 20 * 2, "critic": 0}
    else:
        env = "Pendulum-v1"
        model = TD3("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, device="cpu", buffer_size=10, seed=0)
        expected = {"policy": 5 * 20 * 2, "critic": 5 * 20 * 2}
    attack = CriticAttack(0.2, critic_of(model))
    attacked = evaluate_env(model, env, attack, episodes=2, steps=5)
    nominal = evaluate_env(model, env, episodes=2, steps=5)
    assert attacked.returns.shape == nominal.returns.shape == (2,)
    assert np.isfinite(attacked.returns).all()
    budget = attack.budget(5)
    assert {"policy": budget.policy, "critic": budget.critic} == expected


def test_budget_is_what_is_differentiated():
    calls = {"policy": 0, "critic": 0}

    def counted(name, function):
        def call(y, *rest):
            calls[name] += y.shape[-2] if y.requires_grad or any(a.requires_grad for a in rest) else 0
            return function(y, *rest)

        return call

    policy = counted("policy", curved_policy)
    critic = counted("critic", lambda y, a: a.squeeze(-1))
    attack = CriticAttack(0.1, critic, takes="action", iterations=5, restarts=3)
    run(attack, policy)
    budget = attack.budget(PLANT.horizon)
    assert (4 * budget.policy, 4 * budget.critic) == (calls["policy"], calls["critic"])
    calls["policy"] = 0
    mad = MaximalActionDifference(0.1, iterations=5, restarts=3)
    run(mad, policy)
    assert 4 * mad.budget(PLANT.horizon).policy == calls["policy"]


def test_descriptions_are_plain_and_name_the_critic():
    critic = Critic((random_network(3, 1),), "observation")
    first, same = (CriticAttack(0.1, critic).describe() for _ in range(2))
    other = CriticAttack(0.1, replace(critic, networks=(random_network(3, 1, 5),))).describe()
    assert first == same and first["critic"]["sha256"] != other["critic"]["sha256"]
    assert first["name"] == "critic" and first["takes"] == "observation"


@pytest.mark.parametrize(
    "wrong",
    [
        {"critic": None},
        {"takes": None},
        {"takes": "nothing"},
        {"eps": -1.0},
        {"iterations": 0},
        {"surrogate": 3},
        {"show": "nothing"},
        {"model": 3},
        {"show": "best", "model": PLANT},
        {"critic": lambda y, a: a.sum(-1), "takes": "action", "model": PLANT},
        {"critic": lambda y, a: a.sum(-1), "takes": "action", "show": "best"},
        {"critic": Critic((random_network(3, 1),), "observation"), "takes": "action"},
    ],
)
def test_bad_arguments_are_told(wrong):
    with pytest.raises(InvalidArgumentError, match=next(reversed(wrong))):
        CriticAttack(**({"eps": 0.1, "critic": lambda y: y.sum(-1), "takes": "observation"} | wrong))


def test_a_model_without_critic_and_a_mixed_stack_are_refused():
    model = PPO("MlpPolicy", PendulumSwingUpEnv(), device="cpu", n_steps=8, batch_size=8)
    with pytest.raises(InvalidArgumentError, match="critics"):
        Critic.stack([critic_of(model), Critic((random_network(4, 1),), "action")])
    del model.policy.value_net
    with pytest.raises(InvalidArgumentError, match="model"):
        critic_of(model)
