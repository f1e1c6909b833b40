"""The border: which arrays are accepted, which are refused, and with what words."""

import re
import warnings
from types import SimpleNamespace

import natgrad_fast as ng
import numpy as np
import pytest
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, same_bits

N, D, C = 6, 4, 3


@pytest.fixture
def s(dtype):
    """Everything an entry point needs, all of it valid."""
    problem = Case("4-5-3-arrays", (D, 5, C), SOFTMAX, n=N).problem(dtype)
    rng = np.random.default_rng(0)
    size = problem.net.num_params
    return SimpleNamespace(
        net=problem.net,
        x=problem.x,
        y=problem.y,
        v=rng.standard_normal(size).astype(dtype),
        block=rng.standard_normal((size, 2)).astype(dtype),
        diagonal=(0.5 + rng.random(size)).astype(dtype),
        u=rng.standard_normal((N, C)).astype(dtype),
        flat_u=rng.standard_normal(N * C).astype(dtype),
        w=(0.5 + rng.random(N)).astype(dtype),
        fisher=ng.Fisher(problem.net, SOFTMAX, problem.x),
        hessian=ng.Hessian(problem.net, SOFTMAX, problem.x, problem.y),
        jacobian=ng.Jacobian(problem.net, problem.x),
        opt=ng.NaturalGradient(problem.net, SOFTMAX),
    )


def with_entry(array, value, at):
    copy = np.array(array, dtype=object if isinstance(value, str) else None)
    copy = copy.astype(float) if isinstance(value, float) else copy
    copy[at] = value
    return copy


