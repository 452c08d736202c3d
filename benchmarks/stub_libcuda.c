// A libcuda.so.1 without a GPU: every function that Triton's driver calls succeeds, and launches are counted or kept.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int result; // CUresult; 0 is success

typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
} launch_config; // CUlaunchConfig

enum { MOST_FUNCTIONS = 65536, MOST_PARAMETERS = 256 };

static struct {
  unsigned count;
  unsigned char sizes[MOST_PARAMETERS];
} functions[MOST_FUNCTIONS];
static uintptr_t function_count;

static unsigned char *record;
static size_t record_size, record_capacity;
static int recording;

static void keep(const void *data, size_t size) {
  if (record_size + size > record_capacity) {
    record_capacity = 2 * (record_size + size);
    record = realloc(record, record_capacity);
  }
  memcpy(record + record_size, data, size);
  record_size += size;
}

// The sizes of a function's parameters, as its code declares them; a launch keeps so many bytes of each.
void stub_set_parameters(uint64_t function, unsigned count, const unsigned char *sizes) {
  functions[function].count = count;
  memcpy(functions[function].sizes, sizes, count);
}

// Begin to keep launches, without those kept before.
void stub_start(void) {
  record_size = 0;
  recording = 1;
}

// Keep no more launches. Returns the size of the kept ones: for each its function, grid, block, shared memory, stream,
// number of attributes, and the bytes of its parameters.
uint64_t stub_stop(const unsigned char **kept) {
  recording = 0;
  *kept = record;
  return record_size;
}

result cuLaunchKernelEx(const launch_config *config, void *function, void **parameters, void **extra) {
  uint64_t index = (uintptr_t)function;
  if (!recording)
    return 0;
  keep(&index, sizeof index);
  keep(config->grid, sizeof config->grid);
  keep(config->block, sizeof config->block);
  keep(&config->shared, sizeof config->shared);
  keep(&config->stream, sizeof config->stream);
  keep(&config->attribute_count, sizeof config->attribute_count);
  for (unsigned i = 0; i < functions[index].count; i++)
    keep(parameters[i], functions[index].sizes[i]);
  return 0;
}

result cuModuleGetFunction(void **function, void *module, const char *name) {
  if (++function_count == MOST_FUNCTIONS)
    return 2; // out of memory
  *function = (void *)function_count;
  return 0;
}

result cuModuleLoadData(void **module, const void *image) {
  *module = (void *)1;
  return 0;
}

result cuCtxGetCurrent(void **context) {
  *context = (void *)1;
  return 0;
}

result cuDevicePrimaryCtxRetain(void **context, int device) { return cuCtxGetCurrent(context); }

result cuDeviceGet(int *device, int index) {
  *device = index;
  return 0;
}

result cuCtxGetDevice(int *device) { return cuDeviceGet(device, 0); }

// 227 KiB of shared memory; enough of whatever else is asked for.
result cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = 232448;
  return 0;
}

// Of a function: threads, registers, spilled and shared bytes.
result cuFuncGetAttribute(int *value, int attribute, void *function) {
  *value = attribute == 0 ? 1024 : 0;
  return 0;
}

// Of a pointer: the one on the device, which is the pointer itself.
result cuPointerGetAttribute(uint64_t *value, int attribute, uint64_t pointer) {
  *value = pointer;
  return 0;
}

result cuGetErrorString(int code, const char **text) {
  *text = "the stub driver has no errors";
  return 0;
}

result cuDriverGetVersion(int *version) {
  *version = 12080;
  return 0;
}

#define SUCCEEDS(name)                                                                                                 \
  result name(void) { return 0; }
SUCCEEDS(cuInit)
SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuOccupancyMaxActiveClusters)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxSetLimit)
SUCCEEDS(cuTensorMapEncodeTiled)
SUCCEEDS(cuTensorMapEncodeIm2col)
