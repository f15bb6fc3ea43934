# Needs Python 3.11 or later with pip; everything else is put into .venv by the first command that runs.
#
#   make lab        JupyterLab on the front page             PORT=8899  NO_BROWSER=1
#                   or on your own copy of a lab             LAB=01_decoding
#   make test       lint, format, tests, notebooks: about half an hour on two cores
#   make attacks    of the tests, those that hand in every known attack on the grader: minutes
#   make check      lint and format alone
#   make notebooks  build notebooks/*.ipynb from notebooks/source and run them   CHAPTERS="01_decoding"
#   make slides     build/slides/NAME.html, each chapter for a lecture       CHAPTERS="01_decoding"  EDITION=zh
#   make handouts   build/handouts/NAME.html and .pdf, each chapter to read  CHAPTERS, EDITION, CHROME=/path/to/chrome
#   make labs       build and run solutions/*.ipynb from solutions/source, make labs/ of them   LABS="01_decoding"
#   make chinese    build notebooks/zh and labs/zh, the Chinese edition   CHAPTERS="01_decoding"  RUN=1 with outputs
#   make lock       requirements.lock and environment.yml from pyproject.toml
#   make clean      remove .venv and caches
#
# PYTHON=python3.12 chooses the interpreter, otherwise the first that is new enough is taken. ANY_DISK=1 sets up
# on a disk that seems too small.

SHELL := /bin/sh
CHOSEN := $(if $(PYTHON),--chosen)
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
VENV_PYTHON := .venv/bin/python
PORT ?= 8888
export PORT NO_BROWSER LAB CHROME
# Where it is set, each of the programs that tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: lab test attacks check notebooks slides handouts labs chinese lock clean python environment test-environment

lab: environment
	@$(VENV_PYTHON) tools/lab.py

test: test-environment check
	@$(VENV_PYTHON) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with=tests/nbval.cfg \
	    -m "not alone" notebooks solutions tests
	@$(VENV_PYTHON) -m pytest -m alone tests

attacks: test-environment
	@$(VENV_PYTHON) -m pytest --numprocesses=2 --dist=loadfile tests/grading/attacks

check: test-environment
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .

notebooks: test-environment
	@$(VENV_PYTHON) -m tools.notebooks $(CHAPTERS)

slides: environment
	@$(VENV_PYTHON) -m tools.slides $(CHAPTERS) $(if $(EDITION),--edition $(EDITION))

handouts: environment
	@$(VENV_PYTHON) -m tools.handouts $(CHAPTERS) $(if $(EDITION),--edition $(EDITION))

labs: test-environment
	@$(VENV_PYTHON) -m tools.labs $(LABS)

chinese: test-environment
	@$(VENV_PYTHON) -m tools.chinese build $(CHAPTERS) $(if $(RUN),--run)

lock: test-environment
	@$(VENV_PYTHON) tools/lock.py

clean:
	rm -rf .venv .venv.old .venv.lock build *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

environment: python
	@"$(PYTHON)" tools/environment.py $(CHOSEN) $(if $(ANY_DISK),--any-disk)

test-environment: python
	@"$(PYTHON)" tools/environment.py $(CHOSEN) $(if $(ANY_DISK),--any-disk) --extra test

python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    found="$$("$(PYTHON)" --version 2>&1 | grep '^Python')"; \
	    echo "error: Python 3.11 or later is needed; $(PYTHON) is $${found:-not one that runs here}."; \
	    echo "Install one (Debian, Ubuntu: sudo apt-get install python3.11 python3.11-venv; macOS: brew" \
	        "install python@3.12; anywhere: conda create -n course python=3.12), then name it:" \
	        "make $(or $(MAKECMDGOALS),lab) PYTHON=python3.12"; \
	    exit 1; } >&2
