"""Random calls of the public API: right and wrong arguments, one round for every seed."""

import warnings

import natgrad_fast as ng
import numpy as np
import reference

LOSSES = [*reference.LOSSES, "nonsense", ng.losses.StudentT(3.0, 1.0)]
NUMBERS = [0.0, 1e-3, 0.5, 1.0, 1e6, 1e-300, -1.0, np.nan, np.inf, "0.1", None, 1j, 10**400, True]
COUNTS = [1, 2, 3, 7, 0, -1, 2**40, 2**63, 2.5, "3", None, True]
# What a call may raise; anything else is a finding.
ALLOWED = (ValueError, TypeError, MemoryError, FloatingPointError)
NOT_READY = "call refresh"  # in a RuntimeError


class Round:
    """One seed: a net, data, and a number of calls on what they make."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.log = []

    def pick(self, values):
        return values[int(self.rng.integers(len(values)))]

    def often(self, right, wrong, odds=6):
        """Mostly what is right."""
        return right if self.rng.integers(odds) else self.pick(wrong)

    def make(self):
        rng = self.rng
        sizes = [int(n) for n in rng.integers(1, 9, rng.integers(2, 5))]
        self.dtype = self.pick(["float32", "float64"])
        self.net = ng.MLP(
            sizes,
            self.pick(list(reference.ACTIVATIONS)),
            dtype=self.dtype,
            seed=int(rng.integers(99)),
            bias=bool(rng.integers(2)),
        )
        self.net.params[...] *= self.pick([1.0, 1.0, 1.0, 30.0, 0.0])
        self.loss = self.often(self.pick(LOSSES[:-2]), LOSSES)
        self.n = int(rng.integers(1, 25))
        self.x = self.bent(rng.standard_normal((self.n, sizes[0])))
        self.y = self.bent(self.targets(sizes[-1]))
        self.weight = self.often(None, [rng.random(self.n), np.zeros(self.n), -np.ones(3)], 3)

    def targets(self, outputs):
        rng = self.rng
        if self.loss == "softmax_cross_entropy":
            return rng.integers(0, max(outputs, 2), self.n)
        if self.loss == "gaussian_mean_variance":
            return rng.standard_normal((self.n, max(1, outputs // 2)))
        y = rng.random((self.n, outputs))
        return np.round(3 * y) if self.loss == "poisson" else y

    def bent(self, a):
        """The same numbers in another layout or type, or now and then wrong ones."""
        kind = int(self.rng.integers(16))
        if kind == 0:
            a = a.astype("float64", copy=True) if a.dtype.kind == "f" else a.copy()
            if a.dtype.kind == "f":
                a.flat[int(self.rng.integers(a.size))] = self.pick([np.nan, np.inf, 1e300, -1e38])
            return a
        bends = {
            1: lambda: np.asfortranarray(a),
            2: lambda: a[::-1],
            3: lambda: np.ma.masked_array(a),
            4: lambda: a.tolist(),
            5: lambda: a.astype(object),
            6: lambda: a[..., None],
            7: lambda: a[: len(a) // 2],
            8: lambda: a.astype("float32") if a.dtype.kind == "f" else a.astype("int8"),
            9: lambda: np.repeat(a, 2, axis=0)[::2],
        }
        return bends.get(kind, lambda: a)()

    def vector(self, size):
        v = self.rng.standard_normal(self.often(size, [size + 1, 0])).astype(self.dtype)
        return self.bent(v * self.pick([1.0, 1.0, 1e-30, 1e30]))

    def options(self, *names):
        """Some of the named options, mostly right ones."""
        pools = {
            "damping": lambda: self.often(self.pick([0.1, 1.0, 0.0]), NUMBERS),
            "l2": lambda: self.often(self.pick([0.0, 0.1, (0.1, 0.0)]), NUMBERS),
            "num_threads": lambda: self.often(self.pick([1, 2, 3]), COUNTS),
            "chunk_size": lambda: self.often(self.pick([None, 1, 5]), COUNTS),
            "samples": lambda: self.often(self.pick([None, 1, 3]), COUNTS),
            "seed": lambda: self.often(3, COUNTS),
            "rtol": lambda: self.often(self.pick([1e-3, 0.0]), NUMBERS),
            "max_iter": lambda: self.often(self.pick([1, 5, 40]), COUNTS),
            "trust_radius": lambda: self.often(1.0, NUMBERS),
            "sample_weight": lambda: self.weight,
            "stopping": lambda: self.often("residual", ["relative_progress", "never"]),
            "method": lambda: self.often("auto", ["cg", "kfac_cg", "cholesky", "eigh", "x"], 3),
        }
        chosen = [name for name in names if self.rng.integers(2)]
        return {name: pools[name]() for name in chosen}

    def matrix(self, kinds=(ng.Fisher, ng.GGN, ng.EmpiricalFisher, ng.Hessian)):
        common = ("damping", "l2", "num_threads", "chunk_size", "sample_weight")
        kind = self.pick(kinds)
        if kind is ng.Fisher:
            return kind(self.net, self.loss, self.x, **self.options(*common, "samples", "seed"))
        return kind(self.net, self.loss, self.x, self.y, **self.options(*common))

    def preconditioner(self):
        kind = self.pick([ng.KFAC, ng.EKFAC, ng.TKFAC, ng.TEKFAC])
        return kind(
            self.net,
            self.loss,
            self.x,
            damping=self.often(0.1, NUMBERS),
            **self.options("samples", "seed", "num_threads", "chunk_size"),
        )

    def calls(self):
        """Name and function of every call there is."""
        p = self.net.num_params
        solver = ("damping", "rtol", "max_iter", "stopping", "trust_radius")
        return {
            "forward": lambda: self.net(self.x, **self.options("num_threads")),
            "mean": lambda: self.net.predict_mean(self.x, self.loss),
            "value": lambda: ng.value_and_grad(
                self.net, self.loss, self.x, self.y, **self.options("l2", "sample_weight")
            )[1],
            "jvp": lambda: self.net.jvp(self.x, self.vector(p)),
            "product": lambda: self.matrix() @ self.vector(p),
            "diagonal": lambda: self.matrix().diagonal(),
            "trace": lambda: self.matrix().trace(),
            "form": lambda: self.matrix().quadratic_form(self.vector(p)),
            "block": lambda: self.matrix((ng.Fisher, ng.GGN)).block(self.pick(COUNTS)),
            "cg": lambda: ng.cg(self.matrix(), self.vector(p), **self.options(*solver)).x,
            "multishift": lambda: (
                ng.multishift_cg(
                    self.matrix(), self.vector(p), self.pick([[0.1], [1.0, 0.1], [], [-1.0], 0.5])
                ).x
            ),
            "solve": lambda: (
                self.matrix()
                .solve(self.vector(p), damping=self.often(0.1, NUMBERS), **self.options("method"))
                .x
            ),
            "space": lambda: (
                ng.sample_space_solve(
                    self.matrix(), self.vector(p), damping=self.often(0.1, NUMBERS)
                ).x
            ),
            "apply": lambda: self.preconditioner() @ self.vector(p),
            "root": lambda: self.preconditioner().sqrt_solve(self.vector(p)),
            "logdet": lambda: self.preconditioner().logdet(self.often(0.1, NUMBERS)),
            "estimate": lambda: ng.estimate_memory(self.net, self.pick([5, 10**6, *COUNTS])),
            "fit": self.fit,
        }

    def fit(self):
        net = self.net.copy()
        solver = self.pick(["auto", ng.solvers.CG(5), ng.solvers.Kronecker()])
        opt = ng.NaturalGradient(net, self.loss, solver=solver, **self.options("l2", "num_threads"))
        size = self.often(self.pick([None, 4, "auto"]), COUNTS)
        opt.fit(self.x, self.y, epochs=2, batch_size=size, **self.options("sample_weight"))
        return net.params

    def run(self, num_calls=4):
        """Make the round's calls; raises AssertionError with what was called."""
        self.make()
        for _ in range(num_calls):
            calls = self.calls()
            name = self.pick(list(calls))
            self.log.append(name)
            self.call(name, calls[name])

    def call(self, name, function):
        given = [a for a in (self.x, self.y, self.weight, self.net.params) if a is not None]
        before = [_bytes(a) for a in given]
        modes, state = np.geterr(), self.rng.bit_generator.state
        results = []
        for _ in range(2):
            self.rng.bit_generator.state = state
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", ".*far from unit scale")
                try:
                    results.append(np.asarray(function()))
                except (*ALLOWED, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and NOT_READY not in str(error):
                        raise
                    silent = not str(error)
                    results.append(None)
                else:
                    silent = False
            assert not silent, f"{name}: an error without a word"
        assert np.geterr() == modes, name
        assert [_bytes(a) for a in given] == before, f"{name} changed what it was given"
        first, second = results
        assert (first is None) == (second is None), name
        if first is not None:
            assert first.tobytes() == second.tobytes(), f"{name} differs when it is called again"


def _bytes(a):
    if isinstance(a, list):
        return repr(a)
    return repr(a.tolist()) if a.dtype == object else np.ma.getdata(a).tobytes()
