"""Deployed policies: the module, for every algorithm and space, does what `predict` does, on raw observations."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize
from torch import Tensor, nn

from robustnn.bounds import lower_bound
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError, UnsupportedSpaceError
from robustnn.nn import SandwichLayer
from robustnn.policies import (
    LBDNActorCriticPolicy,
    LBDNDQNPolicy,
    LBDNSACPolicy,
    LBDNTD3Policy,
    flatten_observation,
    policy_bound,
)
from robustnn.policies.deploy import DeployedPolicy, deploy
from tests.policies.toy import ACTIONS, ASYMMETRIC, OBSERVATIONS, toy_vec_env

EPS32 = float(np.finfo(np.float32).eps)
LIPSCHITZ = 6.0


class SampledEnv(gymnasium.Env[Any, Any]):
    """Observations are samples of the space, far from zero mean and unit size."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self.observation_space.sample(), float(np.mean(action)), False, self._steps >= 10, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(int(self.action_space.n), dtype=bool)  # type: ignore[attr-defined]


def vec_env_of(observation_space: spaces.Space, action_space: spaces.Space) -> VecEnv:
    observation_space.seed(0)
    return DummyVecEnv([lambda: Monitor(SampledEnv(observation_space, action_space))] * 2)


def make(
    algorithm: Any, policy: Any, env: VecEnv, size: float = 0.5, policy_kwargs: Any = None, **settings: Any
) -> Any:
    """A model with parameters of `vary`; off-policy buffers are tiny."""
    kwargs = {"net_arch": [12, 12], **(policy_kwargs or {})}
    if policy != "MlpPolicy" and policy != "MultiInputPolicy":
        kwargs.setdefault("lipschitz", LIPSCHITZ)
    if hasattr(algorithm, "_store_transition"):
        settings.setdefault("buffer_size", 10)
    model = algorithm(policy, env, policy_kwargs=kwargs, device="cpu", seed=0, **settings)
    vary(model.policy, size)
    return model


