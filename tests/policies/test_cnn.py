"""Policies of images: they learn, their bound holds on raw uint8 frames and is attained, and SB3 can do its work."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch import Tensor

from robustnn.bounds import certify_cnn, image_lower_bound
from robustnn.envs import DotImageEnv
from robustnn.errors import InvalidArgumentError, ShapeError, UnsupportedSpaceError
from robustnn.policies import FreezeWeights, LBDNCnnDQNPolicy, LBDNCnnPolicy
from tests.policies.dots import FRAMES, LAYERS, make, raw_function, steep_

EPS64 = torch.finfo(torch.float64).eps


def test_ppo_learns_and_the_bound_holds_on_raw_frames() -> None:
    model = make()
    wanted = (np.arange(12) < 6).astype(int)
    right = []
    for _ in range(8):
        right.append(int((model.predict(FRAMES, deterministic=True)[0] == wanted).sum()))
        if right[-1] == 12:
            break
        model.learn(256, callback=FreezeWeights(), reset_num_timesteps=False)
    assert right[0] < 12 and right[-1] == 12, right
    bound = model.policy.bound(model.get_env())
    assert bound.plain == 20.0 / 255.0 and bound.output == "logits" and bound.frames == 1
    assert certify_cnn(model.policy.lbdn).value <= 20.0
    function = raw_function(model.policy.lbdn)
    starts = torch.from_numpy(FRAMES).double().movedim(-1, 1)
    found = image_lower_bound(function, starts, iterations=40, lr=1.0, radius=5.0)
    assert 0.01 * bound.plain < found.value <= bound.plain
    # Whole steps of the raw pixels, as predict sees them.
    rng = np.random.default_rng(0)
    other = np.clip(FRAMES.astype(int) + rng.integers(-3, 4, FRAMES.shape), 0, 255)
    raw = [torch.from_numpy(x).double().movedim(-1, 1) for x in (FRAMES, other)]
    with torch.no_grad():
        change = (function(raw[0]) - function(raw[1])).norm(dim=1)
    assert (change <= bound.plain * (raw[0] - raw[1]).flatten(1).norm(dim=1)).all()


def test_the_bound_is_attained() -> None:
    space = spaces.Box(0, 255, (1, 6, 6), np.uint8)
    policy = LBDNCnnPolicy(
        space, spaces.Discrete(2), lambda _: 1e-3, lipschitz=8.0, conv=[(4, 3)], net_arch=[8], outer="kernel"
    )
    starts = steep_(policy.lbdn)
    function, bound = raw_function(policy.lbdn), policy.bound().plain
    found = image_lower_bound(function, starts, iterations=60, lr=0.5, radius=5.0)
    assert 0.95 * bound < found.value <= bound


def test_the_radius_of_a_decision_is_attained_where_the_network_is_steep() -> None:
    space = spaces.Box(0, 255, (1, 4, 4), np.uint8)
    policy = LBDNCnnPolicy(space, spaces.Discrete(2), lambda _: 1e-3, lipschitz=3.0, conv=[], net_arch=[])
    steep_(policy.lbdn)  # linear
    images = np.random.default_rng(0).integers(60, 190, (16, 1, 4, 4)).astype(np.uint8)
    radius = policy.decision_radius(images)
    function = raw_function(policy.lbdn)
    x = torch.from_numpy(images).double().requires_grad_(True)
    z = function(x)
    gap = z.amax(1) - z.amin(1)
    (gradient,) = torch.autograd.grad(gap.sum(), x)
    distance = (gap / gradient.flatten(1).norm(dim=1)).detach().numpy()
    assert (radius <= distance * (1 + 64 * EPS64)).all() and (radius > 0.95 * distance).all()
    box = LBDNCnnPolicy(space, spaces.Box(-1, 1, (2,)), lambda _: 1e-3, lipschitz=3.0, **LAYERS)
    with pytest.raises(UnsupportedSpaceError, match="Discrete"):
        box.decision_radius(images)
    with pytest.raises(ShapeError, match="images of shape"):
        policy.decision_radius(np.zeros((2, 1, 4, 5), dtype=np.uint8))


def test_predict_is_the_frozen_and_the_exported_network() -> None:
    model = make()
    net = model.policy.lbdn
    with torch.no_grad():
        net.layers[-1].alpha.fill_(2.0)
    pixels = torch.from_numpy(FRAMES).movedim(-1, 1).float() / 255.0
    expected = model.predict(FRAMES, deterministic=True)[0]
    with torch.no_grad():
        logits = net(pixels)
        with net.frozen():
            assert torch.equal(net(pixels), logits)
            assert np.array_equal(model.predict(FRAMES, deterministic=True)[0], expected)
        torch.testing.assert_close(
            net.to_cnn()(pixels), logits, rtol=0.0, atol=64 * 1.2e-7 * float(logits.abs().max())
        )
    assert np.array_equal(logits.argmax(1).numpy(), expected) and logits.std() > 0


def test_freezing_changes_no_training() -> None:
    models = []
    for callback in (None, FreezeWeights()):
        models.append(make().learn(256, callback=callback))
    for one, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy, algorithm", [(LBDNCnnPolicy, A2C), (LBDNCnnDQNPolicy, DQN)])
def test_saved_and_copied_policies_are_the_same(policy: Any, algorithm: Any, tmp_path: Path) -> None:
    more = {"lipschitz_critic": 7.0} if algorithm is A2C else {}
    model = make(policy, algorithm, padding="circular", outer="kernel", **more)
    model.learn(48)
    model.policy.set_lipschitz(11.0)
    assert all(net.lipschitz == 11.0 for net in model.policy.bounded_networks())
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    twins = [
        algorithm.load(tmp_path / "model", device="cpu").policy,
        policy.load(str(tmp_path / "policy"), device="cpu"),
        copy.deepcopy(model.policy),
    ]
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 1)).astype(np.uint8)
    state = model.policy.state_dict()
    for twin in twins:
        assert twin.bound().network_sha256 == model.policy.bound().network_sha256
        assert twin.bound().plain == 11.0 / 255.0
        assert np.array_equal(
            twin.predict(images, deterministic=True)[0], model.predict(images, deterministic=True)[0]
        )
        assert all(torch.equal(v, state[k]) for k, v in twin.state_dict().items() if isinstance(v, Tensor))
        if algorithm is A2C:
            assert twin.value_net[1].lipschitz == 7.0 and twin.value_net[1].padding == "circular"


def test_q_values_and_their_target_have_the_bound() -> None:
    model = make(LBDNCnnDQNPolicy, DQN)
    model.learn(40, callback=FreezeWeights())
    nets = list(model.policy.bounded_networks())
    assert len(nets) == 2 and nets[0] is not nets[1]
    assert all(certify_cnn(net).value <= 20.0 for net in nets)
    bound = model.policy.bound()
    assert bound.output == "Q-values" and bound.plain == 20.0 / 255.0


def test_continuous_actions_are_bounded() -> None:
    model = make(env=DotImageEnv(spaces.Box(-0.4, 0.4, (2,))), lipschitz=300.0)
    with torch.no_grad():
        model.policy.lbdn.layers[-1].alpha.fill_(3.0)
    model.learn(256)
    bound = model.policy.bound()
    assert bound.output == "action" and bound.stages[-1].name == "clipped to limits"
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 12, 12, 1)).astype(np.uint8)
    actions = [model.predict(one, deterministic=True)[0].astype(float) for one in images]
    change = np.linalg.norm(actions[0] - actions[1], axis=1)
    distance = np.linalg.norm((images[0].astype(float) - images[1]).reshape(30, -1), axis=1)
    assert (change <= bound.plain * distance).all() and change.max() > 0


def test_stacked_frames_are_counted() -> None:
    env = VecFrameStack(DummyVecEnv([DotImageEnv]), 3)
    model = make(env=env)
    bound = model.policy.bound(model.get_env())
    assert bound.frames == 3 and bound.plain == 20.0 / 255.0
    assert abs(bound.per_frame - math.sqrt(3.0) * bound.plain) <= 4 * EPS64 * bound.per_frame
    assert len(bound.sensors) == 144 and len(bound.names) == 432
    assert "3 stacked frames" in str(bound)
    with pytest.raises(ShapeError, match="images of"):
        model.policy.bound(DummyVecEnv([DotImageEnv]))


def test_what_has_no_bound_is_refused() -> None:
    image, discrete = spaces.Box(0, 255, (1, 12, 12), np.uint8), spaces.Discrete(2)
    for space in (
        spaces.Box(-1, 1, (3,)),
        spaces.Box(0, 1, (1, 12, 12)),
        spaces.Box(0, 255, (12, 12), np.uint8),
    ):
        with pytest.raises(UnsupportedSpaceError, match="image"):
            LBDNCnnPolicy(space, discrete, lambda _: 1e-3, lipschitz=1.0)
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "lipschitz"),
        ({"lipschitz": -1.0}, "lipschitz"),
        ({"lipschitz": 1.0, "use_sde": True}, "use_sde"),
        ({"lipschitz": 1.0, "squash_output": True}, "squash_output"),
        ({"lipschitz": 1.0, "activation_fn": torch.nn.GELU}, "activation"),
        ({"lipschitz": 1.0, "features_extractor_class": torch.nn.Identity}, "features_extractor_class"),
        ({"lipschitz": 1.0, "net_arch": {"qf": [8]}}, "net_arch"),
        ({"lipschitz": 1.0, "conv": [(8,)]}, "conv"),
    ]
    for kwargs, match in bad:
        with pytest.raises(InvalidArgumentError, match=match):
            LBDNCnnPolicy(image, discrete, lambda _: 1e-3, **kwargs)
    with pytest.raises(InvalidArgumentError, match="lipschitz_critic"):
        LBDNCnnDQNPolicy(image, discrete, lambda _: 1e-3, lipschitz=1.0, lipschitz_critic=1.0)
    with pytest.raises(UnsupportedSpaceError, match="Discrete"):
        LBDNCnnDQNPolicy(image, spaces.Box(-1, 1, (2,)), lambda _: 1e-3, lipschitz=1.0)
    model = make()
    normalised = VecNormalize(DummyVecEnv([DotImageEnv]))
    with pytest.raises(InvalidArgumentError, match="norm_obs"):
        model.policy.bound(normalised)
