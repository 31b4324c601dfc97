# Idle OpenMP threads sleep instead of spinning: beside one busy process, spinning slows a run ten times over.
export OMP_WAIT_POLICY ?= PASSIVE

PYTHON ?= python3
BIN := .venv/bin
PROFILE ?= demo
TABLES := table1 table2 table3 table4 table5 table6
P2_TABLES := p2_table1 p2_table4 p2_table5 p2_table9
# what is installed, a stamp each: the package; the package with the segmentation stack; with the tools for development
USE := .venv/.use
SEG := .venv/.seg
DEV := .venv/.dev

.DEFAULT_GOAL := help
.NOTPARALLEL:  # tables share their encoders
.PHONY: help setup tables $(TABLES) p2_tables $(P2_TABLES) p2_figures study test lint bench verify certify clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9_]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV)  ## make .venv with equibench and the tools for development in it (editable)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "equibench needs Python 3.11 or newer; name one with: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

$(USE): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(SEG): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[seg]"
	@touch $@ $(USE)

$(DEV): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(SEG) $(USE)

tables: $(TABLES)  ## all six tables of the paper, one after the other: an hour in the demo profile, resumable

table1: $(USE)  ## Table 1, 3DIEBench (in the small profiles, objects that equibench renders in its layout)
table2: $(USE)  ## Table 2: pretrain, score, print, write results/demo (PROFILE=tiny: in a minute or two)
table3: $(USE)  ## Table 3, CIFAR-10 with 80 % of the transformations unknown
table4: $(USE)  ## Table 4, CIFAR-10
table5: $(USE)  ## Table 5, linear transfer to seven data sets
table6: $(SEG)  ## Table 6, ADE20K with mmsegmentation (installs the extra "seg")

p2_tables: $(P2_TABLES)  ## tables of the second paper: several hours in the demo profile, resumable

p2_table1: $(USE)  ## P2 Table 1, intermediate reconstruction on VICReg
p2_table4: $(USE)  ## P2 Table 4, intermediate reconstruction on SimCLR, iBOT and DINOv2
p2_table5: $(USE)  ## P2 Table 5, linear transfer
p2_table9: $(USE)  ## P2 Table 9, how many images are redrawn

$(TABLES) $(P2_TABLES):
	$(BIN)/equibench table $@ --profile $(PROFILE)

p2_figures: $(DEV)  ## P2's figures in results/figures, from results/demo/table2 and table5 and the published points
	$(BIN)/equibench figures $(wildcard results/$(PROFILE)/table2 results/$(PROFILE)/table5)

study: $(DEV)  ## the study of results/cifar10 on a CPU: two and a half hours on 2 cores, resumable
	$(BIN)/equibench study results/cifar10/study.toml
	$(BIN)/python results/cifar10/page.py --runs runs

test: $(DEV)  ## run the tests
	$(BIN)/python -m pytest

lint: $(DEV)  ## ruff, mypy, and the direction of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEV)  ## pretraining, scoring, rendering, linear probes against their floors (about 45 minutes)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/render.py
	$(BIN)/python benchmarks/logistic.py --tolerances 1e-4

verify: $(USE)  ## compute every score in results/ again from the stored predictions
	$(BIN)/equibench verify results

certify: $(USE)  ## measure again what each task's pixels hold and leak (about an hour)
	$(BIN)/equibench certify --again

clean:  ## remove work in progress and caches; results stay
	rm -rf runs results/*/*/partial build .pytest_cache .mypy_cache .ruff_cache *.egg-info
