# The extension by PGXS: src/pg with the wire and base layers. Called by the Makefile.

EXTENSION = openlora
EXTVERSION = 0.1
MODULE_big = openlora
DATA_built = openlora--$(EXTVERSION).sql

PG_SOURCES := $(sort $(wildcard src/pg/*.c)) $(sort $(wildcard src/wire/*.c)) \
	$(sort $(wildcard src/ledger/*.c)) \
	$(filter-out src/base/log.c,$(sort $(wildcard src/base/*.c)))
OBJS := $(PG_SOURCES:.c=.o)
PG_CPPFLAGS = -Isrc -D_GNU_SOURCE
PG_CFLAGS = -std=gnu11 -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers \
	-Wno-declaration-after-statement $(WERROR)
SHLIB_LINK = -lcrypto -ldivsufsort
EXTRA_CLEAN = openlora--$(EXTVERSION).sql

PG_CONFIG ?= pg_config
# Bitcode for inlining buys nothing here: no function of ours is cheap.
override with_llvm := no
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

openlora--$(EXTVERSION).sql: $(sort $(wildcard sql/*.sql))
	cat $^ > $@.new && mv $@.new $@

$(OBJS): $(wildcard src/pg/*.h src/wire/*.h src/ledger/*.h src/base/*.h src/engine/*.h src/device/*.h)
