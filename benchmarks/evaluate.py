"""Attacked steps per second of the batched evaluation against a Python loop over single environments.

Both run episodes of the pendulum swing-up under the same attack: at every step, projected gradient ascent of 20
iterations on the change of the action, from a random point of the surface, the best iterate kept. The loop is what
one writes around `gymnasium.make` and a torch policy: one environment, one observation at a time, a plain
`nn.Sequential`, nothing recorded. It is timed over fewer episodes; figures are steps of one episode per second. Both
start from the same states and draw the same random points, and the returns of the first episode are compared.

The two run in turns within one run, on one thread unless `--threads` says otherwise; a figure is the median.

Run: python -m benchmarks.evaluate [--smoke]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from benchmarks.common import machine
from robustnn.closedloop import MaximalActionDifference, evaluate, start_states
from robustnn.closedloop.perturb import ATTACK_STREAM, EpisodeRandom
from robustnn.envs import Pendulum
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap

ENV_ID = "robustnn.envs:robustnn/PendulumSwingUp-v0"
ATTACK = MaximalActionDifference(0.11, iterations=20, step_fraction=0.25, restarts=1)


def network(width: int = 32) -> ExplicitMLP:
    """Return a random policy network, 3 - width - width - 1 with tanh, float32."""
    generator = torch.Generator().manual_seed(0)
    sizes = (3, width, width, 1)
    weights = tuple(
        torch.randn(n_out, n_in, generator=generator) / n_in**0.5
        for n_in, n_out in zip(sizes, sizes[1:], strict=False)
    )
    return ExplicitMLP(weights, tuple(torch.zeros(n) for n in sizes[1:]), "tanh")


def attack_one(policy: nn.Module, observation: Tensor, start: Tensor) -> Tensor:
    """Return what the policy is shown instead of one observation (3,)."""
    with torch.no_grad():
        nominal = policy(observation)
    delta, best, shown = start, -float("inf"), observation
    for move in range(ATTACK.iterations + 1):
        delta = delta.detach().requires_grad_(True)
        change = (policy(observation + delta) - nominal).square().sum()
        if float(change.detach()) > best:
            best, shown = float(change.detach()), observation + delta.detach()
        if move < ATTACK.iterations:
            (gradient,) = torch.autograd.grad(change, delta)
            with torch.no_grad():
                step = ATTACK.step_fraction * ATTACK.eps * gradient / gradient.norm().clamp_min(1e-19)
                delta = delta + step
                delta = delta * (ATTACK.eps / delta.norm().clamp_min(1e-19)).clamp(max=1.0)
    return shown


def loop_over_environments(policy: nn.Module, seeds: range) -> list[float]:
    """Return the returns of attacked episodes, one environment and one observation at a time."""
    env = gymnasium.make(ENV_ID)
    returns = []
    for seed in seeds:
        state = start_states(Pendulum(), [seed], dtype=torch.float64)[0].numpy()
        observation, _ = env.reset(seed=seed, options={"state": state})
        random = EpisodeRandom([seed], ATTACK_STREAM, torch.float32)
        total, ended = 0.0, False
        while not ended:
            start = ATTACK.ball.surface_sample(random.normal(1, 3)[0, 0])
            shown = attack_one(policy, torch.from_numpy(observation), start)
            with torch.no_grad():
                action = policy(shown).clamp(-1.0, 1.0).numpy()
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def measure(episodes: int, loop_episodes: int, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Time both in turns and return the figures.

    Args:
        episodes: Of the batched evaluation.
        loop_episodes: Of the loop, per turn.
        repeats: Turns.
        device: Of the batched evaluation.

    Returns:
        Steps per second of every turn, their medians, the ratio of the medians, and how far the returns of the first
        episode are apart.
    """
    explicit, plant = network(), Pendulum()
    policy = ActionMap(explicit, low=-torch.ones(1), high=torch.ones(1)).to(device)
    module = explicit.to_sequential()
    rates: dict[str, list[float]] = {"batched": [], "loop": []}
    evaluate(policy, plant, ATTACK, episodes=episodes, steps=2)  # libraries load what they need
    difference = 0.0
    for turn in range(repeats):
        start = time.perf_counter()
        looped = loop_over_environments(module, range(turn * loop_episodes, (turn + 1) * loop_episodes))
        rates["loop"].append(loop_episodes * plant.horizon / (time.perf_counter() - start))
        start = time.perf_counter()
        batched = evaluate(policy, plant, ATTACK, episodes=episodes)
        rates["batched"].append(episodes * plant.horizon / (time.perf_counter() - start))
        if turn == 0:
            difference = abs(looped[0] - float(batched.returns[0])) / abs(looped[0])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "attack": ATTACK.describe(),
        "device": device,
        "steps": plant.horizon,
        "episodes": {"batched": episodes, "loop": loop_episodes},
        "turns": repeats,
        "rates_per_s": rates,
        "median_per_s": medians,
        "relative_difference_of_returns": difference,
        "ratio": medians["batched"] / medians["loop"],
    }


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1024, help="episodes of the batched evaluation")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="torch device of the batched evaluation")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.smoke:
        figures = measure(episodes=32, loop_episodes=1, repeats=1, device=options.device)
    else:
        figures = measure(options.episodes, loop_episodes=1, repeats=options.repeats, device=options.device)
    print(
        f"{figures['episodes']['batched']} episodes of {figures['steps']} steps, attack of {ATTACK.iterations} "
        f"iterations per step, float32, {options.device}, torch threads: {options.threads}"
    )
    print(f"{'evaluation':<26}{'steps/s':>12}{'ratio':>10}")
    for name, label in (("loop", "single environments"), ("batched", "robustnn, batched")):
        rate = figures["median_per_s"][name]
        print(f"{label:<26}{rate:>12,.0f}{rate / figures['median_per_s']['loop']:>10.1f}")
    print(json.dumps({"benchmark": "evaluate", **figures, "machine": machine()}))


if __name__ == "__main__":
    main()
