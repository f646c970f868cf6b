"""Deployment of policies of images: from the raw uint8 frames to the action as one plain convolutional module."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from robustnn.bounds.conv_network import ConvBound, cnn_bound, cnn_multipliers, cnn_references
from robustnn.errors import ShapeError, check_finite, invalid
from robustnn.files import atomic_write_bytes
from robustnn.params.conv_explicit import ConvStage, ExplicitCNN, LinearStage, Stage
from robustnn.policies.bound import Bound
from robustnn.policies.cnn_bound import ImageChain
from robustnn.policies.deployed import DeployedPolicy
from robustnn.policies.image_map import ImageMap
from robustnn.policies.observation import TOO_LARGE, check_observation
from robustnn.policies.pipeline import Pipeline

__all__ = ["DeployedImagePolicy", "ImageProof", "deploy_images"]


@dataclass(frozen=True, eq=False)
class ImageProof:
    """Where the certificate of a deployed convolutional network comes from.

    Attributes:
        multipliers: Those that prove the bound of the network (`robustnn.bounds.cnn_multipliers`).
        references: Kernels that [A B] of the sandwich convolutions is nearly a part of, or None.
    """

    multipliers: tuple[Tensor, ...]
    references: tuple[Tensor | None, ...]


class DeployedImagePolicy(DeployedPolicy):
    r"""The deterministic action of a policy of images as a plain module: `nn.Conv2d`, `nn.Linear`, activations.

    It takes raw frames, uint8 or floating, shape (..., channels, height, width) with the channels of all stacked frames
    one after the other, and returns the action in the units of the action space, or the greedy discrete action. The
    division by 255 and the limits of the action are inside. It knows nothing of Stable-Baselines3 and works with
    `torch.export`, `state_dict` and `pickle`.

    Args:
        network: The weights.
        pipeline: What surrounds the network.
        proof: Where the certificate comes from.
        white: What pixels are divided by.

    Raises:
        ShapeError: If the network has other numbers of channels and outputs than the spaces ask for.

    Example:
        >>> deployed = deploy(model)  # doctest: +SKIP
        >>> deployed(torch.as_tensor(frames))  # (batch, channels, height, width)  # doctest: +SKIP
    """

    proof: ImageProof  # type: ignore[assignment]

    def __init__(self, network: ExplicitCNN, pipeline: Pipeline, proof: ImageProof, white: float) -> None:
        nn.Module.__init__(self)  # the one of vectors would look for a flat observation
        channels, height, width = pipeline.observation_space.shape or (0, 0, 0)
        n_out = network.shapes((height, width))[-1][-1]
        if (network.in_channels, n_out) != (channels, pipeline.n_outputs):
            raise ShapeError(
                f"network: expected {channels} channels and {pipeline.n_outputs} outputs, got {network.in_channels} "
                f"and {n_out}. Pass the network of a policy for these spaces."
            )
        self.pipeline, self.white = pipeline, white
        self.shape = (channels, height, width)
        self.proof = proof
        network = network.detach().to(device="cpu", dtype=torch.float32)
        self.network = network.to_sequential((height, width))
        self._template = network.map(lambda tensor: tensor.to("meta"))  # what stands between the weights
        for name, constant in pipeline.constants().items():
            self.register_buffer(name, constant)
        self.requires_grad_(False)
        self.eval()

    def scores(self, observation: Tensor) -> Tensor:
        """Return the network's output: the mean action before clipping, logits or Q-values.

        Args:
            observation: Raw frames, shape (..., channels, height, width).

        Returns:
            Shape (..., n_out).
        """
        weight = next(self.network.parameters())
        pixels = observation.to(weight.dtype) / self.white
        output: Tensor = self.network(pixels.reshape(-1, *self.shape))
        return output.reshape(*observation.shape[:-3], output.shape[-1])

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[Any], Any]:
        """Return actions as SB3's `predict` does, for example in `evaluate_policy`.

        Args:
            observation: What the environment returns, one image or a batch, its channels first or last.
            state: Passed on.
            episode_start: Not used.
            deterministic: Must be true.

        Returns:
            Actions of the shape of the action space, and `state`.

        Raises:
            InvalidArgumentError: If the observation is no array of numbers, or `deterministic` is false.
            ShapeError: If the images have another shape.
            NonFiniteError: If the observation contains NaN or infinity, or the network overflows.
        """
        if not deterministic:
            raise invalid(
                "deterministic", "True", deterministic, "A deployed policy draws no random actions."
            )
        check_observation(observation)
        images = self._channels_first(np.asarray(observation))
        x = torch.from_numpy(np.ascontiguousarray(images)).to(next(self.network.parameters()).device)
        with torch.no_grad():
            scores = self.scores(x)
            decided = self._decide(scores)
            check_finite("action", decided if self.pipeline.kind == "box" else scores, TOO_LARGE)
        action = decided.cpu().numpy()
        return action.reshape((*images.shape[:-3], *(self.pipeline.action_space.shape or ()))), state

    def _channels_first(self, images: NDArray[Any]) -> NDArray[Any]:
        channels, height, width = self.shape
        if images.ndim in (3, 4) and images.shape[-3:] == self.shape:
            return images
        if images.ndim in (3, 4) and images.shape[-3:] == (height, width, channels):
            return np.moveaxis(images, -1, -3)
        raise ShapeError(
            f"observation: expected images of shape {self.shape}, perhaps with a batch axis or with channels last, got "
            f"{images.shape}. Pass what the environment returns."
        )

    def explicit(self) -> ExplicitCNN:  # type: ignore[override]
        """Return the weights of the network by value, as they are in the module."""
        expected = [repr(module) for module in self._template.to_sequential(self.shape[1:])]
        if [repr(module) for module in self.network] != expected:
            raise invalid(
                "network", f"the layers that were deployed, {expected}", [repr(module) for module in self.network],
                "Change weights only: others have another function and bound.",
            )  # fmt: skip
        modules = [module for module in self.network if isinstance(module, (nn.Conv2d, nn.Linear))]
        stages: list[Stage] = []
        for stage in self._template.stages:
            if isinstance(stage, (ConvStage, LinearStage)):
                module = modules.pop(0)
                bias = None if module.bias is None else module.bias.detach().clone()
                stage = replace(stage, weight=module.weight.detach().clone(), bias=bias)
            stages.append(stage)
        return replace(self._template, stages=tuple(stages))

    def action_map(self, *, dtype: torch.dtype = torch.float64) -> ImageMap:
        """Return what is shipped as a differentiable map of raw frames by value.

        Args:
            dtype: Dtype of the result.

        Returns:
            Raw images, channels first -> action, or the scores of discrete actions.
        """
        limits = self.pipeline.limits()
        low, high = (None, None) if limits is None else limits[:2]
        found = ImageMap(
            self.explicit().to(device="cpu"), low=low, high=high, kind=self.pipeline.kind,
            choices=self.pipeline.choices, white=self.white,
        )  # fmt: skip
        return found.to(dtype=dtype)  # type: ignore[return-value]

    def certificate(self, *, search: bool = False) -> ConvBound:  # type: ignore[override]
        """Prove the bound of the network as it is in the module, from pixels in [0, 1] to its outputs, in float64.

        Args:
            search: Must be false: there is no search for tighter bounds of convolutional networks.

        Returns:
            The bound with its parts; larger than the declared one if weights were changed.

        Raises:
            CertificateError: If weights were changed such that nothing is proved any more.
            InvalidArgumentError: If `search` is true.
        """
        if search:
            raise invalid("search", "False for a policy of images", True, "LipSDP is for dense networks.")
        return cnn_bound(self.explicit(), self.proof.multipliers, self.shape[1:], self.proof.references)

    def bound(self, certificate: ConvBound | None = None) -> Bound:  # type: ignore[override]
        """Compose the bound from raw frames to action out of a certificate of the network.

        Args:
            certificate: That of this network, from `certificate`; made anew if None.

        Returns:
            The bound with its stages; its digest is that of `action_map`.
        """
        proved = self.certificate() if certificate is None else certificate
        pipeline = self.pipeline
        chain = ImageChain(self.shape, pipeline.frames, self.white, pipeline.output, pipeline.notes)
        digest = self.action_map().network_sha256
        return chain.bound(proved.value, pipeline.n_outputs, "proved from the weights", digest)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the module as an ONNX model, compared with the module where onnxruntime is installed.

        The input "observation" of shape (batch, channels, height, width) is uint8. The output "action" is (batch,
        n_act) in float32 for continuous actions, else int64; discrete actions come with a second output "logits" or
        "values".

        Args:
            path: The file.

        Raises:
            CheckpointError: If the model does not reproduce the module; nothing is written.
            RobustNNError: If onnx is not installed.
        """
        from robustnn.policies.deploy_images_onnx import image_onnx_bytes

        atomic_write_bytes(path, image_onnx_bytes(self))


def deploy_images(policy: Any, vec_env: VecEnv | None = None) -> DeployedImagePolicy:
    """Return the deterministic action of a policy of images as a plain module; see `robustnn.policies.deploy`.

    Args:
        policy: An `LBDNCnnPolicy` or `LBDNCnnDQNPolicy`.
        vec_env: The vector environment that feeds it, for its `VecFrameStack`; None for one frame.

    Returns:
        The module in float32 on the CPU.

    Raises:
        InvalidArgumentError: If a wrapper changes images in another way.
        ShapeError: If the environment returns images of another size.
    """
    chain, net = policy.chain(vec_env), policy.lbdn
    with torch.no_grad():
        network = net.explicit()
        multipliers = tuple(t.cpu() for t in cnn_multipliers(net))
    space = spaces.Box(0, 255, chain.shape, np.uint8)
    pipeline = Pipeline(
        space, policy.action_space, chain.output, frames=chain.frames, names=chain.names, notes=chain.notes
    )
    return DeployedImagePolicy(network, pipeline, ImageProof(multipliers, cnn_references(net)), chain.white)
