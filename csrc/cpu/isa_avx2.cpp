// AVX2 with FMA and F16C: Intel since Haswell, AMD since Zen.
#include <cmath>
#include <cstdlib>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#ifndef __AVX2__
#error "setup.py has the flags that this file is compiled with"
#endif
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own intrinsics
#endif
#define MUNIT_FAST_AVX2
#define MUNIT_FAST_VECTOR_BYTES 32

namespace munit_fast::cpu {
namespace {
#include "kernels.inl"

constexpr Kernels table = table_called("avx2");
}  // namespace

const Kernels* avx2_kernels() { return &table; }

}  // namespace munit_fast::cpu

#else

namespace munit_fast::cpu {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace munit_fast::cpu

#endif
