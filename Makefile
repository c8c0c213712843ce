# Every target installs what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -m "not real and not slow"
BENCH_ARGS ?=
CONSTRAINTS ?= constraints.txt
LOWEST_TORCH ?= 2.11.0

.DEFAULT_GOAL := help
.PHONY: help venv demo bench docs test test-torch-free test-lowest soak lint audit clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

venv: $(VENV)/.installed ## Create .venv and install lpsel with its development tools

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lpsel needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/|/lm_eval/tasks/|/site-packages/(plotly|pip|nltk|fontTools|setuptools)/' $(VENV)/lib || true  # uses all cores, unlike pip; skips files that are not Python 3 or never imported
	@touch $@

demo: venv ## Score, select, train and evaluate on embedded data, and print a table (2.5 minutes on two cores)
	$(BIN)/python examples/demo.py

bench: venv ## Compare speed and memory with the released recipe, lm-eval and Trainer (about 30 minutes; BENCH_ARGS='--rounds 2')
	$(BIN)/python benchmarks/cpu.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/memory.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/loading.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/commands.py $(BENCH_ARGS)

docs: venv ## Build the documentation in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: venv ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## Check style and types, and run the tests (PYTEST_ARGS= includes slow tests and real models)
	$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal $(PYTEST_ARGS)

test-torch-free: ## Run a short test without torch in build/torch-free (PYTHON=python3.13, CONSTRAINTS=constraints-lowest.txt)
	$(PYTHON) -m venv build/torch-free
	build/torch-free/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) filelock fsspec hydra-core hypothesis numpy platformdirs pyarrow pytest pytest-timeout rich scikit-learn scipy
	build/torch-free/bin/python -m pytest -p no:cacheprovider tests/unit/selection --ignore-glob='*published.py' --ignore-glob='*agreement.py' tests/unit/scoring/test_metrics.py tests/unit/test_errors.py tests/unit/test_storage.py tests/unit/test_integrity.py tests/unit/test_console.py tests/unit/test_run_config.py tests/unit/test_structure.py tests/unit/evaluation/test_statistics.py -m "not real"

test-lowest: ## Run a short test with the versions in constraints-lowest.txt in build/lowest (downloads 3 GB, since PyPI has no CPU-only torch 2.11; LOWEST_TORCH=2.13.0 selects another version)
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt charset-normalizer hydra-core hypothesis lightning platformdirs pyarrow pytest pytest-timeout rich scikit-learn scipy torch==$(LOWEST_TORCH) transformers zstandard
	build/lowest/bin/python -m pytest -p no:cacheprovider tests/unit/model/test_attention.py tests/unit/model/test_loss.py tests/unit/model/test_memory_estimate.py tests/unit/training/test_without_hydra.py tests/unit/selection/test_budget.py -m "not real and not slow"

audit: venv build/audit/.installed ## List known vulnerabilities and licenses of the installed packages, according to the package index
	build/audit/bin/python .ci/audit.py $(VENV)

build/audit/.installed:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install -qq pip-audit pip-licenses
	@touch $@

soak: venv ## Kill processes at 200 random moments and compare the results of resumed commands (about 10 minutes)
	LPSEL_KILLS=200 $(BIN)/python -m pytest -q tests/e2e/test_kills.py

clean: ## Remove .venv and everything built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
