"""Image policies in everything that policies of vectors have: bound, map, log, schedule, deployment, in pairs."""

from __future__ import annotations

import copy
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

from robustnn.bounds import certify_cnn, image_lower_bound
from robustnn.certify import certify_policy
from robustnn.closedloop.critics import critic_of
from robustnn.envs import DotImageEnv
from robustnn.errors import CertificateError, InvalidArgumentError, ShapeError, UnsupportedSpaceError
from robustnn.policies import (
    ActionMap,
    DeployedImagePolicy,
    FreezeWeights,
    LBDNCnnDQNPolicy,
    LogLipschitz,
    ScheduleLipschitz,
    action_map,
    convert_policy,
    deploy,
    fine_tune,
    policy_bound,
    save_deployed,
)
from robustnn.policies.empirical import empirical_lipschitz, recent_observations
from tests.policies.dots import FRAMES, make, steep_
from tests.policies.test_callbacks import EMPIRICAL, GAMMA, RAW, logged

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 1)).astype(np.uint8)
ACTIONS = {
    "discrete": spaces.Discrete(2),
    "box": spaces.Box(np.array([-0.4, -3.0], dtype=np.float32), np.array([0.4, 2.0], dtype=np.float32)),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
}
CASES = [*ACTIONS, "DQN"]


def model_of(case: str, **kwargs: Any) -> Any:
    """A policy whose decisions differ from image to image; "DQN" or PPO for a space of `ACTIONS`."""
    if case == "DQN":
        model = make(LBDNCnnDQNPolicy, DQN, lipschitz=200.0, **kwargs)
    else:
        env = DummyVecEnv([lambda: DotImageEnv(ACTIONS[case])])
        model = make(env=env, lipschitz=200.0, **kwargs)
    with torch.no_grad():
        net = model.policy.lbdn
        net.layers[-1].alpha.fill_(3.0)
        # Every choice is taken for half of the images.
        middle = net(channels_first(IMAGES).float() / 255.0).sort(0).values[29:31].mean(0)
        net.layers[-1].bias -= middle
    return model


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))


# bound and map --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_bound_is_the_product_of_its_stages(case: str) -> None:
    model = model_of(case)
    bound = policy_bound(model)
    assert bound.plain == 200.0 / 255.0
    assert abs(bound.product - bound.plain) <= 4 * EPS64 * bound.plain
    names = [stage.name for stage in bound.stages]
    assert names == ["pixels in [0, 1]", "network", *(["clipped to limits"] if case == "box" else [])]
    assert [stage.factor for stage in bound.stages][:2] == [1.0 / 255.0, 200.0]
    text = str(bound)
    assert "uint8 divided by 255" in text and "x 0.003922" in text and "= 0.7843" in text
    assert bound.network_sha256 == action_map(model).network_sha256 == model.policy.bound().network_sha256
    assert policy_bound(model.policy, require_frozen=False).network_sha256 == ""
    assert bound == type(bound).from_dict(bound.to_dict())
    with pytest.raises(InvalidArgumentError, match="LipSDP is for dense"):
        policy_bound(model, method="lipsdp")
    bound.check(policy_bound(model))
    model.policy.set_lipschitz(100.0)
    with pytest.raises(CertificateError, match="weights"):
        bound.check(policy_bound(model))


def test_the_bound_of_a_model_knows_its_frame_stack() -> None:
    model = make(env=VecFrameStack(DummyVecEnv([DotImageEnv]), 4))
    bound = policy_bound(model)
    assert bound.frames == 4 and bound.stages[0].name == "4 stacked frames"
    assert abs(bound.per_frame - 2.0 * bound.plain) <= 4 * EPS64 * bound.per_frame
    assert policy_bound(model.policy).frames == 1 and policy_bound(model.policy, model.get_env()).frames == 4
    for function in (policy_bound, action_map, deploy):
        with pytest.raises(ShapeError, match="images of"):
            function(model, DummyVecEnv([DotImageEnv]))
        with pytest.raises(InvalidArgumentError, match="VecEnv"):
            function(model, DotImageEnv())
    assert deploy(model).bound().frames == 4 and deploy(model).bound().names == bound.names
    # Component c of the stack is component c modulo one of a frame: those of one pixel have one name.
    assert bound.names[5] == bound.names[144 + 5] == "o[0,0,5]"


