"""Step rate of the vectorised pendulum against SB3's DummyVecEnv over the same plant.

Both step the same number of copies with the same random actions, in turns in one run; a figure is the
median over the turns. DummyVecEnv is given the bare environments (no Monitor, no gymnasium wrappers) and is
timed over fewer steps, without an episode's end among them, both of which favour it; TorchVecEnv is timed
over whole episodes, resets and episode statistics included.

Torch runs on one thread unless `--threads` says otherwise, as DummyVecEnv uses one. With more threads than
idle cores, torch's sin, cos and ceil wait for each other at every call, and a step takes milliseconds.

Run: python -m benchmarks.env_throughput [--smoke]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.common import machine
from robustnn.closedloop.vec_env import TorchVecEnv
from robustnn.envs import Pendulum, PendulumSwingUpEnv


def step_rate(env: VecEnv, actions: np.ndarray, steps: int) -> float:
    """Return the steps of single copies per second over `steps` calls of `env.step`."""
    start = time.perf_counter()
    for _ in range(steps):
        env.step(actions)
    return steps * env.num_envs / (time.perf_counter() - start)


def measure(
    num_envs: int, torch_steps: int, dummy_steps: int, repeats: int, device: str = "cpu"
) -> dict[str, Any]:
    """Time both environments in turns and return the figures.

    Args:
        num_envs: Copies in each environment.
        torch_steps: Calls of `step` per turn of TorchVecEnv.
        dummy_steps: Calls of `step` per turn of DummyVecEnv.
        repeats: Turns.
        device: Device of TorchVecEnv.

    Returns:
        Step rates (steps of one copy per second) of every turn, their medians, and the ratio of the medians.
    """
    fast = TorchVecEnv(Pendulum(), num_envs, device=device)
    slow = DummyVecEnv([PendulumSwingUpEnv for _ in range(num_envs)])
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (num_envs, 1)).astype(np.float32)
    rates: dict[str, list[float]] = {"torch": [], "dummy": []}
    for env in (fast, slow):
        env.seed(0)
        env.reset()
        env.step(actions)
    for _ in range(repeats):
        rates["dummy"].append(step_rate(slow, actions, dummy_steps))
        rates["torch"].append(step_rate(fast, actions, torch_steps))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "num_envs": num_envs,
        "device": device,
        "steps_per_turn": {"torch": torch_steps, "dummy": dummy_steps},
        "turns": repeats,
        "rates_per_s": rates,
        "median_per_s": medians,
        "ratio": medians["torch"] / medians["dummy"],
    }


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=4096, help="copies of the pendulum")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each environment")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="torch device of TorchVecEnv")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.smoke:
        figures = measure(num_envs=64, torch_steps=200, dummy_steps=4, repeats=3, device=options.device)
    else:
        figures = measure(
            options.num_envs, torch_steps=400, dummy_steps=4, repeats=options.repeats, device=options.device
        )
    print(f"{figures['num_envs']} pendulums, float32, {options.device}, torch threads: {options.threads}")
    print(f"{'environment':<14}{'steps/s':>14}{'ratio':>10}")
    for name, label in (("dummy", "DummyVecEnv"), ("torch", "TorchVecEnv")):
        rate = figures["median_per_s"][name]
        print(f"{label:<14}{rate:>14,.0f}{rate / figures['median_per_s']['dummy']:>10.1f}")
    print(json.dumps({"benchmark": "env_throughput", **figures, "machine": machine()}))


if __name__ == "__main__":
    main()
