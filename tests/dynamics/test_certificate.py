"""Certificates of models: constants of the public functions, in their units, that hold and are reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from robustnn.dynamics import (
    ContinuousStateSpace,
    Dataset,
    LipschitzNARX,
    LipschitzStateSpace,
    ResidualStateSpace,
    StateSpaceModel,
    UnconstrainedStateSpace,
)
from robustnn.dynamics.certificate import ModelCertificate, certify_model
from robustnn.errors import CertificateError, InvalidArgumentError

EPS = np.finfo(np.float64).eps
# Of the changes by which slopes of public functions are measured; rounding is then some EPS / SMALL of them.
SMALL = 1e-3
SLACK = 1.0 + 1e4 * EPS / SMALL


def records(n_u: int = 2, n_y: int = 2) -> Dataset:
    """Channels with offsets and scales that are far from zero and one."""
    rng = np.random.default_rng(0)
    u = 3.0 + np.array([10.0, 0.2])[:n_u] * rng.normal(size=(400, n_u))
    y = -7.0 + np.array([0.05, 40.0])[:n_y] * rng.normal(size=(400, n_y))
    return Dataset.from_arrays(u, y, 0.1, n_init=10, u_units=["V", "mm"][:n_u], y_units=["N", "K"][:n_y])


def perturbed(model: StateSpaceModel, size: float) -> StateSpaceModel:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


MODELS: dict[str, Callable[[], StateSpaceModel]] = {
    "lipschitz": lambda: perturbed(
        LipschitzStateSpace(records(), 3, (6,), lipschitz_x=0.9, output_hidden=(4,), feedthrough=True), 0.4
    ),
    "deep": lambda: perturbed(LipschitzStateSpace(records(), 2, (5, 4), lipschitz_x=0.95), 0.4),
    "unconstrained": lambda: perturbed(UnconstrainedStateSpace(records(), 2, (6,), output_hidden=(4,)), 0.25),
    "residual": lambda: perturbed(ResidualStateSpace(records(), 2, (6,), lipschitz=0.3), 0.3),
    "continuous": lambda: perturbed(ContinuousStateSpace(records(), 2, (5,), lipschitz=0.3), 0.3),
    "narx": lambda: perturbed(LipschitzNARX(records(1, 1), 2, 2, (6,), lipschitz=0.8), 0.3),
}


@cache
def certified(name: str) -> tuple[StateSpaceModel, ModelCertificate]:
    model = MODELS[name]()
    return model, certify_model(model, iterations=25)


def linear(a: float, b: tuple[float, float], c: tuple[float, float], d: float = 0.0) -> StateSpaceModel:
    """One state, two inputs and outputs, in scaled units."""
    model = UnconstrainedStateSpace(records(), 1, (2,), feedthrough=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.a.fill_(a)
        model.b.copy_(torch.tensor([b], dtype=torch.float64))
        model.c.copy_(torch.tensor([c], dtype=torch.float64).mT)
        model.d[0, 1] = d
    return model


@pytest.mark.parametrize("name", MODELS)
def test_constants_bound_the_public_functions(name: str) -> None:
    """Slopes of `states` and `simulate` in the worst directions, found by ascent on the explicit weights."""
    model, found = certified(name)
    channels, scaling = model.channels, model.channels.scaling
    explicit = model.explicit().detach()
    n_x, n_u = model.n_x, model.n_u
    root = torch.linalg.cholesky(torch.from_numpy(found.metric)).mT
    unit = torch.from_numpy(1.0 / scaling.u_scale)
    y_scale = torch.from_numpy(scaling.y_scale)

    def maps(xi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whitened next state and raw output from whitened state and raw input, offsets apart."""
        x, u = torch.linalg.solve(root, xi[:n_x]), xi[n_x:] * unit
        return root @ explicit.step(x, u), y_scale * explicit.output(x, u)

    slopes = torch.func.vmap(torch.func.jacrev(maps))
    blocks = {
        "state": lambda j: j[0][..., :n_x], "input": lambda j: j[0][..., n_x:],
        "output_state": lambda j: j[1][..., :n_x], "output_input": lambda j: j[1][..., n_x:],
    }  # fmt: skip
    blocks |= {f"input[{k}]": lambda j, k=k: j[0][..., n_x + k : n_x + k + 1] for k in range(n_u)}
    for i in range(model.n_y):
        blocks[f"output_state[{i}]"] = lambda j, i=i: j[1][..., i : i + 1, :n_x]
        blocks[f"output_input[{i}]"] = lambda j, i=i: j[1][..., i : i + 1, n_x:]
    sizes = torch.cat((torch.ones(n_x).double(), torch.from_numpy(scaling.u_scale)))
    for which, block in blocks.items():
        points = (torch.randn(16, n_x + n_u).double() * sizes).requires_grad_()
        optimiser = torch.optim.Adam([points], lr=0.05)
        for _ in range(12):
            optimiser.zero_grad()
            (-torch.linalg.matrix_norm(block(slopes(points)), ord=2).sum()).backward()
            points.grad *= sizes
            optimiser.step()
        jacobians = block(slopes(points.detach())).detach()
        best = int(torch.linalg.matrix_norm(jacobians, ord=2).argmax())
        direction = torch.linalg.svd(jacobians[best])[2][0]
        full = torch.zeros(n_x + n_u).double()
        columns = slice(0, n_x) if "state" in which else slice(n_x, None)
        if which.startswith("input["):
            columns = slice(n_x + int(which[6]), n_x + int(which[6]) + 1)
        full[columns] = direction
        pair = [points[best].detach() + sign * SMALL * full for sign in (0.5, -0.5)]
        ends = []
        for xi in pair:
            x = torch.linalg.solve(root, xi[:n_x]).numpy()
            u = (xi[n_x:].numpy() + scaling.u_offset)[None]
            ends.append((model.states(u, x)[1], model.simulate(u, x)[0]))
        if which.startswith("output"):
            change = ends[0][1] - ends[1][1]
            change = change[int(which[-2])] if which.endswith("]") else change
            reached = float(np.linalg.norm(np.atleast_1d(change)))
        else:
            reached = float(found.norm(ends[0][0] - ends[1][0]))
        offset = (
            1e3 * EPS * float(np.abs(scaling.y_offset).max()) / SMALL
        )  # rounding of outputs around their offset
        assert reached / SMALL <= found.proofs[which].bound * SLACK + offset, which
    assert channels is found.channels


