"""Training that buys robustness: adversaries and noise in the rollouts, penalties, and gradients through the plant."""

from __future__ import annotations

from robustnn.training.penalties import SmoothnessPenalty as SmoothnessPenalty
from robustnn.training.smoothness import CAPS as CAPS
from robustnn.training.smoothness import SARegulariser as SARegulariser
from robustnn.training.spectral import SpectralActorCriticPolicy as SpectralActorCriticPolicy
from robustnn.training.spectral import SpectralNet as SpectralNet
from robustnn.training.spectral import SpectralSACPolicy as SpectralSACPolicy
from robustnn.training.spectral import SpectralTD3Policy as SpectralTD3Policy
