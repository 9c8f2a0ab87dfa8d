# Two commands matter: `make demo` and `make test`. Both set up .venv first and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tiny tensors on few cores: more threads only wait for each other. Many processes: what one compiled serves the next.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
# Processes that share the tests (tests/conftest.py); WORKERS=0 runs them in this one, as a debugger wants it.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: demo test test-all lint format docs setup clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[mine,train,demo,dev,docs]'
	$(BIN)/python -m proposals.opencv || $(MAKE) repair-opencv
	touch $@

# mmcv-lite pulls in opencv-python, which overwrites opencv-contrib-python when it is installed last.
.PHONY: repair-opencv
repair-opencv:
	$(BIN)/pip uninstall -q -y opencv-python opencv-contrib-python
	$(BIN)/pip install -q --no-deps -c constraints.txt opencv-contrib-python
	$(BIN)/python -m proposals.opencv

# make demo IMAGES=folder uses your own pictures.
demo: setup
	$(BIN)/python examples/demo.py $(if $(IMAGES),"$(IMAGES)")

test: setup lint
	$(TEST_ENV) $(PYTEST)

test-all: setup lint
	$(TEST_ENV) HYPOTHESIS_PROFILE=search $(PYTEST) -m 'not gpu'

# The oldest libraries that pyproject.toml promises to a mining worker, in an environment of their own: no torch there.
LOWEST := .venv-lowest
LOWEST_TESTS := tests/proposals tests/pipeline/test_job.py tests/pipeline/test_shard_task.py tests/pipeline/test_retry.py
.PHONY: test-lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install -q -c constraints-lowest.txt -e '.[mine,s3]'
	$(LOWEST)/bin/pip install -q -c constraints-lowest.txt pytest pytest-timeout hypothesis jsonschema pandas \
		pycocotools scikit-image scikit-learn 'datasets>=3' duckdb supervision
	$(TEST_ENV) $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Offline and strict: a warning is an error. The variable hides an advertisement of the theme's successor.
docs: setup
	$(BIN)/python tools/docs/data_path.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "read it: $(BIN)/python -m http.server --directory site --bind 127.0.0.1"

clean:
	rm -rf $(VENV) $(LOWEST) demo site build dist *.egg-info
