"""Training that buys robustness: adversaries and noise in the rollouts, penalties, and gradients through the plant."""

from __future__ import annotations

from robustnn.training.adversary import ObservationAdversary as ObservationAdversary
from robustnn.training.faulty_vec_env import FaultyVecEnv as FaultyVecEnv
from robustnn.training.penalties import SmoothnessPenalty as SmoothnessPenalty
from robustnn.training.recipe import Robustified as Robustified
from robustnn.training.recipe import robustify as robustify
from robustnn.training.smoothness import CAPS as CAPS
from robustnn.training.smoothness import SARegulariser as SARegulariser
from robustnn.training.spectral import SpectralActorCriticPolicy as SpectralActorCriticPolicy
from robustnn.training.spectral import SpectralNet as SpectralNet
from robustnn.training.spectral import SpectralSACPolicy as SpectralSACPolicy
from robustnn.training.spectral import SpectralTD3Policy as SpectralTD3Policy
from robustnn.training.through_plant import RobustFineTuning as RobustFineTuning
from robustnn.training.through_plant import RobustTrial as RobustTrial
from robustnn.training.through_plant import robust_fine_tune as robust_fine_tune
