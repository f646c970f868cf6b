"""Training step through a simulation: `robustnn.dynamics.simulate` against a plain torch loop over time.

The model is x[t+1] = f(x[t], u[t]), y[t] = C x[t] with four states, one input, one output and an f of two hidden
layers of 64 tanh units, once an ordinary network and once an LBDN, converted to its explicit weights once per
simulation on both sides. Timed is one training step with B records of T samples: simulation, mean squared error,
backward pass, Adam, on one thread. The reference is the loop one would write: x = f(torch.cat((x, u[:, t]), -1)) for
every t, and all outputs in one product. The two take turns, a few steps at a time and in alternating order; a ratio
is the median over the turns of (time of the loop) / (time of `simulate`). Compilation is over before the clock
starts.

Run: python -m benchmarks.simulate [--smoke]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import machine
from benchmarks.sandwich import in_turns, median_ratio
from robustnn import LBDN, ExplicitMLP
from robustnn.dynamics import ExplicitStateSpace, simulate

N_X, WIDTHS = 4, (64, 64)
# (records, samples): least ratio aimed at.
TARGETS = {(1, 1024): 8.0, (64, 64): 1.3, (256, 64): 1.2}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def network(kind: str, dtype: torch.dtype) -> nn.Module:
    """Return f, an `nn.Sequential` for "mlp" or an `LBDN`."""
    torch.manual_seed(0)
    if kind == "lbdn":
        return LBDN(N_X + 1, WIDTHS, N_X, lipschitz=1.0, activation="tanh").to(dtype)
    sizes = (N_X + 1, *WIDTHS)
    hidden = [part for n, m in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(n, m), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(WIDTHS[-1], N_X)).to(dtype)


def explicit(net: nn.Module) -> ExplicitMLP:
    """Return the network by value, attached to its parameters."""
    if isinstance(net, LBDN):
        return net.explicit()
    layers = [part for part in net.children() if isinstance(part, nn.Linear)]
    return ExplicitMLP(tuple(layer.weight for layer in layers), tuple(layer.bias for layer in layers), "tanh")


def by_loop(net: nn.Module, c: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """Return the outputs (B, T, 1) by a plain loop over time."""
    f = net.explicit() if isinstance(net, LBDN) else net
    states = []
    for inputs in u.unbind(1):
        states.append(x)
        x = f(torch.cat((x, inputs), dim=-1))
    return torch.stack(states, dim=1) @ c.mT


def by_simulate(net: nn.Module, c: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """Return the outputs (B, T, 1) by `simulate`."""
    zero = c.new_zeros(N_X, N_X + 1)
    model = ExplicitStateSpace(zero[:, :N_X], zero[:, N_X:], c, zero[:1, :1], explicit(net))
    return simulate(model, x, u).y


Outputs = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def training_step(outputs: Outputs, kind: str, x0: Tensor, u: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that runs one training step of a network of its own."""
    net = network(kind, u.dtype)
    c = nn.Parameter(torch.full((1, N_X), 1.0 / N_X, dtype=u.dtype))
    optimizer = torch.optim.Adam([*net.parameters(), c])

    def step() -> None:
        optimizer.zero_grad()
        (outputs(net, c, x0, u) - y).square().mean().backward()
        optimizer.step()

    return step


def measure(kind: str, batch: int, steps: int, dtype: str, turns: int, seconds: float) -> dict[str, Any]:
    """Compare loop and `simulate` at one size.

    Args:
        kind: "mlp" or "lbdn".
        batch: Number of records B.
        steps: Samples T of each.
        dtype: Key of `DTYPES`.
        turns: Number of turns.
        seconds: Approximate time of one turn of the loop.

    Returns:
        Median times in ms, simulated steps per second, and the ratio.
    """
    torch.manual_seed(1)
    u, y = torch.randn(2, batch, steps, 1, dtype=DTYPES[dtype])
    x0 = torch.zeros(batch, N_X, dtype=DTYPES[dtype])
    net, c = network(kind, DTYPES[dtype]), torch.ones(1, N_X, dtype=DTYPES[dtype])
    with torch.no_grad():  # one and the same function, or the comparison means nothing
        torch.testing.assert_close(by_simulate(net, c, x0, u), by_loop(net, c, x0, u), rtol=1e-4, atol=1e-5)
    candidates: dict[str, Outputs] = {"loop": by_loop, "simulate": by_simulate}
    times = in_turns(
        {name: training_step(outputs, kind, x0, u, y) for name, outputs in candidates.items()}, turns, seconds
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "f": kind,
        "batch": batch,
        "steps": steps,
        "dtype": dtype,
        "target": TARGETS[batch, steps],
        "ratio": median_ratio(times["loop"], times["simulate"]),
        "median_ms": {name: 1e3 * value for name, value in medians.items()},
        "steps_per_s": {name: batch * steps / value for name, value in medians.items()},
    }


def main() -> None:
    """Run the benchmark, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="turns of each")
    parser.add_argument("--seconds", type=float, default=0.2, help="time of one turn of the loop")
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, for the test suite")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes, dtypes = list(TARGETS), list(DTYPES)
    if options.smoke:
        sizes, dtypes, options.turns, options.seconds = sizes[1:2], dtypes[:1], 2, 0.01
    print(f"forward + backward + Adam, n_x = {N_X}, hidden layers {WIDTHS}, one thread")
    print(
        f"{'f':<6}{'B x T':>10}{'dtype':>9}{'loop ms':>10}{'simulate ms':>13}{'1000 steps/s':>14}"
        f"{'ratio':>8}{'target':>8}"
    )
    results = []
    for dtype in dtypes:
        for batch, steps in sizes:
            for kind in ("mlp", "lbdn"):
                row = measure(kind, batch, steps, dtype, options.turns, options.seconds)
                results.append(row)
                ms = row["median_ms"]
                print(
                    f"{kind:<6}{f'{batch} x {steps}':>10}{dtype:>9}{ms['loop']:>10.2f}{ms['simulate']:>13.2f}"
                    f"{row['steps_per_s']['simulate'] / 1e3:>14.0f}{row['ratio']:>8.2f}{row['target']:>8.1f}",
                    flush=True,
                )
    print(json.dumps({"benchmark": "simulate", "settings": results, "machine": machine()}))


if __name__ == "__main__":
    main()
