# Two commands: `make demo` trains a network, `make test` runs all that CI runs. Both create .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo browser examples test lint types pytest long test-gpu oldest newest benchmarks peers kill-matrix kill-matrix-ranks chains chains-ranks fuzz docs notebooks pictures clean

demo: .venv/ready
	$(BIN)/python examples/digits.py

# The full ones: about a quarter of an hour on two cores, most of it the language model.
examples: .venv/ready
	$(BIN)/python examples/digits.py
	$(BIN)/python examples/tabular.py
	$(BIN)/python examples/gan.py
	$(BIN)/python examples/search.py
	$(BIN)/python examples/fine_tuning.py
	HF_HUB_OFFLINE=1 $(BIN)/python examples/hugging_face.py
	$(BIN)/python examples/language_model.py

test: lint types pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/pyright

pytest: .venv/ready browser
	$(BIN)/python -m pytest

# What the tests of the report page drive: the chromium of the system. Where it cannot be installed they are skipped.
browser:
	@command -v chromium > /dev/null || (apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium) \
		|| echo "no chromium: install it, or the tests of the report page are skipped" >&2

# The conformance kit on the plugins that write to the stores of MLflow and Trackio, and all orders of the plugins that have
# a handler at a moment, of which CI takes a sample: three minutes.
long: .venv/ready
	$(BIN)/python -m pytest -m long

# On a machine with an accelerator; writes what it has seen into engine/heptad/run/verified_rows.py and docs/verified.md.
# In a copy without git, HEPTAD_COMMIT names the commit.
test-gpu: .venv/ready
	$(BIN)/python -m pytest -m gpu tests/gpu

# The oldest and the newest versions that the ranges allow, each in an environment of its own; about ten minutes, and no
# part of CI. Benchmarks, examples, type checks and the site are about tools that have ranges of their own, and left out.
BESIDE := --ignore=tests/test_benchmarks.py --ignore=tests/test_typing.py --ignore-glob='tests/test_example*'
BESIDE += --ignore=tests/test_site.py --ignore=tests/test_notebooks.py --ignore=tests/test_peers.py
# This test collects the files that are left out as well, from the source distribution.
BESIDE += --deselect=tests/test_package.py::test_the_source_distribution_is_enough_to_run_its_tests

# What the other tests need beside the extras: hydra-core, jsonargparse and tyro for the recipes of docs/configuration.md.
# The whole mlflow, whose server one file drives, is left out, and those tests are skipped.
TESTED_WITH := torchdata hatchling editables pytest hypothesis build twine pyyaml hydra-core jsonargparse tyro

oldest: .oldest/ready
	.oldest/bin/python -m pytest $(BESIDE)

newest: .newest/ready
	.newest/bin/python -m pytest $(BESIDE)

benchmarks: .venv/ready
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/device.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/order.py
	$(BIN)/python benchmarks/plugins.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/checkpoint_memory.py
	$(BIN)/python benchmarks/background.py
	$(BIN)/python benchmarks/log.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/ranks.py

# This engine against its peers, in an environment of their own: the tables of docs/comparison.md.
peers: .peers/ready
	.peers/bin/python benchmarks/peers.py

# Kills a run at each of its moments and resumes it: about half an hour. `make test` takes a sample of them.
kill-matrix: .venv/ready
	$(BIN)/python -W ignore tests/kill_matrix.py

# The same of each rank of two, by ddp and by fsdp, and a sample on three: two hours.
kill-matrix-ranks: .venv/ready
	PYTHONPATH=tests $(BIN)/python -W ignore tests/ranks/kill_matrix_ranks.py

# Kills runs again and again at random times, while they start, load, write and rotate: some ten minutes.
chains: .venv/ready
	$(BIN)/python -W ignore tests/chains.py

# Kills a rank under torchrun again and again, which starts all anew: some ten minutes.
chains-ranks: .venv/ready
	PYTHONPATH=tests $(BIN)/python -W ignore tests/ranks/rank_chains.py

# Gives readers damaged and crafted files, INPUTS of them: a quarter of an hour. What fails is kept in runs/fuzz.
INPUTS := 100000
fuzz: .venv/ready
	PYTHONPATH=tests $(BIN)/python -m fuzz --inputs $(INPUTS)

# Draws the pictures of the README and the docs, of the demo's run; needs the chromium of the system.
pictures: .venv/ready browser
	$(BIN)/python tools/pictures.py

# The site, from the pages as they are and the docstrings: build/site/index.html. No network; warnings are errors.
docs: .venv/ready
	$(BIN)/python -m sphinx -q -W --keep-going -n -c docs -d build/doctrees . build/site

# Runs the notebooks of docs/notebooks and keeps what they show; a test compares.
notebooks: .venv/ready
	$(BIN)/python tools/notebooks.py

clean:
	rm -rf .venv .oldest .newest .peers

# torch comes first and by exactly this requirement: a range, asked for while none is installed, may bring another build.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -c constraints.txt hatchling editables
	$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

.oldest/ready: pyproject.toml oldest.txt
	$(PYTHON) -m venv .oldest
	.oldest/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.oldest/bin/python -m pip install --quiet --disable-pip-version-check -c oldest.txt $(TESTED_WITH)
	.oldest/bin/python -m pip install --quiet --disable-pip-version-check -c oldest.txt --no-build-isolation -e '.[all,demo]'
	touch $@

# The peers first, by their pins; then the engine, with what it needs by its ranges: not by constraints.txt.
.peers/ready: pyproject.toml benchmarks/peers.txt
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	.peers/bin/python -m pip install --quiet --disable-pip-version-check hatchling editables
	.peers/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e .
	touch $@

# The newest torch may be a build for CUDA, which is several gigabytes.
.newest/ready: pyproject.toml
	$(PYTHON) -m venv .newest
	.newest/bin/python -m pip install --quiet --disable-pip-version-check torch $(TESTED_WITH)
	.newest/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[all,demo]'
	touch $@
