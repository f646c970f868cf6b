"""Merging of 1 x 1 convolutions into what follows them."""

from __future__ import annotations

from dataclasses import replace

import torch

from robustnn.params.conv_explicit import ConvStage, ExplicitCNN, FlattenStage, LinearStage, Stage

__all__ = ["merge_pointwise"]


def merge_pointwise(network: ExplicitCNN) -> ExplicitCNN:
    """Merge every 1 x 1 convolution without bias into the convolution or dense layer that follows it directly.

    A network of sandwich convolutions with `outer="pointwise"` becomes an ordinary one, convolution and activation in
    turns, at the cost of an ordinary one. Products are taken in float64 and rounded once. What `certify_cnn` proves is
    about the network before; the merged one differs from it by the rounding of its weights.

    Args:
        network: The network, without graph.

    Returns:
        The same map with fewer stages.
    """
    stages: list[Stage] = []
    for stage in network.stages:
        before = stages[-1] if stages else None
        flat = isinstance(before, FlattenStage) and len(stages) > 1
        mixer = stages[-2] if flat else before
        if _is_pointwise(mixer) and isinstance(mixer, ConvStage):
            matrix = mixer.weight[:, :, 0, 0].double()
            if isinstance(stage, ConvStage):
                merged = torch.einsum("omyx,mi->oiyx", stage.weight.double(), matrix)
                stages[-1] = replace(stage, weight=merged.to(stage.weight.dtype))
                continue
            if flat and isinstance(stage, LinearStage):
                blocks = stage.weight.double().reshape(len(stage.weight), len(matrix), -1)
                merged = torch.einsum("omp,mi->oip", blocks, matrix).flatten(1)
                stages[-2:] = [FlattenStage(), replace(stage, weight=merged.to(stage.weight.dtype))]
                continue
        stages.append(stage)
    return replace(network, stages=tuple(stages))


def _is_pointwise(stage: Stage | None) -> bool:
    if not isinstance(stage, ConvStage) or stage.bias is not None:
        return False
    return tuple(stage.weight.shape[2:]) == (1, 1) and stage.stride == (1, 1)
