"""Closed loops of plant and policy under perturbed observations: simulate, attack, evaluate."""

from __future__ import annotations

from robustnn.closedloop.evaluate import EvaluationResult as EvaluationResult
from robustnn.closedloop.evaluate import evaluate as evaluate
from robustnn.closedloop.evaluate import start_states as start_states
from robustnn.closedloop.mad import MaximalActionDifference as MaximalActionDifference
from robustnn.closedloop.perturb import Convergence as Convergence
from robustnn.closedloop.perturb import Delay as Delay
from robustnn.closedloop.perturb import GaussianNoise as GaussianNoise
from robustnn.closedloop.perturb import NoPerturbation as NoPerturbation
from robustnn.closedloop.perturb import Perturbation as Perturbation
from robustnn.closedloop.perturb import UniformBall as UniformBall
from robustnn.closedloop.rollout import Trajectory as Trajectory
from robustnn.closedloop.rollout import rollout as rollout
from robustnn.closedloop.trajectory import TrajectoryAttack as TrajectoryAttack
from robustnn.closedloop.vec_env import TorchVecEnv as TorchVecEnv
