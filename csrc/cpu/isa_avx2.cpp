// AVX2 with FMA and F16C: Intel since Haswell, AMD since Zen.
#define MUNIT_FAST_ISA "avx2"
#define MUNIT_FAST_TABLE avx2_kernels
#define MUNIT_FAST_AVX2
#define MUNIT_FAST_VECTOR_BYTES 32
#include "kernels.inl"
