"""What solvers take as a preconditioner, and what they say of everything else."""

from types import SimpleNamespace

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, same_bits

CASE = Case("4-6-3-preconditioner", (4, 6, 3), SOFTMAX, n=30)
KINDS = (ng.KFAC, ng.EKFAC, ng.TKFAC, ng.TEKFAC, ng.DiagonalPreconditioner, ng.Nystrom)
NAMES = [kind.__name__ for kind in KINDS]


def set_up(dtype="float64"):
    problem = CASE.problem(dtype)
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x)
    b = CASE.rng().standard_normal((problem.net.num_params, 3)).astype(dtype)
    return problem, fisher, b


def build(kind, problem, **options):
    """A preconditioner of a kind: measured, and inverted if a damping is given."""
    arguments = [problem.net, SOFTMAX, problem.x]
    if kind is ng.DiagonalPreconditioner:
        arguments.append(problem.y)
    if kind is ng.Nystrom:
        options = {"rank": 10, **options}
    return kind(*arguments, **options)


class MatvecOnly:
    def __init__(self, operator):
        self.shape, self.matvec = operator.shape, operator.matvec


class ProductOnly:
    def __init__(self, operator):
        self._operator = operator

    def __matmul__(self, v):
        return self._operator @ v


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_every_form_of_an_inverse_is_taken(kind, dtype):
    """The preconditioner itself, in the core; the same by products, and as a dense matrix."""
    problem, fisher, b = set_up(dtype)
    inverse = build(kind, problem, damping=0.1)
    dense = inverse @ np.eye(len(b), dtype=dtype)
    for rhs in (b, b[:, 0]):
        expected = ng.cg(fisher, rhs, damping=0.1, preconditioner=inverse)
        assert np.all(np.equal(expected.status, "converged"))
        forms = [1.0 * inverse, MatvecOnly(inverse), ProductOnly(inverse), dense, dense.tolist()]
        if kind is not ng.DiagonalPreconditioner:  # whose core is the diagonal
            forms.append(SimpleNamespace(shape=inverse.shape, core=inverse.core, matvec=None))
        for form in forms:
            found = ng.cg(fisher, rhs, damping=0.1, preconditioner=form)
            assert np.all(np.equal(found.status, "converged"))
            # the same numbers but for rounding, which may cost or save an iteration or two
            assert np.all(np.abs(np.subtract(found.iterations, expected.iterations)) <= 2)
    exact = ng.cg(fisher, b[:, 0], damping=0.1, preconditioner=1.0 * inverse)
    assert same_bits(exact.x, ng.cg(fisher, b[:, 0], damping=0.1, preconditioner=inverse).x)


def test_diagonals_are_taken(dtype):
    _, fisher, b = set_up(dtype)
    diagonal = 1.0 / (fisher.diagonal() + 0.1)
    expected = ng.cg(fisher, b, damping=0.1, preconditioner=diagonal)
    assert expected.success
    for form in (diagonal.astype(float), diagonal.tolist(), tuple(diagonal.tolist())):
        assert same_bits(ng.cg(fisher, b, damping=0.1, preconditioner=form).x, expected.x)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_classes_instead_of_instances(kind):
    _, fisher, b = set_up()
    words = rf"preconditioner is the class {kind.__name__}, wanted an instance of it, such as"
    for call in (
        lambda: ng.cg(fisher, b, preconditioner=kind),
        lambda: ng.cg(np.eye(len(b)), b[:, 0], preconditioner=kind),
        lambda: fisher.solve(b[:, 0], damping=0.1, preconditioner=kind),
        lambda: ng.solvers.CG(preconditioner=kind).init(CASE.net("float64"), SOFTMAX),
    ):
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_inverses_that_are_not_there_yet(kind):
    problem, fisher, b = set_up()
    empty = kind(problem.net, SOFTMAX, **({"rank": 10} if kind is ng.Nystrom else {}))
    missing = [(empty, r"call its update\(X\) and refresh\(damping\) first")]
    if kind is not ng.Nystrom:  # whose damping has a default
        missing.append((build(kind, problem), r"call its refresh\(damping\) first"))
    ready = build(ng.KFAC, problem, damping=0.1)
    for operator, words in missing:
        for preconditioner in (operator, 2.0 * operator, ready + operator, ready @ operator):
            with pytest.raises(ValueError, match=f"preconditioner has no inverse yet: {words}"):
                ng.cg(fisher, b, preconditioner=preconditioner)
            with pytest.raises((ValueError, RuntimeError), match="yet: call"):
                operator @ b[:, 0]


