// Stands in for CUDA's header when csrc/cuda is compiled for the CPU: one fiber for each CUDA thread. The blocks of a
// cluster run together, clusters one after the other. A fiber runs until it waits (for a barrier, or for the others of a
// shuffle); which one goes on then is the schedule's choice. See simulator.cpp for what that finds and what it cannot.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) unsigned char* name = simulated::shared_memory()

namespace simulated {

extern dim3 thread_index, block_index, grid_size;  // of the running fiber
unsigned char* shared_memory();
void block_barrier();
void cluster_arrive();
void cluster_wait();
void* of_rank(const void* shared, unsigned rank);
float exchange(float value, int offset);

float half_to_float(unsigned short bits);
unsigned short float_to_half(float value);

}  // namespace simulated

inline const dim3 &threadIdx = simulated::thread_index, &blockIdx = simulated::block_index,
                  &gridDim = simulated::grid_size;
#define __syncthreads simulated::block_barrier
#define __cluster_barrier_arrive simulated::cluster_arrive
#define __cluster_barrier_wait simulated::cluster_wait
#define __cluster_map_shared_rank simulated::of_rank
#define __shfl_xor_sync(mask, value, offset) simulated::exchange(value, offset)

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float __fdividef(float a, float b) { return a / b; }

namespace munit_fast::cuda {
using simulated::float_to_half;
using simulated::half_to_float;
}  // namespace munit_fast::cuda

// The runtime's functions that csrc/cuda calls. They refuse what a device would refuse.
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrClusterLaunch
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaFuncAttributes {};
using cudaStream_t = void*;
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaSetDevice(int index);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int index);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute name, int value);
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);

namespace simulated {
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*thread)(const void*), const void* call);
}

template <class A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(A), const A& argument) {
  struct Call {
    void (*kernel)(A);
    const A& argument;
  } call{kernel, argument};
  return simulated::launch(*config, reinterpret_cast<const void*>(kernel),
                           [](const void* c) {
                             const Call& all = *static_cast<const Call*>(c);
                             all.kernel(all.argument);
                           },
                           &call);
}
