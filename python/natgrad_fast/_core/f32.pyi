from __future__ import annotations
import natgrad_fast._core
import numpy
import numpy.typing
import typing
__all__: list[str] = ['Curvature', 'LinearOperator', 'Linearization', 'Objective', 'all_finite', 'conjugate_gradients', 'dot', 'predict']
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
    def __init__(self, net: natgrad_fast._core.Architecture, *, params: numpy.ndarray, x: numpy.ndarray, num_threads: typing.SupportsInt | typing.SupportsIndex) -> None:
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
    def num_threads(self) -> int:
        ...
class Objective:
    """
    Weighted mean of a loss over the targets of one batch, plus l2.
    """
    def __init__(self, loss: str, *, targets: numpy.ndarray, weights: typing.Any) -> None:
        ...
    def value(self, net: natgrad_fast._core.Architecture, *, params: numpy.ndarray, x: numpy.ndarray, l2: typing.SupportsFloat | typing.SupportsIndex, num_threads: typing.SupportsInt | typing.SupportsIndex) -> float:
        """
        h at params (P,) for x (N, d_0).
        """
    def value_and_gradient(self, linearization: Linearization, *, params: numpy.ndarray, l2: typing.SupportsFloat | typing.SupportsIndex) -> tuple[float, numpy.typing.NDArray[numpy.float32]]:
        """
        h and dh/dparams (P,) at the params of the linearisation.
        """
class Curvature(LinearOperator):
    """
    B + shift I, B the exact Fisher or generalized Gauss-Newton matrix.
    """
    def __init__(self, linearization: Linearization, loss: str, *, weights: typing.Any, shift: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    def quadratic_form(self, v: numpy.ndarray, w: numpy.ndarray) -> float:
        """
        v' (B + shift I) w.
        """
    def quadratic_forms(self, v: numpy.ndarray, w: numpy.ndarray) -> tuple[float, float, float]:
        """
        v'Av, v'Aw, w'Aw for A = B + shift I.
        """
    @property
    def shift(self) -> float:
        ...
    @shift.setter
    def shift(self, arg1: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
def all_finite(x: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> bool:
    """
    Whether no element is NaN or infinite.
    """
def conjugate_gradients(a: typing.Any, *, preconditioner: typing.Any, b: numpy.ndarray, x: numpy.ndarray, damping: typing.SupportsFloat | typing.SupportsIndex, rtol: typing.SupportsFloat | typing.SupportsIndex, atol: typing.SupportsFloat | typing.SupportsIndex, max_iter: typing.SupportsInt | typing.SupportsIndex, min_iter: typing.SupportsInt | typing.SupportsIndex, relative_progress: bool, num_threads: typing.SupportsInt | typing.SupportsIndex, callback: typing.Any) -> tuple[str, int, int, float, float]:
    """
    Solves (A + damping I) x = b from the start x (P,), in place; (status, iterations, matvecs, residual_norm, quadratic).
    """
def dot(x: numpy.ndarray, y: numpy.ndarray, *, num_threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    x'y in double; bits independent of threads.
    """
def predict(net: natgrad_fast._core.Architecture, *, params: numpy.ndarray, x: numpy.ndarray, num_threads: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    """
    Z (N, C) from params (P,) and x (N, d_0).
    """
