"""Slow float64 oracle in plain numpy: the text-book definition of every quantity under test.

It shares no code with the library and prefers the definition over speed: Jacobians are formed case
by case, Fisher and GGN matrices are dense. Letters: N cases, C outputs, P parameters, L layers,
d_l width of layer l.
A new loss is one more entry of `LOSSES`, a new activation one more entry of `ACTIVATIONS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# ------------------------------------------------------------------------------------------------
# Activations: value, first and second derivative of phi(s)


def logistic(s):
    return 0.5 * (1.0 + np.tanh(0.5 * s))


def softplus(s):
    return np.logaddexp(0.0, s)


_erfc = np.vectorize(math.erfc, otypes=[float])


def _normal_cdf(s):
    return 0.5 * _erfc(-s / math.sqrt(2.0))


def _normal_pdf(s):
    return np.exp(-0.5 * s * s) / math.sqrt(2.0 * math.pi)


def _elu_branch(s, above):
    return np.where(s > 0, above, np.exp(np.minimum(s, 0.0)))


def _logistic_d1(s):
    return logistic(s) * logistic(-s)


def _logistic_d2(s):
    return _logistic_d1(s) * (1.0 - 2.0 * logistic(s))


def _tanh_d1(s):
    e = np.exp(-2.0 * np.abs(s))  # 1 - tanh^2 without cancellation
    return 4.0 * e / (1.0 + e) ** 2


@dataclass(frozen=True)
class Activation:
    """phi and its first two derivatives; at a kink both are the ones from the left."""

    value: Callable
    d1: Callable
    d2: Callable
    kink: bool = False  # differences across 0 make no sense


ACTIVATIONS = {
    "identity": Activation(lambda s: s, np.ones_like, np.zeros_like),
    "tanh": Activation(np.tanh, _tanh_d1, lambda s: -2.0 * np.tanh(s) * _tanh_d1(s)),
    "logistic": Activation(logistic, _logistic_d1, _logistic_d2),
    "relu": Activation(lambda s: np.maximum(s, 0.0), lambda s: 1.0 * (s > 0), np.zeros_like, True),
    "leaky_relu": Activation(
        lambda s: np.where(s > 0, s, 0.01 * s),
        lambda s: np.where(s > 0, 1.0, 0.01),
        np.zeros_like,
        True,
    ),
    "elu": Activation(
        lambda s: np.where(s > 0, s, np.expm1(np.minimum(s, 0.0))),
        lambda s: _elu_branch(s, 1.0),
        lambda s: _elu_branch(s, 0.0),
        True,
    ),
    "softplus": Activation(softplus, logistic, _logistic_d1),
    "gelu": Activation(
        lambda s: s * _normal_cdf(s),
        lambda s: _normal_cdf(s) + s * _normal_pdf(s),
        lambda s: (2.0 - s * s) * _normal_pdf(s),
    ),
    "silu": Activation(
        lambda s: s * logistic(s),
        lambda s: logistic(s) + s * _logistic_d1(s),
        lambda s: 2.0 * _logistic_d1(s) + s * _logistic_d2(s),
    ),
    "sin": Activation(np.sin, np.cos, lambda s: -np.sin(s)),
}

# ------------------------------------------------------------------------------------------------
# Losses, per case: value (N,), gradient (N, C), Hessian and Fisher (N, C, C) with respect to z


def column(y, num_outputs):
    """(N,) targets become a column, others stay."""
    y = np.asarray(y, float)
    return y if y.ndim == 2 else y[:, None]


def one_hot(y, num_classes):
    """(N,) labels become (N, C) rows."""
    y = np.asarray(y)
    return np.eye(num_classes)[y.astype(int)] if y.ndim == 1 else y.astype(float)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _log_sum_exp(z):
    top = z.max(axis=1)
    return top + np.log(np.exp(z - top[:, None]).sum(axis=1))


def _diagonal(d):
    return d[:, :, None] * np.eye(d.shape[1])


def _softmax_fisher(z):
    p = softmax(z)
    return _diagonal(p) - p[:, :, None] * p[:, None, :]


@dataclass(frozen=True)
class Loss:
    value: Callable  # (z, y) -> (N,)
    gradient: Callable  # (z, y) -> (N, C)
    fisher: Callable  # z -> (N, C, C), expectation over the model's own distribution
    hessian_of: Callable | None = None  # (z, y) -> (N, C, C); None: the same as the Fisher
    targets: Callable = column  # what users give, C -> y as the functions above take it

    def hessian(self, z, y):
        return self.fisher(z) if self.hessian_of is None else self.hessian_of(z, y)


def student_t(df=4.0, scale=1.0):
    """Negative logarithm of the density of z + scale t_df, without its constants."""

    def denominator(z, y):
        return df * scale**2 + (y - z) ** 2

    return Loss(
        lambda z, y: 0.5 * (df + 1) * np.log1p((y - z) ** 2 / (df * scale**2)).sum(axis=1),
        lambda z, y: -(df + 1) * (y - z) / denominator(z, y),
        lambda z: _diagonal(np.full_like(z, (df + 1) / ((df + 3) * scale**2))),
        lambda z, y: _diagonal(
            (df + 1) * (df * scale**2 - (y - z) ** 2) / denominator(z, y) ** 2,
        ),
    )


def _mean_and_deviation(z):
    mean, log_variance = np.split(z, 2, axis=1)
    return mean, np.exp(0.5 * log_variance)


def _mean_variance_value(z, y):
    mean, deviation = _mean_and_deviation(z)
    return (0.5 * ((y - mean) / deviation) ** 2 + np.log(deviation)).sum(axis=1)


def _mean_variance_gradient(z, y):
    mean, deviation = _mean_and_deviation(z)
    u = (y - mean) / deviation
    return np.hstack([-u / deviation, 0.5 - 0.5 * u**2])


def _mean_variance_fisher(z):
    _, deviation = _mean_and_deviation(z)
    return _diagonal(np.hstack([deviation**-2, np.full_like(deviation, 0.5)]))


def _mean_variance_hessian(z, y):
    mean, deviation = _mean_and_deviation(z)
    u = (y - mean) / deviation
    mixed = _diagonal(u / deviation)
    return np.block([[_diagonal(deviation**-2), mixed], [mixed, _diagonal(0.5 * u**2)]])


LOSSES = {
    "squared_error": Loss(
        lambda z, y: 0.5 * ((y - z) ** 2).sum(axis=1),
        lambda z, y: z - y,
        lambda z: _diagonal(np.ones_like(z)),
    ),
    "softmax_cross_entropy": Loss(
        # rows of y sum to one, so lse - y'z = sum_c y_c (lse - z_c): no cancellation at huge logits
        lambda z, y: (y * (_log_sum_exp(z)[:, None] - z)).sum(axis=1),
        lambda z, y: softmax(z) - y,
        _softmax_fisher,
        targets=one_hot,
    ),
    "bernoulli_cross_entropy": Loss(
        lambda z, y: (y * softplus(-z) + (1.0 - y) * softplus(z)).sum(axis=1),
        lambda z, y: logistic(z) - y,
        lambda z: _diagonal(_logistic_d1(z)),
    ),
    "poisson": Loss(
        lambda z, y: (np.exp(z) - y * z).sum(axis=1),
        lambda z, y: np.exp(z) - y,
        lambda z: _diagonal(np.exp(z)),
    ),
    "student_t": student_t(),
    "gaussian_mean_variance": Loss(
        _mean_variance_value,
        _mean_variance_gradient,
        _mean_variance_fisher,
        _mean_variance_hessian,
    ),
}


def as_loss(loss):
    """A loss from its name, or the loss itself."""
    return LOSSES[loss] if isinstance(loss, str) else loss


# ------------------------------------------------------------------------------------------------
# Net


@dataclass(frozen=True)
class Net:
    """Flat parameters theta = (W_1, b_1, W_2, b_2, ...), W_l of shape (d_l, d_{l-1}) in C order."""

    sizes: tuple
    activations: tuple  # L names, the last for the output
    biases: tuple  # L bools

    @property
    def num_params(self):
        widths = zip(self.sizes[:-1], self.sizes[1:], self.biases, strict=True)
        return sum(d_out * (d_in + int(bias)) for d_in, d_out, bias in widths)

    def unpack(self, theta):
        """List of (W_l, b_l); b_l is zero where the layer has no bias."""
        layers, at = [], 0
        for d_in, d_out, bias in zip(self.sizes[:-1], self.sizes[1:], self.biases, strict=True):
            weight = theta[at : at + d_out * d_in].reshape(d_out, d_in)
            at += d_out * d_in
            layers.append((weight, theta[at : at + d_out] if bias else np.zeros(d_out)))
            at += d_out if bias else 0
        assert at == theta.size
        return layers

    def states(self, theta, x):
        """Inputs a_{l-1} and pre-activations s_l of every layer, then the output."""
        theta, a = np.asarray(theta, float), np.asarray(x, float)
        inputs, pre = [], []
        for (weight, bias), name in zip(self.unpack(theta), self.activations, strict=True):
            inputs.append(a)
            pre.append(a @ weight.T + bias)
            a = ACTIVATIONS[name].value(pre[-1])
        return inputs, pre, a

    def forward(self, theta, x):
        return self.states(theta, x)[2]

    def jacobian(self, theta, x):
        """dz/dtheta, (N, C, P): one backward sweep with the C unit vectors for all cases."""
        inputs, pre, z = self.states(theta, x)
        num_cases, num_outputs = z.shape
        delta = np.broadcast_to(np.eye(num_outputs), (num_cases, num_outputs, num_outputs))
        layers, blocks = self.unpack(np.asarray(theta, float)), []
        for index in reversed(range(len(layers))):
            slope = ACTIVATIONS[self.activations[index]].d1(pre[index])
            delta = delta * slope[:, None, :]  # (N, C, d_l) = dz/ds_l
            if self.biases[index]:
                blocks.append(delta)
            weight_block = delta[:, :, :, None] * inputs[index][:, None, None, :]
            blocks.append(weight_block.reshape(num_cases, num_outputs, -1))
            delta = delta @ layers[index][0]
        return np.concatenate(blocks[::-1], axis=2)


# ------------------------------------------------------------------------------------------------
# Objective, gradient and curvature: weighted mean over cases, plus l2/2 |theta|^2


def _mean_weights(num_cases, sample_weight):
    w = np.ones(num_cases) if sample_weight is None else np.asarray(sample_weight, float)
    return w / w.sum()


def value(net, loss, theta, x, y, sample_weight=None, l2=0.0):
    z = net.forward(theta, x)
    w = _mean_weights(len(z), sample_weight)
    theta, loss = np.asarray(theta, float), as_loss(loss)
    return w @ loss.value(z, loss.targets(y, z.shape[1])) + 0.5 * l2 * theta @ theta


def gradient(net, loss, theta, x, y, sample_weight=None, l2=0.0):
    z = net.forward(theta, x)
    w = _mean_weights(len(z), sample_weight)
    loss = as_loss(loss)
    delta = loss.gradient(z, loss.targets(y, z.shape[1]))
    jacobian = net.jacobian(theta, x)
    return np.einsum("n,nc,ncp->p", w, delta, jacobian) + l2 * np.asarray(theta, float)


def _curvature(jacobian, output_matrix, w, shift):
    """sum_n w_n J_n' H_n J_n + shift I."""
    num_params = jacobian.shape[2]
    half = (output_matrix * w[:, None, None]) @ jacobian  # (N, C, P)
    rows = jacobian.reshape(-1, num_params)
    return rows.T @ half.reshape(-1, num_params) + shift * np.eye(num_params)


