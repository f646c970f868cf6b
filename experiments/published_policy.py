"""A pendulum policy of the published study, under the attacks and delays of ours.

The policy is one of those published with arXiv 2405.11432 (an LBDN of bound 4 on normalised observations), as arrays in
a .npz file that is no part of this project: `published_pendulum_lbdn_g4_s6.npz` in the folder that ROBUSTNN_DATA names.
It stands beside the policies of `what_buys_robustness`, whose committed results are read for that.

    python -m experiments.published_policy            # a minute
    python -m experiments.published_policy --smoke    # seconds, for the test suite
    python -m experiments.published_policy --report experiments/results/published_policy
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from experiments.command import RESULTS, Size, run_experiment
from experiments.policy_files import load_published_policy
from experiments.robustness_study.config import ATTACKS, Method
from experiments.robustness_study.results import Results
from robustnn.bounds import lipsdp, lower_bound
from robustnn.closedloop import Delay, evaluate, perturbation_from_config, rollout, start_states
from robustnn.envs import Pendulum
from robustnn.errors import invalid
from robustnn.policies import ActionMap
from robustnn.report import (
    Table,
    appearances,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    return_against_eps,
    save_figure,
    style,
)
from robustnn.runs import RunFolder
from robustnn.sweep import Task

LABEL = "published LBDN, γ=4 (normalised)"
_OURS = (Method(), Method("lbdn", 30.0), Method("converted", training="game"))


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        file: Name of the file of the policy.
        training_seeds: Of the policy, by its authors.
        episodes: Episodes per condition; their start states are those of the study of ours.
        eps: Sizes of the perturbation of the raw observation, l2.
        attacks: Those of the study that need nothing but the policy and the plant.
        delays: Delays of the observation, in steps of 50 ms.
    """

    file: str = "published_pendulum_lbdn_g4_s6.npz"
    training_seeds: tuple[int, ...] = (6,)
    episodes: int = 256
    eps: tuple[float, ...] = (0.15, 0.2, 0.3)
    attacks: tuple[str, ...] = ("uniform", "mad", "trajectory-paper", "trajectory-strongest")
    delays: tuple[int, ...] = (1, 2, 3, 4)

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**fields)


SMOKE = Config(episodes=8, eps=(0.15, 0.3), attacks=("uniform", "mad"), delays=(2,))
SIZES = {
    "full": Size(Config(), "published_policy", "all of it", committed=True),
    "smoke": Size(SMOKE, "published_policy_smoke", "tiny run for the test suite"),
}


def policy_of(config: Config) -> ActionMap:
    """Read the policy in float32 from the folder of data.

    Raises:
        InvalidArgumentError: If there is no such file.
    """
    file = Path(os.environ.get("ROBUSTNN_DATA", "")) / config.file
    if not file.is_file():
        raise invalid("ROBUSTNN_DATA", f"a folder with {config.file}", str(file), "Put the file there.")
    return load_published_policy(file).to(dtype=torch.float32)


def returns_under(config: Config, attack: str, eps: float) -> dict[str, Any]:
    """Evaluate the policy under an attack of a size, or without one."""
    settings: dict[str, Any] = {"name": attack} | ({} if attack == "none" else {"eps": eps})
    policy = policy_of(config)
    parts: dict[str, Any] = {"policy": lambda: policy, "plant": Pendulum}
    return _returns(config, policy, perturbation_from_config(settings, parts))


def returns_delayed(config: Config, steps: int) -> dict[str, Any]:
    """Evaluate the policy with delayed observations."""
    return _returns(config, policy_of(config), Delay(steps))


def constants(config: Config) -> dict[str, Any]:
    """Certified and empirical constants of action before tanh per raw observation, l2."""
    policy = policy_of(config).to(dtype=torch.float64)
    assert policy.normalization is not None
    visited = rollout(
        Pendulum(), policy, start_states(Pendulum(), range(16), dtype=torch.float64)
    ).observations
    inputs = policy.normalization(visited.reshape(-1, 3)[::8])
    unit = 1.0 / policy.normalization.std
    return {
        "certified": lipsdp(policy.network, input_scale=unit).value,
        "empirical": lower_bound(policy.network, inputs, input_scale=unit).value,
    }


def _returns(config: Config, policy: ActionMap, perturbation: Any) -> dict[str, Any]:
    result = evaluate(policy, Pendulum(), perturbation, episodes=config.episodes, dtype=torch.float32)
    return {"returns": np.round(result.returns, 2).tolist()}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """One task per condition."""
    tasks: list[Task] = [
        ("constants", constants, (config,)),
        (_key("none", 0.0), returns_under, (config, "none", 0.0)),
    ]
    tasks += [(_key(a, eps), returns_under, (config, a, eps)) for a in config.attacks for eps in config.eps]
    tasks += [(f"delay_{k}", returns_delayed, (config, k)) for k in config.delays]
    yield "measuring", tasks


