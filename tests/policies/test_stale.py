"""No action is ever computed from the weights of parameters that are no more, whatever was done to a policy."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import polyak_update

from robustnn import LBDN, MLP
from robustnn.nn.baselines import AOLNet, CayleyNet
from robustnn.nn.module import ExplicitModule
from robustnn.nn.sll import SLLNet
from robustnn.policies import FreezeWeights
from robustnn.policies.freeze import KeptWeights, _Values
from tests.policies.toy import any_model, randomise

OBSERVATION = torch.tensor([[0.3, -0.7, 1.1]])

# Random sequences -----------------------------------------------------------------------------------------

NAMES = ("PPO", "SAC", "TD3", "DQN")
SEQUENCES = 250  # of each


class Subject:
    """A model to which things are done at random, and what a network that was frozen on purpose must answer.

    Explicit freezing is a snapshot, as documented: `snapshots` has the state of every network that is frozen, and
    the operations say themselves when it ends.
    """

    def __init__(self, name: str) -> None:
        self.model = any_model(name, policy_kwargs={"net_arch": [4, 4]})
        self.begin(0)

    def begin(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        for callback in getattr(self, "callbacks", []):
            callback._on_training_end()
        self.callbacks: list[FreezeWeights] = []
        self.compiled: list[Callable[[torch.Tensor], torch.Tensor]] = []
        self.policy.float()
        randomise(self.policy, 0.5, seed)
        self.snapshots: dict[int, dict[str, Any]] = {}
        self.log: list[str] = []

    @property
    def policy(self) -> Any:
        return self.model.policy

    @property
    def nets(self) -> list[LBDN]:
        return list(self.policy.bounded_networks())

    @property
    def dtype(self) -> torch.dtype:
        return self.nets[0].layers[0].weight.dtype

    def inputs(self) -> torch.Tensor:
        return torch.randn(3, 3, generator=self.generator).to(self.dtype)

    def some_net(self) -> tuple[int, LBDN]:
        index = int(self.random.integers(len(self.nets)))
        return index, self.nets[index]

    def some_parameter(self) -> torch.nn.Parameter:
        parameters = list(self.some_net()[1].parameters())
        return parameters[int(self.random.integers(len(parameters)))]

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.randn(like.shape, generator=self.generator).to(like)

    def replaced(self, policy: Any) -> None:
        """Go on with a copy, in which nothing is frozen or kept."""
        assert not any(net.is_frozen or net._keeper for net in policy.bounded_networks())
        self.model.policy = policy
        if hasattr(self.model, "_create_aliases"):
            self.model._create_aliases()
        self.snapshots.clear()
        self.compiled.clear()

    def do(self, operation: Callable[[Subject], None]) -> None:
        self.log.append(operation.__name__)
        operation(self)

    def check(self) -> None:
        """Compare with networks and with a policy that are built anew and given the same parameters."""
        policy = self.policy
        x = self.inputs()
        state = copy.deepcopy(policy.state_dict())
        prefixes = {id(module): name for name, module in policy.named_modules()}
        for index, net in enumerate(self.nets):
            assert net.is_frozen == (index in self.snapshots)
            present, served = (
                rebuilt(net, net.state_dict()),
                rebuilt(net, self.snapshots.get(index, net.state_dict())),
            )
            with torch.no_grad():
                assert torch.equal(net(x), served(x))
            assert torch.equal(net(x), present(x))  # with gradients the present parameters count
            for key, value in self.snapshots.get(index, {}).items():
                state[f"{prefixes[id(net)]}.{key}"] = value
        for net, compiled in self.compiled:  # type: ignore[misc]
            with torch.no_grad():
                torch.testing.assert_close(
                    compiled(x), rebuilt(net, net.state_dict())(x), rtol=1e-5, atol=1e-5
                )
        if self.dtype == torch.float32:
            twin = type(policy)(**policy._get_constructor_parameters())
            twin.load_state_dict(state)
            observations = x.numpy()
            for one in (observations, observations[0]):
                mine, theirs = (p.predict(one, deterministic=True)[0] for p in (policy, twin))
                np.testing.assert_array_equal(mine, theirs)


def rebuilt(net: LBDN, state: dict[str, Any]) -> LBDN:
    """A new network with the architecture of one and the parameters of a state dict."""
    fresh = LBDN(
        net.in_features, net.hidden_features, net.out_features, activation=net.activation,
        output_scale=net.output_scale, dtype=net.layers[0].weight.dtype,
    )  # fmt: skip
    fresh.load_state_dict(copy.deepcopy(state))
    return fresh


# What may be done. Operations that write into parameters in place leave snapshots as they are.


def step_sgd(s: Subject) -> None:
    step(s, lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def step_adam_fused(s: Subject) -> None:
    step(s, lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True))


def step_own_optimizer(s: Subject) -> None:
    for group in s.policy._actor_optimizer().param_groups:
        group["lr"] = 0.1
    if s.dtype == torch.float32:  # its state does not move with the policy
        step(s, lambda parameters: s.policy._actor_optimizer(), s.policy.lbdn)
        s.policy._actor_optimizer().state.clear()


def step(s: Subject, optimizer: Callable[..., torch.optim.Optimizer], net: LBDN | None = None) -> None:
    net = net or s.some_net()[1]
    chosen = optimizer(net.parameters())
    chosen.zero_grad()
    net(s.inputs()).square().sum().backward()
    chosen.step()
    chosen.zero_grad()


def write_data(s: Subject) -> None:
    parameter = s.some_parameter()
    parameter.data.add_(s.noise(parameter))


def write_without_gradients(s: Subject) -> None:
    parameter = s.some_parameter()
    with torch.no_grad():
        parameter.add_(s.noise(parameter))


def write_numpy(s: Subject) -> None:
    parameter = s.some_parameter()
    view = parameter.detach().numpy()
    view += s.noise(parameter).numpy()


def point_elsewhere(s: Subject) -> None:
    parameter = s.some_parameter()
    parameter.data = parameter.data + s.noise(parameter)


def polyak(s: Subject) -> None:
    net = s.nets[-1]
    source = s.nets[0].parameters() if len(s.nets) > 1 else [p.data + s.noise(p) for p in net.parameters()]
    polyak_update(source, net.parameters(), 0.3)


def load_from_vector(s: Subject) -> None:
    if s.dtype == torch.float32:  # makes float32 of everything
        vector = s.policy.parameters_to_vector()
        s.policy.load_from_vector(vector + 0.1 * s.random.normal(size=vector.shape))


# Operations that end a snapshot.


def train(s: Subject) -> None:
    s.policy.train()
    s.snapshots.clear()


def disturbed_state(s: Subject, module: torch.nn.Module) -> dict[str, Any]:
    return {
        key: value + s.noise(value) if isinstance(value, torch.Tensor) and "scale" not in key else value
        for key, value in module.state_dict().items()
    }


def load_state_dict(s: Subject) -> None:
    s.policy.load_state_dict(disturbed_state(s, s.policy))
    s.snapshots.clear()


def load_state_dict_of_a_network(s: Subject) -> None:
    index, net = s.some_net()
    net.load_state_dict(disturbed_state(s, net), assign=bool(s.random.integers(2)))
    s.snapshots.pop(index, None)


def load_state_dict_of_a_layer(s: Subject) -> None:
    index, net = s.some_net()
    layer = net.layers[int(s.random.integers(len(net.layers)))]
    layer.load_state_dict(disturbed_state(s, layer))
    s.snapshots.pop(index, None)


def set_parameters(s: Subject) -> None:
    parameters = s.model.get_parameters()
    s.model.set_parameters({**parameters, "policy": disturbed_state(s, s.policy)})
    s.snapshots.clear()


def to_float64(s: Subject) -> None:
    s.policy.to(torch.float64)
    s.snapshots.clear()


def to_float32(s: Subject) -> None:
    s.policy.to(torch.float32)
    s.snapshots.clear()


def a_layer_to(s: Subject) -> None:
    index, net = s.some_net()
    dtype = s.dtype
    net.layers[0].half().to(dtype)
    s.snapshots.pop(index, None)


def set_lipschitz(s: Subject) -> None:
    s.policy.set_lipschitz(float(s.random.uniform(0.5, 20.0)))
    s.snapshots.clear()


def set_extra_state(s: Subject) -> None:
    index, net = s.some_net()
    net.set_extra_state({"lipschitz": float(s.random.uniform(0.5, 20.0))})
    s.snapshots.pop(index, None)


# Copies, evaluations, and what weights are re-used by.


def deep_copy(s: Subject) -> None:
    s.replaced(copy.deepcopy(s.policy))


def pickled(s: Subject) -> None:
    s.replaced(pickle.loads(pickle.dumps(s.policy)))


def saved(s: Subject) -> None:
    buffer = io.BytesIO()
    torch.save(s.policy, buffer)
    buffer.seek(0)
    s.replaced(torch.load(buffer, weights_only=False))


def copied_and_changed(s: Subject) -> None:
    """The copy goes its own way; the original stays as it was."""
    randomise(copy.deepcopy(s.policy), 1.0, seed=1)


def evaluate(s: Subject) -> None:
    s.policy.eval()


def predict(s: Subject) -> None:
    if s.dtype == torch.float32:
        s.model.predict(s.inputs().numpy(), deterministic=bool(s.random.integers(2)))


def call_networks(s: Subject) -> None:
    with torch.inference_mode() if s.random.integers(2) else torch.no_grad():
        for net in s.nets:
            net(s.inputs())


def freeze(s: Subject) -> None:
    index, net = s.some_net()
    net.freeze()
    s.snapshots[index] = copy.deepcopy(net.state_dict())


def unfreeze(s: Subject) -> None:
    index, net = s.some_net()
    net.unfreeze()
    s.snapshots.pop(index, None)


def frozen(s: Subject) -> None:
    """A block around other operations; those that replace the policy stay outside."""
    index, net = s.some_net()
    was_frozen = net.is_frozen
    with net.frozen():
        s.snapshots[index] = copy.deepcopy(net.state_dict())
        for _ in range(2):
            s.do(INSIDE[int(s.random.integers(len(INSIDE)))])
        s.check()
    if not was_frozen:
        s.snapshots.pop(index, None)


def training_starts(s: Subject) -> None:
    callback = FreezeWeights()
    callback.init_callback(s.model)
    callback.on_training_start({}, {})
    s.callbacks.append(callback)
    s.snapshots.clear()


def training_ends(s: Subject) -> None:
    if s.callbacks:
        s.callbacks.pop(int(s.random.integers(len(s.callbacks)))).on_training_end()


def compile_network(s: Subject) -> None:
    _, net = s.some_net()
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(s.inputs())
    s.compiled.append((net, compiled))  # type: ignore[arg-type]


INSIDE = (
    step_sgd, step_adam_fused, step_own_optimizer, write_data, write_without_gradients, write_numpy, point_elsewhere,
    polyak, load_from_vector, train, load_state_dict, load_state_dict_of_a_network, load_state_dict_of_a_layer,
    set_parameters, a_layer_to, set_lipschitz, set_extra_state, copied_and_changed, evaluate, predict, call_networks,
)  # fmt: skip
OUTSIDE = (to_float64, to_float32, deep_copy, pickled, saved)
REUSE = (freeze, unfreeze, frozen, training_starts, training_ends)
USE = (predict, call_networks)  # what is kept or frozen must have served before it can be out of date


@pytest.mark.parametrize("name", NAMES)
def test_random_sequences(name: str) -> None:
    subject = Subject(name)
    for seed in range(SEQUENCES):
        subject.begin(seed)
        try:
            if seed % 2:
                subject.do(training_starts)
            for _ in range(int(subject.random.integers(6, 11))):
                kind = (INSIDE, OUTSIDE, REUSE, USE)[subject.random.choice(4, p=(0.5, 0.05, 0.15, 0.3))]
                subject.do(kind[int(subject.random.integers(len(kind)))])
            subject.check()
            if subject.dtype == torch.float64:
                subject.do(to_float32)
                subject.check()
        except Exception as error:
            raise AssertionError(f"{name}, sequence {seed}: {', '.join(subject.log)}") from error


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_random_sequences_with_compiled_networks(name: str) -> None:
    operations = [operation for operation in INSIDE if operation is not a_layer_to]
    torch._dynamo.reset()
    subject = Subject(name)
    for seed in range(2):
        subject.begin(seed)
        subject.do(training_starts)
        subject.do(compile_network)
        for _ in range(8):
            subject.do(operations[int(subject.random.integers(len(operations)))])
            subject.check()


# One network ----------------------------------------------------------------------------------------------


def kept_network(**settings: Any) -> LBDN:
    """A network as it is in training, with its weights kept."""
    torch.manual_seed(0)
    net = LBDN(3, (4,), 2, **settings)
    net._keeper = KeptWeights()
    return net


def conversions(net: ExplicitModule, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every conversion of a network."""
    count: list[int] = []
    convert = net._explicit
    monkeypatch.setattr(net, "_explicit", lambda *args: (count.append(1), convert(*args))[1])
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("contiguous", [True, False])
def test_values_are_compared_in_every_dtype_and_layout(
    dtype: torch.dtype, contiguous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without contiguous memory as where there is no main memory: by a copy of the tensors."""
    net = kept_network(dtype=dtype)
    weight = net.layers[0].weight
    if not contiguous:
        weight.data = weight.data.mT.contiguous().mT
        assert not weight.is_contiguous()
    count = conversions(net, monkeypatch)
    x = OBSERVATION.to(dtype)
    with torch.no_grad():
        before = net(x)
        assert torch.equal(net(x), before) and len(count) == 1
        weight.data.add_(torch.eye(7, 4, dtype=dtype))
        after = net(x)
        assert len(count) == 2 and not torch.equal(after, before)
        assert torch.equal(after, net.explicit()(x))
        weight.data = weight.data.clone()  # equal values elsewhere: compared anew, or converted anew
        assert torch.equal(net(x), after)


def test_train_eval_and_equal_values_do_not_convert_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net = kept_network()
    count = conversions(net, monkeypatch)
    with torch.no_grad():
        net(OBSERVATION)
        for _ in range(3):
            net.train()
            net(OBSERVATION)
            net.eval()
            net(OBSERVATION)
        net.load_state_dict(copy.deepcopy(net.state_dict()))
        net.layers[0].load_state_dict(copy.deepcopy(net.layers[0].state_dict()))
        net.layers[0].weight.add_(0.0)
        net.freeze().unfreeze()
        count.clear()
        net(OBSERVATION)
    assert count == []


def test_the_last_bit_counts() -> None:
    """A zero of the other sign is another value, and NaN is equal to itself."""
    values = torch.zeros(5)
    for tensors in ([values], [values.repeat(2)[::2]]):
        compared = _Values(tensors)
        assert compared.unchanged()
        tensors[0][1] = -0.0
        assert not compared.unchanged()
        tensors[0][2] = float("nan")
        assert _Values(tensors).unchanged()
    assert _Values([]).unchanged() and _Values([torch.zeros(0), torch.tensor(3)]).unchanged()


def test_other_memory_and_other_shapes_of_it_count() -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0))
    for other in (
        lambda data: data.clone().add_(1.0),
        lambda data: data[:5],
        lambda data: data.view(2, 3),
        lambda data: data.repeat_interleave(2)[::2],
    ):
        parameter.data = torch.arange(6.0)
        compared = _Values([parameter])
        assert compared.unchanged()
        parameter.data = other(parameter.data)
        assert not compared.unchanged()


def test_what_is_kept_does_not_share_memory_with_the_parameters() -> None:
    """All weights of an MLP are its parameters."""
    net = MLP(3, (4,), 2)
    net._keeper = KeptWeights()
    with torch.no_grad():
        before = net(OBSERVATION)
        kept = net._keeper(net)
        for parameter in net.parameters():
            parameter.data.add_(1.0)
        assert torch.equal(kept(OBSERVATION), before)
        assert torch.equal(net(OBSERVATION), net.explicit()(OBSERVATION))


def test_functions_of_parameters_are_not_answered_by_kept_weights() -> None:
    net, other = kept_network(), LBDN(3, (4,), 2)
    with torch.no_grad():
        mine, theirs = net(OBSERVATION), other(OBSERVATION)
        parameters = {key: value.detach() for key, value in other.named_parameters()}
        assert torch.equal(torch.func.functional_call(net, parameters, OBSERVATION), theirs)
        assert torch.equal(net(OBSERVATION), mine)
        stacked, _ = torch.func.stack_module_state([net, other])
        outputs = torch.func.vmap(lambda p: torch.func.functional_call(net, p, OBSERVATION))(stacked)
        torch.testing.assert_close(outputs, torch.stack([mine, theirs]), rtol=0, atol=1e-6)
        replica = net._replicate_for_data_parallel()
        assert replica._keeper is None and net._keeper is not None


def test_inference_mode() -> None:
    net = kept_network()
    with torch.inference_mode():
        before = net(OBSERVATION)
        net.layers[0].weight.data.add_(0.5)
        after = net(OBSERVATION)
    assert not torch.equal(before, after)
    with torch.no_grad():
        assert torch.equal(net(OBSERVATION), after)
    net(OBSERVATION).sum().backward()


# A layer of a frozen network ------------------------------------------------------------------------------


def load_layer(layer: torch.nn.Module) -> None:
    layer.load_state_dict({key: value + 0.5 for key, value in layer.state_dict().items()})


def assign_layer(layer: torch.nn.Module) -> None:
    layer.load_state_dict({key: value + 0.5 for key, value in layer.state_dict().items()}, assign=True)


def move_layer(layer: torch.nn.Module) -> None:
    layer.to(torch.bfloat16).to(torch.float32)


def train_layer(layer: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5)
    layer.train()


@pytest.mark.parametrize("change", [load_layer, assign_layer, move_layer, train_layer])
@pytest.mark.parametrize("kind", [LBDN, AOLNet, CayleyNet, SLLNet])
def test_what_drops_the_weights_of_a_layer_drops_those_of_the_network(
    kind: type[ExplicitModule], change: Callable[[torch.nn.Module], None]
) -> None:
    torch.manual_seed(0)
    net = kind(3, (4, 5), 2)
    layer = net.layers[0]
    with torch.no_grad():
        net.freeze()
        before = net(OBSERVATION)
        change(layer)
        assert not net.is_frozen
        after = net(OBSERVATION)
        assert not torch.equal(after, before)
        assert torch.equal(after, net.explicit()(OBSERVATION))
        assert net.freeze().is_frozen and torch.equal(net(OBSERVATION), after)


def test_settings_count_as_well() -> None:
    """What is not a tensor: a bound that was restored on its own."""
    net = LBDN(3, (4,), 2).freeze()
    with torch.no_grad():
        before = net(OBSERVATION)
        net.set_extra_state({"lipschitz": 9.0})
        assert not net.is_frozen and not torch.equal(net(OBSERVATION), before)


def test_a_snapshot_is_passed_over_but_not_lost_while_parameters_are_replaced() -> None:
    net = LBDN(3, (4,), 2).freeze()
    with torch.no_grad():
        before = net(OBSERVATION)
        parameters = {key: value + 1.0 for key, value in net.named_parameters()}
        assert not torch.equal(torch.func.functional_call(net, parameters, OBSERVATION), before)
        assert net.is_frozen and torch.equal(net(OBSERVATION), before)