def vary(policy: nn.Module, size: float = 0.5, seed: int = 0) -> None:
    """Parameters with which the outputs differ visibly from one observation to another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in policy.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(size * torch.randn(module.weight.shape, generator=generator))
            if isinstance(module, SandwichLayer):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.alpha.fill_(2.0 if module.psi is None else module.weight.norm() / 2)
            if isinstance(module, (nn.Linear, SandwichLayer)) and module.bias is not None:
                module.bias.copy_(size * torch.randn(module.bias.shape, generator=generator))


def contrib(name: str, policy: str | None = None) -> Callable[[], tuple[Any, Any]]:
    """An algorithm of sb3-contrib and its policy class, imported when it is used."""

    def load() -> tuple[Any, Any]:
        algorithms = pytest.importorskip("sb3_contrib")
        if policy in (None, "MlpPolicy"):
            return getattr(algorithms, name), policy or LBDNActorCriticPolicy
        from robustnn.policies import contrib as own

        return getattr(algorithms, name), getattr(own, policy)  # type: ignore[arg-type]

    return load


def sb3(algorithm: Any, policy: Any) -> Callable[[], tuple[Any, Any]]:
    return lambda: (algorithm, policy)


SQUASHED: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"squash_output": True}}
# name: (algorithm and policy, kind of action, settings)
CONTINUOUS: dict[str, tuple[Callable[[], tuple[Any, Any]], dict[str, Any]]] = {
    "PPO": (sb3(PPO, LBDNActorCriticPolicy), {}),
    "PPO, squashed": (sb3(PPO, LBDNActorCriticPolicy), SQUASHED),
    "PPO, MLP": (sb3(PPO, "MlpPolicy"), {}),
    "A2C": (sb3(A2C, LBDNActorCriticPolicy), {"policy_kwargs": {"activation_fn": nn.ReLU}}),
    "TRPO": (contrib("TRPO"), {}),
    "SAC": (sb3(SAC, LBDNSACPolicy), {}),
    "SAC, gSDE": (sb3(SAC, LBDNSACPolicy), {"use_sde": True}),
    "SAC, MLP": (sb3(SAC, "MlpPolicy"), {}),
    "SAC, MLP, gSDE": (sb3(SAC, "MlpPolicy"), {"use_sde": True}),
    "TD3": (sb3(TD3, LBDNTD3Policy), {}),
    "TD3, MLP": (sb3(TD3, "MlpPolicy"), {}),
    "DDPG": (sb3(DDPG, LBDNTD3Policy), {}),
    "TQC": (contrib("TQC", "LBDNTQCPolicy"), {}),
    "TQC, MLP": (contrib("TQC", "MlpPolicy"), {}),
    "CrossQ": (contrib("CrossQ", "LBDNCrossQPolicy"), {}),
}
DISCRETE: dict[str, tuple[Callable[[], tuple[Any, Any]], dict[str, Any]]] = {
    "PPO": (sb3(PPO, LBDNActorCriticPolicy), {}),
    "A2C, MLP": (sb3(A2C, "MlpPolicy"), {}),
    "DQN": (sb3(DQN, LBDNDQNPolicy), {}),
    "DQN, MLP": (sb3(DQN, "MlpPolicy"), {}),
    "QRDQN": (contrib("QRDQN", "LBDNQRDQNPolicy"), {"policy_kwargs": {"n_quantiles": 5}}),
    "QRDQN, MLP": (contrib("QRDQN", "MlpPolicy"), {"policy_kwargs": {"n_quantiles": 5}}),
    "MaskablePPO": (contrib("MaskablePPO", "LBDNMaskablePolicy"), {}),
}
WIDE = spaces.Box(np.float32([-1, 90, -3000]), np.float32([3, 110, 5000]), dtype=np.float32)


def frozen(env: VecEnv, steps: int = 30) -> VecNormalize:
    """VecNormalize with the statistics of a few steps."""
    normalised = VecNormalize(env, clip_obs=1.5)
    normalised.reset()
    for _ in range(steps):
        normalised.step(np.stack([env.action_space.sample()] * env.num_envs))
    normalised.training = False
    return normalised


def raw_observations(space: spaces.Space, n: int = 200) -> Any:
    """A batch of samples, some of them far outside; a dict of batches for a Dict."""
    space.seed(3)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    batch = np.stack(samples)
    if isinstance(space, spaces.Box):
        batch[: n // 4] *= 20
    return batch


def predicted(model: Any, env: Any, observations: Any) -> np.ndarray:
    """What a user gets from `predict`, of raw observations."""
    if env is not None:
        observations = env.normalize_obs(observations)
    return np.asarray(model.predict(observations, deterministic=True)[0])


def as_tensor(space: spaces.Space, observations: Any) -> Tensor:
    return torch.from_numpy(flatten_observation(space, observations)).float()


def assert_same(deployed: DeployedPolicy, got: np.ndarray, expected: np.ndarray, flat: Tensor) -> None:
    """Equal to 1e-6 of what the numbers may be; greedy decisions wherever they are none of rounding."""
    assert float(deployed.scores(flat).std(0).min()) > 0.02  # a constant would prove nothing
    if deployed.pipeline.kind == "box":
        limits = deployed.pipeline.limits()
        assert limits is not None
        size = 1.0 + np.maximum(np.abs(expected), limits[0].abs().numpy())
        # Numbers inside the network are larger where observations are far outside.
        size[: len(size) // 4] += float(deployed.scores(flat).abs().amax())
        np.testing.assert_array_less(np.abs(got - expected), 1e-6 * size)
        return
    scores = deployed.scores(flat)
    top = [group.sort(dim=-1).values for group in scores.split(deployed.pipeline.choices, dim=-1)]
    if deployed.pipeline.kind == "multibinary":
        margin = scores.abs()
    else:
        margin = torch.stack([t[:, -1] - t[:, -2] for t in top], dim=-1)
    clear = (margin > 1e-6 * (1.0 + scores.abs().amax())).numpy()
    assert clear.mean() > 0.9
    if deployed.pipeline.kind == "discrete":
        clear = clear[:, 0]
    np.testing.assert_array_equal(got[clear], expected[clear])


@pytest.mark.parametrize("normalise", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize("name", [*CONTINUOUS, *(f"discrete {name}" for name in DISCRETE)])
def test_module_is_predict_for_every_algorithm(name: str, normalise: bool) -> None:
    discrete = name.startswith("discrete ")
    load, settings = (DISCRETE if discrete else CONTINUOUS)[name.removeprefix("discrete ")]
    algorithm, policy = load()
    space = WIDE if normalise else OBSERVATIONS
    env = vec_env_of(space, spaces.Discrete(4) if discrete else ASYMMETRIC)
    norm = frozen(env) if normalise else None
    if policy not in ("MlpPolicy",) and not normalise:
        kwargs = {"observation_scale": (0.5, 2.0, 7.0), **settings.get("policy_kwargs", {})}
        settings = {**settings, "policy_kwargs": kwargs}
    model = make(algorithm, policy, norm or env, **settings)
    deployed = deploy(model, norm)
    observations = raw_observations(space)
    flat = as_tensor(space, observations)
    got = deployed(flat)
    assert not got.requires_grad and got.shape == ((200,) if discrete else (200, 2))
    assert_same(deployed, got.numpy(), predicted(model, norm, observations), flat)
    assert all(p.dtype == torch.float32 for p in [*deployed.parameters(), *deployed.buffers()])


DICT = spaces.Dict(
    {
        "a": spaces.Box(-5.0, 40.0, (2,), np.float32),
        "switch": spaces.Discrete(3),
        "b": spaces.Box(-0.01, 0.01, (2, 2), np.float64),
        "bits": spaces.MultiBinary(3),
    }
)
OBSERVATION_SPACES: dict[str, tuple[spaces.Space, bool]] = {
    "matrix": (spaces.Box(-4.0, 9.0, (2, 3), np.float32), True),
    "double": (spaces.Box(-4.0, 9.0, (3,), np.float64), True),
    "discrete": (spaces.Discrete(5), False),
    "multidiscrete": (spaces.MultiDiscrete([3, 2]), False),
    "multibinary": (spaces.MultiBinary(4), False),
    "dict": (DICT, False),
    "dict, normalised": (DICT, True),
}


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_module_is_predict_for_every_observation_space(name: str) -> None:
    space, normalise = OBSERVATION_SPACES[name]
    env = vec_env_of(space, ASYMMETRIC)
    norm = None
    if normalise:
        keys = ["a", "b"] if isinstance(space, spaces.Dict) else None
        norm = VecNormalize(env, norm_obs_keys=keys)
        norm.reset()
        norm.step(np.stack([ASYMMETRIC.sample()] * 2))
        norm.training = False
    model = make(PPO, LBDNActorCriticPolicy, norm or env)
    deployed = deploy(model, norm)
    observations = raw_observations(space)
    flat = as_tensor(space, observations)
    expected = predicted(model, norm, observations)
    assert_same(deployed, deployed(flat).numpy(), expected, flat)
    np.testing.assert_array_equal(deployed.predict(observations)[0], deployed(flat).numpy())
    one = {k: v[0] for k, v in observations.items()} if isinstance(observations, dict) else observations[0]
    assert deployed.predict(one)[0].shape == (2,)


ACTION_SPACES: dict[str, spaces.Space] = {
    "box": ASYMMETRIC,
    "matrix": spaces.Box(-0.5, 0.25, (2, 2), np.float32),
    "double": spaces.Box(np.array([0.1, -0.3]), np.array([0.7, 1 / 3]), dtype=np.float64),
    "discrete": spaces.Discrete(5),
    "multidiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "multibinary": spaces.MultiBinary(3),
}


@pytest.mark.parametrize("policy", [LBDNActorCriticPolicy, "MlpPolicy"])
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_module_is_predict_for_every_action_space(name: str, policy: Any) -> None:
    space = ACTION_SPACES[name]
    model = make(PPO, policy, vec_env_of(OBSERVATIONS, space))
    deployed = deploy(model)
    observations = raw_observations(OBSERVATIONS)
    flat = as_tensor(OBSERVATIONS, observations)
    expected = predicted(model, None, observations)
    got = deployed.predict(observations)[0]
    assert got.shape == expected.shape
    assert_same(deployed, deployed(flat).numpy(), expected.reshape(deployed(flat).shape), flat)
    if isinstance(space, spaces.Box):
        # Limits hold exactly, also those that float32 cannot hold.
        assert (got.astype(np.float64) >= space.low).all() and (got.astype(np.float64) <= space.high).all()
    several = deployed(flat.reshape(4, 50, -1))
    torch.testing.assert_close(several.flatten(0, 1), deployed(flat), rtol=1e-6, atol=1e-6)


def test_unbounded_actions_are_not_clipped() -> None:
    """SB3's algorithms refuse such spaces, its policies do not."""
    space = spaces.Box(np.float32([-0.1, -np.inf]), np.float32([np.inf, np.inf]), dtype=np.float32)
    policy = LBDNActorCriticPolicy(OBSERVATIONS, space, lambda _: 1e-3, lipschitz=LIPSCHITZ)
    vary(policy)
    observations = raw_observations(OBSERVATIONS)
    got = deploy(policy)(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(got, policy.predict(observations, deterministic=True)[0], rtol=1e-6, atol=1e-5)
    assert got[:, 0].min() == np.float32(-0.1) and got[:, 1].min() < -0.1


@pytest.mark.parametrize("stacked_inside", [False, True])
def test_frames_are_stacked_inside_and_outside_of_the_normalisation(stacked_inside: bool) -> None:
    env = vec_env_of(WIDE, ACTIONS)
    if stacked_inside:
        chain: VecEnv = frozen(VecFrameStack(env, 3))
    else:
        chain = VecFrameStack(frozen(env), 3)
    model = make(PPO, LBDNActorCriticPolicy, chain)
    deployed = deploy(model, chain)
    assert deployed.pipeline.frames == 3 and len(deployed.pipeline.names) == 9
    raw = np.concatenate([raw_observations(WIDE)] * 3, axis=-1)
    if stacked_inside:
        seen = chain.normalize_obs(raw)  # type: ignore[attr-defined]
    else:
        seen = np.concatenate([chain.venv.normalize_obs(raw[:, :3])] * 3, axis=-1)  # type: ignore[attr-defined]
    expected = model.predict(seen, deterministic=True)[0]
    np.testing.assert_allclose(deployed(torch.from_numpy(raw)).numpy(), expected, rtol=0, atol=2e-6)


def test_a_mean_that_is_large_beside_the_deviation_keeps_its_digits() -> None:
    """A pressure of 101325 that varies by 0.1: float32 has no room for the difference to a rounded mean."""
    space = spaces.Box(np.float32(101320), np.float32(101330), (2,), np.float32)
    norm = VecNormalize(vec_env_of(space, ACTIONS))
    norm.obs_rms.mean, norm.obs_rms.var = np.array([101325.0012, 101324.9]), np.array([0.01, 4.0])
    norm.training = False
    model = make(PPO, LBDNActorCriticPolicy, norm)
    observations = np.float32([[101325.0, 101324.9], [101325.08, 101326.0], [101324.9, 101325.0]])
    expected = model.predict(norm.normalize_obs(observations), deterministic=True)[0]
    np.testing.assert_allclose(deploy(model, norm)(torch.from_numpy(observations)), expected, atol=1e-6)


def test_scores_are_what_the_policy_compares() -> None:
    env = vec_env_of(OBSERVATIONS, spaces.Discrete(4))
    flat = as_tensor(OBSERVATIONS, raw_observations(OBSERVATIONS))
    ppo = make(PPO, LBDNActorCriticPolicy, env)
    with torch.no_grad():
        logits = ppo.policy.get_distribution(flat).distribution.logits
    ours = deploy(ppo).logits(flat).log_softmax(-1)
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)
    dqn = make(DQN, LBDNDQNPolicy, env)
    with torch.no_grad():
        torch.testing.assert_close(deploy(dqn).values(flat), dqn.q_net(flat), rtol=1e-6, atol=1e-5)
    with pytest.raises(UnsupportedSpaceError, match="logits: expected"):
        deploy(dqn).logits(flat)
    with pytest.raises(UnsupportedSpaceError, match="values: expected"):
        deploy(ppo).values(flat)


