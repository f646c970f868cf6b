"""Cayley map, inverses and norms against numpy and against their own identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustnn.linalg import accretive_inverse, cayley, frobenius_norm, inverse_cayley, polish, spectral_norm

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


def blocks(
    n: int, m: int, *, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, n, n, dtype=dtype), torch.randn(*batch, m, n, dtype=dtype)


def excess(a_t: Tensor, b_t: Tensor) -> float:
    """Largest amount by which a singular value of the stacked factors exceeds one, measured in float64."""
    return float((spectral_norm(torch.cat((a_t, b_t), dim=-2)) - 1).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("n, m", [(1, 1), (4, 2), (3, 7), (5, 0), (60, 10)])
def test_cayley_columns_are_orthonormal(n: int, m: int, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    a_t, b_t = cayley(*blocks(n, m, batch=batch, dtype=dtype))
    assert a_t.shape == (*batch, n, n) and b_t.shape == (*batch, m, n)
    q = torch.cat((a_t, b_t), dim=-2)
    gram = q.mH @ q
    torch.testing.assert_close(gram, torch.eye(n, dtype=dtype).expand_as(gram), rtol=0, atol=200 * n * EPS)


def test_cayley_is_the_textbook_formula() -> None:
    x, y = (t.numpy() for t in blocks(5, 3))
    z = x - x.T + y.T @ y
    inverse = np.linalg.inv(np.eye(5) + z)
    a_t, b_t = cayley(torch.as_tensor(x), torch.as_tensor(y))
    np.testing.assert_allclose(a_t, inverse @ (np.eye(5) - z), rtol=0, atol=100 * EPS)
    np.testing.assert_allclose(b_t, -2 * y @ inverse, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0, 1e2, 1e3])
@pytest.mark.parametrize("n, m", [(1, 1), (2, 1), (3, 1), (8, 2), (64, 3), (16, 16)])
def test_rounding_of_the_cayley_map(n: int, m: int, size: float) -> None:
    """The unit matrix drowns in Y^T Y, and the excess grows with ||Y||^2 eps; polished, it is a few eps.

    Block elimination without pivoting (n > 48) multiplies the growth by up to ||Y||^2 where Y is thin and X small.
    """
    for kind in range(4):
        x, y = blocks(n, m)
        w = torch.cat((x * (0.0, 1e-3, 1.0, 1.0)[kind], y))
        w = w * (size / w.norm())
        a_t, b_t = cayley(w[:n], w[n:])
        growth = 1 + size**2 * (1 if n <= 48 else 1 + 1e-2 * size**2)
        assert excess(a_t, b_t) <= 20 * n * growth * EPS
        a_t, b_t = polish(a_t, b_t)
        assert excess(a_t, b_t) <= (20 + n) * EPS
        assert excess(a_t.float(), b_t.float()) <= 4 * EPS32


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e6])
def test_cayley_of_large_skew_parts(size: float) -> None:
    """A large X costs nothing, whatever its size: Y^T Y stays of order one."""
    for n in (2, 33, 96):
        x, y = blocks(n, n)
        a_t, b_t = cayley(size * x, y / math.sqrt(n))
        assert excess(a_t.float(), b_t.float()) <= 4 * EPS32
        # 2M - I in float32 throughout keeps the guarantee to about n eps where (I + Z)^-1 (I - Z) loses digits.
        assert excess(*cayley((size * x).float(), (y / math.sqrt(n)).float())) <= 40 * n * EPS32


@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), m=st.integers(1, 12))
def test_inverse_cayley_round_trip(seed: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    y = torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(m + n)
    x_back, y_back = inverse_cayley(*cayley(x, y))
    size = 1 + float(torch.cat((x, y)).norm()) ** 3
    torch.testing.assert_close(x_back, (x - x.mT) / 2, rtol=0, atol=500 * size * EPS)
    torch.testing.assert_close(y_back, y, rtol=0, atol=500 * size * EPS)


def test_inverse_cayley_refuses_the_eigenvalue_minus_one() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        inverse_cayley(-torch.eye(2), torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [1, 2, 47, 48, 49, 97, 200])
def test_accretive_inverse(n: int, dtype: torch.dtype) -> None:
    x, y = blocks(n, 5, batch=(2,), dtype=dtype)
    s = torch.eye(n, dtype=dtype) + x - x.mH + y.mH @ y
    np.testing.assert_allclose(accretive_inverse(s), np.linalg.inv(s.numpy()), rtol=0, atol=50 * n * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 48, 49, 97, 200, 301])
def test_accretive_inverse_by_lapack(n: int, dtype: torch.dtype) -> None:
    """The same matrix through scipy: contiguous, a transposed view and a slice; the argument stays as it was."""
    x, y = blocks(n, 5, dtype=dtype)
    s = torch.eye(n, dtype=dtype) + x - x.mH + y.mH @ y
    expected = np.linalg.inv(s.numpy().astype(np.float64))
    atol = 50 * n * torch.finfo(dtype).eps
    before = s.clone()
    padded = torch.zeros(n + 2, n + 3, dtype=dtype)
    padded[1:-1, 1:-2] = s
    for view in (s, s.mT.contiguous().mT, padded[1:-1, 1:-2]):
        inverse = accretive_inverse(view, use_lapack=True)
        assert inverse.dtype == dtype
        np.testing.assert_allclose(inverse, expected, rtol=0, atol=atol)
        assert torch.equal(view, before)


@pytest.mark.parametrize("n", [1, 5, 130, 200])
def test_accretive_inverse_by_lapack_of_a_stack(n: int) -> None:
    """Each matrix its own: one that cannot be inverted leaves the others as they are."""
    x, y = blocks(n, 5, batch=(2, 2))
    s = torch.eye(n, dtype=torch.float64) + x - x.mT + y.mT @ y
    expected = np.linalg.inv(s.numpy())
    np.testing.assert_allclose(accretive_inverse(s, use_lapack=True), expected, rtol=0, atol=50 * n * EPS)
    s[0, 1] = math.nan
    inverse = accretive_inverse(s, use_lapack=True)
    assert not bool(inverse[0, 1].isfinite().any())
    np.testing.assert_allclose(inverse[1], expected[1], rtol=0, atol=50 * n * EPS)


@pytest.mark.parametrize("use_lapack", [False, True])
@pytest.mark.parametrize("n", [3, 130, 300])
def test_accretive_inverse_tells_of_bad_input_by_nan(n: int, use_lapack: bool) -> None:
    for bad in (math.nan, math.inf):
        s = torch.eye(n, dtype=torch.float64)
        s[0, -1] = bad
        assert not bool(accretive_inverse(s, use_lapack=use_lapack).isfinite().all())


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-3, 1.0, 1e160, 1e300])
def test_frobenius_norm_of_huge_and_tiny_matrices(size: float) -> None:
    w = torch.randn(2, 4, 3, dtype=torch.float64)
    expected = np.linalg.norm(w.numpy(), axis=(1, 2))
    given_w = (w * size).requires_grad_()
    norm = frobenius_norm(given_w)
    np.testing.assert_allclose(norm.detach() / size, expected, rtol=20 * EPS)
    norm.sum().backward()
    np.testing.assert_allclose(given_w.grad, w.numpy() / expected[:, None, None], rtol=1e-14, atol=1e-15)


def test_frobenius_norm_at_zero() -> None:
    w = torch.zeros(2, 4, 3, dtype=torch.float64)
    w[1, 0, 0] = 2.0
    w.requires_grad_()
    norm = frobenius_norm(w)
    assert norm.tolist() == [0.0, 2.0]
    norm.sum().backward()
    assert bool((w.grad[0] == 0).all()) and float(w.grad[1, 0, 0]) == 1.0
    assert frobenius_norm(torch.zeros(0, 3)).tolist() == 0.0


def test_frobenius_norm_passes_nan_on() -> None:
    assert bool(frobenius_norm(torch.tensor([[math.nan, 1.0]])).isnan())


def test_frobenius_norm_of_complex_matrices() -> None:
    w = torch.randn(4, 3, dtype=torch.complex128)
    assert math.isclose(float(frobenius_norm(w)), np.linalg.norm(w.numpy()), rel_tol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_spectral_norm(dtype: torch.dtype) -> None:
    w = torch.randn(3, 5, 4, dtype=dtype)
    norm = spectral_norm(w)
    assert norm.dtype == torch.float64
    wide = w.numpy().astype(np.complex128)
    np.testing.assert_allclose(norm, np.linalg.svd(wide, compute_uv=False)[:, 0], rtol=50 * EPS)
    assert spectral_norm(torch.zeros(2, 0, 4)).tolist() == [0.0, 0.0]
