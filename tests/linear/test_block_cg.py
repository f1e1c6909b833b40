"""CG for several right-hand sides: every column as if it were alone, products as blocks."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, Case, assert_close, same_bits, spd_matrix

Status = ng.Status


class Operator:
    """Counts the vectors of every product."""

    def __init__(self, matrix, with_matmat=True):
        self.matrix, self.widths = matrix, []
        self.shape, self.dtype = matrix.shape, matrix.dtype
        if with_matmat:
            self.matmat = self.multiply

    def matvec(self, v):
        return self.multiply(v)

    def multiply(self, v):
        self.widths.append(1 if v.ndim == 1 else v.shape[1])
        return self.matrix @ v


def diagonal_problem(rng, dtype="float64"):
    """Right-hand sides in 1, 2, 5 and 20 eigenspaces: as many iterations each."""
    matrix = np.diag(np.linspace(1.0, 2.0, 20)).astype(dtype)
    block = rng.standard_normal((20, 4)).astype(dtype)
    for k, count in enumerate([1, 2, 5]):
        block[count:, k] = 0.0
    return matrix, block


@pytest.mark.parametrize("options", [{}, {"stopping": "relative_progress"}, {"max_iter": 7}])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "diagonal"])
def test_columns_are_as_if_alone(preconditioned, warm, options, dtype, rng):
    matrix = spd_matrix(rng, 60, 30.0, dtype)
    block = (rng.standard_normal((60, 5)) * [1.0, 1e-8, 1e8, 3.0, 1.0]).astype(dtype)
    x0 = (0.1 * block).astype(dtype) if warm else None
    options = options | {"damping": 0.01}
    if preconditioned:
        options["preconditioner"] = 1 / np.diag(matrix)
    result = ng.cg(matrix, block, x0=x0, **options)
    assert result.x.shape == block.shape
    assert result.x.dtype == dtype
    assert len(result) == len(result.columns) == 5
    for k, column in enumerate(result):
        alone = ng.cg(matrix, block[:, k], x0=None if x0 is None else x0[:, k], **options)
        assert column.status is alone.status
        # a block product rounds differently, which may shift a stop by one
        assert abs(column.iterations - alone.iterations) <= 1
        assert_close(column.x, alone.x, 1e-3)  # condition 30 times rtol 1e-5, with room
        assert same_bits(result.x[:, k], column.x)
        assert result[k] is column
        shifted = matrix.astype(float) + 0.01 * np.eye(60)
        residual = np.linalg.norm(block[:, k] - shifted @ column.x)
        eps = 100 * np.finfo(dtype).eps * np.linalg.norm(block[:, k].astype(float))
        assert column.residual_norm == pytest.approx(residual, abs=eps)
    assert result.matvecs == sum(column.matvecs for column in result)
    assert result.iterations.tolist() == [column.iterations for column in result]
    assert result.residual_norm.shape == result.quadratic.shape == (5,)
    assert result.success == all(status.success for status in result.status)
    assert result.flops == sum(column.flops for column in result) > 0


def test_finished_columns_drop_out(dtype, rng):
    matrix, block = diagonal_problem(rng, dtype)
    operator = Operator(matrix)
    result = ng.cg(operator, block)
    assert result.success
    assert result.iterations[:2].tolist() == [1, 2]
    assert result.iterations[3] > result.iterations[2]
    assert result.matvecs == sum(operator.widths)
    assert operator.widths[0] == 4
    assert operator.widths == sorted(operator.widths, reverse=True)
    assert operator.widths[-1] == 1
    exact = np.linalg.solve(matrix.astype(float), block.astype(float))
    assert_close(result.x, exact, 1e-4)  # condition 2 times rtol 1e-5, with room


def test_operators_without_matmat(rng):
    matrix, block = diagonal_problem(rng)
    operator = Operator(matrix, with_matmat=False)
    result = ng.cg(operator, block)
    assert set(operator.widths) == {1}
    assert result.matvecs == len(operator.widths)
    assert_close(result.x, ng.cg(matrix, block).x, 1e-12)


def test_statuses_of_their_own():
    matrix = np.diag([1.0, 2.0, -1.0])
    block = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    result = ng.cg(matrix, block)
    names = (Status.CONVERGED, Status.CONVERGED, Status.NEGATIVE_CURVATURE)
    assert result.status == names
    assert result.iterations.tolist() == [2, 0, 0]
    assert not result.success
    assert_close(result.x, [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]], 1e-14)


def test_a_bad_column_leaves_the_others_alone(rng):
    matrix, block = spd_matrix(rng, 20, 10.0), rng.standard_normal((20, 3))

    class Failing(Operator):
        def multiply(self, v):
            product = super().multiply(v)
            if product.ndim == 2 and len(self.widths) == 3:
                product[:, 1] = np.nan
            return product

    result = ng.cg(Failing(matrix), block)
    assert result.status == (Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED)
    assert result.iterations[1] == 2
    assert np.isfinite(result.x).all()
    assert_close(result.x[:, ::2], ng.cg(matrix, block[:, ::2]).x, 1e-4)


def test_callback_sees_all_columns_and_stops_them(rng):
    matrix, block = spd_matrix(rng, 50, 1e4), rng.standard_normal((50, 3))
    seen = []

    def callback(iteration, residual_norms, quadratics):
        seen.append((iteration, residual_norms, quadratics))
        return iteration == 6

    result = ng.cg(matrix, block, rtol=1e-12, callback=callback)
    assert result.status == (Status.STOPPED,) * 3
    assert [iteration for iteration, _, _ in seen] == list(range(1, 7))
    assert_close(seen[-1][1], result.residual_norm, 1e-8)
    assert_close(seen[-1][2], result.quadratic, 1e-8)
    assert not np.shares_memory(seen[0][1], seen[1][1])


def test_preconditioners_multiply_blocks(rng):
    matrix, block = spd_matrix(rng, 30, 1e5), rng.standard_normal((30, 4))
    inverse = Operator(np.linalg.inv(matrix))
    result = ng.cg(matrix, block, preconditioner=inverse, rtol=1e-8)
    assert result.success
    assert (result.iterations <= 2).all()
    assert inverse.widths[0] == 4


def test_fisher_with_blocks(tol, dtype, rng):
    problem = Case("block-cg-6-8-3", (6, 8, 3), SOFTMAX, n=40).problem(dtype)
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x)
    block = rng.standard_normal((problem.net.num_params, 3)).astype(dtype)
    result = ng.cg(fisher, block, damping=0.1)
    shifted = fisher.to_dense().astype(float) + 0.1 * np.eye(len(block))
    for k in range(3):
        residual = np.linalg.norm(shifted @ result.x[:, k] - block[:, k])
        assert residual <= (1e-5 + tol.product) * np.linalg.norm(block[:, k])
    assert np.isnan(result.flops) or result.flops > 0


def test_bits_do_not_depend_on_threads(dtype, num_threads):
    rng = np.random.default_rng(0)
    size = 70_000  # vectors above the threading threshold
    diagonal = (1 + rng.random((size, 1))).astype(dtype)

    class Diagonal:
        shape, dtype = (size, size), diagonal.dtype

        def matvec(self, v):
            return diagonal[:, 0] * v

        def matmat(self, v):
            return diagonal * v

    block = rng.standard_normal((size, 3)).astype(dtype)
    for options in [{}, {"trust_radius": 10.0}, {"preconditioner": Diagonal()}]:
        found = ng.cg(Diagonal(), block, num_threads=num_threads, **options)
        expected = ng.cg(Diagonal(), block, num_threads=1, **options)
        assert same_bits(found.x, expected.x)
        assert same_bits(found.quadratic, expected.quadratic)


def test_inputs_are_left_alone(rng):
    matrix, block = spd_matrix(rng, 10, 10.0), np.asfortranarray(rng.standard_normal((10, 2)))
    x0 = np.asfortranarray(rng.standard_normal((10, 2)))
    before = block.copy(), x0.copy()
    result = ng.cg(matrix, block, x0=x0)
    assert same_bits(block, before[0])
    assert same_bits(x0, before[1])
    assert not np.shares_memory(result.x, x0)


@pytest.mark.parametrize(
    ("b", "options", "error", "words"),
    [
        (np.ones((4, 2)), {}, ValueError, r"b has shape \(4, 2\), wanted \(3,\) or \(3, K\)"),
        (np.ones((3, 0)), {}, ValueError, "b has no columns"),
        (np.ones((3, 2, 1)), {}, ValueError, "b has shape"),
        (np.full((3, 2), np.nan), {}, ValueError, "b has NaN or Inf"),
        (np.ones((3, 2)), {"x0": np.ones((3, 3))}, ValueError, "x0 has 3 columns, wanted 2 as in"),
        (np.ones((3, 2)), {"x0": np.ones(3)}, ValueError, "x0 has 1 columns, wanted 2 as in b"),
        (np.ones(3), {"x0": np.ones((3, 1))}, ValueError, "x0 has 2 dimensions"),
        (
            np.ones((3, 2)),
            {"x0": np.ones((3, 2)), "trust_radius": 1.0},
            ValueError,
            "x0 has length 1.73205 in column 0, outside trust_radius 1",
        ),
    ],
)
def test_bad_blocks(b, options, error, words):
    with pytest.raises(error, match=words):
        ng.cg(np.eye(3), b, **options)


def test_wrong_shape_of_a_block_product(rng):
    operator = Operator(np.eye(3))
    operator.matmat = lambda v: v.T
    with pytest.raises(ValueError, match=r"product with A has shape \(2, 3\), wanted \(3, 2\)"):
        ng.cg(operator, np.ones((3, 2)))


# ------------------------------------------------------------------------------------------------
# A tolerance that lies at the rounding of A x


class Plain:
    """An operator without products of blocks."""

    def __init__(self, matrix):
        self.shape, self.dtype, self.matvec = matrix.shape, matrix.dtype, matrix.__matmul__


class Blocks(Plain):
    """Products of blocks are rounded otherwise than those of vectors."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.matmat = matrix.__matmul__


