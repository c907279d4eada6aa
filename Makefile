# Everything runs in .venv; the first target that needs it makes it. `make` alone lists the targets.
PYTHON ?= python3
# cpu, cu128, … or auto: the CUDA build where there is a GPU driver, else the CPU build
TORCH_BACKEND ?= auto
# a folder with a PyTorch wheel, where one is at hand, wins over the download
TORCH_SOURCE := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend $(TORCH_BACKEND))

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
export NUMBA_CACHE_DIR ?= $(CURDIR)/.venv/numba_cache
export PYTHONHASHSEED := 0
unexport PYTHONHOME

SHELL := /bin/bash
.PHONY: help install export clean repro files update pin lab test controls proofs bench check lock readme
help:       ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

install: .venv/installed  ## make .venv and install the locked dependencies
.venv/installed: requirements.lock settings.ini pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "smc_ml needs Python 3.11 or newer; run make PYTHON=python3.11")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check "$$(grep -oE '^uv==[^ ]+' requirements.lock)"
	uv pip install --quiet --compile-bytecode $(TORCH_SOURCE) "$$(grep -oE 'torch==[^ ]+' settings.ini)"
	uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	uv pip install --quiet --no-deps -e .
	@touch $@

export: install  ## write smc_ml/ from the notebooks
	python tools/export.py

clean: install  ## strip outputs and stray metadata from the notebooks
	nbdev_clean

repro: export  ## run the whole pipeline; read reports/index.html
	python -m smc_ml.cli check params.yaml
	dvc repro
	@echo "The report is at $(CURDIR)/reports/index.html"

files: export  ## run it on your own candles: make files FILES="BTCUSDT=btc.parquet ETHUSDT=eth.parquet"
	@test -n "$(FILES)" || { echo 'say which: make files FILES="BTCUSDT=btc.parquet ETHUSDT=eth.parquet"'; exit 1; }
	python -m smc_ml.cli files params.yaml $(FILES)
	dvc repro
	@echo "The report is at $(CURDIR)/reports/index.html"

update: export  ## fetch what is new, then run what has changed
	dvc repro -f -s collect
	dvc repro

pin: install  ## commit the snapshot that the last run used
	git commit -m "Pin the candles $$(grep -oE 'md5: .{12}' data.dvc | cut -c6-)" -- data.dvc dvc.lock reports

lab: export  ## explore the notebooks
	jupyter lab nbs

test: install  ## every test but the long proofs, on two cores
	pytest -n 2 --dist loadfile --no-loadscope-reorder

controls: export  ## the long form of the controls: more markets, every model; hours, and it goes on where it was stopped
	python -m smc_ml.cli controls params.yaml

proofs: install  ## the long proofs: the controls with the whole ensemble
	pytest -m slow

bench: install  ## speed, side by side with the peers
	pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-columns=min,median,rounds --benchmark-group-by=group --benchmark-sort=name

check: install  ## notebooks are clean, modules equal notebooks, README is current
	tools/check.sh

readme: export  ## write README.md from nbs/index.ipynb
	python tools/readme.py

lock: install  ## resolve the dependencies anew into requirements.lock
	python tools/lock.py --upgrade