@pytest.mark.parametrize("name", MODELS)
def test_verify_and_text(name: str) -> None:
    model, found = certified(name)
    found.verify(model)
    text = found.text()
    assert "per V" in text and " N" in text
    assert found.smallest_rate <= found.rate
    assert found.l2_gain <= found.peak_gain
    contracting = found.smallest_rate < 1.0
    assert np.isfinite(found.peak_gain) == contracting and ("no metric" in text) != contracting
    assert ("l2_gain" in found.proofs) == contracting


@pytest.mark.parametrize("name", ["lipschitz", "deep"])
def test_construction_is_a_start(name: str) -> None:
    """Without any search the certificate has the constants of the construction; a search only improves them."""
    model, found = certified(name)
    plain = certify_model(model, iterations=0)
    assert plain.smallest_rate <= model.lipschitz_x * (1 + 1e-9)
    assert found.smallest_rate <= plain.smallest_rate
    plain.verify(model)


def test_a_first_order_model_has_its_own_constants() -> None:
    model = linear(0.8, (0.5, -0.3), (3.0, 0.2), d=0.1)
    found = certify_model(model)
    u_scale, y_scale = model.channels.scaling.u_scale, model.channels.scaling.y_scale
    by_u, by_x = np.array([0.5, 0.3]) / u_scale, np.array([3.0, 0.2]) * y_scale
    at_once = np.array([0.1 * y_scale[0] / u_scale[1], 0.0])

    def close(value: object, exact: object, tolerance: float = 1e-9) -> None:
        np.testing.assert_allclose(value, exact, rtol=tolerance, atol=0.0)
        assert (np.asarray(value) >= np.asarray(exact) * (1 - 8 * EPS)).all()

    close(found.rate, 0.8)
    close(found.lipschitz_u_each, by_u)
    close(found.lipschitz_u, np.linalg.norm(by_u))
    close(found.output_by_state, by_x)
    close(found.output_by_input, at_once)
    close(found.peak_gains, by_x * np.linalg.norm(by_u) / 0.2 + at_once, 1e-4)
    # At frequency zero; the search for it ends a little above.
    d = np.array([[0.0, at_once[0]], [0.0, 0.0]])
    exact = np.linalg.norm(np.outer(by_x, [0.5, -0.3] / u_scale) / 0.2 + d, 2)
    other = np.linalg.norm(np.outer(by_x, [0.5, -0.3] / u_scale) / -1.8 + d, 2)
    assert max(exact, other) * (1 - 8 * EPS) <= found.l2_gain < max(exact, other) * 1.003


