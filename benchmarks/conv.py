"""Convolutional sandwich layers against an ordinary convolution and against the published Fourier formulation.

One layer of 32 to 32 channels, 3 x 3, on 32 images of 32 x 32 in float32 on one thread: `nn.Conv2d` + `nn.ReLU`, the
layer with explicit kernels (zero padding), the same with a 1 x 1 second convolution ("pointwise"), our layer by Fourier
transform, and the published formulation of the latter (below: a complex inverse and four products per frequency,
differentiated by autograd). Timed are a forward and backward
pass, with the gradient of the input, and a forward pass without gradients of the frozen layers. The layers take turns,
a few passes at a time and in rotating order; a ratio is the median over the turns of the ratio within a turn.

Run: python -m benchmarks.conv [--smoke]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import machine
from benchmarks.sandwich import forward_pass, in_turns, median_ratio
from robustnn.nn import SandwichConv2d

CHANNELS, SIZE, BATCH = 32, 32, 32
TARGETS = {
    "kernel_training_to_conv": 3.6,
    "kernel_evaluation_to_conv": 2.3,
    "fft_training_to_published": 0.75,
}


class PublishedConv(nn.Module):
    r"""The circular layer evaluated as Wang & Manchester (ICML 2023) write it, for square images of even size.

    $$S_f = e^{-2 \pi i s (f_1 + f_2) / n} \, \overline{\hat W_f}, \quad [U; V] = \alpha S_f^T / \|S\|_F, \quad
      Z = U - U^H + V^H V$$
    $$[A_f \; B_f]^T = [(I + Z)^{-1} (I - Z); \; -2 V (I + Z)^{-1}], \quad
      h^+ = \sqrt2 A^H \Psi \sigma(\sqrt2 \Psi^{-1} B h + b)$$

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: k.
        size: Height and width of the images.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels + out_channels, out_channels, kernel_size)
        self.weight, self.bias = conv.weight, conv.bias
        self.psi = nn.Parameter(torch.zeros(out_channels))
        frequency = torch.arange(size)
        turns = (kernel_size - 1) // 2 * (frequency[:, None] + frequency)[:, : size // 2 + 1]
        self.register_buffer("shift", torch.exp(-2j * math.pi * turns / size).reshape(-1, 1, 1))
        with torch.no_grad():
            self.alpha = nn.Parameter(self.spectrum(size).norm())

    def spectrum(self, size: int) -> Tensor:
        """Return S_f, shape (F, out, out + in)."""
        transformed = torch.fft.rfft2(self.weight, (size, size))
        return self.shift * transformed.flatten(2).permute(2, 0, 1).conj()

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the layer; shape (b, in, n, n) to (b, out, n, n)."""
        batch, _, n, _ = x.shape
        out = len(self.weight)
        spectrum = self.spectrum(n)
        tall = (self.alpha * spectrum / spectrum.norm()).transpose(1, 2)
        u, v = tall[:, :out], tall[:, out:]
        identity = torch.eye(out, dtype=tall.dtype)[None]
        z = u - u.conj().transpose(1, 2) + v.conj().transpose(1, 2) @ v
        inverse = torch.inverse(identity + z)
        q = torch.cat((inverse @ (identity - z), -2 * v @ inverse), dim=1).transpose(1, 2)
        a, b = q[:, :, :out], q[:, :, out:]
        psi, psi_inverse = (torch.exp(s * self.psi).diag().to(q.dtype) for s in (1.0, -1.0))
        frequencies = torch.fft.rfft2(x).permute(2, 3, 1, 0).reshape(len(q), -1, batch)
        frequencies = math.sqrt(2) * psi_inverse @ b @ frequencies
        x = torch.fft.irfft2(frequencies.reshape(n, -1, out, batch).permute(3, 2, 0, 1))
        x = torch.relu(x + self.bias[:, None, None])
        frequencies = torch.fft.rfft2(x).permute(2, 3, 1, 0).reshape(len(q), out, batch)
        frequencies = math.sqrt(2) * a.conj().transpose(1, 2) @ psi @ frequencies
        return torch.fft.irfft2(frequencies.reshape(n, -1, out, batch).permute(3, 2, 0, 1))


def training_step(net: nn.Module, x: Tensor, cotangent: Tensor) -> Any:
    """Return a function that runs one forward and backward pass into fresh gradients, that of the input too."""

    def step() -> None:
        net.zero_grad(set_to_none=True)
        x.grad = None
        net(x).backward(cotangent)

    return step


def layers() -> dict[str, nn.Module]:
    """Return the layers, the two of the Fourier kind with one function."""
    torch.manual_seed(0)
    published = PublishedConv(CHANNELS, CHANNELS, 3, SIZE)
    fft = SandwichConv2d(CHANNELS, CHANNELS, 3, parametrization="fft", image_size=SIZE)
    fft.load_state_dict(
        {name: t for name, t in published.state_dict().items() if name != "shift"}, strict=False
    )
    with torch.no_grad():
        fft.alpha.copy_(fft.weight.norm())
    return {
        "conv": nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()),
        "kernel": SandwichConv2d(CHANNELS, CHANNELS, 3),
        "pointwise": SandwichConv2d(CHANNELS, CHANNELS, 3, outer="pointwise"),
        "fft": fft,
        "published": published,
    }


def measure(turns: int, seconds: float) -> dict[str, Any]:
    """Compare the layers.

    Args:
        turns: Number of turns.
        seconds: Approximate time of one turn of the slowest layer.

    Returns:
        Median times in ms, and the ratios.
    """
    nets = layers()
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, requires_grad=True)
    cotangent = torch.randn(BATCH, CHANNELS, SIZE, SIZE) / BATCH
    # One and the same function, or the comparison means nothing.
    torch.testing.assert_close(nets["fft"](x), nets["published"](x), rtol=1e-3, atol=1e-4)
    training = in_turns(
        {name: training_step(net, x, cotangent) for name, net in nets.items()}, turns, seconds
    )
    for name in ("kernel", "pointwise", "fft"):
        nets[name].freeze()
    held = {name: forward_pass(nets[name], x.detach()) for name in ("conv", "kernel", "pointwise", "fft")}
    evaluation = in_turns(held, turns, seconds)
    return {
        "kernel_training_to_conv": median_ratio(training["kernel"], training["conv"]),
        "kernel_evaluation_to_conv": median_ratio(evaluation["kernel"], evaluation["conv"]),
        "fft_training_to_published": median_ratio(training["fft"], training["published"]),
        "pointwise_training_to_conv": median_ratio(training["pointwise"], training["conv"]),
        "pointwise_evaluation_to_conv": median_ratio(evaluation["pointwise"], evaluation["conv"]),
        "fft_training_to_conv": median_ratio(training["fft"], training["conv"]),
        "published_training_to_conv": median_ratio(training["published"], training["conv"]),
        "fft_evaluation_to_conv": median_ratio(evaluation["fft"], evaluation["conv"]),
        "training_median_ms": {name: 1e3 * statistics.median(values) for name, values in training.items()},
        "evaluation_median_ms": {
            name: 1e3 * statistics.median(values) for name, values in evaluation.items()
        },
    }


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=21, help="turns of each layer")
    parser.add_argument("--seconds", type=float, default=0.3, help="time of one turn of one layer")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.smoke:
        options.turns, options.seconds = 1, 0.01
    results = measure(options.turns, options.seconds)
    print(f"{CHANNELS} channels, {SIZE} x {SIZE} pixels, batch {BATCH}, float32, one thread")
    for name, milliseconds in results["training_median_ms"].items():
        held = results["evaluation_median_ms"].get(name)
        print(
            f"{name:>10}: forward + backward {milliseconds:8.2f} ms"
            + (f", frozen forward {held:7.2f} ms" if held else "")
        )
    for name, target in TARGETS.items():
        print(f"{name:>28}: {results[name]:6.3f} (target {target})")
    print(json.dumps({"benchmark": "conv", "targets": TARGETS, **results, "machine": machine()}))


if __name__ == "__main__":
    main()
