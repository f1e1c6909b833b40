"""Hypothesis: random nets, batches, array layouts and linear systems."""

import dataclasses

import natgrad_fast as ng
import numpy as np
import reference
from cases import (
    CURVATURES,
    GAUSS_NEWTON,
    MEAN_VARIANCE,
    SOFTMAX,
    Case,
    assert_close,
    curvature,
    exact_curvature,
    same_bits,
)
from conftest import TOLERANCES
from hypothesis import given
from hypothesis import strategies as st

DTYPES = st.sampled_from(["float32", "float64"])


@st.composite
def any_case(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 18), min_size=2, max_size=5)))
    names = st.sampled_from(list(reference.ACTIVATIONS))
    loss = draw(st.sampled_from(list(reference.LOSSES)))
    if loss == SOFTMAX and sizes[-1] == 1:
        sizes = (*sizes[:-1], 2)
    if loss == MEAN_VARIANCE:  # means and log-variances
        sizes = (*sizes[:-1], 2 * (1 + sizes[-1] // 4))
    depth = len(sizes) - 1
    return Case(
        id=f"case-{draw(st.integers(0, 99))}",
        sizes=sizes,
        loss=loss,
        n=draw(st.integers(1, 40)),
        activation=tuple(draw(names) for _ in range(depth - 1)),
        bias=tuple(draw(st.booleans()) for _ in range(depth)),
        labels=draw(st.booleans()),
        weighted=draw(st.booleans()),
    )


@given(case=any_case(), dtype=DTYPES, threads=st.integers(1, 3), num_vectors=st.integers(1, 9))
def test_any_net_equals_oracle(case, dtype, threads, num_vectors):
    problem, tol = case.problem(dtype), TOLERANCES[dtype]
    net, oracle, x, y, weight = problem
    options = {"sample_weight": weight, "l2": 0.1}
    block = case.rng().standard_normal((net.num_params, num_vectors)).astype(dtype)
    h, g = ng.value_and_grad(net, case.loss, x, y, num_threads=threads, **options)
    exact = reference.value(oracle, case.loss, *problem.args, **options)
    assert abs(h - exact) <= tol.forward * (1.0 + abs(exact))
    assert_close(g, reference.gradient(oracle, case.loss, *problem.args, **options), tol.gradient)
    fisher = ng.Fisher(net, case.loss, x, num_threads=threads, damping=0.2, **options)
    dense = reference.fisher(oracle, case.loss, *problem.args[:2], damping=0.2, **options)
    assert_close(fisher @ block, dense @ block, tol.product)
    jacobian = oracle.jacobian(net.params, x)
    assert_close(net.jvp(x, block, num_threads=threads), jacobian @ block, tol.product)


@given(
    case=any_case(),
    dtype=DTYPES,
    kind=st.sampled_from(CURVATURES),
    n=st.integers(1, 400),
    chunk_size=st.none() | st.integers(1, 400),
    threads=st.integers(1, 3),
)
def test_any_curvature_equals_oracle(case, dtype, kind, n, chunk_size, threads):
    case = dataclasses.replace(case, n=n)
    problem, tol = case.problem(dtype), TOLERANCES[dtype]
    options = {"sample_weight": problem.weight, "l2": 0.1, "damping": 0.3}
    exact = exact_curvature(kind, problem, case.loss, **options)
    operator = curvature(
        kind, problem, case.loss, chunk_size=chunk_size, num_threads=threads, **options
    )
    v = case.rng().standard_normal(len(exact)).astype(dtype)
    # products may cancel: against what they are sums of
    product, scale = exact @ v, np.linalg.norm(exact, 2) * np.linalg.norm(v)
    assert np.linalg.norm(operator @ v - product) <= tol.product * scale
    assert abs(operator.quadratic_form(v) - v @ product) <= tol.product * scale * np.linalg.norm(v)
    assert_close(operator.diagonal(), np.diag(exact), tol.product)
    if kind in GAUSS_NEWTON:
        for block, place in zip(
            operator.block_diagonal(), reference.layer_slices(problem.oracle), strict=True
        ):
            assert_close(block, exact[place, place], tol.product)


@st.composite
def any_view(draw):
    """A (N, 4) array in any dtype, byte order, alignment of axes, stride and direction."""
    kind = draw(st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i2", "i4", "u4", "i8", "u8", "?"]))
    order = draw(st.sampled_from("<>"))
    num_cases = draw(st.integers(1, 9))
    row_step = draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
    column_step = draw(st.sampled_from([-2, -1, 1, 2]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (num_cases * abs(row_step), 4 * abs(column_step))
    base = rng.integers(0, 100, shape).astype(np.dtype(kind).newbyteorder(order))
    base = np.asarray(base, order=draw(st.sampled_from("CF")))
    if draw(st.booleans()):
        return np.ascontiguousarray(base.T)[::column_step, ::row_step].T
    return base[::row_step, ::column_step]


@given(x=any_view(), dtype=DTYPES)
def test_any_view_gives_the_bits_of_a_plain_copy(x, dtype):
    net = ng.MLP([4, 3, 2], dtype=dtype, seed=0)
    net.params[:] *= 0.01  # entries of x go up to 99; keep tanh away from its ends
    before = x.copy()
    plain = np.array(x, dtype=dtype, order="C")
    v = net.params.copy()
    assert same_bits(net(x), net(plain))
    assert same_bits(ng.Fisher(net, SOFTMAX, x) @ v, ng.Fisher(net, SOFTMAX, plain) @ v)
    assert same_bits(x, before)


@given(
    eigenvalues=st.lists(st.floats(-1.0, 10.0, width=16), min_size=1, max_size=12),
    seed=st.integers(0, 2**16),
    exponent=st.integers(-15, 15),
    dtype=DTYPES,
    max_iter=st.integers(0, 30),
    diagonal=st.booleans(),
    stopping=st.sampled_from(["residual", "relative_progress"]),
)
def test_cg_tells_the_truth(eigenvalues, seed, exponent, dtype, max_iter, diagonal, stopping):
    """Definite or not, singular or not: the record describes x, and x never made it worse."""
    rng, size = np.random.default_rng(seed), len(eigenvalues)
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = ((q * np.array(eigenvalues)) @ q.T).astype(dtype)
    b = (rng.standard_normal(size) * 10.0**exponent).astype(dtype)
    preconditioner = 0.1 + rng.random(size) if diagonal else None
    result = ng.cg(matrix, b, max_iter=max_iter, stopping=stopping, preconditioner=preconditioner)
    assert result.x.dtype == dtype
    assert np.isfinite(result.x).all()
    assert 0 <= result.iterations <= max_iter
    x, b, matrix = result.x.astype(float), b.astype(float), matrix.astype(float)
    # rounding of one product in this dtype, relative to its largest term
    eps = 100 * TOLERANCES[dtype].eps
    scale = np.abs(matrix).sum(axis=1).max() * np.linalg.norm(x) + np.linalg.norm(b)
    assert abs(result.residual_norm - np.linalg.norm(b - matrix @ x)) <= eps * scale
    quadratic = 0.5 * x @ matrix @ x - b @ x
    assert abs(result.quadratic - quadratic) <= eps * scale * np.linalg.norm(x)
    assert result.quadratic <= eps * scale * np.linalg.norm(x)  # x = 0 has 0
    if result.status is ng.Status.CONVERGED:
        assert result.residual_norm <= 1e-5 * np.linalg.norm(b) * (1 + eps)
    if min(eigenvalues) >= 0.1 and max_iter == 30:
        assert result.status.success
