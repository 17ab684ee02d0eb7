# Works on a fresh machine with Python >= 3.11 and make; uv is used where it can be had, pip otherwise.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install test quality style quickstart readme clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	{ $(BIN)/python -m pip install --quiet uv && $(BIN)/python -m uv pip install --quiet --compile-bytecode --system-certs --python $(BIN)/python -e ".[dev]"; } \
		|| $(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy hf_watermark

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quickstart: install
	$(BIN)/hf-watermark quickstart --output runs/quickstart

readme: install
	$(BIN)/python tests/run_readme.py README.md

clean:
	rm -rf $(VENV) runs build dist *.egg-info
