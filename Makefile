# make run, make test: everything else is a part of one of them. `make help` lists all.

.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
# dvc starts `ngf` from PATH. No telemetry, from nobody.
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
unexport PYTHONDONTWRITEBYTECODE

# Images are named after the commit: Kubeflow caches on the name. TARGET: cuda or cpu.
ENGINE ?= $(if $(shell command -v docker),docker,podman)
REGISTRY ?= localhost
TARGET ?= cuda
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/ngf/__init__.py)
REVISION := $(shell git describe --always --dirty '--exclude=*' --abbrev=12 2>/dev/null)
IMAGE = $(REGISTRY)/ngf-python:$(VERSION)-$(TARGET)-$(REVISION)

.PHONY: help install run table test test-fast test-containers lint format compile kfp-local
.PHONY: image image-name image-push lock clean clean-all

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## create .venv with the locked dependencies

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: install  ## run the default grid (dvc repro) and print its results
	@ngf repro --check
	@dvc repro --quiet --keep-going; status=$$?; ngf table; exit $$status

table: install  ## print the results again
	@ngf table

test: lint compile  ## lint, types, compile check, all tests, a small end-to-end run
	python -m pytest -n logical --maxprocesses 8 --dist worksteal -m "not containers"

test-fast: install  ## the tests that take seconds
	python -m pytest -n logical --maxprocesses 8 -m "not slow and not containers"

test-containers: install  ## build the image and run a pair in it, by podman (skipped where it cannot run)
	python -m pytest -m containers -rs

lint: install  ## style and types
	ruff check .
	ruff format --check .
	mypy
	hadolint docker/Dockerfile docker/mlflow.Dockerfile

format: install  ## mend style
	ruff check --fix-only --quiet .
	ruff format --quiet .

image:  ## build the image of the components; TARGET=cpu leaves CUDA out
	$(ENGINE) build -f docker/Dockerfile --target $(TARGET) $(BUILD_FLAGS) \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) -t $(IMAGE) .

image-name:  ## print its name
	@echo $(IMAGE)

# What was pushed, as whoever pushed it says: an image on this machine may have other digests too.
PUSHED := build/pushed-digest
ifneq (,$(findstring podman,$(ENGINE)))
PUSH = $(ENGINE) push --digestfile $(PUSHED) $(IMAGE)
else
PUSH = $(ENGINE) push $(IMAGE) | tee /dev/stderr | sed -n 's/.*digest: \(sha256:[0-9a-f]*\).*/\1/p' > $(PUSHED)
endif

image-push:  ## push it to REGISTRY, and print what NGF_IMAGE must be
	@case "$(REVISION)" in *-dirty) echo "commit first: the name would not say what is in it" >&2; exit 2;; esac
	@mkdir -p build && rm -f $(PUSHED)
	$(PUSH)
	@grep -qs '^sha256:[0-9a-f]\{64\}' $(PUSHED) || { echo "$(ENGINE) named no digest of $(IMAGE)" >&2; exit 1; }
	@echo "export NGF_IMAGE=$(REGISTRY)/ngf-python@$$(cat $(PUSHED))"

compile: install  ## write one Kubeflow package a dataset-attack pair
	python -m pipelines.compile

kfp-local: install  ## run one pair through Kubeflow's local runner
	python -m pipelines.local

lock:  ## resolve the dependencies anew into requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet -e '.[pipeline,s3,timm,dev]' 'torch==2.13.0' \
	    'torchvision==0.28.0' 'setuptools>=77'
	(grep '^#' requirements.lock; build/lock/bin/pip freeze --all --exclude pip --exclude-editable \
	    | sed 's/+cpu$$//') > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

clean:  ## delete what the grid wrote; the registry and the benchmark's victims stay
	rm -rf build report $(filter-out runs/bench,$(wildcard runs/*))

clean-all: clean  ## delete the model registry, lineage and the benchmark's victims, too
	rm -rf runs mlruns mlflow.db
