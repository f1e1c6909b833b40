"""Files of nets and optimizers: what comes back, and what is written when."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, run_python, same_bits

safetensors = pytest.importorskip("safetensors")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
Y = np.sin(X[:, :1])
LABELS = RNG.integers(0, 2, 60)
SOLVERS = {
    "auto": "auto",
    "cg": ng.solvers.CG(max_iter=7, warm_start=0.5),
    "cg nystrom": ng.solvers.CG(preconditioner="nystrom", backtracking=True),
    "cg kfac": ng.solvers.CG(preconditioner="kfac"),
    "kfac": ng.solvers.Kronecker("kfac", refresh_period=2, cg_iterations=1),
    "ekfac": ng.solvers.Kronecker("ekfac"),
    "kl": ng.solvers.Kronecker("kl", factor_damping=0.1),
    "dense": ng.solvers.Dense(scaling="diagonal"),
    "spring": ng.solvers.SampleSpace(momentum=0.5),
}
DAMPINGS = {
    "auto": lambda: "auto",
    "number": lambda: 0.1,
    "hf": lambda: ng.LevenbergMarquardt(preset="hf"),
    "kfac": lambda: ng.LevenbergMarquardt(preset="kfac", factor=0.7),
    "trainlm": lambda: ng.LevenbergMarquardt(preset="trainlm"),
    "calibrated": lambda: ng.LevenbergMarquardt("calibrated"),
    "trust": lambda: ng.TrustRegion(0.5, grow=3.0),
    "radii": lambda: ng.RadiusSearch(num_radii=6),
}


def optimizer(dtype="float64", seed=0, **options):
    net = ng.MLP([3, 5, 1], dtype=dtype, seed=seed)
    return ng.NaturalGradient(net, SQUARED, seed=seed, **options)


def same_optimizer(a, b):
    return repr(a) == repr(b) and json.dumps(plain(a.state_dict())) == json.dumps(
        plain(b.state_dict())
    )


def plain(value):
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, value.tobytes().hex()]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return repr(value)


@pytest.mark.parametrize(
    ("solver", "damping"),
    [(solver, "auto") for solver in SOLVERS] + [("dense", damping) for damping in DAMPINGS],
)
@pytest.mark.parametrize("batch_size", [None, 20])
def test_what_was_saved_goes_on(solver, damping, batch_size, dtype, tmp_path):
    opt = optimizer(dtype, solver=SOLVERS[solver], damping=DAMPINGS[damping](), l2=(1e-3, 0.0))
    opt.fit(X, Y, epochs=3, batch_size=batch_size)
    ng.save(tmp_path / "a.safetensors", opt.net, opt)
    net, other = ng.load(tmp_path / "a.safetensors")
    assert same_bits(net.params, opt.net.params)
    assert same_optimizer(opt, other)
    for one in (opt, other):
        one.fit(X, Y, epochs=3, batch_size=batch_size)
    assert same_bits(net.params, opt.net.params)
    assert same_optimizer(opt, other)


@pytest.mark.parametrize("loss", [ng.losses.StudentT(df=3.0, scale=0.5), SOFTMAX, "poisson"])
def test_losses_and_nets(loss, dtype, tmp_path):
    outputs = 2 if loss == SOFTMAX else 1
    net = ng.MLP(
        [3, 4, 5, outputs],
        ["silu", "relu"],
        output_activation="tanh",
        bias=[True, False, True],
        dtype=dtype,
    )
    opt = ng.NaturalGradient(net, loss)
    ng.save(tmp_path / "a", net, opt)
    again, other = ng.load(tmp_path / "a")
    assert repr(again) == repr(net)
    assert again.activations == net.activations
    assert again.layout == net.layout
    assert other.loss == opt.loss
    assert same_bits(again(X), net(X))
    ng.save(tmp_path / "a", net)
    again, none = ng.load(tmp_path / "a")
    assert none is None
    assert same_bits(again.params, net.params)


def test_options_of_the_optimizer(tmp_path):
    every = [
        {"curvature": "ggn", "momentum": False, "line_search": True},
        {"curvature_share": 0.5, "seed": 2**62, "damping": 0.3},
        {"l2": ng.BayesianRegularization(0.1), "solver": ng.solvers.Dense()},
        {"curvature": "hessian"},
    ]
    for number, options in enumerate(every):
        opt = optimizer() if number == 3 else optimizer(**options)
        opt.step(X, Y)
        ng.save(tmp_path / "a", opt.net, opt)
        _, other = ng.load(tmp_path / "a", num_threads=1)
        assert same_optimizer(opt, other)
        assert other.step(X, Y).new_loss == opt.step(X, Y).new_loss


def test_a_policy_put_in_later(tmp_path):
    opt = optimizer()
    opt.damping = ng.Tikhonov(0.25)
    ng.save(tmp_path / "a", opt.net, opt)
    _, other = ng.load(tmp_path / "a")
    assert other.damping == 0.25
    assert same_optimizer(opt, other)


class Halved(ng.LevenbergMarquardt):
    """A policy of the user's own."""


