# Every target, for example make demo, first builds what it needs in a virtual environment.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip
PACKAGE := $(shell find workerserver -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]')
COMPILED := $(subst /,.,$(basename $(shell find workerserver -name '_*.pyx')))

.PHONY: help build demo man docs screenshots test test-debug wire faults blackbox simulate test-cuda test-integrations wheels test-cpythons test-torch chaos soak fuzz long bench bench-check compare native coverage sanitize lint format clean

help:
	@echo "make demo           start a training job that hangs, and find the rank to blame"
	@echo "make test           run all tests (ARGS='-k name': some of them)"
	@echo "make test-debug     run the native side's tests with a debug build, which checks invariants"
	@echo "make wire           send a table of raw inputs, each cut at every byte, on every transport"
	@echo "make faults         run real jobs with planted faults, and check each verdict"
	@echo "make blackbox       kill writers of black boxes at random moments, and end real jobs in each way"
	@echo "make simulate       judge simulated jobs, and find planted faults of the judge (JOBS=1000000)"
	@echo "make lint           run ruff, cython-lint, mypy, stubtest; look for Cython's performance hints"
	@echo "make coverage       measure the line coverage of Python and Cython code together"
	@echo "make sanitize       run the compiled code under ASan, UBSan and TSan (ARGS=--quick: the stress only)"
	@echo "make test-cpythons  test a wheel, without torch, on every other CPython on this machine"
	@echo "make test-torch     run the tests where torch matters on other torches (VERSIONS='2.10.0 2.15.0', SECONDS_EACH=1800)"
	@echo "make test-integrations  start jobs with Lightning, transformers, accelerate, Ray, a notebook"
	@echo "make docs           build the documentation as a site in build/site, and check its links"
	@echo "make screenshots    take the pictures of reports in docs/images, in Chromium"
	@echo "make wheels         build manylinux wheels, and test each without a compiler"
	@echo "make test-cuda      run the tests that need an NVIDIA GPU"
	@echo "make chaos          inject faults into a server beside a real job, which must train as without us (MINUTES=10)"
	@echo "make soak           the same with pauses, for hours: memory, descriptors, threads, replies (MINUTES=60)"
	@echo "make fuzz           feed parsers and readers random bytes, guided by coverage (SECONDS=60 each)"
	@echo "make long           run long tests: snapshots, the GIL held, half-open clients, restarts"
	@echo "make bench          compare the server's cost with torch's server and others (ARGS='--list', 'latency --quick')"
	@echo "make bench-check    compare the ratios of a short run with benchmarks/baseline.json"
	@echo "make compare        ask four hung jobs with this tool, py-spy, gdb and torch's own frontend"
	@echo "make native         compare native stacks with those of gdb, address by address"
	@echo "make man            write the manual pages, into build/man/man1"
	@echo "make build          make only the virtual environment and the extension modules"
	@echo "PYTHON=... chooses the interpreter ($(PYTHON)), VENV=... chooses the environment ($(VENV))"

# --no-build-isolation: so the build uses the same Cython as lint and coverage.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON=")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt Cython setuptools wheel
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(PACKAGE)
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

build: $(VENV)/.built

man: build
	$(PY) -m workerserver man --folder build/man/man1

# On a fresh machine only what the demo needs. Where `make build` has been, everything is there.
$(VENV)/.demo: pyproject.toml constraints.txt setup.py tools/prepare_demo.py $(PACKAGE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON=")'
	@$(PYTHON) tools/prepare_demo.py $(VENV)
	@touch $@

demo: $(if $(wildcard $(VENV)/.installed),build,$(VENV)/.demo)
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PY) examples/demo.py $(ARGS)

# Three files of tests run at a time, because tests mostly wait: on two cores, two files left a third
# of the time unused. With TESTERS=0 the files run one after the other, as pytest -s and --pdb need.
TESTERS ?= 3
test: build
	$(PY) -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-debug: build
	$(PY) tools/run_debug.py $(ARGS)

