"""Figures: what they show is what NumPy computes."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import run_python
from natgrad_fast import plots

matplotlib = pytest.importorskip("matplotlib.figure")
backend = pytest.importorskip("matplotlib.backends.backend_agg")
RNG = np.random.default_rng(0)


def symmetric(values, seed=0):
    """A matrix of these eigenvalues."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return basis * values @ basis.T


def drawn(axis):
    """Points of every line, by its label."""
    return {line.get_label(): line.get_xydata() for line in axis.lines}


def renders(figure, tmp_path):
    """Whether it can be written, with nothing cut off at the edges."""
    figure.savefig(tmp_path / "figure.png")
    renderer = backend.FigureCanvasAgg(figure).get_renderer()
    box = figure.bbox
    for axis in figure.axes:
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            extent = text.get_window_extent(renderer)
            if text.get_text():
                assert extent.x0 >= box.x0 - 1
                assert extent.y0 >= box.y0 - 1
                assert extent.x1 <= box.x1 + 1
                assert extent.y1 <= box.y1 + 1
    return True


def test_the_spectrum_is_that_of_the_matrix(tmp_path):
    values = np.array([5.0, 2.0, 0.5, -0.25, -3.0])
    figure = plots.spectrum(symmetric(values))
    lines = drawn(figure.axes[0])
    # 1e-12: eigenvalues are within some eps of the largest
    np.testing.assert_allclose(lines["positive"][:, 1], [5, 2, 0.5], rtol=1e-12)
    np.testing.assert_allclose(lines["negative (its size)"], [[4, 0.25], [5, 3]], rtol=1e-12)
    assert renders(figure, tmp_path)


def test_the_spectrum_of_a_net(tmp_path):
    X = RNG.normal(size=(30, 3))
    net = ng.MLP([3, 5, 2], dtype="float64", seed=0)
    F = ng.Fisher(net, "squared_error", X)
    figure = plots.spectrum(F, k=6)
    wanted = np.linalg.eigvalsh(F.to_dense())[::-1][:6]
    np.testing.assert_allclose(drawn(figure.axes[0])["positive"][:, 1], wanted, rtol=1e-10)
    assert "6 largest of 32" in figure.axes[0].get_title(loc="left")
    assert renders(figure, tmp_path)


def test_rounding_is_shaded():
    values = np.geomspace(1.0, 1e-25, 20)
    axis = plots.spectrum(np.diag(values)).axes[0]
    assert "rounding" in axis.get_legend_handles_labels()[1]
    assert axis.get_ylim()[0] > 1e-20
    axis = plots.spectrum(np.diag(np.geomspace(1.0, 1e-3, 20))).axes[0]
    assert axis.get_legend() is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_large_matrix_shows_its_largest_eigenvalues(dtype):
    """By products alone; of either sign."""
    sparse = pytest.importorskip("scipy.sparse")
    values = np.linspace(0.0, 1.0, 2500)
    values[7], values[100], values[1000] = -40.0, 30.0, 20.0
    figure = plots.spectrum(sparse.diags(values).tocsr().astype(dtype), k=4)
    lines = drawn(figure.axes[0])
    tolerance = 1e-5 if dtype == "float32" else 1e-10  # of Lanczos vectors in that type
    np.testing.assert_allclose(lines["positive"][:, 1], [30, 20, 1], rtol=tolerance)
    np.testing.assert_allclose(lines["negative (its size)"], [[4, 40]], rtol=tolerance)


@pytest.mark.parametrize("size", [40, 600])
def test_the_path_of_steps_solves_the_damped_systems(size, tmp_path):
    """Exact steps of small matrices, one Krylov run for larger ones."""
    matrix = symmetric(np.geomspace(1.0, 1e-3, size))
    g = RNG.normal(size=size)
    dampings = [1e-2, 1.0, 1e-1]
    figure = plots.damping_path(matrix, g, dampings)
    above, below = (next(iter(drawn(axis).values())) for axis in figure.axes)
    for place, damping in enumerate(sorted(dampings)):
        d = -np.linalg.solve(matrix + damping * np.eye(size), g)
        np.testing.assert_allclose(above[place], [damping, np.linalg.norm(d)], rtol=1e-3)
        model = g @ d + 0.5 * d @ matrix @ d
        np.testing.assert_allclose(below[place], [damping, -model], rtol=1e-3)  # 10 rtol of solve
    assert renders(figure, tmp_path)


def test_dampings_by_default_surround_the_curvature_along_the_gradient():
    g = np.ones(4)
    axis = plots.damping_path(7.0 * np.eye(4), g).axes[0]
    x = next(iter(drawn(axis).values()))[:, 0]
    np.testing.assert_allclose(x[[0, -1]], [7e-6, 7e2], rtol=1e-12)
    assert (np.diff(x) > 0).all()


def test_solves_that_do_not_converge_are_marked():
    matrix = symmetric(np.geomspace(1.0, 1e-9, 600)).astype(np.float32)
    axis = plots.damping_path(matrix, np.ones(600, np.float32), [1e-9, 1.0]).axes[0]
    assert len(drawn(axis)["not converged"]) == 1


def test_a_gradient_of_zero_has_steps_of_zero():
    figure = plots.damping_path(np.eye(3), np.zeros(3))
    assert (next(iter(drawn(figure.axes[1]).values()))[:, 1] == 0).all()


def test_axes_that_are_given_are_drawn_on():
    figure = matplotlib.Figure()
    one, two, three = figure.subplots(3)
    assert plots.spectrum(np.eye(3), ax=one) is figure
    assert plots.damping_path(np.eye(3), np.ones(3), axes=[two, three]) is figure
    assert all(axis.lines for axis in (one, two, three))


def test_a_history_is_drawn():
    X = np.linspace(-1, 1, 20)[:, None]
    opt = ng.NaturalGradient(ng.MLP([1, 4, 1], seed=0), "squared_error")
    record = opt.fit(X, np.sin(X), epochs=4)
    axis = plots.history(record).axes[0]
    losses = [info.loss for info in record.steps]
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), losses)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plots.spectrum(np.ones((2, 3))), "A"),
        (lambda: plots.spectrum("F"), "A must"),
        (lambda: plots.spectrum(np.eye(3), k=4), "k must be <= 3"),
        (lambda: plots.spectrum(np.eye(3), k=0), "k must be"),
        (lambda: plots.spectrum(np.eye(3), ax=3), "ax must be 1 of matplotlib's Axes"),
        (lambda: plots.damping_path(np.eye(3), np.ones(2)), "g "),
        (lambda: plots.damping_path(np.eye(3), np.ones(3), [0.0, 1.0]), "dampings must be > 0"),
        (lambda: plots.damping_path(np.eye(3), np.ones(3), []), "dampings is empty"),
        (lambda: plots.damping_path(np.eye(3), np.ones(3), axes=[1, 2]), "axes must be 2"),
        (lambda: plots.history([]), "record must be a History"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_pyplot_is_not_touched():
    script = """
        import sys, numpy as np, natgrad_fast as ng
        ng.plots.spectrum(np.eye(3)), ng.plots.damping_path(np.eye(3), np.ones(3))
        print("matplotlib.pyplot" in sys.modules)
    """
    assert run_python(script).strip() == "False"


def test_without_matplotlib_the_extra_is_named():
    script = """
        import sys
        sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
        import numpy as np, natgrad_fast as ng
        try:
            ng.plots.spectrum(np.eye(3))
        except ImportError as error:
            print(error)
    """
    assert "pip install 'natgrad_fast[plots]'" in run_python(script)
