"""Wall time of PPO with the bounded policy against SB3's MlpPolicy of the same widths.

Every variant is one PPO run with SB3's default hyperparameters on one environment. The runs advance in
turns, one rollout and its update (2,048 steps) at a time and in rotating order, so that a busy machine slows
all of them alike. A ratio is the median over the turns of (time of the variant) / (time of MlpPolicy), of wall
time and, for a machine that does other work as well, of the process's CPU time.

Three variants: MlpPolicy, LBDNActorCriticPolicy with `FreezeWeights`, and, for a few turns only,
LBDNActorCriticPolicy without it, which converts its parameters to weights at every environment step.

Run: python -m benchmarks.ppo_throughput [--smoke] [--steps 50000] [--env ID] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.common import machine
from robustnn.policies import FreezeWeights, LBDNActorCriticPolicy

ENV_ID = "robustnn.envs:robustnn/PendulumSwingUp-v0"
LABELS = {
    "mlp": "MlpPolicy",
    "lbdn_frozen": "LBDN, FreezeWeights",
    "lbdn_live": "LBDN, no FreezeWeights",
}


class Run:
    """One PPO run that advances by one rollout and update at a time.

    Args:
        variant: Key of `LABELS`.
        env_id: Id of the environment.
        widths: Hidden widths of both networks.
        lipschitz: Bound of the LBDN policies.
        settings: Further arguments of PPO.
    """

    def __init__(
        self, variant: str, env_id: str, widths: Sequence[int], lipschitz: float, settings: dict[str, Any]
    ) -> None:
        """Build the model."""
        net_arch = {"pi": list(widths), "vf": list(widths)}
        if variant == "mlp":
            self.model = PPO("MlpPolicy", env_id, policy_kwargs={"net_arch": net_arch}, **settings)
        else:
            kwargs = {"net_arch": net_arch, "lipschitz": lipschitz}
            self.model = PPO(LBDNActorCriticPolicy, env_id, policy_kwargs=kwargs, **settings)
        self.callback: BaseCallback | None = FreezeWeights() if variant == "lbdn_frozen" else None
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def advance(self) -> None:
        """Collect one rollout and update on it; keep wall time and CPU time in seconds."""
        start, cpu_start = time.perf_counter(), time.process_time()
        self.model.learn(self.model.n_steps, callback=self.callback, reset_num_timesteps=False)
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)


def measure(
    env_id: str,
    steps: int,
    live_turns: int,
    widths: Sequence[int],
    lipschitz: float,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Run the variants in turns.

    Args:
        env_id: Id of the environment.
        steps: Environment steps of each run, rounded up to whole rollouts.
        live_turns: Turns of the variant without `FreezeWeights`.
        widths: Hidden widths of both networks.
        lipschitz: Bound of the LBDN policies.
        settings: Further arguments of PPO.

    Returns:
        Steps, seconds per turn, and the ratios to MlpPolicy: medians of the turns in wall time and in CPU
        time, and the ratio of the total wall times.
    """
    runs = {name: Run(name, env_id, widths, lipschitz, settings) for name in LABELS}
    per_turn = runs["mlp"].model.n_steps
    turns = -(-steps // per_turn)
    names = list(runs)
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if name != "lbdn_live" or turn < live_turns:
                runs[name].advance()
    seconds = {name: run.seconds for name, run in runs.items()}
    cpu_seconds = {name: run.cpu_seconds for name, run in runs.items()}
    return {
        "env": env_id,
        "widths": list(widths),
        "steps": turns * per_turn,
        "turns": {name: len(values) for name, values in seconds.items()},
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median_seconds_per_turn": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": median_ratios(seconds),
        "ratio_of_totals": {
            name: sum(values) / sum(seconds["mlp"][: len(values)]) for name, values in seconds.items()
        },
        "ratio_of_cpu_time": median_ratios(cpu_seconds),
    }


def median_ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median over the turns of each variant's time divided by that of MlpPolicy."""
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds["mlp"], strict=False))
        for name, values in seconds.items()
    }


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default=ENV_ID, help="environment id")
    parser.add_argument("--steps", type=int, default=50_000, help="environment steps of each run")
    parser.add_argument(
        "--widths", type=int, nargs="*", default=[64, 64], help="hidden widths of both networks"
    )
    parser.add_argument("--lipschitz", type=float, default=10.0, help="bound of the LBDN policies")
    parser.add_argument("--live-turns", type=int, default=3, help="turns without FreezeWeights")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings: dict[str, Any] = {"device": "cpu", "seed": 0}
    if options.smoke:
        settings["n_steps"] = 128
        options.steps, options.live_turns = 384, 1
    figures = measure(
        options.env, options.steps, options.live_turns, options.widths, options.lipschitz, settings
    )
    print(f"PPO, {figures['steps']:,} steps of {figures['env']}, widths {figures['widths']}, one environment")
    print(f"{'policy':<24}{'turns':>7}{'s per turn':>12}{'ratio':>9}{'of totals':>11}{'of CPU time':>13}")
    for name, label in LABELS.items():
        print(
            f"{label:<24}{figures['turns'][name]:>7}{figures['median_seconds_per_turn'][name]:>12.3f}"
            f"{figures['ratio'][name]:>9.3f}{figures['ratio_of_totals'][name]:>11.3f}"
            f"{figures['ratio_of_cpu_time'][name]:>13.3f}"
        )
    print(json.dumps({"benchmark": "ppo_throughput", **figures, "machine": machine()}))


if __name__ == "__main__":
    main()
