"""The solver-free LipSDP bound against an interior-point solver, and its time on a large network.

Ten networks of up to 120 hidden neurons with random weights, of size 1/sqrt(n_in), or trained on a curve. Every
answer, also the solver's, is re-checked by a Cholesky factorisation that allows for rounding; the table has the
checked values. A lower bound by gradient ascent is printed beside, and so are the bounds in closed form. Then a
network of 10 hidden layers of width 256, where the solver cannot follow.

The solver needs cvxpy and Clarabel (extra `certify`).

Run: python -m benchmarks.lipsdp [--smoke] [--threads 1] [--large-only]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.common import machine
from robustnn import MLP, ExplicitMLP
from robustnn.bounds import eclipse, eclipse_fast, lipsdp, lower_bound, product_bound

# (n_in, hidden widths, n_out), activation, whether it is trained
NETWORKS: tuple[tuple[tuple[int, tuple[int, ...], int], str, bool], ...] = (
    ((2, (16,), 1), "relu", False),
    ((4, (20, 20, 20), 3), "relu", False),
    ((10, (60, 60), 10), "tanh", False),
    ((3, (24, 24), 3), "leaky_relu", False),
    ((3, (32, 32), 2), "sigmoid", False),
    ((8, (12,) * 6, 8), "relu", False),
    ((2, (100,), 5), "softplus", False),
    ((4, (40, 40, 40), 3), "relu", False),
    ((1, (32, 32), 1), "relu", True),
    ((2, (40, 40), 1), "tanh", True),
)


def build(shape: tuple[int, tuple[int, ...], int], activation: str, trained: bool, seed: int) -> ExplicitMLP:
    """Return a network with random weights, or one trained on the sum of sines of its inputs."""
    torch.manual_seed(seed)
    net = MLP(*shape, activation=activation, dtype=torch.float64)
    if not trained:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
            return net.explicit()
    x = torch.linspace(-1, 1, 256, dtype=torch.float64).unsqueeze(-1).repeat(1, shape[0])
    x = x + 0.2 * torch.randn_like(x)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (net(x) - torch.sin(4 * x).sum(-1, keepdim=True)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return net.explicit()


def compare(index: int, iterations: int) -> dict[str, Any]:
    """Bound one network of the table by every method."""
    shape, activation, trained = NETWORKS[index]
    network = build(shape, activation, trained, index)
    start = time.perf_counter()
    ours = lipsdp(network, iterations=iterations).value
    middle = time.perf_counter()
    solver = lipsdp(network, solver="clarabel").value
    end = time.perf_counter()
    starts = torch.randn(128, shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {
        "shape": [shape[0], *shape[1], shape[2]],
        "activation": activation,
        "trained": trained,
        "lower": lower_bound(network, starts, iterations=100).value,
        "lipsdp": ours,
        "clarabel": solver,
        "excess": ours / solver - 1,
        "eclipse": eclipse(network).value,
        "eclipse_fast": eclipse_fast(network).value,
        "product": product_bound(network),
        "seconds": {"lipsdp": middle - start, "clarabel": end - middle},
    }


def large(depth: int, width: int) -> dict[str, Any]:
    """Time the default settings on a deep, wide network."""
    network = build((16, (width,) * depth, 4), "relu", False, 0)
    start = time.perf_counter()
    bound = lipsdp(network)
    seconds = time.perf_counter() - start
    return {
        "depth": depth, "width": width, "seconds": seconds, "steps": len(bound.history), "lipsdp": bound.value,
        "eclipse_fast": eclipse_fast(network).value, "product": product_bound(network),
    }  # fmt: skip


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--large-only", action="store_true", help="only the network of 10 layers")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    indices = range(0) if options.large_only else range(1 if options.smoke else len(NETWORKS))
    rows = []
    print(f"{'network':<26}{'lower':>9}{'LipSDP':>10}{'Clarabel':>10}{'excess':>10}{'ECLipsE':>10}{'Fast':>10}"
          f"{'product':>10}{'s':>8}{'s solver':>9}")  # fmt: skip
    for index in indices:
        row = compare(index, 300)
        rows.append(row)
        name = f"{'-'.join(map(str, row['shape']))} {row['activation']}"
        print(f"{name:<26}{row['lower']:9.4f}{row['lipsdp']:10.5f}{row['clarabel']:10.5f}{row['excess']:10.1e}"
              f"{row['eclipse']:10.4f}{row['eclipse_fast']:10.4f}{row['product']:10.4f}"
              f"{row['seconds']['lipsdp']:8.2f}{row['seconds']['clarabel']:9.2f}", flush=True)  # fmt: skip
    big = large(3, 32) if options.smoke else large(10, 256)
    print(f"{big['depth']} layers of width {big['width']}: {big['lipsdp']:.3f} in {big['seconds']:.1f} s "
          f"({big['steps']} steps; ECLipsE-Fast {big['eclipse_fast']:.2f}, product {big['product']:.1f})")  # fmt: skip
    print(json.dumps({"benchmark": "lipsdp", "networks": rows, "large": big, "machine": machine()}))


if __name__ == "__main__":
    main()
