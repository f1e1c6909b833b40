"""The plane of the new direction and the last step: a system of two equations."""

import math

import numpy as np
import pytest
from natgrad_fast.training.rescale import _solve_symmetric


@pytest.mark.parametrize("seed", range(200))
def test_two_equations_equal_the_pseudo_inverse(seed):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((2, 2)))[0]
    values = rng.standard_normal(2) * 10.0 ** rng.uniform(-3, 3, 2)
    if seed % 3 == 0:
        values = np.abs(values)
    if seed % 5 == 0:
        values[0] = 1e-12 * values[1]
    matrix = 10.0 ** rng.uniform(-100, 100) * (q * values) @ q.T
    a, b, c = matrix[0, 0], 0.5 * (matrix[0, 1] + matrix[1, 0]), matrix[1, 1]
    exact = np.array([[a, b], [b, c]])
    right = rng.standard_normal(2)
    wanted = np.linalg.pinv(exact, rcond=1e-7, hermitian=True) @ right
    found = _solve_symmetric(a, b, c, *right, 1e-7)
    # the condition is at most 1e7: rounding of 1e-16 times that
    assert np.abs(found - wanted).max() <= 1e-8 * np.abs(wanted).max()


def test_what_is_zero():
    assert _solve_symmetric(0.0, 0.0, 0.0, 1.0, 2.0, 1e-7) == (0.0, 0.0)
    assert _solve_symmetric(4.0, 0.0, 0.0, 1.0, 2.0, 1e-7) == (0.25, 0.0)
    x, y = _solve_symmetric(1.0, 1.0, 1.0, 2.0, 2.0, 1e-7)
    assert math.isclose(x, 1.0)
    assert math.isclose(y, 1.0)
