# Skerry: `make run` shows two machines become a cluster, `make test` tests everything.
# Caches live outside the checkout and are keyed by the hash of their inputs; SKERRY_CACHE moves them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
SKERRY_CACHE ?= $(HOME)/.cache/skerry
export SKERRY_CACHE

LOCK_HASH := $(shell cat requirements.lock requirements-uv.lock | sha256sum | cut -c1-12)
VENV := $(SKERRY_CACHE)/venv-$(LOCK_HASH)
PYTHON := $(VENV)/bin/python
NODE ?= 1
BOARD ?= x86_64

.PHONY: help setup run stop shell logs image test test-fast test-netns test-scale test-vm test-cluster test-long test-ha test-endurance conformance fuzz lint format bench lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/ready build/bin/skerry ## install what this host lacks, and the Python environment

# No prerequisites: the hash in its name says what it was made of. A fresh checkout's locks are always
# newer, and making it anew would take it from under whoever is using it.
$(VENV)/ready:
	@./setup-host.sh
	@mkdir -p "$(SKERRY_CACHE)"
	@rm -rf "$(VENV)"
	@echo "making the Python environment in $(VENV)" >&2
	@python3 -m venv "$(VENV)"
	@"$(VENV)/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@VIRTUAL_ENV="$(VENV)" "$(VENV)/bin/uv" pip install --quiet --require-hashes --no-config -r requirements.lock
	@touch "$@"

# The command for a person's own shell: PATH=$$PWD/build/bin:$$PATH
build/bin/skerry: $(VENV)/ready Makefile
	@mkdir -p build/bin
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m skerry "$$@"\n' "$(CURDIR)" "$(PYTHON)" > $@.new
	@chmod +x $@.new && mv $@.new $@

run: setup ## build the image, boot two nodes, show them become a Kubernetes cluster
	@$(PYTHON) -m skerry lab up

stop: setup ## end the machines of `make run`
	@$(PYTHON) -m skerry lab down

shell: setup ## a root shell on a machine of `make run` (NODE=1)
	@$(PYTHON) -m skerry lab shell $(NODE)

logs: setup ## the journal of a machine of `make run` (NODE=1)
	@$(PYTHON) -m skerry lab logs $(NODE)

image: setup ## build an image (BOARD=x86_64)
	@$(PYTHON) -m skerry image build $(BOARD)

test: setup ## everything, with the time of each tier
	@$(PYTHON) -m tests.run all

test-fast: setup ## the inner loop: lint, types, unit tests
	@$(PYTHON) -m tests.run fast

test-netns: setup ## nodes as processes in network namespaces (root)
	@$(PYTHON) -m tests.run netns

test-scale: setup ## 32 nodes in network namespaces (root, minutes)
	@$(PYTHON) -m tests.run scale

test-vm: setup ## machines in QEMU, without Kubernetes
	@$(PYTHON) -m tests.run vm

test-cluster: setup ## Kubernetes on two machines in QEMU
	@$(PYTHON) -m tests.run cluster

test-long: setup ## stories in QEMU of which `make test` runs a part
	@$(PYTHON) -m tests.run long

test-ha: setup ## three servers, one of them killed
	@$(PYTHON) -m tests.run ha

test-endurance: setup ## pods come and go by the hundred
	@$(PYTHON) -m tests.run endurance

conformance: setup ## the network part of Kubernetes' own end-to-end tests
	@$(PYTHON) -m tests.run conformance

fuzz: setup ## the unit tests with new and many more random examples (minutes)
	@SKERRY_HYPOTHESIS=fuzz $(PYTHON) -m pytest tests/unit -q -p no:cacheprovider --timeout 900

lint: setup ## lint, format and types only
	@$(PYTHON) -m tests.run lint

format: setup ## rewrite the code in the project's format
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

bench: setup ## every benchmark (one: make bench-NAME)
	@$(PYTHON) -m tests.bench all

bench-%: setup
	@$(PYTHON) -m tests.bench $*

lock: setup ## resolve the Python dependencies anew
	@$(VENV)/bin/uv pip compile --quiet pyproject.toml --generate-hashes --universal --python-version 3.11 \
	  --upgrade --no-header --no-emit-index-url --no-annotate -o requirements-node.lock
	@$(VENV)/bin/uv pip compile --quiet pyproject.toml --all-extras --generate-hashes --universal --python-version 3.11 \
	  --upgrade --no-header --no-emit-index-url --no-annotate -c requirements-node.lock -o requirements.lock

clean: ## remove what was built in this checkout (the cache stays)
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
