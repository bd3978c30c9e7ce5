# Two commands: make demo, make test. Both set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= $(CURDIR)/demo
ROUNDS ?= 40
SEED ?= 0
LEDGER ?= $(CURDIR)/build/chaos/ledger.jsonl
BIN := $(VENV)/bin

.PHONY: demo test lint schema chaos
demo: $(VENV)/installed
	$(BIN)/t2i-ray train configs/demo.yaml storage.uri=$(DEMO)
	$(BIN)/t2i-ray evaluate demo --storage $(DEMO)
	$(BIN)/t2i-ray generate demo --storage $(DEMO) --file configs/demo_captions.txt \
		--output $(DEMO)/flowers.png
	@echo
	@echo "pictures  $(DEMO)/flowers.png and $(DEMO)/runs/demo/samples/"
	@echo "curves    $(DEMO)/runs/demo/losses.png"
	@echo "MLflow    $(BIN)/mlflow server --backend-store-uri sqlite:///$(DEMO)/mlflow.db"

# Two processes, each with servers of its own: most tests wait for others to start. With bytecode, even
# where the environment forbids it: hundreds of processes import the package, half a second sooner.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The same command again goes on where it stopped: LEDGER holds the rounds that were played.
chaos: $(VENV)/installed
	PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m chaos --rounds $(ROUNDS) --seed $(SEED) --ledger $(LEDGER)

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

schema: $(VENV)/installed
	$(BIN)/t2i-ray schema > configs/schema.json
	$(BIN)/t2i-ray schema --sweep > tune_configs/schema.json

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
