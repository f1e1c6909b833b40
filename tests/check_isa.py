"""Numeric checks of one instruction set, run by test_isa.py in a process of its own."""

import cases
import natgrad_fast as ng
import numpy as np
import quantities
import reference
import reference_kronecker
from cases import BERNOULLI, SOFTMAX, STUDENT, Case, assert_close, same_bits
from conftest import TOLERANCES

# Sizes that are multiples of no vector length, on several tiles, and every kind of output matrix.
NETS = [
    Case("19-25-13-7-softmax", (19, 25, 13, 7), SOFTMAX, n=131, weighted=True),
    Case("11-21-17-3-student", (11, 21, 17, 3), STUDENT, n=67, activation="gelu"),
    Case("7-31-5-bernoulli", (7, 31, 5), BERNOULLI, n=37, activation="silu", weighted=True),
]
WIDE = Case("67-130-11", (67, 130, 11), SOFTMAX, n=259)  # above the threading threshold
DAMPING = 0.1


def check_products(problem, loss, tol, rng):
    """Forward pass, gradient, J and every curvature matrix; returns the Fisher matrix."""
    net, oracle, x, _, weight = problem
    theta, x64, y = problem.args
    v, block = rng.standard_normal(net.num_params), rng.standard_normal((net.num_params, 3))
    assert_close(net(x), oracle.forward(theta, x64), tol.forward)
    options = {"sample_weight": weight, "l2": 0.01}
    value, gradient = ng.value_and_grad(net, loss, x, problem.y, **options)
    exact_value = reference.value(oracle, loss, theta, x64, y, **options)
    assert abs(value - exact_value) <= tol.product * abs(exact_value)
    assert_close(gradient, reference.gradient(oracle, loss, theta, x64, y, **options), tol.gradient)
    exact = oracle.jacobian(theta, x64).reshape(-1, net.num_params)
    jacobian = ng.Jacobian(net, x)
    assert_close(jacobian @ block, exact @ block, tol.product)
    u = rng.standard_normal(len(exact))
    assert_close(jacobian.T @ u, exact.T @ u, tol.product)
    for kind in cases.CURVATURES:
        operator = cases.curvature(kind, problem, loss, damping=DAMPING, **options)
        dense = cases.exact_curvature(kind, problem, loss, damping=DAMPING, **options)
        assert_close(operator @ v, dense @ v, tol.product)
        assert_close(operator @ block, dense @ block, tol.product)


def check_solvers(problem, loss, tol, rng):
    """CG and every solve in sample space, by their residuals under the dense matrix."""
    net, oracle, x, _, weight = problem
    theta, x64, _ = problem.args
    dense = reference.fisher(oracle, loss, theta, x64, sample_weight=weight, damping=DAMPING)
    b = rng.standard_normal(net.num_params).astype(net.dtype)
    fisher = ng.Fisher(net, loss, x, sample_weight=weight)
    rtol = 100 * tol.eps
    stop = {"rtol": rtol, "max_iter": 1000}
    solutions = {"cg": ng.cg(fisher, b, damping=DAMPING, **stop).x}
    for method in ("cholesky", "eigh", "cg"):
        found = ng.sample_space_solve(fisher, b, damping=DAMPING, method=method, **stop)
        solutions[f"sample space {method}"] = found.x
    for name, x in solutions.items():
        x = np.asarray(x, float)
        # the residual that the tolerance of one product leaves, and that of the stop
        bound = tol.product * np.linalg.norm(dense) * np.linalg.norm(x)
        bound += rtol * np.linalg.norm(b)
        residual = np.linalg.norm(dense @ x - b)
        assert residual <= bound, f"{name}: residual {residual:.1e} > {bound:.1e}"


def check_kfac(problem, loss, tol, rng):
    """The damped matrix against the oracle, and the product against its inverse."""
    theta, x64, _ = problem.args
    layers = reference_kronecker.layers(problem.oracle, loss, theta, x64, problem.weight)
    dense = reference_kronecker.dense(
        layers, lambda layer: reference_kronecker.damped("kfac", layer, DAMPING, "trace")
    )
    m = ng.KFAC(
        problem.net, loss, problem.x, sample_weight=problem.weight, damping=DAMPING, pi="trace"
    )
    assert_close(m.to_dense(damped=True), dense, tol.product)
    b = rng.standard_normal(len(dense))
    smallest, largest = np.linalg.eigvalsh(dense)[[0, -1]]
    assert largest < 1e3 * smallest  # so the inverse keeps the tolerance of a product
    assert_close(m @ b, np.linalg.solve(dense, b), tol.product)


def check_threads(problem, loss):
    """The same bits on one thread, two and three."""
    single = dict(quantities.of_problem(problem, loss, 1))
    for num_threads in (2, 3):
        for name, value in quantities.of_problem(problem, loss, num_threads):
            assert same_bits(value, single[name]), f"{name}, {num_threads} threads"


def run(isa):
    """All checks, in the module for this instruction set."""
    assert ng.show_config()["isa"] == isa
    rng = np.random.default_rng(1)
    for dtype, tol in TOLERANCES.items():
        for case in NETS:
            problem = case.problem(dtype)
            check_products(problem, case.loss, tol, rng)
            check_solvers(problem, case.loss, tol, rng)
            check_kfac(problem, case.loss, tol, rng)
            check_threads(problem, case.loss)
        check_threads(WIDE.problem(dtype), WIDE.loss)
    print("checked", isa)
