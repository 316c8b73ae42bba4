# One machine, Python 3.11, nothing else: `make run` and `make test` set everything up first.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TASK ?= burn_scars
# Of the tests: processes side by side, one thread each, and what pytest is told besides.
WORKERS ?= 3
TESTS ?=

.PHONY: help install run test test-images lint system system-images images bill push lock docs pictures course figures bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

install: $(VENV)/.installed  ## make .venv from requirements.lock

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) not found: install Python 3.11 or set PYTHON=…" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: install  ## chips in, tested endpoint out, on this machine (TASK=flood for floods)
	@$(BIN)/python run.py --task $(TASK)

test: install  ## the tests; what this machine lacks is skipped with the reason (make system installs it)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-images: install  ## the tests that build and run the images (docker or podman, and the base image)
	@OMP_NUM_THREADS=1 HLS_REQUIRE=all $(BIN)/python -m pytest -m image tests/containers tests/e2e

lint: install  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Debian starts and enables what it installs: neither is wanted of daemons, which the tests start themselves.
system: PACKAGES := chromium slurm-wlm munge openssh-server openssh-client iproute2
system: DAEMONS := munge slurmctld slurmd ssh
system-images: PACKAGES := podman buildah uidmap slirp4netns fuse-overlayfs docker.io docker-compose docker-registry charliecloud-runtime squashfs-tools squashfuse
system-images: DAEMONS := docker containerd docker-registry podman podman-auto-update podman-restart

system:  ## what some tests need from Debian (as root): Chromium, Slurm, OpenSSH
system-images:  ## what the tests of the images need from Debian (as root): engines, Charliecloud, a registry
system system-images:
	apt-get update -qq
	@policy=/usr/sbin/policy-rc.d; new=; \
	for unit in $(DAEMONS); do systemctl is-enabled --quiet $$unit 2>/dev/null || new="$$new $$unit"; done; \
	test -e $$policy || { trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy && chmod 755 $$policy; }; \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) || exit 1; \
	if test -d /run/systemd/system; then for unit in $$new; do systemctl disable --quiet $$unit || true; done; fi

images:  ## the container images, with docker or podman (PIP_CONF=FILE: a pip.conf for an index of yours)
	@$(PYTHON) -m containers.build $(if $(PIP_CONF),--pip-conf $(PIP_CONF))

bill: install  ## what is in the images: bills of materials and lists of licences, in build/images
	@$(BIN)/python -m containers.bill

push: install  ## the images to a registry: make push REGISTRY=ACCOUNT.dkr.ecr.REGION.amazonaws.com
	@$(BIN)/python -m containers.push $(REGISTRY)

# torch apart: its CPU build, whose hashes are in containers/torch.cpu.lock, is not on PyPI.
LOCK_IMAGE = $(BIN)/uv pip compile --quiet --upgrade --constraints requirements.lock --generate-hashes --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --no-annotate --custom-compile-command "make lock"

lock: install  ## resolve pyproject.toml again into requirements.lock, and the images' locks from that
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-annotate \
	  --custom-compile-command "make lock" --upgrade -o requirements.lock
	$(LOCK_IMAGE) pyproject.toml --no-emit-package torch -o containers/serve/requirements.lock
	$(LOCK_IMAGE) pyproject.toml --extra pipelines --extra lora --extra aws --override containers/train/left-out.txt \
	  --no-emit-package torch -o containers/train/requirements.lock
	grep '^torch==' requirements.lock | $(LOCK_IMAGE) - --no-config -o containers/torch.cuda.lock
	echo cyclonedx-bom | $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --python-version 3.11 --no-annotate --no-config \
	  --custom-compile-command "make lock" - -o containers/sbom.lock

docs: install  ## write the pages that are made from the code: configuration, Slurm settings, architecture, API
	@for page in configuration architecture api; do $(BIN)/python docs/write_$$page.py || exit 1; done

pictures: install  ## docs/images, from a run of the demo in a temporary folder (needs Chromium)
	@$(BIN)/python docs/take_screenshots.py

course: install  ## run docs/course as a reader would, and compare what it prints (some minutes; Slurm and curl)
	@$(BIN)/python docs/run_course.py

figures: install  ## docs/course/images, from the synthetic chips (some minutes)
	@$(BIN)/python docs/draw_course_figures.py

bench: install  ## the figures of docs/performance.md
	@for name in training inference validation serving nodes hpc aws; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:  ## stop endpoints and dashboard of this checkout and delete its work
	@test ! -x $(BIN)/python || for name in $$($(BIN)/python run.py endpoints | awk '/http/{print $$1}'); do $(BIN)/python run.py endpoints --delete $$name; done
	@test ! -d .foundry/dashboard || $(BIN)/python run.py dashboard --stop
	rm -rf .foundry .pytest_cache .mypy_cache .ruff_cache
