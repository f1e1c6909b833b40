"""Exported models, run by onnxruntime."""

import natgrad_fast as ng
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

ACTIVATIONS = [
    "identity",
    "tanh",
    "logistic",
    "relu",
    "leaky_relu",
    "elu",
    "softplus",
    "gelu",
    "silu",
    "sin",
]


def run(path, x):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"X": x})[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name, dtype, tmp_path, rng):
    net = ng.MLP([3, 8, 5, 2], [name, "tanh"], output_activation=name, dtype=dtype, seed=0)
    net.params += 0.1
    path = tmp_path / "net.onnx"
    if name == "gelu" and dtype == "float64":
        with pytest.raises(ValueError, match="gelu in float64"):
            ng.onnx.export(net, path)
        assert not path.exists()
        return
    ng.onnx.export(net, path)
    for count in (1, 7, 100):
        x = (3 * rng.standard_normal((count, 3))).astype(dtype)
        # runtimes sum in float32 in another order, and have an erf of their own
        np.testing.assert_allclose(run(path, x), net(x), rtol=1e-6, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", "bernoulli_cross_entropy", "poisson", "squared_error"]
)
def test_means(loss, dtype, tmp_path, rng):
    net = ng.MLP([3, 4, 2], dtype=dtype, bias=[True, False], seed=0)
    ng.onnx.export(net, tmp_path / "net.onnx", loss=loss)
    x = rng.standard_normal((9, 3)).astype(dtype)
    np.testing.assert_allclose(
        run(tmp_path / "net.onnx", x), net.predict_mean(x, loss), rtol=1e-6, atol=1e-7
    )


def test_facts_and_errors(tmp_path):
    ng.onnx.export(ng.MLP([3, 2]), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "natgrad_fast"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    with pytest.raises(TypeError, match="net must be"):
        ng.onnx.export("net", tmp_path / "a")
    with pytest.raises(ValueError, match="gaussian_mean_variance"):
        ng.onnx.export(ng.MLP([3, 2]), tmp_path / "a", loss="gaussian_mean_variance")
    with pytest.raises(FileNotFoundError):
        ng.onnx.export(ng.MLP([3, 2]), tmp_path / "none" / "a")
