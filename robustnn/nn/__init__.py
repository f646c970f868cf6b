"""Networks: the sandwich layer, the LBDN, other bounded networks and the unbounded MLP under the same interface."""

from robustnn.nn.baselines import AOLNet as AOLNet
from robustnn.nn.baselines import CayleyNet as CayleyNet
from robustnn.nn.convert import as_explicit as as_explicit
from robustnn.nn.export import load_layout as load_layout
from robustnn.nn.export import load_network as load_network
from robustnn.nn.export import save_network as save_network
from robustnn.nn.init import balanced_ as balanced_
from robustnn.nn.init import zero_output_ as zero_output_
from robustnn.nn.lbdn import LBDN as LBDN
from robustnn.nn.mlp import MLP as MLP
from robustnn.nn.module import ExplicitModule as ExplicitModule
from robustnn.nn.onnx_model import to_onnx as to_onnx
from robustnn.nn.sandwich import SandwichLayer as SandwichLayer
from robustnn.nn.schedule import LipschitzSchedule as LipschitzSchedule
from robustnn.nn.schedule import lipschitz_penalty as lipschitz_penalty
from robustnn.nn.sll import SLLNet as SLLNet
