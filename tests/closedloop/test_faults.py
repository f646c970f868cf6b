"""Each fault against its definition: moments, rates, independence, content of delays, and one seed one trajectory."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

from robustnn.closedloop import GaussianNoise, evaluate, rollout
from robustnn.closedloop.faults import (
    FAULTS,
    Bias,
    Channel,
    ColouredNoise,
    Drift,
    Dropout,
    Fault,
    FaultSet,
    FaultyEnv,
    Gain,
    Jitter,
    Outliers,
    Quantisation,
    SignalDelay,
    Stuck,
    WhiteNoise,
    fault_from_config,
)
from robustnn.envs import CartPole, Pendulum
from robustnn.errors import InvalidArgumentError, RobustNNError, ShapeError, UnsupportedSpaceError

ALL: dict[str, Fault] = {
    "white": WhiteNoise((0.1, 0.2, 0.3)),
    "coloured": ColouredNoise(0.5, correlation=5.0),
    "bias": Bias((0.1, -0.2, 0.3)),
    "random bias": Bias(0.4, random=True),
    "ramp": Drift(0.01),
    "walk": Drift(0.02, kind="walk"),
    "hold": Dropout(0.3),
    "zero": Dropout(0.3, mode="zero"),
    "stuck": Stuck(0.05),
    "quantisation": Quantisation(0.25),
    "outliers": Outliers(0.1, 2.0),
    "delay": SignalDelay(3),
    "delay from zero": SignalDelay(3, fill="zero"),
    "jitter": Jitter(4),
    "gain": Gain(0.5, 0.9),
}
EPS = np.finfo(np.float64).eps
# Two-sided probability of a false alarm of one statistical test; all seeds are fixed, so none is random any more.
ALARM = 1e-4


def through(fault: Fault, signal: np.ndarray, seeds: Any = None, **settings: Any) -> np.ndarray:
    """Pass signals (T, E, n) through a fault."""
    seeds = tuple(range(signal.shape[1])) if seeds is None else tuple(seeds)
    process = fault.on(Channel(signal.shape[-1], (signal.shape[1],), seeds, **settings))
    return torch.stack([process(torch.as_tensor(row)) for row in signal]).numpy()


def ramp(times: int = 50, episodes: int = 400, n: int = 3) -> np.ndarray:
    """A signal whose values tell time, episode and component."""
    t, e, k = np.meshgrid(np.arange(times), np.arange(episodes), np.arange(n), indexing="ij")
    return 1.0 + t + 0.001 * e + 0.0001 * k


def normal_quantile() -> float:
    return float(stats.norm.ppf(1 - ALARM / 2))


def test_every_fault_is_in_the_registry_and_in_this_table() -> None:
    assert {fault.name for fault in ALL.values()} == set(FAULTS)
    assert all(FAULTS[name].name == name for name in FAULTS)


def test_white_noise_is_normal_of_its_size_and_independent() -> None:
    std = np.array([0.1, 0.2, 0.3])
    noise = (through(WhiteNoise(tuple(std)), ramp()) - ramp()) / std
    for k in range(3):
        assert stats.kstest(noise[..., k].ravel(), "norm").pvalue > ALARM
    n = noise[..., 0].size
    assert (np.abs(noise.reshape(-1, 3).mean(0)) < normal_quantile() / math.sqrt(n)).all()
    # Independence of components, of neighbouring times, and of neighbouring episodes.
    limit = normal_quantile() / math.sqrt(n - 400)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < limit
    assert abs(np.mean(noise[1:] * noise[:-1])) < limit
    assert abs(np.mean(noise[:, 1:] * noise[:, :-1])) < limit


def test_coloured_noise_is_stationary_with_its_correlation() -> None:
    tau, std = 5.0, 0.5
    noise = (through(ColouredNoise(std, correlation=tau), ramp(episodes=2000)) - ramp(episodes=2000)) / std
    for t in (0, 1, 10, 49):  # the same distribution at all times, the first included
        assert stats.kstest(noise[t].ravel(), "norm").pvalue > ALARM
    for lag in (1, 3, 8, 20):
        found = np.mean(noise[lag:] * noise[:-lag])
        # Variance of the estimate over 6000 independent series: bounded by that of one pair per series.
        assert abs(found - math.exp(-lag / tau)) < normal_quantile() * math.sqrt(2.0 / 6000)
    assert abs(np.mean(noise[:, :, 0] * noise[:, :, 1])) < normal_quantile() * math.sqrt(12.0 / (50 * 2000))


def test_bias_is_constant_and_uniform_where_random() -> None:
    fixed = through(Bias((0.1, -0.2, 0.3)), ramp()) - ramp()
    np.testing.assert_allclose(fixed, np.broadcast_to([0.1, -0.2, 0.3], fixed.shape), atol=1e-13)
    offset = through(Bias(0.4, random=True), ramp()) - ramp()
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:1], offset.shape), atol=1e-13)
    assert stats.kstest(offset[0].ravel(), stats.uniform(-0.4, 0.8).cdf).pvalue > ALARM
    assert abs(np.corrcoef(offset[0].T)[0, 1]) < normal_quantile() / math.sqrt(400)


def test_drift_ramps_and_walks() -> None:
    slope = np.diff(through(Drift(0.01), ramp()) - ramp(), axis=0)
    np.testing.assert_allclose(slope, np.broadcast_to(slope[:1], slope.shape), atol=1e-12)
    assert stats.kstest(slope[0].ravel(), stats.uniform(-0.01, 0.02).cdf).pvalue > ALARM
    np.testing.assert_array_equal(through(Drift(0.01), ramp())[0], ramp()[0])  # starts at nothing
    offset = through(Drift(0.02, kind="walk"), ramp()) - ramp()
    steps = np.diff(offset, axis=0, prepend=0.0) / 0.02
    assert stats.kstest(steps.ravel(), "norm").pvalue > ALARM
    assert abs(np.mean(steps[1:] * steps[:-1])) < normal_quantile() / math.sqrt(steps[1:].size)


@pytest.mark.parametrize("mode", ["hold", "zero"])
def test_dropout_loses_its_share_and_shows_the_last_value_or_zero(mode: str) -> None:
    signal = ramp()
    out = through(Dropout(0.3, mode=mode), signal)
    lost = out != signal
    times = slice(1, None) if mode == "hold" else slice(None)
    count, total = int(lost[times].sum()), lost[times].size
    assert stats.binomtest(count, total, 0.3).pvalue > ALARM
    if mode == "zero":
        assert (out[lost] == 0).all()
    else:
        assert not lost[0].any()
        for t in range(1, 50):
            np.testing.assert_array_equal(out[t], np.where(lost[t], out[t - 1], signal[t]))
    # Components and times independently.
    both = int((lost[times][..., 0] & lost[times][..., 1]).sum())
    assert stats.binomtest(both, lost[times][..., 0].size, 0.09).pvalue > ALARM
    after = int((lost[1:][1:] & lost[1:][:-1]).sum())
    assert stats.binomtest(after, lost[1:][1:].size, 0.09).pvalue > ALARM / 10


def test_stuck_components_fail_geometrically_and_for_good() -> None:
    signal = ramp()
    out = through(Stuck(0.05), signal)
    stuck = out != signal
    assert (stuck[1:] >= stuck[:-1]).all()
    first = stuck.argmax(0)  # the first time that a stale value is shown; 0 where none
    for e in range(0, 400, 37):
        for k in range(3):
            if first[e, k]:
                assert (out[first[e, k] :, e, k] == signal[first[e, k] - 1, e, k]).all()
    # A component that fails at time t shows the stale value from t + 1 on: P(working at T - 1) = 0.95^(T - 1).
    survivors = int((~stuck[-1]).sum())
    assert stats.binomtest(survivors, stuck[-1].size, 0.95**49).pvalue > ALARM
    early = int((first == 1).sum())
    assert stats.binomtest(early, first.size, 0.05).pvalue > ALARM


def test_quantisation_rounds_to_the_nearest_multiple() -> None:
    signal = np.random.default_rng(0).normal(size=(20, 10, 3))
    out = through(Quantisation((0.25, 0.1, 1.0)), signal)
    step = np.array([0.25, 0.1, 1.0])
    assert (np.abs(out - signal) <= 0.5 * step + 1e-15).all()
    np.testing.assert_allclose(out / step, np.round(out / step), atol=1e-12)
    assert len(np.unique(np.round(out[..., 2]))) > 2


def test_outliers_have_their_rate_size_and_both_signs() -> None:
    spikes = through(Outliers(0.1, 2.0), ramp()) - ramp()
    hit = np.abs(spikes) > 1e-9
    np.testing.assert_allclose(np.abs(spikes[hit]), 2.0, atol=1e-12)
    assert stats.binomtest(int(hit.sum()), hit.size, 0.1).pvalue > ALARM
    assert stats.binomtest(int((spikes[hit] > 0).sum()), int(hit.sum()), 0.5).pvalue > ALARM
    assert stats.binomtest(int((hit[..., 0] & hit[..., 1]).sum()), hit[..., 0].size, 0.01).pvalue > ALARM


def test_delay_shows_what_was_there() -> None:
    signal = ramp()
    np.testing.assert_array_equal(through(SignalDelay(0), signal), signal)
    for fill, start in (("first", signal[0]), ("zero", np.zeros_like(signal[0]))):
        out = through(SignalDelay(3, fill=fill), signal)
        np.testing.assert_array_equal(out[3:], signal[:-3])
        for t in range(3):
            np.testing.assert_array_equal(out[t], start)


def test_jitter_shows_one_of_the_last_values_of_the_whole_message() -> None:
    signal = ramp(times=60)
    out = through(Jitter(4), signal)
    late = np.round(signal - out).astype(int)  # the ramp rises by one per time
    late_exact = signal - late
    np.testing.assert_allclose(out, late_exact, atol=1e-12)
    assert (late[..., :1] == late).all()  # all components of a message together
    steady = late[4:, :, 0].ravel()
    assert set(steady) == {0, 1, 2, 3, 4}
    assert stats.chisquare(np.bincount(steady)).pvalue > ALARM
    for t in range(4):
        assert late[t].max() <= t  # before, the first value stands for what did not exist
    np.testing.assert_array_equal(through(Jitter(0), signal), signal)


def test_gain_is_constant_over_an_episode_and_uniform_over_them() -> None:
    factor = through(Gain(0.5, 0.9), ramp()) / ramp()
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:1], factor.shape), atol=1e-12)
    assert stats.kstest(factor[0].ravel(), stats.uniform(0.5, 0.4).cdf).pvalue > ALARM
    np.testing.assert_allclose(through(Gain(0.7), ramp()), 0.7 * ramp(), rtol=4 * EPS)


@pytest.mark.parametrize("name", ALL)
def test_one_seed_is_one_trajectory_whatever_the_batch(name: str) -> None:
    signal = ramp(episodes=7)
    whole = through(ALL[name], signal)
    for e in (0, 3, 6):
        alone = through(ALL[name], signal[:, e : e + 1], seeds=[e])
        np.testing.assert_array_equal(whole[:, e : e + 1], alone)
    np.testing.assert_array_equal(whole, through(ALL[name], signal))
    order = [4, 0, 6]
    np.testing.assert_array_equal(through(ALL[name], signal[:, order], seeds=order), whole[:, order])


@pytest.mark.parametrize("name", ALL)
def test_other_seeds_and_places_differ_where_there_is_chance(name: str) -> None:
    signal = ramp(episodes=7)
    whole = through(ALL[name], signal)
    chance = name not in ("bias", "quantisation", "delay", "delay from zero")
    assert (whole != through(ALL[name], signal, seeds=range(7, 14))).any() == chance
    assert (whole != through(ALL[name], signal, index=1)).any() == chance


@pytest.mark.parametrize("name", ALL)
def test_description_is_the_configuration(name: str) -> None:
    fault = ALL[name]
    config = json.loads(json.dumps(fault.describe()))
    assert fault_from_config(config) == fault
    several = FaultSet(observation=[fault], action=[Gain(0.8)], parameters={"mass": 1.1})
    assert FaultSet.from_config(json.loads(json.dumps(several.describe()))) == several


@pytest.mark.parametrize("name", ALL)
def test_every_fault_in_the_closed_loop(name: str) -> None:
    plant = Pendulum()
    policy = lambda y: (-2.0 * y[..., 1:2] - 0.5 * y[..., 2:3]).clamp(-1, 1)  # noqa: E731
    clean = evaluate(policy, plant, episodes=6, steps=40, dtype=torch.float64)
    faulty = evaluate(policy, plant, ALL[name], episodes=6, steps=40, dtype=torch.float64)
    assert (clean.returns != faulty.returns).any()
    again = evaluate(policy, plant, ALL[name], seeds=[4, 2], steps=40, dtype=torch.float64)
    np.testing.assert_array_equal(again.returns, faulty.returns[[4, 2]])
    on_action = evaluate(
        policy, plant, FaultSet(action=[_one_component(ALL[name])]), episodes=6, steps=40, dtype=torch.float64
    )
    assert (clean.returns != on_action.returns).any()


def _one_component(fault: Fault) -> Fault:
    config = {k: v[0] if isinstance(v, list) else v for k, v in fault.describe().items()}
    return fault_from_config(config)


def test_actions_and_parameters_reach_the_plant_and_attacks_know_the_nominal_one() -> None:
    plant = Pendulum()
    seen: list[torch.Tensor] = []

    def policy(y: torch.Tensor) -> torch.Tensor:
        seen.append(y)
        return 0.3 * torch.ones_like(y[..., :1])

    state = torch.zeros(2, 2, dtype=torch.float64)
    faults = FaultSet(
        observation=[Bias(0.25)], action=[SignalDelay(2, fill="zero"), Gain(0.5)], parameters={"mass": 2.0}
    )
    run = rollout(plant, policy, state, steps=5, perturbation=faults)
    np.testing.assert_allclose(run.actions[..., 0].numpy(), [[0, 0]] * 2 + [[0.15, 0.15]] * 3)
    np.testing.assert_allclose((run.perturbed - run.observations).numpy(), 0.25, atol=1e-15)
    heavy = Pendulum(mass=2.0)
    np.testing.assert_allclose(run.states[4], heavy.transition(run.states[3], run.actions[3]), atol=1e-15)
    np.testing.assert_allclose(
        run.rewards, heavy.reward(run.states[:-1], run.actions, run.states[1:]), atol=1e-15
    )
    stacked = rollout(plant, policy, state.expand(3, 2, 2), steps=5, perturbation=faults)
    np.testing.assert_array_equal(stacked.states[:, 1], run.states)


def test_several_faults_act_in_their_order_and_independently() -> None:
    state = torch.zeros(4, 2, dtype=torch.float64)
    policy = lambda y: 0.0 * y[..., :1]  # noqa: E731
    first = rollout(
        Pendulum(), policy, state, steps=6, perturbation=FaultSet(observation=[Bias(0.3), Gain(2.0)])
    )
    np.testing.assert_allclose(first.perturbed, 2.0 * (first.observations + 0.3), atol=1e-15)
    twice = rollout(
        Pendulum(), policy, state, steps=200,
        perturbation=FaultSet(observation=[WhiteNoise(1.0), WhiteNoise(1.0)]),
    )  # fmt: skip
    noise = (twice.perturbed - twice.observations).numpy()
    assert noise.std() == pytest.approx(math.sqrt(2.0), rel=0.05)  # not 2: the two are independent


def test_the_older_noise_keeps_its_numbers_beside_the_new() -> None:
    state = torch.zeros(2, 2, dtype=torch.float64)
    policy = lambda y: 0.0 * y[..., :1]  # noqa: E731
    a = rollout(Pendulum(), policy, state, steps=5, perturbation=GaussianNoise(1.0))
    b = rollout(Pendulum(), policy, state, steps=5, perturbation=WhiteNoise(1.0))
    assert (a.perturbed != b.perturbed).all()


@pytest.mark.parametrize("name", ALL)
def test_gymnasium_environments_with_any_fault(name: str) -> None:
    def episodes(seed: int) -> np.ndarray:
        env = FaultyEnv(gymnasium.make("Pendulum-v1"), FaultSet(observation=[ALL[name]], action=[Gain(0.9)]))
        rows = []
        for episode in range(2):
            observation, _ = env.reset(seed=seed if episode == 0 else None)
            rows.append(observation)
            for _ in range(10):
                observation, _, _, _, _ = env.step(np.array([0.5], dtype=np.float32))
                assert observation.dtype == np.float32
                rows.append(observation)
        return np.array(rows)

    first = episodes(0)
    np.testing.assert_array_equal(first, episodes(0))
    assert (first != episodes(1)).any()
    clean = gymnasium.make("Pendulum-v1")
    clean.reset(seed=0)
    plain = [clean.step(np.array([0.45], dtype=np.float32))[0] for _ in range(10)]
    assert (first[1:11] != np.array(plain)).any() or name in ("stuck", "hold", "outliers")


def test_wrapper_equals_the_vectorised_channel_and_changes_the_plant() -> None:
    fault = WhiteNoise((0.1, 0.1, 0.1, 0.1, 0.1))
    env = FaultyEnv(
        gymnasium.make("robustnn.envs:robustnn/CartPoleBalance-v0"),
        FaultSet(observation=[fault], parameters={"pole_mass": 2.0}),
    )
    assert env.unwrapped.plant == CartPole(pole_mass=0.2)
    observation, _ = env.reset(seed=3)
    episode = int(np.random.SeedSequence([3, 0]).generate_state(1, np.uint64)[0])
    process = fault.on(Channel(5, (1,), (episode,)))
    clean = torch.as_tensor(env.unwrapped.plant.observation(env.unwrapped.state)[None])
    np.testing.assert_allclose(observation, process(clean)[0].numpy(), atol=1e-6)


BAD: dict[str, Any] = {
    "negative noise": (lambda: WhiteNoise(-1.0), "std"),
    "nan noise": (lambda: WhiteNoise(math.nan), "std"),
    "no correlation": (lambda: ColouredNoise(1.0, 0.0), "correlation"),
    "infinite bias": (lambda: Bias(math.inf), "size"),
    "unknown drift": (lambda: Drift(1.0, kind="up"), "kind"),
    "probability above one": (lambda: Dropout(1.5), "probability"),
    "unknown mode": (lambda: Dropout(0.5, mode="keep"), "mode"),
    "stuck below zero": (lambda: Stuck(-0.1), "probability"),
    "no step": (lambda: Quantisation(0.0), "step"),
    "half a delay": (lambda: SignalDelay(1.5), "steps"),  # type: ignore[arg-type]
    "unknown fill": (lambda: SignalDelay(1, fill="last"), "fill"),
    "negative jitter": (lambda: Jitter(-1), "steps"),
    "empty interval": (lambda: Gain(1.0, 0.5), "high"),
    "unknown name": (lambda: fault_from_config({"name": "gremlin"}), "fault"),
    "no mapping": (lambda: fault_from_config("white"), "fault"),  # type: ignore[arg-type]
    "unknown parameter": (lambda: fault_from_config({"name": "white", "sigma": 1.0}), "sigma"),
    "missing parameter": (lambda: fault_from_config({"name": "white"}), "white"),
    "unknown key": (lambda: FaultSet.from_config({"sensors": []}), "faults"),
    "no fault": (lambda: FaultSet(observation=["white"]), "observation"),  # type: ignore[list-item]
    "unknown plant parameter": (lambda: FaultSet(parameters={"weight": 2.0}).plant(Pendulum()), "weight"),
    "impossible plant": (lambda: FaultSet(parameters={"mass": -1.0}).plant(Pendulum()), "mass"),
    "nan factor": (lambda: FaultSet(parameters={"mass": math.nan}), "mass"),
    "plant of a foreign environment": (
        lambda: FaultyEnv(gymnasium.make("Pendulum-v1"), FaultSet(parameters={"m": 2.0})), "parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_call(name: str) -> None:
    call, text = BAD[name]
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    message = str(caught.value)
    assert text in message and "got" in message and len(message) < 600
    assert isinstance(caught.value, RobustNNError)


def test_wrong_numbers_of_components_and_spaces() -> None:
    with pytest.raises(ShapeError, match=r"std: expected one number or 3"):
        WhiteNoise((0.1, 0.2)).on(Channel(3, (1,), (0,)))
    with pytest.raises(UnsupportedSpaceError, match="action_space: expected a Box"):
        FaultyEnv(gymnasium.make("CartPole-v1"), FaultSet(action=[Gain(0.5)]))
