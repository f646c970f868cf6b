"""`robustnn evaluate` and `robustnn attack`: returns of saved policies under perturbations, in resumable sweeps."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from robustnn.cli import returns
from robustnn.cli.models import check_env, load_model, load_statistics, make_env, plant_of, statistics_file
from robustnn.cli.options import (
    add_command,
    add_model_options,
    add_sweep_options,
    check_device,
    file_word,
    numbers,
)
from robustnn.cli.perturbations import Condition, attack_conditions, conditions
from robustnn.closedloop import EvaluationResult, evaluate, evaluate_env
from robustnn.closedloop.critics import critic_of
from robustnn.closedloop.named import check_names, parameters_of
from robustnn.closedloop.registry import PERTURBATIONS, perturbation_from_config
from robustnn.envs.plant import Plant
from robustnn.errors import CheckpointError, check_positive_int, invalid
from robustnn.policies import action_map
from robustnn.runs import RunFolder
from robustnn.sweep import run_tasks

__all__ = ["add_attack_to", "add_to", "measure"]


@dataclass(frozen=True)
class Source:
    """Where a trained model comes from.

    Attributes:
        label: What tables call it.
        model: Zip file of Stable-Baselines3.
        statistics: Saved VecNormalize, or None.
        algo: Algorithm, or None to tell it from the file.
    """

    label: str
    model: Path
    statistics: Path | None
    algo: str | None

    def digest(self) -> dict[str, str | None]:
        """Return label and digests of the files: a model trained anew is another one."""
        return {
            "label": self.label,
            "model_sha256": _sha256(self.model),
            "statistics_sha256": None if self.statistics is None else _sha256(self.statistics),
        }


@dataclass(frozen=True)
class Sweep:
    """What is measured, as plain values; what decides whether a folder can be continued.

    Attributes:
        command: "evaluate" or "attack".
        env: Gymnasium id.
        models: Labels and digests of the models.
        conditions: The perturbations.
        episodes: Episodes per model and perturbation.
        steps: Their length, or None for that of the environment.
        seed: Seed of the first episode; the others count on.
        device: Where it is computed.
    """

    command: str
    env: str
    models: list[dict[str, str | None]]
    conditions: list[Condition]
    episodes: int
    steps: int | None
    seed: int
    device: str


def measure(
    source: Source, env_id: str, config: dict[str, Any], seeds: range, steps: int | None, device: str
) -> dict[str, Any]:
    """Evaluate a saved model under one perturbation.

    Plants of this package are simulated together and differentiated by attacks; other environments are stepped.

    Returns:
        JSON values: the perturbation with all its parameters, returns, lengths and, where known, terminations.
    """
    model = load_model(source.model, source.algo, device)
    bare = make_env(env_id, 1, device=device)
    check_env(model, bare, env_id)
    vec_env = load_statistics(source.statistics, bare)
    plant = plant_of(env_id)
    policy = action_map(model, vec_env)
    disturbance = perturbation_from_config(config, _parts(model, vec_env, env_id, plant))
    result: EvaluationResult
    if plant is not None:
        result = evaluate(policy, plant, disturbance, seeds=seeds, steps=steps, device=device)
    else:
        result = evaluate_env(model, env_id, disturbance, seeds=seeds, steps=steps, vec_env=vec_env)
    bare.close()
    return {
        "perturbation": result.perturbation,
        "returns": result.returns.tolist(),
        "lengths": result.lengths.tolist(),
        "terminated": None if result.terminated is None else result.terminated.tolist(),
    }


def _parts(
    model: BaseAlgorithm, vec_env: VecEnv, env_id: str, plant: Plant | None
) -> dict[str, Callable[[], Any]]:
    """What configurations of perturbations cannot hold."""

    def known_plant() -> Plant:
        if plant is None:
            raise invalid(
                "--attacks", "for an environment without equations one that needs no plant", env_id,
                "Use mad, margin, critic, learned-adversary or a fault.",
            )  # fmt: skip
        return plant

    return {
        "critic": partial(critic_of, model, vec_env),
        "policy": partial(action_map, model, vec_env),
        "plant": known_plant,
        "env": lambda: env_id if plant is None else plant,
    }


def _add_options(parser: argparse.ArgumentParser, episodes: int) -> None:
    add_model_options(parser, several=True)
    parser.add_argument(
        "--episodes", type=int, default=episodes, metavar="N",
        help=f"episodes per model and perturbation (default: {episodes})",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, metavar="N", help="length of the episodes (default: the environment's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode (default: 0)")
    parser.add_argument(
        "--scale", metavar="D,...", help="error of every sensor that counts as one (default: ones)"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="run folder (default: one in runs/)",
    )
    add_sweep_options(parser)


def add_to(commands: Any) -> None:
    """Add the command `evaluate`."""
    parser = add_command(
        commands,
        "evaluate",
        "evaluate policies under noise, faults and attacks",
        "Evaluate saved policies without and with perturbations of their observations, on the same start states. "
        "Prints a table and writes returns.csv, summary.json and figures/returns.png into the run folder; the same "
        "command continues an interrupted run.",
        "robustnn evaluate model.zip --env robustnn/PendulumSwingUp-v0 --perturbation uniform:0.1,0.2 delay:1",
        _run_evaluate,
    )
    _add_options(parser, 32)
    parser.add_argument(
        "--perturbation", nargs="+", default=[], metavar="P",
        help="NAME:SIZE[,SIZE...], NAME, or JSON such as '{\"name\": \"white\", \"std\": 0.1}'",
    )  # fmt: skip
    parser.add_argument("--norm", choices=("l2", "linf"), help="norm of sized perturbations that have one")


def add_attack_to(commands: Any) -> None:
    """Add the command `attack`."""
    parser = add_command(
        commands,
        "attack",
        "attack policies, and report the strongest attack",
        "Attack saved policies with every attack at every size, and report the strongest: for every episode the "
        "least return that any of them, at that size or a smaller one, has reached. Writes what 'evaluate' writes.",
        "robustnn attack model.zip --env robustnn/PendulumSwingUp-v0 --attacks mad,trajectory-strong --eps 0.05,0.1",
        _run_attack,
    )
    _add_options(parser, 16)
    parser.add_argument("--attacks", default="mad", metavar="NAME,...", help="attacks (default: mad)")
    parser.add_argument("--eps", required=True, metavar="E,...", help="sizes of the error of the observation")
    parser.add_argument(
        "--norm", choices=("l2", "linf"), default="l2", help="norm of the error (default: l2)"
    )


def _run_evaluate(arguments: argparse.Namespace) -> None:
    scale = None if arguments.scale is None else numbers("--scale", arguments.scale)
    _sweep("evaluate", arguments, conditions(arguments.perturbation, arguments.norm, scale))


def _run_attack(arguments: argparse.Namespace) -> None:
    scale = None if arguments.scale is None else numbers("--scale", arguments.scale)
    sizes = numbers("--eps", arguments.eps)
    _sweep("attack", arguments, attack_conditions(arguments.attacks.split(","), sizes, arguments.norm, scale))


def _sweep(command: str, arguments: argparse.Namespace, chosen: list[Condition]) -> None:
    if arguments.env is None:
        raise invalid("--env", "an environment", None, "Give --env ID.")
    device = check_device(arguments.device)
    episodes = check_positive_int("--episodes", arguments.episodes)
    if arguments.steps is not None:
        check_positive_int("--steps", arguments.steps)
    seed = check_positive_int("--seed", arguments.seed, minimum=0)
    sources = _sources(arguments)
    _check(sources, arguments.env, device, chosen)
    digests = [source.digest() for source in sources]
    config = Sweep(command, arguments.env, digests, chosen, episodes, arguments.steps, seed, device)
    place = arguments.out or _default_folder(config)
    run = RunFolder.create(place.parent, place.name, config, resume=True)
    tasks = [
        (
            f"{source.label}_{condition.key}",
            measure,
            (source, arguments.env, condition.config, range(seed, seed + episodes), arguments.steps, device),
        )
        for condition in chosen
        for source in sources
    ]
    values = run_tasks(run, tasks, arguments.workers, command, backend=arguments.backend)
    labels = [source.label for source in sources]
    text = returns.write(run, labels, chosen, values, range(seed, seed + episodes))
    print(f"{text}\nwritten to {run.path}: returns.csv, summary.json, figures/returns.png")


def _check(sources: list[Source], env_id: str, device: str, chosen: list[Condition]) -> None:
    """Find what is wrong with the arguments before anything is computed or written."""
    env = make_env(env_id, 1, device=device)
    for source in sources:
        model = load_model(source.model, source.algo, device)
        check_env(model, env, env_id)
        vec_env = load_statistics(source.statistics, env)
        parts = _parts(model, vec_env, env_id, plant_of(env_id))
        for condition in chosen:
            check_names("perturbation", PERTURBATIONS, condition.config, tuple(parts))
            if "policy" not in parameters_of(PERTURBATIONS[condition.config["name"]]):  # nothing to learn
                perturbation_from_config(condition.config, parts)
    env.close()


def _sources(arguments: argparse.Namespace) -> list[Source]:
    models: list[Path] = arguments.model
    if arguments.vecnormalize is not None and len(models) > 1:
        raise invalid("--vecnormalize", "one MODEL", len(models), "Put vecnormalize.pkl beside every model.")
    places = [path.resolve() for path in models]
    labels = [place.parent.name if place.stem == "model" else place.stem for place in places]
    if len(set(labels)) < len(labels):
        labels = [f"{place.parent.parent.name}_{place.parent.name}_{place.stem}" for place in places]
    if len(set(labels)) < len(labels):
        labels = [f"{label}_{k}" for k, label in enumerate(labels)]
    return [
        Source(file_word(label), path, statistics_file(path, arguments.vecnormalize), arguments.algo)
        for label, path in zip(labels, models, strict=True)
    ]


def _default_folder(config: Sweep) -> Path:
    """One folder per sweep: the same command continues it, another one does not meet it."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:8]
    name = (
        f"{config.command}_{config.models[0]['label']}_{config.env.replace(':', '/').split('/')[-1]}_{digest}"
    )
    return Path("runs", file_word(name))


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"MODEL: expected a readable file, got {error}. Check the path.") from error
