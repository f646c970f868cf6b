"""Direct parameters, explicit weights, and the maps between them."""

from robustnn.params.activations import ACTIVATIONS as ACTIVATIONS
from robustnn.params.activations import Activation as Activation
from robustnn.params.activations import resolve_activation as resolve_activation
from robustnn.params.conv_explicit import ExplicitCNN as ExplicitCNN
from robustnn.params.conv_merge import merge_pointwise as merge_pointwise
from robustnn.params.conv_spectral import conv_from_torch as conv_from_torch
from robustnn.params.direct import LBDNParams as LBDNParams
from robustnn.params.direct import SandwichParams as SandwichParams
from robustnn.params.direct import init_sandwich as init_sandwich
from robustnn.params.explicit import ExplicitMLP as ExplicitMLP
from robustnn.params.inverse import certified_lipschitz as certified_lipschitz
from robustnn.params.inverse import explicit_to_lbdn as explicit_to_lbdn
from robustnn.params.inverse import product_multipliers as product_multipliers
from robustnn.params.layouts import read_layout as read_layout
from robustnn.params.layouts import sandwich_from_jax as sandwich_from_jax
from robustnn.params.layouts import sandwich_from_julia as sandwich_from_julia
from robustnn.params.layouts import sandwich_from_torch as sandwich_from_torch
from robustnn.params.maps import lbdn_to_explicit as lbdn_to_explicit
from robustnn.params.maps import sandwich_factors as sandwich_factors
from robustnn.params.maps import sandwich_to_explicit as sandwich_to_explicit
