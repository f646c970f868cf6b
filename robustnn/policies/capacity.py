r"""Networks of equal size: hidden widths of an LBDN that has as many parameters as an MLP.

A layer from n to m of an MLP has $m n$ weights and m biases. A sandwich layer has the $(n + m) \times m$ matrix
[X; Y], the number alpha, m numbers psi (not in the output layer) and m biases (Wang & Manchester, ICML 2023,
section 4), so at equal widths an LBDN is about twice as large. A comparison at equal size makes it narrower.
"""

from __future__ import annotations

from collections.abc import Sequence

from robustnn.errors import check_positive_int, invalid
from robustnn.nn.lbdn import check_widths

__all__ = ["matching_widths", "n_parameters"]

_KINDS = ("lbdn", "mlp")


def n_parameters(
    n_in: int, widths: Sequence[int], n_out: int, *, kind: str = "lbdn", bias: bool = True
) -> int:
    """Return how many numbers a network trains.

    Args:
        n_in: Number of inputs.
        widths: Hidden widths; may be empty.
        n_out: Number of outputs.
        kind: "lbdn", or "mlp" for linear layers with activations between them.
        bias: Whether the layers have biases.

    Returns:
        The count; a trained bound of an LBDN is one more.

    Raises:
        InvalidArgumentError: If a size is not a positive integer, or the kind is another one.

    Example:
        >>> n_parameters(3, (64, 64), 1), n_parameters(3, (64, 64), 1, kind="mlp")
        (12805, 4481)
    """
    if kind not in _KINDS:
        raise invalid("kind", "'lbdn' or 'mlp'", repr(kind), "Choose one of these.")
    sizes = (
        check_positive_int("n_in", n_in),
        *check_widths("widths", widths),
        check_positive_int("n_out", n_out),
    )
    total = 0
    for k, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        total += m * n + (m if bias else 0)
        if kind == "lbdn":
            hidden = k < len(sizes) - 2
            total += m * m + 1 + (m if hidden else 0)
    return total


def matching_widths(n_in: int, widths: Sequence[int], n_out: int, *, bias: bool = True) -> tuple[int, ...]:
    r"""Return hidden widths of the LBDN whose number of parameters is nearest to that of an MLP.

    All widths are those of the MLP times one common factor, rounded, at least 1. Of two factors that come
    equally near, the smaller network is taken.

    Args:
        n_in: Number of inputs: components of the flat observation (`robustnn.policies.flatten_observation`).
        widths: Hidden widths of the MLP; may be empty.
        n_out: Number of outputs: action components, logits or Q-values.
        bias: Whether the layers have biases.

    Returns:
        As many widths.

    Raises:
        InvalidArgumentError: If a size is not a positive integer.

    Example:
        A policy with the capacity of SB3's default actor of PPO, two layers of 64, for 3 sensors and 1 motor; the
        value network stays an MLP and keeps its widths:

        >>> net_arch = dict(pi=list(matching_widths(3, (64, 64), 1)), vf=[64, 64])
        >>> net_arch
        {'pi': [37, 37], 'vf': [64, 64]}
        >>> from stable_baselines3 import PPO
        >>> from robustnn.policies import LBDNActorCriticPolicy
        >>> kwargs = dict(lipschitz=10.0, net_arch=net_arch)
        >>> model = PPO(LBDNActorCriticPolicy, "Pendulum-v1", policy_kwargs=kwargs, device="cpu")
    """
    target = n_parameters(n_in, widths, n_out, kind="mlp", bias=bias)
    # At a factor of one an LBDN is larger than the MLP. Rounded widths change at the factors (j + 1/2) / width.
    factors = sorted({(j + 0.5) / width for width in widths for j in range(1, width)})

    def scaled(factor: float) -> tuple[int, ...]:
        return tuple(max(1, int(width * factor * (1 + 1e-12) + 0.5)) for width in widths)

    def count(index: int) -> int:
        factor = factors[index] if index >= 0 else 0.0
        return n_parameters(n_in, scaled(factor), n_out, bias=bias)

    # The count grows with the factor: find the last one that does not exceed the target.
    low, high = -1, len(factors)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= target else (low, middle)
    nearest = min((k for k in (low, low + 1) if k < len(factors)), key=lambda k: abs(count(k) - target))
    return scaled(factors[nearest] if nearest >= 0 else 0.0)
