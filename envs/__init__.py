"""Plants written once for numpy and torch, and their gymnasium environments.

Registered id: `"robustnn/PendulumSwingUp-v0"`. The qualified form,
`"robustnn.envs:robustnn/PendulumSwingUp-v0"`, makes gymnasium import this module first and so also works
in worker processes.
"""

from __future__ import annotations

import gymnasium

from robustnn.envs.gym_env import PlantEnv as PlantEnv
from robustnn.envs.pendulum import Pendulum as Pendulum
from robustnn.envs.pendulum import PendulumSwingUpEnv as PendulumSwingUpEnv
from robustnn.envs.plant import Plant as Plant

__all__ = ["Pendulum", "PendulumSwingUpEnv", "Plant", "PlantEnv", "register"]

_ENTRY_POINTS = {"robustnn/PendulumSwingUp-v0": "robustnn.envs.pendulum:PendulumSwingUpEnv"}


def register() -> None:
    """Register every environment with gymnasium; calling it again changes nothing.

    Example:
        >>> register()
        >>> env = gymnasium.make("robustnn/PendulumSwingUp-v0")
    """
    for env_id, entry_point in _ENTRY_POINTS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(id=env_id, entry_point=entry_point)


register()
