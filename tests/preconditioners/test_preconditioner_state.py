"""States of preconditioners: for every instruction set, checked whole, copied bit for bit."""

import copy
import io
import pickle

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, assert_close, run_python, same_bits
from natgrad_fast import _isa

PROBLEM = Case("4-5-3-state", (4, 5, 3), SOFTMAX)
KINDS = {
    "kfac": (ng.KFAC, {"samples": 1, "seed": 3}),
    "kfac-exact": (ng.KFAC, {"pi": "exact"}),
    "tkfac": (ng.TKFAC, {"ema": 0.5}),
    "tkfac-exact": (ng.TKFAC, {"pi": "exact", "samples": 2}),
    "ekfac": (ng.EKFAC, {"basis_period": 2, "samples": 1}),
    "tekfac": (ng.TEKFAC, {}),
    "kl": (ng.KLFAC, {"samples": 1, "ema": 0.5}),
    "empirical": (ng.DiagonalPreconditioner, {"l2": (0.01, 0.0)}),
    "fisher": (ng.DiagonalPreconditioner, {"kind": "fisher", "samples": 1, "exponent": 0.5}),
}
kinds = pytest.mark.parametrize("kind", KINDS)
STAGES = ["fresh", "measured", "refreshed", "stale"]
stages = pytest.mark.parametrize("stage", STAGES)


def empty(kind, dtype="float64", **options):
    make, own = KINDS[kind]
    problem = PROBLEM.problem(dtype)
    return problem, make(problem.net, SOFTMAX, **{**own, **options})


def update(m, problem, factor=1.0):
    if getattr(m, "kind", None) == "empirical":
        m.update(factor * problem.x, problem.y)
    else:
        m.update(factor * problem.x)


def at_stage(kind, stage, dtype="float64", **options):
    problem, m = empty(kind, dtype, **options)
    if stage != "fresh":
        update(m, problem)
    if stage in ("refreshed", "stale"):
        m.refresh(0.1)
    if stage == "stale":
        update(m, problem, 2.0)
        update(m, problem, -0.5)
    return problem, m


def same_leaf(a, b):
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and same_bits(a, b)
    return type(a) is type(b) and a == b


def same_state(a, b):
    return a.keys() == b.keys() and all(same_leaf(a[name], b[name]) for name in a)


def trace_of(m, problem):
    """Everything that a preconditioner gives from here on."""
    v = np.linspace(-1, 1, m.shape[0]).astype(m.dtype)
    for factor in (1.0, 0.7, 1.3):
        if m.damping is not None:
            yield m @ v
            yield m.sqrt_solve(v)
        if m.num_updates:
            yield m.to_dense()
            yield m.eigenvalues()
            yield m.logdet(0.2)
        update(m, problem, factor)
        if m.damping is not None:
            yield m @ v
        m.refresh(0.3 * factor)
        yield m @ v
        yield m.to_dense(damped=True)


def assert_same_future(a, b, problem):
    for x, y in zip(trace_of(a, problem), trace_of(b, problem), strict=True):
        assert same_bits(x, y)


@kinds
@stages
def test_goes_on_with_the_same_bits(kind, stage, dtype):
    problem, m = at_stage(kind, stage, dtype)
    _, other = at_stage(kind, "stale", dtype)
    state = m.state_dict()
    other.load_state_dict(state)
    assert same_state(other.state_dict(), state)
    assert (other.damping, other.num_updates) == (m.damping, m.num_updates)
    assert_same_future(m, other, problem)


@kinds
@stages
def test_names_and_shapes(kind, stage, dtype):
    """Plain values, and arrays in the layout of users."""
    _, m = at_stage(kind, stage, dtype)
    state = m.state_dict()
    arrays = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
    plain = {k: v for k, v in state.items() if k not in arrays}
    allowed = (str, int, float, bool, type(None))
    for value in plain.values():
        assert type(value) in allowed or all(type(item) in allowed for item in value)
    shapes = {name: array.shape for name, array in arrays.items()}
    if kind in ("empirical", "fisher"):
        expected = {} if stage == "fresh" else {"diagonal": (43,)}
        expected |= {"inverse": (43,)} if stage == "stale" else {}
    else:
        names = [] if stage == "fresh" else ["A", "G"]
        in_basis = ["S", "basis_A", "basis_G"]
        names += in_basis if "ekfac" in kind and stage != "fresh" else []
        if stage == "stale":
            parts = in_basis if "ekfac" in kind or "exact" in kind else ["A", "G"]
            names += [f"inverse_{name}" for name in parts]
        expected = {}
        for layer, (n, d) in enumerate([(5, 5), (6, 3)]):
            of = {"A": (n, n), "G": (d, d), "S": (d, n)}
            expected |= {f"{name}_{layer}": of[name[-1]] for name in names}
    assert shapes == expected
    assert plain["sizes"] == (4, 5, 3)
    for name in arrays:  # nobody else's memory
        arrays[name][...] = 0.0
    assert not same_state(m.state_dict(), state) or not arrays