def test_the_module_holds_plain_layers_only() -> None:
    deployed = deploy(make(SAC, LBDNSACPolicy, vec_env_of(OBSERVATIONS, ACTIONS)))
    kinds = {type(module) for module in deployed.modules()} - {DeployedPolicy, nn.Sequential}
    assert kinds == {nn.Linear, nn.ReLU}
    assert not any(p.requires_grad for p in deployed.parameters()) and not deployed.training
    assert "output=action" in repr(deployed)


def test_it_is_a_copy() -> None:
    norm = frozen(vec_env_of(WIDE, ACTIONS))
    model = make(PPO, LBDNActorCriticPolicy, norm)
    deployed = deploy(model, norm)
    flat = as_tensor(WIDE, raw_observations(WIDE))
    before = deployed(flat)
    vary(model.policy, seed=9)
    norm.obs_rms.mean += 1.0
    norm.obs_rms.var *= 2.0
    assert torch.equal(deployed(flat), before)


@pytest.mark.parametrize("name", ["box", "multidiscrete", "multibinary", "discrete"])
def test_copies_files_and_exports_compute_the_same(name: str) -> None:
    norm = frozen(vec_env_of(WIDE, ACTION_SPACES[name]))
    model = make(PPO, LBDNActorCriticPolicy, norm)
    deployed = deploy(model, norm)
    flat = as_tensor(WIDE, raw_observations(WIDE))
    expected = deployed(flat)
    stream = io.BytesIO()
    torch.save(deployed.state_dict(), stream)
    stream.seek(0)
    vary(model.policy, seed=5)
    other = deploy(model, norm)
    assert not torch.equal(other(flat), expected)
    other.load_state_dict(torch.load(stream, weights_only=True))
    exported = torch.export.export(
        deployed, (flat[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
    )
    copies = (
        pickle.loads(pickle.dumps(deployed)),
        copy.deepcopy(deployed),
        other,
        exported.module(),
    )
    for again in copies:
        torch.testing.assert_close(again(flat), expected, rtol=EPS32, atol=EPS32)
    x = flat[:3].clone().requires_grad_()
    if name == "box":
        deployed(x).sum().backward()
        assert x.grad is not None and bool(x.grad.isfinite().all())


def test_evaluate_policy_takes_it_on_raw_observations() -> None:
    env = vec_env_of(WIDE, ACTIONS)
    norm = frozen(env)
    model = make(PPO, LBDNActorCriticPolicy, norm)
    norm.norm_reward = False
    expected, _ = evaluate_policy(model, norm, n_eval_episodes=4)
    got, _ = evaluate_policy(deploy(model, norm), env, n_eval_episodes=4)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [*CONTINUOUS, *(f"discrete {name}" for name in DISCRETE)])
def test_the_bound_holds_and_is_no_worse_than_that_of_the_live_policy(name: str) -> None:
    discrete = name.startswith("discrete ")
    load, settings = (DISCRETE if discrete else CONTINUOUS)[name.removeprefix("discrete ")]
    algorithm, policy = load()
    norm = frozen(vec_env_of(WIDE, spaces.Discrete(3) if discrete else ASYMMETRIC))
    if policy == "MlpPolicy":  # a search for multipliers
        settings = {**settings, "policy_kwargs": {**settings.get("policy_kwargs", {}), "net_arch": [4]}}
    model = make(algorithm, policy, norm, **settings)
    deployed = deploy(model, norm)
    certificate = deployed.certificate()
    bound, live = deployed.bound(certificate), policy_bound(model, norm)
    assert certificate.verify(deployed.network) == bound.lipschitz <= live.lipschitz * (1 + 1e-6)
    np.testing.assert_allclose(bound.observation_scale, live.observation_scale, rtol=2 * EPS32)
    np.testing.assert_allclose(bound.action_scale, live.action_scale, rtol=2 * EPS32)
    assert (bound.output, bound.names, bound.one_hot) == (live.output, live.names, live.one_hot)
    assert bound.network_sha256 == deployed.action_map().network_sha256
    reached = lower_bound(
        deployed.action_map(),
        torch.as_tensor(norm.obs_rms.mean + 0.3 * np.random.default_rng(0).normal(size=(16, 3)) * 9.0),
        input_scale=torch.tensor(bound.observation_scale, dtype=torch.float64),
        output_scale=torch.tensor(bound.action_scale, dtype=torch.float64),
        iterations=15,
    ).value
    assert reached <= bound.lipschitz * (1 + 1e-9)


def test_the_bound_is_attained_by_a_linear_policy() -> None:
    """One layer: the certified bound is its norm in the stated units, and a change of sensor reaches it."""
    norm = frozen(vec_env_of(WIDE, spaces.Box(-1e6, 1e6, (2,), np.float32)))
    model = make(PPO, LBDNActorCriticPolicy, norm, size=2.0, policy_kwargs={"net_arch": []})
    deployed = deploy(model, norm)
    bound = deployed.bound()
    jacobian = torch.autograd.functional.jacobian(
        deployed.action_map(), torch.as_tensor(norm.obs_rms.mean), vectorize=True
    ).numpy()
    gain = np.linalg.norm(jacobian * np.asarray(bound.observation_scale), 2)
    assert bound.lipschitz * (1 - 1e-6) <= gain <= bound.lipschitz * (1 + 1e-9)


@pytest.mark.parametrize("factor", [-1.0, 30.0])
def test_changed_weights_are_certified_as_they_are(factor: float) -> None:
    """The multipliers of the construction may prove nothing of other weights; the certificate is a true one."""
    deployed = deploy(make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, ACTIONS)))
    before = deployed.certificate().bound
    with torch.no_grad():
        for layer in deployed.network[::2]:
            layer.weight.mul_(factor)  # type: ignore[operator, union-attr]
    certificate = deployed.certificate()
    assert certificate.verify(deployed.network) == certificate.bound
    if factor > 1:
        reached = lower_bound(
            deployed.network.double(), torch.zeros(8, 3, dtype=torch.float64), iterations=30
        )
        assert before < reached.value <= certificate.bound


