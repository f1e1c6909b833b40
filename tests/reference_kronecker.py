"""Slow float64 oracle of the Kronecker-factored approximations, by their definitions.

For layer l and case i: a_i = (a_{l-1}, 1) (n; no 1 without bias), D_i = dz/ds_l (C, d) and
Gam_i = D_i' M_i D_i (d, d) for the Fisher matrix M_i of the outputs, so that the block of the
Fisher matrix is F_l = sum_i w_i Gam_i (x) a_i a_i', rows and columns ordered as [W_l b_l] (d, n).
"""

from dataclasses import dataclass

import numpy as np
import reference


@dataclass(frozen=True)
class Layer:
    """Per-case terms of one layer."""

    inputs: np.ndarray  # a_i (N, n)
    curvature: np.ndarray  # Gam_i (N, d, d)
    weights: np.ndarray  # w_i (N,), sum 1
    has_bias: bool

    @property
    def num_outputs(self):
        return self.curvature.shape[1]

    @property
    def order(self):
        """Places in [W b] of the flat parameters: W in C order, then b."""
        n = self.inputs.shape[1]
        places = np.arange(self.num_outputs * n).reshape(self.num_outputs, n)
        split = n - int(self.has_bias)
        return np.concatenate([places[:, :split].ravel(), places[:, split:].ravel()])


def layers(net, loss, theta, x, sample_weight=None):
    inputs, pre, z = net.states(theta, x)
    num_cases, num_outputs = z.shape
    w = np.ones(num_cases) if sample_weight is None else np.asarray(sample_weight, float)
    output = reference.LOSSES[loss].fisher(z)
    delta = np.broadcast_to(np.eye(num_outputs), (num_cases, num_outputs, num_outputs))
    weights = [weight for weight, _ in net.unpack(np.asarray(theta, float))]
    result = []
    for index in reversed(range(len(weights))):
        slope = reference.ACTIVATIONS[net.activations[index]].d1(pre[index])
        delta = delta * slope[:, None, :]
        a = inputs[index]
        if net.biases[index]:
            a = np.hstack([a, np.ones((num_cases, 1))])
        curvature = np.swapaxes(delta, 1, 2) @ output @ delta
        result.append(Layer(a, curvature, w / w.sum(), net.biases[index]))
        delta = delta @ weights[index]
    return result[::-1]


def fisher_block(layer):
    """F_l in the order of [W b]."""
    num_cases, n = layer.inputs.shape
    d = layer.num_outputs
    squares = np.einsum("ip,iq->ipq", layer.inputs, layer.inputs).reshape(num_cases, n * n)
    weighted = layer.weights[:, None] * layer.curvature.reshape(num_cases, d * d)
    total = (weighted.T @ squares).reshape(d, d, n, n)  # [r, s, p, q]
    return total.transpose(0, 2, 1, 3).reshape(d * n, d * n)


def kfac_factors(layer):
    """G and A."""
    a_moment = np.einsum("i,ip,iq->pq", layer.weights, layer.inputs, layer.inputs)
    return np.einsum("i,irs->rs", layer.weights, layer.curvature), a_moment


def kl_factors(layer, left, right):
    """G and A of F_l ~ G (x) A, weighed by the metrics `left` (d, d) and `right` (n, n).

    With left = G^-1 and right = A^-1 it is a step of the maximum-likelihood iteration,
    A = E[tr(G^-1 Gam) a a'] / d and G = E[(a'A^-1 a) Gam] / n, brought to the scale at which the
    likelihood of N(0, G (x) A) is largest for the metrics' shapes.
    """
    a, gam, w = layer.inputs, layer.curvature, layer.weights
    of_inputs = np.einsum("ip,pq,iq->i", a, right, a)
    of_outputs = np.einsum("rs,isr->i", left, gam)
    sigma = w @ (of_inputs * of_outputs)
    a_moment = np.einsum("i,ip,iq->pq", w * of_outputs, a, a)
    g_moment = np.einsum("i,irs->rs", w * of_inputs, gam)
    return g_moment, a_moment / (sigma or 1.0)


def tkfac_factors(layer):
    """delta, Psi and Phi of F_l ~ delta Psi (x) Phi."""
    a, gam, w = layer.inputs, layer.curvature, layer.weights
    input_trace = (a**2).sum(axis=1)
    output_trace = np.trace(gam, axis1=1, axis2=2)
    delta = w @ (input_trace * output_trace)
    phi = np.einsum("i,ip,iq->pq", w * output_trace, a, a)
    psi = np.einsum("i,irs->rs", w * input_trace, gam)
    return delta, psi / (delta or 1.0), phi / (delta or 1.0)


def factors(kind, layer):
    """Both factors of G (x) A, each with half of delta for TKFAC."""
    if kind in ("kfac", "ekfac"):
        return kfac_factors(layer)
    delta, psi, phi = tkfac_factors(layer)
    if delta == 0.0:
        return np.zeros_like(psi), np.zeros_like(phi)
    return np.sqrt(delta) * psi, np.sqrt(delta) * phi


def best_diagonal(block, basis):
    """Diagonal of U'F_l U: U diag(.) U' is the nearest to F_l of that form."""
    return (basis * (block @ basis)).sum(axis=0)


def _identity_like(m):
    return np.eye(len(m))


def damped(kind, layer, damping, pi):
    """The matrix that stands for F_l + damping I, of K-FAC and TKFAC.

    Where a factor is a number or zero, all of the damping goes into the other one.
    """
    left, right = factors(kind, layer)
    product = np.kron(left, right)
    if pi == "exact" or 1 in (len(left), len(right)) or not product.any():
        return product + damping * _identity_like(product)
    mean_size = {
        "trace": lambda m: np.trace(m) / len(m),
        "frobenius": lambda m: np.linalg.norm(m) / np.sqrt(len(m)),
        "unit": lambda m: 1.0,
    }[pi]
    ratio = np.sqrt(mean_size(right) / mean_size(left))
    gamma = np.sqrt(damping)
    return np.kron(
        left + gamma / ratio * _identity_like(left), right + ratio * gamma * _identity_like(right)
    )


def dense(layer_list, block):
    """(P, P) block-diagonal matrix in the order of the parameters from block(layer) in [W b]."""
    blocks = [block(layer)[np.ix_(layer.order, layer.order)] for layer in layer_list]
    size = sum(len(b) for b in blocks)
    total, at = np.zeros((size, size)), 0
    for b in blocks:
        total[at : at + len(b), at : at + len(b)] = b
        at += len(b)
    return total
