# Everything runs in .venv, which is made here; needs git, make and Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart smoke test test-slow test-newest test-nightly mutants parity bench lint format clean

quickstart: .venv/.installed
	$(BIN)/prl run --config experiments/quickstart.py --workdir runs/quickstart

smoke: .venv/.installed
	$(BIN)/prl run --config experiments/quickstart.py:smoke --workdir runs/smoke

test: .venv/.installed-dev
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 15 -m "not long and not nightly"

# The tests that take minutes each, one of each kind: a run that is killed at many moments, compilation for a whole pod.
test-slow: .venv/.installed-dev
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 15 -m "long and not nightly"

# The tests of `make test` on Python 3.13 with the newest releases that pyproject.toml allows; tests/newest.sh says how.
test-newest: .venv-newest/.installed
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} sh tests/newest.sh .venv-newest/bin/python -m pytest -q -n 2 --dist loadfile --durations 15 -m "not long and not nightly"

# All that takes hours: everything above, and the tests of further pods, meshes, families and moments of killing.
test-nightly: test-slow test-newest mutants
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 15 -m nightly

# Compares with TRL's trainers, transformers and llama.cpp, in an environment with torch (docs/parity.md).
parity: .venv-parity/.installed
	.venv-parity/bin/python -m pytest -q parity

# Breaks each detail of tests/correctness in turn and shows that its test notices; some minutes.
mutants: .venv/.installed-dev
	$(BIN)/python tests/mutants/run.py

# Measures the speed anew, on a machine that does nothing else: an hour and more. Real texts are in PRL_DATA_DIR.
bench: .venv/.installed-dev
	$(BIN)/python benchmarks/peer_workloads.py --out benchmarks/results/peer_workloads.json
	$(BIN)/python benchmarks/cost_model.py --out benchmarks/results
	$(BIN)/python benchmarks/long_rows.py --out benchmarks/results/long_rows.json
	test -z "$$PRL_DATA_DIR" || $(BIN)/python benchmarks/real_lengths.py --out benchmarks/results/real_lengths.json

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --summary=none

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-parity .venv-newest .newest runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find prl_jax tests experiments parity -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "prl_jax needs Python 3.11 or newer, and there is no '$(PYTHON)' on PATH. Name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "prl_jax needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version 2>&1)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Could not make .venv; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }

# The stamps make a second run skip pip; they are older than pyproject.toml when dependencies have changed.
.venv/.installed: pyproject.toml setup.py | $(BIN)/python
	@echo "Installing prl_jax and what it needs into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml setup.py | $(BIN)/python
	@echo "Installing prl_jax with its test tools into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/.installed

.venv-parity/.installed: parity/requirements.txt pyproject.toml setup.py | $(BIN)/python
	@echo "Installing torch, TRL and prl_jax into .venv-parity (a few minutes the first time)"
	@$(BIN)/python -m venv .venv-parity
	@.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -r parity/requirements.txt --editable .
	@touch $@

.venv-newest/.installed: pyproject.toml setup.py tests/newest.sh
	@sh tests/newest.sh python3.13 -m venv --clear .venv-newest
	@echo "Installing prl_jax and its newest requirements into .venv-newest (a few minutes)"
	@sh tests/newest.sh .venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
