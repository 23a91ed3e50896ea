.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Most tests wait for something, a lease above all, so more of them than cores run at a time.
TESTS_AT_ONCE ?= 4
# PyPI's torch is built for CUDA. Where there is no NVIDIA driver, an index that has the CPU build
# (PyTorch's installation page names one) spares the download.
TORCH_INDEX_URL ?=
NVIDIA := $(wildcard /proc/driver/nvidia/version)
# pip takes `2.13.0+cpu` before `2.13.0`.
CPU_TORCH = $(if $(NVIDIA),,$(addprefix --extra-index-url ,$(TORCH_INDEX_URL)))
CUDA_NOTE := Gigabytes may be downloaded: torch built for CUDA, which this machine without an NVIDIA \
driver cannot use. TORCH_INDEX_URL names an index with the CPU build, to take that instead.

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(VENV)/.runtime ## make .venv with what the worker needs

.PHONY: run
run: $(VENV)/.runtime ## the main job: train an image generator on the digits that ship here
	@$(BIN)/python rp_handler.py

.PHONY: test
test: $(VENV)/.dev ## set up everything and run the tests
	@scripts/ceph-rgw.sh install || [ "$$CI" != true ]
	@scripts/chromium.sh install || [ "$$CI" != true ]
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile

.PHONY: soak
soak: $(VENV)/.dev ## 300 processes while workers die, freeze and stop (ARGS="--store ceph"); all deaths
	$(BIN)/python -m tests.soak $(ARGS)
	KILL_MATRIX=all $(BIN)/python -m pytest tests/test_kill_matrix.py

.PHONY: check
check: $(VENV)/.dev ## what CI runs: ruff, strict mypy, hadolint, the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd client && ../$(BIN)/mypy
	$(BIN)/hadolint Dockerfile examples/trainer_image/Dockerfile
	@$(MAKE) --no-print-directory test

.PHONY: bench
bench: $(VENV)/.bench ## measure it beside an empty handler and other S3 clients: a table, JSON, a chart
	@scripts/ceph-rgw.sh install
	$(BIN)/python -m bench $(ARGS)

.PHONY: bench-quick
bench-quick: ## the same with less of everything
	@$(MAKE) --no-print-directory bench ARGS="--quick $(ARGS)"

.PHONY: format
format: $(VENV)/.dev ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## remove .venv, caches and the embedded store in ./data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache data

# A stamp is written last, so that an interrupted install is done again.
$(VENV)/.runtime: requirements.txt requirements-worker.txt
	$(PYTHON) -m venv $(VENV)
	@$(if $(NVIDIA)$(TORCH_INDEX_URL),,echo "$(CUDA_NOTE)")
	$(BIN)/pip install --disable-pip-version-check $(CPU_TORCH) -r requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt client/pyproject.toml
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.bench: $(VENV)/.dev requirements-bench.txt
	$(BIN)/pip install --disable-pip-version-check -r requirements-bench.txt
	touch $@
