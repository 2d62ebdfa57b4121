# Everything starts from a fresh machine with Python 3.11 or newer: each target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo test test-matrix check docs bench wheel clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[app,data,demo,docs,export,hub,metrics,ray,tensorboard,test,check]'
	$(INSTALL) '.[audio]' || echo "no torchaudio for this torch: what needs it is skipped"
	$(INSTALL) '.[pesq]' || echo "pesq needs a C compiler: PESQ will read 'not installed'"
	touch $@

demo: setup
	$(BIN)/python recipes/demo/demo.py demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# Other interpreters and versions of torch, where they are at hand; see constraints-newest.txt.
test-matrix:
	sh tests/matrix.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without a network; notebooks run on one thread. A warning, a cell that fails and a doctest that does are errors.
docs: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W -b html -d docs/_build/doctrees docs docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W -q -b doctest -d docs/_build/doctrees docs docs/_build/doctest
	@echo "docs/_build/html/index.html"

bench: setup
	for script in training files; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$script.py || exit 1; done

wheel: setup
	$(BIN)/python -m build

clean:
	rm -rf .venv demo build dist docs/_build *.egg-info