# In five minutes. nginx, where it is installed (Debian: nginx-light), is the second judge.
wire: build
	WORKERSERVER_WIRE=all $(PY) -m pytest -n $(TESTERS) tests/wire $(ARGS)

# Takes about 25 min. ARGS="-k pipeline" runs some of the jobs; ARGS="-m faults" also those that are
# watched for minutes, in 40 min; ARGS="-m 'faults and quick'" six, in 1 min.
faults: build
	$(PY) -m pytest -n 2 -m 'faults and not long' tests/faults $(ARGS)

# CHROOT=FOLDER: also for CPython 3.14 and 3.15, in a Debian testing there without a compiler, which is
# made if need be (root). ARGS="3.12 --platform musllinux_1_2_aarch64": another libc or processor.
wheels: build
	$(PY) tools/build_wheels.py $(if $(CHROOT),--chroot $(CHROOT)) $(ARGS)

# In ten minutes at most. The old NCCL backend, whose recorder the dump_nccl_* handlers read: from
# torch 2.15 on, "nccl" is NCCL2 unless this says otherwise.
test-cuda: build
	TORCH_DIST_USE_NCCL2=0 timeout 600 $(PY) -m pytest -m cuda tests/handlers/test_cuda.py \
	    tests/handlers/test_cuda_jobs.py $(ARGS)

# CHROOT=FOLDER: CPython 3.14 and 3.15 in a Debian testing there, which is made if need be (root).
CHROOT ?=
test-cpythons: build
	$(PY) tools/run_cpythons.py $(if $(CHROOT),--chroot $(CHROOT)) $(ARGS)

# Slurm's part runs where slurmctld, slurmd and slurm-client are installed, as root.
# In an environment of its own, of 2 GiB with a CPU build of torch. `make clean` removes it.
INTEGRATIONS ?= .venv-integrations
$(INTEGRATIONS)/.installed: pyproject.toml constraints.txt
	test -x $(INTEGRATIONS)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --constraint constraints.txt Cython setuptools wheel
	$(INTEGRATIONS)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
	    --editable '.[integrations]'
	@touch $@

test-integrations: build $(INTEGRATIONS)/.installed
	$(INTEGRATIONS)/bin/python -m pytest -m 'integrations or slurm' -o faulthandler_timeout=0 \
	    tests/launches tests/integrations $(ARGS)

# The reference is written by the program itself, and the site is built in an environment without it.
DOCS ?= .venv-docs
$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt 'mkdocs-material>=9.6'
	@touch $@

docs: build $(DOCS)/.installed
	$(PY) tools/reference.py build/reference
	NO_MKDOCS_2_WARNING=1 WORKERSERVER_REFERENCE=build/reference $(DOCS)/bin/mkdocs build --strict --quiet $(ARGS)

# Debian: chromium, chromium-driver.
screenshots: build
	PYTHONPATH=.:tests:examples $(PY) tools/take_screenshots.py

# One environment after the other; a CUDA build of torch needs 10 GiB of disk for as long as it is
# tested. ARGS="--pytest tests/handlers" for other tests than the tool's own.
VERSIONS ?= 2.10.0 2.13.0 2.14.1 2.15.0
SECONDS_EACH ?= 1800
test-torch: build
	$(PY) tools/run_torches.py --seconds $(SECONDS_EACH) $(VERSIONS) $(ARGS)

# Each way to end a job, RUNS times with black boxes; so many HEALTHY jobs with a watchdog; KILLS of a
# writer at random moments. Takes about two hours. A test takes longer than faulthandler's 300 s.
RUNS ?= 20
HEALTHY ?= 20
KILLS ?= 100000
blackbox: build
	WORKERSERVER_BLACKBOX_KILLS=$(KILLS) WORKERSERVER_BLACKBOX_RUNS=$(RUNS) \
	    WORKERSERVER_BLACKBOX_HEALTHY=$(HEALTHY) $(PY) -m pytest -o faulthandler_timeout=0 tests/blackbox $(ARGS)

