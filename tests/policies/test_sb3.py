"""What Stable-Baselines3 does with a policy: save, load, copy, log, run in worker processes."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from robustnn.errors import InvalidArgumentError
from robustnn.policies import FreezeWeights, LBDNActorCriticPolicy, LogLipschitz
from tests.policies.toy import ACTIONS, ASYMMETRIC, ToyEnv, randomise, toy_model, toy_vec_env

OBSERVATIONS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
PENDULUM = "robustnn.envs:robustnn/PendulumSwingUp-v0"

# Every argument of the policy at a value that is not its default.
EVERYTHING: dict[str, Any] = {
    "net_arch": {"pi": [5, 4], "vf": [6]},
    "activation_fn": nn.ELU,
    "ortho_init": False,
    "log_std_init": -0.7,
    "full_std": False,
    "use_expln": True,
    "squash_output": True,
    "share_features_extractor": False,
    "normalize_images": False,
    "optimizer_class": torch.optim.RMSprop,
    "optimizer_kwargs": {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.01},
    "lipschitz": 2.5,
    "observation_scale": (0.5, 2.0, 3.0),
    "action_scale": (0.2, 4.0),
    "trainable_lipschitz": True,
    "lipschitz_penalty": 0.1,
    "lipschitz_critic": 6.0,
}


def actions(model: Any) -> np.ndarray:
    return model.predict(OBSERVATIONS, deterministic=True)[0]


def same(a: LBDNActorCriticPolicy, b: LBDNActorCriticPolicy) -> None:
    """Equal settings, parameters, bound, actions and values."""
    assert type(a) is type(b)
    ignored = {"lr_schedule", "observation_space", "action_space"}
    first, second = a._get_constructor_parameters(), b._get_constructor_parameters()
    assert {k: v for k, v in first.items() if k not in ignored} == {
        k: v for k, v in second.items() if k not in ignored
    }
    states = a.state_dict(), b.state_dict()
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        other = states[1][key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key
    assert a.bound() == b.bound()
    np.testing.assert_array_equal(actions(a), actions(b))
    tensor = torch.as_tensor(OBSERVATIONS)
    with torch.no_grad():
        assert torch.equal(a.predict_values(tensor), b.predict_values(tensor))


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {"use_sde": True, "policy_kwargs": EVERYTHING},
    "empty": {"policy_kwargs": {"net_arch": []}},
    "list": {"policy_kwargs": {"net_arch": [7]}},
    "actor only": {"policy_kwargs": {"net_arch": {"pi": [7]}}},
    "arrays": {
        "policy_kwargs": {
            "observation_scale": np.array([1.0, 2.0, 3.0]),
            "action_scale": np.float32([0.5, 2.0]),
        }
    },
    "a2c": {"algorithm": A2C},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("trained", [False, True])
def test_save_and_load(name: str, trained: bool, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    model = toy_model(**settings)
    if trained:
        model.learn(64, callback=FreezeWeights())
    model.save(tmp_path / "model.zip")
    algorithm: type[BaseAlgorithm] = settings.get("algorithm", PPO)
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    same(model.policy, loaded.policy)
    for a, b in zip(
        model.policy.optimizer.state_dict()["state"].values(),
        loaded.policy.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)

    model.policy.save(str(tmp_path / "policy.pt"))
    policy = LBDNActorCriticPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    same(model.policy, policy)
    assert type(policy.optimizer) is type(model.policy.optimizer)


def test_every_constructor_argument_is_set_away_from_its_default_here() -> None:
    arguments = {
        **inspect.signature(ActorCriticPolicy.__init__).parameters,
        **inspect.signature(LBDNActorCriticPolicy.__init__).parameters,
    }
    given_otherwise = {
        "self", "kwargs", "observation_space", "action_space", "lr_schedule", "use_sde",
        "features_extractor_class", "features_extractor_kwargs",
    }  # fmt: skip
    assert set(arguments) - given_otherwise == set(EVERYTHING)
    assert all(EVERYTHING[name] != arguments[name].default for name in EVERYTHING)
    policy = toy_model(use_sde=True, policy_kwargs=EVERYTHING).policy
    data = policy._get_constructor_parameters()
    # The logarithm is what is trained, in float32.
    assert data.pop("lipschitz") == pytest.approx(EVERYTHING["lipschitz"], rel=2.0**-22)
    others = {name: value for name, value in EVERYTHING.items() if name != "lipschitz"}
    assert {name: data[name] for name in others} == others
    assert not policy.share_features_extractor and not policy.normalize_images
    assert policy.vf_features_extractor is not policy.pi_features_extractor


def test_training_goes_on_after_load_as_if_there_had_been_no_file(tmp_path: Path) -> None:
    models = []
    for through_file in (False, True):
        model = toy_model()
        model.learn(64, callback=FreezeWeights())
        if through_file:
            model.save(tmp_path / "model.zip")
            model = PPO.load(tmp_path / "model.zip", device="cpu")
        env = toy_vec_env()
        model.set_env(env, force_reset=True)
        model.set_random_seed(3)
        np.random.seed(3)
        model.learn(64, callback=FreezeWeights(), reset_num_timesteps=False)
        models.append(model)
    for a, b in zip(models[0].policy.parameters(), models[1].policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_policy_kwargs_are_compared_on_load(tmp_path: Path) -> None:
    # As lists: SB3 writes plain settings as JSON, from which a tuple comes back as a list.
    kwargs = {"net_arch": [8, 8], "lipschitz": 4.0, "observation_scale": [1.0, 2.0, 3.0]}
    model = toy_model(policy_kwargs=kwargs)
    model.save(tmp_path / "model.zip")
    PPO.load(tmp_path / "model.zip", device="cpu", policy_kwargs=dict(kwargs))
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        PPO.load(tmp_path / "model.zip", device="cpu", policy_kwargs={**kwargs, "lipschitz": 5.0})
    assert model.policy.observation_scale == (1.0, 2.0, 3.0)


def test_parameters_and_vectors() -> None:
    model, other = toy_model(), toy_model(seed=1)
    assert not np.array_equal(actions(model), actions(other))
    other.set_parameters(model.get_parameters())
    same(model.policy, other.policy)
    randomise(model.policy, 1.0)
    vector = model.policy.parameters_to_vector()
    assert vector.shape == (sum(p.numel() for p in model.policy.parameters()),)
    other.policy.load_from_vector(vector)
    np.testing.assert_array_equal(actions(model), actions(other))


def test_the_bound_travels_with_the_state_dict(tmp_path: Path) -> None:
    model = toy_model(policy_kwargs={"lipschitz": 4.0})
    other = toy_model(policy_kwargs={"lipschitz": 9.0}, seed=1)
    other.policy.load_state_dict(model.policy.state_dict())
    assert other.policy.lipschitz == other.policy.bound().lipschitz == 4.0
    same(model.policy, other.policy)
    # and through files, whatever the constructor was told
    other.save(tmp_path / "model.zip")
    same(model.policy, PPO.load(tmp_path / "model.zip", device="cpu").policy)
    other.policy.save(str(tmp_path / "policy.pt"))
    same(model.policy, LBDNActorCriticPolicy.load(str(tmp_path / "policy.pt"), device="cpu"))


def test_the_scales_travel_with_the_state_dict() -> None:
    kwargs = {"observation_scale": (1.0, 2.0, 3.0), "action_scale": (1.0, 2.0)}
    model = toy_model(policy_kwargs=kwargs)
    other = toy_model(
        policy_kwargs={"observation_scale": (9.0, 9.0, 9.0), "action_scale": (7.0, 7.0)}, seed=1
    )
    other.policy.load_state_dict(model.policy.state_dict())
    assert other.policy.bound() == model.policy.bound()
    np.testing.assert_array_equal(actions(model), actions(other))


@pytest.mark.parametrize("frozen", [False, True])
def test_copies(frozen: bool) -> None:
    model = toy_model(use_sde=True, policy_kwargs=EVERYTHING)
    model.learn(32)
    if frozen:
        model.policy.action_net.freeze()
    copies = [
        copy.deepcopy(model.policy),
        pickle.loads(pickle.dumps(model.policy)),
        cloudpickle.loads(cloudpickle.dumps(model.policy)),
        copy.deepcopy(model).policy,
    ]
    model.policy.action_net.unfreeze()
    reference = actions(model)
    for copied in copies:
        same(model.policy, copied)
        randomise(copied, 1.0)
        assert not np.array_equal(actions(copied), reference)
    np.testing.assert_array_equal(actions(model), reference)
    assert {id(p) for g in copies[0].optimizer.param_groups for p in g["params"]} == {
        id(p) for p in copies[0].parameters()
    }


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_worker_processes(method: str) -> None:
    env = make_vec_env(
        PENDULUM, n_envs=1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": method}, seed=0
    )
    try:
        model = toy_model(env)
        model.learn(32, callback=[FreezeWeights(), LogLipschitz()])
        assert model.num_timesteps == 32
    finally:
        env.close()


def test_vec_normalize_saved_and_loaded(tmp_path: Path) -> None:
    env = VecNormalize(toy_vec_env())
    model = toy_model(env)
    model.learn(64, callback=[FreezeWeights(), LogLipschitz()])
    env.training = False
    env.save(str(tmp_path / "normalize.pkl"))
    model.save(tmp_path / "model.zip")
    loaded_env = VecNormalize.load(str(tmp_path / "normalize.pkl"), toy_vec_env())
    loaded_env.training = False
    loaded = PPO.load(tmp_path / "model.zip", env=loaded_env, device="cpu")
    assert loaded.policy.bound(loaded.get_env()) == model.policy.bound(env)
    assert model.policy.bound(env) != model.policy.bound()
    x = torch.as_tensor(OBSERVATIONS).double()
    assert torch.equal(loaded.policy.action_map(loaded_env)(x), model.policy.action_map(env)(x))
    evaluate_policy(loaded, loaded_env, n_eval_episodes=2)


SPACES = {
    "matrix": (spaces.Box(-1, 1, (2, 3)), ACTIONS),
    "float64": (spaces.Box(-1, 1, (3,), np.float64), ACTIONS),
    "integer": (spaces.Box(-100, 100, (3,), np.int64), ACTIONS),
    "bytes, no image": (spaces.Box(0, 255, (3,), np.uint8), ACTIONS),
    "unbounded": (spaces.Box(-np.inf, np.inf, (4,)), ASYMMETRIC),
    "one": (spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))),
    "action matrix": (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2, 2))),
    "float64 action": (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,), np.float64)),
    "discrete": (spaces.Box(-1, 1, (3,)), spaces.Discrete(3)),
    "discrete matrix": (spaces.Box(-1, 1, (2, 3)), spaces.Discrete(2)),
}


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("name", SPACES)
def test_spaces(name: str, algorithm: type[BaseAlgorithm]) -> None:
    observation_space, action_space = SPACES[name]
    model = toy_model(toy_vec_env(observation_space, action_space), algorithm)
    model.learn(32, callback=FreezeWeights())
    batch = np.stack([observation_space.sample() for _ in range(4)])
    several, one = model.predict(batch, deterministic=True)[0], model.predict(batch[0], deterministic=True)[0]
    assert several.shape == (4, *action_space.shape) and one.shape == action_space.shape
    np.testing.assert_allclose(several[0], one, rtol=1e-5, atol=1e-6)
    assert len(model.policy.bound().observation_scale) == spaces.flatdim(observation_space)


def test_observation_scale_follows_the_flattened_order() -> None:
    scale = tuple(float(k + 1) for k in range(6))
    env = toy_vec_env(spaces.Box(-9, 9, (2, 3)))
    model = toy_model(env, policy_kwargs={"observation_scale": scale})
    policy = model.policy
    observation = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    with torch.no_grad():
        expected = policy.action_net(torch.as_tensor(observation.reshape(-1) / np.float32(scale)))
    got = model.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(got, expected.clamp(-1, 1).numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    toy_model().learn(64, callback=FreezeWeights(), progress_bar=True)
    assert "100%" in "".join(capsys.readouterr())


@pytest.mark.parametrize("normalise", [False, True])
def test_tensorboard(tmp_path: Path, normalise: bool) -> None:
    env = VecNormalize(toy_vec_env()) if normalise else toy_vec_env()
    model = toy_model(env, tensorboard_log=str(tmp_path), policy_kwargs={"lipschitz": 3.5})
    model.learn(96, callback=[LogLipschitz(), FreezeWeights()], tb_log_name="run")
    events = EventAccumulator(str(tmp_path / "run_1")).Reload()
    gamma = [event.value for event in events.Scalars("lipschitz/gamma")]
    raw = [event.value for event in events.Scalars("lipschitz/raw_observation")]
    if normalise:
        env.training = False  # type: ignore[union-attr]
    assert gamma == [3.5] * 3 and len(raw) == 3
    assert raw[-1] == pytest.approx(model.policy.bound(env).plain, rel=1e-6)
    assert (raw[0] != pytest.approx(3.5)) == normalise


def test_csv_logger(tmp_path: Path) -> None:
    model = toy_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64, callback=LogLipschitz())
    model.logger.close()
    assert "lipschitz/gamma" in (tmp_path / "progress.csv").read_text().splitlines()[0]


def test_callbacks_together(tmp_path: Path) -> None:
    model = toy_model()
    callbacks = CallbackList(
        [
            CheckpointCallback(20, str(tmp_path)),
            FreezeWeights(),
            EvalCallback(toy_vec_env(n_envs=1), n_eval_episodes=1, eval_freq=10, verbose=0),
            LogLipschitz(),
            StopTrainingOnMaxEpisodes(4),
        ]
    )
    model.learn(1000, callback=callbacks)
    assert model.num_timesteps < 200
    assert not model.policy.action_net.is_frozen
    assert list(tmp_path.glob("*.zip"))


def test_mean_action_starts_small_and_the_value_network_is_unbounded() -> None:
    for gamma in (0.1, 10.0):
        model = toy_model(policy_kwargs={"lipschitz": gamma})
        names = [name for name, _ in model.policy.value_net.named_parameters()]
        assert names == ["weight", "bias"]
        assert np.abs(actions(model)).max() < 1.0


def test_ortho_init_leaves_the_bounded_layers_in_their_form() -> None:
    for ortho in (False, True):
        policy = toy_model(policy_kwargs={"ortho_init": ortho}).policy
        assert not any(isinstance(module, nn.Linear) for module in policy.action_net.modules())
        first = policy.action_net.layers[0]
        assert float(first.alpha.detach()) == pytest.approx(float(first.weight.detach().norm()), rel=1e-6)


def test_the_default_optimizer_trains_every_parameter() -> None:
    model = toy_model(policy_kwargs={"ortho_init": False})
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(64)
    still = [name for name, p in model.policy.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert model.policy.optimizer.defaults["eps"] == 1e-5


def test_log_lipschitz_refuses_a_policy_without_a_bound() -> None:
    with pytest.raises(InvalidArgumentError, match="Lipschitz-bounded policy.*got ActorCriticPolicy"):
        toy_model(policy="MlpPolicy").learn(32, callback=LogLipschitz())


def test_registered_environment_by_name() -> None:
    kwargs = {"lipschitz": 5.0, "net_arch": [8]}
    model = PPO(
        LBDNActorCriticPolicy, PENDULUM, n_steps=16, batch_size=16, policy_kwargs=kwargs, device="cpu"
    )
    model.learn(16, callback=FreezeWeights())
    assert isinstance(gymnasium.make(PENDULUM).action_space, spaces.Box)
    assert isinstance(ToyEnv().reset(seed=0)[0], np.ndarray)
