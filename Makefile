SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
export VIRTUAL_ENV := $(CURDIR)/.venv
export DAGSTER_HOME ?= $(CURDIR)/.dagster_home
# Everything in an experiment of `make experiment`: make run EXPERIMENT=x
ifdef EXPERIMENT
export EXPERIMENT
# Before make 4.4 a shell function knows nothing of variables that were given to make.
export DAGSTER_HOME := $(shell env $(MAKEOVERRIDES) $(BIN)/python -m mnist_pipeline experiment "$(EXPERIMENT)" --home)
$(if $(DAGSTER_HOME),,$(error EXPERIMENT=$(EXPERIMENT) cannot be used, see above (without .venv: make install first)))
endif
# Dagster announces each use of an API that it calls beta; constraints.txt pins the version that was tested.
export PYTHONWARNINGS := ignore:Parameter,ignore:Function

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

.PHONY: run
run: install ## Materialize the whole graph, with no server, and sum up (settings: make run CONFIG=file.yaml)
	$(BIN)/python -m mnist_pipeline run $(if $(CONFIG),--config $(CONFIG))

.PHONY: sweep
sweep: install ## Try settings, with no server, and rank them: make sweep CONFIG=sweeps/learning_rate.yaml
	@test -n "$(CONFIG)" || { echo "make sweep CONFIG=sweeps/learning_rate.yaml; there are: $$(ls sweeps)" >&2; exit 1; }
	$(BIN)/python -m mnist_pipeline sweep --config $(CONFIG)

.PHONY: experiment
experiment: install ## Make a copy to try changes in: make experiment NAME=x, then make run (dev, serve, sweep) EXPERIMENT=x
	@$(BIN)/python -m mnist_pipeline experiment $${NAME:+"$$NAME"}

.PHONY: promote
promote: install ## Send the candidate of an experiment to the deployment's gate: make promote NAME=x [VERSION=...]
	@test -n "$$NAME" || { echo "make promote NAME=x [VERSION=...]" >&2; exit 1; }
	@$(BIN)/python -m mnist_pipeline promote "$$NAME" $${VERSION:+"$$VERSION"}

.PHONY: discard
discard: install ## Delete an experiment: make discard NAME=x
	@test -n "$$NAME" || { echo "make discard NAME=x" >&2; exit 1; }
	@$(BIN)/python -m mnist_pipeline discard "$$NAME"

PORT ?= 3000
.PHONY: dev
dev: install ## Start Dagster's UI and daemon on http://127.0.0.1:3000 (PORT=3001 for another one)
	$(BIN)/dg dev --host 127.0.0.1 --port $(PORT)

.PHONY: serve
serve: install ## Serve what is deployed, and its pages, on http://127.0.0.1:8000 (options: make serve ARGS="--port 9000")
	$(BIN)/python -m mnist_pipeline.serve $(ARGS)

.PHONY: bench
bench: install ## Measure, beside what users do today (minutes; MNIST_DIR=folder of all 70,000 images)
	@test -d "$${MNIST_DIR:-}" || { echo "set MNIST_DIR to the folder of the full MNIST, four IDX files" >&2; exit 1; }
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.training --quick --presets default
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.inference --quick
	$(BIN)/python -m benchmarks.orchestration --rounds 1

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Where the processes of a test are the work, two tests at a time take longer than one after the other.
TWO_AT_A_TIME := -n 2 --dist worksteal

.PHONY: test
test: install ## Run the tests, 15 to 30 minutes on two cores (MNIST_DIR=folder adds those that need all 70,000 images)
	$(PYTEST) $(TWO_AT_A_TIME) -m "not live"

.PHONY: test-live
test-live: install ## Run the tests with a real daemon, Postgres, containers, kills and a browser, 30 to 50 minutes more
	$(PYTEST) -m "live and not extended"

.PHONY: test-long
test-long: install ## Run the tests of races, kills, load and noise with larger numbers, up to an hour
	KILLS=$(or $(KILLS),1000) RACES=$(or $(RACES),100) RACE_ROUNDS=$(or $(RACE_ROUNDS),100) \
	FUZZ_IMAGES=$(or $(FUZZ_IMAGES),10000) SOAK_SECONDS=$(or $(SOAK_SECONDS),900) \
	REFUSED_ROUNDS=$(or $(REFUSED_ROUNDS),170) TRIALS=$(or $(TRIALS),20) $(PYTEST) $(TWO_AT_A_TIME) -m "long or extended"

.PHONY: new
new: install ## Write a project of your own: make new NAME=flowers [TO=../flowers] [DATASET=folder DATASET_DIR=...]
	@test -n "$$NAME" || { echo "make new NAME=flowers [TO=../flowers] [DATASET=folder DATASET_DIR=...]" >&2; exit 1; }
	@$(BIN)/python -m scaffold "$$NAME" $${TO:+--to "$$TO"} $${DATASET:+--dataset "$$DATASET"} \
		$${DATASET_DIR:+--dataset-dir "$$DATASET_DIR"}

.PHONY: lint
lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: install ## Format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: install
install: .venv/.installed $(CURDIR)/.dagster_home/dagster.yaml

# uv installs in a fraction of pip's time, and both say how far they are; pip takes over where uv is not to be had.
.venv/.installed: pyproject.toml constraints.txt
	@echo "installing into .venv (about 6 GB): 1 to 5 minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@{ $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv && \
		$(BIN)/uv pip install --compile-bytecode -c constraints.txt -e '.[dev]'; } || { \
		echo "uv is not to be had, or does not know your index: pip installs, which takes longer"; \
		$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; }
	@touch $@

.PHONY: install-service
install-service: .venv-service/.installed ## Install only what the service needs, into .venv-service (then: .venv-service/bin/python -m mnist_pipeline.serve)

# pip knows groups since 25.1.
.venv-service/.installed: pyproject.toml constraints.txt
	@test -x .venv-service/bin/python || $(PYTHON) -m venv .venv-service
	@.venv-service/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@.venv-service/bin/python -m pip install --quiet --no-compile -c constraints.txt --group serve
	@.venv-service/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

# Only the project's own: a DAGSTER_HOME from the environment keeps its settings.
$(CURDIR)/.dagster_home/dagster.yaml: dagster.yaml
	@mkdir -p $(@D)
	@cp dagster.yaml $@

.PHONY: clean
clean: ## Remove the virtual environment and caches (never data, models or run history)
	rm -rf .venv .venv-service .mypy_cache .ruff_cache .pytest_cache *.egg-info