def fisher(net, loss, theta, x, sample_weight=None, l2=0.0, damping=0.0):
    z = net.forward(theta, x)
    w = _mean_weights(len(z), sample_weight)
    return _curvature(net.jacobian(theta, x), as_loss(loss).fisher(z), w, l2 + damping)


def ggn(net, loss, theta, x, y, sample_weight=None, l2=0.0, damping=0.0):
    z = net.forward(theta, x)
    w = _mean_weights(len(z), sample_weight)
    loss = as_loss(loss)
    hessian = loss.hessian(z, loss.targets(y, z.shape[1]))
    return _curvature(net.jacobian(theta, x), hessian, w, l2 + damping)


def empirical_fisher(net, loss, theta, x, y, sample_weight=None, l2=0.0, damping=0.0):
    """sum_n w_n g_n g_n' + shift I, with the gradient g_n of every case at its own target."""
    z = net.forward(theta, x)
    w = _mean_weights(len(z), sample_weight)
    loss = as_loss(loss)
    g = loss.gradient(z, loss.targets(y, z.shape[1]))
    gradients = np.einsum("nc,ncp->np", g, net.jacobian(theta, x))
    return (gradients.T * w) @ gradients + (l2 + damping) * np.eye(net.num_params)


def output_factor_curvature(net, theta, x, factor, sample_weight=None, shift=0.0):
    """sum_n w_n J_n' Q_n Q_n' J_n + shift I for given factors Q_n, (N, C, K)."""
    factor = np.asarray(factor, float)
    w = _mean_weights(len(factor), sample_weight)
    return _curvature(net.jacobian(theta, x), factor @ factor.transpose(0, 2, 1), w, shift)


