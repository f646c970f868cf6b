"""Parameter-free 1-Lipschitz layers for images: pooling scaled by its own constant, and invertible down-sampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustnn.errors import check_shape
from robustnn.params.conv_explicit import PoolStage
from robustnn.params.conv_grid import as_pair, depth_to_space, fill_up, space_to_depth

__all__ = ["AveragePool2d", "DepthToSpace", "MaxPool2d", "SpaceToDepth"]

Size = int | Sequence[int]


class _Pool2d(nn.Module):
    kind: str

    def __init__(self, kernel_size: Size, stride: Size | None = None) -> None:
        super().__init__()
        self.kernel_size = as_pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else as_pair("stride", stride)

    def stage(self) -> PoolStage:
        """Return the pooling without its factor, by value."""
        return PoolStage(self.kind, self.kernel_size, self.stride)

    @property
    def factor(self) -> float:
        """Reciprocal of the Lipschitz constant of the plain pooling."""
        return 1.0 / self.stage().lipschitz

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound: one."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Pool images.

        Args:
            x: Shape (..., channels, height, width).

        Returns:
            Shape (..., channels, height', width').
        """
        size = self.kernel_size
        fits = x.ndim >= 3 and x.shape[-2] >= size[0] and x.shape[-1] >= size[1]
        check_shape("input", x, f"(..., channels, height, width) of at least {size}", fits)
        lead = x.shape[:-3]
        y = self.factor * self.stage()(x.reshape(-1, *x.shape[-3:]))
        return y.reshape(*lead, *y.shape[1:])

    def extra_repr(self) -> str:
        """Summarise the layer for `repr`."""
        return f"{self.kernel_size}, stride={self.stride}, factor={self.factor:.4g}"


class AveragePool2d(_Pool2d):
    r"""Mean over windows divided by its norm, so that the layer is 1-Lipschitz and a constant image attains it.

    The mean over k pixels at distance t has the norm $\sqrt{\sum_{p<t} n_p^2} / k$ in each direction, n_p the taps that
    are p modulo t; without overlap that is $1 / \sqrt{k}$, and the mean over 2 x 2 pixels is multiplied by 2.

    Args:
        kernel_size: Size of the windows, one integer or (rows, columns).
        stride: Distance of the windows; that of windows without overlap if None.

    Raises:
        InvalidArgumentError: If a size is not a positive integer.

    Example:
        >>> import torch
        >>> AveragePool2d(2)(torch.ones(1, 1, 4, 4))[0, 0].tolist()
        [[2.0, 2.0], [2.0, 2.0]]
    """

    kind = "average"


class MaxPool2d(_Pool2d):
    r"""Maximum over windows divided by its Lipschitz constant, $\sqrt{\lceil k / t \rceil}$ in each direction.

    Without overlap it is the ordinary maximum; with overlap one pixel may be the maximum of several windows.

    Args:
        kernel_size: Size of the windows, one integer or (rows, columns).
        stride: Distance of the windows; that of windows without overlap if None.

    Raises:
        InvalidArgumentError: If a size is not a positive integer.
    """

    kind = "max"


class SpaceToDepth(nn.Module):
    """Move blocks of pixels into channels, an isometry; `DepthToSpace` undoes it.

    Args:
        stride: Size of the blocks, one integer or (rows, columns). Images are filled up with zeros to whole blocks.

    Example:
        >>> import torch
        >>> SpaceToDepth(2)(torch.zeros(1, 3, 8, 6)).shape
        torch.Size([1, 12, 4, 3])
    """

    def __init__(self, stride: Size) -> None:
        super().__init__()
        self.stride = as_pair("stride", stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., channels, height, width) to (..., channels * block, height / rows, width / columns)."""
        check_shape("input", x, "(..., channels, height, width)", x.ndim >= 3)
        return space_to_depth(fill_up(x, self.stride), self.stride)


class DepthToSpace(nn.Module):
    """Move channels into blocks of pixels, the inverse of `SpaceToDepth`.

    Args:
        stride: Size of the blocks, one integer or (rows, columns).
    """

    def __init__(self, stride: Size) -> None:
        super().__init__()
        self.stride = as_pair("stride", stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., channels * block, height, width) to (..., channels, height * rows, width * columns)."""
        block = self.stride[0] * self.stride[1]
        fits = x.ndim >= 3 and x.shape[-3] % block == 0
        check_shape("input", x, f"(..., a multiple of {block}, height, width)", fits)
        return depth_to_space(x, self.stride)
