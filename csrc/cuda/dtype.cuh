// Numbers in memory: float, bfloat16 and half, one or 16 bytes of them at a time. Arithmetic is in float.
#pragma once

#include <cuda_runtime.h>

#include "params.h"

namespace munit_fast::cuda {

struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};

template <class T> constexpr int wide = 16 / sizeof(T);  // numbers in one 16-byte access

#if defined(__CUDA_ARCH__)
__device__ inline float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ inline unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#elif !defined(MUNIT_FAST_SIMULATED)
inline float half_to_float(unsigned short) { return 0; }  // the compiler's pass for the host only parses kernels
inline unsigned short float_to_half(float) { return 0; }
#endif

__device__ inline unsigned short float_to_bf16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN
  return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// Two numbers of 16 bits, the first in the low half.
template <class T> __device__ inline void unpack(unsigned word, float* out);
template <> __device__ inline void unpack<bf16>(unsigned word, float* out) {
  out[0] = __uint_as_float(word << 16);
  out[1] = __uint_as_float(word & 0xffff0000u);
}
template <> __device__ inline void unpack<f16>(unsigned word, float* out) {
  out[0] = half_to_float(static_cast<unsigned short>(word & 0xffffu));
  out[1] = half_to_float(static_cast<unsigned short>(word >> 16));
}

template <class T> __device__ inline unsigned pack(float low, float high);
template <> __device__ inline unsigned pack<bf16>(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return float_to_bf16(low) | (static_cast<unsigned>(float_to_bf16(high)) << 16);
#endif
}
template <> __device__ inline unsigned pack<f16>(float low, float high) {
  return float_to_half(low) | (static_cast<unsigned>(float_to_half(high)) << 16);
}

// V numbers of type T as one access moves them: uint4 for 16 bytes (a struct of pairs is loaded in pieces), or a single.
template <class T, int V> struct Pack;

template <> struct Pack<float, 4> {
  uint4 raw;
  __device__ void get(float (&v)[4]) const {
    v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y);
    v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
  }
  __device__ void set(const float (&v)[4]) {
    raw.x = __float_as_uint(v[0]), raw.y = __float_as_uint(v[1]);
    raw.z = __float_as_uint(v[2]), raw.w = __float_as_uint(v[3]);
  }
};

template <class T> struct Pack<T, 8> {
  uint4 raw;
  __device__ void get(float (&v)[8]) const {
    unpack<T>(raw.x, v), unpack<T>(raw.y, v + 2), unpack<T>(raw.z, v + 4), unpack<T>(raw.w, v + 6);
  }
  __device__ void set(const float (&v)[8]) {
    raw.x = pack<T>(v[0], v[1]), raw.y = pack<T>(v[2], v[3]);
    raw.z = pack<T>(v[4], v[5]), raw.w = pack<T>(v[6], v[7]);
  }
};

template <> struct Pack<float, 1> {
  float raw;
  __device__ void get(float (&v)[1]) const { v[0] = raw; }
  __device__ void set(const float (&v)[1]) { raw = v[0]; }
};
template <> struct Pack<bf16, 1> {
  unsigned short raw;
  __device__ void get(float (&v)[1]) const { v[0] = __uint_as_float(static_cast<unsigned>(raw) << 16); }
  __device__ void set(const float (&v)[1]) { raw = float_to_bf16(v[0]); }
};
template <> struct Pack<f16, 1> {
  unsigned short raw;
  __device__ void get(float (&v)[1]) const { v[0] = half_to_float(raw); }
  __device__ void set(const float (&v)[1]) { raw = float_to_half(v[0]); }
};

template <class T, int V> __device__ inline Pack<T, V> load(const void* base, int64_t at) {
  return *reinterpret_cast<const Pack<T, V>*>(static_cast<const T*>(base) + at);
}
template <class T, int V> __device__ inline void store(void* base, int64_t at, const Pack<T, V>& value) {
  *reinterpret_cast<Pack<T, V>*>(static_cast<T*>(base) + at) = value;
}

__device__ inline float read(const ChannelParam& p, int sample, int channel) {
  const int64_t at = static_cast<int64_t>(sample) * p.per_sample + channel % p.entries;
  if (p.dtype == Dtype::f32) return static_cast<const float*>(p.data)[at];
  const unsigned short bits = static_cast<const unsigned short*>(p.data)[at];
  return p.dtype == Dtype::bf16 ? __uint_as_float(static_cast<unsigned>(bits) << 16) : half_to_float(bits);
}

}  // namespace munit_fast::cuda
