# make help lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
EXTRAS := train,build,serve,loadtest,bench,dev
PY_DIRS := kernels models training export server client loadtest benchmarks tools deploy/image
PY_FILES := build_models.py demo.py page.py
PAGE_VENV ?= .venv-page

# Empty counts as unset: without cached bytecode each of the many processes would spend seconds to compile PyTorch's sources.
export PYTHONDONTWRITEBYTECODE :=

# On a machine with a GPU and its own PyTorch: make gpu-check GPU_PYTHON=python3
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: setup native demo serve page test test-all test-oldest check bench bench-gpu gpu-check evidence constraints clean distclean \
  help same-python same-page-python

setup: $(VENV)/.ready ## create the environment .venv with the versions in constraints.txt
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS) tools/check_system.py | same-python
	@$(PYTHON) tools/check_system.py
	@echo "Setting up $(VENV) (PyTorch is a download of about 2.5 GB; 5 minutes on a 100 Mbit/s line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 13

# An environment that is there stays as it is: one of another Python than the one that was named is refused.
RELEASE := -c 'import sys; print(*sys.version_info[:2])'
same-python: of = $(VENV)
same-page-python: of = $(PAGE_VENV)
same-python same-page-python:
ifneq ($(origin PYTHON),file)
	@$(PYTHON) $(RELEASE) > /dev/null 2>&1 || \
	  { echo "widefield: there is no Python $(PYTHON): 3.10 to 3.14 are supported; name one: make PYTHON=python3.11" >&2; exit 1; }
	@test ! -x $(of)/bin/python || test "$$($(PYTHON) $(RELEASE))" = "$$($(of)/bin/python $(RELEASE))" || \
	  { echo "widefield: $(of) is of another Python than $(PYTHON): rm -r $(of)" >&2; exit 1; }
endif

native: setup ## build the native library and the server's backends
	@$(BIN)/python kernels/native/build.py
	@$(BIN)/python server/backends/build.py

demo: native ## set up, train, build, serve, classify
	@$(BIN)/python demo.py $(ARGS)

serve: native ## the same, but keep serving: ARGS="--http-port 9000" and other options of the server
	@$(BIN)/python demo.py --serve $(ARGS)

# Gradio wants an older Pillow than the server's: an environment of its own.
page: $(PAGE_VENV)/.ready ## run a web page to try a running server: ARGS="--url localhost:8001"
	@$(PAGE_VENV)/bin/python -m page $(ARGS)
$(PAGE_VENV)/.ready: pyproject.toml constraints-page.txt | same-page-python
	@test -x $(PAGE_VENV)/bin/python || $(PYTHON) -m venv $(PAGE_VENV)
	@$(PAGE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-page.txt -e '.[page]'
	@touch $@

# Three processes, a thread each, for two cores: the tests that meet a server mostly wait, the others compute.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3
# Apart, so that only the client's tests are traced: they are held to every line of client/. Both run if one fails.
run-tests = failed=0; $(PYTEST) -m "$(1)" --ignore=tests/client || failed=1; \
	$(PYTEST) -m "$(1)" --cov=client tests/client || failed=1; exit $$failed

test: native ## run the tests that need no GPU, without the slow ones
	$(call run-tests,not gpu and not slow)

test-all: native $(PAGE_VENV)/.ready ## run the slow ones too
	$(call run-tests,not gpu)

# With the oldest PyTorch and Triton that are supported; the native libraries are built for them, and anew afterwards.
OLDEST := torch==2.11.0 torchvision==0.26.0 triton==3.6.0
test-oldest: build/oldest.txt ## run the tests with the oldest PyTorch and Triton, in .venv-oldest
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=$<
build/oldest.txt: constraints.txt Makefile
	@mkdir -p build
	@grep -vE '^(cuda|nvidia-[^p]|setuptools|torch|triton=)' constraints.txt > $@
	@printf '%s\n' $(OLDEST) >> $@

check: setup ## check lint, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PY_DIRS) $(PY_FILES)
	$(BIN)/lint-imports

bench: native ## run the benchmarks on the CPU, and those of what serving adds
	$(BIN)/python -m benchmarks.kernels --device cpu
	$(BIN)/python -m benchmarks.kernels.cpu_gradients
	$(BIN)/python -m benchmarks.cpu_inference
	$(BIN)/python -m benchmarks.serving_overhead
	$(BIN)/python -m benchmarks.preprocess

bench-gpu: ## run the kernels' benchmark on a GPU
	$(GPU_PYTHON) -m benchmarks.kernels --device cuda

evidence: native ## measure what the training methods gain, for docs/results.md
	$(BIN)/python -m benchmarks.evidence
	$(BIN)/python -m benchmarks.evidence.report

gpu-check: ## run everything that needs a GPU, in eight minutes: GPU_PYTHON=python3
	$(GPU_PYTHON) -m benchmarks.gpu_check

comma := ,
COMPILE := UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.10 --no-header \
  --no-annotate --quiet
# The page's come without [tool.uv], whose numpy is nvidia-pytriton's.
constraints: setup ## resolve constraints.txt and constraints-page.txt again
	$(COMPILE) $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) -o constraints.txt
	$(COMPILE) --no-config --extra page -o constraints-page.txt

# runs/ holds trained checkpoints, data/ the images of the presets: distclean takes them too.
clean: ## remove what was built
	rm -rf build kernels/native/lib server/backends/*/lib *.egg-info
	rm -rf model_repository/*/[0-9]*/model.pt model_repository/*/[0-9]*/model.onnx model_repository/*/[0-9]*/build.json
	find model_repository -mindepth 2 -name '[0-9]*' -type d -empty -delete  # a build would count them as versions

distclean: clean ## also remove trained checkpoints and data
	rm -rf runs data
