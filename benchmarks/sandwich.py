"""Training step of the LBDN against the published formulation of its layers, and against an ordinary network.

All networks have four hidden layers and an output layer of one width, as many inputs, and relu. Timed is one
forward and backward pass in float32 on one thread: the published formulation (below, with one `torch.inverse`
and two products with the batch per layer, differentiated by autograd), `robustnn.LBDN`, and an `nn.Sequential`.
Two more columns compare the forward pass of a frozen LBDN, without gradients, with that of the `nn.Sequential`.
The networks take turns, a few passes at a time and in rotating order; a ratio is the median over the turns of
the ratio within a turn, so that a busy machine slows all of them alike.

Run: python -m benchmarks.sandwich [--smoke]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# OpenBLAS (scipy) reads this once, on import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.common import machine  # noqa: E402
from robustnn import LBDN  # noqa: E402

DEPTH = 4
# (width, batch): largest time allowed, as a fraction of that of the published formulation.
TARGETS = {
    (64, 64): 0.45,
    (64, 1024): 0.50,
    (256, 64): 0.38,
    (256, 1024): 0.60,
    (1024, 64): 0.27,
    (1024, 1024): 0.57,
}


class PublishedLayer(nn.Module):
    r"""The sandwich layer evaluated as Wang & Manchester (ICML 2023) write it.

    $$Z = X - X^T + Y^T Y, \quad A^T = (I + Z)^{-1}(I - Z), \quad B^T = -2 Y (I + Z)^{-1}$$
    $$h^+ = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B h + b)$$

    Args:
        features: Width n, of input and output.
        output: Whether this is an output layer, $h^+ = B h + b$.
    """

    def __init__(self, features: int, *, output: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(2 * features, features)))
        self.alpha = nn.Parameter(self.weight.detach().norm())
        self.bias = nn.Parameter(torch.zeros(features))
        self.psi = None if output else nn.Parameter(torch.zeros(features))

    def forward(self, h: Tensor) -> Tensor:
        """Evaluate the layer; shape (b, n) to (b, n)."""
        n = self.weight.shape[1]
        scaled = self.alpha * self.weight / self.weight.norm()
        x, y = scaled[:n], scaled[n:]
        identity = torch.eye(n)
        z = x - x.T + y.T @ y
        inverse = torch.inverse(identity + z)
        a_t, b_t = inverse @ (identity - z), -2 * y @ inverse
        if self.psi is None:
            return h @ b_t + self.bias
        h = math.sqrt(2) * torch.exp(-self.psi) * (h @ b_t) + self.bias
        return math.sqrt(2) * (torch.exp(self.psi) * torch.relu(h)) @ a_t.T


def plain_network(width: int) -> nn.Sequential:
    """Return the ordinary network of the same widths."""
    hidden = [module for _ in range(DEPTH) for module in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, width))


def training_step(net: nn.Module, x: Tensor, cotangent: Tensor) -> Callable[[], None]:
    """Return a function that runs one forward and backward pass into fresh gradients."""

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(x).backward(cotangent)

    return step


def forward_pass(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a function that evaluates the network without gradients."""

    def step() -> None:
        with torch.no_grad():
            net(x)

    return step


def in_turns(steps: dict[str, Callable[[], None]], turns: int, seconds: float) -> dict[str, list[float]]:
    """Run every step some times per turn, in rotating order.

    Args:
        steps: What to time.
        turns: Number of turns.
        seconds: Approximate time of one turn of the slowest step.

    Returns:
        Seconds per pass, one number per turn.
    """
    slowest = 0.0
    for step in steps.values():
        step()
        start = time.perf_counter()
        step()
        slowest = max(slowest, time.perf_counter() - start)
    passes = max(1, int(seconds / slowest))
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            for _ in range(passes):
                steps[name]()
            times[name].append((time.perf_counter() - start) / passes)
    return times


def median_ratio(times: list[float], reference: list[float]) -> float:
    """Return the median over the turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def measure(width: int, batch: int, turns: int, seconds: float) -> dict[str, Any]:
    """Compare the networks at one width and batch size.

    Args:
        width: Width n of all layers.
        batch: Batch size b.
        turns: Number of turns.
        seconds: Approximate time of one turn of the slowest network.

    Returns:
        Median times in ms, and the ratios.
    """
    torch.manual_seed(0)
    lbdn = LBDN(width, (width,) * DEPTH, width)
    published = nn.Sequential(*(PublishedLayer(width, output=k == DEPTH) for k in range(DEPTH + 1)))
    published.load_state_dict(
        {k.removeprefix("layers."): v for k, v in lbdn.state_dict().items() if "extra" not in k}
    )
    plain = plain_network(width)
    x, cotangent = torch.randn(batch, width), torch.randn(batch, width) / batch
    # One and the same function, or the comparison means nothing.
    torch.testing.assert_close(lbdn(x), published(x), rtol=1e-3, atol=1e-4)
    networks = {"published": published, "lbdn": lbdn, "mlp": plain}
    times = in_turns(
        {name: training_step(net, x, cotangent) for name, net in networks.items()}, turns, seconds
    )
    lbdn.freeze()
    frozen = in_turns({"mlp": forward_pass(plain, x), "lbdn": forward_pass(lbdn, x)}, turns, seconds)
    return {
        "width": width,
        "batch": batch,
        "target": TARGETS[width, batch],
        "ratio_to_published": median_ratio(times["lbdn"], times["published"]),
        "ratio_to_mlp": median_ratio(times["lbdn"], times["mlp"]),
        "frozen_forward_ratio_to_mlp": median_ratio(frozen["lbdn"], frozen["mlp"]),
        "median_ms": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "frozen_forward_median_ms": {
            name: 1e3 * statistics.median(values) for name, values in frozen.items()
        },
    }


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=21, help="turns of each network")
    parser.add_argument("--seconds", type=float, default=0.1, help="time of one turn of one network")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = list(TARGETS)
    if options.smoke:
        settings, options.turns, options.seconds = settings[:3], 3, 0.01
    print(f"forward + backward, float32, {DEPTH} hidden layers and an output layer of one width, one thread")
    print(
        f"{'width':>6}{'batch':>6}{'published ms':>14}{'LBDN ms':>10}{'MLP ms':>9}"
        f"{'to published':>14}{'target':>8}{'to MLP':>8}{'frozen to MLP':>15}"
    )
    results = []
    for width, batch in settings:
        row = measure(width, batch, options.turns, options.seconds)
        results.append(row)
        ms = row["median_ms"]
        print(
            f"{width:>6}{batch:>6}{ms['published']:>14.3f}{ms['lbdn']:>10.3f}{ms['mlp']:>9.3f}"
            f"{row['ratio_to_published']:>14.3f}{row['target']:>8.2f}{row['ratio_to_mlp']:>8.2f}"
            f"{row['frozen_forward_ratio_to_mlp']:>15.3f}",
            flush=True,
        )
    print(json.dumps({"benchmark": "sandwich", "depth": DEPTH, "settings": results, "machine": machine()}))


if __name__ == "__main__":
    main()
