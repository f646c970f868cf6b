"""Lipschitz-bounded policies for Stable-Baselines3."""

from robustnn.policies.actor_critic import LBDNActorCriticPolicy as LBDNActorCriticPolicy
from robustnn.policies.callbacks import FreezeWeights as FreezeWeights
from robustnn.policies.callbacks import LogLipschitz as LogLipschitz
from robustnn.policies.extractors import ObservationScale as ObservationScale
from robustnn.policies.normalization import Normalization as Normalization
from robustnn.policies.scaling import ActionMap as ActionMap
from robustnn.policies.scaling import Bound as Bound
from robustnn.policies.scaling import action_map as action_map
