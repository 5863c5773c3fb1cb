# Two commands: `make demo` trains a network, `make test` runs all that CI runs. Both create .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo examples test lint types pytest benchmarks clean

demo: .venv/ready
	$(BIN)/python examples/digits.py

# The full ones: about a quarter of an hour on two cores, most of it the language model.
examples: .venv/ready
	$(BIN)/python examples/digits.py
	$(BIN)/python examples/tabular.py
	$(BIN)/python examples/gan.py
	HF_HUB_OFFLINE=1 $(BIN)/python examples/hugging_face.py
	$(BIN)/python examples/language_model.py

test: lint types pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/pyright

pytest: .venv/ready
	$(BIN)/python -m pytest

benchmarks: .venv/ready
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/plugins.py

clean:
	rm -rf .venv

# torch comes first and by exactly this requirement: a range, asked for while none is installed, may bring another build.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -c constraints.txt hatchling editables
	$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
