# SPDX-License-Identifier: Apache-2.0
# Two commands matter: `make demo` and `make test`. Both build .venv once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-extras lint format clean

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
LINT_READY := $(VENV)/.lint-ready
EXTRAS_READY := $(VENV)/.extras-ready
DEMO_DIR := work_dirs/demo

# The pinned versions have wheels for these Pythons. The default interpreter
# comes first, so that an activated environment or a CI matrix is respected.
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10 python3.14
PYTHON ?= $(shell for name in $(CANDIDATES); do \
	$$name -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] \
	<= (3, 14))' 2>/dev/null && { command -v $$name; break; }; done)

# Handed to every `pip install`, as are pip's own environment variables.
PIP_ARGS ?=
PIP_INSTALL = $(PY) -m pip install --no-compile -c constraints.txt $(PIP_ARGS)
TEST_JOBS ?= 2
PYTEST_ARGS ?=
PYTEST = $(PY) -m pytest tests -n $(TEST_JOBS) --dist loadfile
SOURCES = setup.py $(wildcard mmseg_mile tools configs tests)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore
# Waiting OpenMP threads give their core to the data loader.
export OMP_WAIT_POLICY ?= PASSIVE

help:  ## Show this text
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22
	@echo
	@echo '  PYTHON=...          interpreter for a new .venv (3.10 to 3.14)'
	@echo '  PIP_ARGS=...        more options for pip, such as --index-url or'
	@echo '                      --find-links of a place with CPU-only torch wheels'
	@echo '  TEST_JOBS=...       processes that run tests side by side (2)'
	@echo '  PYTEST_ARGS=...     more options for pytest, such as -k gate'

demo: $(READY)  ## Install, make the demo data, learn a stream, print scores
	$(PY) tools/make_demo_data.py data/demo
	$(PY) tools/train.py configs/mile/demo.py --work-dir $(DEMO_DIR) --resume
	@echo
	@echo 'Scores:'
	@find $(DEMO_DIR) -name results.json | sort | sed 's/^/  /'
	@echo 'Report:'
	@find $(DEMO_DIR) -name report.html | sed 's/^/  /'
	@echo 'Pictures:'
	@find $(DEMO_DIR) -name '*.png' | sed 's|/[^/]*$$|/|' | sort | uniq -c

test: $(READY)  ## Install and run the tests
	$(PYTEST) $(PYTEST_ARGS)

test-extras: $(EXTRAS_READY)  ## Install Ray, serving, CLIP and ONNX, run what `make test` skips
	$(PYTEST) -m extras $(PYTEST_ARGS)

lint: $(LINT_READY)  ## Run every check of .pre-commit-config.yaml
	@failed=; check() { echo "== $$*"; "$$@" || failed="$$failed $$1"; }; \
	PATH="$(VENV)/bin:$$PATH"; \
	check flake8 $(SOURCES); \
	check isort --check-only --diff $(SOURCES); \
	check yapf --recursive --diff $(SOURCES); \
	check codespell $(SOURCES) $(wildcard *.md data/*.md .github Makefile); \
	check mypy; \
	check interrogate --quiet mmseg_mile; \
	if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then \
	  mapfile -t files < <(git ls-files --cached --others --exclude-standard \
	    | sort -u | while read -r f; do if [ -f "$$f" ]; then echo "$$f"; fi; \
	    done); \
	  echo '== merge conflicts, large files'; \
	  check-merge-conflict --assume-in-merge "$${files[@]}" \
	    || failed="$$failed check-merge-conflict"; \
	  check-added-large-files --enforce-all --maxkb=500 "$${files[@]}" \
	    || failed="$$failed check-added-large-files"; \
	fi; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi; \
	echo 'all checks passed'

format: $(LINT_READY)  ## Rewrite the sources the way isort and yapf want them
	$(VENV)/bin/isort $(SOURCES)
	$(VENV)/bin/yapf --recursive --in-place $(SOURCES)

clean:  ## Remove .venv, caches, the demo data and the demo results
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache data/demo $(DEMO_DIR)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A changed pin starts from an empty environment. mmcv and mmseg come as source
# archives: built before torch is there, mmcv stays pure Python whatever
# compilers the machine has, and without build isolation nothing is
# downloaded twice.
$(READY): setup.py constraints.txt
	@$(make_venv)
	$(PIP_INSTALL) setuptools packaging
	$(PIP_INSTALL) --no-deps --no-build-isolation onedl-mmcv onedl-mmsegmentation
	$(PIP_INSTALL) --no-build-isolation --use-pep517 -e '.[test]'
	@$(repair_cv2)
	$(WARM_UP)
	@touch $@

$(LINT_READY): $(READY)
	$(PIP_INSTALL) --no-build-isolation --use-pep517 -e '.[dev]'
	@$(repair_cv2)
	@touch $@

$(EXTRAS_READY): $(READY)
	$(PIP_INSTALL) --no-build-isolation --use-pep517 -e '.[test,extras]'
	@$(repair_cv2)
	@touch $@

# Debian and Ubuntu ship venv without ensurepip until python3.X-venv is there.
define make_venv
python='$(PYTHON)'; \
if [ -z "$$python" ]; then \
  echo 'No Python 3.10 to 3.14 found. Install one, or name it:' >&2; \
  echo '  make PYTHON=/path/to/python3' >&2; exit 1; \
fi; \
has_venv() { "$$python" -c 'import ensurepip, venv' 2>/dev/null; }; \
if ! has_venv; then \
  package="$$("$$python" -c \
    'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    apt-get update && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends "$$package" || true; \
  fi; \
  if ! has_venv; then \
    echo "$$python cannot make virtual environments. Type" >&2; \
    echo "  sudo apt-get update && sudo apt-get install -y $$package" >&2; \
    echo 'then run the same make command again.' >&2; exit 1; \
  fi; \
fi; \
echo "$(VENV): $$python"; \
"$$python" -m venv --clear $(VENV)
endef

# Importing once proves the environment and compiles just the modules in use:
# a fifth of what pip would compile, and kept even where the environment
# forbids Python to write bytecode.
WARM_UP = env -u PYTHONDONTWRITEBYTECODE $(PY) -W ignore -c \
	'import matplotlib.pyplot, mmengine.runner, mmseg.apis, peft, torch'

# opencv-python needs libGL and libglib of the system, which servers and
# containers lack; its headless twin has the same import name and needs none.
define repair_cv2
if ! $(PY) -c 'import cv2' 2>/dev/null; then \
  version="$$($(PY) -c 'from importlib.metadata import version; \
    print(version("opencv-python"))')"; \
  echo "opencv-python $$version cannot be imported here;" \
    'taking opencv-python-headless instead'; \
  $(PY) -m pip uninstall -y opencv-python; \
  $(PIP_INSTALL) --no-deps --force-reinstall \
    "opencv-python-headless==$$version"; \
  $(PY) -c 'import cv2'; \
fi
endef