# ------------------------------------------------------------------------------------------------
# Whatever does not fit


def garbage(leaf):
    """What no leaf of this kind may be."""
    yield from (
        None,
        np.nan,
        -1,
        -1.0,
        np.inf,
        -np.inf,
        "text",
        b"bytes",
        2**70,
        -(2**70),
        True,
        1j,
        [],
        [1.0, 2.0],
        {},
        {"a": 1},
        (),
        object(),
        np.zeros(2),
        np.array("text"),
        np.ma.masked_array([1.0], [True]),
        np.float16(np.nan),
    )
    if isinstance(leaf, np.ndarray):
        for value in (np.nan, np.inf, -np.inf):
            for place in (0, -1):
                changed = leaf.copy()
                changed.flat[place] = value
                yield changed
        yield leaf.astype(np.float16)
        yield leaf.astype("float32" if leaf.dtype == np.float64 else "float64")
        yield leaf.astype(leaf.dtype.newbyteorder())
        yield leaf.astype(complex)
        yield leaf.astype(object)
        yield leaf.tolist()
        yield leaf[..., :-1]
        yield leaf[None]
        yield leaf.ravel() if leaf.ndim == 2 else leaf[:, None]
        yield np.ma.masked_array(leaf, leaf > 0)
        yield -leaf - 1.0
        yield np.broadcast_to(leaf.dtype.type(-3.0), leaf.shape)


def accepted_or_named(m, state, leaf, problem, reference):
    """Refused with the name of the leaf and no change, or with the bits of the reference."""
    before = m.state_dict()
    message = None
    try:
        m.load_state_dict(state)
    except ValueError as error:
        message = str(error)
    if message is None:
        assert_same_future(m, copy.deepcopy(reference), problem)
        return True
    assert repr(leaf) in message, message
    assert same_state(m.state_dict(), before)
    return False


@kinds
@stages
def test_every_leaf_replaced(kind, stage, dtype):
    problem, m = at_stage(kind, stage, dtype)
    state = m.state_dict()
    _, target = at_stage(kind, "refreshed", dtype)
    for leaf in state:
        refused = 0
        for value in garbage(state[leaf]):
            if same_leaf(value, state[leaf]):
                continue
            refused += not accepted_or_named(
                copy.deepcopy(target), {**state, leaf: value}, leaf, problem, m
            )
        assert refused >= 15, leaf
        without = {name: value for name, value in state.items() if name != leaf}
        assert not accepted_or_named(target, without, leaf, problem, m)
    assert not accepted_or_named(target, {**state, "more": 1}, "more", problem, m)
    assert not accepted_or_named(target, {**state, 7: 1}, 7, problem, m)
    for other in (None, [], "text", 3, np.zeros(3)):
        with pytest.raises(ValueError, match="state is"):
            target.load_state_dict(other)


@kinds
def test_arrays_that_no_update_leaves(kind, rng):
    """Of the right shape and dtype, finite."""
    problem, m = at_stage(kind, "stale")
    state = m.state_dict()
    for name, array in state.items():
        if not isinstance(array, np.ndarray):
            continue
        wrong = [-array, array - 2 * np.abs(array).max()]
        if array.ndim == 2 and "S" not in name:
            wrong.append(array + rng.standard_normal(array.shape))  # nor symmetric nor orthogonal
            bumped = array.copy()
            bumped[0, -1] += 10 * np.abs(array).max()
            wrong.append(bumped)
            if "basis" not in name:
                bumped = bumped.copy()
                bumped[-1, 0] = bumped[0, -1]
                wrong += [bumped, np.zeros_like(array) if "inverse" in name else bumped]
        if "basis" in name:
            wrong = wrong[1:]  # -U is a basis as well
        for value in wrong:
            before = m.state_dict()
            with pytest.raises(ValueError, match=f"'{name}'"):
                m.load_state_dict({**state, name: value})
            assert same_state(m.state_dict(), before)
    update(m, problem)


