"""Tables and figure of the experiment on model-based training, from its run folder alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments.model_based_study.figures import draw
from experiments.model_based_study.results import Results
from robustnn.report import Table, atomic_write_text, format_interval, format_number, save_figure, style
from robustnn.runs import RunFolder

ATTACKS = {"uniform": "noise in the ball", "model": "through the model", "plant": "through the plant"}


def model_table(results: Results) -> Table:
    """Errors of the models on the validation data, and their constants."""
    config, rows = results.config, []
    for source in config.models:
        cells = results.models(source)
        errors = np.array([cell["errors"] for cell in cells])  # (seeds, horizons, outputs)
        scaled = np.sqrt(np.mean((errors / np.array(config.observation_scale)) ** 2, axis=-1))
        proved = [[cell["constants"][name] for cell in cells] for name in ("x", "u", "joint")]
        found = [cell["found"] for cell in cells]
        rows.append(
            (
                source.label,
                *(_number(np.mean(scaled[:, k])) for k in range(len(config.horizons))),
                *(format_number(np.mean(one), 3) for one in proved),
                format_number(np.mean(found), 3),
            )
        )
    ahead = (f"error, {k} step{'s' if k > 1 else ''}" for k in config.horizons)
    return Table(("model", *ahead, "L_x", "L_u", "L", "L_x found"), tuple(rows))


def policy_table(results: Results) -> Table:
    """Returns of the policies on the true plant and on their models, and their constants."""
    rows = []
    for source in results.config.sources:
        own = "-"
        if source.kind != "plant":
            own = format_interval(results.over_seeds(results.returns(source, "model")))
        cells = results.policies(source)
        rows.append(
            (
                source.label,
                format_interval(results.over_seeds(results.returns(source, "plant"))),
                own,
                format_interval(results.over_seeds([cell["constant"] for cell in cells]), 2),
                format_number(np.mean([cell["seconds"] for cell in cells])),
            )
        )
    header = ("trained on", "return on the true plant", "return on the model", "constant", "training [s]")
    return Table(header, tuple(rows))


def sensitivity_table(results: Results) -> Table:
    """Distances of two trajectories of the learned loop: proved and found."""
    config, rows = results.config, []
    for source in config.models:
        for name, title in (("tube", "proved"), ("found", "found")):
            means = results.tube(source, name).mean(0)
            rows.append((source.label, title, *(_number(means[k]) for k in config.horizons)))
    steps = (f"{k} step{'s' if k > 1 else ''}" for k in config.horizons)
    return Table(("model", "distance", *steps), tuple(rows))


def prediction_table(results: Results) -> Table:
    """Errors of predictions of the true loop, and what the constants prove from the worst error of one step."""
    config, rows = results.config, []
    kinds = {"prediction": "recorded", "loop": "policy's"}
    for source in config.models:
        pairs = results.pairs(source)
        for name, title in kinds.items():
            values = {
                key: np.array([one[name][key] for one in pairs]) for key in ("rms", "max", "bound", "inside")
            }
            columns = []
            for k in config.horizons:
                rms, largest, bound = (values[key][:, k - 1].mean() for key in ("rms", "max", "bound"))
                inside = 100.0 * values["inside"][:, k - 1].mean()
                columns.append(f"{_number(rms)} / {_number(largest)} / {_number(bound)} ({inside:.2f} %)")
            rows.append((source.label, title, *columns))
    steps = (f"{k} step{'s' if k > 1 else ''}" for k in config.horizons)
    return Table(("model", "actions", *steps), tuple(rows))


def attack_table(results: Results) -> Table:
    """Returns on the true plant under attacks that know the model or the plant."""
    config, rows = results.config, []
    for source in config.models:
        for eps in config.attack_eps:
            values = [results.attacked(source, attack, eps) for attack in ATTACKS]
            nominal = results.returns(source, "plant")
            damage = [float((nominal - one).mean()) for one in values[1:]]
            share = 100.0 * damage[0] / damage[1] if damage[1] > 0.0 else float("nan")
            cells = (format_interval(results.over_seeds(one)) for one in values)
            rows.append((source.label, f"{eps:g}", *cells, "-" if np.isnan(share) else f"{share:.0f} %"))
    return Table(("trained on", "eps", *ATTACKS.values(), "share of the damage"), tuple(rows))


def note(results: Results) -> str:
    """What was done, in one paragraph."""
    config = results.config
    seconds = config.records * config.record_steps * 0.05
    scale = ", ".join(f"{one:g}" for one in config.observation_scale)
    return (
        f"{len(config.training_seeds)} seeds, each with data, models and policies of its own. Data: {config.records} "
        f"records of {config.record_steps} steps of 50 ms ({seconds:.0f} s in all) under random torques. Norms of "
        f"observations are l2 over ({scale}) in (cos, sin, rad/s), actions are shares of the largest torque. Policies: "
        f"LBDN with bound {config.policy_lipschitz:g}, PPO with {config.timesteps} steps; {config.episodes} episodes "
        "per evaluation. Brackets are 95 % bootstrap intervals over seeds."
    )


def tables(results: Results) -> dict[str, str]:
    """Return the tables as Markdown by name, with a sentence each on how to read them."""
    config = results.config
    return {
        "models": (
            f"{model_table(results).markdown()}\n\nErrors are root mean squares on validation records. L_x, L_u "
            "and L are proved from the weights of the fitted models, L_u per unit of action, L per scaled observation "
            f"and action over {config.input_scale:g}; L_x found is the largest gain of the Jacobian at the data."
        ),
        "policies": policy_table(results).markdown(),
        "sensitivity": (
            f"{sensitivity_table(results).markdown()}\n\nScaled distance after an observation error of "
            f"{config.sensitivity_eps:g} at every step, means over seeds. Found distances above the proved ones: "
            f"{results.contradictions()}."
        ),
        "prediction": (
            f"{prediction_table(results).markdown()}\n\nRoot mean square / largest error / proved bound (share of the "
            "errors below it), scaled, means over seeds. The bound takes the worst error of one step from other "
            "episodes of the same loop."
        ),
        "attacks": attack_table(results).markdown(),
    }


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text, and the path of the figure.
    """
    results = Results(run)
    titles = {
        "models": "Models",
        "policies": "Policies",
        "sensitivity": "Sensitivity of the learned loop",
        "prediction": "Predictions of the true loop",
        "attacks": "Attacks on the true plant",
    }
    found = tables(results)
    sections = [
        f"# {run.name}\n\n{note(results)}",
        *(f"## {titles[name]}\n\n{found[name]}" for name in titles),
    ]
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        fig = draw(results)
        path = run.figure("model_based.png")
        save_figure(fig, path)
        plt.close(fig)
    return "\n\n".join(found.values()), path


def _number(value: float) -> str:
    return f"{value:.3g}"
