"""Several processes for one training, started by torch's launcher: every one has a part of every batch.

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m experiments.classification --cifar

The first process has the run folder, certifies and attacks; the others wait for the next training. All read checkpoints
from the same file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from robustnn.errors import RobustNNError


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes of torch's launcher, if it started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        distributed.barrier()  # one that leaves while another still listens to it may abort it
    finally:
        distributed.destroy_process_group()


def together() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized()


def is_first() -> bool:
    """Whether this process has the run folder."""
    return not together() or distributed.get_rank() == 0


def announce(arguments: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Tell the others what is trained next, or None that all is done; they call it with None and get that.

    Args:
        arguments: Of the next training, from the first process.
    """
    if not together():
        return arguments
    box = [arguments]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def follow(train: Callable[..., Any]) -> None:
    """Train what the first process announces, until it has finished."""
    while (arguments := announce(None)) is not None:
        train(*arguments)


def share(batch: Tensor) -> Tensor:
    """Return the part of a batch that this process has."""
    return batch[distributed.get_rank() :: distributed.get_world_size()] if together() else batch


def enough(batch: Tensor) -> bool:
    """Whether there is something of a batch for every process."""
    return not together() or len(batch) >= distributed.get_world_size()


def averaged(classifier: nn.Module) -> nn.Module:
    """Return a classifier whose gradients are averaged over all processes."""
    return DistributedDataParallel(classifier) if together() else classifier


def mean_of(value: float, device: torch.device) -> float:
    """Return the mean of a number over all processes."""
    if not together():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()


def check_equal(module: nn.Module) -> None:
    """Raise unless all processes have the same parameters, to the last bit."""
    if not together():
        return
    for name, parameter in module.named_parameters():
        first = parameter.detach().clone()
        distributed.broadcast(first, src=0)
        if not torch.equal(first, parameter.detach()):
            raise RobustNNError(
                f"{name}: expected the same weights in all processes, got different ones in process "
                f"{distributed.get_rank()}. Let all processes read the same checkpoints."
            )
