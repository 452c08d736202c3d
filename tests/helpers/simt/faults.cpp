// A kernel with one fault of several, or none: what the simulator must find, and must not.
#include <cuda_runtime.h>

namespace munit_fast::cuda {
namespace {

enum { none, no_barrier, no_barrier_before_reuse, no_cluster_barrier, leaves_early, beyond, misaligned, split };

struct Fault {
  int kind;
  float* out;  // [2 blocks, 64 threads]
};

// A cluster of two blocks: each thread takes its neighbour's number through shared memory, passes it on in the same
// place, and takes what the other block's thread has there.
void neighbours(Fault f) {
  DYNAMIC_SHARED(memory);
  float* shared = reinterpret_cast<float*>(memory);
  const int t = threadIdx.x, next = (t + 1) % 64;
  shared[t] = static_cast<float>(64 * blockIdx.x + t);
  if (f.kind == beyond) shared[64 + t] = 0;
  if (f.kind == misaligned) f.out[0] = static_cast<float>(reinterpret_cast<const uint4*>(memory + 4)->x);
  if (f.kind == split && t < 32) __cluster_barrier_arrive(), __cluster_barrier_wait();
  if (f.kind != no_barrier) __syncthreads();
  const float taken = shared[next];
  if (f.kind != no_barrier_before_reuse) __syncthreads();
  shared[t] = taken;
  if (f.kind != no_cluster_barrier) __cluster_barrier_arrive(), __cluster_barrier_wait();
  const float* other = static_cast<const float*>(__cluster_map_shared_rank(shared, 1 - blockIdx.x));
  f.out[64 * blockIdx.x + t] = other[next];
  if (f.kind != leaves_early) __cluster_barrier_arrive(), __cluster_barrier_wait();
}

}  // namespace
}  // namespace munit_fast::cuda

extern "C" __attribute__((visibility("default"))) int run_fault(int kind, float* out) {
  cudaSetDevice(0);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2), config.blockDim = dim3(64), config.dynamicSmemBytes = 256;
  config.attrs = &cluster, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, munit_fast::cuda::neighbours, munit_fast::cuda::Fault{kind, out});
}
