# make demo: toy data, training, evaluation, pictures.  make test: the tests.  Both set themselves up first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# As many processes as cores, of 1 GB each; a file's tests stay together, so that what they share is made once.
TESTS = -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

.PHONY: setup demo test test-slow test-gpu test-processors test-elastic test-zoo lint test-paddle26 test-gpu-build

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt requirements-int8.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.txt -r requirements-dev.txt -r requirements-int8.txt
	touch $@

demo: setup
	$(BIN)/python tools/demo.py

test: setup
	$(BIN)/python $(TESTS)

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The checks of tools/check_machine.py as assertions, on a machine with a GPU; skipped by name where there is none.
test-gpu: setup
	$(BIN)/python -m pytest -rs tests/gpu

# The tests as other processors, thread counts and orders would run them; see tests/processors.py.
test-processors: setup
	$(BIN)/python tests/processors.py

# Two machines that lose each other, with a real etcd server (Debian: etcd-server); see docs/elastic.md.
test-elastic: setup
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-elastic.txt
	$(BIN)/python -m pytest -m slow -rs tests/training/test_elastic.py

# The published configs of PaddleSeg 2.8 through our command lines: make test-zoo PADDLESEG=/path/to/its/checkout
# MORE: flags of tests/zoo.py, as MORE="--only enet" or MORE=--all; see docs/paddleseg.md.
test-zoo: setup
	PADDLESEG="$(PADDLESEG)" $(BIN)/python tests/zoo.py $(MORE)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The same tests with Paddle 2.6.2, which is what pip installs for paddlepaddle-gpu; Python 3.10 to 3.12.
.venv-paddle26/.installed: requirements.txt requirements-paddle26.txt requirements-dev.txt
	$(PYTHON) -m venv .venv-paddle26
	grep -vE '^(paddlepaddle|numpy|opencv-python-headless)==' requirements.txt > .venv-paddle26/common.txt
	.venv-paddle26/bin/python -m pip install --quiet --no-deps \
		-r .venv-paddle26/common.txt -r requirements-paddle26.txt -r requirements-dev.txt
	touch $@

test-paddle26: .venv-paddle26/.installed
	.venv-paddle26/bin/python $(TESTS)

# The same with Paddle 2.6.2's build for GPUs, on a machine without one, and which of its kernels we would take there.
.venv-gpu-build/.installed: requirements.txt requirements-paddle26.txt requirements-dev.txt
	$(PYTHON) -m venv .venv-gpu-build
	grep -vE '^(paddlepaddle|numpy|opencv-python-headless)==' requirements.txt > .venv-gpu-build/common.txt
	sed 's/^paddlepaddle==/paddlepaddle-gpu==/' requirements-paddle26.txt > .venv-gpu-build/paddle.txt
	.venv-gpu-build/bin/python -m pip install --quiet --no-deps \
		-r .venv-gpu-build/common.txt -r .venv-gpu-build/paddle.txt -r requirements-dev.txt
	touch $@

test-gpu-build: .venv-gpu-build/.installed
	.venv-gpu-build/bin/python $(TESTS)
