"""Fine-tuning under a falling bound: the course of the bound, and that the best weights come back whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from robustnn.errors import InvalidArgumentError, NonFiniteError
from robustnn.policies import FreezeWeights
from robustnn.policies.convert import convert_policy
from robustnn.policies.finetune import NoisyReturn, fine_tune
from tests.policies.toy import OBSERVATIONS, any_model, toy_model, toy_vec_env


class Scripted:
    """A measure that follows a script, and remembers the whole state of the model whenever it is asked."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)
        self.seen: list[dict[str, Any]] = []

    def __call__(self, model: Any) -> float:
        self.seen.append(state(model))
        return next(self.values)


def state(model: Any) -> dict[str, Any]:
    """Networks, optimisers, further variables and normalisation, as numbers."""
    found: dict[str, Any] = {"gamma": model.policy.lipschitz}
    names, variables = model._get_torch_save_params()
    for name in names:
        tensors: dict[str, Any] = attrgetter(name)(model).state_dict()
        if name.endswith("optimizer"):
            tensors = {f"{k} {key}": v for k, s in tensors["state"].items() for key, v in s.items()}
        found |= {
            f"{name} {key}": value.clone()
            for key, value in tensors.items()
            if isinstance(value, torch.Tensor)
        }
    found |= {name: attrgetter(name)(model).detach().clone() for name in variables}
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        found["mean"], found["return"] = normalize.obs_rms.mean.copy(), float(normalize.ret_rms.var)
    return found


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    assert a.keys() == b.keys()
    return all(np.array_equal(np.asarray(value), np.asarray(b[key])) for key, value in a.items())


def ppo() -> Any:
    return toy_model(env=VecNormalize(toy_vec_env()))


@pytest.mark.parametrize("make", [ppo, lambda: any_model("SAC"), lambda: any_model("QRDQN")])
@pytest.mark.parametrize("best", [0, 2, 4])
def test_the_best_weights_come_back_whole(make: Callable[[], Any], best: int) -> None:
    model = make()
    model.learn(128)
    start = model.policy.lipschitz
    script = [1.0, 2.0, 3.0, 2.5, 0.0]
    script[best] = 7.0
    measure = Scripted(script)
    tuning = fine_tune(model, 128, final_lipschitz=0.25 * start, measure=measure, eval_every=32)
    assert [trial.measure for trial in tuning.trials] == script
    assert tuning.kept is tuning.trials[best]
    gammas = [trial.lipschitz for trial in tuning.trials]
    assert gammas[0] == start and gammas[-1] == 0.25 * start
    assert all(later < earlier for earlier, later in zip(gammas, gammas[1:4], strict=False))
    assert [trial.timesteps for trial in tuning.trials] == [128, 160, 192, 224, 256]
    # The states differ from each other, and the model is in the best one.
    now = state(model)
    assert [equal(now, seen) for seen in measure.seen] == [k == best for k in range(5)]
    assert model.policy.lipschitz == gammas[best] == tuning.kept.lipschitz
    # What is kept shares no memory with what training writes to.
    model.learn(64, reset_num_timesteps=False)
    assert not equal(state(model), measure.seen[best])


def test_the_last_weights_stay_without_keep_best() -> None:
    model = ppo()
    measure = Scripted([5.0, 1.0, 2.0])
    tuning = fine_tune(model, 64, final_lipschitz=1.0, measure=measure, eval_every=32, keep_best=False)
    assert tuning.kept is tuning.trials[-1]
    assert model.policy.lipschitz == 1.0
    assert equal(state(model), measure.seen[-1])


def test_of_equal_policies_the_one_with_the_smallest_bound_is_kept() -> None:
    model = ppo()
    tuning = fine_tune(model, 96, final_lipschitz=1.0, measure=Scripted([1.0, 3.0, 3.0, 2.0]), eval_every=32)
    assert tuning.kept is tuning.trials[2]
    assert model.policy.lipschitz == tuning.kept.lipschitz < tuning.trials[1].lipschitz


