"""Training of a learned adversary by PPO, against a policy that does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from robustnn.closedloop.adversary import LearnedAdversary, perturbed
from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.decision import Decision
from robustnn.closedloop.evaluate import first_weight
from robustnn.closedloop.gym_loop import policy_of
from robustnn.closedloop.perturb import Policy
from robustnn.closedloop.vec_env import TorchVecEnv
from robustnn.envs.plant import Plant
from robustnn.errors import check_positive, check_positive_int, invalid
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap, action_map
from robustnn.policies.normalization import Normalization
from robustnn.policies.observation import flatten_observation, size_of

__all__ = ["AdversarySettings", "AdversaryVecEnv", "train_adversary"]


class AdversaryVecEnv(VecEnvWrapper):
    """Vector environment whose action is the observation error that the victim inside it meets.

    Observations are the true ones, flat; actions come from the cube of -1 to 1 and become errors as in
    `LearnedAdversary`; rewards are those of the victim with the opposite sign. The statistics of ended
    episodes stay the victim's.

    Args:
        venv: Environment of the victim, with raw observations and rewards.
        policy: The victim: flat raw observations (E, n_y) -> actions or scores (E, n_u).
        ball: The admissible perturbations.

    Raises:
        ShapeError: If the ball has a scale for another number of components.
        UnsupportedSpaceError: If a space is not supported.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> env = AdversaryVecEnv(TorchVecEnv(Pendulum(), 64), lambda y: -y[:, 1:2], Ball(0.1))
        >>> env.reset().shape
        (64, 3)
    """

    def __init__(self, venv: VecEnv, policy: Policy, ball: Ball) -> None:
        """Wrap the environment."""
        self._space = venv.observation_space
        n_y = size_of(self._space)
        ball.check_components(n_y)
        cube = spaces.Box(-1.0, 1.0, (n_y,), np.float32)
        super().__init__(venv, spaces.Box(-np.inf, np.inf, (n_y,), np.float32), cube)
        weight = first_weight(policy)
        self._like = torch.zeros(()) if weight is None else weight.detach().new_zeros(())
        self._policy, self._ball = policy, ball
        self._decide = Decision(venv.action_space)
        self._observation = self._like

    def reset(self) -> np.ndarray:
        """Start new episodes."""
        return self._seen(self.venv.reset())

    @torch.no_grad()
    def step_async(self, actions: np.ndarray) -> None:
        """Let the victim act on observations with these errors.

        Args:
            actions: Points of the cube, shape (E, n_y).
        """
        output = torch.as_tensor(actions).to(self._like).clamp(-1.0, 1.0)
        shown = perturbed(self._ball, self._observation, output)
        self.venv.step_async(self._decide(self._policy(shown)))

    def step_wait(self) -> VecEnvStepReturn:
        """Return true observations and the negative rewards of the victim."""
        raw, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                last = flatten_observation(self._space, info["terminal_observation"])
                info["terminal_observation"] = last.astype(np.float32)
        return self._seen(raw), -rewards, dones, infos

    def _seen(self, raw: Any) -> np.ndarray:
        """Keep the true observations and return them flat."""
        flat = flatten_observation(self._space, raw)
        self._observation = torch.from_numpy(flat).to(self._like)
        return flat.astype(np.float32)


@dataclass(frozen=True)
class AdversarySettings:
    """How an adversary is trained.

    Attributes:
        timesteps: Environment steps, of all copies together.
        n_envs: Copies of the environment; None for 128 of a plant, and 8 of a gymnasium environment.
        n_steps: Steps of every copy between two updates; None for about 4,096 of all copies together.
        minibatches: Per epoch.
        n_epochs: Per update.
        learning_rate: Of Adam, falling linearly to zero.
        discount: Per step.
        clip_range: Of PPO.
        ent_coef: Weight of the entropy.
        hidden: Widths of the hidden layers of the adversary and of its value function.
        seed: Of networks, environments and PPO.
    """

    timesteps: int = 400_000
    n_envs: int | None = None
    n_steps: int | None = None
    minibatches: int = 4
    n_epochs: int = 8
    learning_rate: float = 2e-3
    discount: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    hidden: tuple[int, ...] = (32, 32)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings that PPO does not check."""
        for name in ("timesteps", "minibatches", "n_epochs"):
            object.__setattr__(self, name, check_positive_int(name, getattr(self, name)))
        for name in ("n_envs", "n_steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_positive_int(name, getattr(self, name)))
        object.__setattr__(self, "seed", check_positive_int("seed", self.seed, minimum=0))
        for name in ("learning_rate", "clip_range"):
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))
        if check_positive("discount", self.discount) > 1.0:
            raise invalid("discount", "at most 1", self.discount, "Lower it.")


