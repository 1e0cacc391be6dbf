# cuda.mk: the CUDA device: with nvcc the device itself; everywhere its kernels on the processor,
# for tests (README.md). Included by the Makefile.

NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(shell readlink -f '$(NVCC)' 2>/dev/null))
# Machine code for these, PTX for later ones.
CUDA_ARCHS ?= 80 89 90a
CUDA_PTX ?= 90
CUDA_GENCODE = $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
	$(foreach a,$(CUDA_PTX),-gencode arch=compute_$(a),code=compute_$(a))
CUDA_KERNELS := $(sort $(wildcard kernels/*.cu))
CUDA_SOURCES := $(sort $(wildcard kernels/*.c))
CUDA_OBJECTS = $(patsubst kernels/%.cu,$(BUILD)/cuda/%.o,$(CUDA_KERNELS)) \
	$(patsubst kernels/%.c,$(BUILD)/cuda/%.o,$(CUDA_SOURCES))
BASE_OBJECTS = $(call obj,$(sort $(wildcard src/base/*.c)))

# Nothing without nvcc, nor under sanitizers, which CUDA's runtime does not like.
CUDA_DEVICE := $(if $(NVCC),$(if $(SANITIZE),,$(BUILD)/openlora_cuda.so))

# What the compiler says of registers and spills stays beside the object.
$(BUILD)/cuda/%.o: kernels/%.cu
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 -O3 -lineinfo -I. -Isrc $(CUDA_GENCODE) -Xcompiler -fPIC,-fvisibility=hidden \
		$(CUDA_FLAGS) -Xptxas -v -MMD -MP -c $< -o $@ 2> $@.log || { cat $@.log >&2; exit 1; }
ifneq ($(filter 90a,$(CUDA_ARCHS)),)
$(BUILD)/cuda/linear.o: CUDA_FLAGS += -DGPU_HAS_90A
endif
$(BUILD)/cuda/%.o: kernels/%.c
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -I. -isystem '$(CUDA_HOME)/include' -MMD -MP -c $< -o $@
$(BUILD)/openlora_cuda.so: $(CUDA_OBJECTS) $(BASE_OBJECTS)
	$(NVCC) -shared -cudart static -Xlinker --exclude-libs,ALL -o $@ $^ -lcrypto -lpthread -lm

# -- the same on the processor ------------------------------------------------------------
SIMT_CXX ?= g++
SIMT_CXXFLAGS = -std=c++17 -D_GNU_SOURCE -DOL_SIMT -Itest/simt -I. -Isrc -Wall -Wextra \
	-Wno-unknown-pragmas -Wno-maybe-uninitialized -fPIC -fvisibility=hidden -ffp-contract=off \
	$(patsubst -O3,-O2,$(OPTIMISE)) $(WERROR)
SIMT_OBJECTS = $(patsubst kernels/%.cu,$(BUILD)/simt/%.o,$(CUDA_KERNELS)) \
	$(patsubst test/simt/%.cpp,$(BUILD)/simt/%.o,$(wildcard test/simt/*.cpp)) \
	$(patsubst kernels/%.c,$(BUILD)/simt/%.o,$(CUDA_SOURCES)) $(BASE_OBJECTS)

$(BUILD)/simt/%.o: kernels/%.cu
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_CXXFLAGS) -x c++ -MMD -MP -c $< -o $@
$(BUILD)/simt/%.o: test/simt/%.cpp
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_CXXFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/simt/%.o: kernels/%.c
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -DOL_SIMT -Itest/simt -I. -MMD -MP -c $< -o $@

# The device as the engine loads it, for tests of the whole way.
$(BUILD)/simt/openlora_cuda.so: $(SIMT_OBJECTS)
	$(SIMT_CXX) $(OPTIMISE) -shared -o $@ $^ -lcrypto -lpthread -lm

# -- tests of kernels: build/test/simt_NAME on the processor, build/gpu_NAME on a GPU --------
GPU_TESTS := $(patsubst test/gpu/test_%.c,%,$(sort $(wildcard test/gpu/test_*.c)))
$(BUILD)/simt/gpu_%.o: test/gpu/%.c
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -DOL_SIMT -Itest/simt -I. -MMD -MP -c $< -o $@
# An archive: a test has the helpers that it calls.
GPU_HELPERS := $(filter-out test_% bench%,$(patsubst test/gpu/%.c,%,$(sort $(wildcard test/gpu/*.c))))
$(BUILD)/simt/librig.a: $(patsubst %,$(BUILD)/simt/gpu_%.o,$(GPU_HELPERS))
$(BUILD)/cuda/librig.a: $(patsubst %,$(BUILD)/cuda/gpu_%.o,$(GPU_HELPERS))
$(BUILD)/%/librig.a:
	@rm -f $@
	$(AR) rcs $@ $^
$(BUILD)/test/simt_%: $(BUILD)/simt/gpu_test_%.o $(BUILD)/simt/librig.a $(SIMT_OBJECTS) $(call obj,src/device/load.c)
	@mkdir -p $(@D)
	$(SIMT_CXX) $(OPTIMISE) -o $@ $^ -lcmocka -lcrypto -ldl -lpthread -lm
GPU_BENCH := $(patsubst test/gpu/%.c,%,$(sort $(wildcard test/gpu/bench*.c)))
$(BUILD)/simt_bench: $(patsubst %,$(BUILD)/simt/gpu_%.o,$(GPU_BENCH)) $(BUILD)/simt/librig.a $(SIMT_OBJECTS)
	$(SIMT_CXX) $(OPTIMISE) -o $@ $^ -lcrypto -ldl -lpthread -lm
simt-tests: $(patsubst %,$(BUILD)/test/simt_%,$(GPU_TESTS)) $(BUILD)/simt/openlora_cuda.so $(BUILD)/simt_bench $(BUILD)/churn

$(BUILD)/cuda/gpu_%.o: test/gpu/%.c
	@mkdir -p $(@D)
	$(ENGINE_CC) $(ENGINE_CFLAGS) -I. -isystem '$(CUDA_HOME)/include' -MMD -MP -c $< -o $@
# An archive: a test has the kernels that it calls.
$(BUILD)/cuda/libkernels.a: $(CUDA_OBJECTS) $(BASE_OBJECTS) $(call obj,src/device/load.c)
	@rm -f $@
	$(AR) rcs $@ $^
$(BUILD)/gpu_bench: $(patsubst %,$(BUILD)/cuda/gpu_%.o,$(GPU_BENCH)) $(BUILD)/cuda/librig.a $(BUILD)/cuda/libkernels.a
	$(NVCC) -o $@ $^ -lcrypto -ldl -lpthread -lm
$(BUILD)/test/simt_sample $(BUILD)/gpu_sample $(BUILD)/test/simt_device_choose $(BUILD)/gpu_device_choose: $(call obj,src/engine/choose.c)
$(BUILD)/gpu_%: $(BUILD)/cuda/gpu_test_%.o $(BUILD)/cuda/librig.a $(BUILD)/cuda/libkernels.a
	$(NVCC) -o $@ $^ -lcmocka -lcrypto -ldl -lpthread -lm
# What tests the whole device takes the one that the engine loads, instead of one of its own.
$(BUILD)/gpu_device_%: $(BUILD)/cuda/gpu_test_device_%.o $(BUILD)/cuda/librig.a $(BASE_OBJECTS) $(call obj,src/device/load.c) | $(BUILD)/openlora_cuda.so
	$(NVCC) -o $@ $^ -L$(BUILD) -l:openlora_cuda.so -Xlinker -rpath='$$ORIGIN' -lcmocka -lcrypto -ldl -lpthread -lm
gpu-tests: $(patsubst %,$(BUILD)/gpu_%,$(GPU_TESTS)) $(BUILD)/gpu_bench $(BUILD)/test/test_perplexity
.PHONY: simt-tests gpu-tests

# -- on a machine with a GPU -------------------------------------------------------------------
# pack-gpu makes build/gpu here, with all that a machine needs that has a GPU and a driver, but
# none of our libraries; there check-gpu and bench-gpu take it as it is. Machine code is packed as
# small as it goes: a sixth.
PACK_ARCH ?= 90a
pack-gpu:
	rm -f build/gpu/gpu_* # what is no more
	$(MAKE) -s BUILD=build/gpu CUDA_ARCHS='$(PACK_ARCH)' CUDA_PTX= WERROR='$(WERROR)' engine gpu-tests \
		build/gpu/churn build/gpu/test/test_golden build/gpu/test/test_engine_same build/gpu/test/test_engine_sampling \
		build/gpu/test/test_engine_fp8 build/gpu/test/test_engine_int8 build/gpu/test/test_engine_copies
	bash test/gpu/pack.sh build/gpu
pack-gpu: export CUDA_FLAGS = --compress-mode=size
check-gpu:
	bash test/gpu/run.sh check
bench-gpu:
	bash test/gpu/run.sh bench
.PHONY: pack-gpu check-gpu bench-gpu
