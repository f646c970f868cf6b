"""Certified decisions of policies: what no error of the observation up to a size can change."""

from robustnn.certify.action import ActionChange as ActionChange
from robustnn.certify.action import action_change as action_change
from robustnn.certify.action import tolerance_radius as tolerance_radius
from robustnn.certify.attack import DecisionAttack as DecisionAttack
from robustnn.certify.attack import attack_decision as attack_decision
from robustnn.certify.certificate import PolicyCertificate as PolicyCertificate
from robustnn.certify.certificate import certify_policy as certify_policy
from robustnn.certify.decision import certified_radius as certified_radius
from robustnn.certify.local import local_change as local_change
from robustnn.certify.rate import CertificationRate as CertificationRate
from robustnn.certify.rate import certification_rate as certification_rate
from robustnn.certify.stochastic import DistributionChange as DistributionChange
from robustnn.certify.stochastic import distribution_change as distribution_change