FOREIGN = {
    "dtype": lambda: ng.KFAC(ng.MLP([4, 5, 3], dtype="float32"), SOFTMAX),
    "sizes": lambda: ng.KFAC(ng.MLP([4, 6, 3], dtype="float64"), SOFTMAX),
    "activations": lambda: ng.KFAC(ng.MLP([4, 5, 3], "relu", dtype="float64"), SOFTMAX),
    "bias": lambda: ng.KFAC(ng.MLP([4, 5, 3], bias=(True, False), dtype="float64"), SOFTMAX),
    "loss": lambda: ng.KFAC(ng.MLP([4, 5, 3], dtype="float64"), SQUARED),
    "kind": lambda: ng.TKFAC(ng.MLP([4, 5, 3], dtype="float64"), SOFTMAX, pi="trace"),
    "pi": lambda: ng.KFAC(ng.MLP([4, 5, 3], dtype="float64"), SOFTMAX, pi="frobenius"),
    "samples": lambda: ng.KFAC(ng.MLP([4, 5, 3], dtype="float64"), SOFTMAX, samples=2),
    "seed": lambda: ng.KFAC(ng.MLP([4, 5, 3], dtype="float64"), SOFTMAX, seed=1),
    "ema": lambda: ng.KFAC(ng.MLP([4, 5, 3], dtype="float64"), SOFTMAX, ema=0.9),
}


@pytest.mark.parametrize("leaf", FOREIGN)
def test_states_of_others(leaf):
    problem = PROBLEM.problem("float64")
    state = ng.KFAC(problem.net, SOFTMAX, problem.x, damping=0.1).state_dict()
    other = FOREIGN[leaf]()
    with pytest.raises(ValueError, match=rf"state\['{leaf}'\]"):
        other.load_state_dict(state)
    assert (other.num_updates, other.damping) == (0, None)
    threads = ng.KFAC(problem.net, SOFTMAX, num_threads=3, chunk_size=7)
    threads.load_state_dict(state)  # these do not change what is computed


@pytest.mark.parametrize(
    ("leaf", "make", "options"),
    [
        ("basis_period", ng.EKFAC, {"basis_period": 3}),
        ("kind", ng.DiagonalPreconditioner, {"kind": "fisher"}),
        ("exponent", ng.DiagonalPreconditioner, {"exponent": 0.5}),
        ("l2", ng.DiagonalPreconditioner, {"l2": 0.1}),
        ("l2", ng.DiagonalPreconditioner, {"l2": (0.0, 0.1)}),
    ],
)
def test_options_of_others(leaf, make, options):
    problem = PROBLEM.problem("float64")
    y = problem.y if make is ng.DiagonalPreconditioner else None
    state = make(problem.net, SOFTMAX, problem.x, y, damping=0.1).state_dict()
    other = make(problem.net, SOFTMAX, **options)
    with pytest.raises(ValueError, match=rf"state\['{leaf}'\]"):
        other.load_state_dict(state)


def test_a_loss_with_parameters_is_part_of_the_state():
    net = ng.MLP([4, 5, 3])
    x = np.ones((3, 4))
    state = ng.KFAC(net, ng.losses.StudentT(3.0), x).state_dict()
    ng.KFAC(net, ng.losses.StudentT(3.0)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"state\['loss'\]"):
        ng.KFAC(net, ng.losses.StudentT(4.0)).load_state_dict(state)


def test_states_survive_files(tmp_path):
    """Arrays from an .npz file, lists for tuples, read-only memory."""
    problem, m = at_stage("ekfac", "stale")
    state = m.state_dict()
    np.savez(tmp_path / "state.npz", **{k: v for k, v in state.items() if hasattr(v, "shape")})
    loaded = dict(np.load(tmp_path / "state.npz"))
    for array in loaded.values():
        array.flags.writeable = False
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in state.items() if k not in loaded}
    _, other = empty("ekfac")
    other.load_state_dict(plain | loaded)
    assert_same_future(m, other, problem)


# ------------------------------------------------------------------------------------------------
# Copies


def copies(m, tmp_path):
    yield copy.deepcopy(m)
    yield pickle.loads(pickle.dumps(m))
    yield copy.copy(m)
    joblib = pytest.importorskip("joblib")
    joblib.dump(m, tmp_path / "m")
    yield joblib.load(tmp_path / "m", mmap_mode="r")  # read-only maps of the file


@kinds
@stages
def test_copies_go_on_bit_for_bit(kind, stage, dtype, tmp_path):
    problem, m = at_stage(kind, stage, dtype, num_threads=2, chunk_size=9)
    for other in copies(m, tmp_path):
        assert type(other) is type(m)
        assert (other.num_threads, other.chunk_size) == (2, 9)
        assert same_state(other.state_dict(), m.state_dict())
        twin = copy.deepcopy(m)
        assert_same_future(other, twin, problem)  # changes neither the net nor the original
        assert same_state(m.state_dict(), copy.deepcopy(m).state_dict())


def test_copies_share_the_net_with_what_is_copied_along():
    problem, m = at_stage("kfac", "refreshed")
    net, other = pickle.loads(pickle.dumps((problem.net, m)))
    assert other.net is net
    assert copy.copy(m).net is problem.net
    assert copy.deepcopy(m).net is not problem.net
    buffer = io.BytesIO()
    pickle.dump(m, buffer)
    assert buffer.getbuffer().nbytes < 20_000  # no scratch, no padding