def test_a_search_finds_a_bound_that_is_no_worse() -> None:
    deployed = deploy(make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, ACTIONS)))
    plain, searched = deployed.certificate(), deployed.certificate(search=True)
    assert searched.verify(deployed.network) < 0.9 * plain.bound


def test_drifting_and_missing_statistics_are_refused() -> None:
    env = vec_env_of(OBSERVATIONS, ACTIONS)
    norm = VecNormalize(env)
    model = make(PPO, LBDNActorCriticPolicy, norm)
    with pytest.raises(InvalidArgumentError, match="frozen statistics"):
        deploy(model, norm)
    norm.training = False
    deploy(model, norm)
    for without in (None, env):
        with pytest.raises(InvalidArgumentError, match="VecNormalize of the model"):
            deploy(model, without)
    observations = raw_observations(OBSERVATIONS)
    on_normalised = deploy(model.policy)(torch.from_numpy(norm.normalize_obs(observations)))
    np.testing.assert_allclose(on_normalised, predicted(model, norm, observations), atol=1e-6)
    norm.norm_obs = False
    deploy(model)


def test_bad_calls_are_refused() -> None:
    env = vec_env_of(OBSERVATIONS, ACTIONS)
    model = make(PPO, LBDNActorCriticPolicy, env)
    deployed = deploy(model)
    with pytest.raises(InvalidArgumentError, match="policy: expected the policy of"):
        deploy(nn.Linear(2, 2))
    with pytest.raises(InvalidArgumentError, match="vec_env"):
        deploy(model, OBSERVATIONS)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError):
        deployed.predict(np.float32([np.nan, 0, 0]))
    with pytest.raises(InvalidArgumentError, match="deterministic"):
        deployed.predict(np.zeros(3, np.float32), deterministic=False)
    with pytest.raises(ShapeError):
        deployed.predict(np.zeros(4, np.float32))
    other = deploy(make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, spaces.Discrete(3))))
    with pytest.raises(ShapeError, match="2 outputs"):
        DeployedPolicy(other.explicit(), deployed.pipeline, deployed.proof)
    fixed = spaces.Box(np.float32([0, 1]), np.float32([1, 1]), dtype=np.float32)
    with pytest.raises(UnsupportedSpaceError, match="finite limits low < high"):
        deploy(make(SAC, "MlpPolicy", vec_env_of(OBSERVATIONS, fixed)))


def test_two_logits_per_binary_action_are_refused() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    from robustnn.policies.contrib import LBDNMaskablePolicy

    env = toy_vec_env(action_space=spaces.MultiBinary(3))
    model = contrib.MaskablePPO(
        LBDNMaskablePolicy,
        env,
        policy_kwargs={"lipschitz": 4.0, "net_arch": [8]},
        device="cpu",
        n_steps=16,
        batch_size=16,
    )
    with pytest.raises(UnsupportedSpaceError, match="one logit per binary action"):
        deploy(model)
