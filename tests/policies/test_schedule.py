"""`ScheduleLipschitz`: the bound moves along its curve while training, in all networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from robustnn.errors import InvalidArgumentError
from robustnn.policies import FreezeWeights, LBDNActorCriticPolicy
from robustnn.policies.callbacks import ScheduleLipschitz
from tests.policies.toy import (
    ALGORITHMS,
    any_model,
    is_off_policy,
    toy_model,
    toy_vec_env,
)


class Bounds(BaseCallback):
    """Notes the bound of every network at every step, and in every update."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []
        self.updates: list[float] = []

    def _on_training_start(self) -> None:
        if "train" not in vars(self.model):
            train = self.model.train
            self.model.train = lambda *args, **kwargs: (  # type: ignore[method-assign]
                self.updates.append(self.model.policy.lipschitz),
                train(*args, **kwargs),
            )[1]

    def _on_step(self) -> bool:
        values = {net.lipschitz for net in self.model.policy.bounded_networks()}
        assert len(values) == 1
        self.steps.append(values.pop())
        return True


@pytest.mark.parametrize("kind", ["geometric", "linear"])
def test_on_policy_the_bound_moves_from_rollout_to_rollout(kind: str) -> None:
    model, bounds = any_model("PPO"), Bounds()
    model.learn(128, callback=[ScheduleLipschitz(0.25, kind=kind), bounds])
    expected = [2.0, 1.0, 0.5, 0.25] if kind == "geometric" else [3.0625, 2.125, 1.1875, 0.25]
    assert bounds.steps[::16] == pytest.approx(expected, rel=1e-12)
    assert (
        bounds.updates == bounds.steps[::16] == bounds.steps[15::16]
    )  # an update has the bound of its rollout
    assert model.policy.lipschitz == 0.25


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in ("PPO", "A2C")])
def test_every_algorithm_ends_with_the_final_bound_in_all_networks(name: str) -> None:
    model, bounds = any_model(name), Bounds()
    model.learn(96, callback=[ScheduleLipschitz(0.5, start=0.25, end=0.75), bounds, FreezeWeights()])
    start = ALGORITHMS[name].lipschitz
    assert all(a >= b for a, b in zip(bounds.steps, bounds.steps[1:], strict=False))
    assert {net.lipschitz for net in model.policy.bounded_networks()} == {0.5}
    if is_off_policy(name):
        assert bounds.steps[11] == start > bounds.steps[12] and bounds.steps[34] > bounds.steps[35] == 0.5
        assert bounds.steps[23] == pytest.approx((start * 0.5) ** 0.5, rel=1e-12)  # half way


def test_rollouts_of_whole_episodes() -> None:
    model, bounds = any_model("TD3", n_envs=1, train_freq=(1, "episode")), Bounds()
    model.learn(60, callback=[ScheduleLipschitz(1.0), bounds])
    assert bounds.steps[::20] == pytest.approx([4.0, 4.0 ** (2 / 3), 4.0 ** (1 / 3)], rel=1e-12)
    assert model.policy.lipschitz == 1.0


@pytest.mark.parametrize("name", ["PPO", "TD3"])
def test_a_training_in_two_parts_follows_the_curve_of_one(name: str, tmp_path: Path) -> None:
    whole, parts, loaded = Bounds(), Bounds(), Bounds()
    any_model(name).learn(192, callback=[ScheduleLipschitz(0.5, end=0.8), whole])

    model, schedule = any_model(name), ScheduleLipschitz(0.5, end=0.8, total_timesteps=192)
    for _ in range(3):
        model.learn(64, callback=[schedule, parts], reset_num_timesteps=False)
    assert parts.steps == pytest.approx(whole.steps, rel=1e-12)

    model = any_model(name)
    model.learn(64, callback=[ScheduleLipschitz(0.5, end=0.8, total_timesteps=192), loaded])
    model.save(tmp_path / "model.zip")
    other = type(model).load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert other.policy.lipschitz == model.policy.lipschitz
    rest = Bounds()
    # Another 128 steps after 64 are 192 in all: the end of the training is known without saying so.
    other.learn(128, callback=[ScheduleLipschitz(0.5, end=0.8), rest], reset_num_timesteps=False)
    assert [*loaded.steps, *rest.steps] == pytest.approx(whole.steps, rel=1e-12)


def test_a_training_that_goes_on_after_the_end_keeps_the_final_bound() -> None:
    model, schedule, bounds = any_model("PPO"), ScheduleLipschitz(1.0), Bounds()
    model.learn(64, callback=schedule)
    model.learn(64, callback=[schedule, bounds], reset_num_timesteps=False)
    assert set(bounds.steps) == {1.0}


def test_a_training_that_is_stopped_keeps_its_bound() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 20

    model, bounds = any_model("PPO"), Bounds()
    model.learn(128, callback=[ScheduleLipschitz(0.25), bounds, Stop()])
    assert bounds.steps[-1] == model.policy.lipschitz == 1.0


def test_kept_weights_follow_the_schedule() -> None:
    models = [
        any_model("TD3").learn(96, callback=[ScheduleLipschitz(0.5), *others])
        for others in ([], [FreezeWeights()])
    ]
    for a, b in zip(*(model.policy.parameters() for model in models), strict=True):
        assert np.array_equal(a.detach().numpy(), b.detach().numpy())


def test_wrong_schedules() -> None:
    for settings, word in (
        ({"final": 0.0}, "final"),
        ({"final": 1.0, "start": 0.5, "end": 0.5}, "start, end"),
        ({"final": 1.0, "end": 1.5}, "start, end"),
        ({"final": 1.0, "start": float("nan")}, "start, end"),
        ({"final": 1.0, "kind": "cosine"}, "kind"),
        ({"final": 1.0, "total_timesteps": 0}, "total_timesteps"),
    ):
        with pytest.raises(InvalidArgumentError, match=word):
            ScheduleLipschitz(**settings)
    with pytest.raises(InvalidArgumentError, match="ScheduleLipschitz out"):
        toy_model(policy="MlpPolicy").learn(32, callback=ScheduleLipschitz(1.0))
    trained = any_model("PPO", policy_kwargs={"trainable_lipschitz": True})
    with pytest.raises(InvalidArgumentError, match="fixed bound"):
        trained.learn(32, callback=ScheduleLipschitz(1.0))
    assert isinstance(PPO(LBDNActorCriticPolicy, toy_vec_env(), policy_kwargs={"lipschitz": 1.0}), PPO)
