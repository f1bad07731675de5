# `make demo` shows the whole way on this computer; `make test` checks the project. Debian 12, root, apt and PyPI suffice.
SHELL := /bin/bash -eo pipefail
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet
MACHINE_PACKAGES := iproute2 iptables mmdebstrap openssh-client systemd-container zstd
# not in the lock file: its builds for CPU and for CUDA have different dependencies, and the index decides which one it offers
TORCH := torch==2.13.0
CODE := provision mlaas4hep tests benchmarks examples docs hatch_build.py

.PHONY: demo setup machine-packages lint lint-code lint-roles test docs page-assets lock clean

demo: machine-packages
	bash examples/demo.sh

setup: $(VENV)/.installed

$(VENV)/.installed: locks/installer.txt locks/dev.txt locks/docs.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --require-hashes -r locks/installer.txt
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --no-deps --require-hashes -r locks/dev.txt -r locks/docs.txt
	$(BIN)/python $(PIP) install '$(TORCH)'
	$(BIN)/python $(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

# what `provision create --cloud local` needs; elsewhere than on Debian as root it is left to the user
machine-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$(for p in $(MACHINE_PACKAGES); do dpkg-query -W -f '$${db:Status-Status}\n' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	  [ -z "$$missing" ] || { echo "Installing: $$missing"; apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }; \
	fi

lint: setup
	$(MAKE) --no-print-directory --jobs 2 --output-sync lint-code lint-roles

lint-code:
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

lint-roles:
	$(BIN)/yamllint --strict playbooks roles molecule requirements.yml
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline

# at its end, the XRootD client looks at every object and so wakes warnings of torch, behind the summary
test: setup machine-packages lint
	PYTHONWARNINGS=ignore::FutureWarning $(BIN)/pytest --numprocesses 2

# the manual: build/manual/index.html, and build/man for `man`
docs: setup
	$(BIN)/python -m docs.generator

# the scripts that the web pages ship, after a change of mlaas4hep/service/pages/static/pins.json
page-assets: setup
	$(BIN)/python -m tests.pages.packages

# versions and hashes only: no address of any index goes into a lock file
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
lock: setup
	$(COMPILE) --group pyproject.toml:installer --output-file locks/installer.txt
	$(COMPILE) pyproject.toml --extra keras --extra service --output-file locks/platform.txt
	$(COMPILE) pyproject.toml --extra keras-gpu --extra service --constraints locks/platform.txt --output-file locks/platform-gpu.txt
	$(COMPILE) --group pyproject.toml:jupyter --constraints locks/platform.txt --output-file locks/jupyter.txt
	$(COMPILE) pyproject.toml --extra provision --extra data --constraints locks/platform.txt --output-file locks/laptop.txt
	$(COMPILE) pyproject.toml --extra provision --extra keras --extra jax --extra service --group dev --constraints locks/platform.txt --constraints locks/jupyter.txt --constraints locks/installer.txt --output-file locks/dev.txt
	$(COMPILE) --group pyproject.toml:docs --constraints locks/dev.txt --output-file locks/docs.txt

clean:
	rm -rf $(VENV) .demo build dist .mypy_cache .ruff_cache .pytest_cache .ansible