@pytest.mark.parametrize("wrap", [np.asarray, Plain, Blocks], ids=["array", "vectors", "blocks"])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "nystrom"])
def test_a_column_gives_up_where_a_single_solve_does(preconditioned, wrap, dtype):
    """|x| is 5e3 |b|: in float32 rtol = 1e-4 lies at the rounding of A x, whatever the kernel."""
    values = np.r_[np.logspace(0, -3, 20), np.full(180, 1e-4)]
    gave_up = {"block": 0, "single": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.standard_normal((200, 200)))[0]
        matrix = (q * values) @ q.T
        matrix = (0.5 * (matrix + matrix.T)).astype(dtype)
        b = rng.standard_normal((200, 3)).astype(dtype)
        options = {"damping": 1e-4, "rtol": 1e-4, "max_iter": 2000}
        if preconditioned:
            options["preconditioner"] = ng.Nystrom(matrix, rank=30, damping=1e-4)
        operator = wrap(matrix)
        block = ng.cg(operator, b, **options)
        for column, rhs in zip(block, b.T, strict=True):
            single = ng.cg(operator, np.ascontiguousarray(rhs), **options)
            assert {column.status, single.status} <= {ng.Status.CONVERGED, ng.Status.STAGNATED}
            gave_up["block"] += column.status is ng.Status.STAGNATED
            gave_up["single"] += single.status is ng.Status.STAGNATED
            # both are within a few tolerances of the solution, in the norm of the residual
            exact = matrix.astype(float) @ column.x + 1e-4 * column.x.astype(float) - rhs
            assert np.linalg.norm(exact) <= 4e-4 * np.linalg.norm(rhs)
    # float64: never. float32: chance, so equally often to the standard deviation of 60 draws
    most = 0 if dtype == "float64" else gave_up["single"] + 8
    assert gave_up["block"] <= most
