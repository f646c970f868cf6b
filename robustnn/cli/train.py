"""`robustnn train`: train a policy for one or more seeds, from a configuration."""

from __future__ import annotations

import argparse
import io
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm import tqdm

from robustnn.cli.models import make_env
from robustnn.cli.names import algorithm_class, dotted, expression, policy_class
from robustnn.cli.options import add_command, add_sweep_options, check_device, read_config, seeds
from robustnn.errors import RobustNNError, check_positive_int, invalid
from robustnn.files import atomic_write_bytes
from robustnn.policies import FreezeWeights, LipschitzPolicy
from robustnn.runs import RunFolder
from robustnn.sweep import run_tasks

__all__ = ["Setup", "add_to", "setup_from"]

_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
_NOISES = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}


@dataclass(frozen=True)
class Setup:
    """What is trained, as plain values.

    Attributes:
        algo: Algorithm, such as "ppo".
        env: Gymnasium id; ids of this package make plants.
        policy: "lbdn", "mlp", a name of Stable-Baselines3, or a dotted name.
        policy_kwargs: Its arguments: a mapping, or text of the form ``dict(...)``.
        n_timesteps: Environment steps.
        n_envs: Copies of the environment.
        env_kwargs: Arguments of the environment.
        normalize: Whether a VecNormalize is put in front: a boolean, or its arguments.
        callback: Dotted names of callbacks that need no arguments.
        noise_type: "normal" or "ornstein-uhlenbeck" for action noise, with `noise_std`.
        noise_std: Its standard deviation, in units of the scaled action.
        settings: Further arguments of the algorithm; "lin_x" is a schedule that falls from x to zero.
    """

    algo: str
    env: str
    policy: str = "lbdn"
    policy_kwargs: Any = field(default_factory=dict)
    n_timesteps: int = 10_000
    n_envs: int = 1
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    normalize: Any = False
    callback: Any = ()
    noise_type: str | None = None
    noise_std: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


def setup_from(content: dict[str, Any], algo: str | None = None, env: str | None = None) -> Setup:
    """Return the setup that a configuration describes.

    Args:
        content: Names and values; or, as in the files of RL Baselines3 Zoo, one such mapping per environment.
        algo: Algorithm, where the configuration names none.
        env: Environment, where the configuration names none.

    Raises:
        InvalidArgumentError: If algorithm or environment are missing, or a value is not acceptable.
    """
    if content and all(isinstance(value, dict) for value in content.values()):
        if env not in content and "default" not in content:
            raise invalid("--env", f"one of {', '.join(content)}", repr(env), "Choose one of these.")
        content = content[str(env)] if env in content else content["default"]
    values = dict(content)
    for name, given in (("algo", algo), ("env", env)):
        if given is not None:
            values[name] = given
        if not isinstance(values.get(name), str):
            raise invalid(f"CONFIG: {name}", "a name", values.get(name), f"Give it there, or as --{name}.")
    algorithm_class(values["algo"])
    known = {name: values.pop(name) for name in list(values) if name in Setup.__dataclass_fields__}
    more = known.pop("settings", {})
    try:
        number = known.get("n_timesteps", 10_000)
        known["n_timesteps"] = int(float(number)) if isinstance(number, (str, float)) else number
        setup = Setup(**known, settings={**values, **more})
    except (TypeError, ValueError) as error:
        raise invalid("CONFIG", "names and values", sorted(content), f"It says: {error}.") from error
    check_positive_int("n_timesteps", setup.n_timesteps)
    check_positive_int("n_envs", setup.n_envs)
    policy_class(setup.policy, setup.algo)
    _mapping("policy_kwargs", setup.policy_kwargs)
    return setup


def make_model(setup: Setup, seed: int, device: str) -> tuple[BaseAlgorithm, list[BaseCallback]]:
    """Return the untrained model in its environment, and the callbacks of its training."""
    env = _environment(setup, seed, device)
    settings = {name: _schedule(name, value) for name, value in setup.settings.items()}
    for name in ("replay_buffer_class", "rollout_buffer_class"):
        if isinstance(settings.get(name), str):
            settings[name] = dotted(name, settings[name])
    if isinstance(settings.get("train_freq"), list):
        settings["train_freq"] = tuple(settings["train_freq"])
    if setup.noise_type is not None:
        settings["action_noise"] = _noise(setup, env)
    policy = policy_class(setup.policy, setup.algo)
    kwargs = _mapping("policy_kwargs", setup.policy_kwargs)
    try:
        model: BaseAlgorithm = algorithm_class(setup.algo)(
            policy, env, policy_kwargs=kwargs, seed=seed, device=device, **settings
        )
    except RobustNNError:
        raise
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise invalid(
            "CONFIG", f"settings that {setup.algo} accepts", sorted({**setup.settings, **kwargs}), f"It says: {error}"
        ) from error  # fmt: skip
    names = [setup.callback] if isinstance(setup.callback, str) else list(setup.callback or ())
    callbacks: list[BaseCallback] = [dotted("callback", name)() for name in names]
    frozen = any(isinstance(callback, FreezeWeights) for callback in callbacks)
    if isinstance(model.policy, LipschitzPolicy) and not frozen:
        callbacks.append(FreezeWeights())
    return model, callbacks


