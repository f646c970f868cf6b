"""`FreezeWeights`: training with the weights of the present parameters, converted once, and nothing left behind."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback

from robustnn import LBDN
from robustnn.errors import NonFiniteError
from robustnn.nn.module import ExplicitModule
from robustnn.policies import FreezeWeights
from tests.policies.toy import ALGORITHMS, any_model, randomise, toy_model, toy_vec_env

OBSERVATION = torch.tensor([[0.3, -0.7, 1.1]])


def fresh(net: LBDN) -> LBDN:
    """An independent network that holds a copy of the present parameters."""
    copied = LBDN(
        net.in_features,
        net.hidden_features,
        net.out_features,
        lipschitz=net.lipschitz,
        activation=net.activation,
        output_scale=net.output_scale,
    )
    copied.load_state_dict({key: copy.deepcopy(value) for key, value in net.state_dict().items()})
    return copied


def fresh_mean(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return fresh(policy.lbdn)(OBSERVATION)


class Watch(BaseCallback):
    """Runs `action` at every step and records whether weights are kept at chosen moments."""

    def __init__(self, action: Callable[[Watch], None] = lambda watch: None) -> None:
        super().__init__()
        self.action = action
        self.kept: dict[str, set[bool]] = {}

    @property
    def policy(self) -> Any:
        return self.model.policy

    def note(self, moment: str) -> None:
        for net in self.policy.bounded_networks():
            self.kept.setdefault(moment, set()).add(net._keeper is not None)
            assert not net.is_frozen

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


def keepers(policy: torch.nn.Module) -> int:
    """How many networks have weights kept for them."""
    return sum(m._keeper is not None for m in policy.modules() if isinstance(m, ExplicitModule))


# The whole training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_is_the_same_bit_for_bit_and_converts_every_value_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted without gradients, over the networks of the policy and its targets."""
    converted: list[tuple[Any, ...]] = []
    convert = LBDN._explicit

    def counting(self: LBDN, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            bits = tuple(p.detach().numpy().tobytes() for p in self.parameters())
            converted.append((id(self), bits))
        return convert(self, *args, **kwargs)

    monkeypatch.setattr(LBDN, "_explicit", counting)
    plain = any_model(name).learn(96)
    live = len(converted)
    distinct = len(set(converted))
    converted.clear()
    kept = any_model(name).learn(96, callback=FreezeWeights())
    assert len(converted) == len(set(converted)) == distinct
    assert (
        distinct < live or name == "DDPG"
    )  # whose actor and target change at every step and serve once each
    pairs = zip(plain.policy.named_parameters(), kept.policy.named_parameters(), strict=True)
    for (key, a), (_, b) in pairs:
        assert torch.equal(a, b), key
    assert keepers(kept.policy) == 0


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN"])
@pytest.mark.parametrize("case", ["penalty", "vectors", "mixed"])
def test_bit_for_bit_with_other_settings(name: str, case: str) -> None:
    kwargs: dict[str, Any] = (
        {"trainable_lipschitz": True, "lipschitz_penalty": 0.1} if case == "penalty" else {}
    )
    observations = "dict" if case == "mixed" else "vector"
    if case == "vectors" and name != "DQN":
        kwargs["lipschitz_critic"] = 30.0  # the critic and its target have explicit weights as well
    models = []
    for callback in (None, FreezeWeights()):
        model = any_model(name, observations, policy_kwargs=kwargs, learning_rate=0.02)
        model.learn(64, callback=callback)
        model.learn(32, callback=callback, reset_num_timesteps=False)
        models.append(model)
    assert models[0].num_timesteps == 96
    for a, b in zip(models[0].policy.parameters(), models[1].policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN"])
def test_kept_from_the_start_to_the_end_of_training(name: str) -> None:
    model = any_model(name)
    watch = Watch()
    model.learn(96, callback=CallbackList([FreezeWeights(), watch]))
    assert watch.kept == {
        "training start": {True},
        "rollout start": {True},
        "step": {True},
        "rollout end": {True},
        "training end": {False},
    }
    assert keepers(model.policy) == 0


def test_bounded_critics_and_their_targets_are_kept_and_no_layer_of_a_network() -> None:
    model = any_model("TD3", policy_kwargs={"lipschitz_critic": 30.0})
    seen: list[set[Any]] = []

    def note(watch: Watch) -> None:
        modules = [
            m for m in watch.policy.modules() if isinstance(m, ExplicitModule) and m._keeper is not None
        ]
        seen.append(set(modules))

    model.learn(2, callback=[FreezeWeights(), Watch(note)])
    assert len(seen[0]) == 6 and all(isinstance(net, LBDN) for net in seen[0])
    assert set(model.policy.bounded_networks()) < seen[0]


@pytest.mark.parametrize("name", ["SAC", "TD3", "DQN", "QRDQN"])
def test_next_values_in_the_update_are_those_of_the_present_parameters(name: str) -> None:
    """Also of target networks, which change through `.data`, and where nobody ever calls train()."""
    model = any_model(name, learning_rate=0.02)
    checked = {id(net): 0 for net in model.policy.bounded_networks()}
    values: dict[int, set[bytes]] = {key: set() for key in checked}

    def compare(net: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            assert torch.equal(output, fresh(net)(args[0]))  # type: ignore[arg-type]
            checked[id(net)] += 1
            values[id(net)].add(next(net.parameters()).detach().numpy().tobytes())

    for net in model.policy.bounded_networks():
        net.register_forward_hook(compare)
    model.learn(128, callback=FreezeWeights())
    assert all(count > 15 for count in checked.values())
    assert all(len(seen) >= 2 for seen in values.values())


# Writes in the middle ---------------------------------------------------------------------------------------


def write_data(watch: Watch) -> None:
    watch.policy.lbdn.layers[0].weight.data.add_(0.5)


def write_numpy(watch: Watch) -> None:
    watch.policy.lbdn.layers[1].psi.detach().numpy()[:] += 0.7 * np.arange(8)


def point_elsewhere(watch: Watch) -> None:
    alpha = watch.policy.lbdn.layers[0].alpha
    alpha.data = alpha.data * 1.5


def replace_parameter(watch: Watch) -> None:
    layer = watch.policy.lbdn.layers[2]
    layer.bias = torch.nn.Parameter(layer.bias.detach() + 1.0)


def from_vector(watch: Watch) -> None:
    vector = watch.policy.parameters_to_vector()
    watch.policy.load_from_vector(vector + np.random.default_rng(0).normal(size=vector.shape))


def from_state_dict(watch: Watch) -> None:
    state = copy.deepcopy(watch.policy.state_dict())
    key = next(key for key in state if key.endswith("layers.0.weight"))
    state[key].add_(0.5)
    watch.policy.load_state_dict(state)


def of_a_layer(watch: Watch) -> None:
    layer = watch.policy.lbdn.layers[0]
    layer.load_state_dict({key: value + 0.5 for key, value in layer.state_dict().items()})


def other_bound(watch: Watch) -> None:
    state = copy.deepcopy(watch.policy.state_dict())
    key = next(key for key in state if key.endswith("_extra_state"))
    state[key] = {"lipschitz": 9.0}
    watch.policy.load_state_dict(state)


def set_bound(watch: Watch) -> None:
    watch.policy.set_lipschitz(7.0)


def set_extra_state(watch: Watch) -> None:
    watch.policy.lbdn.set_extra_state({"lipschitz": 6.0})


def optimizer_step(watch: Watch) -> None:
    optimizer = watch.policy._actor_optimizer()
    with torch.enable_grad():
        watch.policy.lbdn(OBSERVATION).sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    optimizer.step()
    optimizer.zero_grad()


def set_parameters(watch: Watch) -> None:
    parameters = copy.deepcopy(watch.model.get_parameters())
    key = next(key for key in parameters["policy"] if key.endswith("layers.1.weight"))
    parameters["policy"][key].mul_(-1.0)
    watch.model.set_parameters(parameters)


def train_mode_and_write(watch: Watch) -> None:
    watch.policy.train()
    watch.policy.lbdn.layers[0].weight.data.add_(0.5)
    watch.policy.eval()


WRITERS = (
    write_data, write_numpy, point_elsewhere, replace_parameter, from_vector, from_state_dict, of_a_layer, other_bound,
    set_bound, set_extra_state, optimizer_step, set_parameters, train_mode_and_write,
)  # fmt: skip


@pytest.mark.parametrize(
    "name, order",
    [("PPO", "before"), ("PPO", "after"), ("SAC", "after"), ("TD3", "before"), ("DQN", "after")],
)
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_write_in_mid_training_is_seen_by_the_next_action(
    writer: Callable[[Watch], None], name: str, order: str
) -> None:
    model = any_model(name)
    policy = model.policy
    seen: list[bool] = []

    def act(watch: Watch) -> None:
        before = fresh_mean(policy)
        if watch.n_calls == 5:
            writer(watch)
            assert not torch.equal(fresh_mean(policy), before)  # the write matters
        with torch.no_grad():
            seen.append(torch.equal(policy.lbdn(OBSERVATION), fresh_mean(policy)))

    watch = Watch(act)
    callbacks = [watch, FreezeWeights()] if order == "before" else [FreezeWeights(), watch]
    model.learn(32, callback=callbacks)
    assert len(seen) == 16 and all(seen)
    assert keepers(policy) == 0


def test_a_write_in_mid_rollout_is_seen_by_the_rollout() -> None:
    """What the very next step of the rollout computes, without any callback in between."""
    model = toy_model()
    policy = model.policy
    forward, seen = policy.forward, []

    def checked(obs: torch.Tensor, deterministic: bool = False) -> Any:
        expected = fresh_mean(policy)
        seen.append(torch.equal(policy.get_distribution(OBSERVATION).mode(), expected))
        return forward(obs, deterministic)

    policy.forward = checked
    model.learn(32, callback=[Watch(write_data), FreezeWeights()])
    assert len(seen) == 16 and all(seen)


class Stop(BaseCallback):
    """Stops training, or raises, in the middle of the second rollout."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error

    def _on_step(self) -> bool:
        if self.n_calls < 21:
            return True
        if self.error is not None:
            raise self.error
        return False


@pytest.mark.parametrize("name", ["PPO", "SAC"])
@pytest.mark.parametrize("first", [True, False])
def test_nothing_is_left_when_another_callback_stops_training(first: bool, name: str) -> None:
    model = any_model(name)
    callbacks = [FreezeWeights(), Stop()]
    model.learn(200, callback=callbacks if first else callbacks[::-1])
    assert model.num_timesteps == 42
    assert keepers(model.policy) == 0


@pytest.mark.parametrize("name", ["PPO", "TD3"])
@pytest.mark.parametrize("error", [ValueError("plant"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_no_stale_weight_after_an_exception(error: BaseException, name: str) -> None:
    model = any_model(name)
    freeze = FreezeWeights()
    with pytest.raises(type(error)):
        model.learn(200, callback=[freeze, Stop(error)])
    twin = any_model(name)
    for seed in range(2):
        randomise(model.policy, 1.0, seed)
        randomise(twin.policy, 1.0, seed)
        for mine, other in zip(model.policy.bounded_networks(), twin.policy.bounded_networks(), strict=True):
            with torch.no_grad():
                assert torch.equal(mine(OBSERVATION), other(OBSERVATION))
        observation = OBSERVATION[0].numpy()
        action, expected = (m.predict(observation, deterministic=True)[0] for m in (model, twin))
        np.testing.assert_array_equal(action, expected)
    # Copies are independent, and the next run cleans up.
    copied = copy.deepcopy(model.policy)
    assert keepers(copied) == 0
    randomise(copied, 1.0, seed=7)
    with torch.no_grad():
        assert torch.equal(copied.lbdn(OBSERVATION), fresh_mean(copied))
    model.learn(64, callback=freeze)
    assert keepers(model.policy) == 0


def test_another_callback_object_takes_over_after_an_exception() -> None:
    model = toy_model()
    first, second = FreezeWeights(), FreezeWeights()
    with pytest.raises(ValueError):
        model.learn(200, callback=[first, Stop(ValueError("plant"))])
    inside: list[bool] = []

    def release(watch: Watch) -> None:
        first._release()  # has nothing to take away any more
        inside.append(watch.policy.lbdn._keeper is not None)

    model.learn(64, callback=[second, Watch(release)])
    assert all(inside) and keepers(model.policy) == 0


# Copies, files, evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_evaluation_and_checkpoints_in_training(name: str, order: str, tmp_path: Path) -> None:
    model = any_model(name)
    evaluation = EvalCallback(
        toy_vec_env(model.observation_space, model.action_space, n_envs=1),
        n_eval_episodes=1, eval_freq=20, best_model_save_path=str(tmp_path), verbose=0,
    )  # fmt: skip
    callbacks = [evaluation, CheckpointCallback(16, str(tmp_path)), FreezeWeights(), Watch()]
    model.learn(96, callback=callbacks if order == "before" else callbacks[::-1])
    assert evaluation.last_mean_reward > -np.inf
    stored = sorted(tmp_path.glob("*.zip"))
    assert len(stored) == 4
    for path in stored:
        loaded = type(model).load(path, device="cpu")
        assert keepers(loaded.policy) == 0
        with torch.no_grad():
            assert torch.equal(loaded.policy.lbdn(OBSERVATION), fresh_mean(loaded.policy))


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN"])
def test_copies_and_files_made_in_training_are_independent(name: str, tmp_path: Path) -> None:
    model = any_model(name)
    copies: list[Any] = []

    def take(watch: Watch) -> None:
        if watch.n_calls != 40:
            return
        with torch.no_grad():
            watch.policy.lbdn(OBSERVATION)
            expected = fresh_mean(watch.policy)
        copies.append(copy.copy(watch.policy.lbdn))
        copies.append(copy.deepcopy(watch.policy))
        copies.append(pickle.loads(pickle.dumps(watch.policy)))
        buffer = io.BytesIO()
        torch.save(watch.policy, buffer)
        buffer.seek(0)
        copies.append(torch.load(buffer, weights_only=False))
        watch.model.save(tmp_path / "model.zip")
        copies.append(type(watch.model).load(tmp_path / "model.zip", device="cpu").policy)
        for copied in copies[1:]:
            assert keepers(copied) == 0
            with torch.no_grad():
                assert torch.equal(copied.lbdn(OBSERVATION), expected)
        assert keepers(watch.policy) > 0 and copies[0]._keeper is None

    model.learn(96, callback=[FreezeWeights(), Watch(take)])
    assert len(copies) == 5
    for copied in copies[1:]:
        randomise(copied, 1.0)
        with torch.no_grad():
            assert torch.equal(copied.lbdn(OBSERVATION), fresh_mean(copied))


@pytest.mark.parametrize("name", ["PPO", "TD3"])
def test_diverged_parameters_are_reported_in_training(name: str) -> None:
    model = any_model(name)

    def poison(watch: Watch) -> None:
        if watch.n_calls > 20:
            watch.policy.lbdn.layers[0].weight.data[0, 0] = float("nan")

    with pytest.raises(NonFiniteError, match="weight"):
        model.learn(96, callback=[FreezeWeights(), Watch(poison)])


def test_mlp_policy_is_left_alone() -> None:
    toy_model(policy="MlpPolicy").learn(32, callback=FreezeWeights())


def test_weights_frozen_before_training_are_dropped() -> None:
    """A snapshot would be out of date after the first update."""
    model = any_model("TD3")
    target = model.policy.actor_target.mu[0].freeze()
    model.learn(64, callback=FreezeWeights())
    assert not target.is_frozen


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_gradients_in_a_rollout_do_not_use_kept_weights(algorithm: type[BaseAlgorithm]) -> None:
    model = toy_model(algorithm=algorithm)
    seen = []

    def differentiate(watch: Watch) -> None:
        with torch.enable_grad():
            output = watch.policy.lbdn(OBSERVATION)
            (gradient,) = torch.autograd.grad(output.sum(), watch.policy.lbdn.layers[0].alpha)
        seen.append(float(gradient.abs()))

    model.learn(32, callback=[FreezeWeights(), Watch(differentiate)])
    assert len(seen) == 16 and min(seen) > 0