@pytest.mark.parametrize("case", CASES)
def test_the_map_is_what_predict_does(case: str) -> None:
    model = model_of(case)
    policy_map = action_map(model)
    found = policy_map(channels_first(IMAGES).double())
    assert found.dtype == torch.float64 and not found.requires_grad and isinstance(policy_map, ActionMap)
    expected = model.predict(IMAGES, deterministic=True)[0]
    if case == "box":
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
        assert (np.abs(expected) >= 0.39).any()  # some are clipped
        with pytest.raises(UnsupportedSpaceError, match="discrete"):
            policy_map.decide(channels_first(IMAGES).double())
    else:
        decided = policy_map.decide(channels_first(IMAGES).double()).numpy()
        assert np.array_equal(decided, expected) and len(np.unique(decided, axis=0)) > 1
    single = action_map(model, dtype=torch.float32)(
        channels_first(IMAGES[:4]).float().reshape(2, 2, 1, 12, 12)
    )
    torch.testing.assert_close(single.flatten(0, 1).double(), found[:4], rtol=1e-5, atol=1e-5 * 200.0)
    with pytest.raises(UnsupportedSpaceError, match="one by one"):
        policy_map.stack([policy_map, policy_map])


@pytest.mark.parametrize("case", ["box", "DQN"])
def test_ascent_on_raw_frames_stays_below_and_gets_near(case: str) -> None:
    model = model_of(case, conv=[(4, 3)], net_arch=[8], outer="kernel")
    model.policy.set_lipschitz(0.2 if case == "box" else 8.0)  # within the limits of the action
    with torch.no_grad():
        model.policy.lbdn.layers[-1].bias.zero_()
    starts = steep_(model.policy.lbdn, 150)
    bound = policy_bound(model).plain
    for function in (action_map(model), deploy(model).action_map()):
        found = image_lower_bound(function, starts, iterations=60, lr=0.5, radius=5.0)
        assert 0.9 * bound < found.value <= bound


def test_what_has_no_certificate_says_so() -> None:
    model = model_of("discrete")
    for function in (certify_policy, convert_policy):
        with pytest.raises(UnsupportedSpaceError, match="one of images"):
            function(model)
    with pytest.raises(UnsupportedSpaceError, match="one of images"):
        critic_of(model_of("DQN"))

    class Mine(LBDNCnnDQNPolicy):
        def obs_to_tensor(self, observation: Any) -> Any:
            return super().obs_to_tensor(255 - observation)

    Mine.obs_to_tensor.__module__ = Mine.__module__ = "elsewhere"
    own = make(Mine, DQN)
    for function in (policy_bound, action_map, deploy):
        with pytest.raises(InvalidArgumentError, match="obs_to_tensor"):
            function(own)


# callbacks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy, algorithm", [(None, PPO), (None, A2C), (LBDNCnnDQNPolicy, DQN)])
def test_the_log_has_bound_and_lower_bound(policy: Any, algorithm: Any) -> None:
    env = VecFrameStack(DummyVecEnv([DotImageEnv]), 2)
    model = make(algorithm=algorithm, env=env, **({} if policy is None else {"policy": policy}))
    callback = LogLipschitz(16 if algorithm is DQN else None, empirical_every=32, starts=6, iterations=8)
    records = logged(model, 64, callback)
    gamma, raw, empirical = (records.of(key) for key in (GAMMA, RAW, EMPIRICAL))
    assert gamma and set(gamma) == {20.0} and set(raw) == {20.0 / 255.0}
    assert empirical and all(0.0 < value <= raw[0] for value in empirical)


def test_recent_images_are_those_of_the_buffer() -> None:
    model = make(LBDNCnnDQNPolicy, DQN)
    with pytest.raises(InvalidArgumentError, match="learn first"):
        recent_observations(model, 4)
    model.learn(40)
    found = recent_observations(model, 10)
    assert found.shape == (10, 144) and found.dtype == np.float64
    seen = {frame.tobytes() for frame in FRAMES}
    assert all(image.astype(np.uint8).tobytes() in seen for image in found)
    state = torch.get_rng_state()
    assert empirical_lipschitz(model, starts=4, iterations=5) == empirical_lipschitz(
        model, starts=4, iterations=5
    )
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_schedule_moves_the_bound_and_predict_follows(algorithm: Any) -> None:
    policies = {PPO: {}, DQN: {"policy": LBDNCnnDQNPolicy}}[algorithm]
    model = make(algorithm=algorithm, env=DummyVecEnv([DotImageEnv]), **policies)
    twin = copy.deepcopy(model.policy)
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    model.learn(512, callback=[ScheduleLipschitz(2.0), FreezeWeights()])
    assert {net.lipschitz for net in model.policy.bounded_networks()} == {2.0}
    assert policy_bound(model).plain == 2.0 / 255.0
    # Nothing was learnt, so the change is that of the bound: predict has the function of the smaller one.
    pixels = channels_first(IMAGES)
    scores = [action_map(one)(pixels.double()) for one in (twin, model)]
    assert not torch.allclose(scores[0], scores[1], rtol=0.0, atol=1e-6)
    twin.set_lipschitz(2.0)
    torch.testing.assert_close(action_map(twin)(pixels.double()), scores[1], rtol=0.0, atol=64 * EPS32)
    assert np.array_equal(
        model.predict(IMAGES, deterministic=True)[0], twin.predict(IMAGES, deterministic=True)[0]
    )