def test_scales_are_units() -> None:
    model = linear(0.8, (0.5, -0.3), (3.0, 0.2))
    plain, scaled = (
        certify_model(model),
        certify_model(model, input_scale=[8.0, 8.0], output_scale=[0.5, 0.5]),
    )
    for one, factor in (("lipschitz_u", 8.0), ("peak_gain", 16.0)):  # powers of two: nothing is rounded anew
        np.testing.assert_allclose(getattr(scaled, one), factor * getattr(plain, one), rtol=1e-12)
    np.testing.assert_allclose(scaled.lipschitz_u_each, plain.lipschitz_u_each, rtol=1e-9)  # per unit, always
    scaled.verify(model)


def test_an_unstable_model() -> None:
    model = linear(1.02, (0.5, -0.3), (3.0, 0.2))
    found = certify_model(model)
    assert 1.02 <= found.smallest_rate < 1.02 * (1 + 1e-9)
    assert found.peak_gain == found.l2_gain == found.state_reach == np.inf
    found.verify(model)


def test_an_input_without_effect() -> None:
    found = certify_model(linear(0.8, (0.0, 0.0), (3.0, 0.2)))
    assert found.lipschitz_u == 0.0 and found.peak_gain == 0.0 and (found.peak_gains == 0.0).all()


def test_verify_finds_another_model_and_wrong_proofs() -> None:
    model, found = certified("lipschitz")
    other = MODELS["lipschitz"]()
    other.constant.data += 1e-9
    with pytest.raises(CertificateError, match="another one"):
        found.verify(other)
    for name, proof in found.proofs.items():
        wrong = replace(found, proofs={**found.proofs, name: replace(proof, bound=0.5 * proof.bound)})
        with pytest.raises(CertificateError, match="a proof of"):
            wrong.verify(model)
        wrong = replace(found, proofs={**found.proofs, name: replace(proof, target=2.0 * proof.target)})
        with pytest.raises(CertificateError, match="a proof of"):
            wrong.verify(model)
    with pytest.raises(CertificateError, match="a proof of"):
        replace(found, metric=0.5 * found.metric).verify(model)
    with pytest.raises(CertificateError, match="expected proofs"):
        replace(found, proofs={"state": found.proofs["state"]}).verify(model)
    with pytest.raises(CertificateError, match="a proof of"):
        replace(found, input_scale=2.0 * found.input_scale).verify(model)


def test_verify_finds_wrong_units() -> None:
    model, found = certified("deep")
    channels = found.channels
    cases = (
        replace(found, channels=replace(channels, u_units=("kV", "mm"))),
        replace(found, channels=replace(channels, y_names=("a", "b"))),
        replace(found, channels=replace(channels, dt=10.0 * channels.dt)),
        replace(found, input_scale=np.zeros(2)),
        replace(found, input_scale=-found.input_scale),
        replace(found, input_scale=np.ones(3)),
        replace(found, output_scale=np.full(2, np.inf)),
        replace(found, output_scale=np.array([1.0, np.nan])),
    )
    for wrong in cases:
        with pytest.raises(CertificateError, match="certificate"):
            wrong.verify(model)


def test_bad_arguments() -> None:
    model = linear(0.8, (0.5, -0.3), (3.0, 0.2))
    with pytest.raises(InvalidArgumentError, match="StateSpaceModel"):
        certify_model(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="input_scale"):
        certify_model(model, input_scale=[1.0, -1.0])
    with pytest.raises(InvalidArgumentError, match="per channel"):
        certify_model(model, output_scale=np.eye(2))
    with pytest.raises(InvalidArgumentError, match="iterations"):
        certify_model(model, iterations=-1)
