# Everything happens in an environment of its own, .venv; Python >= 3.11 and make are all it needs.
PYTHON ?= python3
BIN := .venv/bin

# Some containers set it: hundreds of processes would then compile what the first could keep.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow test-compilers test-golden benchmark-bounds lint types docs dist clean

# The main jobs in small: restore an example with the built-in network; train on synthetic rain,
# score on photographs never seen, restore them.
quickstart: .venv/installed
	$(BIN)/drsformer derain docs/rainy.jpg runs/example/restored.jpg --compare runs/example/comparison \
	    --overwrite
	$(BIN)/python train.py --config configs/quickstart.py --workdir runs/quickstart

# NumPy's threads would wait for work on the cores that the workers need.
test test-slow: export OMP_NUM_THREADS = 1

# Memory in pages of 2 MiB: in the slow hours of a shared machine a step compiled without optimizing in
# 13 s, not 25, and in its fast ones as fast as before (11 s). The heap has to grow by many such pages
# at once. Setting that stops the C library from raising the last two, so they are set high as well.
MALLOC := hugetlb=1 top_pad=67108864 trim_threshold=268435456 mmap_threshold=33554432
space := $() $()
test test-slow: export GLIBC_TUNABLES ?= $(subst $(space),:,$(MALLOC:%=glibc.malloc.%))

# A worker that ends, as at a test that hangs, ends the run: a new one would only try that test again.
test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 --durations=20 -rs

# Training on several devices, and programs that are resumed, stopped, killed or out of disk.
test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 --durations=20 -rs -m slow

# Plans by the compilers for TPUs and GPUs, which need neither (1.3 GB to install). SELECT chooses some.
test-compilers: .venv/compilers
	PYTHONPATH="$(CURDIR)/.venv/compilers" $(BIN)/python -m pytest -m slow -k '$(SELECT)' \
	    tests/planning/test_compilers.py

# Full-size networks against the official programs' numbers, where they are at hand.
test-golden: .venv/installed-dev
	$(BIN)/python -m pytest -m golden

# What benchmarks/bounds.json bounds, on a machine that does nothing else. With PyTorch in
# .venv the ratio to it too (together 12 minutes), and with jax[tpu] what programs for TPUs need
# (an hour more).
benchmark-bounds: .venv/installed-dev
	$(BIN)/python benchmarks/check_bounds.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

# The site of the documentation, docs/_build/index.html.
docs: .venv/installed-docs
	$(BIN)/sphinx-build -E -a -W --keep-going -q docs docs/_build

# dist/: the wheel and the sources, as a package index takes them.
dist: .venv/installed-dist
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv .compiled

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and \
	    "error: Python is %d.%d; expected 3.11 or newer, as in: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# Beside the environment, so that JAX finds them only when asked to: libtpu as JAX wants it.
.venv/compilers: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ $$($(BIN)/python -c 'from \
	    importlib.metadata import requires, version; jax = version("jax"); print( \
	    *[each.split(";")[0] for each in requires("jax") if each.startswith("libtpu")], \
	    f"jax-cuda12-plugin=={jax}", f"jax-cuda12-pjrt=={jax}", "nvidia-cuda-nvcc-cu12")')
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

.venv/installed-dist: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dist]'
	@touch $@
