# Each target sets up what it needs in .venv. `make demo` is the whole study on synthetic patients; `make test` the tests.
# A computer without a graphics card saves gigabytes with: make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/.ready

.PHONY: docs demo test report lab bench bench-gpu bench-sts ablations lint clean

demo: $(READY)
	$(BIN)/mtv phantom --patients 60 --external 12 --out cohorts/demo --seed 2023
	$(BIN)/mtv run params/demo.yml
	$(BIN)/mtv report studies/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

report: $(READY)
	$(BIN)/mtv report studies/demo

# The reading room; JupyterLab's question for news is switched off, since it would ask a server in the internet.
# The demo's report for readers who run nothing, and the README's picture; after `make demo`.
docs: $(READY)
	$(BIN)/python docs/build.py studies/demo

lab: $(READY)
	$(BIN)/jupyter labextension disable @jupyterlab/apputils-extension:announcements
	$(BIN)/jupyter lab notebooks/explore.ipynb

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mtvlib
	$(BIN)/nbstripout --verify notebooks/*.ipynb

# Side by side with peers, which get an environment of their own; about two hours. Close other programs before.
bench: $(READY) $(PEERS)
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.import_dicom
	$(BIN)/python -m benchmarks.lesions
	$(BIN)/python -m benchmarks.evaluate --large
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.viewer
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.rehearsal
	$(BIN)/python -m benchmarks.training --quick
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.prepare

# The same on a computer with a graphics card: what only it can show.
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.training --device cuda
	$(BIN)/python -m benchmarks.inference --device cuda
	$(BIN)/python -m benchmarks.rehearsal --full --epochs 5

# Real images (../shared/data/sts) through both of our protocols and nnU-Net; about 35 minutes on two idle cores, resumed after a kill.
bench-sts: $(READY) $(PEERS)
	$(BIN)/python -m benchmarks.sts --minutes 9

# What each part of the improved training brings, on synthetic patients; about 40 minutes on two idle cores.
ablations: $(READY)
	$(BIN)/python -m benchmarks.ablations

$(PEERS): benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q $(PIP_FLAGS) -r benchmarks/peers.txt
	@touch $@

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints.txt pip torch
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints.txt -e '.[lab,cluster,test,lint]'
	@touch $@

clean:
	rm -rf .venv .venv-peers
