from __future__ import annotations
import natgrad_fast._core
import numpy
import numpy.typing
import typing
__all__: list[str] = ['Curvature', 'DenseMatrix', 'Hessian', 'KernelCholesky', 'KernelEigenbasis', 'KroneckerFactors', 'KroneckerSnapshot', 'LinearOperator', 'Linearization', 'Nystrom', 'Objective', 'ProductOperator', 'SampleSpace', 'SumOperator', 'all_finite', 'conjugate_gradients', 'dense_flops', 'dot', 'draw_gradients', 'hessian_bytes', 'linearization_bytes', 'multishift_conjugate_gradients', 'orthonormalise_rows', 'predict', 'predictive_mean', 'remembered_weight', 'scaled', 'transposed']
class LinearOperator:
    """
    A symmetric linear map on R^P.
    """
    def apply(self, v: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        A v for the rows of v (K, P).
        """
    @property
    def size(self) -> int:
        ...
class Linearization:
    """
    A net linearised at fixed parameters over one batch.
    """
    def __init__(self, net: natgrad_fast._core.Architecture, *, params: numpy.ndarray, x: numpy.ndarray, num_threads: typing.SupportsInt | typing.SupportsIndex, chunk_size: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def jvp(self, v: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        J v (K, N, C) for v (K, P).
        """
    def vjp(self, u: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        J'u (K, P) for u (K, N, C).
        """
    @property
    def architecture(self) -> natgrad_fast._core.Architecture:
        ...
    @property
    def num_chunks(self) -> int:
        ...
    @property
    def num_threads(self) -> int:
        ...
    @property
    def params(self) -> numpy.typing.NDArray[numpy.float32]:
        ...
class Objective:
    """
    Weighted mean of a loss over the targets of one batch, plus l2.
    """
    def __init__(self, loss: natgrad_fast._core.Loss, *, targets: numpy.ndarray, weights: typing.Any, total_weight: typing.SupportsFloat | typing.SupportsIndex | None) -> None:
        ...
    def value(self, net: natgrad_fast._core.Architecture, *, params: numpy.ndarray, x: numpy.ndarray, l2: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex], num_threads: typing.SupportsInt | typing.SupportsIndex) -> float:
        """
        h at params (P,) for x (N, d_0).
        """
    def value_and_gradient(self, linearization: Linearization, *, l2: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]) -> tuple[float, numpy.typing.NDArray[numpy.float32]]:
        """
        h and dh/dparams (P,) at the params of the linearisation.
        """
    def value_and_gradients(self, linearization: Linearization, *, l2: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex], part: typing.SupportsInt | typing.SupportsIndex) -> tuple[float, numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
        """
        h, dh/dparams (P,), and the gradients of the first `part` cases, a multiple of 32, and of the others.
        """
class Curvature(LinearOperator):
    """
    B + S, B = mean of J'M J for per-case output matrices M.
    """
    def __init__(self, linearization: Linearization, loss: natgrad_fast._core.Loss, *, kind: str, num_samples: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, targets: typing.Any, weights: typing.Any, total_weight: typing.SupportsFloat | typing.SupportsIndex | None, shift: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...
    def diagonal(self, callback: typing.Any) -> typing.Any:
        """
        Diagonal of B + S (P,).
        """
    def layer_block(self, layer: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
        """
        Diagonal block of B + S that belongs to the parameters of a layer.
        """
    def quadratic_form(self, v: numpy.ndarray, w: numpy.ndarray) -> float:
        """
        v' (B + S) w.
        """
    def quadratic_forms(self, v: numpy.ndarray, w: numpy.ndarray) -> tuple[float, float, float]:
        """
        v'Av, v'Aw, w'Aw for A = B + S.
        """
    def trace(self, callback: typing.Any) -> typing.Any:
        """
        Trace of B + S.
        """
    @property
    def diagonal_flops(self) -> float:
        """
        Of the diagonal or the trace.
        """
    @property
    def num_columns(self) -> int:
        ...
    @property
    def positive_semidefinite(self) -> bool:
        ...
    @property
    def shift(self) -> tuple[float, float]:
        ...
    @shift.setter
    def shift(self, arg1: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...
class Hessian(LinearOperator):
    """
    H + S, H the Hessian of the mean loss.
    """
    def __init__(self, net: natgrad_fast._core.Architecture, loss: natgrad_fast._core.Loss, *, params: numpy.ndarray, x: numpy.ndarray, targets: numpy.ndarray, weights: typing.Any, total_weight: typing.SupportsFloat | typing.SupportsIndex | None, shift: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex], chunk_size: typing.SupportsInt | typing.SupportsIndex, num_threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def diagonal(self, callback: typing.Any) -> typing.Any:
        """
        Diagonal of H + S (P,).
        """
    def trace(self, callback: typing.Any) -> typing.Any:
        """
        Trace of H + S.
        """
    @property
    def diagonal_flops(self) -> float:
        """
        Of the diagonal or the trace.
        """
    @property
    def num_chunks(self) -> int:
        ...
    @property
    def num_threads(self) -> int:
        ...
    @property
    def shift(self) -> tuple[float, float]:
        ...
    @shift.setter
    def shift(self, arg1: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...
class KernelCholesky:
    """
    Cholesky factors of K + s I for one shift s.
    """
    def solve(self, b: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        (K + s I)^-1 b (n,).
        """
    @property
    def is_definite(self) -> bool:
        """
        Whether K + s I is positive definite to rounding.
        """
class KernelEigenbasis:
    """
    Eigenvectors of K.
    """
    def solve(self, shift: typing.SupportsFloat | typing.SupportsIndex, b: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        (K + shift I)^-1 b (n,).
        """
class SampleSpace(LinearOperator):
    """
    The kernel K = U'U (n, n) of a curvature matrix B = U U' (P, P).
    """
    def __init__(self, curvature: Curvature, *, bias_scale: typing.SupportsFloat | typing.SupportsIndex = 1.0) -> None:
        ...
    def add_factor(self, w: numpy.ndarray, v: numpy.ndarray) -> None:
        """
        v += U w, in place.
        """
    def decompose(self) -> tuple[KernelEigenbasis, bool]:
        """
        Eigenvectors of K, and whether they had to be computed.
        """
    def factorize(self, shift: typing.SupportsFloat | typing.SupportsIndex) -> tuple[KernelCholesky, bool]:
        """
        Cholesky factors of K + shift I, and whether they had to be computed.
        """
    def form(self) -> bool:
        """
        Forms K; whether it had to.
        """
    def kernel(self) -> numpy.typing.NDArray[numpy.float64]:
        """
        K (n, n) in float64, in the order (case, column).
        """
    def largest_diagonal(self) -> float:
        """
        Of K.
        """
    def multiply_factor(self, w: numpy.ndarray, *, num_params: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
        """
        U w (P,).
        """
    def multiply_factor_transposed(self, v: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        U'v (n,).
        """
    def prepare_products(self) -> None:
        """
        Layer Grams, for products with K.
        """
    def residual(self, g: numpy.ndarray, x: numpy.ndarray, *, shift: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]) -> tuple[numpy.typing.NDArray[numpy.float32], float, float]:
        """
        g - A x for A = U U' + S, its norm, and x'A x / 2 - g'x.
        """
    def split_gradient(self, targets: numpy.ndarray, *, num_outputs: typing.SupportsInt | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], bool]:
        """
        r (n,), rest (N, C) with gradient U r + J'rest, and whether the rest is 0.
        """
class DenseMatrix(LinearOperator):
    """
    A symmetric matrix (P, P) in float64, and what solves with it.
    """
    @staticmethod
    def of_array(a: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> DenseMatrix:
        """
        From what is at and below the diagonal.
        """
    @staticmethod
    def of_curvature(curvature: Curvature) -> DenseMatrix:
        """
        Formed in blocks of cases, its shift included.
        """
    def diagonal(self) -> numpy.typing.NDArray[numpy.float64]:
        """
        Diagonal (P,) of A, in float64.
        """
    def eigenvalues(self) -> list[float]:
        """
        Ascending.
        """
    def scaled(self, scales: numpy.ndarray) -> DenseMatrix:
        """
        S A S for the diagonal S (P,).
        """
    def solve(self, shift: typing.SupportsFloat | typing.SupportsIndex, method: str, b: numpy.ndarray) -> tuple[numpy.typing.NDArray[numpy.float32], list[tuple[float, float, float, bool]], str, int, int, int]:
        """
        (A + shift I)^-1 b for the rows of b (K, P); |b|, |residual|, quadratic and whether x was out of range of each; the method; 0 definite, 1 singular, 2 indefinite; what is new.
        """
    def to_dense(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        A (P, P).
        """
    @property
    def is_finite(self) -> bool:
        ...
class KroneckerSnapshot:
    """
    What KroneckerFactors held at some time.
    """
class KroneckerFactors(LinearOperator):
    """
    Damped inverse of a Kronecker-factored Fisher matrix.
    """
    def __init__(self, net: natgrad_fast._core.Architecture, *, kind: str, pi: str, basis_period: typing.SupportsInt | typing.SupportsIndex, num_threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def apply_root(self, v: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        S v (K, P) for v (K, P), S S' the inverse.
        """
    def block(self, layer: typing.SupportsInt | typing.SupportsIndex, *, damped: bool) -> tuple:
        """
        One of blocks().
        """
    def blocks(self, *, damped: bool) -> list:
        """
        left (d, d), right (n, n) and scales (d, n) or None of each layer, float64; with scales the rows of left and right are the basis.
        """
    def eigenvalues(self) -> numpy.typing.NDArray[numpy.float64]:
        """
        Eigenvalues (P,) of the approximation, a layer after the other.
        """
    def factors(self) -> list:
        """
        G (d, d) and A (n, n) of each layer, then those of blocks() or None; float64.
        """
    def log_det(self, damping: typing.SupportsFloat | typing.SupportsIndex) -> float:
        """
        log det of the matrix that refresh(damping) would invert.
        """
    def refresh(self, damping: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        Inverses of the damped factors as they are now.
        """
    def restore(self, snapshot: KroneckerSnapshot) -> None:
        """
        Goes back to a snapshot of these factors.
        """
    def set_state(self, *, layers: list, num_updates: typing.SupportsInt | typing.SupportsIndex, refreshed_at: typing.SupportsInt | typing.SupportsIndex, weight: typing.SupportsFloat | typing.SupportsIndex, damping: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        Goes on from what state() gave.
        """
    def snapshot(self) -> KroneckerSnapshot:
        """
        All that calls change, at no cost.
        """
    def state(self) -> tuple:
        """
        [{name: array}] for each layer, num_updates, refreshed_at, weight and damping.
        """
    def update(self, linearization: Linearization, loss: natgrad_fast._core.Loss, *, num_samples: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, weights: typing.Any, num_cases: typing.SupportsInt | typing.SupportsIndex, decay: typing.SupportsFloat | typing.SupportsIndex, num_updates: typing.SupportsInt | typing.SupportsIndex) -> str:
        """
        Moving averages of the moments of the first cases of a linearisation, which `weights` are of; num_samples 0 for the exact Fisher matrix. 'done', 'not_finite' if a moment of the batch is not finite, 'outrun' if there were not num_updates of them before.
        """
    @property
    def damping(self) -> float:
        ...
    @property
    def num_updates(self) -> int:
        ...
class SumOperator(LinearOperator):
    """
    sum_i c_i A_i.
    """
    def __init__(self, parts: list, coefficients: numpy.ndarray, *, size: typing.SupportsInt | typing.SupportsIndex, num_threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class ProductOperator(LinearOperator):
    """
    A_1 A_2 .. A_n.
    """
    def __init__(self, factors: list, *, size: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class Nystrom(LinearOperator):
    """
    The inverse of a damped low-rank approximation.
    """
    def __init__(self, size: typing.SupportsInt | typing.SupportsIndex, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def apply_root(self, v: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        The square root of the operator times the rows of v (K, P).
        """
    def log_determinant(self, damping: typing.SupportsFloat | typing.SupportsIndex) -> float:
        """
        log det of what the operator inverts, with this damping.
        """
    def refresh(self, damping: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        Sets the damping of the inverse.
        """
    def set_approximation(self, eigenvalues: numpy.ndarray, *, vectors: numpy.ndarray) -> None:
        """
        The approximation of eigenvalues (l,) and eigenvectors (l, P).
        """
    def update(self, omega: numpy.ndarray, *, y: numpy.ndarray) -> None:
        """
        New approximation from omega (l, P), of orthonormal rows, and y = omega A (l, P).
        """
    @property
    def eigenvalues(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    @property
    def inverse(self) -> tuple[numpy.typing.NDArray[numpy.float64], float]:
        """
        C (l,) and s of the operator s (I + U C U').
        """
    @property
    def vectors(self) -> numpy.typing.NDArray[numpy.float32]:
        ...
def all_finite(x: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> bool:
    """
    Whether no element is NaN or infinite.
    """
def conjugate_gradients(a: typing.Any, *, preconditioner: typing.Any, b: numpy.ndarray, x: numpy.ndarray, zero_start: bool, damping: typing.SupportsFloat | typing.SupportsIndex, rtol: typing.SupportsFloat | typing.SupportsIndex, atol: typing.SupportsFloat | typing.SupportsIndex, max_iter: typing.SupportsInt | typing.SupportsIndex, min_iter: typing.SupportsInt | typing.SupportsIndex, relative_progress: bool, trust_radius: typing.SupportsFloat | typing.SupportsIndex, keep_iterates: bool, num_threads: typing.SupportsInt | typing.SupportsIndex, is_block: bool, callback: typing.Any) -> tuple[list, list]:
    """
    Solves (A + damping I) x = b for the rows of b (K, P) from the starts x (K, P), in place, or from 0; a list of (status, iterations, matvecs, residual_norm, quadratic), and the iterates.
    """
def dense_flops(net: natgrad_fast._core.Architecture, *, num_columns: typing.SupportsInt | typing.SupportsIndex, num_cases: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Flops in float64 that form a DenseMatrix of a curvature matrix.
    """
def dot(x: numpy.ndarray, y: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    x'y in double; bits independent of threads.
    """
def draw_gradients(loss: natgrad_fast._core.Loss, z: numpy.ndarray, *, num_samples: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, num_threads: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    """
    dL/dz (N, S, C) at S targets for every case, drawn from the predictive laws at z (N, C).
    """
def hessian_bytes(net: natgrad_fast._core.Architecture, *, num_cases: typing.SupportsInt | typing.SupportsIndex, chunk_size: typing.SupportsInt | typing.SupportsIndex, num_threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Bytes that a Hessian allocates.
    """
def linearization_bytes(net: natgrad_fast._core.Architecture, *, num_cases: typing.SupportsInt | typing.SupportsIndex, num_vectors: typing.SupportsInt | typing.SupportsIndex, chunk_size: typing.SupportsInt | typing.SupportsIndex, num_threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Bytes that a linearisation allocates, with scratch for products of num_vectors at once.
    """
def multishift_conjugate_gradients(a: typing.Any, *, b: numpy.ndarray, dampings: numpy.ndarray, x: numpy.ndarray, rtol: typing.SupportsFloat | typing.SupportsIndex, atol: typing.SupportsFloat | typing.SupportsIndex, max_iter: typing.SupportsInt | typing.SupportsIndex, verify: bool, num_threads: typing.SupportsInt | typing.SupportsIndex, callback: typing.Any) -> tuple[list, int]:
    """
    Solves (A + dampings_j I) x_j = b into x (m, P); a list of (status, iterations, 0, residual_norm, quadratic), and the number of products.
    """
def orthonormalise_rows(q: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Orthonormalises the rows of q (l, P) in place; dependent ones become zero.
    """
def predict(net: natgrad_fast._core.Architecture, *, params: numpy.ndarray, x: numpy.ndarray, num_threads: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    """
    Z (N, C) from params (P,) and x (N, d_0).
    """
def predictive_mean(loss: natgrad_fast._core.Loss, z: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    """
    Means (N, num_targets) of the predictive laws at outputs z (N, C).
    """
def remembered_weight(*, num_updates: typing.SupportsInt | typing.SupportsIndex, weight: typing.SupportsFloat | typing.SupportsIndex, decay: typing.SupportsFloat | typing.SupportsIndex) -> float:
    """
    Weight of an average of batches that counts beside that of the next one.
    """
def scaled(a: typing.SupportsFloat | typing.SupportsIndex, x: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    """
    a x, a new array.
    """
def transposed(a: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float32], bool]:
    """
    A' (cols, rows) of a (rows, cols), a new array, and whether all of it is finite.
    """