def _net_curvature(net, theta, x, g):
    """sum_n sum_c g_nc d2z_nc/dtheta2, by the chain rule for second derivatives, term by term.

    With S_l = ds_l/dtheta, A_l = da_l/dtheta and the second derivatives in directions v, w,
      D2 s_l = V_l A_{l-1} w + W_l' A_{l-1} v + W_l D2 a_{l-1},
      D2 a_l = phi''_l . (S_l v) . (S_l w) + phi'_l . D2 s_l,
    so that with u_l = sum_c g_c dz_c/ds_l and e_l = phi''_l . sum_c g_c dz_c/da_l
      sum_c g_c D2 z_c = sum_l  S_l' diag(e_l) S_l + B_l + B_l',
    where row (r, s) of W_l in B_l is u_l[r] times row s of A_{l-1}.
    """
    inputs, pre, _ = net.states(theta, x)
    layers, num_params = net.unpack(np.asarray(theta, float)), net.num_params
    upper, deltas, bends = g, [], []  # upper: sum_c g_c dz_c/da_l
    for index in reversed(range(len(layers))):
        activation = ACTIVATIONS[net.activations[index]]
        bends.append(activation.d2(pre[index]) * upper)
        deltas.append(activation.d1(pre[index]) * upper)
        upper = deltas[-1] @ layers[index][0]
    deltas, bends = deltas[::-1], bends[::-1]
    total, at = np.zeros((num_params, num_params)), 0
    a = np.zeros((len(x), net.sizes[0], num_params))  # A_{l-1}, (N, d_{l-1}, P)
    for index, (weight, _) in enumerate(layers):
        d_out, d_in = weight.shape
        mixed = np.einsum("nr,nsp->rsp", deltas[index], a).reshape(d_out * d_in, num_params)
        total[at : at + d_out * d_in] += mixed
        total[:, at : at + d_out * d_in] += mixed.T
        s = weight @ a
        for r in range(d_out):  # ds_r/dW[r, :] = a_{l-1}, ds_r/db[r] = 1
            s[:, r, at + r * d_in : at + (r + 1) * d_in] += inputs[index]
        at += d_out * d_in
        if net.biases[index]:
            s[:, range(d_out), range(at, at + d_out)] += 1.0
            at += d_out
        rows = s.reshape(-1, num_params)
        total += (rows.T * bends[index].ravel()) @ rows
        a = ACTIVATIONS[net.activations[index]].d1(pre[index])[:, :, None] * s
    return total


