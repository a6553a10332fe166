# `make book` and `make test` are all a newcomer needs; both set up .venv first if it is missing or out of date.
PYTHON ?= python3
PROFILE ?= laptop
# runs at a time; empty = as many as there are processors and memory for
JOBS ?=
# e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu for the small CPU-only wheels on Linux
TORCH_INDEX ?=

# where it is set, as in many containers, each of many processes would compile all of PyTorch again
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

# further options for the tests, e.g. PYTEST="tests/phantoms -x", or PYTEST="-m ''" for the slow ones too
PYTEST ?=

# folder of the public .npz files that the shipped weights are trained on
REAL ?= data

.PHONY: book test slurm-test lab lint weights clean
.DEFAULT_GOAL := book

book: $(STAMP)
	@$(BIN)/medsynth reproduce --profile $(PROFILE) $(if $(JOBS),-j $(JOBS))

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow" $(PYTEST)

# the smallest book as jobs of a Slurm cluster of this one machine; needs Debian's munge and slurm-wlm and
# the extra slurm, no root; whatever is missing is named
slurm-test: $(STAMP)
	tests/slurm/one_node.sh sh -c 'rm -rf build/smoke book/_build && exec $(BIN)/medsynth reproduce --profile smoke --cluster slurm'
	test -f book/_build/html/index.html

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check medsynth tests

# the weights that ship with the package, again from public data: hours, in this order because each builds on the one before;
# what they are worth then says `medsynth reproduce --profile full --only weights --data real=$(REAL)`
weights: $(STAMP)
	set -e; for what in autoencoder refiner denoiser_phantom denoiser_real denoiser_heart extractor words_phantom encoder encoder_3d segmenter; do \
		$(BIN)/python -m medsynth.pretrain $$what --real $(REAL); done
	$(BIN)/python -m medsynth.pretrain.feature_error
	$(BIN)/python -m medsynth.pretrain.thresholds --real $(REAL)

# results and the book; trained models stay in the cache
clean:
	rm -rf build book/_build

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "error: $(PYTHON) is Python " + sys.version.split()[0] + "; medsynth needs 3.11 to 3.13, e.g. make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@# torch first and alone: whichever build is chosen here, nothing later replaces it. What is never imported is never compiled.
	$(BIN)/python -m pip install --no-compile $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --no-compile -c requirements.lock -e '.[dev]'
	@touch $@
