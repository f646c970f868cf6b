"""Networks of equal size: the counts are those of real modules, and no other common factor comes nearer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from stable_baselines3 import PPO
from torch import nn

from robustnn.errors import InvalidArgumentError
from robustnn.nn import LBDN, MLP
from robustnn.policies import LBDNActorCriticPolicy
from robustnn.policies.capacity import matching_widths, n_parameters

SIZES: tuple[tuple[int, tuple[int, ...], int], ...] = (
    (3, (64, 64), 1),
    (17, (400, 300), 6),
    (4, (), 2),
    (1, (1,), 1),
    (100, (1,), 1),
    (3, (5, 1, 9), 2),
    (376, (256, 256), 17),
    (8, (7, 7, 7, 7), 4),
)


def trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_counts_are_those_of_the_modules(size: tuple[int, tuple[int, ...], int], bias: bool) -> None:
    assert n_parameters(*size, bias=bias) == trained(LBDN(*size, bias=bias))
    assert n_parameters(*size, kind="mlp", bias=bias) == trained(MLP(*size, bias=bias))
    assert n_parameters(*size) + 1 == trained(LBDN(*size, trainable_lipschitz=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_common_factor_comes_nearer(size: tuple[int, tuple[int, ...], int], bias: bool) -> None:
    n_in, widths, n_out = size
    found = matching_widths(*size, bias=bias)
    target = n_parameters(*size, kind="mlp", bias=bias)
    assert len(found) == len(widths) and all(1 <= a <= b for a, b in zip(found, widths, strict=True))
    away = abs(n_parameters(n_in, found, n_out, bias=bias) - target)
    factors = [k / 4000 for k in range(4400)]
    tried = {tuple(max(1, round(factor * width)) for width in widths) for factor in factors}
    assert found in tried or not widths
    nearest = min(abs(n_parameters(n_in, other, n_out, bias=bias) - target) for other in tried)
    assert away <= nearest


def test_equal_widths_give_the_nearest_width_of_all() -> None:
    for n_in, n_out in itertools.product((1, 5, 30), (1, 8)):
        (a, b) = matching_widths(n_in, (64, 64), n_out)
        target = n_parameters(n_in, (64, 64), n_out, kind="mlp")
        distance = {w: abs(n_parameters(n_in, (w, w), n_out) - target) for w in range(1, 65)}
        assert a == b and distance[a] == min(distance.values())


def test_the_policy_of_the_documentation_has_the_capacity_of_sb3s() -> None:
    widths = list(matching_widths(3, (64, 64), 1))
    kwargs = {"lipschitz": 10.0, "net_arch": {"pi": widths, "vf": [64, 64]}}
    ours = PPO(LBDNActorCriticPolicy, "Pendulum-v1", policy_kwargs=kwargs, device="cpu")
    theirs = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    assert widths == [37, 37]
    assert abs(trained(ours.policy) / trained(theirs.policy) - 1.0) < 0.01


BAD: tuple[tuple[str, tuple[object, Sequence[object] | object, object]], ...] = (
    ("n_in", (0, (4,), 1)),
    ("n_out", (3, (4,), 0)),
    ("n_out", (3, (4,), 1.5)),
    (r"widths\[1\]", (3, (4, -1), 1)),
    ("widths", (3, 4, 1)),
    ("widths", (3, "44", 1)),
)


@pytest.mark.parametrize(("name", "size"), BAD, ids=str)
def test_bad_sizes_are_refused(name: str, size: tuple[int, tuple[int, ...], int]) -> None:
    for function in (matching_widths, n_parameters):
        with pytest.raises(InvalidArgumentError, match=f"^{name}: expected"):
            function(*size)  # type: ignore[operator]
    with pytest.raises(InvalidArgumentError, match="^kind: expected"):
        n_parameters(3, (4,), 1, kind="cnn")
