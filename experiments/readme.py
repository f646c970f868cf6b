"""Write the numbers of the README from committed result files.

python -m experiments.readme            # update README.md
python -m experiments.readme --check    # fail if README.md is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.algorithms_study.report import Results as AlgorithmResults
from experiments.algorithms_study.report import return_table as algorithm_returns
from experiments.classification_study.report import Results as ClassificationResults
from experiments.classification_study.report import share_table
from experiments.identification_study.document import summary
from experiments.pendulum.report import Results, budget, constant_table, return_table
from experiments.robustness_study.report import nominal_sentence, recipe_table, twin_table
from experiments.robustness_study.results import Results as RobustnessResults
from robustnn.report import Table, block_is_current, update_block
from robustnn.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "experiments" / "results" / "pendulum_robustness"
ROBUSTNESS = ROOT / "experiments" / "results" / "what_buys_robustness_confirm"
ALGORITHMS = ROOT / "experiments" / "results" / "algorithms"
IMAGES = ROOT / "experiments" / "results" / "classification_mnist"
BENCHMARKS = ROOT / "benchmarks" / "results"


def pendulum_block() -> str:
    """Tables of the pendulum run: strong attack, noise, Lipschitz constants."""
    results = Results(RunFolder.open(RUN))
    config = results.config
    steps = max(config.timesteps)
    parts = [
        f"**Return under the strong trajectory attack, policies trained for {budget(steps)} steps**: mean over "
        f"{len(config.training_seeds)} training seeds [95 % bootstrap interval]",
        _without_first_column(return_table(results, steps, ["strong"])).markdown(),
    ]
    parts.append(
        "**Lipschitz constant of raw observation → action** (action 1 is the full torque of 2 N m; observation norm "
        "with 4 rad/s counting as one, in which the bound is stated)"
    )
    parts.append(constant_table(results).markdown())
    parts.append(
        "All attacks and sizes, shorter training, interquartile means and worst tenths, and checks of the attacks: "
        "`experiments/results/pendulum_robustness/tables.md`."
    )
    return "\n\n".join(parts)


def robustness_block() -> str:
    """The recommended training against the controls."""
    results = RobustnessResults(RunFolder.open(ROBUSTNESS))
    return "\n\n".join(
        (
            "**Pendulum, return under the worst of noise and "
            f"{len(results.config.attacks) + len(results.config.more_attacks) - 1} attacks**: mean over "
            f"{len(results.config.training_seeds)} training seeds [95 % bootstrap interval]; in "
            "brackets where the recipe's interval lies",
            recipe_table(results).markdown(),
            nominal_sentence(results),
            "The same training without a bound, and for an LBDN trained by PPO from the start:",
            twin_table(results).markdown(),
        )
    )


def algorithms_block() -> str:
    """Returns of LBDN and MLP policies after training with four algorithms."""
    results = AlgorithmResults(RunFolder.open(ALGORITHMS))
    return "\n\n".join(
        (
            f"**Interquartile mean of the return** over {len(results.config.training_seeds)} training seeds "
            "[95 % bootstrap interval]",
            algorithm_returns(results, "iqm").markdown(),
            "What the columns are, differences, learning curves and bounds: `experiments/results/algorithms/tables.md` "
            "(`python -m experiments.algorithms`).",
        )
    )


def identification_block() -> str:
    """Errors of identified models on public benchmarks."""
    return "\n\n".join(
        (
            summary(ROOT / "experiments" / "results"),
            "Median and worst of ten seeds (long records: five). Every seed takes its bound $L_x$ by validation error. "
            "Wall times are in `docs/identification.md`; RNN, GRU, LSTM and SUBNET (days of training) are published.",
        )
    )


def classification_block() -> str:
    """Accuracy and certified accuracy of networks with layers of every kind on digits."""
    results = ClassificationResults(RunFolder.open(IMAGES))
    whole = share_table(results)
    header, rows = whole.header, whole.rows
    shown = [
        header.index(name) for name in ("network", "γ", "test", "certified 36", "attacked 36", "attacked 255")
    ]
    table = Table(tuple(header[k] for k in shown), tuple(tuple(row[k] for k in shown) for row in rows))
    return "\n\n".join(
        (
            "**10,000 digits of MNIST, networks of as many parameters**: shares of the test images in per cent, mean "
            f"of {len(results.config.training_seeds)} training seeds [95 % bootstrap interval]; certified, or correct "
            "after an attack, at an l2 error of 36/255 or 255/255 of the range of a pixel",
            table.markdown(),
        )
    )


def algorithms_speed() -> str:
    """Wall time of the LBDN policies as a multiple of MlpPolicy's."""
    rows = _benchmark("algorithms")["rows"]
    table = Table(
        ("algorithm", "MLP widths", "same widths", "as many parameters"),
        tuple(
            (
                row["algorithm"],
                str(tuple(row["widths"])),
                f"{row['ratio']['same_widths']:.2f}",
                f"{row['ratio']['same_size']:.2f}",
            )
            for row in rows
        ),
    )
    return table.markdown()