def _key(attack: str, eps: float) -> str:
    return f"returns_{attack}_eps={eps:g}"


class Conditions:
    """Returns of the published policy and of ours in one condition each, shape (n_policies, n_episodes).

    An interval of ours is over training seeds; that of the one published policy is over episodes.

    Args:
        run: A run folder in which all tasks are done.
        results: Folder of the committed runs of `what_buys_robustness`.
    """

    def __init__(self, run: RunFolder, results: Path = RESULTS) -> None:
        self.run, self.config = run, Config.of(run.config)
        self.fresh = Results(RunFolder.open(results / "what_buys_robustness_confirm"))
        self.first = Results(RunFolder.open(results / "what_buys_robustness"))

    def attacked(self, label: str, attack: str, eps: float) -> np.ndarray:
        """Under an attack of a size of the study of ours; of "worst" the least return of each episode."""
        if eps and attack == "worst":
            return np.min([self.attacked(label, name, eps) for name in self.config.attacks], axis=0)
        if label == LABEL:
            return self._own(_key(attack if eps else "none", eps))
        return self.fresh.returns(self._method(label), attack, eps)

    def delayed(self, label: str, steps: int) -> np.ndarray:
        """With observations that are so many steps old."""
        if label == LABEL:
            return self._own(f"delay_{steps}")
        return self.first.condition(self._method(label), f"delay {steps}")

    def _own(self, key: str) -> np.ndarray:
        return np.array(self.run.cell(key)["returns"])[:, None]

    @staticmethod
    def _method(label: str) -> Method:
        return next(method for method in _OURS if method.label == label)


LABELS = (LABEL, *(method.label for method in _OURS))
_TITLES = {**ATTACKS, "worst": "worst of these, per episode"}


def attack_table(conditions: Conditions) -> Table:
    """Mean return under every attack: one row per attack and policy, one column per size."""
    eps = (0.0, *conditions.config.eps)
    rows = []
    for attack in (*conditions.config.attacks, "worst"):
        for label in LABELS:
            cells = [
                format_interval(bootstrap_interval(conditions.attacked(label, attack, e)), 0) for e in eps
            ]
            rows.append((_TITLES[attack], label, *cells))
    return Table(("attack", "policy", *(f"eps {e:g}" for e in eps)), tuple(rows))


def delay_table(conditions: Conditions) -> Table:
    """Mean return with delayed observations: one row per policy."""
    delays = conditions.config.delays
    rows = [
        (label, *(format_interval(bootstrap_interval(conditions.delayed(label, k)), 0) for k in delays))
        for label in LABELS
    ]
    return Table(("policy", *(f"delay {k}" for k in delays)), tuple(rows))


def constants_sentence(conditions: Conditions) -> str:
    """Constants of the published policy per raw observation."""
    found = conditions.run.cell("constants")
    return (
        "The published policy, before its tanh and per unit of the raw observation: certified constant "
        f"{found['certified']:.1f}, found by ascent {found['empirical']:.1f}."
    )


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text, and the path of the figure.
    """
    conditions = Conditions(run)
    note = (
        f"One published policy, {conditions.config.episodes} episodes, 95 % intervals over episodes, beside policies "
        "of `what_buys_robustness` (attacks: its fresh seeds; delays: its first study), intervals over training seeds. "
        "Mean return on the pendulum; eps is the l2 size of the perturbation of the raw observation."
    )
    attacks, delays = attack_table(conditions), delay_table(conditions)
    sections = (
        f"# {run.name}\n\n{note}",
        f"## Attacks\n\n{attacks.markdown()}",
        f"## Delays of the observation, steps of 50 ms\n\n{delays.markdown()}\n\n{constants_sentence(conditions)}",
    )
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        figure = _figure(conditions)
    return f"{attacks.text()}\n\n{delays.text()}\n{constants_sentence(conditions)}", figure


def _figure(conditions: Conditions) -> Path:
    eps = (0.0, *conditions.config.eps)
    curves = {
        label: np.stack([conditions.attacked(label, "worst", e) for e in eps], axis=1) for label in LABELS
    }
    fig, ax = plt.subplots(figsize=(7.6, 4.8))
    return_against_eps(
        eps, curves, ax=ax, looks=appearances(LABELS), ylabel="return per episode, worst of the attacks"
    )
    ax.set_title("Pendulum: the published policy beside ours, mean and 95 % interval")
    path = conditions.run.figure("returns.png")
    save_figure(fig, path)
    plt.close(fig)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    run_experiment(__doc__, SIZES, stages, write, argv)


if __name__ == "__main__":
    main()
