# The two commands are `make test` (what does this kernel do?) and `make check` (is the harness sound?).
# Each does its own set-up; the second start finds it done.
#
# make turns every failure into its own exit code 2.  For the real one (1: a fault of the kernel,
# 125: could not be tested, 2: wrong usage) call .venv/bin/nvh test.

VENV ?= .venv
# What `nvh test` is given: make test ARGS="-k V3 --kernel ~/linux"
ARGS ?=
# What `make nightly` runs on
KERNELS ?= debian:6.1 debian:6.12 debian:sid

bin := $(VENV)/bin
export VENV

.DEFAULT_GOAL := test
.PHONY: help setup workloads test nightly check lint unit guest bench soak reliability mutants session clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## host packages and the virtual environment; does nothing when done
	@harness/setup.sh

workloads: setup ## build the programs that run in the guest
	@$(MAKE) --no-print-directory -s -C testcases/workloads

test: workloads ## boot a guest and judge the kernel: make test ARGS="-k V3 --kernel PATH"
	@$(bin)/nvh test $(ARGS)

nightly: workloads ## the whole catalogue on many kernels: make nightly KERNELS="debian:6.1 ~/linux"
	@$(bin)/nvh matrix $(KERNELS:%=--kernel %) $(ARGS)

check: lint unit guest ## all checks of the harness itself

lint: setup ## ruff and mypy --strict
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

unit: setup ## the harness's own tests that need no guest
	$(bin)/python -m pytest tests -q -m "not guest" -n 2

guest: workloads ## the harness's own tests that boot guests
	$(bin)/python -m pytest tests -q -m guest -n 2 --dist worksteal

bench: workloads ## measure the harness; medians go to results/bench.json
	$(bin)/python -m benchmarks

soak: workloads ## run the whole catalogue 20 times and name each verdict that differs
	@$(bin)/python -m benchmarks.soak $(ARGS)

reliability: workloads ## play every fault once; docs/reliability.md tells verdicts and seconds
	@$(bin)/python -m benchmarks.reliability $(ARGS)

mutants: workloads ## put faults into a kernel and see each found: make mutants ARGS="-k V3"
	@$(bin)/python -m benchmarks.mutants $(ARGS)

session: workloads ## record the terminal session that the README shows
	@$(bin)/python -m docs.session

clean: ## remove what was built here; results and the user's image cache stay
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
	@$(MAKE) --no-print-directory -s -C testcases/workloads clean