def train_seed(setup: Setup, folder: Path, seed: int, device: str, show: bool) -> dict[str, Any]:
    """Train one seed and write ``seed=N/model.zip``, with ``vecnormalize.pkl`` where there is one.

    Returns:
        JSON values: the file, the environment steps, and the mean return of the last training episodes.
    """
    model, callbacks = make_model(setup, seed, device)
    if show:
        callbacks.append(_Bar(setup.n_timesteps, f"seed {seed}"))
    model.learn(setup.n_timesteps, callback=callbacks)
    target = folder / f"seed={seed}"
    target.mkdir(exist_ok=True)
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        statistics.training = False
        atomic_write_bytes(target / "vecnormalize.pkl", pickle.dumps(statistics))
    buffer = io.BytesIO()
    model.save(buffer)
    atomic_write_bytes(target / "model.zip", buffer.getvalue())
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    return {
        "model": f"seed={seed}/model.zip",
        "timesteps": model.num_timesteps,
        "return": float(np.mean(returns)) if returns else None,
    }


class _Bar(BaseCallback):
    """A progress bar over environment steps."""

    def __init__(self, total: int, title: str) -> None:
        super().__init__()
        self.bar: Any = tqdm(total=total, desc=title, unit="step", leave=False)

    def _on_step(self) -> bool:
        self.bar.update(min(self.num_timesteps, self.bar.total) - self.bar.n)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


def _environment(setup: Setup, seed: int, device: str) -> VecEnv:
    env = make_env(setup.env, setup.n_envs, seed=seed, device=device, env_kwargs=setup.env_kwargs)
    if setup.normalize is False or setup.normalize is None:
        return env
    options = {} if setup.normalize is True else dict(_mapping("normalize", setup.normalize))
    if "gamma" in setup.settings:
        options["gamma"] = setup.settings["gamma"]
    try:
        return VecNormalize(env, **options)
    except (TypeError, ValueError) as error:
        raise invalid(
            "normalize", "arguments of VecNormalize", sorted(options), f"It says: {error}."
        ) from error


def _noise(setup: Setup, env: VecEnv) -> Any:
    kind = _NOISES.get(str(setup.noise_type).strip())
    if kind is None or not isinstance(env.action_space, spaces.Box):
        raise invalid(
            "noise_type", f"one of {', '.join(_NOISES)}, for Box actions", repr(setup.noise_type), "Correct it."
        )  # fmt: skip
    size = env.action_space.shape
    return kind(np.zeros(size), float(setup.noise_std) * np.ones(size))


def _mapping(name: str, value: Any) -> dict[str, Any]:
    found = expression(name, value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise invalid(name, "a mapping, or text of the form dict(...)", repr(value), "Correct it.")
    return {
        key: expression(key, item) if isinstance(item, str) and item.startswith("nn.") else item
        for key, item in found.items()
    }


def _schedule(name: str, value: Any) -> Any:
    if name not in _SCHEDULES or not isinstance(value, str):
        return value
    try:
        start = float(value.removeprefix("lin_"))
    except ValueError as error:
        raise invalid(
            name, "a number or lin_ and a number", repr(value), "Write 0.001 or lin_0.001."
        ) from error
    return _Linear(start) if value.startswith("lin_") else start


@dataclass(frozen=True)
class _Linear:
    """A value that falls linearly to zero; a class, so that models can be saved."""

    start: float

    def __call__(self, remaining: float) -> float:
        return remaining * self.start


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        "train a policy from a configuration",
        "Train a policy with Stable-Baselines3 from a YAML or JSON configuration: algo, env, policy, "
        "policy_kwargs, n_timesteps, n_envs, normalize and further settings of the algorithm, named as in RL "
        "Baselines3 Zoo, whose files can be given too. Every seed leaves seed=N/model.zip in the run folder. The same "
        "command continues an interrupted run with the seeds that are left.",
        "robustnn train pendulum.json --out runs/pendulum --seed 0,1,2 --workers 3",
        _run,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="YAML or JSON file")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="run folder")
    parser.add_argument("--algo", help="algorithm, if CONFIG names none")
    parser.add_argument("--env", metavar="ID", help="gymnasium id, or robustnn/... for a plant")
    parser.add_argument("--seed", default="0", help="seed or seeds, such as 0,1,2 (default: 0)")
    parser.add_argument("--timesteps", type=int, help="environment steps, in the place of those of CONFIG")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    add_sweep_options(parser)


def _run(arguments: argparse.Namespace) -> None:
    content = read_config(arguments.config)
    setup = setup_from(content, arguments.algo, arguments.env)
    if arguments.timesteps is not None:
        setup = Setup(
            **{**asdict(setup), "n_timesteps": check_positive_int("--timesteps", arguments.timesteps)}
        )
    device = check_device(arguments.device)
    chosen = seeds("--seed", arguments.seed)
    make_model(setup, chosen[0], device)[0].get_env().close()  # type: ignore[union-attr]  # errors at once
    out = arguments.out
    run = RunFolder.create(out.parent, out.name, setup, seeds=chosen, resume=True)
    show = arguments.workers == 0
    function: Callable[..., Any] = train_seed
    tasks = [(f"seed={seed}", function, (setup, run.path, seed, device, show)) for seed in chosen]
    values = run_tasks(run, tasks, arguments.workers, "training", backend=arguments.backend)
    for value in values:
        last = (
            ""
            if value["return"] is None
            else f", mean return of the last training episodes {value['return']:.4g}"
        )
        print(f"{run.path / value['model']}: {value['timesteps']} steps{last}")
