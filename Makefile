# make demo: set up, train, build, serve, classify.   make test: every test that needs no GPU.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := train,build,serve,loadtest,bench,dev
PY_DIRS := kernels models training export server client loadtest benchmarks tools
PY_FILES := build_models.py demo.py

# On a machine with a GPU and its own PyTorch: make gpu-check GPU_PYTHON=python3
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: setup native demo serve test test-all check bench bench-gpu gpu-check evidence constraints clean

setup: .venv/.ready
.venv/.ready: pyproject.toml constraints.txt tools/check_system.py
	@$(PYTHON) tools/check_system.py
	@echo "Setting up .venv (PyTorch is a download of about 2.5 GB; 5 minutes on a 100 Mbit/s line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

native: setup
	@$(BIN)/python kernels/native/build.py
	@$(BIN)/python server/backends/pytorch/build.py

demo: native
	@$(BIN)/python demo.py

serve: native
	@$(BIN)/python demo.py --serve

test: native
	$(BIN)/python -m pytest -m "not gpu and not slow"

test-all: native
	$(BIN)/python -m pytest -m "not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PY_DIRS) $(PY_FILES)
	$(BIN)/lint-imports

bench: native
	$(BIN)/python -m benchmarks.kernels --device cpu
	$(BIN)/python -m benchmarks.cpu_inference
	$(BIN)/python -m benchmarks.serving_overhead
	$(BIN)/python -m benchmarks.masked_patch_loss

bench-gpu:
	$(GPU_PYTHON) -m benchmarks.kernels --device cuda

evidence: native
	$(BIN)/python -m benchmarks.evidence
	$(BIN)/python -m benchmarks.evidence.report

gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check

constraints: setup
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --universal --python-version 3.10 --all-extras --no-header \
	  --no-annotate --quiet pyproject.toml -o constraints.txt

clean:
	rm -rf runs data build kernels/native/lib server/backends/pytorch/lib *.egg-info
	rm -rf model_repository/*/[0-9]*/model.pt model_repository/*/[0-9]*/model.onnx model_repository/*/[0-9]*/build.json
