"""`policy_bound` of SB3's own policies, and the policies that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import (
    VecExtractDictObs,
)
from torch import nn

from robustnn.bounds import lower_bound
from robustnn.errors import (
    InvalidArgumentError,
    RobustNNError,
)
from robustnn.policies import (
    LBDNTD3Policy,
    ObservationScale,
    action_map,
    policy_bound,
)
from robustnn.policies.networks import decider_of
from tests.policies.chains import (
    ACTIONS,
    DICT,
    EPS32,
    EPS64,
    VECTOR,
    bounded,
    feed_env,
    normalised,
    random_chain,
    random_mlp_chain,
)
from tests.policies.steep import centre
from tests.policies.toy import ALGORITHMS, algorithm_of, randomise


@pytest.mark.parametrize("name", ALGORITHMS)
def test_lipsdp_bound_of_an_ordinary_policy(name: str) -> None:
    """It holds on the whole path, and for small networks is near what gradient ascent finds on the network.

    Small means six units in each of no, one and two hidden layers; the table has the factors.
    """
    factors = (1.0 + 1e-6, 1.5, 3.0)
    for seed in range(6):
        chain = random_mlp_chain(name, seed)
        randomise(chain.model.policy, 0.5, seed)
        bound = policy_bound(chain.model, chain.env)
        scale, out = (
            torch.tensor(s, dtype=torch.float64) for s in (bound.observation_scale, bound.action_scale)
        )
        noise = torch.randn(
            24, len(scale), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        starts = torch.as_tensor(centre(chain)) + noise * scale
        path = action_map(chain.model, chain.env)
        found = lower_bound(path, starts, input_scale=scale, output_scale=out, iterations=30, lr=0.05).value
        assert found <= bound.lipschitz * (1 + 64 * EPS64)
        inner = decider_of(chain.model).scale().double()
        steepest = lower_bound(path.network, noise * inner, input_scale=inner, iterations=60, lr=0.05).value
        assert steepest <= bound.lipschitz * (1 + 64 * EPS64)
        assert bound.lipschitz <= factors[seed % 3] * steepest


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN", "QRDQN"])
def test_lipsdp_tightens_the_declared_bound_in_the_same_norms(name: str) -> None:
    for seed in (0, 1, 2, 5):
        chain = random_chain(name, seed)
        declared = policy_bound(chain.model, chain.env, method="declared")
        tight = policy_bound(chain.model, chain.env, method="lipsdp")
        assert declared == policy_bound(chain.model, chain.env)
        np.testing.assert_allclose(tight.observation_scale, declared.observation_scale, rtol=1e-15)
        np.testing.assert_allclose(
            tight.action_scale, declared.action_scale, rtol=1e-6
        )  # of averaged quantiles
        assert tight.lipschitz <= declared.lipschitz * (1 + 1e-9)
        scale, out = (
            torch.tensor(s, dtype=torch.float64) for s in (tight.observation_scale, tight.action_scale)
        )
        starts = torch.as_tensor(centre(chain)) + torch.randn(24, len(scale)).double() * scale
        path = action_map(chain.model, chain.env)
        found = lower_bound(path, starts, input_scale=scale, output_scale=out, iterations=30, lr=0.05).value
        assert found <= tight.lipschitz * (1 + 64 * EPS64)


def test_a_declared_bound_needs_a_bounded_network() -> None:
    model = PPO("MlpPolicy", feed_env(VECTOR, ACTIONS, 1), device="cpu")
    with pytest.raises(InvalidArgumentError, match="network without a bound of its own.*method='auto'"):
        policy_bound(model, method="declared")
    with pytest.raises(InvalidArgumentError, match="'auto', 'declared' or 'lipsdp', got 'best'"):
        policy_bound(model, method="best")


# What is refused -----------------------------------------------------------------------------------------------------


class Doubled(ActorCriticPolicy):
    """A user's policy with a step of its own."""

    def _predict(self, observation: Any, deterministic: bool = False) -> torch.Tensor:
        return 2.0 * super()._predict(observation, deterministic)


