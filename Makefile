# Two commands do all: `make demo` runs the main job, `make test` passes the tests. Both set up .venv when it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
# A worker a core, each with one thread: the models of the tests are small.
WORKERS := -n 2 --dist loadgroup
# A third of the rows, so that the demo ends within ten minutes on two cores that other processes use too.
DEMO ?= --training.per_device_train_batch_size 16 --data.max_train_samples 840 --data.max_eval_samples 280

.PHONY: demo test test-fast check docs install
install: $(VENV)/.installed

demo: install
	$(BIN)/peftkit compare recipes/lora_cls.py --quick $(DEMO)

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest $(WORKERS) $(PYTEST)

# For the inner loop: no several processes, no hosts, no browser.
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/pytest $(WORKERS) -m "not integration and not hosts and not browser" $(PYTEST)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site in docs/_build/html; a warning, such as a broken link, is an error.
docs: install
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

# With an NVIDIA GPU, or on macOS, torch is the registry's own build. On any other Linux it is the CPU build, which
# brings no CUDA packages: from the registry if it has one, else from PyTorch's own index.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v nvidia-smi >/dev/null || [ "$$(uname -s)" != Linux ]; then \
	  $(BIN)/pip install -c constraints.txt torch==$(TORCH); \
	else \
	  $(BIN)/pip install "torch==$(TORCH)+cpu" || \
	  $(BIN)/pip install --index-url https://download.pytorch.org/whl/cpu "torch==$(TORCH)+cpu"; \
	fi
	$(BIN)/pip install -c constraints.txt -e ".[demo,dev]"
	touch $@
