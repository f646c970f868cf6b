"""Lipschitz-bounded policies for Stable-Baselines3."""

from robustnn.policies.action_map import ActionMap as ActionMap
from robustnn.policies.action_map import action_map as action_map
from robustnn.policies.actor_critic import LBDNActorCriticPolicy as LBDNActorCriticPolicy
from robustnn.policies.base import LipschitzPolicy as LipschitzPolicy
from robustnn.policies.callbacks import FreezeWeights as FreezeWeights
from robustnn.policies.callbacks import LogLipschitz as LogLipschitz
from robustnn.policies.callbacks import ScheduleLipschitz as ScheduleLipschitz
from robustnn.policies.capacity import matching_widths as matching_widths
from robustnn.policies.capacity import n_parameters as n_parameters
from robustnn.policies.convert import convert_policy as convert_policy
from robustnn.policies.deploy import DeployedPolicy as DeployedPolicy
from robustnn.policies.deploy import deploy as deploy
from robustnn.policies.deploy_files import load_deployed as load_deployed
from robustnn.policies.deploy_files import save_deployed as save_deployed
from robustnn.policies.deploy_files import verify_deployed as verify_deployed
from robustnn.policies.extractors import ObservationScale as ObservationScale
from robustnn.policies.finetune import fine_tune as fine_tune
from robustnn.policies.normalization import Normalization as Normalization
from robustnn.policies.observation import flatten_observation as flatten_observation
from robustnn.policies.off_policy import LBDNDQNPolicy as LBDNDQNPolicy
from robustnn.policies.off_policy import LBDNSACPolicy as LBDNSACPolicy
from robustnn.policies.off_policy import LBDNTD3Policy as LBDNTD3Policy
from robustnn.policies.scaling import Bound as Bound
from robustnn.policies.scaling import Stage as Stage
from robustnn.policies.scaling import policy_bound as policy_bound
