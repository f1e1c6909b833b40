"""
Private core of natgrad_fast; f32 and f64 hold the same functions for both float types.
"""
from __future__ import annotations
import collections.abc
import typing
from . import f32
from . import f64
__all__: list[str] = ['Architecture', 'Lock', 'Loss', 'activation_names', 'after_fork', 'build_info', 'disable_threads', 'f32', 'f64', 'fma_peak', 'loss_names', 'max_threads', 'release_memory']
class Lock:
    """
    A lock, as a context; every forked child finds it free.
    """
    def __enter__(self) -> None:
        ...
    def __exit__(self, type: typing.Any, value: typing.Any, traceback: typing.Any) -> None:
        ...
    def __init__(self) -> None:
        ...
class Architecture:
    """
    Widths, activations and places in the flat parameters of a net.
    """
    def __init__(self, sizes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], activations: collections.abc.Sequence[str], biases: collections.abc.Sequence[bool]) -> None:
        ...
    def bias_offset(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...
    def weight_offset(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...
    @property
    def num_params(self) -> int:
        ...
class Loss:
    """
    A loss of the core: its kind and parameters.
    """
    def __init__(self, name: str, parameters: collections.abc.Mapping[str, typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...
    def num_targets(self, num_outputs: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...
    @property
    def hessian_needs_targets(self) -> bool:
        ...
def after_fork() -> None:
    """
    For a forked child: its one thread runs everything, and receives signals.
    """
def build_info() -> dict:
    """
    How this module was built.
    """
def disable_threads() -> None:
    """
    The calling thread computes everything from now on.
    """
def fma_peak(num_threads: typing.SupportsInt | typing.SupportsIndex, seconds: typing.SupportsFloat | typing.SupportsIndex) -> float:
    """
    Measured float32 multiply-add peak, in 1e9 flop/s.
    """
def max_threads() -> int:
    """
    Threads OpenMP would use now; 1 without OpenMP.
    """
def release_memory() -> int:
    """
    Gives memory kept for reuse back to the system; its size in bytes.
    """
__version__: str = '0.1.0'
activation_names: tuple = ('identity', 'tanh', 'logistic', 'relu', 'leaky_relu', 'elu', 'softplus', 'gelu', 'silu', 'sin')
loss_names: tuple = ('squared_error', 'softmax_cross_entropy', 'bernoulli_cross_entropy', 'poisson', 'student_t', 'gaussian_mean_variance')