# What is wrong with a numeric array, whatever its role: make(valid array), error, words.
NOT_REAL = {
    "complex": (lambda a: a * 1j, TypeError, "complex"),
    "object": (lambda a: a.astype(object), TypeError, "object"),
    "strings": (lambda a: a.astype(str), TypeError, "str|<U"),
    "dates": (lambda a: a.astype("M8[s]"), TypeError, "datetime64"),
    "none": (lambda a: None, TypeError, "None|object"),
    "ragged": (lambda a: [[1.0], [1.0, 2.0]], (TypeError, ValueError), ""),
}
NOT_FINITE = {
    "nan": (lambda a: with_entry(a, np.nan, -1), ValueError, "NaN or Inf"),
    "inf": (lambda a: with_entry(a, np.inf, 0), ValueError, "NaN or Inf"),
    "minus-inf": (lambda a: with_entry(a, -np.inf, 0), ValueError, "NaN or Inf"),
}
BAD_X = NOT_REAL | {
    "columns": (lambda a: np.ones((N, 5)), ValueError, "5 columns.*expects 4"),
    "1d": (lambda a: a[0], ValueError, "1.?d|dimension|shape"),
    "3d": (lambda a: a[None], ValueError, "3.?d|dimension|shape"),
    "empty": (lambda a: a[:0], ValueError, "no rows"),
    "nan": (lambda a: with_entry(a, np.nan, (3, 1)), ValueError, "NaN or Inf.* at row 3, column 1"),
    "inf": (lambda a: with_entry(a, np.inf, (5, 3)), ValueError, "NaN or Inf.* at row 5, column 3"),
}
# Every way into the library for X.
TAKES_X = {
    "call": lambda s, x: s.net(x),
    "jvp": lambda s, x: s.net.jvp(x, s.v),
    "vjp": lambda s, x: s.net.vjp(x, s.u),
    "value": lambda s, x: ng.value(s.net, SOFTMAX, x, s.y),
    "value_and_grad": lambda s, x: ng.value_and_grad(s.net, SOFTMAX, x, s.y),
    "jacobian": lambda s, x: ng.Jacobian(s.net, x),
    "fisher": lambda s, x: ng.Fisher(s.net, SOFTMAX, x),
    "sampled": lambda s, x: ng.Fisher(s.net, SOFTMAX, x, samples=2),
    "ggn": lambda s, x: ng.GGN(s.net, SOFTMAX, x, s.y),
    "empirical": lambda s, x: ng.EmpiricalFisher(s.net, SOFTMAX, x, s.y),
    "hessian": lambda s, x: ng.Hessian(s.net, SOFTMAX, x, s.y),
    "chunked": lambda s, x: ng.Fisher(s.net, SOFTMAX, x, chunk_size=1),
    "chunked-jacobian": lambda s, x: ng.Jacobian(s.net, x, chunk_size=1),
    "step": lambda s, x: s.opt.step(x, s.y),
    "fit": lambda s, x: s.opt.fit(x, s.y),
}
# Vectors and weights: (call, the valid array, the name in the message).
VECTORS = {
    "fisher": (lambda s, a: s.fisher @ a, "v", ""),
    "fisher-matvec": (lambda s, a: s.fisher.matvec(a), "v", ""),
    "fisher-block": (lambda s, a: s.fisher @ a, "block", ""),
    "hessian": (lambda s, a: s.hessian @ a, "v", ""),
    "hessian-block": (lambda s, a: s.hessian @ a, "block", ""),
    "hessian-quadratic_form-v": (lambda s, a: s.hessian.quadratic_form(a), "v", "v"),
    "quadratic_form-v": (lambda s, a: s.fisher.quadratic_form(a), "v", "v"),
    "quadratic_form-w": (lambda s, a: s.fisher.quadratic_form(s.v, a), "v", "w"),
    "jacobian": (lambda s, a: s.jacobian @ a, "v", ""),
    "jacobian-transposed": (lambda s, a: s.jacobian.T @ a, "flat_u", ""),
    "jvp": (lambda s, a: s.net.jvp(s.x, a), "v", "v"),
    "vjp": (lambda s, a: s.net.vjp(s.x, a), "u", "u"),
    "params": (lambda s, a: setattr(s.net, "params", a), "v", "params"),
    "cg-b": (lambda s, a: ng.cg(s.fisher, a), "v", "b"),
    "cg-x0": (lambda s, a: ng.cg(s.fisher, s.v, x0=a), "v", "x0"),
    "cg-preconditioner": (lambda s, a: ng.cg(s.fisher, s.v, preconditioner=a), "v", "precond"),
}
NONE_IS_DEFAULT = {"cg-x0", "cg-preconditioner", "quadratic_form-w"}
WRONG_SIZE = {"size": (lambda a: a[:-1], ValueError, "shape|length|size|rows|entries|elements")}
BAD_WEIGHTS = (
    NOT_REAL
    | NOT_FINITE
    | WRONG_SIZE
    | {
        "negative": (lambda a: with_entry(a, -0.5, 2), ValueError, "-0.5|negative|>= 0"),
        "all-zero": (np.zeros_like, ValueError, "zero|positive"),
        "2d": (lambda a: a[:, None], ValueError, "shape|dimension"),
    }
)
TAKES_WEIGHTS = {
    "value": lambda s, w: ng.value(s.net, SOFTMAX, s.x, s.y, sample_weight=w),
    "value_and_grad": lambda s, w: ng.value_and_grad(s.net, SOFTMAX, s.x, s.y, sample_weight=w),
    "fisher": lambda s, w: ng.Fisher(s.net, SOFTMAX, s.x, sample_weight=w),
    "ggn": lambda s, w: ng.GGN(s.net, SOFTMAX, s.x, sample_weight=w),
    "empirical": lambda s, w: ng.EmpiricalFisher(s.net, SOFTMAX, s.x, s.y, sample_weight=w),
    "hessian": lambda s, w: ng.Hessian(s.net, SOFTMAX, s.x, s.y, sample_weight=w),
    "step": lambda s, w: s.opt.step(s.x, s.y, sample_weight=w),
    "fit": lambda s, w: s.opt.fit(s.x, s.y, sample_weight=w),
}


def refused(s, call, error, message):
    """The call raises with these words, and neither net nor arrays have changed."""
    arrays = [s.net.params, s.x, s.y, s.v, s.u, s.w]
    before, damping = [array.copy() for array in arrays], s.opt.damping
    with pytest.raises(error, match=message):
        call()
    assert all(same_bits(a, b) for a, b in zip(arrays, before, strict=True))
    assert s.opt.damping == damping


