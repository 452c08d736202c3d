// AVX-512 (F, BW, VL, DQ): Intel since Skylake-X.
#include <cmath>
#include <cstdlib>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own intrinsics
// After the system's headers: what they define must stay runnable everywhere.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#define MUNIT_FAST_AVX512
#define MUNIT_FAST_VECTOR_BYTES 64

namespace munit_fast::cpu {
namespace {
#include "kernels.inl"

constexpr Kernels table = table_called("avx512");
}  // namespace

const Kernels* avx512_kernels() { return &table; }

}  // namespace munit_fast::cpu

#else

namespace munit_fast::cpu {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace munit_fast::cpu

#endif
