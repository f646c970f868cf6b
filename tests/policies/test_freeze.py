"""`FreezeWeights`: fast rollouts with the weights of the present parameters, and nothing left behind."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback

from robustnn import LBDN
from robustnn.errors import NonFiniteError
from robustnn.policies import FreezeWeights, LBDNActorCriticPolicy
from robustnn.policies.callbacks import _Renewal
from tests.policies.toy import randomise, toy_model, toy_vec_env

ALGORITHMS = (PPO, A2C)
OBSERVATION = torch.tensor([[0.3, -0.7, 1.1]])


def fresh_mean(policy: LBDNActorCriticPolicy) -> torch.Tensor:
    """Mean action by an independent network that holds a copy of the present parameters."""
    net: LBDN = policy.action_net
    copied = LBDN(
        net.in_features,
        net.hidden_features,
        net.out_features,
        lipschitz=net.lipschitz,
        activation=net.activation,
    )
    copied.load_state_dict({key: copy.deepcopy(value) for key, value in net.state_dict().items()})
    with torch.no_grad():
        return copied(OBSERVATION)


class Watch(BaseCallback):
    """Runs `action` at chosen moments and records whether the network is frozen there."""

    def __init__(self, action: Callable[[Watch], None] = lambda watch: None) -> None:
        super().__init__()
        self.action = action
        self.frozen: dict[str, set[bool]] = {}
        self.checked = 0

    @property
    def policy(self) -> LBDNActorCriticPolicy:
        return self.model.policy  # type: ignore[return-value]

    def note(self, moment: str) -> None:
        self.frozen.setdefault(moment, set()).add(self.policy.action_net.is_frozen)

    def _on_training_start(self) -> None:
        self.note("training start")

    def _on_rollout_start(self) -> None:
        self.note("rollout start")

    def _on_step(self) -> bool:
        self.note("step")
        self.action(self)
        return True

    def _on_rollout_end(self) -> None:
        self.note("rollout end")

    def _on_training_end(self) -> None:
        self.note("training end")


def hooks(policy: LBDNActorCriticPolicy) -> int:
    return len(policy.action_net._forward_pre_hooks)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_frozen_in_rollouts_only(algorithm: type[BaseAlgorithm]) -> None:
    model = toy_model(algorithm=algorithm)
    watch = Watch()
    in_train: list[bool] = []
    train = model.train
    model.train = lambda: (in_train.append(model.policy.action_net.is_frozen), train())
    model.learn(96, callback=CallbackList([FreezeWeights(), watch]))
    assert watch.frozen == {
        "training start": {False},
        "rollout start": {True},
        "step": {True},
        "rollout end": {False},
        "training end": {False},
    }
    assert len(in_train) == 3 and not any(in_train)
    assert not model.policy.action_net.is_frozen and hooks(model.policy) == 0


def test_weights_are_computed_once_per_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"no grad": 0}
    convert = LBDN._explicit

    def counting(self: LBDN, *args: Any, **kwargs: Any) -> Any:
        counts["no grad"] += not torch.is_grad_enabled()
        return convert(self, *args, **kwargs)

    monkeypatch.setattr(LBDN, "_explicit", counting)
    toy_model().learn(96, callback=FreezeWeights())  # three rollouts of 16 steps of two environments
    assert counts["no grad"] == 3
    counts["no grad"] = 0
    toy_model().learn(96)
    assert counts["no grad"] == 48


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("settings", [{}, {"use_sde": True}], ids=["gaussian", "sde"])
def test_training_is_the_same_bit_for_bit(algorithm: type[BaseAlgorithm], settings: dict[str, Any]) -> None:
    models = [
        toy_model(algorithm=algorithm, learning_rate=0.02, **settings).learn(192, callback=callback)
        for callback in (None, FreezeWeights())
    ]
    pairs = zip(models[0].policy.named_parameters(), models[1].policy.named_parameters(), strict=True)
    for (name, a), (_, b) in pairs:
        assert torch.equal(a, b), name


def write_data(watch: Watch) -> None:
    watch.policy.action_net.layers[0].weight.data.add_(0.5)


def write_numpy(watch: Watch) -> None:
    watch.policy.action_net.layers[1].psi.detach().numpy()[0] += 0.7


def point_elsewhere(watch: Watch) -> None:
    alpha = watch.policy.action_net.layers[0].alpha
    alpha.data = alpha.data * 1.5


def replace_parameter(watch: Watch) -> None:
    layer = watch.policy.action_net.layers[2]
    layer.bias = torch.nn.Parameter(layer.bias.detach() + 1.0)


def from_vector(watch: Watch) -> None:
    vector = watch.policy.parameters_to_vector()
    watch.policy.load_from_vector(vector + np.random.default_rng(0).normal(size=vector.shape))


def from_state_dict(watch: Watch) -> None:
    state = copy.deepcopy(watch.policy.state_dict())
    state["action_net.layers.0.weight"].add_(0.5)
    watch.policy.load_state_dict(state)


def other_bound(watch: Watch) -> None:
    state = copy.deepcopy(watch.policy.state_dict())
    state["action_net._extra_state"] = {"lipschitz": 9.0}
    watch.policy.load_state_dict(state)


def optimizer_step(watch: Watch) -> None:
    with torch.enable_grad():
        watch.policy.action_net(OBSERVATION).sum().backward()
    for group in watch.policy.optimizer.param_groups:
        group["lr"] = 0.3
    watch.policy.optimizer.step()
    watch.policy.optimizer.zero_grad()


def set_parameters(watch: Watch) -> None:
    parameters = copy.deepcopy(watch.model.get_parameters())
    parameters["policy"]["action_net.layers.1.weight"].mul_(-1.0)
    watch.model.set_parameters(parameters)


def train_mode_and_write(watch: Watch) -> None:
    watch.policy.train()
    watch.policy.action_net.layers[0].weight.data.add_(0.5)
    watch.policy.eval()


WRITERS = (
    write_data, write_numpy, point_elsewhere, replace_parameter, from_vector, from_state_dict, other_bound,
    optimizer_step, set_parameters, train_mode_and_write,
)  # fmt: skip


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_write_in_mid_rollout_is_seen_by_the_next_action(
    writer: Callable[[Watch], None], order: str
) -> None:
    model = toy_model()
    policy = model.policy
    seen: list[bool] = []

    def act(watch: Watch) -> None:
        before = fresh_mean(policy)
        if watch.n_calls == 5:
            writer(watch)
            assert not torch.equal(fresh_mean(policy), before)  # the write matters
        with torch.no_grad():
            seen.append(torch.equal(policy.action_net(OBSERVATION), fresh_mean(policy)))

    # What the very next rollout step computes, without any callback in between.
    forward = policy.forward

    def checked(obs: torch.Tensor, deterministic: bool = False) -> Any:
        expected = fresh_mean(policy)
        seen.append(torch.equal(policy.get_distribution(OBSERVATION).mode(), expected))
        return forward(obs, deterministic)

    policy.forward = checked
    watch = Watch(act)
    callbacks = [watch, FreezeWeights()] if order == "before" else [FreezeWeights(), watch]
    model.learn(32, callback=callbacks)
    assert len(seen) == 32 and all(seen)
    assert not policy.action_net.is_frozen and hooks(policy) == 0


class Stop(BaseCallback):
    """Stops training, or raises, in the middle of the second rollout."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def _on_step(self) -> bool:
        if self.n_calls < 21:
            return True
        if self.error is not None:
            raise self.error
        return False


