# What people type. All building is CMake's; the presets are in CMakePresets.json.
KEYS ?= 262144
VALUE ?= 1024
CONNECTIONS ?= 50
ROUNDS ?= 50
SEED ?=
PREFIX ?= /usr/local
JOBS ?= 2
FUZZ_SECONDS ?= 60
KILLS ?= 10000
CACHE_KILLS ?= 1000
CCACHE := $(if $(shell command -v ccache 2>/dev/null),-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)

.DEFAULT_GOAL := help
.PHONY: help deps build demo test test-peers test-vm soak bench bench-compat bench-kexec bench-scale bench-scale-vm vm lint fuzz install clean

help: ## this text
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

deps: ## install what is missing (Debian 12, apt-get); says what first
	@scripts/install-deps

build: deps ## programs, optimised: build/release/bin
	@cmake --preset release --log-level=WARNING $(CCACHE)
	@cmake --build --preset release -j $(JOBS)

demo: build ## a cache under load while all under it is replaced: KEYS= VALUE= CONNECTIONS= ROUNDS= SEED=
	@demo/run.py --keys $(KEYS) --value $(VALUE) --connections $(CONNECTIONS) --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

test: deps ## all tests: unit, integration, crash, and the sanitizer builds
	@scripts/run-tests

test-peers: build ## the kernel's own selftests of LUO under luoctl run
	@tests/peers/selftests.py

test-vm: build ## real kexecs in a virtual machine: the bare kernel as the yardstick, what it hands over
	@scripts/install-vm-deps
	@tests/vm/all

soak: deps ## random kills of everything: KILLS= (10000), of luo-cache: CACHE_KILLS= (1000); SEED= repeats the choices of a run
	@cmake --preset dev --log-level=WARNING $(CCACHE)
	@cmake --build --preset dev -j $(JOBS) --target luo-soak luod luoctl luo-cache luo-cache-kills
	@build/dev/bin/luo-soak --kills $(KILLS) $(if $(SEED),--seed $(SEED))
	@build/dev/bin/luo-cache-kills --kills $(CACHE_KILLS) $(if $(SEED),--seed $(SEED))

bench: build ## the limits of the project, measured: build/bench/report.json
	@tests/bench/run.py

vm: build ## build the virtual machine's kernel, if it is not there, and boot once: tests/vm/README.md
	@scripts/install-vm-deps
	@tests/vm/vm run -- luod --version

bench-scale: build ## the same at 9,000 sessions and 18,000 files: build/bench-scale/report.json
	@tests/bench/scale/run.py $(if $(PLOT),--plot $(PLOT))

bench-compat: build ## programs under luoctl run: ioctls, opens, compiles: build/bench-compat/report.json
	@tests/bench/compat/run.py

bench-scale-vm: build ## at 100,000 sessions and 1,000,000 files, in a virtual machine: build/bench-scale-vm/report.json
	@scripts/install-vm-deps
	@tests/bench/scale/vm.py $(if $(SESSIONS),--sessions $(SESSIONS)) $(if $(PLOT),--plot $(PLOT))

bench-kexec: build ## a kexec with sessions and files kept over it, in a virtual machine: build/bench-kexec/report.json
	@scripts/install-vm-deps
	@tests/bench/kexec/run.py

lint: ## clang-format on all, clang-tidy-19 on what differs from BASE (default: the last commit; ALL=1: everything)
	@scripts/lint $(if $(ALL),--all) $(if $(BASE),--base $(BASE))

fuzz: ## libFuzzer targets, FUZZ_SECONDS= each
	@scripts/install-deps --dev
	@cmake --preset fuzz --log-level=WARNING
	@cmake --build --preset fuzz -j $(JOBS) --target $(notdir $(basename $(wildcard tests/fuzz/fuzz_*.cc)))
	@scripts/run-fuzzers build/fuzz/bin $(FUZZ_SECONDS)

install: build ## to PREFIX= (default /usr/local), DESTDIR= is honoured
	@cmake --install build/release --prefix $(PREFIX)

clean: ## remove build/
	rm -rf build
