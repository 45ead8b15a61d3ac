# make demo    the main job: puzzles solved by search with the model that comes along
# make step    one best-of-64 sampling step, checked and timed against torch
# make test    the tests
# Either first makes .venv, if it is not there yet or older than what it is made of.
#   PYTHON=python3.12       another Python, 3.10 or later
#   TORCH=torch==2.11.0     another torch, 2.10 or later; the CPU build is enough
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check install --quiet
CPP := git ls-files '*.cpp' '*.h' '*.cu' '*.cuh'
# On a machine shared with others a thread that spins for work takes it from them.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo step test nightly examples fuzz faults kills soak asan tsan mutants bench
.PHONY: bench-peers curve gpu gpu-test gpu-repeat gpu-bench gpu-trees lint format clean

demo: $(VENV)/built
	@if ls pyttc/models/*/model.safetensors >/dev/null 2>&1; then $(RUN) pyttc solve; \
	else echo "no model comes with this checkout"; $(RUN) benchmarks.best_of_64; fi

step: $(VENV)/built
	$(RUN) benchmarks.best_of_64

test: $(VENV)/built
	$(RUN) pytest

# The same tests with far more examples, those too slow for every push, and all that attacks them.
nightly: $(VENV)/built
	PYTTC_EXAMPLES=10000 PYTTC_INVALID_CALLS=100000 $(RUN) pytest -m "nightly or not gpu"
	$(MAKE) asan tsan fuzz faults kills soak examples mutants

# 20,000 examples a property test, 100,000 calls that must be refused (docs/trust).
examples: $(VENV)/built
	$(RUN) tests.trust.examples

# A minute of coverage-guided fuzzing of each target; what is found is kept (tests/fuzz).
fuzz: $(VENV)/built
	$(PIP) atheris
	$(RUN) tests.fuzz.run --seconds 60

# Every request for memory fails in turn (docs/trust/faults.json).
faults: $(VENV)/built
	$(RUN) tests.trust.faults

# An hour of random calls: memory, pages and the time of a step (docs/trust/soak.json).
soak: $(VENV)/built
	$(RUN) tests.trust.soak --minutes 60

# Searches killed at 100 random points and interrupted at 200, resumed, compared bit for bit.
kills: $(VENV)/built
	$(RUN) tests.trust.kills --points 100
	$(RUN) tests.trust.interrupts --moments 200

# The native extension under sanitizers, gcc's, in copies of the source under build/.
asan: $(VENV)/built
	$(RUN) tests.trust.sanitize address

tsan: $(VENV)/built
	$(RUN) tests.trust.sanitize thread

# Do the tests notice bugs? Hours on two cores; what was done stays in build/.
mutants: $(VENV)/built
	$(RUN) tests.trust.kernel_mutants
	$(RUN) tests.trust.python_mutants

# Under ten minutes; without --quick, the engine alone takes as long again. Threads wait as torch's do: asleep
# between two kernels, two are slower than one.
MEASURED := env -u OMP_WAIT_POLICY $(RUN)
bench: $(VENV)/built
	$(MEASURED) benchmarks.run --seconds 0.5
	$(MEASURED) benchmarks.bench_engine --seconds 5 --quick
	$(RUN) benchmarks.table
	$(RUN) benchmarks.plots

# Other engines beside this one, each installed into build/peers (gigabytes; PEERS=openvino,vllm: only these).
# TORCH chooses what torch they get too.
BESIDE = pyttc,$(PEERS)
bench-peers: $(VENV)/built
	$(MEASURED) benchmarks.bench_peers --torch "$(TORCH)" $(if $(PEERS),--peers "$(BESIDE)")
	$(RUN) benchmarks.table

curve: $(VENV)/built
	$(RUN) benchmarks.countdown

# On a machine with a GPU: tests, the sanitizer's four tools, benchmarks (FastTree and PAT are trees of theirs).
# `make -k gpu` goes on after a failure; `make gpu RUN="python3 -m" BUILT=` takes the package that is installed.
BUILT := $(VENV)/built
gpu: gpu-test gpu-memcheck gpu-racecheck gpu-initcheck gpu-synccheck gpu-repeat gpu-bench gpu-trees

gpu-test: $(BUILT)
	$(RUN) pytest -m gpu

# Without torch's cache of memory the tools see where each tensor ends, and what nobody has written.
gpu-%check: $(BUILT)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTTC_LAUNCHES=3 compute-sanitizer --tool $*check \
	  --error-exitcode 1 --report-api-errors no --target-processes all $(RUN) pytest -m gpu -k reference

gpu-repeat: $(BUILT)
	PYTTC_LAUNCHES=100000 $(RUN) pytest -m gpu -k repeated

gpu-bench: $(BUILT)
	$(RUN) benchmarks.gpu

gpu-trees: $(BUILT)
	$(RUN) benchmarks.gpu FastTree PAT

lint: $(VENV)/built
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(CPP) | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/built
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(CPP) | xargs $(VENV)/bin/clang-format -i

clean:
	rm -rf build dist *.egg-info pyttc/*.so $(VENV)

# torch comes first and alone: the package's build does not need it, and must not choose it.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	touch $@

$(VENV)/built: $(VENV)/torch constraints.txt pyproject.toml setup.py $(shell find csrc -type f)
	PYTTC_DEV=1 $(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@
