"""Bounds of Lipschitz constants."""

from robustnn.bounds.lower import LowerBound as LowerBound
from robustnn.bounds.lower import lower_bound as lower_bound
from robustnn.bounds.upper import product_bound as product_bound
