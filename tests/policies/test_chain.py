"""The bound against the whole path from raw observation to action, through the wrappers, for every algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robustnn.bounds import lower_bound
from robustnn.policies import Bound, action_map, policy_bound
from tests.policies.chains import EPS64, Chain, random_chain, random_frames
from tests.policies.steep import centre, rounding, steep
from tests.policies.toy import ALGORITHMS, randomise

N_CONFIGURATIONS = 20
SIZES = (0.3, 1.0, 3.0, 30.0)


def jacobians(chain: Chain, points: torch.Tensor) -> np.ndarray:
    """Jacobians of the whole path at raw observations, float64, (n, n_act, n_obs)."""
    path = action_map(chain.model, chain.env)
    return torch.func.vmap(torch.func.jacrev(path))(points).numpy()


def check_ascent(chain: Chain, bound: Bound, starts: torch.Tensor) -> None:
    """Gradient ascent in the norms of the bound and in plain ones, and Jacobians where it ends."""
    path = action_map(chain.model, chain.env)
    scale = torch.tensor(bound.observation_scale, dtype=torch.float64)
    out = torch.tensor(bound.action_scale, dtype=torch.float64)
    weighted = lower_bound(path, starts, input_scale=scale, output_scale=out, iterations=25, lr=0.05)
    assert weighted.value <= bound.lipschitz * (1 + 64 * EPS64)
    ends = torch.cat([weighted.x.unsqueeze(0), starts])
    jacobian = jacobians(chain, ends)
    d_o, d_a = scale.numpy(), out.numpy()
    norms = np.linalg.norm(jacobian * d_o / d_a[:, None], 2, axis=(1, 2))
    assert norms.max() <= bound.lipschitz * (1 + 64 * EPS64)
    assert (np.abs(jacobian) <= bound.component_gain * (1 + 64 * EPS64)).all()
    continuous = ~np.asarray(bound.one_hot) if bound.one_hot else np.ones(len(d_o), bool)
    if not continuous.any():
        return
    free = jacobian[:, :, continuous]
    assert np.linalg.norm(free, 2, axis=(1, 2)).max() <= bound.plain * (1 + 64 * EPS64)
    signs = np.sign(np.random.default_rng(0).normal(size=(len(free), free.shape[-1])))
    for _ in range(5):
        change = np.einsum("nij,nj->ni", free, signs)
        assert np.linalg.norm(change, axis=-1).max() <= bound.plain_linf * (1 + 64 * EPS64)
        signs = np.where(np.einsum("nij,ni->nj", free, change) < 0, -1.0, 1.0)
    if bound.frames > 1:
        names = np.asarray(bound.names)
        staying = np.stack([jacobian[:, :, names == name].sum(-1) for name in bound.sensors], axis=-1)
        assert np.linalg.norm(staying, 2, axis=(1, 2)).max() <= bound.per_frame * (1 + 64 * EPS64)


def check_predict(chain: Chain, bound: Bound, sequence: list[list[Any]]) -> torch.Tensor:
    """Difference quotients of predict, fed through the wrappers; returns the flat raw observations."""
    raw, seen = chain.see(sequence)
    path = action_map(chain.model, chain.env)
    d_o, d_a = np.asarray(bound.observation_scale), np.asarray(bound.action_scale)
    got = chain.output(seen)
    exact = path(torch.as_tensor(raw)).numpy()
    features = raw if path.normalization is None else path.normalization(torch.as_tensor(raw)).numpy()
    error = rounding(chain, features, d_a)
    assert (np.linalg.norm((got - exact) / d_a, axis=-1) <= error).all()
    change = np.linalg.norm((got[::2] - got[1::2]) / d_a, axis=-1)
    allowed = bound.action_change(raw[::2] - raw[1::2])
    np.testing.assert_allclose(
        allowed, bound.lipschitz * np.linalg.norm((raw[::2] - raw[1::2]) / d_o, axis=-1), rtol=1e-12
    )
    assert (change <= allowed * (1 + 64 * EPS64) + error[::2] + error[1::2]).all()
    if not isinstance(chain.model.action_space, spaces.Box):
        chosen = chain.model.predict(seen, deterministic=True)[0]
        np.testing.assert_array_equal(path.decide(torch.as_tensor(raw)).numpy(), chosen)
    return torch.as_tensor(raw)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_random_chains(name: str) -> None:
    for seed in range(N_CONFIGURATIONS):
        chain = random_chain(name, seed)
        rng = np.random.default_rng(seed)
        randomise(chain.model.policy, SIZES[seed % len(SIZES)], seed)
        bound = policy_bound(chain.model, chain.env)
        raw = check_predict(chain, bound, random_frames(chain, rng))
        check_ascent(chain, bound, raw)


def worst_errors(bound: Bound) -> dict[str, tuple[np.ndarray, float]]:
    """Raw errors of unit size for which a plain bound is attained if the network is steep along them."""
    scale = np.asarray(bound.observation_scale)
    continuous = ~np.asarray(bound.one_hot) if bound.one_hot else np.ones(len(scale), bool)
    plain, every, frames = np.zeros(len(scale)), np.zeros(len(scale)), np.zeros(len(scale))
    plain[np.where(continuous, scale, np.inf).argmin()] = 1.0
    every[continuous] = 1.0
    seen: dict[str, list[int]] = {}
    for k, name in enumerate(bound.names):
        if continuous[k]:
            seen.setdefault(name, []).append(k)
    for f in range(bound.frames):
        in_frame = [ks[f] for ks in seen.values()]
        frames[min(in_frame, key=lambda k: scale[k])] = 1.0
    return {
        "plain": (plain, bound.plain), "plain_linf": (every, bound.plain_linf), "per_frame": (frames, bound.per_frame),
    }  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_bounds_are_attained(name: str) -> None:
    """Along their worst errors all three plain bounds are reached, by the path and by predict behind the wrappers."""
    attained = {"plain": 0, "plain_linf": 0, "per_frame": 0}
    for seed in range(N_CONFIGURATIONS):
        chain = random_chain(name, seed)
        bound = policy_bound(chain.model, chain.env)
        d_o, d_a = np.asarray(bound.observation_scale), np.asarray(bound.action_scale)
        if not can_move(chain.model.action_space, d_a).any():
            continue
        output = int(np.where(can_move(chain.model.action_space, d_a), d_a, 0.0).argmax())
        rest = d_a[output] / d_a.max()  # less than one if the largest component of the action is fixed
        point = centre(chain)
        for what, (error, value) in worst_errors(bound).items():
            weighted = np.linalg.norm(error / d_o)
            step = steep(chain, error / d_o / weighted, output)
            if step is None:
                break
            jacobian = jacobians(chain, torch.as_tensor(point).unsqueeze(0))[0]
            gain = np.linalg.norm(jacobian @ error)
            assert 0.999 * rest * value <= gain <= value * (1 + 64 * EPS64), (seed, what)
            if seed % 2:
                continue
            sequence = chain.frames_of(np.stack([point, point + step / weighted * error]))
            raw, seen = chain.see(sequence)
            error_size = float(np.abs(raw[1] - raw[0]).max())
            got = chain.output(seen)[:2]
            features = raw[:2]
            normalization = action_map(chain.model, chain.env).normalization
            if normalization is not None:
                features = normalization(torch.as_tensor(raw[:2])).numpy()
            slack = rounding(chain, features, np.ones_like(d_a)).sum()
            change = np.linalg.norm(got[1] - got[0])
            assert change <= value * error_size * (1 + 64 * EPS64) + slack, (seed, what)
            if np.allclose(
                raw[1] - raw[0], step / weighted * error, rtol=1e-2, atol=0.0
            ):  # integers are rounded
                assert change >= 0.85 * rest * value * error_size - slack, (seed, what)
                attained[what] += slack < 0.1 * value * error_size
    assert min(attained.values()) >= 3, attained


def can_move(space: spaces.Space, like: np.ndarray) -> np.ndarray:
    """Which outputs are not fixed by a lower limit that equals the upper one."""
    return (space.low < space.high).reshape(-1) if isinstance(space, spaces.Box) else np.ones(len(like), bool)
