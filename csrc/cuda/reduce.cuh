// Sums and moments over the threads of a block and the blocks of a cluster. Every sum has one order: the same bits every
// time.
#pragma once

#include "dtype.cuh"

// Declared for the host's pass too, which never runs them.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MUNIT_FAST_CLUSTERS 1
#else
#define MUNIT_FAST_CLUSTERS 0
#endif

// The test's simulation of a GPU has its own.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace munit_fast::cuda {

// Before 9.0 a block is a cluster of its own.
__device__ inline void cluster_sync() {
#if MUNIT_FAST_CLUSTERS
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}

// A block that has read from the others says so, and waits for all to have said so before it ends: its shared memory
// must not go to another block while it is read.
__device__ inline void cluster_has_read() {
#if MUNIT_FAST_CLUSTERS
  __cluster_barrier_arrive();
#endif
}
__device__ inline void cluster_may_end() {
#if MUNIT_FAST_CLUSTERS
  __cluster_barrier_wait();
#endif
}

// The same place in the shared memory of another block of the cluster.
__device__ inline const float* of_rank(const float* shared, int rank) {
#if MUNIT_FAST_CLUSTERS
  return static_cast<const float*>(__cluster_map_shared_rank(shared, rank));
#else
  return shared;
#endif
}

// A thread's position in its block: lane `lane` of `lanes`, a power of two, each V channels wide, and row `row` of
// `rows`.
struct ThreadPosition {
  int lanes, rows, lane, row;
  __device__ explicit ThreadPosition(int lanes_)
      : lanes(lanes_), rows(threads / lanes_), lane(threadIdx.x % lanes_), row(threadIdx.x / lanes_) {}
};

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Floats of shared memory that the functions below need, for K sums of `columns` = lanes · V channels.
__device__ constexpr int scratch_floats(int sums, int columns) { return warps_of_sums * sums * columns; }

// out[k][column] = Σ over the rows of acc[k]; i = k · columns + column is written by thread i % threads. Others may read
// it, and `scratch` may be used again, after a barrier, which is left to the caller.
template <int K, int V>
__device__ inline void block_sums(const ThreadPosition& at, float (&acc)[K][V], float* scratch, float* out) {
  const int columns = at.lanes * V, across = at.lanes < 32 ? 32 : at.lanes;
  for (int offset = at.lanes; offset < 32; offset *= 2)
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int j = 0; j < V; ++j) acc[k][j] += __shfl_xor_sync(0xffffffffu, acc[k][j], offset);
  if (static_cast<int>(threadIdx.x % 32) < at.lanes) {
    float* to = scratch + threadIdx.x / across * K * columns + at.lane * V;
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int j = 0; j < V; ++j) to[k * columns + j] = acc[k][j];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < K * columns; i += threads) {
    float sum = 0;
    for (int row = 0; row < threads / across; ++row) sum += scratch[row * K * columns + i];
    out[i] = sum;
  }
}

// Unites groups of numbers, given each group's count, mean and Σ(x - mean)² (Chan, Golub and LeVeque, 1983). Deviations
// are taken from a first estimate of the mean, which their own sum then corrects: the result is as exact where the mean
// is a thousand times the spread. load(entry, mean, squares) gives the count; `total` is the sum of the counts;
// put(column, mean, squares) takes the result, once for each column. out has room for three rows.
template <int V, class Load, class Put>
__device__ inline void merge(const ThreadPosition& at, int entries, float total, float* scratch, float* out,
                             const Load& load, const Put& put) {
  const int columns = at.lanes * V;
  float sums[1][V] = {};
  for (int entry = at.row; entry < entries; entry += at.rows) {
    float mean[V], squares[V];
    const float count = load(entry, mean, squares);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[0][j] += count * mean[j];
  }
  float* estimates = out + 2 * columns;
  block_sums(at, sums, scratch, estimates);
  __syncthreads();
  float both[2][V] = {};
  for (int entry = at.row; entry < entries; entry += at.rows) {
    float mean[V], squares[V];
    const float count = load(entry, mean, squares);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float off = mean[j] - estimates[at.lane * V + j] / total;
      both[0][j] += count * off;
      both[1][j] += squares[j] + count * off * off;
    }
  }
  block_sums(at, both, scratch, out);
  __syncthreads();
  for (int i = threadIdx.x; i < columns; i += threads) {
    const float off = out[i] / total, squares = out[columns + i] - out[i] * off;
    put(i, estimates[i] / total + off, squares < 0 ? 0 : squares);  // a NaN stays
  }
}

// The same over groups of equal counts whose means and squares lie in two rows of shared memory; every thread gets it.
__device__ inline void merge_columns(const float* moments, int columns, int valid, float count, float* mean,
                                     float* squares) {
  const int lane = threadIdx.x % 32;
  float sum = 0;
  for (int i = lane; i < valid; i += 32) sum += moments[i];
  const float estimate = warp_sum(sum) / valid;
  float first = 0, second = 0;
  for (int i = lane; i < valid; i += 32) {
    const float off = moments[i] - estimate;
    first += off;
    second += moments[columns + i] + count * off * off;
  }
  first = warp_sum(first), second = warp_sum(second);
  *mean = estimate + first / valid;
  const float all = second - count * first * (first / valid);
  *squares = all < 0 ? 0 : all;
}

// A running mean and Σ(x - mean)² (Welford, 1962), for V columns at once.
template <int V> struct Welford {
  float count = 0, mean[V] = {}, squares[V] = {};
  __device__ void add(const float (&v)[V]) {
    count += 1;
    const float share = 1 / count;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float off = v[j] - mean[j];
      mean[j] += off * share;
      squares[j] += off * (v[j] - mean[j]);
    }
  }
};

}  // namespace munit_fast::cuda
