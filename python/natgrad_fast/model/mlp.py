"""Dense feed-forward nets on one flat parameter vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _core
from .._arrays import (
    as_cases,
    as_chunk_size,
    as_count,
    as_float_dtype,
    as_floats,
    as_name,
    as_num_threads,
    as_rows,
    as_vector,
    core_for,
)
from .._typing import ActivationName, Array, DType, Linearization, State
from ..losses import Loss, LossName, as_loss
from .initializers import INITIALIZERS

__all__ = ["MLP"]


class MLP:
    """A dense net z = a_L with a_l = phi_l(W_l a_{l-1} + b_l), a_0 = x.

    Parameters
    ----------
    sizes : sequence of int
        Widths d_0 (inputs) .. d_L (outputs), each >= 1.
    activation : str or sequence of str
        One name for all hidden layers, or L - 1 names for them, or L names with the output's last.
        Known: identity, tanh, logistic, relu, leaky_relu (slope 0.01), elu (alpha 1), softplus,
        gelu (exact), silu, sin. At its kink the derivative of relu is 0, that of leaky_relu the
        slope. Activations and their derivatives are within 8 units in the last place, or below the
        smallest normal number, tails included.
    output_activation : str
        Activation of the outputs, unless `activation` names it. Losses want natural parameters,
        so "identity" is what most nets need.
    bias : bool or sequence of bool
        Whether the layers have biases.
    dtype : {"float32", "float64"}
        Type of the parameters and of everything computed from them.
    seed : int, numpy.random.Generator or None
        Source of the initial weights.
    init : {"glorot", "he", "lecun", "sparse", "zeros"}
        Of weights; biases are 0 but for tanh units of "sparse".

        - "glorot": uniform with variance 2 / (inputs + outputs) (Glorot & Bengio 2010); tanh, sin.
        - "he": normal, 2 / inputs (He et al. 2015); relu and its relatives.
        - "lecun": normal, 1 / inputs (LeCun et al. 1998); tanh and logistic nets that widen or
          narrow much, linear ones.
        - "sparse": 15 draws of N(0, 1) per unit, all other weights 0, scaled by 1/2 for a tanh
          layer, by 0.1 for a softplus layer and by 1/2 behind a tanh layer, bias 1/2 for tanh units
          (Martens 2010); deep logistic and tanh nets, such as autoencoders, which the others start
          on a plateau.
        - "zeros": nothing to train from but the last layer; for tests.

    Attributes
    ----------
    params : (P,) array
        All parameters, layer by layer: W_l (d_l, d_{l-1}) in C order, then b_l (d_l,). Writable in
        place; assigning copies.
    weights, biases : list of arrays
        Views into `params`; the bias of a layer without one has length 0.

    Raises
    ------
    ValueError, TypeError
        For widths below 1, unknown names, or sizes whose product overflows.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> net = ng.MLP([2, 8, 1], activation="silu", dtype="float64", seed=0)
    >>> net(np.eye(2)).shape, net.num_params, net.weights[0].shape
    ((2, 1), 33, (8, 2))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: ActivationName | Sequence[ActivationName] = "tanh",
        *,
        output_activation: ActivationName = "identity",
        bias: bool | Sequence[bool] = True,
        dtype: DTypeLike = "float32",
        seed: int | np.random.Generator | None = 0,
        init: Literal["glorot", "he", "lecun", "sparse", "zeros"] = "glorot",
    ) -> None:
        self._sizes = _as_sizes(sizes)
        num_layers = len(self._sizes) - 1
        self._activations = _as_activations(activation, output_activation, num_layers)
        self._bias = _as_flags(bias, num_layers)
        self._dtype = as_float_dtype(dtype)
        self._core = core_for(self._dtype)
        self._architecture = _core.Architecture(
            list(self._sizes), list(self._activations), list(self._bias)
        )
        if self.num_params > np.iinfo(np.intp).max // 8:
            raise ValueError(f"sizes {self._sizes} need {self.num_params} parameters: too many")
        initialise = INITIALIZERS[as_name(init, "init", INITIALIZERS)]
        self._params = np.zeros(self.num_params, self._dtype)
        initialise(self.weights, self.biases, self._activations, _as_generator(seed))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths d_0 .. d_L."""
        return self._sizes

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of phi_1 .. phi_L."""
        return self._activations

    @property
    def dtype(self) -> DType:
        """float32 or float64."""
        return self._dtype

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self._sizes) - 1

    @property
    def num_params(self) -> int:
        """P."""
        return int(self._architecture.num_params)

    @property
    def params(self) -> Array:
        """(P,) array of all parameters."""
        return self._params

    @params.setter
    def params(self, values: ArrayLike) -> None:
        self._params[...] = as_vector(values, "params", self.num_params, self._dtype)

    @property
    def weights(self) -> list[Array]:
        """Views W_1 .. W_L of the parameters, W_l (d_l, d_{l-1})."""
        return [w for w, _ in self._layers()]

    @property
    def biases(self) -> list[Array]:
        """Views b_1 .. b_L of the parameters, (d_l,) or (0,) for a layer without bias."""
        return [b for _, b in self._layers()]

    def _layers(self) -> Iterator[tuple[Array, Array]]:
        for layer, (inputs, outputs) in enumerate(
            zip(self._sizes[:-1], self._sizes[1:], strict=True)
        ):
            w = self._architecture.weight_offset(layer)
            b = self._architecture.bias_offset(layer)
            bias_size = outputs if self._bias[layer] else 0
            yield self._params[w:b].reshape(outputs, inputs), self._params[b : b + bias_size]

    @property
    def bias_places(self) -> list[slice]:
        """Places of the biases of every layer in `params`."""
        starts = [self._architecture.bias_offset(layer) for layer in range(self.num_layers)]
        return [
            slice(start, start + bias.size) for start, bias in zip(starts, self.biases, strict=True)
        ]

    def __repr__(self) -> str:
        """Describe the architecture."""
        hidden = ", ".join(dict.fromkeys(self._activations[:-1])) or "no hidden layer"
        widths = "-".join(str(n) for n in self._sizes)
        return f"MLP({widths}, {hidden}, {self._dtype}, {self.num_params} parameters)"

    def copy(self) -> MLP:
        """Return a net of the same architecture with parameters of its own."""
        other = object.__new__(MLP)
        other.__dict__.update(self.__dict__)
        other._params = self._params.copy()
        return other

    def __getstate__(self) -> State:
        """Everything but the core's objects."""
        private = ("_core", "_architecture")
        return {key: value for key, value in self.__dict__.items() if key not in private}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Rebuild the core's objects; parameters in a read-only map of a file are copied."""
        self.__dict__.update(state)
        if type(self._params) is not np.ndarray or not self._params.flags.writeable:
            self._params = np.array(self._params, subok=False)
        self._core = core_for(self._dtype)
        self._architecture = _core.Architecture(
            list(self._sizes), list(self._activations), list(self._bias)
        )

    def __call__(self, X: ArrayLike, *, num_threads: int | None = None) -> Array:
        """Outputs Z (N, C) for inputs X (N, d_0); 2 N P flops.

        Raises
        ------
        ValueError, TypeError
            If X is not (N, d_0), N >= 1, of finite real numbers.
        """
        threads = as_num_threads(num_threads)
        x = as_cases(X, self._sizes[0], self._dtype, threads)
        z: Array = self._core.predict(
            self._architecture, params=self._params, x=x, num_threads=threads
        )
        return z

    def predict_mean(
        self, X: ArrayLike, loss: LossName | Loss, *, num_threads: int | None = None
    ) -> Array:
        """Mean of the model's predictive law for inputs X (N, d_0); 2 N P flops.

        Where `net(X)` gives natural parameters, this is what the model expects y to be, after the
        link that belongs to the loss: probabilities (softmax_cross_entropy, of every class;
        bernoulli_cross_entropy, of 1), rates (poisson), means or centres (the others).

        Parameters
        ----------
        X : (N, d_0) array_like
        loss : str or Loss
            The one that the net is trained with.
        num_threads : int, optional
            The result has the same bits for any number.

        Returns
        -------
        array of the net's dtype
            In the shape that y usually has: (N,) for one target, where y may be a column (N, 1) as
            well (`reshape(-1, 1)` makes one), else (N, num_targets). For softmax_cross_entropy the
            probabilities (N, C), of one class too.

        Raises
        ------
        ValueError, TypeError
            For arguments of a wrong shape, type or range.

        Examples
        --------
        >>> import numpy as np, natgrad_fast as ng
        >>> X, y = np.linspace(0.0, 1.0, 20)[:, None], np.zeros(20)
        >>> net = ng.MLP([1, 5, 1])
        >>> net.predict_mean(X, "squared_error").shape == y.shape
        True
        >>> ng.MLP([1, 5, 3]).predict_mean(X, "softmax_cross_entropy").shape
        (20, 3)
        """
        law, threads = as_loss(loss), as_num_threads(num_threads)
        law.num_targets(self._sizes[-1])  # refuses widths that the loss is not made for
        return law.mean_of_outputs(self(X, num_threads=threads), threads)

    def jvp(self, X: ArrayLike, v: ArrayLike, *, num_threads: int | None = None) -> Array:
        """Directional derivatives of the outputs, J v.

        Parameters
        ----------
        X : (N, d_0) array_like
        v : (P,) or (P, K) array_like
        num_threads : int, optional

        Returns
        -------
        (N, C) or (N, C, K) array

        Notes
        -----
        About 6 N P flops; `Jacobian` keeps the linearisation when several products are needed.
        """
        rows, is_block = as_rows(v, "v", self.num_params, self._dtype, num_threads)
        chunk = self.one_pass_chunk_size
        jv = self.linearize(X, num_threads=num_threads, chunk_size=chunk).jvp(rows)
        return np.moveaxis(jv, 0, 2) if is_block else jv[0]

    def vjp(self, X: ArrayLike, u: ArrayLike, *, num_threads: int | None = None) -> Array:
        """Gradient of sum(u * net(X)), J'u.

        Parameters
        ----------
        X : (N, d_0) array_like
        u : (N, C) array_like
        num_threads : int, optional

        Returns
        -------
        (P,) array
        """
        threads = as_num_threads(num_threads)
        x = as_cases(X, self._sizes[0], self._dtype, threads)
        cotangent = as_floats(u, "u", self._dtype, 2)
        shape = (x.shape[0], self._sizes[-1])
        if cotangent.shape != shape:
            raise ValueError(f"u has shape {cotangent.shape}, wanted {shape}")
        linearization = self.linearize_checked(x, threads, self.one_pass_chunk_size)
        gradient: Array = linearization.vjp(cotangent[None])[0]
        return gradient

    def linearize(
        self, X: ArrayLike, *, num_threads: int | None = None, chunk_size: int | None = None
    ) -> Linearization:
        """Linearise at the present parameters over X (N, d_0); the core's object, for operators."""
        threads, chunk = as_num_threads(num_threads), as_chunk_size(chunk_size)
        x = as_cases(X, self._sizes[0], self._dtype, threads)
        return self.linearize_checked(x, threads, chunk)

    def linearize_checked(self, x: Array, num_threads: int, chunk_size: int) -> Linearization:
        """Linearise over cases that were checked already; chunk_size 0 stands for all."""
        try:
            linearization: Linearization = self._core.Linearization(
                self._architecture,
                params=self._params,
                x=x,
                num_threads=num_threads,
                chunk_size=chunk_size,
            )
        except MemoryError as error:
            cases = x.shape[0] if chunk_size == 0 else min(chunk_size, x.shape[0])
            raise MemoryError(
                f"{error}, for the activations of {cases} cases: a smaller chunk_size needs less"
            ) from None
        return linearization

    @property
    def layout(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Widths, and which layers have biases: the order of the parameters."""
        return self._sizes, self._bias

    @property
    def one_pass_chunk_size(self) -> int:
        """Cases per chunk where each is visited once, so that chunks cost nothing.

        A few million activations: enough work for threads, little enough for any machine.
        """
        return max(1024, 8_000_000 // sum(self._sizes))


def _as_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(sizes, str) or not hasattr(sizes, "__iter__"):
        raise TypeError(f"sizes must be a sequence of widths, got {sizes!r}")
    result = tuple(as_count(n, f"sizes[{i}]", 1) for i, n in enumerate(sizes))
    if len(result) < 2:
        raise ValueError(f"sizes must hold at least 2 widths, got {result}")
    if max(result) > np.iinfo(np.intp).max:
        raise ValueError(f"sizes {result} overflow")
    return result


# What activations are called elsewhere, in lower case without punctuation.
_ELSEWHERE = {
    "logistic": "sigmoid logsig expit sigm",
    "identity": "linear none purelin affine",
    "silu": "swish swish1 silu1",
    "tanh": "tansig hyperbolictangent tanhyperbolic",
    "relu": "rectifier rectified rectifiedlinear poslin ramp",
    "leaky_relu": "lrelu",
    "elu": "exponentiallinear",
    "softplus": "softrelu smoothrelu",
    "gelu": "gaussianerrorlinear gelunone",
    "sin": "sine siren",
    "the link belongs to the loss: leave the outputs 'identity' and take the loss "
    "'softmax_cross_entropy'": "softmax logsoftmax",
}
_SYNONYMS = {name: meant for meant, names in _ELSEWHERE.items() for name in names.split()}


def _as_activations(
    activation: str | Sequence[str], output_activation: str, num_layers: int
) -> tuple[str, ...]:
    def known(name: str, what: str) -> str:
        return as_name(name, what, _core.activation_names, _SYNONYMS)

    output = known(output_activation, "output_activation")
    if isinstance(activation, str):
        return (known(activation, "activation"),) * (num_layers - 1) + (output,)
    if not hasattr(activation, "__iter__"):
        raise TypeError(f"activation must be a name or a sequence of names, got {activation!r}")
    names = tuple(known(name, "activation") for name in activation)
    if len(names) == num_layers:
        return names
    if len(names) == num_layers - 1:
        return (*names, output)
    raise ValueError(
        f"activation has {len(names)} names, wanted {num_layers - 1} (hidden) or {num_layers}"
    )


def _as_flags(bias: bool | Sequence[bool], num_layers: int) -> tuple[bool, ...]:
    if isinstance(bias, bool | np.bool_):
        return (bool(bias),) * num_layers
    if not hasattr(bias, "__iter__"):
        raise TypeError(f"bias must be True, False or a sequence of them, got {bias!r}")
    flags = tuple(bias)
    if not all(isinstance(flag, bool | np.bool_) for flag in flags):
        raise TypeError(f"bias must be True, False or a sequence of them, got {bias!r}")
    if len(flags) != num_layers:
        raise ValueError(f"bias has {len(flags)} entries, wanted {num_layers}")
    return tuple(bool(flag) for flag in flags)


def _as_generator(seed: int | np.random.Generator | None) -> np.random.Generator:
    if seed is None or isinstance(seed, np.random.Generator):
        return np.random.default_rng(seed)
    return np.random.default_rng(as_count(seed, "seed", 0))


def as_net(net: object) -> MLP:
    """Return the net itself, or raise TypeError."""
    if not isinstance(net, MLP):
        raise TypeError(f"net must be an MLP, got {net!r}")
    return net
