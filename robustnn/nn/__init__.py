"""Networks: the sandwich layer, the LBDN, and the unbounded MLP under the same interface."""

from robustnn.nn.lbdn import LBDN as LBDN
from robustnn.nn.mlp import MLP as MLP
from robustnn.nn.module import ExplicitModule as ExplicitModule
from robustnn.nn.sandwich import SandwichLayer as SandwichLayer
