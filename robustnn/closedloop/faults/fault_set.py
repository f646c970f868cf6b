"""Several faults of one loop: on the observations, on the actions, and in the parameters of the plant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from robustnn.closedloop.faults.channel import Channel, Fault, FaultProcess
from robustnn.closedloop.faults.registry import fault_from_config
from robustnn.closedloop.perturb import Loop, Perturbation, Process
from robustnn.errors import check_finite, invalid

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["FaultSet", "start_faults", "with_factors"]


@dataclasses.dataclass(frozen=True)
class FaultSet(Perturbation):
    """Faults of sensors and actuators, each list applied in its order, and a plant that is not the nominal one.

    Args:
        observation: Faults of the observations.
        action: Faults of the actions, between policy and plant.
        parameters: Factors of the plant's parameters by name, for example `{"mass": 1.2}`.

    Raises:
        InvalidArgumentError: If an entry is no fault, or a factor not finite.

    Example:
        >>> FaultSet(observation=[fault_from_config({"name": "delay", "steps": 1})]).describe()["action"]
        []
    """

    observation: Sequence[Fault] = ()
    action: Sequence[Fault] = ()
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    name: ClassVar[str] = "faults"

    def __post_init__(self) -> None:
        """Check the arguments."""
        for role in ("observation", "action"):
            faults = getattr(self, role)
            wrong = [fault for fault in faults if not isinstance(fault, Fault)]
            if wrong:
                raise invalid(
                    role,
                    "faults of robustnn.closedloop.faults",
                    repr(wrong[0]),
                    "Use fault_from_config for plain values.",
                )
            object.__setattr__(self, role, tuple(faults))
        for key, factor in self.parameters.items():
            check_finite(f"parameters[{key!r}]", factor)
        object.__setattr__(
            self, "parameters", {key: float(factor) for key, factor in self.parameters.items()}
        )

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""
        channel = Channel(loop.plant.n_y, loop.shape, loop.seeds, 0, loop.dtype, loop.device)
        on_observation = start_faults(self.observation, channel)
        channel = dataclasses.replace(channel, width=loop.plant.n_u, index=len(self.observation))
        return _Both(on_observation, start_faults(self.action, channel))

    def plant(self, plant: Plant) -> Plant:
        """Return the plant with its parameters multiplied by the factors."""
        return with_factors(plant, self.parameters) if self.parameters else plant

    def describe(self) -> dict[str, Any]:
        """Return everything as plain JSON values, the format of `from_config`."""
        return {
            "name": self.name,
            "observation": [fault.describe() for fault in self.observation],
            "action": [fault.describe() for fault in self.action],
            "parameters": dict(self.parameters),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FaultSet:
        """Build a set from plain values, as `describe` returns them and YAML or JSON hold them.

        Args:
            config: `{"observation": [...], "action": [...], "parameters": {...}}`, each optional.

        Returns:
            The set.

        Raises:
            InvalidArgumentError: If a key is unknown or a fault not acceptable.
        """
        known = {"name", "observation", "action", "parameters"}
        if (
            not isinstance(config, Mapping)
            or not set(config) <= known
            or config.get("name", cls.name) != cls.name
        ):
            got = sorted(config) if isinstance(config, Mapping) else type(config).__name__
            raise invalid("faults", f"a mapping with keys of {sorted(known)}", got, "Correct the keys.")
        return cls(
            tuple(fault_from_config(fault) for fault in config.get("observation", ())),
            tuple(fault_from_config(fault) for fault in config.get("action", ())),
            dict(config.get("parameters", {})),
        )


def start_faults(faults: Sequence[Fault], channel: Channel) -> tuple[FaultProcess, ...]:
    """Start several faults on one signal, with independent random numbers."""
    return tuple(
        fault.on(dataclasses.replace(channel, index=channel.index + k)) for k, fault in enumerate(faults)
    )


def with_factors(plant: Plant, factors: Mapping[str, float]) -> Plant:
    """Return a plant with some parameters multiplied.

    Args:
        plant: A frozen dataclass of numbers.
        factors: Factors by the name of the parameter.

    Returns:
        The other plant.

    Raises:
        InvalidArgumentError: If the plant has no such parameter, or refuses its value.
    """
    names = [field.name for field in dataclasses.fields(plant)]  # type: ignore[arg-type]
    unknown = sorted(set(factors) - set(names))
    if unknown:
        raise invalid("parameters", f"names of {names}", unknown, "Correct the names.")
    values = {key: getattr(plant, key) * factor for key, factor in factors.items()}
    try:
        return dataclasses.replace(plant, **values)  # type: ignore[type-var]
    except ValueError as error:
        raise invalid("parameters", "values that the plant accepts", values, str(error)) from error


class _Both(Process):
    def __init__(self, observation: tuple[FaultProcess, ...], action: tuple[FaultProcess, ...]) -> None:
        self._observation, self._action = observation, action

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        for fault in self._observation:
            observation = fault(observation)
        return observation

    def actuate(self, step: int, action: Tensor) -> Tensor:
        for fault in self._action:
            action = fault(action)
        return action