@pytest.mark.parametrize("first", [True, False])
def test_unfrozen_when_another_callback_stops_training(first: bool) -> None:
    model = toy_model()
    callbacks = [FreezeWeights(), Stop()]
    model.learn(200, callback=callbacks if first else callbacks[::-1])
    assert model.num_timesteps == 42
    assert not model.policy.action_net.is_frozen and hooks(model.policy) == 0


@pytest.mark.parametrize("error", [ValueError("plant"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_no_stale_weight_after_an_exception(error: Exception) -> None:
    model = toy_model()
    freeze = FreezeWeights()
    with pytest.raises(type(error)):
        model.learn(200, callback=[freeze, Stop(error)])
    for seed in range(2):
        randomise(model.policy, 1.0, seed)
        with torch.no_grad():
            assert torch.equal(model.policy.action_net(OBSERVATION), fresh_mean(model.policy))
        action = model.predict(OBSERVATION[0].numpy(), deterministic=True)[0]
        np.testing.assert_array_equal(action, fresh_mean(model.policy)[0].clamp(-1, 1).numpy())
    # Copies are independent, and the next run cleans up.
    copied = copy.deepcopy(model.policy)
    assert not copied.action_net.is_frozen
    randomise(copied, 1.0, seed=7)
    with torch.no_grad():
        assert torch.equal(copied.action_net(OBSERVATION), fresh_mean(copied))
    model.learn(64, callback=freeze)
    assert not model.policy.action_net.is_frozen and hooks(model.policy) == 0


def test_another_callback_object_takes_over_after_an_exception() -> None:
    model = toy_model()
    with pytest.raises(ValueError):
        model.learn(200, callback=[FreezeWeights(), Stop(ValueError("plant"))])
    model.learn(64, callback=FreezeWeights())
    randomise(model.policy, 1.0)
    with torch.no_grad():
        assert torch.equal(model.policy.action_net(OBSERVATION), fresh_mean(model.policy))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learn_again(algorithm: type[BaseAlgorithm]) -> None:
    models = []
    for callback in (None, FreezeWeights()):
        model = toy_model(algorithm=algorithm)
        model.learn(64, callback=callback)
        model.learn(64, callback=callback, reset_num_timesteps=False)
        models.append(model)
    assert models[0].num_timesteps == 128
    for a, b in zip(models[0].policy.parameters(), models[1].policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("order", ["before", "after"])
def test_evaluation_inside_a_rollout(order: str, tmp_path: Any) -> None:
    model = toy_model()
    evaluation = EvalCallback(
        toy_vec_env(n_envs=1), n_eval_episodes=1, eval_freq=5, best_model_save_path=str(tmp_path), verbose=0
    )
    callbacks = [evaluation, FreezeWeights(), Watch()]
    model.learn(96, callback=callbacks if order == "before" else callbacks[::-1])
    assert evaluation.last_mean_reward > -np.inf
    best = PPO.load(tmp_path / "best_model", device="cpu")
    assert not best.policy.action_net.is_frozen and hooks(best.policy) == 0


def test_copies_and_files_made_in_a_rollout_are_independent() -> None:
    model = toy_model()
    copies: list[LBDNActorCriticPolicy] = []

    def take(watch: Watch) -> None:
        if watch.n_calls == 3:
            copies.append(copy.deepcopy(watch.policy))
            copies.append(pickle.loads(pickle.dumps(watch.policy)))
            buffer = io.BytesIO()
            torch.save(watch.policy, buffer)
            buffer.seek(0)
            copies.append(torch.load(buffer, weights_only=False))

    model.learn(32, callback=[FreezeWeights(), Watch(take)])
    assert len(copies) == 3
    for copied in copies:
        assert not copied.action_net.is_frozen
        randomise(copied, 1.0)
        with torch.no_grad():
            assert torch.equal(copied.action_net(OBSERVATION), fresh_mean(copied))


def test_diverged_parameters_are_reported_in_the_rollout() -> None:
    model = toy_model()

    def poison(watch: Watch) -> None:
        watch.policy.action_net.layers[0].weight.data[0, 0] = float("nan")

    with pytest.raises(NonFiniteError, match="weight"):
        model.learn(32, callback=[FreezeWeights(), Watch(poison)])


def test_mlp_policy_is_left_alone() -> None:
    toy_model(policy="MlpPolicy").learn(32, callback=FreezeWeights())


def test_gradients_in_a_rollout_do_not_use_frozen_weights() -> None:
    model = toy_model()

    def differentiate(watch: Watch) -> None:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(
                watch.policy.action_net(OBSERVATION).sum(), watch.policy.action_net.layers[0].alpha
            )
        assert float(gradient.abs()) > 0

    model.learn(32, callback=[FreezeWeights(), Watch(differentiate)])


def test_tensors_without_numpy_views_are_compared_too() -> None:
    """As on a GPU: numpy has no bfloat16."""
    net = LBDN(3, (4,), 2, dtype=torch.bfloat16)
    net.register_forward_pre_hook(_Renewal(net.freeze()))
    x = OBSERVATION.to(torch.bfloat16)
    with torch.no_grad():
        before = net(x)
        assert torch.equal(net(x), before)
        net.layers[0].weight.data.add_(torch.eye(7, 4, dtype=torch.bfloat16))
        after = net(x)
        assert not torch.equal(after, before)
        assert torch.equal(after, net.explicit()(x))
