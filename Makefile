# Every target sets up what it needs in .venv by itself; `make help` lists them.
# PYTHON=... chooses the interpreter (>= 3.11) that .venv is made with.

VENV   := .venv
PEERS  := .venv-peers
BIN    := $(VENV)/bin
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip -qq
# Instruction sets to build, as `NATGRAD_ISA_LEVELS=v3 make test`; empty: all of them.
export NATGRAD_ISA_LEVELS ?=
# torch as pip is asked for it; a build for CPUs alone may need TORCH="torch --index-url ...".
TORCH  ?= torch==2.13.0

SOURCES := $(shell find csrc python bench -type f -not -name '*.pyc' -not -path '*/.*') \
           CMakeLists.txt pyproject.toml README.md LICENSE THIRD_PARTY.md
CXX_FILES := $(shell find csrc -name '*.hpp' -o -name '*.cpp')

find_python = for p in python3 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: FORCE help demo test test-numerics lint format stubs bench bench-peers wheel hooks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | while IFS=$$(printf '\t') read -r t d; \
	  do printf '  make %-13s %s\n' "$$t" "$$d"; done

demo: $(VENV)/.demo  ## train on handwritten digits, beside scikit-learn's MLPClassifier; options: ARGS="--epochs 5"
	$(BIN)/natgrad-fast demo $(ARGS)

test: $(VENV)/.test  ## the test suite; options: ARGS="-k cg -x"
	$(BIN)/pytest $(ARGS)

test-numerics: $(VENV)/.test  ## the tests that stand on rounding, as other processors would run them
	$(BIN)/python tools/numerics.py $(ARGS)

lint: $(VENV)/.lint  ## ruff, mypy --strict and clang-format, nothing is changed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.lint  ## rewrite Python and C++ files in the style of the house
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

stubs: $(VENV)/.test  ## regenerate the committed stubs of natgrad_fast._core and _cpu
	for m in _core _cpu; do $(BIN)/pybind11-stubgen natgrad_fast.$$m --output-dir python --exit-code || exit 1; done

bench: $(VENV)/.bench  ## the benchmarks; options: ARGS="--quick", ARGS="--help"
	$(BIN)/natgrad-fast bench $(ARGS)

bench-peers: $(PEERS)/.ready  ## the same beside jax, torch and curvlinops, in .venv-peers
	$(PEERS)/bin/natgrad-fast bench $(ARGS)