# deployment -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["pointwise", "kernel"])
@pytest.mark.parametrize("case", CASES)
def test_the_deployed_module_is_predict(case: str, outer: str) -> None:
    model = model_of(case, outer=outer)
    deployed = deploy(model)
    assert isinstance(deployed, DeployedImagePolicy)
    kinds = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten, nn.ZeroPad2d, nn.CircularPad2d, nn.Identity)
    assert all(isinstance(module, kinds) for module in deployed.network)
    expected = model.predict(IMAGES, deterministic=True)[0]
    got = deployed.predict(IMAGES)[0]
    assert got.shape == expected.shape
    if case == "box":
        np.testing.assert_allclose(got, expected, rtol=0.0, atol=1e-5)
    else:
        assert np.array_equal(got, expected)
    assert np.array_equal(deployed.predict(IMAGES[0])[0], got[0])
    pixels = channels_first(IMAGES)
    with torch.no_grad():
        scores = model.policy.lbdn(pixels.float() / 255.0)
    for given in (pixels, pixels.float()):
        assert torch.allclose(deployed.scores(given), scores, rtol=0.0, atol=1e-5 * float(scores.abs().max()))
    several = deployed(pixels.reshape(3, 20, 1, 12, 12))
    assert np.array_equal(several.flatten(0, 1).numpy().reshape(got.shape), got)
    for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert np.array_equal(twin.predict(IMAGES)[0], got)
        assert twin.bound() == deployed.bound()


@pytest.mark.parametrize("outer", ["pointwise", "kernel"])
@pytest.mark.parametrize("case", ["box", "DQN"])
def test_the_certificate_is_of_the_weights_in_the_module(case: str, outer: str) -> None:
    model = model_of(case, outer=outer)
    model.learn(32 if case == "DQN" else 256)
    deployed = deploy(model)
    proved = deployed.certificate()
    assert proved == certify_cnn(model.policy.lbdn)
    assert 0.0 < proved.value <= 200.0
    assert math.prod(part for _, part in proved.parts) == pytest.approx(proved.value, rel=16 * EPS64)
    bound = deployed.bound()
    assert bound.plain == proved.value / 255.0 and bound.plain <= policy_bound(model).plain
    assert bound.network_sha256 == deployed.action_map().network_sha256
    if case == "DQN":
        policy_bound(model).check(bound)  # the same weights, and no smaller claim
    assert bound.output == policy_bound(model).output and bound.stages[0].factor == 1.0 / 255.0
    # Weights that were changed in the module are certified as they are, or not at all.
    with torch.no_grad():
        next(deployed.network.parameters()).mul_(1.5)
    try:
        changed = deployed.certificate().value
    except CertificateError:
        changed = math.inf
    assert changed > 200.0
    with pytest.raises(InvalidArgumentError, match="search"):
        deployed.certificate(search=True)


