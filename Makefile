# `make demo` runs the paper at the digits scale (into results/demo, beside the committed results/digits), `make test`
# the tests; both install what they need first.
PYTHON ?= python3
SCALE ?= demo
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin

.PHONY: install demo test bench notebooks docs lint lock clean

install: $(BIN)/installed

demo: $(BIN)/installed
	$(BIN)/python -m dearkd warm $(BIN)/snakemake --cores $(CORES) --config scale=$(SCALE) -- all report
	@cat results/$(SCALE)/savings.md 2>/dev/null || true
	@echo "Tables: results/$(SCALE)/tables   Figures: figures/$(SCALE)   Report: results/$(SCALE)/report.html"

test: $(BIN)/installed lint
	$(BIN)/python -m pytest

bench: $(BIN)/installed
	$(BIN)/python -m benchmarks

# Executes them on the committed records of `digits` and leaves the outputs in them.
notebooks: $(BIN)/installed
	$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	@echo "Open them with: $(BIN)/jupyter lab notebooks"

# Into site/, readable without a server; `.venv/bin/mkdocs serve` shows changes as they are made.
docs: $(BIN)/installed
	$(BIN)/mkdocs build --strict

lint: $(BIN)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

# A CPU build of torch is 4 GB smaller: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
$(BIN)/installed: requirements.lock
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed, this is ' + sys.version)"
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/pip install -q --index-url $(TORCH_INDEX) $$(grep -E '^torch(vision)?==' requirements.lock))
	$(BIN)/pip install -q -r requirements.lock
	touch $@

# Needs uv. CUDA packages are left out: torch itself asks for the right ones, or for none.
lock:
	uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate requirements.in \
		$(foreach p,triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
		nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
		nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx,--no-emit-package $(p)) \
		-o requirements.lock

# What `make demo` and the tests made; checkpoints and logs of other scales, which may be days of work, stay.
clean:
	rm -rf site $(foreach s,smoke demo,$(addsuffix /$(s),checkpoints logs results figures))