def train_adversary(
    policy: Any,
    env: Plant | str | Callable[[], gymnasium.Env[Any, Any]] | VecEnv,
    eps: float,
    *,
    norm: Norm = "l2",
    scale: Sequence[float] | None = None,
    settings: AdversarySettings | None = None,
    vec_env: VecEnv | None = None,
) -> LearnedAdversary:
    """Train an adversary against a policy: PPO on the negative reward, with the true observation (arXiv 2101.08452).

    Args:
        policy: As for `evaluate_env`; it does not change.
        env: A plant, which is copied as tensors and is much the fastest, an id, a function that makes an environment,
            or a vector environment of SB3.
        eps: Radius, in observation units over those of the scale; zero or greater.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        settings: How to train.
        vec_env: Environment whose `VecNormalize` feeds the model; None for `env` if it is one, else the model's own.

    Returns:
        The adversary with the deterministic actions it has learned, a perturbation.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> short = AdversarySettings(timesteps=1024, n_envs=32, n_steps=16)
        >>> train_adversary(lambda y: -y[:, 1:2], Pendulum(), 0.1, settings=short).norm
        'l2'
    """
    settings = AdversarySettings() if settings is None else settings
    if not isinstance(settings, AdversarySettings):
        raise invalid("settings", "AdversarySettings", type(settings).__name__, "Pass AdversarySettings().")
    ball = Ball(eps, norm, scale)
    victim = policy_of(policy, env if vec_env is None else vec_env, torch.float32)
    if isinstance(victim, (ActionMap, ExplicitMLP)):
        victim = victim.to(dtype=torch.float32)
    venv, own = _copies(env, settings)
    steps = settings.n_steps or max(1, 4_096 // venv.num_envs)
    game = VecNormalize(AdversaryVecEnv(venv, victim, ball), gamma=settings.discount)
    try:
        agent = PPO(
            "MlpPolicy",
            game,
            n_steps=steps,
            batch_size=max(2, steps * venv.num_envs // settings.minibatches),
            n_epochs=settings.n_epochs,
            learning_rate=lambda left: settings.learning_rate * left,
            gamma=settings.discount,
            clip_range=settings.clip_range,
            ent_coef=settings.ent_coef,
            policy_kwargs={"net_arch": {"pi": list(settings.hidden), "vf": list(settings.hidden)}},
            seed=settings.seed,
            device="cpu",
        )
        agent.learn(settings.timesteps)
        learned = action_map(agent.policy)
    finally:
        if own:
            venv.close()
    statistics = cast(RunningMeanStd, game.obs_rms)
    mean = torch.as_tensor(statistics.mean, dtype=torch.float64)
    std = torch.as_tensor(np.sqrt(statistics.var + game.epsilon), dtype=torch.float64)
    clip = torch.full_like(std, game.clip_obs)
    learned = replace(learned, normalization=Normalization(mean, std, clip))
    return LearnedAdversary(ball.eps, learned, ball.norm, ball.scale, int(agent.num_timesteps))


def _copies(env: Any, settings: AdversarySettings) -> tuple[VecEnv, bool]:
    """Copies with raw observations and rewards, and whether they were made here."""
    if isinstance(env, VecEnv):
        while isinstance(env, VecNormalize):
            env = env.venv
        return env, False
    if isinstance(env, Plant):
        return TorchVecEnv(env, settings.n_envs or 128), True
    if isinstance(env, str):
        name = env
        return DummyVecEnv([lambda: gymnasium.make(name)] * (settings.n_envs or 8)), True
    if callable(env) and not isinstance(env, gymnasium.Env):
        return DummyVecEnv([env] * (settings.n_envs or 8)), True
    fix = "Pass for example Pendulum() or 'Hopper-v5'."
    raise invalid(
        "env", "a plant, an id, a function that makes an environment, or a VecEnv", type(env).__name__, fix
    )
