# Every target sets up what it needs in .venv by itself (tools/environment.py); `make help` lists
# them. PYTHON=... chooses the interpreter (>= 3.11) that .venv is made with.

VENV   := .venv
PEERS  := .venv-peers
BIN    := $(VENV)/bin
# Instruction sets to build, as `NATGRAD_ISA_LEVELS=v2,v3 make test`; empty: that of this machine.
export NATGRAD_ISA_LEVELS ?=
# Without bytecode in .venv every process of the tests would compile scikit-learn anew, for 6 s.
unexport PYTHONDONTWRITEBYTECODE
# A wheel to install instead of a build of this tree, as `make test WHEEL=dist/*.whl`.
WHEEL  ?=
# Processes that share the tests; `make test SHARED= ARGS=--pdb` for one that can be looked into.
SHARED ?= -n logical --maxprocesses 4
# torch as pip is asked for it; a build for CPUs alone may need TORCH="torch --index-url ...".
TORCH  ?= torch==2.13.0

CXX_FILES = $(shell find csrc -name '*.hpp' -o -name '*.cpp')

# A module of tools/, run by PYTHON or by the first Python on the path that is new enough.
tool = @python="$(PYTHON)"; \
  for p in python3 python3.14 python3.13 python3.12 python3.11; do \
    test -n "$$python" && break; \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$$p; \
  done; \
  if [ -z "$$python" ]; then echo "No Python >= 3.11 found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is too old: Python >= 3.11 is needed")' || exit 1; \
  "$$python" -m $(1)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: FORCE help demo test test-numerics lint format stubs bench bench-peers bench-training wheel sanitize hooks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | while IFS=$$(printf '\t') read -r t d; \
	  do printf '  make %-13s %s\n' "$$t" "$$d"; done

demo: $(VENV)/.demo  ## train on handwritten digits, beside scikit-learn's MLPClassifier; options: ARGS="--epochs 5"
	$(BIN)/natgrad-fast demo $(ARGS)

test: $(VENV)/.test  ## the fast tests; options: MARK=slow, ARGS="-k cg -x", WHEEL=dist/*.whl to test that one
	$(BIN)/pytest $(SHARED) -m "$(or $(MARK),not slow)" $(ARGS)

test-numerics: $(VENV)/.test  ## the tests that stand on rounding, as other processors would run them; or KERNELS=Haswell
	$(BIN)/python tools/numerics.py $(if $(KERNELS),--only $(KERNELS)) $(SHARED) $(ARGS)

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

bench-training: $(PEERS)/.ready  ## error against seconds beside tuned peers; options: ARGS="--quick"
	$(PEERS)/bin/python -m natgrad_fast.bench.training $(ARGS)

wheel: $(VENV)/.release  ## sdist, wheel from the sdist with every instruction set, install it elsewhere, check it
	rm -rf dist
	NATGRAD_ISA_LEVELS= $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	if [ "$$(uname)" = Linux ]; then $(BIN)/auditwheel show dist/*.whl; fi
	$(BIN)/python -m tools.wheel dist/*.whl

sanitize:  ## the tests under address, undefined-behaviour and thread sanitizers; options: ARGS="thread"
	$(call tool,tools.sanitize $(ARGS))

hooks: $(VENV)/.dev  ## install the pre-commit hook
	$(BIN)/pre-commit install

clean:  ## remove builds, caches and environments
	rm -rf build dist $(VENV) $(PEERS) $(VENV)-sanitize .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up: tools/environment.py knows what is done, and does the rest -------------------------------

$(VENV)/.%: FORCE
	$(call tool,tools.environment $* --venv $(VENV) $(if $(WHEEL),--wheel $(WHEEL)))

FORCE:

# curvlinops asks for torchvision and more that its operators do not use, hence --no-deps.
$(PEERS)/.packages:
	@echo "installing jax, torch and curvlinops into $(PEERS)"
	@$(BIN)/python -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip -qq install --disable-pip-version-check 'numpy>=1.26' scipy matplotlib \
	  threadpoolctl scikit-learn jax $(TORCH)
	@$(PEERS)/bin/python -m pip -qq install --disable-pip-version-check --no-deps \
	  curvlinops-for-pytorch backpack-for-pytorch einops einconv linear_operator opt-einsum jaxtyping \
	  wadler-lindig unfoldNd tqdm mlxtend
	@touch $@

$(PEERS)/.ready: $(VENV)/.bench $(PEERS)/.packages
	@$(PEERS)/bin/python -m pip -qq --disable-pip-version-check install --force-reinstall --no-deps \
	  $(or $(WHEEL),build/wheel/*.whl)
