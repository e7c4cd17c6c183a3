# make demo | test | lint | format | clean    options: PYTHON=python3.12  ARGS="-k wn -x"  TEXT="Say this."
PYTHON ?= python3
VENV := .venv
TEXT := Hello. A moment ago this was only text, and now you can hear it.
ARGS :=

INSTALL = $(VENV)/bin/python -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: help demo test lint format clean
.NOTPARALLEL:

help:
	@sed -n '1s/^# //p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/fastglow synth "$(TEXT)" -o demo.wav

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.installed-ruff
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(VENV)/.installed-ruff
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# One environment for all targets, made anew when what it is made from changes. Each set of packages has its
# stamp, so that a target installs what it needs and no more; the test set holds the other two.
$(VENV)/.made: setup.py pyproject.toml constraints.txt
	@[ ! -e $(VENV) ] || [ -e $@ ] || \
		{ echo "$(VENV) is not this Makefile's, or half made: move it away, or remove it with 'make clean'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.10: name another with PYTHON=..." >&2; exit 1; }
	rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make a venv: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.made
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.made
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.installed $(VENV)/.installed-ruff $@

$(VENV)/.installed-ruff: $(VENV)/.made
	$(INSTALL) ruff
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo.wav .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
