# openlora: the extension (PGXS), the engine and its devices.
#
#   make              everything that can be built here
#   make install      into PostgreSQL's folders (DESTDIR honoured)
#   make demo         a session with the bundled model, in a throwaway cluster
#   make check        all tests; make check-asan: the engine's under sanitizers
#   make bench        speed, with ratios against a peer: what was measured: test/bench/RESULTS.md
#   make check-gpu    the CUDA device's tests, make bench-gpu its speed: on a machine with a GPU
#
# PG_CONFIG chooses the PostgreSQL to build for.

PG_CONFIG ?= pg_config
# Without PostgreSQL's development files the engine alone is built.
HAVE_PGXS := $(shell test -n "$$($(PG_CONFIG) --pgxs 2>/dev/null)" && echo yes)

all: engine $(if $(HAVE_PGXS),extension)
extension:
	$(MAKE) -f extension.mk all PG_CONFIG='$(PG_CONFIG)' WERROR='$(WERROR)'
clean:
	rm -rf build
	$(if $(HAVE_PGXS),$(MAKE) -f extension.mk clean PG_CONFIG='$(PG_CONFIG)')
.PHONY: all extension clean

# -- the engine and the CPU device: no PostgreSQL ----------------------------------
# SANITIZE=1 builds into build/asan with AddressSanitizer and UBSan.
ifdef SANITIZE
BUILD := build/asan
OPTIMISE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
else
BUILD := build
OPTIMISE := -O3 -g
endif

ENGINE_CC ?= $(if $(filter default,$(origin CC)),gcc,$(CC))
ENGINE_CFLAGS = -std=c11 -D_GNU_SOURCE -Isrc -Wall -Wextra -Wshadow -Wstrict-prototypes \
	-fPIC -fvisibility=hidden $(OPTIMISE) $(WERROR)
ENGINE_LIBS = -lpcre2-8 -ljansson -lutf8proc -lcrypto -ldl -lpthread -lm

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

include kernels/cuda.mk