@pytest.mark.parametrize("bad", BAD_X)
@pytest.mark.parametrize("entry", TAKES_X)
def test_bad_x(entry, bad, s):
    make, error, words = BAD_X[bad]
    refused(s, lambda: TAKES_X[entry](s, make(s.x)), error, f"(?s)X.*({words})")


@pytest.mark.parametrize("bad", NOT_REAL | NOT_FINITE | WRONG_SIZE)
@pytest.mark.parametrize("entry", VECTORS)
def test_bad_vector(entry, bad, s):
    call, role, name = VECTORS[entry]
    if bad == "none" and entry in NONE_IS_DEFAULT:
        return
    make, error, words = (NOT_REAL | NOT_FINITE | WRONG_SIZE)[bad]
    refused(s, lambda: call(s, make(getattr(s, role))), error, f"(?s){name}.*({words})")


@pytest.mark.parametrize("bad", sorted(BAD_WEIGHTS.keys() - {"none"}))
@pytest.mark.parametrize("entry", TAKES_WEIGHTS)
def test_bad_weights(entry, bad, s):
    make, error, words = BAD_WEIGHTS[bad]
    call = TAKES_WEIGHTS[entry]
    refused(s, lambda: call(s, make(s.w)), error, f"(?s)sample_weight.*({words})")


def test_sparse_matrix_is_refused(s):
    sparse = pytest.importorskip("scipy.sparse")
    for make in [sparse.csr_matrix, sparse.csr_array, sparse.coo_array]:
        refused(s, lambda make=make: s.net(make(s.x)), TypeError, "X.*(sparse|csr|coo)")


def test_values_beyond_float32_are_refused():
    net = ng.MLP([2, 1], dtype="float32")
    with pytest.raises(ValueError, match=r"X has NaN or Inf.* row 0, column 1|X.*float32"):
        net([[1.0, 1e39]])


ROWS = np.full((N, C), 1.0 / C)
BAD_TARGETS = {
    "label-too-large": (SOFTMAX, [0, 1, 2, 3, 0, 1], "3"),
    "label-negative": (SOFTMAX, [0, 1, 2, -1, 0, 1], "-1"),
    "label-fractional": (SOFTMAX, [0, 1, 2, 1.5, 0, 1], r"1\.5|integ"),
    "label-nan": (SOFTMAX, [0, 1, 2, np.nan, 0, 1], "NaN"),
    "labels-too-few": (SOFTMAX, [0, 1, 2], "3.*6|6.*3"),
    "labels-3d": (SOFTMAX, np.zeros((N, C, 1)), "shape|dimension"),
    "rows-too-narrow": (SOFTMAX, np.full((N, 2), 0.5), "shape|columns"),
    "rows-not-summing-to-one": (SOFTMAX, 1.01 * ROWS, "sum"),
    "rows-negative": (SOFTMAX, ROWS + np.array([-0.5, 0.25, 0.25]), "negative|>= 0"),
    "rows-nan": (SOFTMAX, with_entry(ROWS, np.nan, (2, 1)), "NaN or Inf.* at row 2, column 1"),
    "bernoulli-above-1": (BERNOULLI, with_entry(ROWS, 1.5, (2, 1)), r"1\.5|\[0, 1\]"),
    "bernoulli-below-0": (BERNOULLI, with_entry(ROWS, -0.1, (2, 1)), r"-0\.1|\[0, 1\]"),
    "bernoulli-inf": (BERNOULLI, with_entry(ROWS, np.inf, (2, 1)), "NaN or Inf"),
    "bernoulli-flat": (BERNOULLI, np.ones(N), "shape|dimension"),
    "squared-nan": (SQUARED, with_entry(ROWS, np.nan, (4, 2)), "NaN or Inf.* at row 4, column 2"),
    "squared-flat": (SQUARED, np.ones(N), "shape|dimension"),
    "squared-columns": (SQUARED, np.ones((N, 2)), "shape|columns"),
    "squared-rows": (SQUARED, np.ones((N - 1, C)), "shape|rows"),
}


