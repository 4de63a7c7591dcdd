# app: set up and open the app.  test: set up and test.  demo: the whole pipeline without a browser.
# test-apart: what needs a cluster, two processes, a wheel or a memory limit.
# gpu: hold this machine's GPU against the CPU, and measure what it gains; ends with one line where there is none.
# test-all: what needs hours too, and every process started anew.  audit: known holes in the libraries.  llama-cpp: the client that tests run GGUF files in.
# Another Python: make app PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 3
RUN = $(VENV)/bin/python
REQUIREMENTS = requirements.txt requirements-data.txt
PIP = $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check
# What pip would do on one core, on all of them, for what is imported; a few files of packages are not for this Python.
COMPILE = $(RUN) -m compileall -qq -j 0 -x '/tests?/|/ray/|/transformers/models/' $(VENV)/lib || true
.PHONY: app test test-apart test-all demo gpu lint audit llama-cpp check clean

app: $(VENV)/installed
	@$(RUN) -m swm app

demo: $(VENV)/installed
	@$(RUN) -m swm demo

gpu: $(VENV)/installed-dev
	@$(RUN) benchmarks/gpu.py

test: $(VENV)/installed-dev
	@$(RUN) -m pytest -n $(WORKERS) -m "not apart"

lint: $(VENV)/installed-dev
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

test-apart: $(VENV)/installed-dev
	@$(RUN) -m pytest -n $(WORKERS) -m apart

test-all: $(VENV)/installed-dev llama-cpp
	@$(RUN) -m pytest --all

llama-cpp: $(VENV)/installed-dev
	@command -v npm >/dev/null || { echo "There is no npm, so tests that run llama.cpp are skipped."; exit 0; }; \
	test -d $(VENV)/llama.cpp/node_modules/node-llama-cpp || \
	sh -c "$$(SWM_LLAMA_CPP=$(VENV)/llama.cpp $(RUN) -m swm.llama_cpp.client) --silent"

audit: $(VENV)/installed-dev
	@$(RUN) -m pip_audit --local --skip-editable --progress-spinner off

clean:
	rm -rf $(VENV)

$(VENV)/installed: $(REQUIREMENTS)
	@$(MAKE) --no-print-directory $(VENV)/bin/python
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-data.txt
	@$(COMPILE)
	@touch $@

$(VENV)/installed-dev: $(REQUIREMENTS) requirements-dev.txt
	@$(MAKE) --no-print-directory $(VENV)/bin/python
	@$(PIP) -r requirements-dev.txt
	@$(PIP) --no-deps -r requirements-data.txt
	@$(COMPILE)
	@touch $@ $(VENV)/installed

$(VENV)/bin/python:
	@$(MAKE) --no-print-directory check
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing what the app needs into $(VENV): some minutes, once."

check:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.10 to 3.13, or name another: make app PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo "$(PYTHON) is $$($(PYTHON) -V): 3.10 to 3.13 is needed. Name another: make app PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < 4 * 2**30)' || { echo "Less than 4 GiB of disk are free here. Make space, then try again."; exit 1; }
