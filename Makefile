.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready

$(READY): requirements-dev.lock pyproject.toml
	@echo "installing into $(VENV): half a minute"
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

SEEDS ?= 0:10000
SPEED ?= 21600
SEED ?= 1
ROUNDS ?= 20
RUNS ?= 10000
CLIENT ?= kafka-python
BROKERS ?= 1

.PHONY: demo up down status test check simulate faults fuzz audit bench soak bench-models bench-peers lock clean help

demo: $(READY)  ## see alerts on a year of real purchases; needs nothing but Python
	$(RUN) stream demo

up: $(READY)  ## the whole stack on this machine, without Docker; SPEED=86400 replays the shop at a day a second
	$(RUN) deploy.local up --speed $(SPEED)

status: $(READY)  ## what is up, and how it is
	@$(RUN) deploy.local status

down: $(READY)  ## end it and remove what it wrote
	@$(RUN) deploy.local down

test: check  ## check, then 300 schedules of faults in memory, then everything on a real Kafka and a real Redis
	$(RUN) pytest tests/simulation
	$(RUN) pytest -W ignore::ResourceWarning tests/integration  # the client leaves a socket open where a broker refuses it

check: $(READY)  ## lint, types, import directions, unit and contract tests, examples in docs; no server
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) pytest --doctest-modules --ignore=tests/integration --ignore=tests/simulation --ignore=tests/faults --ignore=tests/fuzz tests stream online_models docs

simulate: $(READY)  ## schedules of faults in memory; SEEDS=FIRST:END
	$(RUN) tests.simulation --seeds $(SEEDS)

faults: $(READY)  ## schedules of faults on a real Kafka and a real Redis, about 20 s a round; SEED=1 ROUNDS=20 BROKERS=3 CLIENT=librdkafka
	$(RUN) tests.faults --seed $(SEED) --rounds $(ROUNDS) --brokers $(BROKERS) --client $(CLIENT)

fuzz: $(READY)  ## bad input under a coverage-guided fuzzer; RUNS=inputs per target, TARGETS="events tick" for some
	$(RUN) uv pip install --quiet --python $(VENV)/bin/python --group fuzz
	$(RUN) tests.fuzz --runs $(RUNS) $(TARGETS)

audit: $(READY)  ## known vulnerabilities of what requirements-dev.lock pins; asks the services of pypi.org
	$(RUN) uv tool run pip-audit --requirement requirements-dev.lock --no-deps --disable-pip

bench: $(READY)  ## CPU time per event of the worker on a real Kafka and Redis
	$(RUN) benchmarks.worker

soak: $(READY)  ## a quarter of an hour at a steady rate with faults, and its picture in docs/soak.svg
	$(RUN) uv pip install --quiet --python $(VENV)/bin/python --group bench
	$(RUN) benchmarks.soak
	$(RUN) benchmarks.soak --draw

bench-models: $(READY)  ## the models' tables; DATA=labelled anomaly sets (.npz, or a folder of ADBench's files), CDNOW=the lifetimes wheel, CLICKS=REES46's log
	@test -n "$(DATA)" || { echo "give DATA=PATH: an .npz, or adbench/datasets/Classical of a clone of github.com/Minqi824/ADBench"; exit 2; }
	$(RUN) uv pip install --quiet --python $(VENV)/bin/python --group bench
	$(RUN) benchmarks.models_anomaly speed
	$(RUN) benchmarks.models_anomaly quality $(DATA)
	$(RUN) benchmarks.models_anomaly calibration $(DATA)
	$(if $(wildcard $(DATA)/.),$(RUN) benchmarks.models_anomaly drift $(DATA))
	$(RUN) benchmarks.models_segments quality $(CDNOW)
	$(RUN) benchmarks.models_segments speed
	$(RUN) benchmarks.models_segments refit
	$(RUN) benchmarks.models_segments flapping
	$(if $(CDNOW),$(RUN) benchmarks.models_churn --cdnow $(CDNOW))
	$(if $(CLICKS),$(RUN) benchmarks.models_clicks $(CLICKS))

PEERS := .venv-peers

$(PEERS)/.ready: $(READY)
	$(RUN) uv venv --quiet --clear --python $(VENV)/bin/python $(PEERS)
	$(RUN) uv pip install --quiet --python $(PEERS)/bin/python --requirement requirements-dev.lock
	$(RUN) uv pip install --quiet --python $(PEERS)/bin/python --no-deps --editable .
	$(RUN) uv pip install --quiet --python $(PEERS)/bin/python --group peers
	touch $(PEERS)/.ready

bench-peers: $(PEERS)/.ready  ## CPU time per event beside Quix Streams, Bytewax and bare loops, and restarts after a SIGKILL
	$(PEERS)/bin/python -m benchmarks.peers
	$(PEERS)/bin/python -m benchmarks.peers --recovery

lock: $(READY)  ## write requirements-dev.lock anew from pyproject.toml
	$(RUN) uv pip compile --quiet --universal --python-version 3.11 --group dev --all-extras --no-emit-package driftline --output-file requirements-dev.lock pyproject.toml

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .import_linter_cache

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
