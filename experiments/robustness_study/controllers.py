"""LQG and H-infinity controllers beside the policies: near the upright equilibrium, and with an energy swing-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.robustness_study.config import Config, Method
from experiments.robustness_study.measure import plant_of, problem_of, stacked
from robustnn.closedloop import (
    ControlledPlant,
    LinearController,
    NoPerturbation,
    Perturbation,
    SwitchedController,
    TrajectoryAttack,
    evaluate,
    hinf_controller,
    loop_gain,
    lqg,
    wire,
)
from robustnn.closedloop.controlled import DynamicController

# The H-infinity controller has no place behind the swing-up: it does not survive the hand-over.
CONTROLLERS = {"lqg": "LQG", "hinf": "H∞, 2 % above the optimum"}
# Start of the episodes near the upright, rad and rad/s, and their length in steps.
START, STEPS = 0.1, 100
UPRIGHT_EPS = (0.1, 0.2)
# Gain of the energy law, per (J rad/s); the rod is handed over within an angle, rad, and near the line of falling
# back to the upright, angle = -0.26 s times speed.
_PUMP, _ANGLE, _SLOPE, _BAND = 2.0, 0.4, 0.26, 0.25
# Disturbances of the state, rad and rad/s, for the design of the controller behind the swing-up.
_PROCESS = (1.0, 10.0)


def compared(config: Config) -> list[Method]:
    """Return the methods that stand beside linear controllers: recipe, twins, plain MLP, and the LBDN alone."""
    return [
        config.methods[k] for k in (config.recipe, *config.twins, config.controls[0], config.controls[-1])
    ]


def linear_controller(
    config: Config, name: str, process: tuple[float, ...] | None = None
) -> LinearController:
    """Return a controller of `CONTROLLERS` for the plant linearised at the equilibrium."""
    problem = problem_of(config, process)
    return lqg(problem) if name == "lqg" else hinf_controller(problem, margin=0.02).controller


def gains(config: Config) -> dict[str, float]:
    """Gains from the sensor error to the cost of the linear controllers in the linear loop."""
    problem = problem_of(config)
    return {name: loop_gain(problem, linear_controller(config, name)) for name in CONTROLLERS}


def near_plant(config: Config) -> Any:
    """Return the plant with episodes that start near the upright."""
    return replace(plant_of(config), max_start_angle=START, max_start_speed=START, horizon=STEPS)


def policy_near_upright(config: Config, folder: Path, method: Method, eps: float) -> dict[str, Any]:
    """Evaluate the policies of a method near the upright under the trajectory attack.

    Returns:
        JSON values: returns (seeds x episodes).
    """
    return _returns(config, stacked(config, folder, method), near_plant(config), eps)


def controller_near_upright(config: Config, name: str, eps: float) -> dict[str, Any]:
    """As `policy_near_upright`, for a linear controller."""
    return _returns(config, wire, ControlledPlant(near_plant(config), linear_controller(config, name)), eps)


def controller_swing_up(config: Config, eps: float) -> dict[str, Any]:
    """Evaluate the LQG controller behind an energy swing-up on the whole task."""
    return _returns(config, wire, ControlledPlant(plant_of(config), swing_up(config)), eps)


def swing_up(config: Config) -> SwitchedController:
    """Return an energy law that hands over to an LQG controller near the upright."""
    plant = plant_of(config)

    def pump(observation: Tensor) -> Tensor:
        cosine, omega = observation[..., :1], observation[..., 2:]
        missing = 0.5 * plant.inertia * omega**2 + plant.gravity_torque * (cosine - 1.0) - 0.5
        return (-_PUMP * missing * omega).clip(-1.0, 1.0)

    def near(observation: Tensor) -> Tensor:
        angle = torch.atan2(observation[..., 1], observation[..., 0])
        return (angle.abs() < _ANGLE) & ((angle + _SLOPE * observation[..., 2]).abs() < _BAND)

    controller: DynamicController = linear_controller(config, "lqg", _PROCESS)
    return SwitchedController(controller, pump, near)


def _returns(config: Config, policy: Callable[..., Any], plant: Any, eps: float) -> dict[str, Any]:
    attack: Perturbation = NoPerturbation() if eps == 0.0 else TrajectoryAttack.strongest(eps)
    dtype = torch.float64 if policy is wire else torch.float32
    result = evaluate(policy, plant, attack, episodes=config.episodes, dtype=dtype)
    return {"returns": np.atleast_2d(np.round(result.returns, 3)).tolist()}
