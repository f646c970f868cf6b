"""Certified decisions of policies: what no error of the observation up to a size can change."""

from robustnn.certify.action import ActionChange as ActionChange
from robustnn.certify.action import action_change as action_change
from robustnn.certify.action import tolerance_radius as tolerance_radius
from robustnn.certify.attack import DecisionAttack as DecisionAttack
from robustnn.certify.attack import attack_decision as attack_decision
from robustnn.certify.certificate import PolicyCertificate as PolicyCertificate
from robustnn.certify.certificate import certify_policy as certify_policy
from robustnn.certify.curves import ActionChangeCurve as ActionChangeCurve
from robustnn.certify.curves import DecisionCurve as DecisionCurve
from robustnn.certify.curves import GainCurve as GainCurve
from robustnn.certify.curves import action_change_curve as action_change_curve
from robustnn.certify.curves import decision_curve as decision_curve
from robustnn.certify.curves import gain_curve as gain_curve
from robustnn.certify.curves import visited_observations as visited_observations
from robustnn.certify.decision import certified_radius as certified_radius
from robustnn.certify.local import local_change as local_change
from robustnn.certify.loop import LoopCertificate as LoopCertificate
from robustnn.certify.loop import certify_loop as certify_loop
from robustnn.certify.rate import CertificationRate as CertificationRate
from robustnn.certify.rate import certification_rate as certification_rate
from robustnn.certify.stochastic import DistributionChange as DistributionChange
from robustnn.certify.stochastic import distribution_change as distribution_change
from robustnn.certify.worst import WorstGain as WorstGain
from robustnn.certify.worst import worst_gain as worst_gain
