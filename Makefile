# `make demo` trains seed 0 of Tables 1 and 2 into results/demo and compares it with the committed results/converged.
# `make demo TARGETS="all report"` trains seed 0 of everything. `make test` runs style checks and all tests, `make test-fast`
# the quick tests. Each target first installs what it needs.
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
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

# Without the tests that start a process, run the workflow or train: a minute.
test-fast: $(BIN)/dearkd
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile -m "not slow"

# Runs all tests and prints the lines of the package that no test reached. It is slower than `test`.
coverage: $(BIN)/dearkd
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --cov --cov-report=term-missing:skip-covered

bench: $(BIN)/dearkd
	$(BIN)/python -m benchmarks

# Executes the notebooks on the committed records of `digits` and saves their outputs in them.
notebooks: $(BIN)/dearkd
	$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	@echo "Open them with: $(BIN)/jupyter lab notebooks"

# Builds the site in site/, which needs no server. `.venv/bin/mkdocs serve` shows changes while you edit.
docs: $(BIN)/dearkd
	$(BIN)/mkdocs build --strict

lint: $(BIN)/dearkd
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/python tests/workflow/lint.py
	$(BIN)/mypy --no-error-summary

# On Linux without an NVIDIA GPU the CPU build of torch is installed if its index can be reached: 3 GB less to download.
# TORCH_INDEX=URL names another index; TORCH_INDEX=pypi is PyPI.
CPU_INDEX := https://download.pytorch.org/whl/cpu
GPU = $(shell { nvidia-smi -L || ls /dev/nvidia0; } 2>/dev/null)
REACHED = $(shell $(PYTHON) -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=10); print(1)" 2>/dev/null)
TORCH_INDEX ?= $(or $(if $(filter Linux,$(shell uname -s)),$(if $(GPU),,$(if $(REACHED),$(CPU_INDEX)))),pypi)

# Downloads are checked against the sha256 in the lock files. The CPU index has its own build of torch, of which only the
# version is checked. torch itself asks for its CUDA packages. If the installation is stopped, the same command resumes it.
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

# Installs the package in place: `import dearkd` and the command `dearkd` work from any folder.
$(BIN)/dearkd: $(BIN)/installed pyproject.toml
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# Needs uv. CUDA packages are left out, because torch itself asks for the right ones or for none.
LEFT_OUT = triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
	nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
COMPILE = uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --generate-hashes
lock:
	$(COMPILE) requirements.in $(foreach p,torch torchvision $(LEFT_OUT),--no-emit-package $(p)) -o requirements.lock
	grep '^torch' requirements.in | $(COMPILE) --no-deps - -o requirements-torch.lock

# Makes the archive with ro-crate-metadata.json, which says for each record what made it.
archive: $(BIN)/dearkd
	rm -rf build/archive && mkdir -p build/archive && git archive HEAD | tar -x -C build/archive
	cd build/archive && PYTHONPATH=. $(CURDIR)/$(BIN)/python -m dearkd crate && chmod 644 ro-crate-metadata.json
	git archive --prefix=dearkd-$$(git describe --always)/ --add-file=build/archive/ro-crate-metadata.json HEAD \
		| gzip -n9 > dearkd-$$(git describe --always).tar.gz
	sha256sum dearkd-$$(git describe --always).tar.gz

# Deletes what `make demo` and the tests made. Checkpoints and logs of other scales stay: they may be days of work.
clean:
	rm -rf site $(foreach s,smoke demo,$(addsuffix /$(s),checkpoints logs results figures))
