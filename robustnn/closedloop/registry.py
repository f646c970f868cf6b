"""All perturbations by name, faults and attacks among them: one registry and one format for configurations.

A name stands for a class or a function that returns a `Perturbation`. Plain values of its parameters, as `describe`
returns them and YAML or JSON hold them, make a configuration: `{"name": "mad", "eps": 0.1, "norm": "linf"}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from robustnn.closedloop.critic import CriticAttack
from robustnn.closedloop.faults import FAULTS, FaultSet, fault_from_config
from robustnn.closedloop.learned import learned_adversary, robust_sarsa, snooping_mad
from robustnn.closedloop.mad import MaximalActionDifference
from robustnn.closedloop.margin import MarginAttack
from robustnn.closedloop.named import built, parameters_of
from robustnn.closedloop.perturb import GaussianNoise, NoPerturbation, Perturbation, UniformBall
from robustnn.closedloop.trajectory import TrajectoryAttack
from robustnn.errors import invalid

__all__ = ["ATTACKS", "PERTURBATIONS", "perturbation_from_config", "register_perturbation", "size_parameter"]


def _faults(
    observation: list[Mapping[str, Any]] | None = None,
    action: list[Mapping[str, Any]] | None = None,
    parameters: Mapping[str, float] | None = None,
) -> FaultSet:
    """Return the faults of sensors and actuators that plain values describe."""
    return FaultSet(
        tuple(map(fault_from_config, observation or ())),
        tuple(map(fault_from_config, action or ())),
        dict(parameters or {}),
    )


# `Delay` is the fault "delay" with its first fill, so that one name has one meaning.
PERTURBATIONS: dict[str, Callable[..., Perturbation]] = {
    **{kind.name: kind for kind in (NoPerturbation, GaussianNoise, UniformBall)},
    **FAULTS,
    FaultSet.name: _faults,
}
"""What builds each perturbation, by name; extended by `register_perturbation`."""

ATTACKS: dict[str, Callable[..., Perturbation]] = {}
"""Those of `PERTURBATIONS` that look for the worst error of a size `eps`."""


def register_perturbation(
    name: str, kind: Callable[..., Perturbation], *, attack: bool = False, replace: bool = False
) -> None:
    """Give a kind of perturbation a name, for configurations and the command line.

    Args:
        name: Of letters, digits, "_" and "-".
        kind: Class or function whose parameters can be given as plain values, but for those that are parts of
            `perturbation_from_config`.
        attack: Whether it looks for the worst error of a size, its parameter `eps`.
        replace: Whether the name may be taken already.

    Raises:
        InvalidArgumentError: If the name is no such word or taken, or an attack has no parameter `eps`.

    Example:
        >>> register_perturbation("weak-mad", lambda eps: MaximalActionDifference(eps, iterations=5), attack=True)
        >>> perturbation_from_config({"name": "weak-mad", "eps": 0.1}).iterations
        5
        >>> del PERTURBATIONS["weak-mad"], ATTACKS["weak-mad"]
    """
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise invalid("name", "letters, digits, _ and -", repr(name), "Choose another name.")
    if name in PERTURBATIONS and not replace:
        raise invalid("name", "a new one", repr(name), "Choose another name, or pass replace=True.")
    if attack and "eps" not in parameters_of(kind):
        raise invalid("kind", "a parameter eps of an attack", list(parameters_of(kind)), "Call its size eps.")
    PERTURBATIONS[name] = kind
    if attack:
        ATTACKS[name] = kind


for _kind in (MaximalActionDifference, TrajectoryAttack, CriticAttack, MarginAttack):
    register_perturbation(_kind.name, _kind, attack=True)
for _setting in (TrajectoryAttack.paper, TrajectoryAttack.strong, TrajectoryAttack.strongest):
    register_perturbation(f"trajectory-{_setting.__name__}", _setting, attack=True)

register_perturbation("robust-sarsa", robust_sarsa, attack=True)
register_perturbation("snooping-mad", snooping_mad, attack=True)
register_perturbation("learned-adversary", learned_adversary, attack=True)


def perturbation_from_config(
    config: Mapping[str, Any], parts: Mapping[str, Callable[[], Any]] | None = None
) -> Perturbation:
    """Build a perturbation from plain values, as `describe` returns them and YAML or JSON hold them.

    Args:
        config: `{"name": ..., parameter: value, ...}`, with a name of `PERTURBATIONS`.
        parts: What plain values cannot hold, as functions without arguments: "critic" (a `Critic` of the agent),
            "policy", "plant" and "env" (a plant or an id), for the attacks that have such a parameter. Those with a
            "policy" learn something of it, which takes a while.

    Returns:
        The perturbation.

    Raises:
        InvalidArgumentError: If the name or a parameter is unknown, or a value not acceptable.

    Example:
        >>> perturbation_from_config({"name": "uniform", "eps": 0.1, "norm": "linf"})
        UniformBall(eps=0.1, norm='linf', scale=None)
    """
    return built("perturbation", PERTURBATIONS, config, parts)


def size_parameter(name: str) -> str | None:
    """Return the parameter that tells the size of a perturbation: `eps`, or else the first one without a default.

    Args:
        name: A name of `PERTURBATIONS`.

    Returns:
        Its name, or None if there is none.
    """
    known = parameters_of(PERTURBATIONS[name])
    if "eps" in known:
        return "eps"
    return next((key for key, p in known.items() if p.default is p.empty), None)
