"""Training of static maps: Adam on mini-batches with a held-out part and early stopping."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustnn.errors import check_nonnegative, check_positive, check_positive_int, invalid

__all__ = ["Schedule", "train_regression"]

# How often in a training the held-out error is looked at.
_CHECKS = 100


@dataclass(frozen=True)
class Schedule:
    """Settings of a training.

    Attributes:
        steps: Largest number of optimiser steps.
        batch_size: Samples of a step.
        learning_rate: Adam's at the start; it falls to zero along a cosine.
        validation_fraction: Share of the samples that is held out, in [0, 1).
        patience: Share of `steps` without a better held-out error after which training stops.
    """

    steps: int
    batch_size: int
    learning_rate: float
    validation_fraction: float
    patience: float

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_int("steps", self.steps)
        check_positive_int("batch_size", self.batch_size)
        check_positive("learning_rate", self.learning_rate)
        if check_nonnegative("validation_fraction", self.validation_fraction) >= 1.0:
            raise invalid("validation_fraction", "a number in [0, 1)", self.validation_fraction, "Use 0.1.")
        check_positive("patience", self.patience)


def train_regression(
    network: nn.Module, x: Tensor, y: Tensor, weights: Tensor, schedule: Schedule, seed: int
) -> tuple[tuple[float, ...], int]:
    """Minimise the mean square of (network(x) - y) / weights, in place.

    Args:
        network: Maps (n, n_in) to (n, n_out).
        x: Inputs, shape (n, n_in).
        y: Outputs, shape (n, n_out).
        weights: Size of an error of every output, shape (n_out,), in its units.
        schedule: Settings.
        seed: Of the split and the batches.

    Returns:
        The held-out error at each check (the error of the last batch if nothing is held out), and the number of
        steps taken. The network has its best held-out weights, or its last ones.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    held_out = min(int(schedule.validation_fraction * len(x)), len(x) - 1)
    x_out, y_out = x[order[:held_out]], y[order[:held_out]]
    x, y = x[order[held_out:]], y[order[held_out:]]
    size = min(schedule.batch_size, len(x))

    def loss_of(inputs: Tensor, outputs: Tensor) -> Tensor:
        return ((network(inputs) - outputs) / weights).square().mean()

    optimizer = torch.optim.Adam(network.parameters(), lr=schedule.learning_rate)
    every = max(1, schedule.steps // _CHECKS)
    best, best_step, state = math.inf, 0, copy.deepcopy(network.state_dict())
    history: list[float] = []
    batches: list[Tensor] = []
    step = 0
    for step in range(1, schedule.steps + 1):
        if not batches:
            mixed = torch.randperm(len(x), generator=generator).to(x.device)
            batches = list(mixed[: len(x) // size * size].split(size))  # no batch of a few samples left over
        chosen = batches.pop()
        optimizer.param_groups[0]["lr"] = (
            0.5 * schedule.learning_rate * (1.0 + math.cos(math.pi * (step - 1) / schedule.steps))
        )
        optimizer.zero_grad()
        loss = loss_of(x[chosen], y[chosen])
        loss.backward()
        optimizer.step()
        if step % every and step != schedule.steps:
            continue
        with torch.no_grad():
            history.append(float(loss_of(x_out, y_out) if held_out else loss.detach()))
        if held_out and history[-1] < best:
            best, best_step, state = history[-1], step, copy.deepcopy(network.state_dict())
        elif held_out and step - best_step > schedule.patience * schedule.steps:
            break
    if held_out:
        network.load_state_dict(state)
    return tuple(history), step