# ------------------------------------------------------------------------------------------------
# Snapshots


@kinds
@stages
def test_snapshots(kind, stage, dtype):
    problem, m = at_stage(kind, stage, dtype)
    twin, state = copy.deepcopy(m), m.state_dict()
    snapshot = m._snapshot()
    for _ in range(3):
        update(m, problem, 1.7)
        m.refresh(0.4)
    m._restore(snapshot)
    assert same_state(m.state_dict(), state)
    list(trace_of(m, problem))
    m._restore(snapshot)
    assert_same_future(m, twin, problem)


def test_snapshots_of_others_are_refused():
    _, one = at_stage("kfac", "refreshed")
    _, other = at_stage("kfac", "refreshed")
    with pytest.raises(ValueError, match="snapshot is of other factors"):
        one._restore(other._snapshot())


# ------------------------------------------------------------------------------------------------
# Instruction sets and threads

WRITE = """
    import pickle, sys
    import numpy as np
    import natgrad_fast as ng
    rng = np.random.default_rng(0)
    net = ng.MLP([7, 19, 5], dtype={dtype!r}, seed=1)
    x, y = rng.standard_normal((90, 7)), rng.integers(0, 5, 90)
    states = dict()
    for name, make, options in [
        ("kfac", ng.KFAC, dict()),
        ("exact", ng.KFAC, dict(pi="exact")),
        ("tkfac", ng.TKFAC, dict()),
        ("ekfac", ng.EKFAC, dict(basis_period=2)),
        ("diagonal", ng.DiagonalPreconditioner, dict()),
    ]:
        for stale in (False, True):
            m = make(net, "softmax_cross_entropy", x, y, damping=0.1, **options)
            if name == "diagonal":
                m.update(2 * x, y)
            else:
                m.update(2 * x)
            if not stale:
                m.refresh(0.3)
            states[name, stale] = m.state_dict()
    print(pickle.dumps(states).hex())
"""
ISAS = [isa for isa in _isa.built() if _isa.runs(isa)]


def states_of(isa, dtype):
    import os

    env = {**os.environ, _isa.VARIABLE: isa}
    return pickle.loads(bytes.fromhex(run_python(WRITE.format(dtype=str(dtype)), env=env)))


@pytest.mark.skipif(len(ISAS) < 2, reason="one instruction set is built")
def test_instruction_sets_write_and_read_the_same_states(dtype, tol):
    """Eigenvectors of eigenvalues that are apart by rounding may differ; these are well apart."""
    rng = np.random.default_rng(0)
    net = ng.MLP([7, 19, 5], dtype=dtype, seed=1)
    x, y = rng.standard_normal((90, 7)), rng.integers(0, 5, 90)
    v = rng.standard_normal(net.num_params)
    first, *others = [states_of(isa, dtype) for isa in ISAS]
    for states in others:
        for name, state in states.items():
            expected = first[name]
            assert list(state) == list(expected)
            make = {
                "kfac": ng.KFAC,
                "exact": ng.KFAC,
                "tkfac": ng.TKFAC,
                "ekfac": ng.EKFAC,
                "diagonal": ng.DiagonalPreconditioner,
            }[name[0]]
            options = {"exact": {"pi": "exact"}, "ekfac": {"basis_period": 2}}.get(name[0], {})
            images = []
            for each in (state, expected):
                m = make(net, SOFTMAX, **options)
                m.load_state_dict(each)
                images.append([m @ v, m.sqrt_solve(v) if "k" not in name[0] else m @ v])
                images[-1].append(m.to_dense())
                _ = m.update(x, y) if name[0] == "diagonal" else m.update(x)
                m.refresh(0.1)
                images[-1].append(m @ v)
            for leaf in state:
                found, wanted = state[leaf], expected[leaf]
                if not isinstance(wanted, np.ndarray):
                    assert same_leaf(found, wanted)
                    continue
                assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
                if "basis" not in leaf and "S" not in leaf:
                    assert_close(found, wanted, 10 * tol.product)
            for found, wanted in zip(*images, strict=True):
                assert_close(found, wanted, 100 * tol.product)


@kinds
def test_states_do_not_depend_on_threads(kind, dtype):
    case = Case("70-129-19-10-state-threads", (70, 129, 19, 10), SOFTMAX, n=300)
    problem = case.problem(dtype)
    make, options = KINDS[kind]
    states = []
    for num_threads in (1, 2, 5):
        m = make(problem.net, SOFTMAX, num_threads=num_threads, **options)
        update(m, problem)
        m.refresh(0.1)
        update(m, problem, 0.5)
        states.append(m.state_dict())
    assert same_state(states[0], states[1])
    assert same_state(states[0], states[2])
