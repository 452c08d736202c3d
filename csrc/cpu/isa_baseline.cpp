// What the compiler's target has without asking: SSE2 on x86-64, NEON on aarch64.
#if defined(__aarch64__)
#define MUNIT_FAST_ISA "neon"
#else
#define MUNIT_FAST_ISA "sse2"
#endif
#define MUNIT_FAST_TABLE baseline_kernels
#define MUNIT_FAST_VECTOR_BYTES 16
#include "kernels.inl"