@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_bad_targets(bad, s):
    loss, y, words = BAD_TARGETS[bad]
    opt = ng.NaturalGradient(s.net, loss)
    for call in [
        lambda: ng.value(s.net, loss, s.x, y),
        lambda: ng.value_and_grad(s.net, loss, s.x, y),
        lambda: ng.GGN(s.net, loss, s.x, y),
        lambda: ng.EmpiricalFisher(s.net, loss, s.x, y),
        lambda: ng.Hessian(s.net, loss, s.x, y),
        lambda: opt.step(s.x, y),
        lambda: opt.fit(s.x, y),
    ]:
        refused(s, call, ValueError, f"(?s)y .*({words})")


@pytest.mark.parametrize("loss", [SQUARED, SOFTMAX, BERNOULLI])
@pytest.mark.parametrize("bad", ["complex", "object", "strings"])
def test_targets_of_wrong_type(bad, loss, s):
    make, error, words = NOT_REAL[bad]
    y = make(ROWS)
    refused(s, lambda: ng.value(s.net, loss, s.x, y), error, f"y .*({words})")


BAD_SCALARS = {
    "damping-negative": (
        lambda s: ng.Fisher(s.net, SOFTMAX, s.x, damping=-1.0),
        "damping.*>= 0.*-1",
    ),
    "damping-nan": (lambda s: ng.Fisher(s.net, SOFTMAX, s.x, damping=np.nan), "damping.*nan"),
    "damping-set": (lambda s: setattr(s.fisher, "damping", -2.0), "damping.*>= 0.*-2"),
    "cg-damping": (lambda s: ng.cg(s.fisher, s.v, damping=-1.0), "damping.*>= 0.*-1"),
    "l2-negative": (lambda s: ng.value(s.net, SOFTMAX, s.x, s.y, l2=-1.0), "l2.*>= 0.*-1"),
    "l2-inf": (lambda s: ng.Fisher(s.net, SOFTMAX, s.x, l2=np.inf), "l2.*inf"),
    "l2-optimizer": (lambda s: ng.NaturalGradient(s.net, SOFTMAX, l2=-1.0), "l2.*>= 0.*-1"),
    "threads-0": (lambda s: s.net(s.x, num_threads=0), "num_threads must be >= 1, got 0"),
    "threads-minus-1": (
        lambda s: ng.Fisher(s.net, SOFTMAX, s.x, num_threads=-1),
        "num_threads must be >= 1, got -1",
    ),
    "threads-optimizer": (
        lambda s: ng.NaturalGradient(s.net, SOFTMAX, num_threads=0),
        "num_threads must be >= 1, got 0",
    ),
    "rtol": (lambda s: ng.cg(s.fisher, s.v, rtol=-1.0), "rtol.*-1"),
    "atol": (lambda s: ng.cg(s.fisher, s.v, atol=np.nan), "atol.*nan"),
    "max_iter": (lambda s: ng.cg(s.fisher, s.v, max_iter=-1), "max_iter.*-1"),
    "min_iter": (lambda s: ng.cg(s.fisher, s.v, min_iter=-1), "min_iter.*-1"),
    "stopping": (lambda s: ng.cg(s.fisher, s.v, stopping="residul"), "stopping.*'residual'"),
    "epochs": (lambda s: s.opt.fit(s.x, s.y, epochs=-1), "epochs.*-1"),
    "batch_size": (lambda s: s.opt.fit(s.x, s.y, batch_size=0), "batch_size.*0"),
    "time_limit": (lambda s: s.opt.fit(s.x, s.y, time_limit=-1.0), "time_limit.*-1"),
    "curvature": (
        lambda s: ng.NaturalGradient(s.net, SOFTMAX, curvature="fischer"),
        "curvature.*'fisher'",
    ),
    "not-square": (lambda s: ng.cg(np.ones((3, 4)), np.ones(3)), "A.*square"),
    "b-size": (lambda s: ng.cg(np.eye(3), np.ones(4)), "b.*3"),
}


@pytest.mark.parametrize("bad", BAD_SCALARS)
def test_bad_scalar(bad, s):
    call, message = BAD_SCALARS[bad]
    refused(s, lambda: call(s), ValueError, f"(?s){message}")