def test_bad_images_are_refused_by_the_module(tmp_path: Path) -> None:
    deployed = deploy(model_of("discrete"))
    with pytest.raises(ShapeError, match="channels last"):
        deployed.predict(np.zeros((2, 12, 11, 1), dtype=np.uint8))
    with pytest.raises(InvalidArgumentError, match="deterministic"):
        deployed.predict(IMAGES, deterministic=False)
    with pytest.raises(UnsupportedSpaceError, match="to_onnx"):
        save_deployed(deployed, tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    exported = torch.export.export(deployed, (channels_first(IMAGES[:2]),)).module()
    assert torch.equal(exported(channels_first(IMAGES[:2])), deployed(channels_first(IMAGES[:2])))


@pytest.mark.parametrize("case", CASES)
def test_the_onnx_model_is_the_module(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    deployed = deploy(model_of(case))
    deployed.to_onnx(tmp_path / "policy.onnx")
    session = runtime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    pixels = channels_first(IMAGES)
    found = session.run(None, {"observation": pixels.numpy()})
    expected, scores = deployed(pixels).numpy(), deployed.scores(pixels)
    within = 32 * EPS32 * float(scores.abs().max())
    if case == "box":
        np.testing.assert_allclose(found[0], expected, rtol=0.0, atol=within)
    else:
        assert np.array_equal(found[0], expected)
        np.testing.assert_allclose(found[1], scores, rtol=0.0, atol=within)


def test_the_code_of_the_page_on_policies_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "policies.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    (code,) = (block for block in blocks if "DotImageEnv" in block)
    exec(compile(code, str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert "4 stacked frames" in printed and "uint8 divided by 255" in printed
    assert float(printed.split()[-1]) <= 10.0 / 255.0


def test_fine_tuning_lowers_the_bound_and_keeps_the_best_by_a_measure() -> None:
    model = make()
    lowered = fine_tune(model, 512, final_lipschitz=5.0, measure=lambda m: -m.policy.lipschitz)
    assert lowered.kept.lipschitz == model.policy.lipschitz == pytest.approx(5.0)
    model = make()
    before = model.predict(FRAMES, deterministic=True)[0]
    kept = fine_tune(model, 512, final_lipschitz=5.0, measure=lambda m: m.policy.lipschitz)
    assert kept.kept == kept.trials[0] and model.policy.lipschitz == 20.0
    assert (model.predict(FRAMES, deterministic=True)[0] == before).all()


class Steep(nn.Module):
    """A gain that nobody announced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 50.0 * x


def test_parts_that_were_replaced_have_no_bound() -> None:
    for change in ("head", "extractor", "trunk"):
        policy = make().policy
        if change == "head":
            policy.action_net = nn.Sequential(*policy.action_net, nn.Linear(2, 2))
        elif change == "extractor":
            policy.pi_features_extractor = Steep()
        else:
            policy.mlp_extractor.policy_net = Steep()
        for call in (policy.bound, policy.action_map, lambda p=policy: p.decision_radius(FRAMES)):
            with pytest.raises(InvalidArgumentError, match="policy: expected"):
                call()
    policy = make(LBDNCnnDQNPolicy, DQN).policy
    policy.q_net.normalize_images = False
    with pytest.raises(InvalidArgumentError, match="normalize_images: expected True, got False"):
        policy.bound()


def test_a_deployed_module_with_other_layers_is_not_certified() -> None:
    model = make()
    for change in ("append", "replace", "stride"):
        deployed = deploy(model)
        network: Any = deployed.network
        if change == "append":
            network.append(Steep())
        elif change == "replace":
            network[next(k for k, m in enumerate(network) if isinstance(m, nn.ReLU))] = Steep()
        else:
            next(m for m in network if isinstance(m, nn.Conv2d)).stride = (1, 1)
        for call in (deployed.certificate, deployed.bound, deployed.action_map):
            with pytest.raises(InvalidArgumentError, match="network: expected the layers that were deployed"):
                call()


def test_images_that_are_not_divided_by_255() -> None:
    model = make(normalize_images=False, lipschitz=3.0)
    bound = policy_bound(model)
    assert bound.plain == 3.0 and not any("255" in stage.name + stage.note for stage in bound.stages)
    raw = torch.as_tensor(FRAMES.transpose(0, 3, 1, 2)).double()
    ours = action_map(model)(raw)
    with torch.no_grad():
        network = model.policy.lbdn.explicit().to(dtype=torch.float64)
    torch.testing.assert_close(ours, network(raw), rtol=0, atol=0)
    deployed = deploy(model)
    torch.testing.assert_close(deployed.scores(raw.float()).double(), ours, rtol=1e-4, atol=1e-4)
    assert deployed.bound().plain <= 3.0


def test_a_radius_is_zero_where_predict_decides_otherwise() -> None:
    policy = make(lipschitz=1.0).policy
    with torch.no_grad():
        policy.lbdn.layers[-1].bias.fill_(1e6)  # float32 scores tie, or nearly
    radius = policy.decision_radius(IMAGES.transpose(0, 3, 1, 2))
    taken = policy.predict(IMAGES.transpose(0, 3, 1, 2), deterministic=True)[0]
    greedy = policy.action_map()(torch.as_tensor(IMAGES.transpose(0, 3, 1, 2)).double()).argmax(1).numpy()
    assert (taken != greedy).any() and (radius[taken != greedy] == 0.0).all() and (radius >= 0.0).all()


def test_frames_are_stacked_along_the_channels() -> None:
    def env(order: str | None) -> VecFrameStack:
        return VecFrameStack(DummyVecEnv([DotImageEnv]), 12, channels_order=order)

    model = make(env=env(None))
    assert policy_bound(model).per_frame == pytest.approx(20.0 / 255.0 * math.sqrt(12.0))
    with pytest.raises(InvalidArgumentError, match="frames stacked along the channels"):
        model.policy.bound(env("first"))