def hessian(net, loss, theta, x, y, sample_weight=None, l2=0.0, damping=0.0, chunk=64):
    """GGN + sum_n w_n sum_c dL/dz_nc d2z_nc/dtheta2 + shift I, some cases at a time."""
    total = ggn(net, loss, theta, x, y, sample_weight, l2, damping)
    z, loss = net.forward(theta, x), as_loss(loss)
    w = _mean_weights(len(z), sample_weight)
    g = w[:, None] * loss.gradient(z, loss.targets(y, z.shape[1]))
    for at in range(0, len(x), chunk):
        total += _net_curvature(net, theta, x[at : at + chunk], g[at : at + chunk])
    return total


def layer_slices(net):
    """Where the parameters of every layer stand in theta."""
    widths = zip(net.sizes[:-1], net.sizes[1:], net.biases, strict=True)
    ends = np.cumsum([d_out * (d_in + int(bias)) for d_in, d_out, bias in widths])
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def fisher_product(net, loss, theta, x, v, chunk=16):
    """The product F v for nets whose dense F does not fit: J' (F_R (J v)), some cases at a time."""
    total = np.zeros(net.num_params)
    for at in range(0, len(x), chunk):
        part = x[at : at + chunk]
        jacobian = net.jacobian(theta, part)
        output = as_loss(loss).fisher(net.forward(theta, part))
        total += np.einsum("ncp,ncd,nd->p", jacobian, output, jacobian @ v, optimize=True)
    return total / len(x)


# ------------------------------------------------------------------------------------------------
# Numerical tools


def difference(function, x, direction, step):
    """Derivative of function at x along direction; central differences of order 4."""

    def pair(k):
        return function(x + k * step * direction) - function(x - k * step * direction)

    return (8.0 * pair(1) - pair(2)) / (12.0 * step)


def makes_little_progress(phi):
    """Whether CG stops after the last of the quadratics phi_0, phi_1, ..., phi_i.

    Martens' rule, with k = max(10, ceil(0.1 i)):
    i > k, phi_{i-k} < 0, (phi_i - phi_{i-k}) / phi_i < 5e-4 k.
    """
    i = len(phi) - 1
    k = max(10, math.ceil(0.1 * i))
    return i > k and phi[i - k] < 0 and (phi[i] - phi[i - k]) / phi[i] < 5e-4 * k


def pcg(matrix, b, inverse_diagonal=None, x0=None, max_iter=250, min_iter=1):
    """Preconditioned CG of Martens' Hessian-free code.

    Returns x, the quadratics phi_i = x'(r - b)/2 with r = Bx - b, and whether the stop above fired.
    """
    m = np.ones_like(b) if inverse_diagonal is None else inverse_diagonal
    x = np.zeros_like(b) if x0 is None else x0.astype(float)
    r = matrix @ x - b
    y = m * r
    p = -y
    phi = [0.5 * x @ (r - b)]
    for i in range(1, max_iter + 1):
        image = matrix @ p
        old = r @ y
        a = old / (p @ image)
        x = x + a * p
        r = r + a * image
        y = m * r
        p = -y + (r @ y) / old * p
        phi.append(0.5 * x @ (r - b))
        if i >= min_iter and makes_little_progress(phi):
            return x, phi, True
    return x, phi, False