@pytest.mark.parametrize("wrong", ["2", 1.5, 1j, [1]], ids=repr)
def test_numbers_of_wrong_type(wrong, s):
    refused(s, lambda: s.net(s.x, num_threads=wrong), TypeError, "num_threads")
    refused(s, lambda: s.opt.fit(s.x, s.y, epochs=wrong), TypeError, "epochs")
    if wrong != 1.5:
        refused(s, lambda: ng.Fisher(s.net, SOFTMAX, s.x, damping=wrong), TypeError, "damping")


BAD_NETS = {
    "no-sizes": (lambda: ng.MLP([]), ValueError, "sizes"),
    "one-size": (lambda: ng.MLP([3]), ValueError, "sizes"),
    "zero-width": (lambda: ng.MLP([3, 0, 1]), ValueError, "sizes.*0"),
    "negative-width": (lambda: ng.MLP([3, -2]), ValueError, "sizes.*-2"),
    "fractional-width": (lambda: ng.MLP([3, 2.5]), TypeError, r"sizes.*2\.5|sizes.*float"),
    "string-width": (lambda: ng.MLP("33"), TypeError, "sizes"),
    "overflow": (lambda: ng.MLP([2**40, 2**40]), ValueError, "overflow|too (large|many|big)"),
    "activation": (
        lambda: ng.MLP([3, 3, 1], "tanhh"),
        ValueError,
        "unknown activation 'tanhh'; known: .*softplus.*did you mean 'tanh'",
    ),
    "output_activation": (
        lambda: ng.MLP([3, 1], output_activation="logistc"),
        ValueError,
        "'logistc'.*did you mean 'logistic'",
    ),
    "activation-type": (lambda: ng.MLP([3, 3, 1], 5), TypeError, "activation"),
    "number-of-activations": (
        lambda: ng.MLP([3, 3, 3, 1], ["tanh"]),
        ValueError,
        "activation.*1.*(2|3)",
    ),
    "number-of-biases": (lambda: ng.MLP([3, 3, 1], bias=[True]), ValueError, "bias.*1.*2"),
    "dtype-half": (
        lambda: ng.MLP([3, 1], dtype="float16"),
        (ValueError, TypeError),
        "dtype.*float16",
    ),
    "dtype-int": (lambda: ng.MLP([3, 1], dtype=int), (ValueError, TypeError), "dtype.*int"),
    "init": (lambda: ng.MLP([3, 1], init="glorott"), ValueError, "init.*did you mean 'glorot'"),
    "seed-negative": (lambda: ng.MLP([3, 1], seed=-1), ValueError, "seed.*-1"),
    "seed-type": (lambda: ng.MLP([3, 1], seed="a"), TypeError, "seed"),
    "loss": (
        lambda: ng.Fisher(ng.MLP([3, 1]), "squared_eror", np.ones((2, 3))),
        ValueError,
        "unknown loss 'squared_eror'; known: .*softmax_cross_entropy.*did you mean 'squared_error'",
    ),
    "loss-type": (lambda: ng.NaturalGradient(ng.MLP([3, 1]), 7), TypeError, "loss"),
    "net-type": (lambda: ng.Fisher("net", SQUARED, np.ones((2, 3))), TypeError, "net"),
    "damping-type": (
        lambda: ng.NaturalGradient(ng.MLP([3, 1]), SQUARED, damping="lm"),
        TypeError,
        "damping",
    ),
    "solver-type": (
        lambda: ng.NaturalGradient(ng.MLP([3, 1]), SQUARED, solver="cgg"),
        (TypeError, ValueError),
        "solver",
    ),
}


@pytest.mark.parametrize("bad", BAD_NETS)
def test_bad_net(bad):
    build, error, message = BAD_NETS[bad]
    with pytest.raises(error, match=f"(?s){message}"):
        build()


# ------------------------------------------------------------------------------------------------
# Accepted: any layout of the same numbers gives the same bits


def strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def reverse_view(a):
    return np.ascontiguousarray(a[::-1])[::-1]


def big_endian(a):
    return a.astype(a.dtype.newbyteorder(">"))


def read_only(a):
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def unaligned(a):
    return np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape)


def memory_mapped(a, folder):
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    a.tofile(path)
    return np.memmap(path, a.dtype, "r", shape=a.shape)


LAYOUTS = [
    strided,
    np.asfortranarray,
    reverse_view,
    big_endian,
    read_only,
    unaligned,
    np.ndarray.tolist,
]


