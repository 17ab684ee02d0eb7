# Works on a fresh machine with Python >= 3.11 and make; uv is used where it can be had, pip otherwise.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

ARGS ?=
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install test test-fast coverage quality style quickstart readme package extras docs clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	{ $(BIN)/python -m pip install --quiet uv && $(BIN)/python -m uv pip install --quiet --compile-bytecode --system-certs --python $(BIN)/python -e ".[dev]"; } \
		|| $(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

test: install
	$(PYTEST) $(ARGS)

test-fast: install
	$(PYTEST) -m "not slow and not browser" $(ARGS)

# Branches of the rooms that decide verdicts, by their own tests.
coverage: install
	$(PYTEST) --cov=hf_watermark --cov-branch --cov-report= tests/keys tests/statistics tests/serialization tests/claims
	for floor in keys:95 statistics:93 serialization:87 claims:92; do \
		$(BIN)/python -m coverage report --skip-covered --include="hf_watermark/$${floor%%:*}/*" --fail-under=$${floor##*:} || exit 1; done

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
	$(BIN)/python tests/run_readme.py README.md examples/README.md hf_watermark/methods/certified/README.md hf_watermark/methods/watermas/README.md

# Wheel and sdist, and the wheel used in a fresh environment; `make extras`, which CI leaves out, with each extra alone.
package: install
	$(BIN)/python tests/run_package.py

extras: install
	$(BIN)/python tests/run_extras.py

# site/index.html; for its search: python -m http.server --directory site
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --config-file .mkdocs/mkdocs.yml

clean:
	rm -rf $(VENV) runs site build dist *.egg-info
