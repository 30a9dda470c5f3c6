# `make demo` trains seed 0 of Tables 1 and 2 (into results/demo) and compares it with the committed results/converged;
# `make demo TARGETS="all report"` trains seed 0 of everything. `make test` runs style and tests, `make test-fast` the quick ones.
# All install what they need.
PYTHON ?= python3
SCALE ?= demo
TARGETS ?= table1 table2 figure1 figure2 figure3 figure4 figure5 savings
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin

.PHONY: install demo test test-fast coverage bench notebooks docs lint lock archive clean

install: $(BIN)/dearkd

demo: $(BIN)/dearkd
	@$(BIN)/python -m dearkd warm $(BIN)/snakemake --logger dearkd --cores $(CORES) --prioritize table1 --config scale=$(SCALE) -- $(TARGETS)
	@$(BIN)/python -m dearkd compare --scale $(SCALE) --to converged
	@echo "Tables: results/$(SCALE)/tables   Figures: figures/$(SCALE)   This comparison: results/$(SCALE)/comparison.md"

test: $(BIN)/dearkd lint
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile

# Without those that start a process, run the workflow or train: under a minute.
test-fast: $(BIN)/dearkd
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile -m "not slow"

# All tests, then the lines of the package that none of them reached. Apart from `test`, which it would slow.
coverage: $(BIN)/dearkd
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --cov --cov-report=term-missing:skip-covered

bench: $(BIN)/dearkd
	$(BIN)/python -m benchmarks

# Executes them on the committed records of `digits` and leaves the outputs in them.
notebooks: $(BIN)/dearkd
	$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	@echo "Open them with: $(BIN)/jupyter lab notebooks"

# Into site/, readable without a server; `.venv/bin/mkdocs serve` shows changes as they are made.
docs: $(BIN)/dearkd
	$(BIN)/mkdocs build --strict

lint: $(BIN)/dearkd
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/python tests/workflow/lint.py
	$(BIN)/mypy --no-error-summary

# On Linux without an NVIDIA GPU: the CPU's build of torch, 3 GB less to download, if its index can be reached.
# TORCH_INDEX=URL takes another index, TORCH_INDEX=pypi what PyPI has.
CPU_INDEX := https://download.pytorch.org/whl/cpu
GPU = $(shell { nvidia-smi -L || ls /dev/nvidia0; } 2>/dev/null)
REACHED = $(shell $(PYTHON) -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=10); print(1)" 2>/dev/null)
TORCH_INDEX ?= $(or $(if $(filter Linux,$(shell uname -s)),$(if $(GPU),,$(if $(REACHED),$(CPU_INDEX)))),pypi)

# What is downloaded is checked against the sha256 in the lock files. A CPU index builds its own torch: its version alone is
# fixed. CUDA's packages are those that torch asks for. Stopped at any moment, the same call resumes.
TORCH = $$(grep -oE '^torch(vision)?==[^ ;]+' requirements-torch.lock)
PIP = PIP_RESUME_RETRIES=20 $(BIN)/pip install
$(BIN)/installed: requirements.lock requirements-torch.lock
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed, this is ' + sys.version)"
	@$(PYTHON) -m venv .venv
	$(eval INDEX := $(TORCH_INDEX))
	@echo "Installing into .venv: torch from $(INDEX), $(if $(filter $(CPU_INDEX),$(INDEX)),for the CPU: about 0.2 GB,with CUDA on Linux: about 3 GB)"
	@$(if $(filter pypi,$(INDEX)),$(PIP) --no-deps --require-hashes -r requirements-torch.lock && )\
		$(PIP) $(if $(filter-out pypi,$(INDEX)),--index-url $(INDEX)) $(TORCH)
	@echo "Installing into .venv: all other packages of requirements.lock, about 0.5 GB"
	@$(PIP) -q --no-deps --require-hashes -r requirements.lock
	@touch $@

# The package itself, read from here: `import dearkd` and the command `dearkd` work from any folder.
$(BIN)/dearkd: $(BIN)/installed pyproject.toml
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# Needs uv. CUDA packages are left out: torch itself asks for the right ones, or for none.
LEFT_OUT = triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
	nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
COMPILE = uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --generate-hashes
lock:
	$(COMPILE) requirements.in $(foreach p,torch torchvision $(LEFT_OUT),--no-emit-package $(p)) -o requirements.lock
	grep '^torch' requirements.in | $(COMPILE) --no-deps - -o requirements-torch.lock

# With ro-crate-metadata.json, which says of each record what made it.
archive: $(BIN)/dearkd
	rm -rf build/archive && mkdir -p build/archive && git archive HEAD | tar -x -C build/archive
	cd build/archive && PYTHONPATH=. $(CURDIR)/$(BIN)/python -m dearkd crate && chmod 644 ro-crate-metadata.json
	git archive --prefix=dearkd-$$(git describe --always)/ --add-file=build/archive/ro-crate-metadata.json HEAD \
		| gzip -n9 > dearkd-$$(git describe --always).tar.gz
	sha256sum dearkd-$$(git describe --always).tar.gz

# What `make demo` and the tests made; checkpoints and logs of other scales, which may be days of work, stay.
clean:
	rm -rf site $(foreach s,smoke demo,$(addsuffix /$(s),checkpoints logs results figures))
