"""A learned adversary: a second policy that chooses the observation error, trained against the first."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.budget import Budget
from robustnn.closedloop.padded import padded
from robustnn.closedloop.perturb import Loop, Perturbation, Policy, Process
from robustnn.errors import CheckpointError, ShapeError, check_positive_int, invalid
from robustnn.files import atomic_write_bytes
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap
from robustnn.policies.normalization import Normalization

__all__ = ["LearnedAdversary", "perturbed"]

_HEADER = {"format": "robustnn learned adversary", "version": 1}


def perturbed(ball: Ball, observation: Tensor, output: Tensor) -> Tensor:
    r"""Return $y + d\,P(\epsilon z)$ with the adversary's output z and the projection P on the ball.

    Args:
        ball: The admissible perturbations, with the scale d.
        observation: y, shape (..., n_y).
        output: z, shape (..., n_y), within the cube of -1 to 1.

    Returns:
        Shape (..., n_y).
    """
    return observation + ball.to_observation(ball.project(ball.eps * output))


@dataclass(frozen=True, eq=False)
class LearnedAdversary(Perturbation):
    r"""A policy of the attacker, $\delta_t = d\,P(\epsilon\,\nu(y_t))$, in the manner of ATLA.

    The map $\nu$ sees the true observation and returns a point of the cube, P projects on the ball. It is learned
    against one policy by `train_adversary` (Zhang et al., ICLR 2021, arXiv 2101.08452), and knows nothing of the
    policy, the plant or the rewards when it attacks. `dataclasses.replace(adversary, eps=...)` is the same map with
    another size.

    Args:
        eps: Radius, in observation units over those of the scale; zero or greater.
        network: Maps true raw observations (..., n_y) to (..., n_y) within -1 to 1.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        timesteps: Environment steps that it has learned from.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ShapeError: If the network has other numbers of inputs than outputs.
    """

    eps: float
    network: ActionMap
    norm: Norm = "l2"
    scale: Sequence[float] | None = None
    timesteps: int = 0
    name: ClassVar[str] = "learned_adversary"

    def __post_init__(self) -> None:
        """Check the arguments."""
        ball = self.ball
        object.__setattr__(self, "eps", ball.eps)
        object.__setattr__(self, "scale", ball.scale)
        object.__setattr__(self, "timesteps", check_positive_int("timesteps", self.timesteps, minimum=0))
        if not isinstance(self.network, ActionMap):
            raise invalid("network", "an ActionMap", type(self.network).__name__, "Use train_adversary.")
        mlp = self.network.network
        if mlp.in_features != mlp.out_features:
            raise ShapeError(
                f"network: expected as many outputs as inputs, got {mlp.out_features} and {mlp.in_features}. "
                "It must return one number per observation component."
            )

    @property
    def ball(self) -> Ball:
        """The set of admissible perturbations."""
        return Ball(self.eps, self.norm, self.scale)

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""
        n_y = loop.plant.n_y
        self.ball.check_components(n_y)
        if self.network.network.in_features != n_y:
            raise ShapeError(
                f"perturbation: expected an adversary of {n_y} observation components, got one of "
                f"{self.network.network.in_features}. Train one for this environment."
            )
        return _LearnedProcess(self.ball, padded(self.network.to(loop.device, loop.dtype)))

    def describe(self) -> dict[str, Any]:
        """Return name, parameters and the digests of the network as plain JSON values."""
        return {
            "name": self.name,
            **self.ball.describe(),
            "timesteps": self.timesteps,
            "network_sha256": self.network.network_sha256,
            "statistics_sha256": self.network.statistics_sha256,
        }

    def budget(self, steps: int) -> Budget:
        """Return what an episode of so many steps costs, and what was collected to learn."""
        return Budget(collected=self.timesteps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adversary to a `.npz` file of plain arrays, in one step.

        Args:
            path: File to write; its folder must exist.
        """
        mlp, norm = self.network.network, self.network.normalization
        header = {
            **_HEADER, "eps": self.eps, "norm": self.norm, "scale": self.scale, "timesteps": self.timesteps,
            "activation": mlp.activation, "layers": len(mlp.weights), "squash": self.network.squash,
        }  # fmt: skip
        arrays: dict[str, Any] = {"header": np.array(json.dumps(header))}
        arrays |= {f"weight_{k}": _array(w) for k, w in enumerate(mlp.weights)}
        arrays |= {f"bias_{k}": _array(b) for k, b in enumerate(mlp.biases) if b is not None}
        if norm is not None:
            clip = torch.as_tensor(norm.clip, dtype=norm.std.dtype).expand_as(norm.std)
            arrays |= {"mean": _array(norm.mean), "std": _array(norm.std), "clip": _array(clip)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        atomic_write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LearnedAdversary:
        """Read a file written by `save`; nothing in it is executed.

        Args:
            path: The file.

        Returns:
            The adversary, its network to the last bit.

        Raises:
            CheckpointError: If the file is missing, damaged, or not one of ours.
        """
        try:
            with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as data:
                header = json.loads(str(data["header"]))
                if {key: header.get(key) for key in _HEADER} != _HEADER:
                    raise ValueError("another format")
                weights = tuple(torch.from_numpy(data[f"weight_{k}"]) for k in range(header["layers"]))
                biases = tuple(
                    torch.from_numpy(data[f"bias_{k}"]) if f"bias_{k}" in data else None
                    for k in range(len(weights))
                )
                norm = None
                if "mean" in data:
                    mean, std, clip = (torch.from_numpy(data[key]) for key in ("mean", "std", "clip"))
                    norm = Normalization(mean, std, clip)
            mlp = ExplicitMLP(weights, biases, header["activation"])
            network = _within_cube(mlp, norm, squash=bool(header["squash"]))
            return cls(header["eps"], network, header["norm"], header["scale"], header["timesteps"])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            zipfile.BadZipFile,
        ) as error:
            raise CheckpointError(
                f"path: expected a file of LearnedAdversary.save, got {os.fspath(path)} ({error}). "
                "Restore it, or train the adversary again."
            ) from error


class _LearnedProcess(Process):
    def __init__(self, ball: Ball, network: Policy) -> None:
        self._ball, self._network = ball, network

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        with torch.no_grad():
            output = self._network(observation)
        return perturbed(self._ball, observation, output)


def _within_cube(mlp: ExplicitMLP, normalization: Normalization | None, *, squash: bool = False) -> ActionMap:
    """Policy of the attacker with actions clipped to the cube."""
    ones = mlp.weights[-1].new_ones(mlp.out_features)
    return ActionMap(mlp, normalization, -ones, ones, squash)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array
