"""Closed-loop simulation of a plant, a policy and a perturbation of what the policy sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustnn.closedloop.padded import padded
from robustnn.closedloop.perturb import Convergence, Loop, NoPerturbation, Perturbation, Policy
from robustnn.errors import NonFiniteError, check_finite, check_positive_int, check_shape, invalid

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["Record", "Trajectory", "rollout", "simulate"]

_PLANT_METHODS = ("initial", "transition", "observation", "reward", "terminal")
_PLANT_SIZES = ("n_x", "n_u", "n_y", "horizon")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A batch of closed-loop episodes; time is the first axis, `shape` = (E,) or (S, E) the next ones.

    Attributes:
        states: True states, shape (T + 1, *shape, n_x). A terminated episode stays in its terminal state.
        observations: True observations, shape (T, *shape, n_y).
        perturbed: Observations that the policy saw, shape (T, *shape, n_y).
        actions: What the plant received, shape (T, *shape, n_u).
        rewards: Shape (T, *shape); zero after termination.
        alive: Whether the episode was running when the step began, shape (T, *shape).
        convergence: How attacks converged; empty for anything else.
    """

    states: Tensor
    observations: Tensor
    perturbed: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor
    convergence: tuple[Convergence, ...] = ()

    @property
    def returns(self) -> Tensor:
        """Sum of the rewards of every episode, shape `shape`."""
        return self.rewards.sum(0)

    @property
    def lengths(self) -> Tensor:
        """Number of steps of every episode until it ended, shape `shape`."""
        return self.alive.sum(0)


@dataclass(eq=False)
class Record:
    """What `simulate` leaves behind, one list entry per step.

    Attributes:
        states: T + 1 tensors (*shape, n_x).
        observations: T tensors (*shape, n_y).
        perturbed: T tensors (*shape, n_y).
        actions: T tensors (*shape, n_u), as the plant received them.
        done: T + 1 tensors (*shape), bool.
    """

    states: list[Tensor]
    observations: list[Tensor]
    perturbed: list[Tensor]
    actions: list[Tensor]
    done: list[Tensor]

    def rewards(self, plant: Plant) -> Tensor:
        """Return all rewards, shape (T, *shape), in one call of the plant."""
        states, actions = torch.stack(self.states), torch.stack(self.actions)
        rewards = plant.reward(states[:-1], actions, states[1:])
        return rewards.masked_fill(torch.stack(self.done[:-1]), 0.0)


def simulate(
    plant: Plant,
    policy: Policy,
    state: Tensor,
    steps: int,
    perturb: Callable[[int, Tensor, Tensor], Tensor],
    done: Tensor | None = None,
    actuate: Callable[[int, Tensor], Tensor] | None = None,
) -> Record:
    """Advance the closed loop without any check; differentiable where gradients are enabled.

    Args:
        plant: The plant.
        policy: Maps observations (*shape, n_y) to actions (*shape, n_u).
        state: Shape (*shape, n_x).
        steps: Number of steps.
        perturb: Maps step, state and observation to what the policy sees.
        done: Episodes that have ended before, shape (*shape); None to ask the plant.
        actuate: Maps step and action to what the plant receives; None for the action itself.

    Returns:
        The record of the steps.
    """
    done = plant.terminal(state) if done is None else done
    record = Record([state], [], [], [], [done])
    for step in range(steps):
        observation = plant.observation(state)
        seen = perturb(step, state, observation)
        action = policy(seen)
        if actuate is not None:
            action = actuate(step, action)
        state = torch.where(done.unsqueeze(-1), state, plant.transition(state, action))
        done = done | plant.terminal(state)
        record.states.append(state)
        record.observations.append(observation)
        record.perturbed.append(seen)
        record.actions.append(action)
        record.done.append(done)
    return record


