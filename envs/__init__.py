"""Plants written once for numpy and torch, and their gymnasium environments.

======================================  =====================================================================
id                                      plant
======================================  =====================================================================
"robustnn/PendulumSwingUp-v0"           `Pendulum`: rod with a weak motor
"robustnn/CartPoleBalance-v0"           `CartPole`: pole on a cart, near upright
"robustnn/CartPoleSwingUp-v0"           `CartPoleSwingUp`: the same, from hanging
"robustnn/PlanarQuadrotor-v0"           `PlanarQuadrotor`: two rotors in a vertical plane
"robustnn/TwoLinkArm-v0"                `TwoLinkArm`: robot arm with two joints
"robustnn/SpringChain-v0"               `SpringChain`: n masses, linear
"robustnn/VanDerPol-v0"                 `VanDerPol`: self-excited oscillator
"robustnn/DoubleIntegrator-v0"          `DoubleIntegrator`: mass with a limited force
======================================  =====================================================================

`DotImageEnv`, a small task of images, is made by its constructor.

The qualified form, `"robustnn.envs:robustnn/PendulumSwingUp-v0"`, makes gymnasium import this module first and so also
works in worker processes.
"""

from __future__ import annotations

import gymnasium

from robustnn.envs.cart_pole import CartPole as CartPole
from robustnn.envs.cart_pole import CartPoleBalanceEnv as CartPoleBalanceEnv
from robustnn.envs.cart_pole import CartPoleSwingUp as CartPoleSwingUp
from robustnn.envs.cart_pole import CartPoleSwingUpEnv as CartPoleSwingUpEnv
from robustnn.envs.dot_image import DotImageEnv as DotImageEnv
from robustnn.envs.double_integrator import DoubleIntegrator as DoubleIntegrator
from robustnn.envs.double_integrator import DoubleIntegratorEnv as DoubleIntegratorEnv
from robustnn.envs.gym_env import PlantEnv as PlantEnv
from robustnn.envs.pendulum import Pendulum as Pendulum
from robustnn.envs.pendulum import PendulumSwingUpEnv as PendulumSwingUpEnv
from robustnn.envs.plant import Plant as Plant
from robustnn.envs.quadrotor import PlanarQuadrotor as PlanarQuadrotor
from robustnn.envs.quadrotor import PlanarQuadrotorEnv as PlanarQuadrotorEnv
from robustnn.envs.spring_chain import SpringChain as SpringChain
from robustnn.envs.spring_chain import SpringChainEnv as SpringChainEnv
from robustnn.envs.two_link_arm import TwoLinkArm as TwoLinkArm
from robustnn.envs.two_link_arm import TwoLinkArmEnv as TwoLinkArmEnv
from robustnn.envs.van_der_pol import VanDerPol as VanDerPol
from robustnn.envs.van_der_pol import VanDerPolEnv as VanDerPolEnv

_ENTRY_POINTS = {
    "robustnn/CartPoleBalance-v0": "robustnn.envs.cart_pole:CartPoleBalanceEnv",
    "robustnn/CartPoleSwingUp-v0": "robustnn.envs.cart_pole:CartPoleSwingUpEnv",
    "robustnn/DoubleIntegrator-v0": "robustnn.envs.double_integrator:DoubleIntegratorEnv",
    "robustnn/PendulumSwingUp-v0": "robustnn.envs.pendulum:PendulumSwingUpEnv",
    "robustnn/PlanarQuadrotor-v0": "robustnn.envs.quadrotor:PlanarQuadrotorEnv",
    "robustnn/SpringChain-v0": "robustnn.envs.spring_chain:SpringChainEnv",
    "robustnn/TwoLinkArm-v0": "robustnn.envs.two_link_arm:TwoLinkArmEnv",
    "robustnn/VanDerPol-v0": "robustnn.envs.van_der_pol:VanDerPolEnv",
}


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
