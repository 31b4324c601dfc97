# Idle OpenMP threads sleep instead of spinning: beside one busy process, spinning slows a run ten times over.
export OMP_WAIT_POLICY ?= PASSIVE

PYTHON ?= python3
BIN := .venv/bin
PROFILE ?= demo
READY := .venv/.ready
TABLES := table1 table2 table3 table4 table5 table6

.DEFAULT_GOAL := help
.NOTPARALLEL:  # tables share their encoders
.PHONY: help setup tables $(TABLES) cifar10 test lint bench verify certify clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with equibench in it (editable)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "equibench needs Python 3.11 or newer; name one with: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

tables: $(TABLES)  ## all six tables of the paper, one after the other: an hour in the demo profile, resumable

table1: $(READY)  ## Table 1, 3DIEBench (in the small profiles, data that equibench renders in its layout)
table2: $(READY)  ## Table 2: pretrain, score, print, write results/demo (PROFILE=tiny: in a minute)
table3: $(READY)  ## Table 3, CIFAR-10 with 80 % of the transformations unknown
table4: $(READY)  ## Table 4, CIFAR-10
table5: $(READY)  ## Table 5, linear transfer to seven data sets
table6: $(READY)  ## Table 6, ADE20K with mmsegmentation

$(TABLES):
	$(BIN)/equibench table $@ --profile $(PROFILE)

STUDY := results/cifar10
EQUIBENCH := $(BIN)/equibench
PROBED := rotation,color,blur,translation

cifar10: $(READY)  ## the study of results/cifar10 on a CPU: two and a half hours on 2 cores, resumable
	$(EQUIBENCH) table table4 --profile cifar10_cpu --out $(STUDY)/table4
	$(EQUIBENCH) table table2 --profile cifar10_cpu --out $(STUDY)/table2 \
		--rows sie_rot,sie_color,sie_blur,sie_trans,vicreg,sie_all,reconstruction
	$(EQUIBENCH) table table2 --profile cifar10_cpu --out $(STUDY)/three_seeds \
		--rows vicreg,sie_all,reconstruction --seeds 0,1,2
	$(EQUIBENCH) table table3 --profile cifar10_cpu --out $(STUDY)/table3
	$(EQUIBENCH) curve --profile cifar10_cpu --columns rotation,translation --out $(STUDY)/curve
	$(EQUIBENCH) table examples/ablations.csv --baseline examples/ablations.py --seeds 0,1 --out $(STUDY)/ablations
	for run in reconstruction/seed0 reconstruction/seed1 ours_class_token/seed0 ours_class_token/seed1; do \
		$(EQUIBENCH) score runs/demo/cifar10-headline/pretraining/$$run --pooling cls --no-controls --tasks $(PROBED) \
			--out $(STUDY)/class_token/$$(echo $$run | tr / _) || exit; \
	done
	$(EQUIBENCH) table table2 --rows vicreg,sie_all,reconstruction --variant paper_like --out $(STUDY)/black_corners
	$(BIN)/python -m equibench.report.reproduction $(STUDY) --runs runs

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## pretraining, scoring, rendering, linear probes against their floors (about 45 minutes)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/render.py
	$(BIN)/python benchmarks/logistic.py --tolerances 1e-4

verify: $(READY)  ## compute every score in results/ again from the stored predictions
	$(BIN)/equibench verify results

certify: $(READY)  ## measure again what each task's pixels hold and leak (about an hour)
	$(BIN)/equibench certify --again

clean:  ## remove work in progress and caches; results stay
	rm -rf runs results/*/*/partial build .pytest_cache .mypy_cache .ruff_cache *.egg-info