# The engine library is everything but the programs' entry points.
ENGINE_SOURCES := $(sort $(wildcard src/base/*.c src/wire/*.c src/device/*.c src/engine/*.c \
	src/engine/*/*.c src/ledger/*.c))
MAIN_SOURCES := $(filter src/engine/main.c src/engine/main/%.c,$(ENGINE_SOURCES))
LIB_SOURCES := $(filter-out $(MAIN_SOURCES),$(ENGINE_SOURCES))
CPU_SOURCES := $(sort $(wildcard src/cpu/*.c))
BASE_SOURCES := $(sort $(wildcard src/base/*.c))

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libopenlora.a: $(call obj,$(LIB_SOURCES))
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/openlora-engine: $(call obj,$(MAIN_SOURCES)) $(BUILD)/libopenlora.a
	$(ENGINE_CC) $(OPTIMISE) -o $@ $^ $(ENGINE_LIBS)

$(BUILD)/openlora_cpu.so: $(call obj,$(CPU_SOURCES) $(BASE_SOURCES))
	$(ENGINE_CC) $(OPTIMISE) -shared -o $@ $^ -lcrypto -lpthread -lm

# Merging adapters is a program of its own: it alone needs LAPACK.
MERGE_SOURCES := $(filter-out src/merge/main.c,$(sort $(wildcard src/merge/*.c)))
MERGE_LIBS = -llapacke -lblas
$(BUILD)/openlora-merge: $(call obj,src/merge/main.c $(MERGE_SOURCES)) $(BUILD)/libopenlora.a
	$(ENGINE_CC) $(OPTIMISE) -o $@ $^ $(MERGE_LIBS) $(ENGINE_LIBS)

engine: $(BUILD)/openlora-engine $(BUILD)/openlora_cpu.so $(BUILD)/openlora-merge $(CUDA_DEVICE)
.PHONY: engine

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# -- install ---------------------------------------------------------------------
PKGLIBDIR = $(shell $(PG_CONFIG) --pkglibdir)
install: all
	$(MAKE) -f extension.mk install PG_CONFIG='$(PG_CONFIG)' DESTDIR='$(DESTDIR)'
	mkdir -p '$(DESTDIR)$(PKGLIBDIR)'
	install -m 755 $(BUILD)/openlora-engine $(BUILD)/openlora-merge $(BUILD)/openlora_cpu.so $(CUDA_DEVICE) '$(DESTDIR)$(PKGLIBDIR)'
uninstall:
	$(MAKE) -f extension.mk uninstall PG_CONFIG='$(PG_CONFIG)' DESTDIR='$(DESTDIR)'
	rm -f '$(DESTDIR)$(PKGLIBDIR)/openlora-engine' '$(DESTDIR)$(PKGLIBDIR)/openlora-merge' '$(DESTDIR)$(PKGLIBDIR)/openlora_cpu.so' '$(DESTDIR)$(PKGLIBDIR)/openlora_cuda.so'
.PHONY: install uninstall

# -- tests of the engine -----------------------------------------------------------
# One program per test/unit/test_*.c; test/device is one program over the CPU
# device's own objects, each of its files but the micro-benchmark a part of it.
UNIT_TESTS := $(patsubst test/unit/%.c,$(BUILD)/test/%,$(sort $(wildcard test/unit/test_*.c)))
DEVICE_TESTS := $(patsubst test/device/%.c,$(BUILD)/test/device_%,\
	$(sort $(wildcard test/device/test_*.c)))
UNIT_HELPERS := $(filter-out $(wildcard test/unit/test_*.c),$(wildcard test/unit/*.c))
DEVICE_HELPERS := $(filter-out $(wildcard test/device/test_*.c),$(wildcard test/device/*.c))

$(BUILD)/test/device_%: $(BUILD)/obj/test/device/%.o $(call obj,$(DEVICE_HELPERS) $(CPU_SOURCES) $(BASE_SOURCES))
	@mkdir -p $(@D)
	$(ENGINE_CC) $(OPTIMISE) -o $@ $^ -lcmocka -lcrypto -lpthread -lm

$(BUILD)/test/test_merge: $(BUILD)/obj/test/unit/test_merge.o $(call obj,$(MERGE_SOURCES)) $(BUILD)/libopenlora.a
	@mkdir -p $(@D)
	$(ENGINE_CC) $(OPTIMISE) -o $@ $^ -lcmocka $(MERGE_LIBS) $(ENGINE_LIBS)
$(BUILD)/test/test_engine_pool: $(call obj,src/engine/main/random_adapter.c)
$(BUILD)/test/test_wire: $(call obj,src/engine/main/outbox.c)
$(BUILD)/test/%: $(BUILD)/obj/test/unit/%.o $(call obj,$(UNIT_HELPERS)) $(BUILD)/libopenlora.a
	@mkdir -p $(@D)
	$(ENGINE_CC) $(OPTIMISE) -o $@ $^ -lcmocka $(ENGINE_LIBS)

# An engine that breaks the protocol, for the extension's tests.
$(BUILD)/fake_engine: $(call obj,test/fake/fake_engine.c) $(BUILD)/libopenlora.a
	$(ENGINE_CC) $(OPTIMISE) -o $@ $^ $(ENGINE_LIBS)

unit-tests: engine $(UNIT_TESTS) $(DEVICE_TESTS) $(BUILD)/fake_engine simt-tests
$(BUILD)/churn: $(call obj,test/bench/churn.c src/engine/main/random_adapter.c) $(BUILD)/libopenlora.a
	$(ENGINE_CC) $(OPTIMISE) -o $@ $^ $(ENGINE_LIBS)
.PHONY: unit-tests
.SECONDARY:

# -- what people type ----------------------------------------------------------------
# The scripts install missing Debian packages when run as root, and otherwise say
# which line to run.
demo:
	@bash test/demo.sh
check:
	@bash test/check.sh
check-asan:
	@bash test/check.sh asan
bench:
	@bash test/bench/bench.sh
format:
	clang-format -i $(wildcard kernels/*.[ch] kernels/*.cu kernels/*.cuh test/simt/*.h test/simt/*.cpp src/*/*.[ch] src/*/*/*.[ch] test/*/*.[ch])
.PHONY: demo check check-asan bench format
