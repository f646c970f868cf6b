r"""Certificates of dynamics models: constants of the functions `simulate` and `states`, in the units of the data.

With a metric P of the states, $\|v\|_P = (v^T P v)^{1/2}$, inputs weighted by $D_u$ and outputs by $D_y$,

$$\|F(x, u) - F(x', u')\|_P \le \rho\, \|x - x'\|_P + L_u\, \|D_u^{-1}(u - u')\|_2,$$
$$\|D_y^{-1}(y - y')\|_2 \le L_{yx}\, \|x - x'\|_P + L_{yu}\, \|D_u^{-1}(u - u')\|_2.$$

If $\rho < 1$ the model forgets its initial state at that rate, and has incremental gains from inputs to outputs. All
constants are those of the map that the stored weights define; a simulation in float64 follows it up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustnn.bounds.network import constructive_multipliers
from robustnn.dynamics.certified_maps import CertifiableModel, by_value, certified_maps, model_sha256
from robustnn.dynamics.channels import Channels
from robustnn.dynamics.contraction import contraction
from robustnn.dynamics.gains import GainProof, gain
from robustnn.dynamics.incremental import incremental_l2_gain, reachable
from robustnn.dynamics.semilinear import SemilinearMap
from robustnn.dynamics.slope_form import SlopeForm
from robustnn.errors import CertificateError, check_positive_int, invalid
from robustnn.nn.scales import as_scale

__all__ = ["ModelCertificate", "certify_model"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelCertificate:
    r"""Proved constants of one model; see the head of this file.

    Attributes:
        metric: P, shape (n_x, n_x), largest eigenvalue one.
        proofs: By name: "state" for $\rho$, "input" and "input[j]" for $L_u$ and the constants of single inputs, each
            per unit of that input; "output_state", "output_input" for $L_{yx}, L_{yu}$, with "[i]" for single outputs,
            in their units; "rate" for the smallest contraction rate found, in a metric of its own. Where the model
            contracts, "reach" for $\mu^{1/2}$ and $\lambda$ (its `decay`) of
            $\|\delta x_+\|_P^2 \le \lambda \|\delta x\|_P^2 + \mu \|D_u^{-1} \delta u\|_2^2$, and "l2_gain" for the
            incremental gain from the bounded real lemma, if they were found.
        input_scale: D_u, shape (n_u,), in the units of the inputs.
        output_scale: D_y, shape (n_y,), in the units of the outputs.
        channels: Names, units and sampling time.
        model_sha256: Digest of the explicit weights and the scaling.

    Example:
        >>> certificate = certify_model(model)  # doctest: +SKIP
        >>> certificate.verify(model)           # doctest: +SKIP
        >>> print(certificate.text())           # doctest: +SKIP
    """

    metric: Array
    proofs: Mapping[str, GainProof]
    input_scale: Array
    output_scale: Array
    channels: Channels
    model_sha256: str

    @property
    def n_x(self) -> int:
        """Number of states."""
        return len(self.metric)

    @property
    def rate(self) -> float:
        r"""$\rho$ in the metric P."""
        return self.proofs["state"].bound

    @property
    def smallest_rate(self) -> float:
        """Smallest contraction rate found, in a metric of its own; one or more where the model does not contract."""
        return self.proofs["rate"].bound

    @property
    def lipschitz_u(self) -> float:
        """L_u, for inputs measured in `input_scale`."""
        return self.proofs["input"].bound

    @property
    def lipschitz_u_each(self) -> Array:
        """L_u of every input alone, per unit of that input, shape (n_u,)."""
        return np.array([self.proofs[f"input[{j}]"].bound for j in range(len(self.input_scale))])

    @property
    def output_by_state(self) -> Array:
        """L_yx of every output, in its unit, shape (n_y,)."""
        return np.array([self.proofs[f"output_state[{i}]"].bound for i in range(len(self.output_scale))])

    @property
    def output_by_input(self) -> Array:
        """L_yu of every output, in its unit, for inputs measured in `input_scale`, shape (n_y,)."""
        return np.array([self.proofs[f"output_input[{i}]"].bound for i in range(len(self.output_scale))])

    @property
    def state_reach(self) -> float:
        r"""Bound of $\|\delta x_t\|_P$ per largest input change, for equal initial states; infinite if none is known.

        The smaller one of $L_u / (1 - \rho)$ and $(\mu / (1 - \lambda))^{1/2}$ of the proof "reach".
        """
        if self.lipschitz_u == 0.0:
            return 0.0
        found = self.lipschitz_u / (1.0 - self.rate) if self.rate < 1.0 else math.inf
        proof = self.proofs.get("reach")
        if proof is not None and proof.decay < 1.0:
            found = min(found, proof.bound / math.sqrt(1.0 - proof.decay))
        return _up(found)

    @property
    def peak_gain(self) -> float:
        r"""Bound of the largest $\|D_y^{-1} \delta y_t\|_2$ per largest input change, for equal initial states."""
        return _peak(self.proofs["output_state"].bound, self.state_reach, self.proofs["output_input"].bound)

    @property
    def peak_gains(self) -> Array:
        """The same for every output alone, in its unit, shape (n_y,)."""
        each = zip(self.output_by_state, self.output_by_input, strict=True)
        return np.array([_peak(a, self.state_reach, b) for a, b in each])

    @property
    def l2_gain(self) -> float:
        """Incremental l2 gain from inputs to outputs from equal initial states, in `input_scale`, `output_scale`."""
        proof = self.proofs.get("l2_gain")
        return self.peak_gain if proof is None else min(proof.bound, self.peak_gain)

    def norm(self, dx: ArrayLike) -> Array:
        """Return the metric norm of state differences, shape (..., n_x) to (...)."""
        v = np.asarray(dx, dtype=np.float64)
        return np.asarray(np.sqrt(np.maximum(np.einsum("...i,ij,...j->...", v, self.metric, v), 0.0)))

    def check_model(self, model: CertifiableModel) -> None:
        """Raise `CertificateError` unless a model is the certified one, by value."""
        found = model_sha256(*by_value(model))
        if found != self.model_sha256:
            raise CertificateError(
                f"model: expected the certified model (sha256 {self.model_sha256[:12]}...), got another one "
                f"({found[:12]}...). Certify the model as it is now: certify_model(model)."
            )

    def verify(self, model: CertifiableModel) -> None:
        """Prove every constant anew, from the explicit weights, multipliers and metrics alone.

        Args:
            model: The certified model.

        Raises:
            CertificateError: If it is another model, a scale or a label is wrong, or a constant is not proved.
        """
        self.check_model(model)
        explicit, channels = by_value(model)
        self._check_units(channels)
        forms = certified_maps(explicit, channels, self.input_scale, self.output_scale)
        del forms["output"]
        missing = set(forms) - {"l2_gain", "reach"} - set(self.proofs)
        unknown = set(self.proofs) - set(forms)
        if missing or unknown:
            raise CertificateError(
                f"certificate: expected proofs {sorted(forms)}, got {sorted(self.proofs)}. Make a new one: "
                "certify_model(model)."
            )
        metric = torch.from_numpy(self.metric)
        for name, proof in self.proofs.items():
            if not (_fits(name, proof, metric, forms[name]) and proof.holds(forms[name])):
                raise CertificateError(
                    f"certificate: expected a proof of {name} <= {proof.bound:.9g} in the metric of the certificate, "
                    "got none. The certificate is wrong; make a new one: certify_model(model)."
                )

    def _check_units(self, channels: Channels) -> None:
        """Raise `CertificateError` unless the units in which the constants are stated are those of a model."""
        for name, scale, n in (
            ("input_scale", self.input_scale, channels.n_u), ("output_scale", self.output_scale, channels.n_y)
        ):  # fmt: skip
            if np.shape(scale) != (n,) or not (np.isfinite(scale) & (scale > 0.0)).all():
                raise CertificateError(
                    f"certificate.{name}: expected {n} positive numbers, got {scale}. The certificate is wrong; make a "
                    "new one: certify_model(model)."
                )
        if self.channels.to_dict() != channels.to_dict():
            raise CertificateError(
                "certificate.channels: expected the names, units, scaling and sampling time of the model, got others. "
                "The certificate is wrong; make a new one: certify_model(model)."
            )

    def text(self) -> str:
        """Return the constants as readable lines with units."""
        c = self.channels
        u_units, y_units = c.u_units, c.y_units
        lines = [f"{self.n_x} states, sampling time {c.dt:g} s; |x|_P with P of largest eigenvalue 1, "
                 f"condition {np.linalg.cond(self.metric):.3g}"]  # fmt: skip
        rate = f"state to state       {self.rate:.6g} per step (smallest found in any metric: {self.smallest_rate:.6g})"
        if self.smallest_rate < 1.0:
            constant = -c.dt / math.log(self.smallest_rate) if self.smallest_rate > 0.0 else 0.0
            rate += f"; contracting, time constant at most {constant:.4g} s"
        else:
            rate += "; no metric found in which the model contracts"
        lines.append(rate)
        for name, unit, value in zip(c.u_names, u_units, self.lipschitz_u_each, strict=True):
            lines.append(f"{name} to state: {value:.6g}{_per(unit)}")
        each = zip(
            c.y_names, y_units, self.output_by_state, self.output_by_input, self.peak_gains, strict=True
        )
        for name, unit, by_x, by_u, peak in each:
            lines.append(
                f"state to {name}: {by_x:.6g} {unit}".rstrip()
                + f"; inputs to {name} at once: {by_u:.6g}; largest change of {name} per largest change of the inputs: "
                f"{peak:.6g}"
            )
        lines.append(f"incremental l2 gain, inputs to outputs: {self.l2_gain:.6g}")
        scales = ", ".join(
            f"{name} in {scale:g} {unit}".rstrip()
            for name, unit, scale in zip(
                (*c.u_names, *c.y_names),
                (*u_units, *y_units),
                (*self.input_scale, *self.output_scale),
                strict=True,
            )
        )
        lines.append(f"norms of several channels count {scales}")
        return "\n".join(lines)


def certify_model(
    model: CertifiableModel,
    *,
    input_scale: ArrayLike | None = None,
    output_scale: ArrayLike | None = None,
    iterations: int = 100,
) -> ModelCertificate:
    """Certify a dynamics model, constrained or not, as it is.

    The metric is the one with the smallest bound of the outputs per input change found where the model contracts, else
    the one with the smallest rate. Rates and gains that are proved hold for all states and inputs, not just near data.

    Args:
        model: A `StateSpaceModel`, or anything with `explicit()` and `channels`.
        input_scale: D_u, shape (n_u,), in the units of the inputs; ones if None.
        output_scale: D_y, shape (n_y,), in the units of the outputs; ones if None.
        iterations: L-BFGS steps of every search.

    Returns:
        The certificate. Gains are infinite where no metric was found in which the model contracts.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.
        NonFiniteError: If a weight is not finite.
        CertificateError: If rounding leaves nothing proved.
    """
    check_positive_int("iterations", iterations, minimum=0)
    explicit, channels = by_value(model)
    scales = [
        np.ones(n) if given is None else as_scale(name, torch.as_tensor(given), n, "cpu", torch.float64).numpy()
        for name, given, n in (
            ("input_scale", input_scale, channels.n_u), ("output_scale", output_scale, channels.n_y)
        )
    ]  # fmt: skip
    for name, scale in zip(("input_scale", "output_scale"), scales, strict=True):
        if scale.ndim != 1:
            raise invalid(
                name, "one positive number per channel", f"shape {scale.shape}", "Pass its diagonal."
            )
    forms = certified_maps(explicit, channels, scales[0], scales[1])
    n_x, n_u = explicit.n_x, explicit.n_u
    starts = _constructive(model, forms["rate"])
    rate = contraction(forms["rate"], starts=starts, iterations=iterations)
    state = rate
    reach = None
    if rate.bound < 1.0:
        reach = reachable(forms["reach"], forms["output"], n_x, rate, iterations=2 * iterations)
    if reach is not None:
        metric, start = reach.target, reach.multipliers
        state = gain(forms["state"], metric, metric, start=start, iterations=iterations)
        rate = min((rate, state), key=float)
    metric = state.target
    proofs = {} if reach is None else {"reach": reach}
    proofs |= {"rate": rate, "state": state, "input": gain(forms["input"], metric, iterations=iterations)}
    for name, form in forms.items():
        if name.startswith("input["):
            start = proofs["input"].multipliers
            proofs[name] = gain(
                form, metric, start=start, iterations=iterations if n_u > 1 or scales[0][0] != 1.0 else 0
            )
        elif name.startswith("output_state"):
            proofs[name] = gain(form, None, metric, iterations=iterations)
        elif name.startswith("output_input"):
            proofs[name] = gain(form, iterations=iterations)
    if rate.bound < 1.0:
        found_l2 = incremental_l2_gain(forms["l2_gain"], n_x, (state, rate), iterations=3 * iterations)
        if found_l2 is not None:
            proofs["l2_gain"] = found_l2
    digest = model_sha256(explicit, channels)
    return ModelCertificate(metric.numpy().copy(), proofs, scales[0], scales[1], channels, digest)


def _fits(name: str, proof: GainProof, metric: Tensor, form: SlopeForm) -> bool:
    """Whether a proof is in the norms that its name says."""
    n_x = len(metric)
    fixed, decay = 0, 1.0
    if name == "rate":
        target = source = proof.target
    elif name == "reach":
        target, source = metric, torch.block_diag(metric, _eye(form.n_in - n_x))
        fixed, decay = n_x, proof.decay
    elif name == "l2_gain":
        own = proof.target[:n_x, :n_x]
        target = torch.block_diag(own, _eye(form.n_out - n_x))
        source = torch.block_diag(own, _eye(form.n_in - n_x))
        fixed = n_x
    else:
        to_state = name == "state" or name.startswith("input")
        from_state = name == "state" or name.startswith("output_state")
        target = metric if to_state else _eye(form.n_out)
        source = metric if from_state else _eye(form.n_in)
    same = torch.equal(proof.target, target) and torch.equal(proof.source, source)
    return same and (proof.fixed, proof.decay) == (fixed, decay)


def _eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def _constructive(model: Any, form: SlopeForm) -> list[Tensor]:
    """Multipliers by which a Lipschitz-bounded state map satisfies its own bound."""
    bounded = getattr(model, "map", None)
    if not isinstance(bounded, SemilinearMap):
        return []
    own = [one.cpu() for one in constructive_multipliers(bounded.network)]
    t = torch.cat([own[0][bounded.n_linear :], *own[1:]])
    return [t / (form.beta - form.alpha)] if len(t) == form.n_z else []


def _peak(to_output: float, reach: float, at_once: float) -> float:
    through = 0.0 if 0.0 in (to_output, reach) else to_output * reach
    return _up(through + at_once)


def _up(value: float) -> float:
    """A number that is above what was rounded in a few operations."""
    return value * (1.0 + 1e-15)


def _per(unit: str) -> str:
    return f" per {unit}" if unit else ""
