"""Small policies whose networks have the unequal slopes of trained ones."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces

from robustnn.policies.networks import decider_of
from tests.policies.toy import algorithm_of, toy_vec_env

FOUR = spaces.Box(-5.0, 5.0, (4,))
SETTINGS: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 16, "batch_size": 16},
    "A2C": {"n_steps": 16},
    "MaskablePPO": {"n_steps": 16, "batch_size": 16},
}


def model_of(
    name: str,
    actions: spaces.Space,
    observations: spaces.Space = FOUR,
    *,
    bounded: bool = True,
    steps: int = 60,
    env: Any = None,
    policy_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A model of an algorithm, with SB3's own policy if not bounded, fitted to a wavy function."""
    algorithm, policy = algorithm_of(name)
    kwargs: dict[str, Any] = {"net_arch": [24, 24], **(policy_kwargs or {})}
    if bounded:
        kwargs.setdefault("lipschitz", 8.0)
    if name == "QRDQN":
        kwargs.setdefault("n_quantiles", 8)
    env = toy_vec_env(observations, actions, 1) if env is None else env
    model = algorithm(
        policy if bounded else "MlpPolicy",
        env,
        policy_kwargs=kwargs,
        device="cpu",
        seed=0,
        **SETTINGS.get(name, {}),
        **settings,
    )
    fit(model, steps)
    return model


def fit(model: Any, steps: int, seed: int = 0) -> None:
    """Train the deciding network on a wavy function of its input."""
    body = torch.nn.Sequential(*decider_of(model).body)
    generator = torch.Generator().manual_seed(seed)
    n_in = decider_of(model).scale().numel()
    x = torch.randn(256, n_in, generator=generator)
    n_out = body(x).shape[-1]
    y = 1.5 * torch.sin(2.0 * x @ torch.randn(n_in, n_out, generator=generator))
    optimizer = torch.optim.Adam(body.parameters(), 1e-2)
    for _ in range(steps):
        loss = (body(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def states(n: int, n_obs: int = 4, seed: int = 1) -> torch.Tensor:
    """Flat observations in the range that `fit` uses."""
    return torch.randn(n, n_obs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
