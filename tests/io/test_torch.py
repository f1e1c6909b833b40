"""Nets from and to torch, and the scales of its losses; needs torch, which no default test has."""

import natgrad_fast as ng
import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

MODULES = {
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "logistic": nn.Sigmoid,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@pytest.mark.parametrize("name", MODULES)
def test_there_and_back(name, dtype, tol, rng):
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    module = nn.Sequential(
        nn.Sequential(nn.Linear(3, 8, dtype=kind), MODULES[name](), nn.Dropout(0.5)),
        nn.Linear(8, 5, bias=False, dtype=kind),
        MODULES[name](),
        nn.Linear(5, 2, dtype=kind),
    ).eval()
    net = ng.torch.from_sequential(module)
    assert net.activations == (name, name, "identity")
    assert net.dtype == dtype
    x = rng.standard_normal((20, 3)).astype(dtype)
    wanted = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(net(x), wanted, rtol=tol.forward, atol=tol.forward)
    back = ng.torch.to_sequential(net)
    np.testing.assert_allclose(
        back(torch.from_numpy(x)).detach().numpy(), wanted, rtol=tol.forward, atol=tol.forward
    )
    flat = torch.cat([p.detach().ravel() for p in back.parameters()]).numpy()
    assert (flat == net.params).all()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2.0)
    ng.torch.load_parameters(net, module)
    assert (net.params == 2 * flat).all()


def test_what_is_refused():
    bad = {
        "layer 1 .Conv2d. is nothing": nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)),
        "layer 1 .Softmax.: .* natural": nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1)),
        "layer 0 .Tanh. comes before": nn.Sequential(nn.Tanh(), nn.Linear(2, 2)),
        "layer 2 .ReLU. follows": nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.ReLU()),
        "layer 1 .LeakyReLU. has negative_slope": nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.2)),
        "layer 1 .GELU. has approximate": nn.Sequential(nn.Linear(2, 2), nn.GELU("tanh")),
        "layer 1 .Linear. takes 3 inputs": nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2)),
        "no Linear": nn.Sequential(),
        "meta device": nn.Sequential(nn.Linear(2, 2, device="meta")),
        "dtype must be": nn.Sequential(nn.Linear(2, 2, dtype=torch.bfloat16)),
    }
    for match, module in bad.items():
        with pytest.raises((ValueError, TypeError), match=match):
            ng.torch.from_sequential(module)
    with pytest.raises(TypeError, match="Sequential"):
        ng.torch.from_sequential(nn.Linear(2, 2))
    net = ng.MLP([2, 2])
    before = net.params.copy()
    with pytest.raises(ValueError, match="has the layers"):
        ng.torch.load_parameters(net, nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="bias"):
        ng.torch.load_parameters(net, nn.Sequential(nn.Linear(2, 2, bias=False)))
    assert (net.params == before).all()
    with pytest.raises(ValueError, match="sin"):
        ng.torch.to_sequential(ng.MLP([2, 2, 1], "sin"))


def test_scales_of_losses(rng):
    """Value and gradient of torch's mean losses are ours times the documented factors."""
    c, n = 3, 15
    net = ng.MLP([4, 6, c], dtype="float64", seed=0)
    module = ng.torch.to_sequential(net)
    x = rng.standard_normal((n, 4))
    labels, flags = rng.integers(0, c, n), rng.integers(0, 2, (n, c)).astype(float)
    counts, y = rng.poisson(2.0, (n, c)).astype(float), rng.standard_normal((n, c))
    every = [
        ("softmax_cross_entropy", nn.CrossEntropyLoss(), labels, 1.0),
        ("bernoulli_cross_entropy", nn.BCEWithLogitsLoss(), flags, 1.0 / c),
        ("squared_error", nn.MSELoss(), y, 2.0 / c),
        ("poisson", nn.PoissonNLLLoss(), counts, 1.0 / c),
    ]
    for loss, theirs, targets, factor in every:
        h, g = ng.value_and_grad(net, loss, x, targets)
        module.zero_grad()
        value = theirs(module(torch.from_numpy(x)), torch.from_numpy(targets))
        value.backward()
        found = torch.cat([p.grad.ravel() for p in module.parameters()]).numpy()
        assert value.item() == pytest.approx(factor * h, rel=1e-12)
        np.testing.assert_allclose(found, factor * g, rtol=1e-10, atol=1e-13)
        single = []
        for i in range(n):
            module.zero_grad()
            theirs(
                module(torch.from_numpy(x[i : i + 1])), torch.from_numpy(targets[i : i + 1])
            ).backward()
            single.append(torch.cat([p.grad.ravel() for p in module.parameters()]).numpy())
        empirical = np.mean([np.outer(one, one) for one in single], axis=0)
        ours = ng.EmpiricalFisher(net, loss, x, targets).to_dense()
        np.testing.assert_allclose(empirical, factor**2 * ours, rtol=1e-9, atol=1e-13)


def test_tensors_are_array_like():
    net = ng.MLP([3, 4, 1], seed=0)
    x = torch.randn(10, 3)
    wanted = net(x.numpy())
    assert (net(x) == wanted).all()
    assert ng.value(net, "squared_error", x, torch.zeros(10, 1)) > 0