def test_matrices_instead_of_inverses():
    problem, fisher, b = set_up()
    net, x, y = problem.net, problem.x, problem.y
    hessian, jacobian = ng.Hessian(net, SOFTMAX, x, y), ng.Jacobian(net, x)
    kfac = build(ng.KFAC, problem, damping=0.1)
    for matrix in (
        fisher,
        hessian,
        ng.GGN(net, SOFTMAX, x),
        ng.EmpiricalFisher(net, SOFTMAX, x, y),
        ng.SampleSpace(fisher),
        jacobian,
        fisher + hessian,
        2.0 * fisher,
        jacobian.T @ jacobian,
        kfac @ fisher,
        SimpleNamespace(role="matrix", matvec=fisher.matvec),
    ):
        words = r"must approximate the inverse of A, got a matrix: .*Nystrom\(A, damping=damping\)"
        with pytest.raises(TypeError, match=words):
            ng.cg(fisher, b, preconditioner=matrix)


WRONG = {
    "name": ("kfac", TypeError, "must be an object, got the name 'kfac': build one"),
    "number": (2.0, TypeError, "must have matvec or @, got 2.0"),
    "numpy-number": (np.float64(2.0), ValueError, "has 0 dimensions"),
    "true": (True, TypeError, "must have matvec or @, got True"),
    "function": (np.negative, TypeError, "must have matvec or @"),
    "mapping": ({}, TypeError, "must have matvec or @"),
    "object": (object(), TypeError, "must have matvec or @"),
    "short": (np.ones(5), ValueError, "has length 5, wanted 51"),
    "shape": (np.eye(5), ValueError, r"has shape \(5, 5\), wanted \(51, 51\)"),
    "rectangular": (np.ones((51, 3)), ValueError, r"has shape \(51, 3\), wanted \(51, 51\)"),
    "3d": (np.ones((51, 51, 1)), ValueError, "has 3 dimensions"),
    "complex": (np.ones(51) * 1j, TypeError, "has dtype complex128"),
    "complex-matrix": (np.eye(51) * 1j, TypeError, "has dtype complex128"),
    "objects": (np.ones(51, object), TypeError, "has dtype object"),
    "nan": (np.full(51, np.nan), ValueError, "has NaN or Inf"),
    "ragged": ([[1.0], [1.0, 2.0]], ValueError, "is not a rectangular array"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_preconditioner(wrong):
    preconditioner, error, words = WRONG[wrong]
    _, fisher, b = set_up()
    for rhs in (b, b[:, 0]):
        with pytest.raises(error, match=f"preconditioner {words}"):
            ng.cg(fisher, rhs, preconditioner=preconditioner)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_preconditioners_of_something_else(kind):
    problem, fisher, b = set_up()
    single, other = CASE.problem("float32"), Case("4-5-3-other", (4, 5, 3), SOFTMAX, n=30)
    with pytest.raises(ValueError, match="preconditioner is of float32, A of float64: build it in"):
        ng.cg(fisher, b, preconditioner=build(kind, single, damping=0.1))
    small = build(kind, other.problem("float64"), damping=0.1)
    with pytest.raises(ValueError, match=r"preconditioner has shape \(43, 43\), wanted \(51, 51\)"):
        ng.cg(fisher, b, preconditioner=small)
    reshaped = Case("2-17-2-reshaped", (2, 17), SQUARED, n=30)  # as many parameters
    foreign = ng.KFAC(reshaped.net("float64"), SQUARED, reshaped.problem("float64").x, damping=0.1)
    for preconditioner in (foreign, 2.0 * foreign):
        with pytest.raises(ValueError, match=r"preconditioner is of a net \(2, 17\), A of a net"):
            ng.cg(fisher, b, preconditioner=preconditioner)
    assert problem.net.num_params == foreign.shape[0]