@pytest.mark.parametrize(
    ("options", "key", "part"),
    [
        ({"damping": Halved(0.5)}, "damping", Halved(0.5)),
        ({"damping": ng.Tikhonov(lambda step: 0.5)}, "damping", ng.Tikhonov(lambda step: 0.5)),
        (
            {"solver": ng.solvers.CG(warm_start=lambda step: 0.5)},
            "solver",
            ng.solvers.CG(warm_start=lambda step: 0.5),
        ),
        (
            {"solver": ng.solvers.CG(preconditioner=np.ones(26))},
            "solver",
            ng.solvers.CG(preconditioner=np.ones(26)),
        ),
    ],
)
def test_the_users_own_parts_are_asked_for(options, key, part, tmp_path):
    opt = optimizer(**options)
    opt.fit(X, Y, epochs=2)
    ng.save(tmp_path / "a", opt.net, opt)
    with pytest.raises(ValueError, match=rf"load\(path, {key}="):
        ng.load(tmp_path / "a")
    _, other = ng.load(tmp_path / "a", **{key: part})
    assert other.step(X, Y).new_loss == opt.step(X, Y).new_loss


def test_wrong_arguments(tmp_path):
    opt = optimizer()
    with pytest.raises(ValueError, match="another net"):
        ng.save(tmp_path / "a", ng.MLP([3, 5, 1]), opt)
    with pytest.raises(TypeError, match="net must be"):
        ng.save(tmp_path / "a", opt)
    with pytest.raises(TypeError, match="optimizer must be"):
        ng.save(tmp_path / "a", opt.net, "adam")
    with pytest.raises(ValueError, match="is not a file"):
        ng.save(tmp_path, opt.net, opt)
    with pytest.raises(FileNotFoundError):
        ng.save(tmp_path / "none" / "a", opt.net, opt)
    with pytest.raises(FileNotFoundError):
        ng.load(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_links_and_permissions(tmp_path):
    opt = optimizer()
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "a"
    ng.save(target, opt.net)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(target)
    opt.net.params = np.zeros(opt.net.num_params)
    ng.save(link, opt.net)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert not ng.load(target)[0].params.any()
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace", "fdopen"])
def test_a_failing_write_leaves_the_old_file(call, tmp_path, monkeypatch):
    opt, path = optimizer(), tmp_path / "a"
    ng.save(path, opt.net, opt)
    before = path.read_bytes()
    opt.step(X, Y)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        ng.save(path, opt.net, opt)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_limit_on_the_size_of_files(tmp_path):
    pytest.importorskip("resource")
    run_python(
        f"""
        import resource, signal, numpy as np, natgrad_fast as ng
        net = ng.MLP([50, 100, 1], seed=0)
        path = {str(tmp_path / "a")!r}
        ng.save(path, ng.MLP([2, 1]))
        before = open(path, "rb").read()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        try:
            ng.save(path, net)
        except OSError:
            pass
        else:
            raise SystemExit("it was written")
        assert open(path, "rb").read() == before
        """
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# Checkpoints -------------------------------------------------------------------------------------


def test_when_checkpoints_are_written(tmp_path):
    path = tmp_path / "run.safetensors"
    opt, sizes = optimizer(), []

    def look(context):
        sizes.append(int(ng.load(path)[1].state_dict()["step"]) if path.exists() else 0)

    every = ng.callbacks.Checkpoint(path, every_steps=2, keep=3)
    opt.fit(X, Y, epochs=3, batch_size=20, callbacks=[every, look])
    # `look` comes before the checkpoint of its step
    assert sizes == [0, 0, 2, 2, 4, 4, 6, 6, 8]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "run-6.safetensors",
        "run-8.safetensors",
        "run.safetensors",
    ]
    assert ng.load(path)[1].state_dict()["step"] == 9
    assert ng.load(tmp_path / "run-8.safetensors")[1].state_dict()["step"] == 8
    for wrong in (
        {"every_steps": 0},
        {"every_seconds": 0.0},
        {"keep": 0},
        {"path": tmp_path / "none" / "a"},
        {"path": tmp_path},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ng.callbacks.Checkpoint(**({"path": path} | wrong))


KILLED = """
    import sys, numpy as np, natgrad_fast as ng
    path = sys.argv[1]
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 3))
    y = np.sin(X[:, :1])
    try:
        net, opt = ng.load(path)
    except FileNotFoundError:
        net = ng.MLP([3, 16, 1], seed=0)
        opt = ng.NaturalGradient(net, "squared_error", seed=0, num_threads=1)
    log = open(path + ".log", "a")

    def count(context):  # a checkpoint comes after it, so at most one of them is lost
        print(context.step, file=log, flush=True)

    every = ng.callbacks.Checkpoint(path, every_steps=1, keep=2)
    opt.fit(X, y, epochs=int(sys.argv[2]), batch_size=25, callbacks=[count, every], resume=True)
    print("done", net.params.tobytes().hex())
"""


def test_kill_at_any_moment(tmp_path, request):
    """--campaign N kills N times; the run that goes on ends with the bits of one left alone."""
    kills = request.config.getoption("--campaign") or 6
    script = tmp_path / "train.py"
    script.write_text("\n".join(line[4:] for line in KILLED.splitlines()))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rng, path, lost = np.random.default_rng(kills), tmp_path / "run.safetensors", []
    epochs = str(4 * kills)

    def start(place):
        command = [sys.executable, str(script), str(place), epochs]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)

    alone = start(tmp_path / "alone.safetensors").communicate()[0]
    for _ in range(kills):
        process = start(path)
        log = tmp_path / "run.safetensors.log"
        begun, deadline = log.stat().st_size if log.exists() else 0, time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size > begun:
                break
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0.0, 0.05)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        steps = [int(line) for line in log.read_text().split()]
        reached = ng.load(path)[1].state_dict()["step"] if path.exists() else 0
        lost.append(steps[-1] + 1 - reached)
    assert max(lost) <= 1
    assert start(path).communicate()[0] == alone
