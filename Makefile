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

INSTALL := uv pip install --quiet
COMPILED := $(INSTALL) --compile-bytecode
TOO_OLD := smc_ml needs Python 3.11 or newer; run make PYTHON=python3.11
NEEDED := import sys; sys.exit(0 if sys.version_info >= (3, 11) else "$(TOO_OLD)")
EXAMPLE := make files FILES="BTCUSDT=btc.parquet ETHUSDT=eth.parquet"
UNWRITABLE := $(CURDIR) cannot be written: it is read-only, or its disk is full; mend that and run again
NO_COLUMNS := Created|.*_(low|high)$$$$|artifacts|reports|nbs|smc_ml|.*\.(lock|yaml)$$$$
SNAPSHOT = $$(grep -oE 'md5: .{12}' data.dvc | cut -c6-)
BENCHMARKS := --benchmark-enable --benchmark-only --benchmark-sort=name --benchmark-group-by=group

SHELL := /bin/bash
.PHONY: help install hooks writable export clean repro files update experiments pin demo hero lab test coverage controls table proofs \
        mutants bench check readme lock docs
help:       ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

install: .venv/installed  ## make .venv and install the locked dependencies
.venv/installed: requirements.lock settings.ini pyproject.toml setup.py
	@$(PYTHON) -c '$(NEEDED)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check "$$(grep -oE '^uv==[^ ]+' requirements.lock)"
	$(COMPILED) $(TORCH_SOURCE) "$$(grep -oE 'torch==[^ ]+' settings.ini)"
	$(COMPILED) --no-deps --require-hashes -r requirements.lock
	$(INSTALL) --no-deps -e .
	@touch $@

hooks: install  ## git: clean and export before a commit, merge notebooks cell by cell
	git config merge.nbdev-merge.name "notebooks, cell by cell"
	git config merge.nbdev-merge.driver "nbdev_merge %O %A %B %P"
	pre-commit install

writable:
	@mkdir -p .dvc/tmp 2>/dev/null && head -c 1000000 /dev/zero 2>/dev/null > .dvc/tmp/room \
	  || { rm -f .dvc/tmp/room; echo '$(UNWRITABLE)' >&2; exit 1; }
	@rm -f .dvc/tmp/room

export: writable install  ## write smc_ml/ from the notebooks
	nbdev_export

clean: install  ## strip outputs and stray metadata from the notebooks
	nbdev_clean

repro: export  ## run the whole pipeline; read reports/index.html
	smc run

files: export  ## run it on your own candles: make files FILES="BTCUSDT=btc.parquet ETHUSDT=eth.parquet"
	@test -n "$(FILES)" || { echo 'say which: $(EXAMPLE)'; exit 1; }
	smc files $(FILES) --run

update: export  ## fetch what is new, then run what has changed
	smc run -f -s collect
	smc run

experiments: install  ## compare DVC's experiments: the headline's numbers and the settings that differ
	COLUMNS=120 dvc exp show --no-pager --only-changed --drop '$(NO_COLUMNS)'

pin: install  ## commit the snapshot that the last run used
	smc mend
	git commit -m "Pin the candles $(SNAPSHOT)" -- data.dvc dvc.lock headline.json reports

demo: install  ## an edge that was planted, and none, side by side: what a verdict means
	smc demo

lab: export  ## explore the notebooks
	python -m smc_ml.processor jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs

docs: export _docs/.venv/installed  ## the documentation, offline; open _docs/site/index.html
	python tools/docs.py

_docs/.venv/installed: tools/docs.lock | install
	test -x _docs/.venv/bin/python || uv venv --quiet --python .venv/bin/python _docs/.venv
	uv pip install --quiet --python _docs/.venv/bin/python --require-hashes -r tools/docs.lock
	@touch $@

test: install  ## every test but the long proofs, on two cores
	pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: install  ## which lines of smc_ml the notebooks' proofs and the tests run; htmlcov/index.html
	pytest -n 2 --dist loadfile --cov=smc_ml --cov-report=term --cov-report=html

controls: export  ## the long form of the controls: more markets, every model; hours, resumes where it stopped
	smc controls params.yaml

table: export  ## compare every model on the same trades and folds of the last run; resumes where it stopped
	smc table

proofs: install  ## the long proofs: the controls with the whole ensemble, fifty killed runs
	pytest -m slow

mutants: install  ## change the code on purpose and see which changes no test notices; hours, resumes
	python tools/mutants.py

bench: install  ## speed, side by side with the peers
	pytest tests/benchmarks $(BENCHMARKS) --benchmark-columns=min,median,rounds

check: install  ## notebooks clean, modules equal them, README current; style, floors and types
	ruff check
	ruff format --check nbs tests tools
	lint-imports
	mypy
	pytest -q tests/test_repository.py

hero: install  ## draw the picture at the head of README.md anew
	python tools/hero.py

readme: export  ## write README.md from nbs/index.ipynb, with its maps and numbers
	python tools/readme.py

lock: install  ## resolve the dependencies anew into requirements.lock
	python tools/lock.py --upgrade
