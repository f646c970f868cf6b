"""Certified radii of greedy decisions: no attack inside them succeeds, and just outside one does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import Tensor

from robustnn.certify import attack_decision, certified_radius, certify_policy
from robustnn.certify.attack import predict_flat
from robustnn.policies import policy_bound
from robustnn.policies.networks import decider_of
from tests.certify.models import FOUR, fit, model_of, states
from tests.policies.toy import make_steep, randomise, sample_observations, toy_vec_env

EPS32 = float(np.finfo(np.float32).eps)
UNEQUAL = (0.1, 0.5, 0.05, 0.5)

# algorithm, actions, norm, scale, method, number of attacked states
ATTACKED: dict[str, tuple[str, spaces.Space, str, Any, str, int]] = {
    "DQN": ("DQN", spaces.Discrete(2), "l2", None, "auto", 30_000),
    "DQN, box": ("DQN", spaces.Discrete(3), "linf", UNEQUAL, "auto", 10_000),
    "PPO": ("PPO", spaces.Discrete(3), "l2", UNEQUAL, "lipsdp", 15_000),
    "PPO, box": ("PPO", spaces.Discrete(2), "linf", None, "declared", 10_000),
    "QRDQN": ("QRDQN", spaces.Discrete(2), "l2", None, "lipsdp", 20_000),
    "MultiDiscrete": ("PPO", spaces.MultiDiscrete([3, 2]), "l2", None, "auto", 8_000),
    "MultiBinary, box": ("A2C", spaces.MultiBinary(2), "linf", UNEQUAL, "auto", 7_000),
}


def test_there_are_a_hundred_thousand_attacked_states() -> None:
    assert sum(case[-1] for case in ATTACKED.values()) >= 100_000


@pytest.mark.parametrize("name", ATTACKED)
def test_no_attack_inside_the_radius_changes_the_action(name: str) -> None:
    algorithm, actions, norm, scale, method, n = ATTACKED[name]
    model = model_of(algorithm, actions)
    certificate = certify_policy(model, norm=norm, scale=scale, method=method, iterations=30)
    observations = states(n)
    radius = certified_radius(certificate, observations)
    assert float((radius > 0).double().mean()) > 0.99
    attack = attack_decision(model, certificate, observations, radius, iterations=5, restarts=1)
    assert int(attack.changed.sum()) == 0
    size = (attack.observation - observations) / torch.tensor(certificate.scale)
    length = size.norm(dim=-1) if norm == "l2" else size.abs().amax(-1)
    assert bool((length <= radius * (1 + 1e-9)).all()) and float(length.sum() / radius.sum()) > 0.9


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("algorithm", ["DQN", "PPO", "QRDQN"])
def test_the_local_radius_is_larger_certified_and_not_far_from_the_truth(algorithm: str, norm: str) -> None:
    model = model_of(algorithm, spaces.Discrete(3))
    certificate = certify_policy(model, norm=norm, scale=UNEQUAL)
    observations = states(600)
    anywhere = certified_radius(certificate, observations)
    radius = certified_radius(certificate, observations, local=True)
    assert bool((radius >= anywhere).all()) and float((radius / anywhere)[anywhere > 0].mean()) > 1.5
    assert not bool(attack_decision(model, certificate, observations, radius).changed.any())
    beyond = attack_decision(model, certificate, observations, 3.0 * radius).changed
    assert float(beyond.double().mean()) > 0.5


@pytest.mark.parametrize("algorithm", ["DQN", "PPO", "QRDQN"])
def test_constants_of_pairs_are_better_than_the_root_of_two(algorithm: str) -> None:
    model = model_of(algorithm, spaces.Discrete(3))
    observations = states(500)
    for norm in ("l2", "linf"):
        radii = [
            certified_radius(certify_policy(model, norm=norm, method=method, iterations=40), observations)
            for method in ("declared", "auto", "lipsdp")
        ]
        assert bool((radii[1] >= radii[0]).all()) and bool((radii[2] >= radii[1] * (1 - 1e-9)).all())
        clear = radii[0] > 0
        assert float((radii[1] / radii[0])[clear].mean()) > 1.02
        assert float((radii[2] / radii[1])[clear].mean()) > 1.01


def test_the_declared_constants_are_those_of_the_bound() -> None:
    model = model_of("PPO", spaces.Discrete(3), policy_kwargs={"observation_scale": UNEQUAL})
    bound = policy_bound(model)
    factors = certify_policy(model, scale=UNEQUAL, method="declared").change
    pair = factors.pairs[0, 1].item()
    assert pair == pytest.approx(math.sqrt(2.0) * bound.lipschitz, rel=1e-7)  # the scale is kept in float32
    box = certify_policy(model, norm="linf", method="declared").change.pairs[0, 1].item()
    assert box == pytest.approx(math.sqrt(2.0) * bound.plain_linf, rel=1e-9)


def just_beyond(model: Any, certificate: Any, observations: Tensor, factor: float) -> float:
    radius = certified_radius(certificate, observations)
    clear = radius > radius.median()
    found = attack_decision(model, certificate, observations, factor * radius).changed
    return float(found[clear].double().mean())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("algorithm", "actions"),
    [
        ("DQN", spaces.Discrete(3)),
        ("QRDQN", spaces.Discrete(2)),
        ("PPO", spaces.MultiDiscrete([3, 2])),
        ("PPO", spaces.MultiBinary(3)),
    ],
)
def test_exact_for_a_linear_network(algorithm: str, actions: spaces.Space, norm: str) -> None:
    model = model_of(algorithm, actions, policy_kwargs={"net_arch": []}, steps=200)
    certificate = certify_policy(model, norm=norm, scale=UNEQUAL)
    assert just_beyond(model, certificate, states(300), 1.0 + 2e-4) == 1.0
    assert just_beyond(model, certificate, states(300), 1.0) == 0.0


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_nearly_exact_where_the_network_is_as_steep_as_its_bound(algorithm: str) -> None:
    model = model_of(algorithm, spaces.Discrete(2), policy_kwargs={"activation_fn": torch.nn.Tanh})
    make_steep(model.policy)
    observations = 0.02 * states(100)
    for method in ("declared", "auto"):
        assert just_beyond(model, certify_policy(model, method=method), observations, 1.05) == 1.0
        assert just_beyond(model, certify_policy(model, method=method), observations, 1.0) == 0.0


def normalised(model_env: Any) -> VecNormalize:
    env = VecNormalize(model_env, clip_obs=2.5)
    env.obs_rms.mean = np.array([3.0, -1.0, 100.0, 0.01])
    env.obs_rms.var = np.array([4.0, 0.01, 900.0, 1e-6])
    env.training = False
    return env


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radii_are_in_raw_units_behind_vec_normalize(norm: str) -> None:
    env = normalised(toy_vec_env(FOUR, spaces.Discrete(3), 1))
    model = model_of("DQN", spaces.Discrete(3), env=env)
    scale = (1.0, 0.1, 20.0, 1e-3)
    certificate = certify_policy(model, env, norm=norm, scale=scale)
    raw = torch.as_tensor(env.obs_rms.mean) + 1.5 * states(3000) * torch.as_tensor(env.obs_rms.var).sqrt()
    normal = env.normalize_obs(raw.numpy())
    assert np.abs(normal).max() == 2.5  # some are clipped
    for local in (False, True):
        some = raw if not local else raw[:400]
        radius = certified_radius(certificate, some, local=local)
        attack = attack_decision(model, certificate, some, radius)
        assert not bool(attack.changed.any())
        moved = env.normalize_obs(attack.observation.numpy())
        np.testing.assert_array_equal(
            model.predict(moved, deterministic=True)[0],
            predict_flat(model, certificate, attack.observation),
        )
    inside = np.abs(normal).max(-1) < 1.5
    plain = certify_policy(
        model.policy, norm=norm, scale=np.array(scale) / np.sqrt(env.obs_rms.var + env.epsilon)
    )
    same = certified_radius(plain, torch.as_tensor(normal).double())
    np.testing.assert_allclose(certified_radius(certificate, raw)[inside], same[inside], rtol=1e-3)


def test_a_component_without_error_is_left_alone() -> None:
    model = model_of("DQN", spaces.Discrete(2))
    every, some = (certify_policy(model, scale=scale) for scale in ((1, 1, 1, 1), (1, 0, 1, 0)))
    observations = states(500)
    radius = certified_radius(some, observations)
    assert float((radius / certified_radius(every, observations)).mean()) > 1.01
    attack = attack_decision(model, some, observations, radius)
    assert not bool(attack.changed.any())
    assert torch.equal(attack.observation[:, [1, 3]], observations[:, [1, 3]])


def test_stacked_frames() -> None:
    env = VecFrameStack(normalised(toy_vec_env(FOUR, spaces.Discrete(2), 1)), 2)
    model = model_of("DQN", spaces.Discrete(2), env=env)
    certificate = certify_policy(model, env, norm="linf", scale=2 * (1.0, 0.1, 20.0, 1e-3))
    raw = torch.tensor([3.0, -1.0, 100.0, 0.01] * 2) + states(500, 8) * torch.tensor(
        [2.0, 0.1, 30.0, 1e-3] * 2
    )
    radius = certified_radius(certificate, raw, local=True)
    assert float(radius.min()) > 0
    assert not bool(attack_decision(model, certificate, raw, radius).changed.any())


def test_dict_observations_with_discrete_parts() -> None:
    space = spaces.Dict({"pose": FOUR, "gear": spaces.Discrete(3), "flags": spaces.MultiBinary(2)})
    model = model_of("PPO", spaces.Discrete(3), space)
    observations = sample_observations(space, 50)
    certificate = certify_policy(model, norm="linf", scale={"pose": UNEQUAL})
    assert sum(value > 0 for value in certificate.scale) == 4  # the discrete parts are taken as they are
    radius = certified_radius(certificate, observations)
    assert radius.shape == (50,) and float(radius.min()) > 0
    assert not bool(attack_decision(model, certificate, observations, radius).changed.any())
    one = {key: values[3] for key, values in observations.items()}
    assert certified_radius(certificate, one).item() == pytest.approx(radius[3].item(), rel=1e-12)


def test_masks_leave_out_the_choices_that_are_not_allowed() -> None:
    model = model_of("MaskablePPO", spaces.MultiDiscrete([3, 2]))
    certificate = certify_policy(model)
    observations = states(2000)
    masks = np.random.default_rng(0).random((2000, 5)) < 0.7
    masks[:, [0, 3]] |= ~np.stack([masks[:, :3].any(-1), masks[:, 3:].any(-1)], axis=-1)
    radius = certified_radius(certificate, observations, action_masks=masks)
    alone = (masks[:, :3].sum(-1) == 1) & (masks[:, 3:].sum(-1) == 1)
    assert bool(((radius > 1e5) == torch.as_tensor(alone)).all()) and alone.any()
    finite = radius.clamp_max(1.0)
    attack = attack_decision(model, certificate, observations, finite, action_masks=masks)
    assert not bool(attack.changed.any())
    everything = certified_radius(certificate, observations)
    assert bool((radius != everything).any())
    allowed = np.ones((2000, 5), dtype=bool)
    assert torch.equal(certified_radius(certificate, observations, action_masks=allowed), everything)


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.MultiBinary(2)])
def test_policies_of_sb3_itself(actions: spaces.Space) -> None:
    model = model_of("PPO", actions, bounded=False)
    certificate = certify_policy(model)
    observations = states(2000)
    radius = certified_radius(certificate, observations, local=True)
    assert float((radius > 0).double().mean()) > 0.99
    assert not bool(attack_decision(model, certificate, observations, radius).changed.any())


@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("algorithm", ["DQN", "QRDQN", "PPO"])
def test_any_weights(algorithm: str, size: float) -> None:
    model = model_of(algorithm, spaces.Discrete(3), steps=0)
    randomise(model.policy, size)
    certificate = certify_policy(model)
    observations = states(500)
    radius = certified_radius(certificate, observations, local=True).clamp_max(1e3)
    assert not bool(attack_decision(model, certificate, observations, radius).changed.any())


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.Tanh, torch.nn.ELU, torch.nn.Softplus])
@pytest.mark.parametrize("algorithm", ["DQN", "QRDQN"])
def test_the_allowance_for_rounding_covers_float32(algorithm: str, activation: type) -> None:
    largest = 0.0
    for arch in ([], [24, 24]):
        kwargs = {"net_arch": arch, "activation_fn": activation}
        model = model_of(algorithm, spaces.Discrete(3), policy_kwargs=kwargs)
        path = certify_policy(model, method="declared").path
        observations = states(2000) * torch.logspace(-2, 3, 2000, dtype=torch.float64).unsqueeze(-1)
        allowed = path.output_error(observations)[1]
        with torch.no_grad():
            output = torch.nn.Sequential(*decider_of(model).body)(observations.float())
        if path.n_quantiles:
            output = output.unflatten(-1, (path.n_quantiles, -1)).mean(-2)
        largest = max(largest, float(((output - path.network(observations)).abs() / allowed).max()))
    assert 0.02 < largest < 0.5


@pytest.mark.parametrize("offset", [0.0, 3.0e3, 1.0e7])
@pytest.mark.parametrize("algorithm", ["DQN", "QRDQN", "PPO"])
def test_what_float32_does_to_large_outputs_and_observations_is_taken_off(
    algorithm: str, offset: float
) -> None:
    model = model_of(algorithm, spaces.Discrete(2))
    with torch.no_grad():
        layer = model.policy.lbdn.layers[-1]
        layer.bias += offset
        if algorithm == "QRDQN":  # quantiles far apart, whose mean is small
            layer.bias += 1e5 * torch.linspace(-1, 1, len(layer.bias) // 2).repeat_interleave(2)
    certificate = certify_policy(model)
    observations = 1e-4 * states(4000) + 0.3
    radius = certified_radius(certificate, observations)
    if offset == 0.0 and algorithm != "QRDQN":
        assert float(radius.min()) > 0
    attack = attack_decision(model, certificate, observations, radius)
    assert not bool(attack.changed.any())
    far = observations + 1e6
    attack = attack_decision(model, certificate, far, certified_radius(certificate, far))
    assert not bool(attack.changed.any())


@pytest.mark.parametrize("lipschitz, offset", [(1e-2, 10.0), (1.0, 100.0)])
def test_near_ties_of_coarse_logits(lipschitz: float, offset: float) -> None:
    """Logits that nearly tie and are large: their float32 values are coarse, and the radius must say so."""
    model = model_of(
        "PPO", spaces.Discrete(3), steps=0, policy_kwargs={"net_arch": [8], "lipschitz": lipschitz}
    )
    randomise(model.policy, 1.0)
    with torch.no_grad():
        model.policy.action_net.layers[-1].bias.fill_(offset)
    observations = states(512).float()
    radius = certified_radius(certify_policy(model), observations)
    action = model.predict(observations.numpy(), deterministic=True)[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        direction = torch.randn(observations.shape, dtype=torch.float64, generator=generator)
        direction /= direction.norm(dim=-1, keepdim=True)
        moved = (observations + 0.999 * radius[:, None] * direction).float()
        inside = ((moved.double() - observations).norm(dim=-1) <= radius).numpy()
        np.testing.assert_array_equal(
            model.predict(moved.numpy(), deterministic=True)[0][inside], action[inside]
        )


def test_shapes_and_repeated_evaluation() -> None:
    model = model_of("DQN", spaces.Discrete(2))
    certificate = certify_policy(model)
    flat = states(6).reshape(2, 3, 4)
    radius = certified_radius(certificate, flat)
    assert radius.shape == (2, 3) and radius.dtype == torch.float64
    assert certified_radius(certificate, flat[0, 0]).shape == ()
    assert certified_radius(certificate, flat[:0], local=True).shape == (0, 3)
    as_array = certified_radius(certificate, flat.reshape(6, 4).numpy())
    torch.testing.assert_close(as_array, radius.reshape(6), rtol=1e-12, atol=0)
    many = certified_radius(certificate, flat.reshape(6, 4).repeat(1000, 1))
    torch.testing.assert_close(many[-6:], as_array, rtol=1e-12, atol=0)


def test_a_certificate_is_about_the_weights_that_it_was_made_from() -> None:
    model = model_of("DQN", spaces.Discrete(2))
    certificate = certify_policy(model)
    before = certified_radius(certificate, states(10))
    fit(model, 10, seed=3)
    assert torch.equal(certified_radius(certificate, states(10)), before)
    assert not torch.equal(certified_radius(certify_policy(model), states(10)), before)


def test_a_constant_decision_has_no_limit() -> None:
    model = model_of("DQN", spaces.Discrete(2), bounded=False, steps=0)
    with torch.no_grad():
        last = list(model.policy.q_net.q_net)[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 0.0]))
    radius = certified_radius(certify_policy(model), states(5))
    assert bool((radius > 1e4).all())


def test_lower_matmul_precision_is_taken_off_too() -> None:
    model = model_of("DQN", spaces.Discrete(2))
    observations = states(200)
    exact = certified_radius(certify_policy(model), observations)
    try:
        torch.set_float32_matmul_precision("high")
        rough = certified_radius(certify_policy(model), observations)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert bool((rough < exact).all()) and EPS32 < certify_policy(model).path.eps < 1.01 * EPS32
