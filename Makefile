# Two commands matter: `make demo` and `make test`. Each makes .venv when it is missing and installs the tested versions.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/unveil demo $(ARGS)

# Every worker computes with one thread: two that share the cores are faster than one that has both.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt .ci/install
	PYTHON="$(PYTHON)" .ci/install '.[images]'
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt .ci/install
	PYTHON="$(PYTHON)" .ci/install '.[dev]'
	touch $@ .venv/installed
