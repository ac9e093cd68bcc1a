# make demo and make test each do all the set-up (own .venv) and then the work; nothing else is needed first.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu lets pip take a CPU-only torch (2 GB less to download).
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# one thread a test worker: spinning OpenMP threads of two workers on two cores cost fivefold
ONE := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help demo app test test-all lint clean
help:
	@echo "make demo      set up, then compare methods on a real small model (minutes on two CPU cores)"
	@echo "make app       set up, then the demonstration in a browser at http://127.0.0.1:8501"
	@echo "make test      set up, then the fast tests"
	@echo "make test-all  make test, then the slow tests and those on the real model"
	@echo "make lint      ruff"
	@echo "make clean     remove .venv and caches; results and models stay"

demo: $(VENV)/runtime
	$(BIN)/python run_taq_icml.py --run_type demo --executor process

app: $(VENV)/app
	$(BIN)/python -m streamlit run app/streamlit_app.py

test: $(VENV)/dev
	$(ONE) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not real"

test-all: test
	-$(BIN)/python -m core.demo_model saved_models/base
	$(ONE) $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or real"

lint: $(VENV)/dev
	$(BIN)/ruff check .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is older; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: requirements.txt | $(BIN)/python
	@echo "Installing requirements.txt into $(VENV) (once; a minute or a few)"
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/app: requirements-app.txt $(VENV)/runtime
	@echo "Installing requirements-app.txt into $(VENV) (once)"
	$(PIP) -r requirements-app.txt
	@touch $@

$(VENV)/dev: requirements-dev.txt requirements-lm-eval.txt requirements-app.txt requirements-export.txt $(VENV)/runtime
	@echo "Installing requirements-dev.txt into $(VENV) (once)"
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
