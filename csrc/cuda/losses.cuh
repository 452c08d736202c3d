// The losses: L1 of many pairs and least squares over a discriminator's scales, value and gradient in one launch.
#pragma once

#include "reduce.cuh"

namespace munit_fast::cuda {

// One number of a tensor: its term of the loss, and its gradient.
__device__ inline float loss_term(float a, float b, bool square, float factor, float* grad) {
  const float off = a - b;
  if (square) {
    *grad = off * (2 * factor);
    return off * off;
  }
  // 0 and NaN take the last branch: sign(0) is 0, and a NaN is passed on.
  *grad = off > 0 ? factor : off < 0 ? -factor : off * factor;
  return fabsf(off);
}

// Of pointers from an array the compiler does not know that they point to global memory.
template <class P> __device__ inline P* global(P* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Said outright, where the compiler would cut the store of a gradient that branches have made into four.
template <class T, int V> __device__ inline void store_gradient(void* base, int64_t at, const Pack<T, V>& value) {
#if defined(__CUDA_ARCH__)
  if constexpr (V > 1) {
    const uint4 v = value.raw;
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(static_cast<T*>(base) + at), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
    return;
  }
#endif
  store<T, V>(global(base), at, value);
}

template <class T, int V>
__device__ inline float loss_at(const LossLaunch& a, int k, int64_t at, bool square, float factor) {
  Pack<T, V> first = load<T, V>(global(a.first[k]), at), second = first;
  if (!square) second = load<T, V>(global(a.second[k]), at);
  float x[V], y[V], grad[V], sum = 0;
  first.get(x), second.get(y);
#pragma unroll
  for (int j = 0; j < V; ++j) sum += loss_term(x[j], square ? a.target : y[j], square, factor, &grad[j]);
  if (a.grad_first[k]) {
    Pack<T, V> packed;
    packed.set(grad);
    store_gradient<T, V>(a.grad_first[k], at, packed);
  }
  if (a.grad_second[k]) {
    Pack<T, V> packed;
#pragma unroll
    for (int j = 0; j < V; ++j) grad[j] = -grad[j];
    packed.set(grad);
    store_gradient<T, V>(a.grad_second[k], at, packed);
  }
  return sum;
}

__device__ inline bool on_16_bytes(const void* a, const void* b, const void* c, const void* d) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c) |
           reinterpret_cast<uintptr_t>(d)) & 15) == 0;
}

// Grid (splits, groups), in clusters of (splits, 1, 1) where `value` is asked for and `partial` is null: then the first
// block adds up what all of them have found. Reads each number once, writes each gradient that is asked for once.
template <class T> __device__ inline void losses(const LossLaunch& a) {
  DYNAMIC_SHARED(shared);
  const bool square = a.second[0] == nullptr;
  const int group = blockIdx.y, first = group * a.per_group, last = first + a.per_group;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * threads;
  float mean = 0;
  for (int k = first; k < last; ++k) {
    const int64_t size = a.size[k];
    const float factor = a.grad ? a.grad[group] / static_cast<float>(size) : 0;
    const bool aligned = on_16_bytes(a.first[k], a.second[k], a.grad_first[k], a.grad_second[k]);
    const int64_t packs = aligned ? size / wide<T> : 0;
    float sum = 0;
    for (int64_t i = index; i < packs; i += step) sum += loss_at<T, wide<T>>(a, k, i * wide<T>, square, factor);
    for (int64_t i = packs * wide<T> + index; i < size; i += step) sum += loss_at<T, 1>(a, k, i, square, factor);
    mean += sum / static_cast<float>(size);
  }
  if (!a.value && !a.partial) return;
  float* scratch = reinterpret_cast<float*>(shared);
  float* out = scratch + scratch_floats(1, 1);
  float sums[1][1] = {{mean}};
  block_sums(ThreadPosition(1), sums, scratch, out);
  if (a.partial) {
    if (threadIdx.x == 0) a.partial[group * gridDim.x + blockIdx.x] = out[0];
    return;
  }
  cluster_sync();
  if (blockIdx.x == 0) {
    const int lane = threadIdx.x % 32;
    const float total = warp_sum(lane < static_cast<int>(gridDim.x) ? *of_rank(out, lane) : 0);
    if (threadIdx.x == 0) a.value[group] = total;
  }
  cluster_has_read();
  cluster_may_end();
}

// Grid (groups): adds each row of partial results.
__device__ inline void combine(const CombineLaunch& a) {
  DYNAMIC_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  float* out = scratch + scratch_floats(1, 1);
  float sums[1][1] = {};
  for (int i = threadIdx.x; i < a.splits; i += threads) sums[0][0] += a.partial[blockIdx.x * a.splits + i];
  block_sums(ThreadPosition(1), sums, scratch, out);
  if (threadIdx.x == 0) a.value[blockIdx.x] = out[0];
}

}  // namespace munit_fast::cuda
