# make demo | test | test-capabilities | lint | format | clean | bench | gpu | gate | tune
# options: PYTHON=python3.12  ARGS="-k wn -x"  TEXT="Say this."  PEER_DLE=DeepLearningExamples
PYTHON ?= python3
VENV := .venv
TEXT := Hello. A moment ago this was only text, and now you can hear it.
ARGS :=
PEER_DLE :=
RESULTS := bench/results

INSTALL = $(VENV)/bin/python -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: help demo test test-capabilities bench gpu gate tune lint format clean
.NOTPARALLEL:

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/fastglow synth "$(TEXT)" -o demo.wav

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest $(ARGS)
	$(if $(ARGS),,$(VENV)/bin/python -m pytest bench --benchmark-disable -q)

# The tests whose numbers come from ATen, on the instruction sets of other processors. What needs no numbers of ATen's,
# ahead-of-time compilation above all, is left out: `make test` has run it.
CAPABILITIES := default avx2
NUMERIC := tests/kernels tests/modules tests/models tests/audio tests/engine tests/train --ignore=tests/kernels/test_compile.py

test-capabilities: $(VENV)/.installed-test
	@for capability in $(CAPABILITIES); do \
		echo "ATEN_CPU_CAPABILITY=$$capability"; \
		ATEN_CPU_CAPABILITY=$$capability $(VENV)/bin/python -m pytest $(NUMERIC) -q $(ARGS) || exit; \
	done

PEER = $(if $(PEER_DLE),--peer-dle="$(PEER_DLE)")

bench: $(VENV)/.installed-test
	@mkdir -p $(RESULTS)
	$(VENV)/bin/python -m pytest bench -q --benchmark-quiet --benchmark-json=$(RESULTS)/bench.json $(PEER) $(ARGS)
	$(VENV)/bin/python -m bench.report $(RESULTS)/bench.json --out $(RESULTS)
	@cat $(RESULTS)/report.md

# What only a GPU can tell runs on the Python that is there, whose torch fits that GPU, and installs nothing.
gpu:
	$(PYTHON) -m bench.gpu $(PEER)

gate:
	$(PYTHON) -m bench.gate $(ARGS)

tune:
	$(PYTHON) -m bench.tune

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

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
