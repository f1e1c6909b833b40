"""Solves in the space of samples: of a matrix of this package, or of rows of the user's own."""

from __future__ import annotations

from typing import Literal, overload

from numpy.typing import ArrayLike

from .._typing import Callback
from ..operators.curvature import GaussNewtonMatrix
from .results import BlockSolveResult, MultishiftResult, RowsSolveResult, SolveResult
from .rows import rows_solve
from .sample_space import SampleSpace, solve_space

__all__ = ["sample_space_solve"]

_MAX_ITER = 250


@overload
def sample_space_solve(
    matrix: GaussNewtonMatrix,
    g: ArrayLike | None = None,
    *,
    y: ArrayLike | None = None,
    damping: float | ArrayLike = 0.0,
    method: Literal["auto", "cholesky", "eigh", "cg"] = "auto",
    rtol: float = 1e-5,
    max_iter: int = _MAX_ITER,
    callback: Callback | None = None,
) -> SolveResult | BlockSolveResult | MultishiftResult: ...


@overload
def sample_space_solve(
    *,
    rows: ArrayLike,
    rhs: ArrayLike,
    damping: float | ArrayLike = 0.0,
    method: Literal["auto", "cholesky", "eigh"] = "auto",
    rtol: float = 1e-5,
    center: bool = False,
    weights: ArrayLike | None = None,
    real_solution: bool = False,
    num_threads: int | None = None,
) -> RowsSolveResult | BlockSolveResult | MultishiftResult: ...


