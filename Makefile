# `make demo` runs the paper at the digits scale (into results/demo, beside the committed results/digits), `make test`
# the tests; both install what they need first.
PYTHON ?= python3
SCALE ?= demo
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin

.PHONY: install demo test bench notebooks docs lint lock archive clean

install: $(BIN)/dearkd

demo: $(BIN)/dearkd
	@$(BIN)/python -m dearkd warm $(BIN)/snakemake --logger dearkd --cores $(CORES) --config scale=$(SCALE) -- all report
	@cat results/$(SCALE)/savings.md 2>/dev/null || true
	@echo "Tables: results/$(SCALE)/tables   Figures: figures/$(SCALE)   Report: results/$(SCALE)/report.html"

test: $(BIN)/dearkd lint
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile

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

# On Linux without an NVIDIA GPU: the CPU's build of torch, 3 GB less to download, if its index can be reached.
# TORCH_INDEX=URL takes another index, TORCH_INDEX=pypi what PyPI has.
CPU_INDEX := https://download.pytorch.org/whl/cpu
GPU = $(shell { nvidia-smi -L || ls /dev/nvidia0; } 2>/dev/null)
REACHED = $(shell $(PYTHON) -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=10); print(1)" 2>/dev/null)
TORCH_INDEX ?= $(or $(if $(filter Linux,$(shell uname -s)),$(if $(GPU),,$(if $(REACHED),$(CPU_INDEX)))),pypi)

# Stopped at any moment, it is started again by the same call: pip keeps what it has downloaded and installed.
$(BIN)/installed: requirements.lock
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed, this is ' + sys.version)"
	@$(PYTHON) -m venv .venv
	$(eval INDEX := $(TORCH_INDEX))
	@echo "Installing into .venv: torch from $(INDEX), $(if $(filter $(CPU_INDEX),$(INDEX)),for the CPU: about 0.2 GB,with CUDA on Linux: about 3 GB)"
	@PIP_RESUME_RETRIES=20 $(BIN)/pip install $(if $(filter-out pypi,$(INDEX)),--index-url $(INDEX)) \
		$$(grep -oE '^torch(vision)?==[^ ;]+' requirements.lock)
	@echo "Installing into .venv: all other packages of requirements.lock, about 0.5 GB"
	@PIP_RESUME_RETRIES=20 $(BIN)/pip install -q -r requirements.lock
	@touch $@

# The package itself, read from here: `import dearkd` and the command `dearkd` work from any folder.
$(BIN)/dearkd: $(BIN)/installed pyproject.toml
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# Needs uv. CUDA packages are left out: torch itself asks for the right ones, or for none.
lock:
	uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate requirements.in \
		$(foreach p,triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
		nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
		nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx,--no-emit-package $(p)) \
		-o requirements.lock

# The tracked files of the last commit, byte for byte the same on any machine, for an archive that gives a DOI.
archive:
	git archive --prefix=dearkd-$$(git describe --always)/ HEAD | gzip -n9 > dearkd-$$(git describe --always).tar.gz
	sha256sum dearkd-$$(git describe --always).tar.gz

# What `make demo` and the tests made; checkpoints and logs of other scales, which may be days of work, stay.
clean:
	rm -rf site $(foreach s,smoke demo,$(addsuffix /$(s),checkpoints logs results figures))
