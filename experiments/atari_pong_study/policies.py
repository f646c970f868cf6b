"""The policies that are compared, of equal layers, and what is certified of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from experiments.atari_pong_study.config import Config, Model
from experiments.classification_study.certificate import ExactClassifier
from robustnn.bounds import certify_cnn, cnn_bound
from robustnn.nn.conv_baselines import ConvCNN
from robustnn.params.conv_explicit import ActivationStage, ExplicitCNN, LinearStage
from robustnn.policies import LBDNCnnPolicy

_PADDING = "zeros"


class PlainLayers(BaseFeaturesExtractor):
    """The layers of the LBDN policy up to its output, without a bound, for SB3's `CnnPolicy`.

    Args:
        observation_space: Stacked frames, channels first.
        conv: As in `LBDNCnnPolicy`.
        hidden: Widths of the dense layers, at least one.
    """

    def __init__(
        self, observation_space: spaces.Box, conv: Sequence[Sequence[int]], hidden: Sequence[int]
    ) -> None:
        super().__init__(observation_space, hidden[-1])
        self.net = ConvCNN(observation_space.shape, conv, hidden[:-1], hidden[-1], padding=_PADDING)

    def forward(self, observations: Tensor) -> Tensor:
        """Map pixels in [0, 1] to features, shape (batch, hidden[-1])."""
        return self.net(observations).relu()


def make_agent(config: Config, model: Model, env: VecEnv, seed: int) -> PPO:
    """Return an untrained agent.

    Args:
        config: Settings.
        model: Which policy.
        env: Environments of training.
        seed: Seed of weights and exploration.

    Returns:
        The agent. Actor and critic share no layers in either policy.
    """
    policy: Any = LBDNCnnPolicy
    kwargs: dict[str, Any] = {
        "lipschitz": model.gamma, "conv": config.conv, "net_arch": list(config.hidden), "padding": _PADDING,
    }  # fmt: skip
    if model.gamma is None:
        policy = "CnnPolicy"
        kwargs = {
            "features_extractor_class": PlainLayers,
            "features_extractor_kwargs": {"conv": config.conv, "hidden": config.hidden},
            "share_features_extractor": False,
            "net_arch": [],
        }
    return PPO(
        policy, env, policy_kwargs=kwargs, seed=seed, device=config.device, n_steps=config.n_steps,
        batch_size=config.batch_size, n_epochs=config.n_epochs, gamma=config.discount, ent_coef=config.ent_coef,
        learning_rate=_falling(config.learning_rate), clip_range=_falling(config.clip_range), vf_coef=0.5,
    )  # fmt: skip


def decision_of(agent: PPO) -> ExactClassifier:
    """Return the greedy decision of an agent by value in float64, with the bound of its logits.

    Args:
        agent: The agent.

    Returns:
        Pixels in [0, 1] -> logits. The bound of an LBDN is the smaller of gamma and the one that is proved from its
        weights; that of the plain network is the product of the proved norms of its layers.
    """
    policy: Any = agent.policy
    if isinstance(policy, LBDNCnnPolicy):
        network: ExplicitCNN = policy.action_map().network
        declared, proved = policy.lipschitz, certify_cnn(policy.lbdn).value
    else:
        network = _plain_network(policy)
        declared, proved = math.inf, cnn_bound(network).value
    mean = torch.zeros(1, 1, 1, dtype=torch.float64, device=agent.device)
    return ExactClassifier(network, mean, None, None, declared, proved)


def n_parameters(agent: PPO) -> int:
    """Return the number of parameters of the actor."""
    policy: Any = agent.policy
    parts: list[nn.Module] = [policy.action_net]
    if not isinstance(policy, LBDNCnnPolicy):
        parts.append(policy.pi_features_extractor)
    return sum(p.numel() for part in parts for p in part.parameters())


@torch.no_grad()
def _plain_network(policy: Any) -> ExplicitCNN:
    network = policy.pi_features_extractor.net.explicit()
    head = LinearStage(policy.action_net.weight, policy.action_net.bias)
    whole = replace(network, stages=(*network.stages, ActivationStage("relu"), head))
    return whole.detach().to(dtype=torch.float64)


def _falling(start: float) -> Callable[[float], float]:
    return lambda remaining: start * remaining
