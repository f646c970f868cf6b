"""From a trained agent with SB3's MlpPolicy to the same agent with a Lipschitz-bounded policy of the same function."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import Tensor, nn
from torch.optim import Optimizer

from robustnn.bounds import lipsdp
from robustnn.errors import InvalidArgumentError, check_positive, invalid
from robustnn.nn.convert import as_explicit
from robustnn.nn.lbdn import LBDN
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.actor_critic import LBDNActorCriticPolicy
from robustnn.policies.base import LipschitzPolicy
from robustnn.policies.extractors import ScaleArgument, as_observation_scale
from robustnn.policies.networks import decider_of
from robustnn.policies.off_policy import LBDNDQNPolicy, LBDNSACPolicy, LBDNTD3Policy

__all__ = ["convert_policy"]

Model = TypeVar("Model", bound=BaseAlgorithm)

# Networks that are taken over as they are: critics, value network, and the standard deviation of a Gaussian.
_CARRIED = ("critic.", "critic_target.", "mlp_extractor.value_net.", "value_net.", "log_std")
_ALGORITHMS = (
    "PPO, A2C, TRPO, MaskablePPO, SAC, TD3, DDPG, TQC, DQN or QRDQN with MlpPolicy or MultiInputPolicy"
)


class _Proof(NamedTuple):
    """A bound and the multipliers by which `LBDN.from_mlp` reproduces a network."""

    lipschitz: float
    multipliers: tuple[Tensor, ...]


def convert_policy(
    model: Model,
    *,
    lipschitz: float | None = None,
    slack: float = 1.05,
    observation_scale: ScaleArgument | None = None,
    action_scale: Sequence[float] | None = None,
    multipliers: Sequence[Tensor] | None = None,
    trainable_lipschitz: bool = False,
    lipschitz_penalty: float = 0.0,
) -> Model:
    r"""Return an agent with a Lipschitz-bounded policy of the same function as that of a trained agent.

    Every feed-forward network with activations of slopes in [0, 1] is the image of an LBDN whose bound is the LipSDP
    bound of the network (Wang & Manchester, ICML 2023, theorem 2). So mean actions, logits and Q-values stay what
    they were, up to rounding, and training may go on with the bound, or under a falling one; see `fine_tune`.

    Critics, value network, standard deviation, entropy coefficient, learning rates, counters and seed are taken over;
    so is the optimiser's state of the weights that stay. SAC and TQC give the standard deviation a copy of the trunk
    that it shared with the mean. A target network is reproduced too, unless its own bound exceeds that of the agent:
    then it becomes a copy of the new network. Environment and replay buffer are those of the given model, not
    copies, so train only one of the two further.

    Args:
        model: PPO, A2C, TRPO, MaskablePPO, SAC, TD3, DDPG, TQC, DQN or QRDQN with SB3's "MlpPolicy" (or
            "MultiInputPolicy" without images), trained in this process or loaded from a file.
        lipschitz: The bound gamma wanted, in the norms of `LipschitzPolicy`; the LipSDP bound times `slack` if None.
        slack: Factor >= 1; leaves the layers away from the edge, where their gradients are small.
        observation_scale: Diagonal of D_o, as in `LipschitzPolicy`; that of the model's `ObservationScale`, or ones,
            if None. Weights are rescaled, so the function does not depend on it; the bound's norm does.
        action_scale: Diagonal of D_a, as in `LipschitzPolicy`.
        multipliers: Multipliers from which the LipSDP computation starts as well (`robustnn.bounds.lipsdp`).
        trainable_lipschitz: As in `LipschitzPolicy`.
        lipschitz_penalty: As in `LipschitzPolicy`.

    Returns:
        A model of the same algorithm, ready for `predict`, `learn`, `save` and `policy.bound()`.

    Raises:
        InvalidArgumentError: If the policy is of another kind (images, CrossQ, gSDE, recurrent, own subclasses), is
            no plain network, or the wanted bound is smaller than what is proved; the message has the smallest one.
        UnsupportedSpaceError: If a space is not supported.

    Example:
        >>> from stable_baselines3 import TD3
        >>> model = TD3("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), device="cpu")
        >>> type(convert_policy(model).policy).__name__
        'LBDNTD3Policy'
    """
    if check_positive("slack", slack) < 1.0:
        raise invalid("slack", "a factor >= 1", slack, "Use 1.05.")
    if lipschitz is not None:
        lipschitz = check_positive("lipschitz", lipschitz)
    policy_class = _policy_class(model)
    source: Any = model.policy
    decider = decider_of(source)
    scale = decider.scale().double().cpu()
    old_scale = None if bool((scale == 1.0).all()) else tuple(scale.tolist())
    new_scale = old_scale
    if observation_scale is not None:
        new_scale = as_observation_scale(observation_scale, source.observation_space)
    ratio = torch.ones_like(scale) if new_scale is None else torch.tensor(new_scale).to(scale) / scale
    networks = [as_explicit(nn.Sequential(*decider.body)), *_target_networks(source)]
    networks = [_rescaled(network, ratio) for network in networks]
    options = {
        # Only a start: the bound is computed in the norms that the new policy has.
        "lipschitz": lipschitz or 1.0,
        "observation_scale": new_scale,
        "action_scale": action_scale,
        "trainable_lipschitz": trainable_lipschitz,
        "lipschitz_penalty": lipschitz_penalty,
        "net_arch": _net_arch(source, networks[0]),
        "activation_fn": source.activation_fn,
    }
    result = _rebuilt(model, policy_class, options)
    policy: Any = result.policy
    output_scale = policy.lbdn.output_scale
    found = lipsdp(networks[0], multipliers=multipliers, output_scale=output_scale, slopes=(0.0, 1.0))
    # A constant network has the bound zero, and any gamma.
    proof = _Proof(lipschitz or slack * found.value or 1.0, found.multipliers)
    targets = policy.bounded_networks()
    _reproduce(next(targets), networks[0], proof, output_scale)
    for target, network in zip(targets, networks[1:], strict=True):
        _reproduce_target(target, network, policy.lbdn, proof, output_scale)
    result.policy_kwargs["lipschitz"] = proof.lipschitz
    policy._options = replace(policy._options, lipschitz=proof.lipschitz)
    with torch.no_grad():
        same = _carry_networks(source, policy, ratio)
        if hasattr(source, "actor") and hasattr(source.actor, "latent_pi"):
            _carry_std(source.actor, policy.actor, ratio)
    _carry_training_state(model, result, same)
    return result


def _policy_class(model: Any) -> type[LipschitzPolicy]:
    """The policy class that takes the place of SB3's, or an error that says why there is none."""
    policy = getattr(model, "policy", None)
    if not isinstance(model, BaseAlgorithm) or policy is None:
        raise invalid("model", f"a model of {_ALGORITHMS}", type(model).__name__, "Pass the model itself.")
    kind = type(policy)
    module, name = kind.__module__, kind.__name__
    if isinstance(policy, LipschitzPolicy):
        raise invalid(
            "model.policy",
            "SB3's own policy",
            name,
            "It has a bound already; see set_lipschitz or fine_tune.",
        )
    if getattr(model, "use_sde", False) or getattr(policy, "use_sde", False):
        raise invalid(
            "model", "an agent without gSDE", "use_sde=True",
            "Its exploration noise is a function of the actor's last hidden layer, which a bounded actor does not "
            "share; train a bounded policy with use_sde=True from the start.",
        )  # fmt: skip
    if "crossq" in module:
        raise invalid(
            "model.policy", "a policy without batch renormalisation", name,
            "The gain of CrossQ's actor depends on running statistics; train LBDNCrossQPolicy from the start.",
        )  # fmt: skip
    classes: dict[type, type[LipschitzPolicy]] = {
        ActorCriticPolicy: LBDNActorCriticPolicy,
        MultiInputActorCriticPolicy: LBDNActorCriticPolicy,
        sac.SACPolicy: LBDNSACPolicy,
        sac.MultiInputPolicy: LBDNSACPolicy,
        td3.TD3Policy: LBDNTD3Policy,
        td3.MultiInputPolicy: LBDNTD3Policy,
        dqn.DQNPolicy: LBDNDQNPolicy,
        dqn.MultiInputPolicy: LBDNDQNPolicy,
    }
    if module.startswith("sb3_contrib."):
        classes |= _contrib_classes()
    if kind not in classes:
        decider_of(policy).scale()  # has a reason of its own for images and recurrent policies
        raise invalid(
            "model.policy", f"the policy of {_ALGORITHMS}", f"{module}.{name}",
            "What a subclass computes besides is not known; convert the plain policy.",
        )  # fmt: skip
    return classes[kind]


def _contrib_classes() -> dict[type, type[LipschitzPolicy]]:
    ours = importlib.import_module("robustnn.policies.contrib")
    pairs = {
        "sb3_contrib.tqc.policies": ("TQCPolicy", "MultiInputPolicy", ours.LBDNTQCPolicy),
        "sb3_contrib.qrdqn.policies": ("QRDQNPolicy", "MultiInputPolicy", ours.LBDNQRDQNPolicy),
        "sb3_contrib.common.maskable.policies": (
            "MaskableActorCriticPolicy", "MaskableMultiInputActorCriticPolicy", ours.LBDNMaskablePolicy,
        ),
    }  # fmt: skip
    return {
        getattr(importlib.import_module(module), name): bounded
        for module, (*names, bounded) in pairs.items()
        for name in names
    }


def _target_networks(policy: Any) -> Iterator[ExplicitMLP]:
    if hasattr(policy, "actor_target"):
        yield as_explicit(nn.Sequential(*list(policy.actor_target.mu)[:-1]))  # without tanh
    elif hasattr(policy, "q_net_target"):
        yield as_explicit(policy.q_net_target.q_net)
    elif hasattr(policy, "quantile_net_target"):
        yield as_explicit(policy.quantile_net_target.quantile_net)


def _rescaled(network: ExplicitMLP, ratio: Tensor) -> ExplicitMLP:
    """The network of inputs that are divided by `ratio` times as much, in float64."""
    network = network.to(dtype=torch.float64)
    first = network.weights[0] * ratio.to(network.weights[0].device)
    return replace(network, weights=(first, *network.weights[1:]))


def _net_arch(policy: Any, network: ExplicitMLP) -> list[int] | dict[str, list[int]]:
    """Widths of all networks, from the modules."""
    actor = [weight.shape[0] for weight in network.weights[:-1]]
    if hasattr(policy, "mlp_extractor"):
        return {"pi": actor, "vf": _widths(policy.mlp_extractor.value_net)}
    if not hasattr(policy, "critic"):
        return actor
    arch = {"pi": actor, "qf": _widths(next(_critic_networks(policy.critic)))[:-1]}
    return {**arch, "std": actor} if hasattr(policy.actor, "latent_pi") else arch


def _widths(network: nn.Module) -> list[int]:
    return [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]


def _critic_networks(critic: nn.Module) -> Iterator[nn.Module]:
    """The networks of a critic, each from features and action to values."""
    return (child for name, child in critic.named_children() if name != "features_extractor")


def _rebuilt(model: Model, policy_class: type[LipschitzPolicy], options: dict[str, Any]) -> Model:
    """The model with a new policy, and everything else as it was."""
    result = copy.copy(model)
    result.policy_class = policy_class
    kept = {
        key: value for key, value in model.policy_kwargs.items() if not key.startswith("features_extractor")
    }
    result.policy_kwargs = {**kept, **options}
    result.seed = None  # building networks is no reason to seed the environment anew
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        result._setup_model()
    result.seed = model.seed
    return result


def _reproduce(net: LBDN, network: ExplicitMLP, proof: _Proof, output_scale: Tensor | None) -> None:
    """Give a bounded network the function of an ordinary one."""
    built = LBDN.from_mlp(
        network, proof.lipschitz, multipliers=proof.multipliers, output_scale=output_scale,
        trainable_lipschitz=net.log_lipschitz is not None, dtype=net.layers[0].weight.dtype,  # type: ignore[arg-type]
    )  # fmt: skip
    net.load_state_dict(built.state_dict())


def _reproduce_target(
    target: LBDN, network: ExplicitMLP, net: LBDN, proof: _Proof, output_scale: Tensor | None
) -> None:
    # The multipliers of the network itself come first: with them the parameters of the two are close, and so are
    # the averages of them that the algorithm forms.
    for multipliers in (proof.multipliers, None):
        if multipliers is None:
            multipliers = lipsdp(
                network, multipliers=proof.multipliers, output_scale=output_scale, slopes=(0.0, 1.0)
            ).multipliers
        try:
            _reproduce(target, network, _Proof(proof.lipschitz, multipliers), output_scale)
            return
        except InvalidArgumentError:
            continue
    target.load_state_dict(net.state_dict())


def _carry_networks(source: nn.Module, policy: nn.Module, ratio: Tensor) -> dict[Tensor, Tensor]:
    """Copy the networks that stay; return new -> old for the parameters that are equal afterwards."""
    given, new = dict(source.named_parameters()), dict(policy.named_parameters())
    same: dict[Tensor, Tensor] = {}
    for name, parameter in new.items():
        if name.startswith(_CARRIED):
            parameter.copy_(given[name])
            same[parameter] = given[name]
    if bool((ratio == 1.0).all()):
        return same
    for layer in _first_layers(policy):
        _rescale_first(layer, ratio)
        del same[layer.weight]
    return same


def _first_layers(policy: Any) -> Iterator[nn.Linear]:
    """The layers of critics and value network that see the features."""
    if hasattr(policy, "mlp_extractor"):
        networks: list[nn.Module] = [nn.Sequential(policy.mlp_extractor.value_net, policy.value_net)]
    else:
        critics = [getattr(policy, name) for name in ("critic", "critic_target") if hasattr(policy, name)]
        networks = [network for critic in critics for network in _critic_networks(critic)]
    for network in networks:
        yield next(layer for layer in network.modules() if isinstance(layer, nn.Linear))


def _rescale_first(layer: nn.Linear, ratio: Tensor) -> None:
    layer.weight[:, : len(ratio)] *= ratio.to(layer.weight)


def _carry_std(source: Any, actor: Any, ratio: Tensor) -> None:
    """Give the standard deviation a copy of the trunk that it shared with the mean."""
    trunk = [layer for layer in source.latent_pi.modules() if isinstance(layer, nn.Linear)]
    layers = [layer for layer in actor.log_std.modules() if isinstance(layer, nn.Linear)]
    for layer, given in zip(layers, [*trunk, source.log_std], strict=True):
        layer.weight.copy_(given.weight)
        layer.bias.copy_(given.bias)
    _rescale_first(layers[0], ratio)


def _carry_training_state(model: Any, result: Any, same: dict[Tensor, Tensor]) -> None:
    """Copy what an algorithm trains besides its policy, and the state of its optimisers."""
    state_dicts, variables = model._get_torch_save_params()
    for name in variables:
        variable, given = attrgetter(name)(result), attrgetter(name)(model)
        variable.data.copy_(given.data)
        same[variable] = given
    for name in state_dicts:
        if name.endswith("optimizer"):
            _carry_optimizer(attrgetter(name)(model), attrgetter(name)(result), same)


def _carry_optimizer(given: Optimizer, new: Optimizer, same: dict[Tensor, Tensor]) -> None:
    state = new.state_dict()
    parameters = [parameter for group in new.param_groups for parameter in group["params"]]
    state["state"] = {
        index: copy.deepcopy(dict(given.state[same[parameter]]))
        for index, parameter in enumerate(parameters)
        if parameter in same and same[parameter] in given.state
    }
    for group, old in zip(state["param_groups"], given.param_groups, strict=True):
        group["lr"] = old["lr"]
    new.load_state_dict(state)