def rollout(
    plant: Plant,
    policy: Policy,
    state0: Tensor,
    *,
    steps: int | None = None,
    perturbation: Perturbation | None = None,
    seeds: Sequence[int] | None = None,
    differentiable: bool = False,
) -> Trajectory:
    r"""Simulate episodes of the closed loop $x_{t+1} = f(x_t, \pi(h(x_t) + \delta_t))$.

    Args:
        plant: The plant.
        policy: Maps observations (..., n_y) to actions (..., n_u). Networks (`ActionMap`, `ExplicitMLP`, and modules
            in eval mode) act on batches of whole blocks (`robustnn.closedloop.padded`) unless `differentiable`.
        state0: Start states, shape (E, n_x), or (S, E, n_x) for a stack of S policies.
        steps: Length of the episodes; None for the plant's horizon.
        perturbation: What happens to observations, actions and plant; None for nothing. Attacks know the nominal
            plant, the one given here.
        seeds: E episode seeds for the random parts of the perturbation; None for 0, 1, ..., E - 1.
        differentiable: Keep the graph from `state0` and the policy's weights to the trajectory. The
            perturbation of an attack is a constant in it.

    Returns:
        The trajectory.

    Raises:
        InvalidArgumentError: If an argument is of the wrong kind.
        ShapeError: If state0 or the policy's actions have the wrong shape.
        NonFiniteError: If a start state, an action or a state is NaN or infinite.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> trajectory = rollout(Pendulum(), lambda y: -y[..., 1:2], torch.zeros(8, 2), steps=5)
        >>> trajectory.states.shape
        torch.Size([6, 8, 2])
    """
    check_plant(plant)
    if not callable(policy):
        raise invalid("policy", "a callable", type(policy).__name__, "Pass a map of observations.")
    perturbation = NoPerturbation() if perturbation is None else perturbation
    if not isinstance(perturbation, Perturbation):
        fix = "Pass a perturbation of robustnn.closedloop."
        raise invalid("perturbation", "a Perturbation", type(perturbation).__name__, fix)
    steps = check_positive_int("steps", plant.horizon if steps is None else steps)
    _check_start(plant, state0)
    shape = tuple(state0.shape[:-1])
    seeds = tuple(range(shape[-1])) if seeds is None else tuple(seeds)
    if len(seeds) != shape[-1]:
        fix = "Pass one seed per episode."
        raise invalid("seeds", f"{shape[-1]} seeds, one per episode of state0", len(seeds), fix)
    acting = policy if differentiable else padded(policy)
    with torch.set_grad_enabled(differentiable):
        _check_policy(plant, acting, state0)
        loop = Loop(plant, policy, steps, shape, seeds, state0.dtype, state0.device)
        process = perturbation.start(loop)
        simulated = perturbation.plant(plant)
        record = simulate(simulated, acting, state0, steps, process, actuate=process.actuate)
        trajectory = Trajectory(
            torch.stack(record.states),
            torch.stack(record.observations),
            torch.stack(record.perturbed),
            torch.stack(record.actions),
            record.rewards(simulated),
            ~torch.stack(record.done[:-1]),
            process.convergence(),
        )
    _check_trajectory(trajectory)
    return trajectory


def check_plant(plant: object) -> None:
    """Raise unless `plant` has the attributes of `robustnn.envs.plant.Plant`.

    Args:
        plant: Anything.

    Raises:
        InvalidArgumentError: If an attribute is missing or a method cannot be called.
    """
    missing = [name for name in _PLANT_METHODS if not callable(getattr(plant, name, None))]
    missing += [name for name in _PLANT_SIZES if not hasattr(plant, name)]
    if missing or isinstance(plant, type):
        got = f"the class {plant!r}" if isinstance(plant, type) else f"no {', '.join(missing)} in {plant!r}"
        raise invalid("plant", "a robustnn.envs.plant.Plant", got, "Pass an instance, such as Pendulum().")


def _check_start(plant: Plant, state0: Tensor) -> None:
    if not isinstance(state0, Tensor) or not state0.is_floating_point():
        got = state0.dtype if isinstance(state0, Tensor) else type(state0).__name__
        raise invalid("state0", "a floating-point tensor", got, "Convert it with torch.as_tensor.")
    ok = state0.ndim in (2, 3) and state0.shape[-1] == plant.n_x
    check_shape("state0", state0, f"(E, {plant.n_x}) or (S, E, {plant.n_x})", ok)
    check_finite("state0", state0)


def _check_policy(plant: Plant, policy: Policy, state0: Tensor) -> None:
    """Ask the policy once, so that wrong shapes are told before the simulation."""
    with torch.no_grad():
        action = policy(plant.observation(state0))
    if not isinstance(action, Tensor):
        raise invalid("policy", "a tensor of actions", type(action).__name__, "Return a torch.Tensor.")
    expected = (*state0.shape[:-1], plant.n_u)
    check_shape(
        "policy(observation)",
        action,
        str(expected),
        tuple(action.shape) == expected,
        f"The policy must map (..., {plant.n_y}) to (..., {plant.n_u}).",
    )


def _check_trajectory(trajectory: Trajectory) -> None:
    """Name the first step at which actions, states or rewards are not finite."""
    parts = (trajectory.actions, trajectory.states, trajectory.rewards)
    for name, values in zip(("policy(observation)", "states", "rewards"), parts, strict=True):
        finite = values.detach().isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            step = int((~finite).nonzero()[0])
            raise NonFiniteError(
                f"{name}: expected finite entries only, got NaN or infinity at step {step}. "
                "Look for non-finite weights, a wrong normalisation, or an unstable plant."
            )