def sample_space_solve(
    matrix: GaussNewtonMatrix | None = None,
    g: ArrayLike | None = None,
    *,
    y: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    rhs: ArrayLike | None = None,
    damping: float | ArrayLike = 0.0,
    method: Literal["auto", "cholesky", "eigh", "cg"] = "auto",
    rtol: float = 1e-5,
    max_iter: int = _MAX_ITER,
    callback: Callback | None = None,
    center: bool = False,
    weights: ArrayLike | None = None,
    real_solution: bool = False,
    num_threads: int | None = None,
) -> SolveResult | BlockSolveResult | MultishiftResult:
    """Solve (U U' + s I) x = g in the space of samples: with the kernel U'U (n, n), s > 0.

    ``sample_space_solve(matrix, g)`` solves (B + (l2 + damping) I) x = g for a curvature matrix
    B = U U' of a net; J is never formed.

    ``sample_space_solve(rows=O, rhs=e)`` solves for rows O (n, P) of one's own, real or complex
    (minSR, stochastic reconfiguration, ridge regression with n < P): x minimises
    ``sum_i w_i |O_i x - e_i|^2 + damping |x|^2``.

    Parameters
    ----------
    matrix : Fisher, GGN or EmpiricalFisher
        B = U U', positive semi-definite by construction; its own damping and l2 count.
    g : (P,) or (P, K) array_like, optional
        With a matrix: right-hand side, or K of them, which share what is formed and factorised.
        Without it, that of `y`.
    y : array_like, optional
        With a matrix, targets: says that g is the gradient of the objective on its batch, l2
        included, so that no digits cancel for small dampings. Without g and y the empirical Fisher
        takes the targets that it was made with. A wrong y costs time, not correctness.
    rows : (n, P) array_like
        In place of a matrix. Float32 and complex64 rows give an x of that type, all others one of
        double precision. Any order of memory; a memory map is read in blocks of columns.
    rhs : (n,) or (n, K) array_like
        With rows: e, or K of them. Complex only where the rows are.
    damping : float or sequence of m floats
        On top of what a matrix contains; the sum with l2 must be > 0. With rows it may be 0: see
        Notes. One number for a block g or rhs.
    method : {"auto", "cholesky", "eigh", "cg"}
        "cholesky" and "eigh" form the kernel K (n, n) and are exact; "cg", not for rows, multiplies
        with K by backward deltas, a forward pass and layer Grams, without a vector of length P.
        "auto" for a matrix: the exact ones up to n = 4096, with "eigh" from 100 dampings on, where
        n^3 / 3 flops for each cost more than one eigendecomposition and O(n^2) for each. For rows:
        "eigh" up to n = 1000, 500 complex ones, and from 15 dampings on.
    rtol : float
        Of the true residual, relative to |g|. Corrections are added until it is met or no longer
        falls.
    max_iter : int
        With a matrix: iterations of "cg" in all.
    callback : callable, optional
        As in `cg`, for "cg": residual and quadratic are those in the space of samples. The columns
        of a block are solved one after the other, and the iterations of all are counted.
    center : bool
        With rows: subtract their weighted mean from all rows, and that of rhs from rhs.
    weights : (n,) array_like, optional
        With rows: w_i >= 0, which are normalised to the sum 1; 1 / n by default. Rows of weight 0
        act as if they were left out, whatever they hold.
    real_solution : bool
        With complex rows: the real x of the least ``sum_i w_i |O_i x - e_i|^2 + damping |x|^2``.
    num_threads : int, optional
        With rows; a matrix has its own number. The bits do not depend on it.

    Returns
    -------
    SolveResult, or BlockSolveResult for K right-hand sides, MultishiftResult for several dampings
        With `method`, and the true residual of every solution. ``stagnated``: rtol is out of reach
        of the float type. With rows the (columns of the) results are `RowsSolveResult`, with the
        `spectrum` of K, and x is complex where the rows are, unless it is to be real.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range, a matrix that may be indefinite, or rows or
        rhs that are not finite.
    MemoryError
        Before anything is computed, if the machine can not hold the kernel of the rows.

    Notes
    -----
    With U r + h = g: x = U a + h / s, (K + s I) a = r - U'h / s, s = damping + l2 (Woodbury; the
    push-through identity where h = 0). With targets r = Q^+ dL/dz for every case where Q is well
    conditioned; cases with a saturated probability go into h. "cholesky" costs 2 n P + n^2 (sum of
    widths) + n^3 / 3 flops and 3 n^2 numbers, further dampings n^3 / 3; every solution one product
    with B to check the residual. An iteration of "cg" costs 4 N P + 2 N^2 (sum of widths) flops,
    without the first layer.

    With rows U = [sqrt(w_i) O_i^H] (P, n), of centred rows where that is asked for, and
    r_i = sqrt(w_i) e_i: x = U a with (K + damping I) a = r. It costs n^2 P flops, 4 n^2 P for
    complex rows, and a decomposition; three passes over the rows, and one to see that they are
    finite; some blocks of 16 MiB and 4 to 7 m^2 numbers. K is summed up in float64 whatever the
    rows are. The residual is the gradient of half the objective, |U (r - U^H x) - damping x|,
    relative to |U r|, of x as it is returned. Eigenvalues of K + damping I up to m eps times the
    largest (m = n, or 2 n for complex rows; eps = 2.2e-16) count as 0: with damping 0, x is the
    least-squares solution of least norm, once singular values of the rows up to sqrt(m eps) times
    the largest are 0.

    With `real_solution` U U' is Re(O^H O), as for real parameters of a complex wave function, and
    the kernel is (2 n, 2 n). Rows [Re O; Im O] and rhs [Re e; Im e] stacked by hand are 2 n rows of
    half the weight: the same with half the damping, if they were centred before.

    SPRING (Goldshlager, Abrahamsen and Lin, arXiv 2401.10190), which stays near the last step d:
    ``d = mu * d + sample_space_solve(rows=O, rhs=e - mu * (O @ d), damping=...).x``.

    Examples
    --------
    >>> import numpy as np
    >>> import natgrad_fast as ng
    >>> net = ng.MLP([3, 5, 2], dtype="float64")
    >>> X, y = np.eye(3), np.ones((3, 2))
    >>> B = ng.EmpiricalFisher(net, "squared_error", X, y)
    >>> ng.sample_space_solve(B, damping=1e-2).status.success
    True

    Stochastic reconfiguration for a ring of four spins in a transverse field, in all 16 states s:
    log psi(s) = O theta for products of neighbours and of opposite spins, local energies
    e = (H psi)(s) / psi(s).

    >>> s = 1.0 - 2.0 * (np.arange(16)[:, None] >> np.arange(4) & 1)
    >>> flipped = s[:, None] * (1.0 - 2.0 * np.eye(4))  # (16, 4, 4): every spin of every state
    >>> def products(s):
    ...     return np.concatenate([s * np.roll(s, 1, -1), s * np.roll(s, 2, -1)], axis=-1)
    >>> O, theta = products(s), np.zeros(8)
    >>> for _ in range(50):
    ...     e = -O[:, :4].sum(1) - np.exp((products(flipped) - O[:, None]) @ theta).sum(1)
    ...     p = np.exp(2.0 * O @ theta)  # not normalised
    ...     step = ng.sample_space_solve(rows=O, rhs=e, damping=1e-3, center=True, weights=p)
    ...     theta -= 0.1 * step.x
    >>> print(f"{np.average(e, weights=p):.3f}, the least eigenvalue is -5.226")
    -5.224, the least eigenvalue is -5.226
    """
    if (matrix is None) == (rows is None):
        given = "none" if rows is None else "both"
        raise TypeError(f"exactly one of matrix and rows is wanted, got {given}")
    if rows is None:
        assert matrix is not None
        _refuse(
            "rows",
            rhs=rhs is not None,
            center=center is not False,
            weights=weights is not None,
            real_solution=real_solution is not False,
            num_threads=num_threads is not None,
        )
        return solve_space(
            SampleSpace(matrix),
            g,
            y=y,
            damping=damping,
            method=method,
            rtol=rtol,
            max_iter=max_iter,
            callback=callback,
        )
    _refuse(
        "a matrix",
        g=g is not None,
        y=y is not None,
        max_iter=max_iter != _MAX_ITER,
        callback=callback is not None,
    )
    if rhs is None:
        raise TypeError("rhs is missing: rows need a right-hand side (n,) or (n, K)")
    return rows_solve(
        rows,
        rhs,
        damping=damping,
        method=method,
        rtol=rtol,
        center=center,
        weights=weights,
        real_solution=real_solution,
        num_threads=num_threads,
    )


def _refuse(where: str, **given: bool) -> None:
    """Raise TypeError for arguments that belong to the other form."""
    for name, is_given in given.items():
        if is_given:
            raise TypeError(f"{name} goes with {where}")
