"""The table of nets x losses x batches, and the few helpers that every test file needs."""

import subprocess
import sys
import textwrap
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import natgrad_fast as ng
import numpy as np
import reference
from natgrad_fast.losses import as_loss

SQUARED, SOFTMAX, BERNOULLI = "squared_error", "softmax_cross_entropy", "bernoulli_cross_entropy"
POISSON, STUDENT, MEAN_VARIANCE = "poisson", "student_t", "gaussian_mean_variance"


class Problem(NamedTuple):
    """A case made concrete in one dtype."""

    net: ng.MLP
    oracle: reference.Net
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    @property
    def args(self):
        """What the oracle functions take after (net, loss)."""
        return np.asarray(self.net.params, float), self.x, self.y


@dataclass(frozen=True)
class Case:
    id: str
    sizes: tuple
    loss: str
    n: int = 17
    activation: str | tuple = "tanh"
    output_activation: str = "identity"
    bias: bool | tuple = True
    labels: bool = True  # softmax: integer labels or rows of probabilities
    weighted: bool = False

    def rng(self):
        return np.random.default_rng(zlib.crc32(self.id.encode()))

    @property
    def oracle(self):
        depth = len(self.sizes) - 1
        hidden = (self.activation,) * (depth - 1)
        if not isinstance(self.activation, str):
            hidden = tuple(self.activation)
        biases = (self.bias,) * depth if isinstance(self.bias, bool) else self.bias
        return reference.Net(self.sizes, (*hidden, self.output_activation), biases)

    def net(self, dtype):
        """A net whose parameters are all random: also the biases, which most inits leave at 0."""
        net = ng.MLP(
            self.sizes,
            self.activation,
            output_activation=self.output_activation,
            bias=self.bias,
            dtype=dtype,
        )
        rng = self.rng()
        for weight, bias in zip(net.weights, net.biases, strict=True):
            weight[...] = rng.standard_normal(weight.shape) * 1.2 / np.sqrt(weight.shape[1])
            bias[...] = 0.5 * rng.standard_normal(bias.shape)
        return net

    def targets(self, rng):
        num_outputs = self.sizes[-1]
        if self.loss == SOFTMAX and self.labels:
            return rng.integers(0, num_outputs, self.n)
        if self.loss == SOFTMAX:
            return rng.dirichlet(np.ones(num_outputs), self.n)
        if self.loss == BERNOULLI:
            soft = rng.random((self.n, num_outputs))
            return np.where(rng.random(soft.shape) < 0.5, np.round(soft), soft)
        if self.loss == POISSON:
            return rng.poisson(1.5, (self.n, num_outputs))
        if self.loss == STUDENT:  # with outliers, where the Hessian is negative
            return rng.standard_t(2.0, (self.n, num_outputs))
        if self.loss == MEAN_VARIANCE:
            return rng.standard_normal((self.n, num_outputs // 2))
        return rng.standard_normal((self.n, num_outputs))

    def problem(self, dtype):
        rng = self.rng()
        x = rng.standard_normal((self.n, self.sizes[0])).astype(dtype)
        y = self.targets(rng)
        y = y if y.dtype.kind == "i" else y.astype(dtype)
        weight = None
        if self.weighted:
            weight = (rng.random(self.n) * (rng.random(self.n) < 0.7)).astype(dtype)
            weight[0] = 0.5  # at least one counts
        return Problem(self.net(dtype), self.oracle, x, y, weight)


ONE_LAYER = [
    Case("1x1-single-case", (1, 1), SQUARED, n=1),
    Case("4-3-softmax", (4, 3), SOFTMAX),
    Case("5-2-no-bias", (5, 2), SQUARED, bias=False),
    Case("3-4-bernoulli-weighted", (3, 4), BERNOULLI, weighted=True),
]
SMALL = [
    *ONE_LAYER,
    Case("3-4-2-tanh", (3, 4, 2), SQUARED),
    Case("1-1-1-1-bernoulli", (1, 1, 1, 1), BERNOULLI),
    Case("6-8-5-3-relu-probabilities", (6, 8, 5, 3), SOFTMAX, activation="relu", labels=False),
    Case("7-1-5-gelu-bottleneck", (7, 1, 5), BERNOULLI, activation="gelu"),
    Case("5-9-4-elu-no-bias", (5, 9, 4), SQUARED, activation="elu", bias=False),
    Case(
        "4-6-5-2-some-biases",
        (4, 6, 5, 2),
        SOFTMAX,
        activation="softplus",
        bias=(True, False, True),
    ),
    Case(
        "3-5-4-2-mixed", (3, 5, 4, 2), SQUARED, activation=("relu", "sin"), output_activation="silu"
    ),
    Case("3-6-2-weighted", (3, 6, 2), SQUARED, weighted=True),
    Case("3-6-2-poisson", (3, 6, 2), POISSON),
    Case("5-7-3-poisson-weighted", (5, 7, 3), POISSON, activation="softplus", weighted=True),
    Case("10-12-4-single-case", (10, 12, 4), SOFTMAX, n=1, activation="logistic"),
    Case("1-70-1-wide", (1, 70, 1), SQUARED, n=300, activation="silu"),
    Case("9-12-3-12-9-autoencoder", (9, 12, 3, 12, 9), BERNOULLI, n=40, activation="logistic"),
    Case("2-5-5-5-5-5-2-deep", (2, 5, 5, 5, 5, 5, 2), SQUARED, activation="sin"),
    Case("20-33-17-10-tiles", (20, 33, 17, 10), SOFTMAX, n=300, weighted=True),
]
# The Hessian of the loss depends on y and is not the Fisher matrix; it may be indefinite.
OTHER_LAWS = [
    Case("3-2-student", (3, 2), STUDENT, weighted=True),
    Case("4-6-3-student-silu", (4, 6, 3), STUDENT, n=40, activation="silu"),
    Case("5-8-4-mean-variance", (5, 8, 4), MEAN_VARIANCE, n=40),
    Case("2-7-2-one-mean", (2, 7, 2), MEAN_VARIANCE, activation="gelu", weighted=True),
]
ACTIVATIONS = [
    Case(f"4-7-3-{name}", (4, 7, 3), SQUARED, activation=name, output_activation=name)
    for name in reference.ACTIVATIONS
]
# Every loss behind every activation.
LAWS = [
    Case(f"4-6-4-{loss}-{name}", (4, 6, 4), loss, activation=name)
    for loss in reference.LOSSES
    for name in reference.ACTIVATIONS
]
# Differences make no sense across a kink.
SMOOTH = [
    case
    for case in SMALL + OTHER_LAWS
    if not any(reference.ACTIVATIONS[name].kink for name in case.oracle.activations)
]
# Well above the limit below which a second thread is not worth its start.
LARGE = [
    Case("64-128-64-10-digits", (64, 128, 64, 10), SOFTMAX, n=700),
    Case("70-129-19-70-autoencoder", (70, 129, 19, 70), BERNOULLI, n=150, activation="logistic"),
    Case("300-400-1-silu", (300, 400, 1), SQUARED, n=129, activation="silu", bias=False),
]


# Nets with kinks only: d2z/dtheta2 has no blocks on the diagonal of layers.
PIECEWISE_LINEAR = [
    Case("4-7-3-relu", (4, 7, 3), SOFTMAX, n=40, activation="relu"),
    Case("5-6-6-4-2-leaky", (5, 6, 6, 4, 2), SQUARED, n=40, activation="leaky_relu"),
    Case("3-5-4-5-4-relu-student", (3, 5, 4, 5, 4), STUDENT, activation="relu", weighted=True),
    Case(
        "6-5-5-2-mixed",
        (6, 5, 5, 2),
        MEAN_VARIANCE,
        activation=("relu", "leaky_relu"),
        output_activation="leaky_relu",
        bias=(True, False, True),
    ),
]
# Every curvature matrix there is. "sampled" is the Monte-Carlo Fisher with SAMPLES labels.
CURVATURES = ["fisher", "sampled", "ggn", "empirical", "hessian"]
GAUSS_NEWTON = CURVATURES[:-1]
SAMPLES, SEED = 3, 11


def ids(case):
    return case.id


def counted(problem):
    """The problem without its cases of weight 0."""
    if problem.weight is None:
        return problem
    keep = np.flatnonzero(problem.weight)
    return problem._replace(x=problem.x[keep], y=problem.y[keep], weight=problem.weight[keep])


def curvature(kind, problem, loss, **options):
    """The operator of one of CURVATURES."""
    net, x, y = problem.net, problem.x, problem.y
    if kind == "fisher":
        return ng.Fisher(net, loss, x, **options)
    if kind == "sampled":
        return ng.Fisher(net, loss, x, samples=SAMPLES, seed=SEED, **options)
    operators = {"ggn": ng.GGN, "empirical": ng.EmpiricalFisher, "hessian": ng.Hessian}
    return operators[kind](net, loss, x, y, **options)


def exact_curvature(kind, problem, loss, **options):
    """The dense oracle of the same matrix; the draws of "sampled" are those of the library."""
    if kind == "sampled" and options.get("sample_weight") is not None:
        problem = counted(problem._replace(weight=options["sample_weight"]))
        options["sample_weight"] = problem.weight
    oracle, (theta, x, y) = problem.oracle, problem.args
    if kind == "fisher":
        return reference.fisher(oracle, loss, theta, x, **options)
    if kind == "sampled":
        law, z = as_loss(loss), problem.net(problem.x)
        factor = law.draw_gradients(z, samples=SAMPLES, seed=SEED) / np.sqrt(SAMPLES)
        shift = options.get("l2", 0.0) + options.get("damping", 0.0)
        weight = options.get("sample_weight")
        return reference.output_factor_curvature(
            oracle, theta, x, factor.transpose(0, 2, 1), weight, shift
        )
    matrices = {
        "ggn": reference.ggn,
        "empirical": reference.empirical_fisher,
        "hessian": reference.hessian,
    }
    return matrices[kind](oracle, loss, theta, x, y, **options)


def assert_close(actual, expected, tol):
    """Normwise: every entry is a sum with cancellation, its error scales with the largest one."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    scale = np.abs(expected).max(initial=0.0)
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= tol * scale + 1e-300, f"relative error {error / (scale or 1.0):.2e} > {tol:.0e}"


def same_bits(a, b):
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def spd_matrix(rng, size, condition, dtype="float64"):
    """Q diag(d) Q' with d spread evenly in the logarithm between 1/condition and 1."""
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = (q * np.logspace(-np.log10(condition), 0.0, size)) @ q.T
    return (0.5 * (matrix + matrix.T)).astype(dtype)


def run_python(script, *flags, env=None):
    """Run a script in a process of its own; what it prints comes back, its failure is ours."""
    command = [sys.executable, *flags, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