class OwnExtractor(nn.Module):
    """A user's replacement of SB3's MlpExtractor."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 3
        self.policy_net = self.value_net = nn.Identity()


def _own_extractor() -> Any:
    model = PPO("MlpPolicy", feed_env(VECTOR, ACTIONS, 1), device="cpu")
    model.policy.mlp_extractor = OwnExtractor()
    return model


def _crossq(**policy_kwargs: Any) -> Any:
    algorithm = pytest.importorskip("sb3_contrib").CrossQ
    env = feed_env(VECTOR, ACTIONS, 1)
    return algorithm(
        "MlpPolicy", env, policy_kwargs={"net_arch": [6], **policy_kwargs}, device="cpu", buffer_size=8
    )


def _recurrent() -> Any:
    algorithm = pytest.importorskip("sb3_contrib").RecurrentPPO
    return algorithm("MlpLstmPolicy", feed_env(VECTOR, ACTIONS, 1), device="cpu")


def _sac(space: spaces.Space) -> Any:
    return SAC(
        "MlpPolicy", feed_env(VECTOR, space, 1), policy_kwargs={"net_arch": [4]}, device="cpu", buffer_size=8
    )


IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
SQUARE = spaces.Dict({"image": IMAGE, "speed": VECTOR})
POLICIES: dict[str, tuple[Callable[[], Any], str]] = {
    "batch renormalisation": (_crossq, "BatchRenorm1d.*batch_norm=False"),
    "recurrent": (_recurrent, "recurrent policy depends on all past observations"),
    "images": (lambda: PPO("CnnPolicy", feed_env(IMAGE, ACTIONS, 1), device="cpu"), "expected a vector, got the image"),
    "images in a dict": (
        lambda: PPO("MultiInputPolicy", feed_env(SQUARE, ACTIONS, 1), device="cpu"), "'image'.*got the image",
    ),
    "own step": (lambda: PPO(Doubled, feed_env(VECTOR, ACTIONS, 1), device="cpu"), r"Doubled._predict\(\)"),
    "own extractor": (_own_extractor, "MlpExtractor, got OwnExtractor"),
    "fixed component": (
        lambda: _sac(spaces.Box(np.float32([0.0, 1.0]), np.float32([0.0, 2.0]))), "low < high.*leave out",
    ),
    "integer actions": (lambda: _sac(spaces.Box(-128, 127, (2,), np.int8)), "overflow.*float32"),
    "a number": (lambda: 3, "got int.*model.policy"),
    "an actor": (lambda: _sac(ACTIONS).policy.actor, "got Actor.*model.policy"),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_refused_policies(name: str) -> None:
    make, words = POLICIES[name]
    with pytest.raises(RobustNNError, match=words):
        policy_bound(make())


def test_crossq_without_batch_renormalisation_has_a_bound() -> None:
    assert policy_bound(_crossq(batch_norm=False)).lipschitz > 0.0


def test_a_dict_wrapper_of_unknown_effect_is_refused() -> None:
    env = VecExtractDictObs(feed_env(DICT, ACTIONS, 1), "angle")
    with pytest.raises(InvalidArgumentError, match="VecExtractDictObs"):
        policy_bound(bounded(feed_env(VECTOR, ACTIONS, 1)), env)


def test_actions_that_are_clipped_may_be_fixed_or_integers() -> None:
    for space in (
        spaces.Box(np.float32([0.5, -1.0]), np.float32([0.5, 1.0])),
        spaces.Box(-128, 127, (2,), np.int8),
    ):
        env = feed_env(VECTOR, space, 1)
        model = bounded(env)
        randomise(model.policy, 3.0)
        assert policy_bound(model, env).plain == 4.0
        path = action_map(model, env)
        observations = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) * 3
        actions = model.predict(observations, deterministic=True)[0].reshape(64, 2)
        np.testing.assert_allclose(path(torch.as_tensor(observations).double()).numpy(), actions, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_half_ranges_are_those_of_sb3_in_the_dtype_of_the_space(dtype: Any) -> None:
    space = spaces.Box(np.array([-0.1, 1.0]).astype(dtype), np.array([1.0, 2.7]).astype(dtype), dtype=dtype)
    models = [_sac(space)]
    if dtype is not np.int32:  # refused by the bounded policies
        kwargs = {"lipschitz": 5.0, "net_arch": []}
        env = feed_env(VECTOR, space, 1)
        models.append(TD3(LBDNTD3Policy, env, policy_kwargs=kwargs, device="cpu", buffer_size=8))
    for model in models:
        bound = policy_bound(model)
        eps = 4 * max(np.finfo(dtype).eps, EPS32) if np.issubdtype(dtype, np.floating) else EPS32
        if isinstance(model, SAC):
            half = model.policy.unscale_action(np.ones((1, 2))) - model.policy.unscale_action(
                np.zeros((1, 2))
            )
            np.testing.assert_allclose(bound.action_scale, half[0], rtol=eps)
        path = action_map(model)
        x = torch.zeros(3, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(path, x).numpy()
        norm = np.linalg.norm(jacobian / np.array(bound.action_scale)[:, None], 2)
        assert norm <= bound.lipschitz * (1 + eps)


def test_the_scale_of_an_ordinary_policy_is_in_its_bound() -> None:
    env = normalised(std=[1.0, 2.0, 4.0])
    kwargs = {
        "features_extractor_class": ObservationScale,
        "features_extractor_kwargs": {"scale": (2.0, 4.0, 8.0)},
        "net_arch": [4],
    }
    model = PPO("MlpPolicy", env, policy_kwargs=kwargs, device="cpu")
    bound = policy_bound(model, env)
    np.testing.assert_allclose(bound.observation_scale, [2.0, 8.0, 32.0], rtol=1e-9)
    assert [stage.name for stage in bound.stages] == [
        "VecNormalize", "observation scale", "network", "clipped to limits",
    ]  # fmt: skip


def test_policies_of_the_table_are_all_there() -> None:
    assert {algorithm_of(name)[0].__name__ for name in ALGORITHMS} >= {
        "PPO", "A2C", "SAC", "TD3", "DDPG", "DQN", "TRPO", "TQC", "CrossQ", "QRDQN", "MaskablePPO",
    }  # fmt: skip
