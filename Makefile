# llama-orch: `make up` runs it on this machine, `make test` sets up and runs everything that is tested.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := agent/requirements
export PATH := $(CURDIR)/$(BIN):$(PATH)

# `$(call with,UP_FLAGS) program`: runs it with the words of that variable. Quotes and backslashes in it group words as in
# a shell; all else that means something to a shell or to make (;, $, *) is passed on as it is. The program takes the place
# of Python, so that Ctrl-C and its exit status are its own.
define newline


endef
quoted = '$(subst $(newline), ,$(subst ','\'',$(value $(1))))'
with = $(BIN)/python -I -c 'import os, shlex, sys; name, text, *command = sys.argv[1:]; \
  sys.excepthook = lambda kind, error, at: sys.stderr.write(f"{name}={text}: {error}\n"); \
  os.execvp(command[0], [*command, *shlex.split(text)])' $(1) $(call quoted,$(1))

.PHONY: help up fleet test lint format test-unit test-integration test-hosts molecule faults test-gpu bench-worker wheelhouse engine-wheel wheelhouse-cuda lock venv host-packages clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(VENV)/.runtime ## queen, hive, model, worker and one answer on this machine; Ctrl-C stops all
	@$(call with,UP_FLAGS) $(BIN)/llama-orch up

fleet: $(VENV)/.dev host-packages wheelhouse-hosts ## the same across two test hosts, Debian 12 and 13 (root)
	@$(call with,FLEET_FLAGS) $(BIN)/python -m tests.hosts.fleet

test: $(VENV)/.dev ## lint, unit, integration, molecule and test hosts; the last two need root
	@tests/run

lint: $(VENV)/.dev ## ruff, pyright, yamllint, ansible-lint
	ruff check .
	ruff format --check .
	pyright
	yamllint --strict .
	ansible-lint --offline

format: $(VENV)/.dev ## rewrite the code as ruff wants it
	ruff format .
	ruff check --fix .

test-unit: $(VENV)/.dev ## no network, no root, no sleep
	@$(call with,PYTEST_FLAGS) pytest tests/unit

test-integration: $(VENV)/.dev ## real processes on loopback
	@$(call with,PYTEST_FLAGS) pytest tests/integration

test-hosts: $(VENV)/.dev host-packages wheelhouse-hosts ## real Debian hosts (root)
	@$(call with,PYTEST_FLAGS) pytest tests/hosts

molecule: $(VENV)/.dev host-packages wheelhouse-hosts ## the roles, converged twice and verified from outside (root)
	@rm -rf .llama-orch/molecule-state # a run that was killed left word of hosts that may be gone
	cd tests && MOLECULE_EPHEMERAL_DIRECTORY="$(CURDIR)/.llama-orch/molecule-state" molecule test --all

faults: $(VENV)/.dev ## faults at random, and whether all is well again: FAULTS_FLAGS="--faults 100 --seeds 1 2 3" (docs/faults.md)
	@$(call with,FAULTS_FLAGS) $(BIN)/python -m tests.faults

test-gpu: $(VENV)/.dev ## a hive on this machine's NVIDIA GPU; needs the CUDA wheels in .venv (docs/gpu.md)
	@$(call with,PYTEST_FLAGS) pytest tests/gpu

bench-worker: $(VENV)/.dev ## the worker's speed beside llama-server's; builds that once (docs/performance.md)
	@$(call with,BENCH_FLAGS) $(BIN)/python -m tests.bench.worker

wheelhouse: $(VENV)/.dev ## the wheels that hives get, for every supported Python
	@$(BIN)/python -m llama_orch.wheelhouse build

engine-wheel: $(VENV)/.dev ## the engine as a release has it: one wheel into dist/, and its line for the lock
	@$(BIN)/python -m llama_orch.wheelhouse engine-wheel

wheelhouse-cuda: $(VENV)/.dev ## what hives with an NVIDIA GPU get beside: asks them which, and compiles for it, once (docs/gpu.md)
	@$(call with,CUDA_FLAGS) $(BIN)/python -m llama_orch.wheelhouse build-cuda

.PHONY: wheelhouse-hosts
wheelhouse-hosts: $(VENV)/.dev # only what the test hosts run: Debian 12 and 13
	@$(BIN)/python -m llama_orch.wheelhouse build --python 3.11 --python 3.13

lock: $(VENV)/.dev ## renew the locked dependencies
	$(BIN)/python -m pip install --quiet uv
	compile() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --no-annotate "$$@"; }; \
	  compile --all-extras pyproject.toml --output-file $(LOCKS)/dev.txt; \
	  for part in requirements instructor; do \
	    compile --upgrade tests/clients/$$part.in --output-file tests/clients/$$part.txt; \
	  done; \
	  $(BIN)/python -m tests.clients.installed; \
	  for part in hive queen; do \
	    compile --extra $$part --constraint $(LOCKS)/dev.txt pyproject.toml --output-file $(LOCKS)/$$part.txt; \
	  done; \
	  echo pip | compile - --output-file $(LOCKS)/pip.txt; \
  printf '%s\n' cmake ninja 'setuptools>=77' | compile - --output-file $(LOCKS)/build.txt; \
	  printf '%s\n' 'cuda-toolkit[nvcc,crt,nvvm,cccl,cudart,cublas]==13.0.*' | \
	    compile - --no-emit-package cuda-toolkit --output-file $(LOCKS)/cuda13.txt; \
	  printf '%s\n' 'cuda-toolkit[cudart,cublas]==12.9.*' | \
	    compile - --no-emit-package cuda-toolkit --output-file $(LOCKS)/cuda12.txt

venv: $(VENV)/.dev ## the virtual environment with everything

$(VENV)/bin/python:
	@echo "setting up $(VENV), once: a virtual environment, the engine, Python packages"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "llama-orch needs Python 3.11 or newer; try: make" $(call quoted,MAKECMDGOALS) "PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "on Debian and Ubuntu run: apt-get install python3-venv"; exit 1; }

# The engine goes in first, built for this machine: pip then takes llama-cpp-python as satisfied.
define install
	@$(BIN)/python -m pip install --quiet --quiet --no-compile --disable-pip-version-check \
	  --require-hashes -r $(LOCKS)/pip.txt
	@PYTHONPATH=agent $(BIN)/python -m llama_orch.wheelhouse install $(1)
endef

ENGINE := $(wildcard agent/llama_orch/wheelhouse/cpp/*) agent/llama_orch/wheelhouse/engine.py agent/llama_orch/wheelhouse/corrections.py \
  agent/llama_orch/wheelhouse/processors.py $(LOCKS)/build.txt $(LOCKS)/engine.txt

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml $(LOCKS)/hive.txt $(LOCKS)/queen.txt $(ENGINE)
	$(call install,hive queen)
	@touch $@

# The lock for tests and lint holds the other two.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml $(LOCKS)/dev.txt $(ENGINE)
	$(call install,dev --every-processor)
	@touch $(VENV)/.runtime $@

host-packages: # what tests need, test hosts above all; only as root on Debian or Ubuntu
	@tests/hosts/install-packages

clean: ## remove the virtual environment and all state of make up and make fleet
	rm -rf $(VENV) .llama-orch wheelhouse