class Watch(BaseCallback):
    """Records the bound at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.gammas: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        self.gammas.append((self.num_timesteps, self.model.policy.lipschitz))  # type: ignore[union-attr, arg-type]
        return True


@pytest.mark.parametrize(("schedule", "half"), [("geometric", 2.0), ("linear", 2.5)])
@pytest.mark.parametrize("reset", [False, True])
def test_the_bound_falls_along_the_schedule_and_rests(schedule: str, half: float, reset: bool) -> None:
    model = any_model("SAC", n_envs=1)
    model.learn(50)
    watch = Watch()
    fine_tune(
        model, 100, final_lipschitz=1.0, measure=lambda model: 0.0, schedule=schedule, fall=0.6,
        callback=[watch, FreezeWeights()], reset_num_timesteps=reset, keep_best=False,
    )  # fmt: skip
    begin = 0 if reset else 50
    assert [step for step, _ in watch.gammas] == list(range(begin + 1, begin + 101))
    gammas = [gamma for _, gamma in watch.gammas]
    assert gammas[29] == pytest.approx(half, rel=1e-12)  # from 4 to 1 in 60 steps
    assert all(later < earlier for earlier, later in zip(gammas[:60], gammas[1:60], strict=False))
    assert set(gammas[59:]) == {1.0}


def test_a_converted_agent_is_made_robust() -> None:
    source = toy_model(policy="MlpPolicy", policy_kwargs={"net_arch": [8]}, learning_rate=3e-3, n_steps=64)
    source.learn(4_000)
    model = convert_policy(source)
    start = model.policy.lipschitz
    measure = NoisyReturn(toy_vec_env(n_envs=4), eps=0.5)
    before = measure(source)
    assert measure(model) == pytest.approx(before, abs=1e-4)
    tuning = fine_tune(model, 4_000, final_lipschitz=0.25 * start, measure=measure)
    assert measure(model) == tuning.kept.measure == max(trial.measure for trial in tuning.trials)
    assert tuning.kept.measure > before
    assert tuning.kept.lipschitz < start


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", ["PPO", "DQN", "SAC"])
def test_without_noise_it_is_the_ordinary_return(name: str, normalised: bool) -> None:
    model = any_model(name)
    space = model.action_space
    if normalised:
        model.set_env(VecNormalize(toy_vec_env(OBSERVATIONS, space), norm_reward=False))
    model.learn(200)
    measure = NoisyReturn(toy_vec_env(OBSERVATIONS, space, n_envs=5), eps=0.0, seed=7)
    env = toy_vec_env(OBSERVATIONS, space, n_envs=5)
    if normalised:
        env = VecNormalize(env, norm_reward=False, training=False)
        env.obs_rms = model.get_vec_normalize_env().obs_rms
    env.seed(7)
    expected, _ = evaluate_policy(model, env, n_eval_episodes=5)
    assert measure(model) == pytest.approx(expected, rel=1e-5)
    assert measure(model) == measure(model)


def test_noise_lowers_the_return_of_a_good_policy_and_more_candidates_lower_it_further() -> None:
    # The action follows the first component: the reward is minus the mean error of the action.
    model = toy_model()
    layers = model.policy.lbdn
    built = type(layers).from_linear(
        [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], (8, 8), lipschitz=4.0, activation="tanh", region=3.0
    )
    layers.load_state_dict(built.state_dict())
    returns = [
        NoisyReturn(toy_vec_env(n_envs=8), eps, candidates=candidates)(model)
        for eps, candidates in ((0.0, 1), (0.4, 1), (0.4, 32))
    ]
    assert returns[0] > returns[1] > returns[2]
    # No error of this size changes the return by more: gain sqrt(2) of two equal components, 20 steps.
    assert returns[0] - returns[2] <= 20 * 0.4 * math.sqrt(2.0)


def test_discrete_candidates_attack_the_decision() -> None:
    model = any_model("DQN")
    model.learn(200)
    plain, attacked = (
        NoisyReturn(toy_vec_env(OBSERVATIONS, model.action_space, n_envs=8), 3.0, candidates=k)
        for k in (1, 32)
    )
    assert attacked(model) != plain(model)


def test_spaces_with_discrete_parts() -> None:
    model = any_model("PPO", observations="dict", actions="multi-discrete")
    assert math.isfinite(NoisyReturn(toy_vec_env(model.observation_space, model.action_space), 0.3)(model))


def unbounded() -> Any:
    return toy_model(policy="MlpPolicy")


def without_env() -> Any:
    model = toy_model()
    model.env = None
    return model


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (unbounded, {}, r"Call convert_policy\(model\) first"),
        (without_env, {}, "model.env: expected an environment"),
        (lambda: toy_model(policy_kwargs={"trainable_lipschitz": True}), {}, "bound that is not trained"),
        (toy_model, {"final_lipschitz": 5.0}, "at most the present bound 4, got 5.0"),
        (toy_model, {"final_lipschitz": 0.0}, "final_lipschitz"),
        (toy_model, {"schedule": "cosine"}, "'geometric' or 'linear'"),
        (toy_model, {"fall": 1.5}, r"fall: expected a fraction in \(0, 1\]"),
        (toy_model, {"eval_every": 0}, "eval_every"),
        (toy_model, {"total_timesteps": 0}, "total_timesteps"),
    ],
)
def test_wrong_calls(make: Callable[[], Any], arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"total_timesteps": 32, "final_lipschitz": 1.0, **arguments}
    with pytest.raises(InvalidArgumentError, match=message):
        fine_tune(make(), measure=lambda model: 0.0, **settings)


def test_a_measure_that_is_no_number() -> None:
    with pytest.raises(NonFiniteError, match="measure: expected a number, got NaN"):
        fine_tune(toy_model(), 32, final_lipschitz=1.0, measure=lambda model: math.nan)


def test_noise_needs_raw_observations() -> None:
    with pytest.raises(InvalidArgumentError, match="vec_env: expected raw observations"):
        NoisyReturn(VecNormalize(toy_vec_env()), 0.1)
    with pytest.raises(InvalidArgumentError, match="eps"):
        NoisyReturn(toy_vec_env(), -1.0)
