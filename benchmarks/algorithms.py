"""Wall time of every algorithm with its bounded policy against SB3's MlpPolicy.

Each row is one algorithm with SB3's default hyperparameters on one environment, at two network widths. Three runs
advance in turns, some hundred steps at a time and in rotating order, so that a busy machine slows all of them alike:

* `mlp`: MlpPolicy.
* `same_widths`: the LBDN policy of the same hidden widths, about twice as many parameters, with `FreezeWeights`.
* `same_size`: the LBDN policy whose actor (or Q-network) has as many parameters as that of MlpPolicy, with
  `FreezeWeights`; critics stay as they are.

A ratio is the median over the turns of (time of the variant) / (time of MlpPolicy), of wall time and, for a machine
that does other work as well, of the process's CPU time. The first turn, in which off-policy algorithms only collect
observations, is left out.

Run: python -m benchmarks.algorithms [--smoke] [--only SAC TD3] [--turns 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.common import machine
from robustnn.policies import (
    FreezeWeights,
    LBDNActorCriticPolicy,
    LBDNDQNPolicy,
    LBDNSACPolicy,
    LBDNTD3Policy,
)
from robustnn.policies.capacity import matching_widths, n_parameters

VARIANTS = ("mlp", "same_widths", "same_size")
WIDTHS = ((64, 64), (256, 256))


class Case(NamedTuple):
    """One algorithm.

    Attributes:
        algorithm: SB3's class.
        policy: The bounded policy class.
        env_id: The environment.
        critic: Key of the critic's widths in net_arch, or "" if there is none.
        steps: Environment steps of a turn.
        target: Largest ratio of wall times aimed at, at the same size.
        lipschitz: Bound of the policy.
    """

    algorithm: type[BaseAlgorithm]
    policy: Any
    env_id: str
    critic: str
    steps: int
    target: float
    lipschitz: float = 10.0


CASES = {
    "PPO": Case(PPO, LBDNActorCriticPolicy, "Pendulum-v1", "vf", 2048, 1.2),
    "A2C": Case(A2C, LBDNActorCriticPolicy, "Pendulum-v1", "vf", 1000, 1.2),
    "DQN": Case(DQN, LBDNDQNPolicy, "CartPole-v1", "", 1000, 1.5, 50.0),
    "SAC": Case(SAC, LBDNSACPolicy, "Pendulum-v1", "qf", 200, 1.3),
    "TD3": Case(TD3, LBDNTD3Policy, "Pendulum-v1", "qf", 200, 1.3),
}


class Run:
    """One run that advances by one turn at a time.

    Args:
        case: The algorithm.
        variant: One of `VARIANTS`.
        widths: Hidden widths of MlpPolicy.
        steps: Environment steps of a turn.
    """

    def __init__(self, case: Case, variant: str, widths: Sequence[int], steps: int) -> None:
        """Build the model."""
        settings: dict[str, Any] = {"device": "cpu", "seed": 0}
        if case.algorithm is PPO:
            settings |= {"n_steps": steps, "batch_size": min(64, steps)}
        self.steps, self.hidden = steps, list(widths)
        if variant == "mlp":
            self.model = case.algorithm(
                "MlpPolicy", case.env_id, policy_kwargs=self._net_arch(case, widths), **settings
            )
        else:
            if variant == "same_size":
                self.hidden = list(_matching(case, widths))
            kwargs = {**self._net_arch(case, widths), "lipschitz": case.lipschitz}
            self.model = case.algorithm(case.policy, case.env_id, policy_kwargs=kwargs, **settings)
        self.callback = None if variant == "mlp" else FreezeWeights()
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def _net_arch(self, case: Case, widths: Sequence[int]) -> dict[str, Any]:
        return {"net_arch": {"pi": self.hidden, case.critic: list(widths)} if case.critic else self.hidden}

    def advance(self) -> None:
        """Train for one turn; keep wall time and CPU time in seconds."""
        start, cpu_start = time.perf_counter(), time.process_time()
        self.model.learn(self.steps, callback=self.callback, reset_num_timesteps=False)
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)


def _sizes(case: Case) -> tuple[int, int]:
    """Numbers of inputs and outputs of the actor or Q-network."""
    model = case.algorithm("MlpPolicy", case.env_id, device="cpu")
    space: Any = model.action_space
    return int(model.observation_space.shape[0]), int(space.n if case.algorithm is DQN else space.shape[0])


def _matching(case: Case, widths: Sequence[int]) -> tuple[int, ...]:
    n_in, n_out = _sizes(case)
    return matching_widths(n_in, widths, n_out)


def measure(name: str, widths: Sequence[int], turns: int, steps: int) -> dict[str, Any]:
    """Run the variants of one algorithm in turns.

    Args:
        name: Key of `CASES`.
        widths: Hidden widths of MlpPolicy.
        turns: Turns that count.
        steps: Environment steps of a turn.

    Returns:
        Sizes, milliseconds per environment step (medians over the turns), and the ratios to MlpPolicy.
    """
    case = CASES[name]
    runs = {variant: Run(case, variant, widths, steps) for variant in VARIANTS}
    for turn in range(turns + 1):
        shift = turn % len(VARIANTS)
        for variant in VARIANTS[shift:] + VARIANTS[:shift]:
            runs[variant].advance()
    n_in, n_out = _sizes(case)
    return {
        "algorithm": name,
        "env": case.env_id,
        "widths": list(widths),
        "same_size_widths": runs["same_size"].hidden,
        "actor_parameters": {
            "mlp": n_parameters(n_in, widths, n_out, kind="mlp"),
            "same_widths": n_parameters(n_in, widths, n_out),
            "same_size": n_parameters(n_in, runs["same_size"].hidden, n_out),
        },
        "target": case.target,
        "turns": turns,
        "steps_per_turn": steps,
        "ms_per_step": {
            variant: 1e3 * statistics.median(run.seconds[1:]) / steps for variant, run in runs.items()
        },
        "ratio": {variant: _ratio(run.seconds, runs["mlp"].seconds) for variant, run in runs.items()},
        "ratio_of_cpu_time": {
            variant: _ratio(run.cpu_seconds, runs["mlp"].cpu_seconds) for variant, run in runs.items()
        },
    }


def _ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the turns that count."""
    return statistics.median(a / b for a, b in zip(seconds[1:], reference[1:], strict=True))


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), help="algorithms")
    parser.add_argument("--width", type=int, nargs="*", help="hidden widths; two layers of each")
    parser.add_argument("--turns", type=int, default=15, help="turns that count")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    widths = WIDTHS if not options.width else tuple((width, width) for width in options.width)
    if options.smoke:
        widths, options.turns = ((16, 16),), 1
    print(
        f"{'':<5}{'widths':<12}{'same size':<12}{'ms/step, MLP':>13}{'same widths':>13}{'same size':>11}"
        f"{'target':>8}   of CPU time"
    )
    rows = []
    for name in options.only:
        for pair in widths:
            steps = 128 if options.smoke else CASES[name].steps
            row = measure(name, pair, options.turns, steps)
            rows.append(row)
            ratio, cpu = row["ratio"], row["ratio_of_cpu_time"]
            print(
                f"{name:<5}{pair!s:<12}{tuple(row['same_size_widths'])!s:<12}{row['ms_per_step']['mlp']:>13.3f}"
                f"{ratio['same_widths']:>13.3f}{ratio['same_size']:>11.3f}{row['target']:>8.1f}"
                f"{cpu['same_widths']:>9.3f}{cpu['same_size']:>7.3f}",
                flush=True,
            )
    print(json.dumps({"benchmark": "algorithms", "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