wheel: $(VENV)/.release  ## sdist, wheel from the sdist with every instruction set, install it elsewhere, check it
	rm -rf dist build/check
	NATGRAD_ISA_LEVELS= $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	if [ "$$(uname)" = Linux ]; then $(BIN)/auditwheel show dist/*.whl; fi
	$(BIN)/python -c "$$CHECK_CONTENT" dist/*.whl
	$(BIN)/python -m venv build/check
	build/check/bin/python -m pip -qq --disable-pip-version-check install dist/*.whl
	cd build/check && for isa in $$(bin/python -I -c "$$RUNNABLE"); do \
	  NATGRAD_FAST_ISA=$$isa bin/python -I -c "$$SMOKE" || exit 1; done
	cd build/check && bin/natgrad-fast --version && bin/natgrad-fast info

hooks: $(VENV)/.dev  ## install the pre-commit hook
	$(BIN)/pre-commit install

clean:  ## remove builds, caches, .venv and .venv-peers
	rm -rf build dist $(VENV) $(PEERS) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up: a stamp file in .venv for each thing that is installed there ------------------------------

$(VENV)/.created:
	@python="$(PYTHON)"; python="$${python:-$$($(find_python))}"; \
	if [ -z "$$python" ]; then echo "No Python >= 3.11 found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is too old: Python >= 3.11 is needed")' || exit 1; \
	echo "creating $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV) || { echo "'$$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

# What the build needs is put into .venv too (instead of an isolated environment per build): after
# a change of one file only that file is compiled again. cmake and ninja come only if absent.
# pybind11 is held at one series, because the text of the committed stub depends on it.
$(VENV)/.build: $(VENV)/.created pyproject.toml
	@echo "installing the build requirements"
	@$(BIN)/python -c "$$BUILD_REQUIRES" > $(VENV)/build-requires.txt
	@$(PIP) install -r $(VENV)/build-requires.txt 'pybind11==3.1.*'
	@$(BIN)/python -c "$$BACKEND_REQUIRES" > $(VENV)/backend-requires.txt
	@$(PIP) install -r $(VENV)/backend-requires.txt
	@touch $@

# Changes when NATGRAD_ISA_LEVELS does, so that the modules it names are installed, and no others.
$(VENV)/.levels: $(VENV)/.created FORCE
	@echo '$(NATGRAD_ISA_LEVELS)' | cmp -s - $@ || echo '$(NATGRAD_ISA_LEVELS)' > $@

FORCE:

$(VENV)/.demo $(VENV)/.test $(VENV)/.bench: $(VENV)/.%: $(VENV)/.build $(VENV)/.levels $(SOURCES)
	@echo "building and installing natgrad_fast[$*] into $(VENV) (the first time takes a few minutes)"
	@$(PIP) install --no-build-isolation '.[$*]'
	@$(BIN)/python -c 'import natgrad_fast as ng; ng.show_config()["openmp"] or print("note: built without OpenMP, one thread only")'
	@touch $@

$(VENV)/.lint $(VENV)/.release $(VENV)/.dev: $(VENV)/.%: $(VENV)/.created pyproject.toml
	@echo "installing the tools of '$*'"
	@$(PIP) install --group $*
	@touch $@

# curvlinops asks for torchvision and more that its operators do not use, hence --no-deps.
$(PEERS)/.packages: $(VENV)/.created
	@echo "installing jax, torch and curvlinops into $(PEERS)"
	@$(BIN)/python -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip -qq install --disable-pip-version-check 'numpy>=1.26' scipy matplotlib \
	  threadpoolctl jax $(TORCH)
	@$(PEERS)/bin/python -m pip -qq install --disable-pip-version-check --no-deps \
	  curvlinops-for-pytorch backpack-for-pytorch einops einconv linear_operator opt-einsum jaxtyping \
	  wadler-lindig unfoldNd tqdm
	@touch $@

$(PEERS)/.ready: $(PEERS)/.packages $(VENV)/.build $(SOURCES)
	@echo "building natgrad_fast for $(PEERS)"
	@rm -rf build/peers
	@$(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/peers .
	@$(PEERS)/bin/python -m pip -qq --disable-pip-version-check install --force-reinstall --no-deps build/peers/*.whl
	@touch $@

define BUILD_REQUIRES
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
endef

define BACKEND_REQUIRES
from scikit_build_core.build import get_requires_for_build_wheel
print(*get_requires_for_build_wheel({}), sep="\n")
endef

define CHECK_CONTENT
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
print(*names, sep="\n")
def count(text, end=""):
    return sum(text in n and n.endswith(end) for n in names)
levels = {n.split("/_core_")[1].split(".")[0] for n in names if n.startswith("natgrad_fast/_core_")}
wanted = {
    "the module that knows the processor": count("natgrad_fast/_cpu.", ".so") == 1,
    "the modules of this platform": levels >= {"v2", "v3"} if "linux_x86_64" in sys.argv[1]
        else len(levels) == 1,
    "py.typed": count("natgrad_fast/py.typed") == 1,
    "the stubs": count("natgrad_fast/_core", ".pyi") >= 1 and count("natgrad_fast/_cpu.pyi") == 1,
    "LICENSE": count(".dist-info/licenses/LICENSE") == 1,
    "THIRD_PARTY.md": count(".dist-info/licenses/THIRD_PARTY.md") == 1,
    "nothing but the package and its metadata": all(
        n.startswith("natgrad_fast/") or ".dist-info/" in n for n in names),
    "the benchmarks": count("natgrad_fast/bench/app.py") == 1,
    "neither sources of the module nor tests nor notes": not any(
        n.endswith((".cpp", ".hpp", ".a", ".pyc", "/README.md")) or "tests/" in n for n in names),
}
sys.exit("\n".join(f"wheel: not true: {k}" for k, ok in wanted.items() if not ok) or None)
endef

define SMOKE
import numpy as np
import natgrad_fast as ng
rng = np.random.default_rng(0)
X = rng.standard_normal((200, 3))
y = np.sin(X.sum(axis=1, keepdims=True))
net = ng.MLP([3, 16, 1], seed=0)
history = ng.NaturalGradient(net, "squared_error").fit(X, y, epochs=5)
first, last = history.epochs[0].loss, history.epochs[-1].loss
assert last < first, (first, last)
print(f"{ng.__file__}, {ng.show_config()['isa']}: loss {first:.4f} -> {last:.4f}")
endef

define RUNNABLE
import natgrad_fast as ng
config = ng.show_config()
known = config["isa_supported"] + ("native", "baseline")
print(*(isa for isa in config["isa_built"] if isa in known))
endef

export BUILD_REQUIRES BACKEND_REQUIRES CHECK_CONTENT SMOKE RUNNABLE
