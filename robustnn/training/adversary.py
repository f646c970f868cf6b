r"""An adversary between the sensors and the agent while it trains.

$$o_t = h(x_t) + \delta_t, \qquad \|\delta_t / d\| \le \epsilon$$

The agent sees o only: it acts on o, learns from o, and its buffers hold o; the plant goes on from its true state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.vec_env import TorchVecEnv
from robustnn.errors import (
    RobustNNError,
    UnsupportedSpaceError,
    check_nonnegative,
    check_positive,
    check_positive_int,
    invalid,
)
from robustnn.policies.action_map import ActionMap
from robustnn.training.attackers import (
    Attacker,
    Draws,
    GaussianErrors,
    MadErrors,
    PlantErrors,
    Scene,
    UniformErrors,
)
from robustnn.training.policy_view import PolicyView

__all__ = ["ObservationAdversary"]

Array = NDArray[Any]
_METHODS = ("uniform", "gaussian", "mad", "plant")


class ObservationAdversary(VecEnvWrapper):
    r"""Perturbs the observations that an agent is given in its rollouts, whatever the algorithm.

    =============  ==================================================================================================
    "uniform"      uniform in the ball, independent over steps
    "gaussian"     of root mean square length eps (l2) or standard deviation eps (linf), not confined to the ball
    "mad"          the error that changes the mean action most, by projected gradient ascent (Zhang et al., NeurIPS
                   2020), on the policy as it is at this step
    "plant"        errors that lower the reward of the next `horizon` steps, by gradients through plant and policy;
                   needs a `TorchVecEnv`
    =============  ==================================================================================================

    The last two need the model: `env.attach(model)` once it is built or loaded. They attack its mean action, while
    the agent explores.

    Observations are raw: put `VecNormalize` outside. Its statistics are those of perturbed observations, and the
    attack is one through the statistics of the step before. A `terminal_observation` is perturbed like any other,
    because an agent that goes on after a time limit would be given such a one: value estimates are those of
    perturbed observations throughout. The true one is `infos[i]["true_terminal_observation"]`. Perturbed observations
    may leave the observation space. Rewards and the plant are untouched, and so are files of the model.

    Args:
        venv: Vector environment with observations that are a vector; no `VecNormalize` or `VecFrameStack` inside.
        eps: Radius, in observation units over those of the scale; zero or greater.
        method: See the table.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        episodes: Share of the episodes that are attacked, 0 to 1.
        steps: Share of the steps of such episodes that are attacked, 0 to 1, chosen independently.
        ramp: Numbers (a, b) of environment steps, of all copies together: eps grows linearly from zero at a to its
            value at b. None for the whole eps at once.
        iterations: Gradient steps per step ("mad") or plan ("plant"); None for 10 or 5.
        step_fraction: Length of a gradient step over eps.
        restarts: Random starts of "mad"; the best is used.
        horizon: Steps that "plant" looks ahead.
        replan: Steps after which "plant" plans anew.
        seed: Seed of the errors until `seed()` brings another one.

    Raises:
        UnsupportedSpaceError: If an observation is not a vector of floating-point numbers.
        InvalidArgumentError: If an argument is not acceptable.
        ShapeError: If the scale has the wrong number of entries.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> env = ObservationAdversary(make_vec_env("Pendulum-v1"), 0.1, "mad", scale=(1.0, 1.0, 8.0))
        >>> model = PPO("MlpPolicy", env)  # doctest: +SKIP
        >>> env.attach(model)  # doctest: +SKIP
        >>> model.learn(10_000)  # doctest: +SKIP
    """

    # The bound of a policy speaks of the observations that it returns.
    adds_errors: ClassVar[bool] = True

    def __init__(
        self,
        venv: VecEnv,
        eps: float,
        method: Literal["uniform", "gaussian", "mad", "plant"] = "mad",
        *,
        norm: Norm = "l2",
        scale: Sequence[float] | None = None,
        episodes: float = 1.0,
        steps: float = 1.0,
        ramp: tuple[float, float] | None = None,
        iterations: int | None = None,
        step_fraction: float = 0.25,
        restarts: int = 2,
        horizon: int = 10,
        replan: int = 2,
        seed: int = 0,
    ) -> None:
        """Check the arguments; nothing is perturbed before the first reset."""
        super().__init__(venv)
        if method not in _METHODS:
            raise invalid("method", f"one of {', '.join(_METHODS)}", repr(method), "Choose one of these.")
        self.method = method
        self._plant_env = _check_venv(venv, method)
        self._ball = Ball(eps, norm, scale)
        self._ball.check_components(self._width)
        self._shares = {"episodes": _share("episodes", episodes), "steps": _share("steps", steps)}
        self._ramp = None if ramp is None else _check_ramp(ramp)
        fraction = check_positive("step_fraction", step_fraction)
        count = check_positive_int(
            "iterations", {"plant": 5}.get(method, 10) if iterations is None else iterations
        )
        horizon, replan = check_positive_int("horizon", horizon), check_positive_int("replan", replan)
        if replan > horizon:
            raise invalid("replan", f"at most horizon = {horizon}", replan, "Lower it.")
        attackers: dict[str, Attacker] = {
            "uniform": UniformErrors(),
            "gaussian": GaussianErrors(),
            "mad": MadErrors(count, fraction, check_positive_int("restarts", restarts)),
            "plant": PlantErrors(horizon, replan, count, fraction),
        }
        self._attacker = attackers[method]
        self._view: PolicyView | None = None
        self._random = np.random.default_rng(check_positive_int("seed", seed, minimum=0))
        self._count = 0
        self._attacked = np.zeros(self.num_envs, dtype=bool)
        self._pending: Array | None = None
        self._true: Array | None = None

    @property
    def _width(self) -> int:
        return int(np.prod(self.observation_space.shape or (1,)))

    @property
    def eps(self) -> float:
        """The present radius, after the ramp."""
        if self._ramp is None:
            return self._ball.eps
        begin, end = self._ramp
        return self._ball.eps * min(1.0, max(0.0, (self._count - begin) / (end - begin)))

    def set_eps(self, eps: float) -> None:
        """Change the radius, in observation units over those of the scale; a ramp still applies."""
        self._ball = Ball(eps, self._ball.norm, self._ball.scale)

    @property
    def true_observations(self) -> Array:
        """A copy of the last observations before the perturbation, shape (num_envs, n_y)."""
        if self._true is None:
            raise RobustNNError("true_observations: there are none yet. Call reset() first.")
        return self._true.copy()

    def attach(self, model: Any, vec_env: VecEnv | None = None) -> None:
        """Name the model whose policy is attacked; needed by "mad" and "plant" before the first reset.

        Args:
            model: The model; its present policy is looked up at every step.
            vec_env: The outermost vector environment around this wrapper; None for that of the model. For an
                evaluation environment pass it.

        Raises:
            InvalidArgumentError: If this wrapper does not feed the model, or its policy is not supported.
        """
        self._view = PolicyView(model, self, vec_env)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the errors, and the environments."""
        self._random = np.random.default_rng(None if seed is None else [seed, 1])
        return self.venv.seed(seed)

    def reset(self) -> Any:
        """Start new episodes and return their first observations, perturbed."""
        observation = np.asarray(self.venv.reset())
        everyone = np.ones(self.num_envs, dtype=bool)
        self._choose_episodes(everyone)
        return self._observe(observation, everyone)

    def step_async(self, actions: Array) -> None:
        """Pass the actions on."""
        self._pending = np.array(actions) if self._plant_env is not None else None
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Return perturbed observations, and rewards, ends and infos of the environments."""
        base = self._plant_env
        before = None if base is None else base.state
        observation, rewards, dones, infos = self.venv.step_wait()
        infos = list(infos)  # SubprocVecEnv has a tuple
        self._count += self.num_envs
        ended = np.asarray(
            [k for k in np.flatnonzero(dones) if "terminal_observation" in infos[k]], dtype=int
        )
        if ended.size:
            last = np.stack([infos[k]["terminal_observation"] for k in ended])
            state = None
            if base is not None and before is not None and self._pending is not None:
                action = torch.as_tensor(self._pending[ended], dtype=base.dtype, device=base.device)
                with torch.no_grad():
                    state = base.plant.transition(before[torch.from_numpy(ended).to(base.device)], action)
            perturbed = self._perturb(last, self._attacked[ended], state, None)
            for k, true, seen in zip(ended.tolist(), last, perturbed, strict=True):
                infos[k] = {**infos[k], "terminal_observation": seen, "true_terminal_observation": true}
        dones = np.asarray(dones, dtype=bool)
        self._choose_episodes(dones)
        return self._observe(np.asarray(observation), dones), rewards, dones, infos

    def _choose_episodes(self, fresh: NDArray[np.bool_]) -> None:
        draws = self._random.random(self.num_envs) < self._shares["episodes"]
        self._attacked = np.where(fresh, draws, self._attacked)

    def _observe(self, observation: Array, fresh: NDArray[np.bool_]) -> Array:
        self._true = observation
        state = None if self._plant_env is None else self._plant_env.state
        return self._perturb(observation, self._attacked, state, fresh)

    def _perturb(
        self,
        observation: Array,
        attacked: NDArray[np.bool_],
        state: torch.Tensor | None,
        fresh: NDArray[np.bool_] | None,
    ) -> Array:
        """Return perturbed copies of observations (E, n_y)."""
        attacked = attacked & (self._random.random(len(attacked)) < self._shares["steps"])
        ball = Ball(self.eps, self._ball.norm, self._ball.scale)
        if ball.eps == 0.0 or self._shares["episodes"] == 0.0:
            return observation.copy()
        device, dtype = ("cpu", torch.float64) if state is None else (state.device, state.dtype)
        scene = Scene(
            torch.as_tensor(observation).flatten(1).to(device, dtype),
            ball,
            Draws(self._random, len(observation), dtype, device),
            lambda: self._policy(device, dtype),
            None if self._plant_env is None else self._plant_env.plant,
            state,
            None if fresh is None else torch.from_numpy(fresh).to(device),
        )
        error = ball.to_observation(self._attacker(scene).double().cpu()).numpy()
        error = np.where(attacked[:, None], error, 0.0).reshape(observation.shape)
        result: Array = (observation + error).astype(observation.dtype)
        return result

    def _policy(self, device: torch.device | str, dtype: torch.dtype) -> ActionMap:
        if self._view is None:
            raise RobustNNError(
                f"model: method {self.method!r} attacks a policy, and none is attached. Call "
                "adversary.attach(model) after the model is built."
            )
        return self._view(device, dtype)


def _check_venv(venv: VecEnv, method: str) -> TorchVecEnv | None:
    """Refuse what the wrapper cannot stand around; return the environment of the plant where it is needed."""
    space = venv.observation_space
    if (
        not isinstance(space, spaces.Box)
        or len(space.shape) != 1
        or not np.issubdtype(space.dtype, np.floating)
    ):
        raise UnsupportedSpaceError(
            f"observation_space: expected a Box of floating-point vectors, got {space}. Flatten the observation in "
            "the environment."
        )
    inside: VecEnv = venv
    while isinstance(inside, VecEnvWrapper):
        if isinstance(inside, (VecNormalize, VecFrameStack)):
            raise invalid(
                "venv", "raw observations", f"a {type(inside).__name__}",
                f"Put it outside: {type(inside).__name__}(ObservationAdversary(venv, ...)).",
            )  # fmt: skip
        inside = inside.venv
    if method != "plant":
        return None
    if not isinstance(inside, TorchVecEnv):
        raise invalid(
            "venv", "a TorchVecEnv for method 'plant'", type(inside).__name__,
            "Use method='mad', which needs no model of the plant.",
        )  # fmt: skip
    return inside


def _share(name: str, value: Any) -> float:
    share = check_nonnegative(name, value)
    if share > 1.0:
        raise invalid(name, "a share from 0 to 1", value, "Give the fraction that is attacked.")
    return share


def _check_ramp(ramp: tuple[float, float]) -> tuple[float, float]:
    if len(ramp) != 2 or not 0.0 <= ramp[0] < ramp[1] < float("inf"):
        raise invalid("ramp", "numbers of steps with 0 <= a < b", ramp, "Swap or correct them.")
    return float(ramp[0]), float(ramp[1])
