# Two commands matter: `make demo` and `make test`. Each sets up all that it needs, inside this folder.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
export PATH := $(CURDIR)/.toolchain/bin:$(CURDIR)/.venv/bin:$(PATH)
export SOLCX_BINARY_PATH := $(CURDIR)/.toolchain/solcx
export APE_DATA_FOLDER := $(CURDIR)/.cache/ape
PROMPT ?= Why does water flow downhill?
SOURCES := $(shell find contracts -name '*.vy' -o -name '*.vyi' -o -name '*.sol')

.PHONY: help setup compile demo slash-demo skill-demo explore node test lint unit contracts fork gas abi peers bench vllm vllm-test audit clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Install the tool chain (locked, inside this folder)
	@$(PYTHON) scripts/_bootstrap.py

# Ape does not notice a change in a module, so that the whole is compiled when any source is newer.
.build/compiled: $(SOURCES) ape-config.yaml | setup
	@ape compile --force >.build.log 2>&1 || { cat .build.log; rm -f .build.log; exit 1; }
	@rm -f .build.log; touch .build/compiled

compile: .build/compiled ## Compile the contracts

demo: compile ## Run the market end to end on a local chain: make demo PROMPT="..."
	@python -m scripts._demo_local demo -- --prompt "$(PROMPT)"

slash-demo: compile ## Show each way to cheat, caught and slashed, on a local chain
	@python -m scripts._demo_local slash_demo

skill-demo: compile ## Show skills published, licensed, combined and run, and each way to cheat refused
	@python -m scripts._demo_local skill_demo

explore: setup ## Open the explorer on the chain of the last demonstration
	@python -m scripts._demo_local explore

node: setup ## Run a local chain in this terminal (chain id 31337, one block a second)
	@anvil --chain-id 31337 --block-time 1 --base-fee 0 --gas-price 50000000 --order fifo

lint: setup ## Style, types, direction of imports
	@ruff check . && ruff format --check . && mypy && lint-imports

unit: compile ## Tests of the SDK, the provider and the agents
	@pytest -p no:ape_test --timeout 600 tests/test_docs*.py tests/sdk tests/provider tests/agents tests/e2e

contracts: compile ## Tests of the contracts
	@ape test tests/contracts

fork: compile ## Tests of the contracts on a fork of BSC; PENSTOCK_BSC_RPC_URL names an endpoint for the real tokens
	@ape test tests/contracts/fork --network bsc:mainnet-fork:foundry

gas: compile ## Measure gas and write benchmarks/gas.json
	@ape run gas --network bsc:local:foundry

peers: setup ## Install what the gateway is compared with (LiteLLM, vLLM's router; locked, in .engines/peers)
	@.toolchain/uv/bin/uv venv -q --allow-existing --python .venv/bin/python .engines/peers
	@.toolchain/uv/bin/uv pip sync -q --require-hashes --python .engines/peers/bin/python requirements/peers.txt

bench: peers ## Measure what the gateway costs, beside its peers (5 to 10 minutes): see benchmarks/gateway.md
	@python -m benchmarks.gateway

vllm: setup ## Install the vLLM that tests use (for CPUs, locked, 6 GB, in .engines/vllm)
	@.toolchain/uv/bin/uv venv -q --allow-existing --python .venv/bin/python .engines/vllm
	@.toolchain/uv/bin/uv pip sync -q --require-hashes --compile-bytecode --python .engines/vllm/bin/python requirements/vllm.txt

vllm-test: vllm compile ## Tests of the provider with a real vLLM (5 to 15 minutes)
	@pytest -p no:ape_test tests/provider/vllm

audit: setup ## Ask the public vulnerability service about every locked package (needs the internet)
	@.toolchain/uv/bin/uv tool run pip-audit --require-hashes --disable-pip -r requirements/dev.txt

abi: compile ## Write the committed ABIs anew
	@python -m penstock.chain.abi --write

test: lint compile ## Everything: lint, all tests, gas snapshot
	@.ci/tests

clean: ## Remove what was built, downloads included
	rm -rf .build .cache .toolchain .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
