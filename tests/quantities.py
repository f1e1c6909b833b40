"""Everything that must have the same bits for any number of threads and any chunk size."""

import cases
import natgrad_fast as ng
import numpy as np


def of_operator(kind, operator, num_layers, v, block):
    """Name and value of what a curvature matrix gives."""
    yield f"{kind} @ v", operator @ v
    yield f"{kind} @ block", operator @ block
    yield f"{kind} quadratic form", operator.quadratic_form(v)
    yield f"{kind} quadratic form of two", operator.quadratic_form(v, block[:, 0])
    if kind == "hessian":  # its diagonal takes P products
        return
    yield f"{kind} diagonal", operator.diagonal()
    yield f"{kind} trace", operator.trace()
    yield f"{kind} block of the last layer", operator.block(num_layers - 1)


def of_problem(problem, loss, num_threads, chunk_size=None):
    """Name and value of everything that takes num_threads; chunk_size where it can be given."""
    net, _, x, y, weight = problem
    threads = {"num_threads": num_threads}
    chunks = threads | {"chunk_size": chunk_size}
    options = {"sample_weight": weight, "l2": 0.01, **threads}
    rng = np.random.default_rng(3)
    v, block = rng.standard_normal(net.num_params), rng.standard_normal((net.num_params, 5))
    u = rng.standard_normal((x.shape[0] * net.sizes[-1], 3))
    yield "forward", net(x, **threads)
    yield "value", ng.value(net, loss, x, y, **options)
    value, gradient = ng.value_and_grad(net, loss, x, y, **options)
    yield "value_and_grad value", value
    yield "gradient", gradient
    jacobian = ng.Jacobian(net, x, **chunks)
    yield "jacobian", jacobian @ v
    yield "jacobian block", jacobian @ block
    yield "transposed jacobian", jacobian.T @ u[:, 0]
    yield "transposed jacobian block", jacobian.T @ u
    for kind in cases.CURVATURES:
        operator = cases.curvature(kind, problem, loss, damping=0.1, **(options | chunks))
        yield from of_operator(kind, operator, net.num_layers, v, block)
        if kind != "fisher":
            continue
        for stopping in ("residual", "relative_progress"):
            result = ng.cg(operator, gradient, max_iter=15, stopping=stopping, **threads)
            yield f"cg {stopping}", result.x
            record = [result.iterations, result.residual_norm, result.quadratic]
            yield f"cg {stopping} record", record
        result = ng.cg(operator, gradient, max_iter=15, preconditioner=1 + v**2, **threads)
        yield "preconditioned cg", result.x
