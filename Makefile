# `make` lists the targets. The virtual environment .venv is made on first use, from constraints.txt, and again only when
# pyproject.toml or constraints.txt changes. pip's own settings (PIP_INDEX_URL, pip.conf, ...) apply as usual.
#
#   PYTHON=/path/to/python3.12   the interpreter for .venv (default: the first of python3, python3.13, python3.12,
#                                python3.11 that is 3.11 or newer)
#   PYTEST_ARGS='-k fold -x'     more arguments for pytest
#   TEST_WORKERS=1               processes that share `make test` (default: one per core)
#   SLOW_WORKERS=1               processes that share `make test-slow` (default: 2)
#   DEV_SECONDS=60               how long `make test-dev` watches (default: 300)
#   SOAK_SECONDS=60 SOAK_SEED=1  for how long `make test-soak` kills runs (default: 600), and which
#   STORIES=20000                how many stories `make test-nightly` tells: of ten, six are of streams, three of
#                                Kinesis, one of exports
#   TRANSPORT=firehose           the transport of `make demo` and `make dev`: dynamodb_streams (the default), kinesis,
#                                kinesis_channel, firehose
#   ENGINE=spark                 `make demo` on a Spark cluster of this machine; wants Java 17, installs 450 MB once
#   DEMO_ARGS=...                more arguments for `cdc-pipeline demo`, such as '--orders 2000 --changes 500'
#   BENCH_ARGS='fold lookups'    the benchmarks that `make bench` runs (default: all of them)
#   LATENCY_ARGS='--probes 20'   arguments for `make latency`
#   SERVED_ARGS='--tables 10'    arguments for `make latency-served`
#   LOCK_ARGS=--upgrade          let `make lock` move every version, not just what pyproject.toml forces

SHELL := /bin/sh
.SUFFIXES:
.DEFAULT_GOAL := help

PYTHON ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= auto
SLOW_WORKERS ?= 2
SHARED := --dist loadfile --no-loadscope-reorder
DEV_SECONDS ?= 300
SOAK_SECONDS ?= 600
SOAK_SEED ?= 0
STORIES ?= 20000
TRANSPORT ?= dynamodb_streams
ENGINE ?= local
DEMO_ARGS ?=
LOCK_ARGS ?=
LATENCY_ARGS ?=
SERVED_ARGS ?=
BENCH_ARGS ?=
CHROMIUM ?= chromium
CHROMEDRIVER ?= chromedriver

UV_VERSION := 0.13.8
BIN := .venv/bin
STAMP := .venv/.installed

# ---------------------------------------------------------------------------------------------------- environment

# The stamp is written last and names the folder and the interpreter that it was made with. An interrupted install, a
# moved checkout, a removed interpreter, another PYTHON=: each means that .venv is made anew from nothing.
VENV_GOOD = $(BIN)/python -c '' 2>/dev/null && case "$$(cat $(STAMP) 2>/dev/null)" in \
	"$$(pwd -P) with "$(if $(PYTHON),'$(PYTHON)',*)) ;; *) false ;; esac

