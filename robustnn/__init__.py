"""Lipschitz-bounded networks for policies, dynamics models and robust closed loops."""

from robustnn.envs import register as _register_environments
from robustnn.errors import CertificateError as CertificateError
from robustnn.errors import CheckpointError as CheckpointError
from robustnn.errors import InvalidArgumentError as InvalidArgumentError
from robustnn.errors import NonFiniteError as NonFiniteError
from robustnn.errors import RobustNNError as RobustNNError
from robustnn.errors import ShapeError as ShapeError
from robustnn.errors import UnsupportedSpaceError as UnsupportedSpaceError
from robustnn.nn import LBDN as LBDN
from robustnn.nn import MLP as MLP
from robustnn.nn import ConvLBDN as ConvLBDN
from robustnn.nn import SandwichConv2d as SandwichConv2d
from robustnn.nn import SandwichLayer as SandwichLayer
from robustnn.params import ExplicitMLP as ExplicitMLP

__version__ = "0.1.0"

_register_environments()
