"""`robustnn certify`: the bound of a policy from raw observation to action, stage by stage, and what it certifies."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from robustnn.certify import certification_rate
from robustnn.cli.models import check_env, load_model, load_statistics, make_env, statistics_file
from robustnn.cli.options import add_command, add_model_options, check_device, numbers
from robustnn.errors import check_positive_int, invalid
from robustnn.files import atomic_write_text
from robustnn.policies import policy_bound
from robustnn.report.tables import Table

__all__ = ["add_to", "environment_of"]


def environment_of(model: BaseAlgorithm, arguments: argparse.Namespace, n_envs: int = 1) -> VecEnv | None:
    """Return what feeds a model, with its statistics: the environment of --env, or None without that and statistics.

    Raises:
        InvalidArgumentError: If statistics are to be loaded and there is no environment to put them on.
    """
    file = statistics_file(arguments.model, arguments.vecnormalize)
    if arguments.env is None:
        if file is None:
            return None
        raise invalid(
            "--env", f"the environment that the statistics in {file} belong to", None, "Give --env ID."
        )
    bare = make_env(arguments.env, n_envs, seed=arguments.seed, device=arguments.device)
    check_env(model, bare, arguments.env)
    return load_statistics(file, bare)


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "certify",
        "print and certify the Lipschitz bound of a policy",
        "Print the Lipschitz bound of a policy from the raw observation to the action, stage by stage, with the "
        "normalisation and the scaling of the action. With --env and --eps, roll the policy out and print how many of "
        "the states that it visits are certified: no error of the observation of that size moves the action by more "
        "than --tolerance, or changes a discrete choice.",
        "robustnn certify model.zip --env robustnn/PendulumSwingUp-v0 --eps 0.01,0.1 --tolerance 0.2",
        _run,
    )
    add_model_options(parser)
    parser.add_argument(
        "--method", choices=("auto", "declared", "lipsdp"), default="auto",
        help="bound of the construction, or LipSDP from the weights (default: auto)",
    )  # fmt: skip
    parser.add_argument("--eps", metavar="E,...", help="sizes of the error of the raw observation")
    parser.add_argument(
        "--norm", choices=("l2", "linf"), default="l2", help="norm of the error (default: l2)"
    )
    parser.add_argument(
        "--scale", metavar="D,...", help="error of every sensor that counts as one (default: ones)"
    )
    parser.add_argument("--tolerance", type=float, help="change of a continuous action (l2) that is allowed")
    parser.add_argument("--steps", type=int, default=200, help="steps of the rollouts (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rollouts (default: 0)")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="JSON file (default: MODEL with .certificate.json)"
    )


def _run(arguments: argparse.Namespace) -> None:
    check_device(arguments.device)
    model = load_model(arguments.model, arguments.algo, arguments.device)
    vec_env = environment_of(model, arguments)
    if vec_env is None:
        # Without an environment nothing stands in front of the policy.
        print("no --env: the bound is that of the policy alone, without a normalisation in front of it")
    bound = policy_bound(model, vec_env, method=arguments.method)
    print(bound)
    content: dict[str, Any] = {"model": arguments.model.name, "env": arguments.env, "bound": bound.to_dict()}
    if arguments.eps is not None:
        content["rate"] = _rate(model, vec_env, arguments)
    out = arguments.out or arguments.model.with_suffix(".certificate.json")
    atomic_write_text(out, json.dumps(content, indent=2) + "\n")
    print(f"written to {out}")


def _rate(model: BaseAlgorithm, vec_env: VecEnv | None, arguments: argparse.Namespace) -> dict[str, Any]:
    if vec_env is None:
        raise invalid("--env", "an environment to roll the policy out in", None, "Give --env ID.")
    rate = certification_rate(
        model,
        vec_env,
        numbers("--eps", arguments.eps),
        steps=check_positive_int("--steps", arguments.steps),
        seed=check_positive_int("--seed", arguments.seed, minimum=0),
        norm=arguments.norm,
        scale=None if arguments.scale is None else numbers("--scale", arguments.scale),
        tolerance=arguments.tolerance,
    )
    rows = tuple((f"{e:g}", f"{100.0 * r:.1f} %") for e, r in zip(rate.eps, rate.rate, strict=True))
    print(Table(("eps", f"certified of {len(rate.radius)} states"), rows).text())
    return {
        "eps": rate.eps.tolist(),
        "rate": rate.rate.tolist(),
        "states": len(rate.radius),
        "norm": rate.norm,
        "scale": list(rate.scale),
        "tolerance": rate.tolerance,
        "seed": rate.seed,
    }
