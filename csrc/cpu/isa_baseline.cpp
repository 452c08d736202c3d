// What the compiler's target has without asking: SSE2 on x86-64, NEON on aarch64.
#include <cmath>
#include <cstdlib>

#include "kernels.h"

#define MUNIT_FAST_VECTOR_BYTES 16

namespace munit_fast::cpu {
namespace {
#include "kernels.inl"

#if defined(__aarch64__)
constexpr Kernels table = table_called("neon");
#else
constexpr Kernels table = table_called("sse2");
#endif
}  // namespace

const Kernels* baseline_kernels() { return &table; }

}  // namespace munit_fast::cpu