def everything(s, change):
    """The results of every entry point, each array argument changed by `change`."""
    x, y, v, block, u, w = (change(a) for a in (s.x, s.y, s.v, s.block, s.u, s.w))
    net = s.net.copy()
    fisher = ng.Fisher(net, SOFTMAX, x, sample_weight=w, damping=0.1)
    jacobian = ng.Jacobian(net, x)
    opt = ng.NaturalGradient(net, SOFTMAX)
    value, gradient = ng.value_and_grad(net, SOFTMAX, x, y, sample_weight=w)
    results = [net(x), net.jvp(x, v), net.jvp(x, block), net.vjp(x, u), value, gradient]
    results += [
        fisher @ v,
        fisher @ block,
        fisher.quadratic_form(v),
        jacobian @ v,
        jacobian @ block,
    ]
    for operator in (
        ng.GGN(net, SOFTMAX, x, y, sample_weight=w, chunk_size=1),
        ng.EmpiricalFisher(net, SOFTMAX, x, y, sample_weight=w),
        ng.Hessian(net, SOFTMAX, x, y, sample_weight=w, chunk_size=1),
    ):
        results += [operator @ v, operator.quadratic_form(v)]
    results += [jacobian.T @ change(s.flat_u), ng.cg(fisher, v, x0=v).x]
    results.append(ng.cg(fisher, v, preconditioner=change(s.diagonal)).x)
    opt.step(x, y, sample_weight=w)
    opt.fit(x, y, batch_size=4, validation=(x, y))
    results.append(net.params.copy())
    net.params = v
    return [*results, net.params]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts_give_equal_bits(layout, s):
    plain = everything(s, np.ndarray.copy)
    for result, expected in zip(everything(s, layout), plain, strict=True):
        assert same_bits(result, expected)


def test_memory_maps_give_equal_bits(s, tmp_path):
    plain = everything(s, np.ndarray.copy)
    for result, expected in zip(
        everything(s, lambda a: memory_mapped(a, tmp_path)), plain, strict=True
    ):
        assert same_bits(result, expected)


@pytest.mark.parametrize(
    "other", ["bool", "int8", "uint8", "int64", "uint64", "float16", "float32", "float64", ">f4"]
)
def test_other_dtypes_are_converted_once(other, s):
    for name in ["x", "y", "v", "block", "diagonal", "u", "flat_u", "w"]:
        setattr(s, name, (getattr(s, name) > 0).astype(s.net.dtype))
    plain = everything(s, np.ndarray.copy)
    for result, expected in zip(everything(s, lambda a: a.astype(other)), plain, strict=True):
        assert same_bits(result, expected)


def test_float64_is_rounded_to_a_float32_net(rng):
    net = ng.MLP([D, C], dtype="float32")
    x = rng.standard_normal((N, D))
    assert same_bits(net(x), net(x.astype("float32")))
    net.params = np.linspace(0, 1, net.num_params)
    assert same_bits(net.params, np.linspace(0, 1, net.num_params).astype("float32"))


def test_nothing_global_is_touched(s):
    """Not the caller's arrays, not the global generator, not warnings, not floating-point flags."""
    arrays = [s.x, s.y, s.v, s.block, s.u, s.w]
    before = [array.copy() for array in arrays]
    state, filters, errors = np.random.get_state(), list(warnings.filters), np.geterr()  # noqa: NPY002
    everything(s, lambda a: a)
    ng.MLP([3, 3], seed=None, init="sparse")
    after = np.random.get_state()  # noqa: NPY002
    assert all(same_bits(a, b) for a, b in zip(arrays, before, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(state, after, strict=True))
    assert (warnings.filters, np.geterr()) == (filters, errors)


def test_messages_say_what_came_and_what_was_wanted():
    """The exact words of a few, as a sample of their form."""
    net = ng.MLP([4, 2])
    with pytest.raises(ValueError, match=re.escape("X has 5 columns, the net expects 4")):
        net(np.ones((2, 5)))
    with pytest.raises(ValueError, match=re.escape("damping must be >= 0, got -1.0")):
        ng.Fisher(net, SQUARED, np.ones((2, 4)), damping=-1.0)
