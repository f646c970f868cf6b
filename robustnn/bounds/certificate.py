"""Certificates: a bound, the multipliers that prove it, and the network that it is about.

A certificate is checked, never trusted: `Certificate.verify` takes the weights and the multipliers, builds the
LipSDP matrix in float64 and factorises it with an allowance for rounding. Where the numbers come from (an LBDN,
an optimiser, a solver, a file) does not matter.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustnn.bounds.certificate_file import read_certificate, refuse, write_certificate
from robustnn.bounds.lmi import certified_bound, satisfies_lmi
from robustnn.bounds.network import (
    Chain,
    Network,
    as_network,
    check_multipliers,
    constructive_multipliers,
    make_chain,
)
from robustnn.bounds.upper import UpperBound, lipsdp
from robustnn.errors import (
    CertificateError,
    InvalidArgumentError,
    check_positive_int,
)
from robustnn.nn.lbdn import LBDN
from robustnn.nn.scales import Scale, as_scale
from robustnn.params.explicit import ExplicitMLP

__all__ = ["Certificate", "certify", "network_sha256", "tighten"]

_PRECISION = "float64"


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""A proof that $\|D_y^{-1}(f(x) - f(x'))\|_2 \le$ `bound` $\cdot\, \|D_x^{-1}(x - x')\|_2$ for one network f.

    Attributes:
        bound: The proved bound, in units of (output / output_scale) per (input / input_scale).
        multipliers: $T_k (\beta - \alpha)$ of every hidden layer, float64 on the CPU, (n_k,) each.
        input_scale: D_x, (n_in,) in the units of the inputs or a matrix (n_in, n_in), float64.
        output_scale: D_y, (n_out,) in the units of the outputs or a matrix, float64.
        residual: Shift of the normalised LipSDP matrix that the proof had room for.
        precision: Arithmetic of the proof.
        activation: Activation of the network.
        widths: n_in, n_1, ..., n_out.
        network_sha256: Digest of activation, shapes, weights and biases; see `network_sha256`.

    Example:
        >>> net = LBDN(2, (8,), 1, lipschitz=3.0)
        >>> certificate = certify(net)
        >>> certificate.verify(net) <= 3.0 * (1 + 1e-6)
        True
    """

    bound: float
    multipliers: tuple[Tensor, ...]
    input_scale: Tensor
    output_scale: Tensor
    residual: float
    precision: str
    activation: str
    widths: tuple[int, ...]
    network_sha256: str

    def verify(self, net: Network) -> float:
        """Prove the bound anew for a network, from its weights and the multipliers alone.

        Args:
            net: Anything that `as_network` accepts.

        Returns:
            The bound.

        Raises:
            CertificateError: If the network is not the certified one, or the multipliers do not prove the bound.
            InvalidArgumentError: If `net` is no network with finite weights.
        """
        network = as_network(net).to(device="cpu")
        found = network_sha256(network)
        same_shape = (self.activation, self.widths) == (network.activation, _widths(network))
        if found != self.network_sha256 or not same_shape:
            raise CertificateError(
                f"net: expected the certified network (sha256 {self.network_sha256[:12]}...), got another one "
                f"({found[:12]}...). Certify the network as it is now: certify(net)."
            )
        try:
            chain = make_chain(network, self.input_scale, self.output_scale)
            theta = check_multipliers(self.multipliers, chain)
        except InvalidArgumentError as error:
            raise CertificateError(
                f"certificate: expected multipliers and scales of the network: {error}"
            ) from error
        bound = torch.tensor(self.bound, dtype=torch.float64)
        proved, _ = satisfies_lmi(chain, theta, bound)
        if not math.isfinite(self.bound) or not bool(proved):
            raise CertificateError(
                f"certificate: expected multipliers that prove the bound {self.bound:.9g}, got a LipSDP matrix that "
                "is not positive definite. The certificate is wrong; make a new one: certify(net)."
            )
        return self.bound

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write `path`.json (everything but tensors) and `path`.safetensors (multipliers and scales).

        Args:
            path: Path of both files without suffix; one of the two suffixes is taken off.

        Returns:
            The two paths.

        Raises:
            RobustNNError: If safetensors is not installed.
        """
        fields = {
            "bound": self.bound, "residual": self.residual, "precision": self.precision,
            "activation": self.activation, "widths": list(self.widths), "network_sha256": self.network_sha256,
        }  # fmt: skip
        tensors = {f"multiplier_{k}": t for k, t in enumerate(self.multipliers)}
        return write_certificate(
            path, fields, {**tensors, "input_scale": self.input_scale, "output_scale": self.output_scale}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a certificate that `save` wrote. It proves nothing until `verify` is called.

        Args:
            path: As given to `save`, or either of the files.

        Returns:
            The certificate.

        Raises:
            CheckpointError: If a file is missing, damaged, changed, or was not written by `save`.
            RobustNNError: If safetensors is not installed.
        """
        fields, tensors = read_certificate(path)
        try:
            if fields["precision"] != _PRECISION:
                raise ValueError(f"precision {fields['precision']}")
            return cls(
                bound=float(fields["bound"]),
                multipliers=tuple(tensors[f"multiplier_{k}"] for k in range(len(tensors) - 2)),
                input_scale=tensors["input_scale"],
                output_scale=tensors["output_scale"],
                residual=float(fields["residual"]),
                precision=_PRECISION,
                activation=str(fields["activation"]),
                widths=tuple(int(n) for n in fields["widths"]),
                network_sha256=str(fields["network_sha256"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise refuse(path, f"the fields and tensors of a certificate, got: {error!r}") from error


def certify(
    net: Network,
    *,
    bound: UpperBound | None = None,
    input_scale: Scale | None = None,
    output_scale: Scale | None = None,
    iterations: int = 300,
) -> Certificate:
    r"""Certify a network as it is exported: its weights, rounded to their dtype, with a proof in float64.

    An `LBDN` is certified with its constructive multipliers $T_k = \gamma \Psi_k^2$, without any search; for other
    networks, and for an `LBDN` in other norms than its own, the multipliers of `lipsdp` are used.

    Args:
        net: Anything that `as_network` accepts.
        bound: A bound of this network in the same norms, whose multipliers are used instead.
        input_scale: D_x, (n_in,) or a matrix; that of an `LBDN`, else ones, if None.
        output_scale: D_y, (n_out,) or a matrix; that of an `LBDN`, else ones, if None.
        iterations: Steps of `lipsdp`.

    Returns:
        The certificate.

    Raises:
        InvalidArgumentError: If an argument is not acceptable, or the multipliers are not those of the network.
        CertificateError: If the given multipliers prove no bound.

    Example:
        >>> certify(LBDN(2, (8,), 1, lipschitz=3.0)).bound <= 3.0 * (1 + 1e-6)
        True
    """
    network, scales = _prepare(net, input_scale, output_scale)
    chain = make_chain(network, *scales)
    if bound is not None:
        return _certificate(network, chain, scales, check_multipliers(bound.multipliers, chain))
    own = _own_multipliers(net, chain) if _in_its_norms(net, scales) else None
    if own is not None:
        return _certificate(network, chain, scales, own)
    found = lipsdp(network, input_scale=scales[0], output_scale=scales[1], iterations=iterations)
    return _certificate(network, chain, scales, found.multipliers)


def tighten(net: Network, *, iterations: int = 1000) -> Certificate:
    r"""Certify the tightest bound that LipSDP gives for a trained network.

    For an `LBDN` the search starts from its constructive multipliers, so the result is never above what
    `certify` gives, and the norms are its own.

    Args:
        net: Anything that `as_network` accepts.
        iterations: L-BFGS steps.

    Returns:
        The certificate, of the better of the two bounds.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> net = LBDN(2, (8, 8), 1, lipschitz=3.0)
        >>> tighten(net).bound <= certify(net).bound
        True
    """
    check_positive_int("iterations", iterations)
    network, scales = _prepare(net, None, None)
    chain = make_chain(network, *scales)
    own = _own_multipliers(net, chain)
    found = lipsdp(
        network, multipliers=own, input_scale=scales[0], output_scale=scales[1], iterations=iterations
    )
    tight = _certificate(network, chain, scales, found.multipliers)
    plain = tight if own is None else _certificate(network, chain, scales, own)
    return plain if plain.bound < tight.bound else tight


def network_sha256(net: Network) -> str:
    """Return the SHA-256 of a network by value: activation, shapes, and weights and biases as float64.

    A float32 network and its copy in float64 are the same function by value and have the same digest.

    Args:
        net: Anything that `as_network` accepts.

    Returns:
        64 hexadecimal digits.
    """
    network = as_network(net)
    digest = hashlib.sha256(f"robustnn network 1 {network.activation}".encode())
    for weight, bias in zip(network.weights, network.biases, strict=True):
        for tensor in (weight, bias):
            shape = () if tensor is None else tuple(tensor.shape)
            digest.update(struct.pack(f"<{len(shape) + 1}q", len(shape), *shape))
            if tensor is not None:
                digest.update(tensor.cpu().double().contiguous().numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def _prepare(
    net: Network, input_scale: Scale | None, output_scale: Scale | None
) -> tuple[ExplicitMLP, tuple[Tensor, Tensor]]:
    """The network on the CPU and both scales as float64 tensors."""
    network = as_network(net).to(device="cpu")
    if isinstance(net, LBDN):
        input_scale = net.input_scale if input_scale is None else input_scale
        output_scale = net.output_scale if output_scale is None else output_scale

    def dense(name: str, scale: Scale | None, size: int) -> Tensor:
        return as_scale(name, torch.ones(size) if scale is None else scale, size, "cpu", torch.float64)

    return network, (
        dense("input_scale", input_scale, network.in_features),
        dense("output_scale", output_scale, network.out_features),
    )


def _in_its_norms(net: Network, scales: tuple[Tensor, Tensor]) -> bool:
    """Whether the scales are those in which an LBDN has its bound."""
    own = _prepare(net, None, None)[1]
    return all(
        mine.shape == theirs.shape and bool((mine == theirs).all())
        for mine, theirs in zip(own, scales, strict=True)
    )


def _own_multipliers(net: Network, chain: Chain) -> tuple[Tensor, ...] | None:
    if not isinstance(net, LBDN):
        return None
    return tuple(t.cpu() for t in constructive_multipliers(net)) if chain.widths else ()


def _certificate(
    network: ExplicitMLP, chain: Chain, scales: tuple[Tensor, Tensor], theta: Sequence[Tensor]
) -> Certificate:
    bound, used, residual = certified_bound(chain, theta)
    if not bool(bound.isfinite()):
        raise CertificateError(
            "multipliers: expected multipliers that prove a bound of this network, got a LipSDP matrix that is not "
            "positive definite for any bound. Use those of lipsdp(net)."
        )
    return Certificate(
        float(bound), tuple(used), *scales, float(residual), _PRECISION, network.activation, _widths(network),
        network_sha256(network),
    )  # fmt: skip


def _widths(network: ExplicitMLP) -> tuple[int, ...]:
    return (network.in_features, *(len(weight) for weight in network.weights))
