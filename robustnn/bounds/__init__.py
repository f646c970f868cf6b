"""Bounds of Lipschitz constants: from below, from above, over a ball, and certificates of them."""

from robustnn.bounds.certificate import Certificate as Certificate
from robustnn.bounds.certificate import certify as certify
from robustnn.bounds.certificate import network_sha256 as network_sha256
from robustnn.bounds.certificate import tighten as tighten
from robustnn.bounds.conv import circular_singular_values as circular_singular_values
from robustnn.bounds.conv import convolution_norm as convolution_norm
from robustnn.bounds.conv import supremum_of_norm as supremum_of_norm
from robustnn.bounds.conv_lipkernel import completed_kernel as completed_kernel
from robustnn.bounds.conv_lipkernel import roesser_residual as roesser_residual
from robustnn.bounds.conv_network import ConvBound as ConvBound
from robustnn.bounds.conv_network import certify_cnn as certify_cnn
from robustnn.bounds.conv_network import cnn_bound as cnn_bound
from robustnn.bounds.conv_network import cnn_multipliers as cnn_multipliers
from robustnn.bounds.conv_network import image_lower_bound as image_lower_bound
from robustnn.bounds.gap import GapReport as GapReport
from robustnn.bounds.gap import gap_report as gap_report
from robustnn.bounds.local import local_bound as local_bound
from robustnn.bounds.lower import LowerBound as LowerBound
from robustnn.bounds.lower import lower_bound as lower_bound
from robustnn.bounds.network import as_network as as_network
from robustnn.bounds.network import constructive_multipliers as constructive_multipliers
from robustnn.bounds.upper import UpperBound as UpperBound
from robustnn.bounds.upper import eclipse as eclipse
from robustnn.bounds.upper import eclipse_fast as eclipse_fast
from robustnn.bounds.upper import lipsdp as lipsdp
from robustnn.bounds.upper import product_bound as product_bound
