// AVX-512 with its bfloat16 conversions: AMD since Zen 4, Intel since Cooper Lake.
#define MUNIT_FAST_ISA "avx512_bf16"
#define MUNIT_FAST_TABLE avx512_bf16_kernels
#define MUNIT_FAST_AVX512
#define MUNIT_FAST_AVX512_BF16
#define MUNIT_FAST_VECTOR_BYTES 64
#include "kernels.inl"
