// AVX-512 with its bfloat16 conversions: AMD since Zen 4, Intel since Cooper Lake.
#include <cmath>
#include <cstdlib>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#ifndef __AVX512BF16__
#error "setup.py has the flags that this file is compiled with"
#endif
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own intrinsics
#endif
#define MUNIT_FAST_AVX512
#define MUNIT_FAST_AVX512_BF16
#define MUNIT_FAST_VECTOR_BYTES 64

namespace munit_fast::cpu {
namespace {
#include "kernels.inl"

constexpr Kernels table = table_called("avx512_bf16");
}  // namespace

const Kernels* avx512_bf16_kernels() { return &table; }

}  // namespace munit_fast::cpu

#else

namespace munit_fast::cpu {
const Kernels* avx512_bf16_kernels() { return nullptr; }
}  // namespace munit_fast::cpu

#endif