# Answers "ok PATH", or "no MESSAGE" for the first thing missing.
define FIND_PYTHON
wanted='$(PYTHON)'; seen=; \
if [ -n "$$wanted" ]; then set -- "$$wanted"; else set -- python3 python3.13 python3.12 python3.11; fi; \
for candidate; do \
	version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	seen="$$seen $$candidate is $$version,"; \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	if "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; then echo "ok $$candidate"; exit; fi; \
	bare="$${bare:-$$candidate $$version}"; \
done; \
if [ -n "$$bare" ]; then \
	echo "no $${bare% *} ($${bare##* }) has no venv or ensurepip module: apt install python3-venv (or python$${bare##* }-venv), or name another interpreter with PYTHON=/path/to/python3"; \
else \
	echo "no Python 3.11 or newer is needed, and$${seen:- there is no $${wanted:-python3},} so: apt install python3.11 python3.11-venv, or name another interpreter with PYTHON=/path/to/python3"; \
fi
endef

# Sets BASE_PYTHON, or stops with one line.
NEED_PYTHON = $(eval FOUND := $(shell $(FIND_PYTHON)))$(if $(filter ok,$(firstword $(FOUND))),,$(error \
	$(wordlist 2,99,$(FOUND))))$(eval BASE_PYTHON := $(wordlist 2,99,$(FOUND)))

$(STAMP): pyproject.toml constraints.txt $(shell $(VENV_GOOD) || echo FORCE)
	$(NEED_PYTHON)
	@if $(VENV_GOOD); then \
		echo 'Updating .venv: pyproject.toml or constraints.txt changed.'; \
		sed 's/.* with //' $(STAMP) >.venv/.python; rm -f $(STAMP); \
	else \
		echo 'Making .venv with $(BASE_PYTHON): a minute or two, once.'; \
		rm -rf .venv; \
		'$(BASE_PYTHON)' -m venv .venv && echo '$(BASE_PYTHON)' >.venv/.python; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		-c constraints.txt -e '.[sandbox,dev]'
	@broken=$$($(BIN)/python -m pip check --disable-pip-version-check) || { echo "$$broken"; exit 1; }
	@echo "$$(pwd -P) with $$(cat .venv/.python)" >$(STAMP).new && mv $(STAMP).new $(STAMP)

# Spark is large, so it comes into .venv only where it is asked for.
NEED_SPARK = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
	-c constraints.txt -e '.[spark]'

.PHONY: FORCE
FORCE:

.PHONY: venv
venv: $(STAMP) ## Make .venv, or bring it up to date

# ---------------------------------------------------------------------------------------------------- use

.PHONY: demo
demo: $(STAMP) ## A local AWS, tables, their lake and queries, end to end (TRANSPORT=..., ENGINE=spark, DEMO_ARGS=...)
	@$(if $(filter spark,$(ENGINE)),$(NEED_SPARK))
	@$(BIN)/cdc-pipeline demo --transport '$(TRANSPORT)' --engine '$(ENGINE)' $(DEMO_ARGS)

.PHONY: dev
dev: $(STAMP) ## Dagster's web interface and daemon on this checkout
	@$(BIN)/cdc-pipeline dev --transport '$(TRANSPORT)'

# Standard library only: any Python 3.11 does, .venv is not needed.
.PHONY: lambda
lambda: ## Pack the Lambda function for Firehose: build/firehose_lambda.zip
	$(NEED_PYTHON)
	@'$(BASE_PYTHON)' -m infra.build_lambda build/firehose_lambda.zip

# ---------------------------------------------------------------------------------------------------- check

.PHONY: test
test: $(STAMP) ## The fast tests (PYTEST_ARGS=...)
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) $(SHARED) -m 'not ui and not slow and not dev and not soak and not contract and not spark and not trino and not catalogs' \
		$(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(STAMP) ## The tests that start servers or take minutes
	@$(BIN)/python -m pytest -n $(SLOW_WORKERS) $(SHARED) -m 'slow and not ui and not contract and not spark and not trino and not catalogs' \
		$(PYTEST_ARGS)

.PHONY: test-dev
test-dev: $(STAMP) ## `make dev` left to itself for five minutes: no failed tick, no red run (DEV_SECONDS=300)
	@CDC_PIPELINE_DEV_SECONDS='$(DEV_SECONDS)' $(BIN)/python -m pytest -m dev $(PYTEST_ARGS)

.PHONY: test-soak
test-soak: $(STAMP) ## A daemon whose runs are killed every few seconds, for ten minutes (SOAK_SECONDS=600, SOAK_SEED=0)
	@CDC_PIPELINE_SOAK_SECONDS='$(SOAK_SECONDS)' CDC_PIPELINE_SOAK_SEED='$(SOAK_SEED)' \
		$(BIN)/python -m pytest -m soak -s $(PYTEST_ARGS)

.PHONY: test-nightly
test-nightly: $(STAMP) ## Thousands of new random stories; takes hours: STORIES=20000
	@CDC_PIPELINE_STORIES='$(STORIES)' $(BIN)/python -m pytest -n $(SLOW_WORKERS) $(SHARED) -m slow --timeout=0 \
		cdc_pipeline_tests/capture/shards/test_stories.py \
		cdc_pipeline_tests/capture/shards/test_kinesis_stories.py \
		cdc_pipeline_tests/e2e/test_exports_property.py \
		cdc_pipeline_tests/e2e/test_unfinished.py $(PYTEST_ARGS)

# The others are installed by the first run: dynoxide is compiled, once per machine, in two minutes of one core.
.PHONY: test-contract
test-contract: $(STAMP) ## Our local AWS and three others by one set of rules; wants cargo and npm
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		-c constraints.txt -e '.[contract]'
	@$(BIN)/python -m cdc_pipeline_tests.contract.servers
	@$(BIN)/python -m pytest -m contract cdc_pipeline_tests/contract $(PYTEST_ARGS)

# Spark is large, so it comes into .venv with the first run of this, and only where it can run.
.PHONY: test-spark
test-spark: $(STAMP) ## The portable SQL on Spark beside DuckDB; wants Java 17, installs 450 MB once
	@reason=$$($(BIN)/python -m cdc_pipeline_tests.spark.session) || exit 1; \
	if [ -n "$$reason" ]; then echo "Nothing was run on Spark: $$reason"; exit 0; fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		-c constraints.txt -e '.[spark]' && \
	$(BIN)/python -m pytest -m spark cdc_pipeline_tests/spark $(PYTEST_ARGS)

.PHONY: test-trino
test-trino: $(STAMP) ## The queries for Athena on a Trino; wants a JDK 17 and Maven, fetches 320 MB once
	@reason=$$($(BIN)/python -m cdc_pipeline_tests.trino.server) || exit 1; \
	if [ -n "$$reason" ]; then echo "Nothing was run on Trino: $$reason"; exit 0; fi; \
	$(BIN)/python -m pytest -m trino cdc_pipeline_tests/trino $(PYTEST_ARGS)

.PHONY: test-catalogs
test-catalogs: $(STAMP) ## A lake in Iceberg's own REST catalogue and in PostgreSQL; wants a JDK 17, Maven, PostgreSQL
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		-c constraints.txt -e '.[postgres]'
	@$(BIN)/python -m cdc_pipeline_tests.catalogs.rest_server
	@$(BIN)/python -m pytest -m catalogs cdc_pipeline_tests/catalogs $(PYTEST_ARGS)

.PHONY: test-ui
test-ui: $(STAMP) ## The browser tests; need chromium and chromedriver (CHROMIUM=, CHROMEDRIVER=)
	$(if $(shell command -v '$(CHROMIUM)'),,$(error $(CHROMIUM) was not found: apt install chromium, or CHROMIUM=/path/to/chromium))
	$(if $(shell command -v '$(CHROMEDRIVER)'),,$(error $(CHROMEDRIVER) was not found: apt install chromium-driver, or CHROMEDRIVER=/path/to/chromedriver))
	@CHROMIUM="$$(command -v '$(CHROMIUM)')" CHROMEDRIVER="$$(command -v '$(CHROMEDRIVER)')" \
		$(BIN)/python -m pytest -m ui $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP) ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: $(STAMP) ## Let ruff fix and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: $(STAMP) ## pyright over the package and its tests
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: bench
bench: $(STAMP) ## Compare with named peers, installed once; writes benchmarks/RESULTS.md (BENCH_ARGS=...)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
		-c constraints.txt -e '.[bench]'
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

.PHONY: latency
latency: $(STAMP) ## From a write until a query shows it, as in make dev; some minutes (LATENCY_ARGS=...)
	@$(BIN)/python -m benchmarks.latency $(LATENCY_ARGS)

.PHONY: latency-served
latency-served: $(STAMP) ## The same for 100 tables under one server, with its price a day (SERVED_ARGS=...)
	@$(BIN)/python -m benchmarks.served $(SERVED_ARGS)

# ---------------------------------------------------------------------------------------------------- upkeep

.PHONY: lock
lock: ## Write constraints.txt anew from pyproject.toml (LOCK_ARGS=--upgrade)
	$(NEED_PYTHON)
	@rm -rf .lock-venv
	@'$(BASE_PYTHON)' -m venv .lock-venv
	@.lock-venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)'
	@SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}"; [ -z "$$SSL_CERT_FILE" ] || export SSL_CERT_FILE; \
	.lock-venv/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
		--no-emit-index-url --no-emit-find-links --annotation-style line --custom-compile-command 'make lock' \
		$${PIP_INDEX_URL:+--default-index "$$PIP_INDEX_URL"} $${PIP_EXTRA_INDEX_URL:+--index "$$PIP_EXTRA_INDEX_URL"} \
		$(LOCK_ARGS) --output-file constraints.txt pyproject.toml
	@rm -rf .lock-venv

.PHONY: clean
clean: ## Remove .venv, caches and the demo's files; keeps .dagster_home and any lake
	@rm -rf .venv .lock-venv .demo build dist cdc_pipeline.egg-info .pytest_cache .ruff_cache .hypothesis
	@find cdc_pipeline cdc_pipeline_tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
