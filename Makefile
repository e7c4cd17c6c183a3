# make demo | voice | voice-gpu | test | test-capabilities | test-integrations | lint | format | clean | bench | gpu | gate | tune
# options: PYTHON=python3.12  WORKERS=8  ARGS="-k wn -x"  TEXT="Say this."  VOICE=heart  GOAL=waveglow  SPEECH=FOLDER  MODEL=tacotron2
PYTHON ?= python3
VENV := .venv
INTEGRATIONS := .venv-integrations
TEXT := Hello. A moment ago this was only text, and now you can hear it.
ARGS :=
WORKERS := 2
PEER_DLE :=
VOICE := heart
GOAL := report
SPEECH :=
MODEL := waveglow
RESULTS := bench/results

INSTALL = $(VENV)/bin/python -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: help demo voice voice-gpu test test-capabilities test-integrations bench gpu gate tune lint format clean
.NOTPARALLEL:
# Else each command that a test starts compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/fastglow synth "$(TEXT)" -o demo.wav

# From recordings to a voice, for hours: `nohup make voice &`. Stop it at any time; the same command goes on.
voice: $(VENV)/.installed-voice
	@$(VENV)/bin/python -m voices.build "$(VOICE)" $(GOAL) $(if $(SPEECH),--speech "$(SPEECH)") $(ARGS)

# Installs nothing: uses the machine's Python, whose torch fits its GPU.
voice-gpu:
	@$(PYTHON) -m voices.gpu run --voice "$(VOICE)" --model $(MODEL) $(ARGS)

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)
	$(if $(ARGS),,$(VENV)/bin/python -m pytest bench --benchmark-disable -q)

# Tests of numerics under the instruction sets of other processors. `make test` runs the rest, such as ahead-of-time
# compilation and the order of programs.
CAPABILITIES := default avx2
NUMERIC := tests/kernels tests/modules tests/models tests/audio tests/engine \
	$(patsubst %,tests/patching/test_%.py,attention decoder_loops invertible lstm wavenet) \
	$(patsubst %,tests/train/test_%.py,data ema flops losses precision tacotron2_task training warm_start)

# Whole models in Triton's interpreter, whose kernels are each in the rest; compiled code, compared with the same code
# uncompiled; files, errors, hooks and memory, which rounding does not touch.
NOT_NUMERIC := $(patsubst %,tests/kernels/test_%.py,backend cpu_processor operators sanitizer) \
	$(patsubst %,tests/models/test_%.py,compiled nvidia_scripts_hooks tacotron2_kernels waveglow_kernels) \
	$(patsubst %,tests/engine/test_%.py,damaged_voice odd_texts streaming_faults voices) \
	tests/audio/test_audio_io.py tests/modules/test_wn_traced.py

# One process each, side by side: a test runs on one thread.
test-capabilities: $(VENV)/.installed-test
	@for capability in $(CAPABILITIES); do \
		(output=$$(ATEN_CPU_CAPABILITY=$$capability $(VENV)/bin/python -m pytest $(NUMERIC) $(NOT_NUMERIC:%=--ignore=%) -q $(ARGS) 2>&1); \
		code=$$?; printf '%s\n' "ATEN_CPU_CAPABILITY=$$capability" "$$output"; exit $$code) & \
		running="$$running $$!"; \
	done; code=0; for pid in $$running; do wait $$pid || code=1; done; exit $$code

# Other people's packages, whose pins must not reach the tests' environment.
test-integrations: $(INTEGRATIONS)/.installed
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations $(ARGS)

PEER = $(if $(PEER_DLE),--peer-dle="$(PEER_DLE)")

bench: $(VENV)/.installed-test
	@mkdir -p $(RESULTS)
	$(VENV)/bin/python -m pytest bench -q --benchmark-quiet --benchmark-max-time=10 --benchmark-json=$(RESULTS)/bench.json $(PEER) $(ARGS)
	$(VENV)/bin/python -m bench.report $(RESULTS)/bench.json --out $(RESULTS)
	@cat $(RESULTS)/report.md

# Installs nothing: uses the machine's Python, whose torch fits its GPU.
gpu:
	$(PYTHON) -m bench.gpu $(PEER) $(ARGS)

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

# One environment for all targets but one, rebuilt when these files change. A stamp per set of packages: each target
# installs what it needs. The test set includes the other.
$(VENV)/.made $(INTEGRATIONS)/.made: %/.made: setup.py fastglow/_requirements.py pyproject.toml constraints.txt
	@[ ! -e $* ] || [ -e $@ ] || \
		{ echo "$* was not made by this Makefile, or is incomplete: move it away, or run 'make clean'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.10: set PYTHON=..." >&2; exit 1; }
	rm -rf $*
	@$(PYTHON) -m venv $* || \
		{ rm -rf $*; echo "$(PYTHON) cannot make a venv: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@touch $@

$(INTEGRATIONS)/.installed: $(INTEGRATIONS)/.made constraints-integrations.txt tests/integrations/install.py
	$(INTEGRATIONS)/bin/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[test]'
	$(INTEGRATIONS)/bin/python tests/integrations/install.py
	@touch $@

$(VENV)/.installed: $(VENV)/.made
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-voice: $(VENV)/.made
	$(INSTALL) -e '.[train,evaluation]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-test: $(VENV)/.made
	$(INSTALL) -e '.[test]'
	@touch $(VENV)/.installed $(VENV)/.installed-ruff $@

$(VENV)/.installed-ruff: $(VENV)/.made
	$(INSTALL) ruff
	@touch $@

clean:
	rm -rf $(VENV) $(INTEGRATIONS) build dist *.egg-info demo.wav .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