# Some 10,000 jobs a minute on each core that is free. FIRST: the first one's seed.
JOBS ?= 20000
FIRST ?= 0
simulate: build
	$(PY) -m tests.simulator $(JOBS) --judge --first $(FIRST) --processes 2
	WORKERSERVER_SIMULATED_JOBS=3000 $(PY) -m pytest tests/simulator --timeout 7200

# Both end with a verdict, and with status 1 if something was wrong. SEED: another order of faults.
MINUTES ?=
SEED ?= 1
chaos: build
	PYTHONPATH=.:tests $(PY) -m support.chaos --minutes $(or $(MINUTES),10) --seed $(SEED)

soak: build
	PYTHONPATH=.:tests $(PY) -m support.chaos --minutes $(or $(MINUTES),60) --seed $(SEED) --rest 2

# Needs clang. atheris, for the Python targets, in an environment of its own above the usual one.
# ARGS="parser walker" some targets, --keep to write the corpora back.
FUZZ ?= .venv-fuzz
SECONDS ?= 60
$(FUZZ)/.installed: $(VENV)/.installed
	test -x $(FUZZ)/bin/python || $(PY) -m venv --without-pip $(FUZZ)
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	    "$$($(FUZZ)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/usual.pth"
	-$(PIP) --python $(FUZZ)/bin/python install --quiet --no-deps --constraint constraints.txt atheris
	@touch $@

fuzz: build $(FUZZ)/.installed
	$(FUZZ)/bin/python tools/fuzz.py --seconds $(SECONDS) $(ARGS)

# The suite runs these tests for seconds, this target for minutes. SOAK_SECONDS: each snapshot run.
SOAK_SECONDS ?= 30
long: build
	WORKERSERVER_SOAK_SECONDS=$(SOAK_SECONDS) $(PY) -m pytest tests/stacks/test_stacks.py -k soak -s --timeout 7200
	WORKERSERVER_SELFREAD_SOAK=$(SOAK_SECONDS)s $(PY) -m pytest tests/stacks/test_selfread_soak.py -s --timeout 7200
	WORKERSERVER_SOAK_GIL=60 WORKERSERVER_SOAK_RACE=60 $(PY) -m pytest tests/native/test_gil_held.py -s --timeout 7200 -o faulthandler_timeout=0
	WORKERSERVER_SOAK_HALF_OPEN=10000 $(PY) -m pytest tests/native/test_half_open.py -s --timeout 7200
	WORKERSERVER_SOAK_RESTARTS=1000 $(PY) -m pytest tests/server/test_restart_cycles.py -s --timeout 7200 -o faulthandler_timeout=0
	WORKERSERVER_PROFILES=50 $(PY) -m pytest tests/handlers/test_handlers_torch.py -k many_beside
	WORKERSERVER_HYPOTHESIS=long $(PY) -m pytest tests/parser/test_parser_h11.py --timeout 7200

bench: build
	$(PY) -m benchmarks --json build/bench.json --plots build/plots $(ARGS)

bench-check: build
	$(PY) -m benchmarks --quick --check $(ARGS)

# In ten minutes. pystack is asked too, if it is installed in the environment.
compare: build
	$(PY) tools/compare_peers.py $(ARGS)

# With gdb, in minutes.
native: build
	PYTHONPATH=.:tests $(PY) -m support.unwind.beside_gdb $(ARGS)

coverage: build
	$(PY) tools/measure_coverage.py $(ARGS)

sanitize: build
	$(PY) tools/sanitize.py $(ARGS)

lint: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint workerserver
	$(PY) -m mypy
	$(PY) -m mypy.stubtest --concise --allowlist tools/stubtest-allowlist.txt $(COMPILED)
	$(PY) tools/check_cython.py

format: build
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf build $(VENV) $(INTEGRATIONS) $(DOCS) $(FUZZ)
	find workerserver -name '*.so' -delete
