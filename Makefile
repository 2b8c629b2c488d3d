# For GNU make 3.81 (that of macOS) or newer. Each environment is made once, and updated when pyproject.toml or
# constraints.txt changes.
#
#   ARGS         more options for the command:  make quickstart ARGS="--max_train_steps 50"
#   PRECISION    of the quickstart: bf16 where the CPU computes with it, else no (float32)
#   OUTPUT       folder of the quickstart's model; default: outputs/quickstart
#   PYTHON       the interpreter for new environments; default: the first one with a supported version
#   TORCH_INDEX  address of a package index with another build of torch (CPU only, another CUDA)
#   VENV, TEST_VENV, DOCS_VENV  folders of the environments

VENV ?= .venv
TEST_VENV ?= .venv-test
DOCS_VENV ?= .venv-docs
OUTPUT = outputs/quickstart

# All versions in constraints.txt have wheels for these interpreters.
PYTHONS = python3 python3.14 python3.13 python3.12 python3.11 python3.10
FITS = import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))

PIP = -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# By default, accelerate gives each process one thread. More than eight threads make small networks slower.
THREADS = $$($(VENV)/bin/python -c 'import os; print(os.environ.get("OMP_NUM_THREADS") or min(8, os.cpu_count()))')

# Without such instructions bf16 is emulated, at a half to a tenth of the speed of float32.
PRECISION := $(shell grep -qsw avx512_bf16 /proc/cpuinfo && echo bf16 || echo no)

LAUNCH = $(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision $(PRECISION) \
	--dynamo_backend no --num_cpu_threads_per_process $(THREADS)

# Whether samples show the digits that were asked for. A --dry_run leaves no model.
JUDGEMENT = --metrics class_agreement --features mnist --num_samples 1000 --guidance_scale 1.5 --num_inference_steps 10

# Tests use no network and no accelerator. Each worker has one thread, so that workers do not share cores.
ALONE = HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 CUDA_VISIBLE_DEVICES= ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
WORKERS = --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# $(call interpreter,folder): an environment with nothing but pip.
define interpreter
@if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	fits=; \
	for python in $(or $(PYTHON),$(PYTHONS)); do \
		if "$$python" -c '$(FITS)' 2>/dev/null; then fits="$$python"; break; fi; \
	done; \
	if [ -z "$$fits" ]; then \
		echo "No Python 3.10 to 3.14 that has its venv module (tried $(or $(PYTHON),$(PYTHONS)))." >&2; \
		echo "Install one (Debian, Ubuntu: python3-venv), or give one: make PYTHON=... $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi; \
	echo "Making $(1) with $$("$$fits" --version)"; \
	"$$fits" -m venv --clear $(1); \
fi
endef

# $(call environment,folder,what pip installs of this checkout). torch is installed first and alone, so that no other
# package chooses its build. An older pip can't install a checkout.
define environment
$(call interpreter,$(1))
@echo "Installing into $(1): once, a few minutes"
@$(1)/bin/python $(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch 'pip>=22.3'
@$(1)/bin/python $(PIP) --editable '$(2)'
@touch $@
endef

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: quickstart
quickstart: $(VENV)/.installed ## train a model of handwritten digits, draw samples, measure them: outputs/quickstart/
	$(if $(findstring --output_dir,$(ARGS)),$(error Give the folder as make quickstart OUTPUT=..., not as --output_dir))
	@$(LAUNCH) training/train_diffusion.py --config quickstart --output_dir '$(OUTPUT)' $(ARGS)
	@test ! -f '$(OUTPUT)/model_index.json' || $(VENV)/bin/hfgen evaluate '$(OUTPUT)' $(JUDGEMENT)
	@echo "hfgen and python with all it needs are in $(VENV); to have them in this shell: . $(VENV)/bin/activate"

.PHONY: test
test: $(TEST_VENV)/.installed ## run the tests
	@$(ALONE) $(TEST_VENV)/bin/python -m pytest $(WORKERS) $(ARGS)

# Without torch: mkdocs reads the sources, and imports the list of public names alone.
.PHONY: docs
docs: $(DOCS_VENV)/.installed ## build the documentation, warnings are errors: build/docs/index.html
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --quiet

.PHONY: lint
lint: $(TEST_VENV)/.installed ## check style and format
	@$(TEST_VENV)/bin/ruff check --quiet . && $(TEST_VENV)/bin/ruff format --check .

.PHONY: clean
clean: ## remove environments, builds and caches; outputs/ stays
	@rm -rf $(VENV) $(TEST_VENV) $(DOCS_VENV) build dist hfgen.egg-info .pytest_cache .ruff_cache
	@find hfgen pipelines training tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call environment,$(VENV),.)

$(TEST_VENV)/.installed: pyproject.toml constraints.txt
	$(call environment,$(TEST_VENV),.[test])

$(DOCS_VENV)/.installed: pyproject.toml constraints.txt
	$(call interpreter,$(DOCS_VENV))
	@echo "Installing the tools of the documentation into $(DOCS_VENV)"
	@$(DOCS_VENV)/bin/python $(PIP) 'pip>=22.3' mkdocs-material mkdocstrings-python
	@touch $@