def speed_block() -> str:
    """Ratios of the benchmarks, with the commands that give them."""
    names = ("ppo_throughput", "env_throughput", "evaluate", "simulate", "conv")
    ppo, env, evaluation, simulation, conv = (_benchmark(name) for name in names)
    return "\n".join(
        (
            f"* PPO, {ppo['steps']:,} steps, networks (64, 64): the LBDN policy with `FreezeWeights` takes",
            f"  {ppo['ratio']['lbdn_frozen']:.2f} × the wall time of SB3's `MlpPolicy`, and without it "
            f"{ppo['ratio']['lbdn_live']:.1f} × (`python -m benchmarks.ppo_throughput`).",
            f"* `TorchVecEnv` steps {env['num_envs']:,} pendulums at {env['ratio']:.0f} × the rate of `DummyVecEnv`",
            "  over the same plant, on one CPU thread (`python -m benchmarks.env_throughput`).",
            "* 1,024 pendulum episodes under a per-step attack of 20 gradient steps run at "
            f"{evaluation['ratio']:.0f} × the",
            "  rate of the same attack as a Python loop over single environments (`python -m benchmarks.evaluate`).",
            "* A training step of a dynamics model through 1,024 simulated steps (4 states, 2 x 64 units, float32, one",
            f"  thread) runs at {_simulation(simulation, 'mlp'):.0f} × the rate of a torch loop over time, with a "
            f"Lipschitz-bounded map at {_simulation(simulation, 'lbdn'):.0f} × (`python -m benchmarks.simulate`).",
            "* A convolutional sandwich layer with explicit kernels takes "
            f"{conv['kernel_training_to_conv']:.1f} × the time of an ordinary convolution in",
            f"  training and {conv['kernel_evaluation_to_conv']:.1f} × frozen; the paper's Fourier layer "
            f"{conv['fft_training_to_published']:.2f} × that of its published formulation",
            "  (`python -m benchmarks.conv`).",
            "* Wall time of training with SB3's default hyper-parameters, over that of `MlpPolicy` "
            "(`python -m benchmarks.algorithms`):",
            "",
            algorithms_speed(),
        )
    )


def _simulation(figures: dict[str, Any], network: str) -> float:
    """Ratio for one record of 1,024 steps in float32."""
    wanted = {"f": network, "batch": 1, "steps": 1024, "dtype": "float32"}
    (found,) = [one for one in figures["settings"] if wanted.items() <= one.items()]
    return float(found["ratio"])


def _without_first_column(table: Table) -> Table:
    return Table(table.header[1:], tuple(row[1:] for row in table.rows))


def _benchmark(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def main() -> None:
    """Update or check README.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if the README is out of date"
    )
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    blocks = {
        "robustness": robustness_block(),
        "identification": identification_block(),
        "pendulum": pendulum_block(),
        "algorithms": algorithms_block(),
        "classification": classification_block(),
        "speed": speed_block(),
    }
    if not check:
        for name, text in blocks.items():
            update_block(readme, name, text)
        return
    stale = [name for name, text in blocks.items() if not block_is_current(readme, name, text)]
    if stale:
        sys.exit(f"README.md: {', '.join(stale)} out of date. Run: python -m experiments.readme")


if __name__ == "__main__":
    main()
